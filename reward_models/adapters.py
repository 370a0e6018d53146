"""A classifier that is LoRA adapters and a score layer over a causal LM's own weights.

Where that LM is the one PPO starts from, policy, reference, critic and reward need its weights
only once: `share_weights` lets the reward use the policy's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from reward_models.training import head_options

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def new_adapter_classifier(
    base: str | Path, lora: LoraConfig, dtype: torch.dtype, seed: int, outputs: int = 2
) -> PeftModel:
    """Fresh adapters and a fresh score layer, float32, over ``base``.

    Args:
        base: Folder of a causal language model. lora: For ``SEQ_CLS``. dtype: The base's.
        outputs: Two, negative and positive, or one number.

    Raises:
        OSError, ValueError: There is no such model, or none that can classify.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            str(base),
            dtype=dtype,
            **head_options(outputs),
        )
        adapted = get_peft_model(model, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert isinstance(adapted, PeftModel)
    return adapted


def save_adapter_classifier(model: PeftModel, folder: Path) -> None:
    """Write adapters and score layer, and the labels in a ``config.json``; not the base."""
    model.save_pretrained(str(folder))
    model.get_base_model().config.save_pretrained(str(folder))  # type: ignore[operator]


def load_adapter_classifier(folder: Path, base: Path | None = None) -> PeftModel:
    """Read back what `save_adapter_classifier` wrote.

    Args:
        base: The causal language model beneath; None is the one that ``folder`` names.

    Raises:
        OSError, ValueError: The base is not there, or the adapter holds no score layer.
    """
    source = base or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not (folder / WEIGHTS).is_file():
        raise OSError(f"{folder / WEIGHTS} is missing; train it again")
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            str(source), config=AutoConfig.from_pretrained(str(folder)), dtype="auto"
        )
    except OSError as error:
        mend = f"mend base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        if base is not None:
            mend = "make it again (`rlhf sft`)"
        raise OSError(f"its base model {source} cannot be loaded; {mend}") from error
    adapted = PeftModel.from_pretrained(model, str(folder))
    if not any("modules_to_save" in name for name, _ in adapted.named_parameters()):
        raise ValueError("the adapter has no score layer, so it is none of a classifier")
    return adapted


def share_weights(model: nn.Module, other: nn.Module) -> int:
    """Let ``model`` use the frozen weights of ``other`` that its own equal; return bytes saved.

    Weights are matched by name and compared, so nothing but memory changes now. Afterwards
    ``model`` must not be trained, and is of no use once ``other``'s are (by merging, say).
    """
    model.requires_grad_(False)
    frozen = {
        _plain(name): parameter
        for name, parameter in other.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    saved = 0
    for path, module in model.named_modules():
        for name, own in module._parameters.items():
            theirs = frozen.get(_plain(f"{path}.{name}"))
            if own is None or theirs is None or own is theirs:
                continue
            alike = own.shape == theirs.shape and own.dtype == theirs.dtype and own.numel() > 0
            if alike and torch.equal(own.to(theirs.device), theirs):
                module._parameters[name] = theirs  # type: ignore[assignment]
                saved += own.nbytes
    return saved


def _plain(name: str) -> str:
    """A weight's name without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
