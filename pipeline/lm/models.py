"""Loading of policies and tokenizers, and what of a policy is trained."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import find_adapter_config_file

from common.words import first_line
from pipeline.config import ModelSection
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm import quantization
from pipeline.lm.hardware import best_device, choose_attention, compute_dtype
from pipeline.lm.loading import EMBEDDED_MODEL, blamed, loading, model_source
from pipeline.lm.saving import adapter_base, merged
from pipeline.output.policies import ADAPTER, is_policy

# What loading an unknown model, with whatever arguments, may raise.
_NOT_LOADED = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError)
_NOT_LOADED = (*_NOT_LOADED, ImportError, SafetensorError)


def switch_dropout_off(model: nn.Module) -> None:
    """No noise anywhere: with it the ratio of new to old probabilities would be noise.

    What is left of it (code of an unknown kind) :func:`pipeline.lm.check.check_policy` notices.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            noise = "dropout" in name or "jitter" in name or name.endswith(("drop", "pdrop"))
            if isinstance(value, float) and noise:
                setattr(module, name, 0.0)  # e.g. OPT's own float, given to F.dropout


def load_pretrained(
    name: str,
    dtype: torch.dtype | str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    more: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, as they are saved.

    Args:
        name: a folder or a hub id. dtype: ``"auto"`` keeps the one it was saved in.
        more: further arguments of ``from_pretrained``, of :func:`pipeline.lm.loading.loading`.

    Raises:
        UserError: there is no such model, or none that can be loaded so.
    """
    arguments: dict[str, Any] = {"revision": revision} if revision else {}
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    given = dict(more or {})
    try:
        adapter = find_adapter_config_file(name, revision=revision)
        if adapter is not None and "quantization_config" in given:
            raise UserError(
                f"model.quantization: {name!r} holds adapters, which are merged first; give a"
                " folder of the merged model, or set it to null"
            )
        if adapter is not None:
            return _load_adapted(name, dtype, revision, trust_remote_code, given)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **arguments, **given)
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
    except _NOT_LOADED as error:
        asked = f"with {blamed(given)} " if given else ""
        raise UserError(
            f"model.model_name_or_path: {name!r} is no causal language model that can be loaded "
            f"{asked}({first_line(error)}); give a Hugging Face folder, a hub id or "
            f"{EMBEDDED_MODEL!r}"
        ) from error
    choose_attention(model, given.get("attn_implementation"))
    if not quantization.is_quantized(model):
        return model, tokenizer
    if "quantization_config" not in given:
        raise UserError(
            f"model.model_name_or_path: {name!r} is saved in few bits; set model.quantization "
            "(4bit or 8bit) and model.use_peft=true, or give the model that it was made from"
        )
    return quantization.settle(model), tokenizer


def _load_adapted(
    name: str,
    dtype: torch.dtype | str,
    revision: str | None,
    trust_remote_code: bool,
    more: Mapping[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Adapters merged into the base that they name, and their tokenizer, else the base's."""
    config = PeftConfig.from_pretrained(name, revision=revision)
    source = config.base_model_name_or_path
    if not source:
        raise ValueError("its adapter_config.json names no base_model_name_or_path")
    source = adapter_base(name, source)
    base, tokenizer = load_pretrained(source, dtype, config.revision, trust_remote_code, more)
    with suppress(OSError, ValueError):  # adapters often come without one
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    adapted = PeftModel.from_pretrained(base, name, revision=revision)
    return merged(adapted, base.dtype, name), tokenizer


def load_base(
    section: ModelSection, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that SFT starts from, float32 where it will be trained, and its tokenizer."""
    more, dtype = loading(section), compute_dtype(section)
    if section.model_name_or_path == "toy":
        model, tokenizer = _toy(seed, dtype, more)
    else:
        source, revision = model_source(section), section.model_revision
        model, tokenizer = load_pretrained(source, dtype, revision, section.trust_remote_code, more)
    check_policy_modules(model, section)
    return prepare(model, tokenizer), tokenizer


def _toy(
    seed: int, dtype: torch.dtype, more: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The toy, by way of a folder where it is to be loaded in some other way than as it is."""
    model, tokenizer = toy.toy_language_model(seed), toy.toy_tokenizer()
    if not more:
        return model, tokenizer
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_pretrained(folder, dtype, more=more)


def load_checkpoint(
    path: Path, dtype: torch.dtype | None = None, section: ModelSection | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A finished stage's policy in evaluation mode on the best device.

    Args:
        path: a Hugging Face folder, of a model or of adapters, which are merged into their base.
        dtype: ``None`` keeps the one it was saved in; adapters are then merged in float32.
        section: says how attention is computed, and what else loading is given.

    Raises:
        UserError: the folder is missing or holds no model.
    """
    if not is_policy(path):
        raise UserError(f"{path}: no model folder (config.json is missing); run its stage first")
    kept = torch.float32 if path.name == ADAPTER else "auto"
    more = loading(section, base=False) if section else {}
    model, tokenizer = load_pretrained(str(path), dtype or kept, more=more)
    return prepare(model, tokenizer).eval().to(best_device()), tokenizer  # type: ignore[arg-type]


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Switch dropout off, give the tokenizer a pad token and forget sampling defaults.

    A checkpoint's own top-k, top-p or repetition penalty would make sampling another distribution
    than the one trained and measured.
    """
    switch_dropout_off(model)
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout"):
        if getattr(model.config, name, None):
            setattr(model.config, name, 0.0)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "model.model_name_or_path: the tokenizer has no EOS token, so no completion can end"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stop = getattr(model.generation_config, "eos_token_id", None)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if stop is None else stop,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return model


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder layers of a causal language model.

    Raises:
        UserError: it has none, or none where such models have it.
    """
    return _stack(model)[1]


def _stack(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder layers and what holds them."""
    for decoder in (model.get_decoder(), model.base_model):
        for name in ("layers", "h", "blocks"):
            layers = getattr(decoder, name, None)
            if isinstance(layers, nn.ModuleList):
                return decoder, layers
    raise UserError(
        f"model.trainable_layers: {type(model).__name__} has no list of layers known here; "
        "set it to null (all layers)"
    )


def lora_config(
    section: ModelSection, task: str, model: PreTrainedModel | None = None
) -> LoraConfig:
    """Adapters as configured, for PEFT's task type ``task``.

    Args:
        model: on whose upper layers alone they are, where `model.trainable_layers` says so.

    Raises:
        UserError: it has no such layers, or those have no such modules.
    """
    modules: Any = section.lora_target_modules
    if model is not None and section.trainable_layers is not None:
        modules = _in_layers(model, _upper_layers(model, section.trainable_layers), modules)
    return LoraConfig(
        task_type=task,  # type: ignore[arg-type]
        r=section.lora_r,
        lora_alpha=section.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=section.lora_dropout,
        target_modules=modules,
    )


def _in_layers(
    model: PreTrainedModel, layers: Sequence[nn.Module], names: list[str] | Literal["all-linear"]
) -> list[str]:
    """The full names of the modules of ``layers`` that adapters go on."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    found = []
    for path, module in model.named_modules():
        wanted = (
            isinstance(module, nn.Linear | Conv1D)
            if names == "all-linear"
            else any(f".{path}".endswith(f".{name}") for name in names)
        )
        if wanted and id(module) in inside:
            found.append(path)
    if not found:
        raise UserError(
            f"model.lora_target_modules: the upper {len(layers)} layers of {type(model).__name__} "
            f"have no module {names}; name some that they have, or set model.trainable_layers=null"
        )
    return found


def _upper_layers(model: PreTrainedModel, count: int) -> list[nn.Module]:
    """The last ``count`` decoder layers."""
    _, layers = _stack(model)
    if count > len(layers):
        raise UserError(
            f"model.trainable_layers: {count} is above the model's {len(layers)} layers; "
            "lower it or set null (all of them)"
        )
    return list(layers[-count:])


def with_adapters(model: PreTrainedModel, config: LoraConfig, **given: Any) -> PeftModel:
    """``model`` with adapters on it; ``given`` goes to ``peft.get_peft_model``.

    PEFT makes each adapter's input float32, which autocast rounds back to what it was. Without
    that the products are the same, and two copies of every input less.

    Raises:
        ValueError: no such modules, or none that adapters can be put on.
    """
    policy = get_peft_model(model, config, **given)
    for module in policy.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]
    return policy  # type: ignore[return-value]


def make_trainable(
    model: PreTrainedModel,
    section: ModelSection,
    seed: int = 0,
    modules: Sequence[str] | None = None,
) -> nn.Module:
    """Choose what is trained: LoRA adapters (made with ``seed``) or weights, in all layers or the
    upper ones.

    Trained weights become float32 (small updates vanish in bfloat16); frozen ones keep their
    dtype, so a bfloat16 trunk costs half the memory and computes at full speed.

    Args:
        modules: of the layers, those alone that are trained; see :func:`modules_named`.

    Returns:
        the model itself, or the PEFT model around it.
    """
    if section.use_peft:
        set_seed(seed)
        try:
            return with_adapters(model, lora_config(section, "CAUSAL_LM", model))
        except ValueError as error:  # no such modules, or none that adapters can be put on
            raise UserError(f"model.lora_target_modules: {first_line(error)}") from error
    count = section.trainable_layers
    if count is None and modules is None:
        return model.float()
    decoder, layers = _stack(model)
    upper = _upper_layers(model, len(layers) if count is None else count)
    if modules is None:
        final_norms = [m for m in decoder.children() if not isinstance(m, nn.ModuleList)]
        trained = upper + [m for m in final_norms if "norm" in type(m).__name__.lower()]
    else:
        trained = modules_named(upper, modules)
    model.requires_grad_(False)
    for module in trained:
        module.float().requires_grad_(True)
    return model


def check_policy_modules(model: PreTrainedModel, section: ModelSection) -> None:
    """Refuse ``model.policy_modules`` that the model has not, before anything is trained."""
    if section.policy_modules is not None:
        layers = list(decoder_layers(model))
        modules_named(layers[-(section.trainable_layers or 0) :], section.policy_modules)


def modules_named(layers: Sequence[nn.Module], names: Sequence[str]) -> list[nn.Module]:
    """The modules of ``layers`` whose name is one of ``names`` or ends in it after a dot.

    Raises:
        UserError: a name is no module's with weights; those that there are are listed.
    """
    found: dict[str, list[nn.Module]] = {name: [] for name in names}
    known: dict[str, None] = {}
    for layer in layers:
        for path, module in layer.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                known[path.rpartition(".")[2]] = None
            if next(module.parameters(), None) is not None:
                for name in names:
                    if f".{path}".endswith(f".{name}"):
                        found[name].append(module)
    for name, modules in found.items():
        if not modules:
            raise UserError(
                f"model.policy_modules: no module of the trainable layers is called {name!r}; "
                f"expected some of {', '.join(known)}, or null for all"
            )
    return [module for modules in found.values() for module in modules]


def upcast_trained(model: nn.Module) -> int:
    """Make the weights that are trained float32, and return how many numbers were not.

    Adam's step at a learning rate of 1e-5 is below half a bfloat16 step of most weights, which
    then never move.
    """
    count = 0
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
            count += parameter.numel()
    return count


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy for reference that shares every frozen weight with ``model`` and trains none.

    It computes the same to the bit, so trained weights are copied in their own dtype. Wholly frozen
    modules are shared as modules, so that both see their weights wherever FSDP puts them.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    for module in model.modules():
        if all(id(p) in shared for p in module.parameters()):
            shared[id(module)] = module
    duplicate = copy.deepcopy(model, memo=shared)
    for parameter in duplicate.parameters():
        parameter.requires_grad_(False)
    return duplicate.eval()


def base_of(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT model, or the model itself."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
