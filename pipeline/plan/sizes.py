"""A policy's sizes, from its configuration alone: no weight is loaded, and none is made.

The model is built on the meta device and made trainable by the function that the stages call, so
what counts as trained is what will be.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils.peft_utils import find_adapter_config_file

from common.words import first_line
from pipeline.config import ModelSection
from pipeline.data import embedded, toy
from pipeline.errors import UserError
from pipeline.lm.models import (
    EMBEDDED_MODEL,
    base_of,
    decoder_layers,
    lora_config,
    make_trainable,
    with_adapters,
)
from pipeline.lm.trunk import lowest_trained_layer

# Bytes of a quantised weight, its scales included: a byte for each block of 64, of which a float32
# for 256 (4 bit, the scales quantised too); a float32 a row (8 bit).
_QUANTISED = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0}


@dataclass(frozen=True)
class Policy:
    """A causal language model as one method trains it.

    Attributes:
        name: of its class. parameters: all of its weights. trained: of them, or of its adapters,
            those that get gradients. frozen_bytes: of all others.
        layers, width, vocabulary: of the decoder. upper: layers from the lowest trained one up.
        layer: weights of one decoder layer, on average. embeddings: of embeddings and head.
        adapted: whether what is trained are adapters, which the reference is without.
        trains_head: whether the LM head gets a gradient.
        positions: that the model was made for; None where its config does not say.
        kv_token: bytes of one token's keys and values.
    """

    name: str
    parameters: int
    trained: int
    frozen_bytes: float
    layers: int
    upper: int
    width: int
    vocabulary: int
    layer: float
    embeddings: int
    adapted: bool
    trains_head: bool
    positions: int | None
    kv_token: float

    @property
    def weight_bytes(self) -> float:
        """Of the policy as it is held for training."""
        return self.frozen_bytes + 4 * self.trained


def read_config(section: ModelSection) -> Any:
    """The configuration of the model that the experiment starts from.

    Raises:
        UserError: it cannot be read: no such folder, or a hub that is not reached.
    """
    name = section.model_name_or_path
    if name == "toy":
        return toy.toy_language_model(0).config
    source = str(embedded.base_model()) if name == EMBEDDED_MODEL else name
    return _read(source, "model.model_name_or_path", section.model_revision, section)


def _read(source: str, key: str, revision: str | None, section: ModelSection) -> Any:
    given: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        if find_adapter_config_file(source, **given) is not None:
            source = PeftConfig.from_pretrained(source, **given).base_model_name_or_path or source
            given = {}
        return AutoConfig.from_pretrained(
            source, trust_remote_code=section.trust_remote_code, **given
        )
    # Missing, gated, offline, damaged, of an unknown kind: a dozen unrelated types.
    except Exception as error:
        raise UserError(
            f"{key}: the configuration of {source!r} cannot be read ({first_line(error)}); give a"
            " folder, or a hub id that is reached from here"
        ) from error


def empty_model(
    config: Any, section: ModelSection, dtype: torch.dtype, attention: str | None = None
) -> PreTrainedModel:
    """The architecture without weights, on the meta device.

    Args:
        attention: the implementation, where it is not to be the model's own.
    """
    settings: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    settings["trust_remote_code"] = section.trust_remote_code
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, **settings)


def trainable(
    model: PreTrainedModel, section: ModelSection, modules: list[str] | None
) -> nn.Module:
    """What :func:`pipeline.lm.models.make_trainable` makes of it, adapters empty too."""
    if not section.use_peft:
        return make_trainable(model, section, modules=modules)
    try:
        adapters = lora_config(section, "CAUSAL_LM", model)
        return with_adapters(model, adapters, low_cpu_mem_usage=True)
    except ValueError as error:
        raise UserError(f"model.lora_target_modules: {first_line(error)}") from error


def policy_of(
    config: Any, section: ModelSection, dtype: torch.dtype, modules: list[str] | None = None
) -> Policy:
    """Count a policy as ``section`` trains it.

    Args:
        dtype: that frozen weights are held in. modules: `model.policy_modules`, for the methods
            that keep to them.

    Raises:
        UserError: the architecture has no such layers or modules.
    """
    try:
        base = empty_model(config, section, dtype)
    except ValueError as error:
        raise UserError(
            f"model.model_name_or_path: {type(config).__name__} is of no causal language model"
            f" ({first_line(error)})"
        ) from error
    parameters = sum(p.numel() for p in base.parameters())
    text, layers = config.get_text_config(), _layers_of(base)
    weights = sum(p.numel() for p in layers.parameters()) if layers is not None else parameters
    count = len(layers) if layers is not None else int(text.num_hidden_layers)
    model = trainable(base, section, modules)
    base = base_of(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = base.get_output_embeddings()
    return Policy(
        name=type(base).__name__,
        parameters=parameters,
        trained=trained,
        frozen_bytes=_frozen_bytes(model, head, bits_of(section)),
        layers=count,
        upper=count - lowest_trained_layer(base),
        width=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        layer=weights / max(1, count),
        embeddings=parameters - weights,
        adapted=isinstance(model, PeftModel),
        trains_head=head is not None and any(p.requires_grad for p in head.parameters()),
        positions=_positions(text),
        kv_token=_kv_token(text, count, dtype),
    )


def classifier_parameters(source: str, section: ModelSection, key: str) -> int:
    """Weights of a sequence classifier, by its configuration.

    Raises:
        UserError: it cannot be read.
    """
    config = _read(source, key, None, section)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=section.trust_remote_code
        )
    return sum(p.numel() for p in model.parameters())


def bits_of(section: ModelSection) -> int | None:
    """4 or 8 where the frozen weights are quantised; None where they are not."""
    asked = section.quantization
    if not asked:
        return None
    if isinstance(asked, dict):
        return 8 if asked.get("load_in_8bit") else 4
    return 8 if asked == "8bit" else 4


def _frozen_bytes(model: nn.Module, head: nn.Module | None, bits: int | None) -> float:
    """Of the weights that get no gradient. Quantised are matrices of layers, not the head."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    total = sum(float(p.numel() * p.element_size()) for p in frozen.values())
    for module in model.modules() if bits is not None else ():
        if isinstance(module, nn.Linear) and module is not head and id(module.weight) in frozen:
            size = module.weight.element_size()
            total += module.weight.numel() * (_QUANTISED[bits or 4] - size)
    return total


def _layers_of(base: PreTrainedModel) -> nn.ModuleList | None:
    try:
        return decoder_layers(base)
    except UserError:  # no stack of layers that is known here
        return None


def _positions(text: Any) -> int | None:
    stated = getattr(text, "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def _kv_token(text: Any, layers: int, dtype: torch.dtype) -> float:
    """Bytes of one token's keys and values, by the config's words for them."""
    heads = int(getattr(text, "num_attention_heads", 1) or 1)
    size = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    return 2 * layers * int(groups) * int(size) * dtype.itemsize
