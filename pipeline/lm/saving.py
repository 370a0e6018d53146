"""Saving of finished policies: whole models, LoRA merged in, and adapters beside them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.files import new_folder
from pipeline.lm.quantization import dequantize
from pipeline.output.console import say
from pipeline.output.policies import MODEL, is_policy

# Below this share of an adapter's update that rounding leaves, it is told.
_TOLD_BELOW = 0.99


def adapter_base(folder: str, named: str) -> str:
    """The base of the adapter in ``folder``: ``named`` by it, or the SFT model of its own run.

    A run that was moved or copied to another machine still has its SFT model two folders up.
    """
    beside = Path(folder).absolute().parent.parent / "sft" / MODEL
    gone = Path(named).is_absolute() and not Path(named).exists()
    ours = Path(named).parts[-2:] == beside.parts[-2:]
    return str(beside) if gone and ours and is_policy(beside) else named


def save_policy(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype
) -> None:
    """Write a finished policy as a plain Hugging Face folder, atomically; LoRA is merged in.

    Args:
        dtype: of the weights. Under bfloat16 autocast trained float32 matrices were rounded at
            every forward pass, so bfloat16 is what was trained; adapters were not, so what they
            are merged into must be float32 (:func:`merged`).
    """
    if isinstance(model, PeftModel):
        policy = merged(model, dtype, folder.parent.name)
    else:
        dequantize(model)
        policy = cast(PreTrainedModel, model).to(dtype)  # type: ignore[arg-type]
    with new_folder(folder) as beside:
        policy.save_pretrained(beside)
        tokenizer.save_pretrained(beside)


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, base: Path
) -> None:
    """Write the adapters of a finished policy as a PEFT folder, atomically.

    Args:
        base: the folder of the model that they were trained over, which their config names.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base.absolute())
    with new_folder(folder) as beside:
        # TRL's DPO has its reference as one more adapter, which is nobody's policy.
        model.save_pretrained(str(beside), selected_adapters=list(model.active_adapters))
        tokenizer.save_pretrained(beside)
        (beside / "README.md").unlink(missing_ok=True)  # PEFT's empty form


def merged(model: PeftModel, dtype: torch.dtype, label: str) -> PreTrainedModel:
    """The plain model with the adapters of ``model`` in its weights, which it is of no use after.

    Quantised weights are the numbers that their codes stand for. The sum is made in float32.
    Rounded to bfloat16 afterwards, what adapters add to a weight vanishes where it is below half a
    step of that weight, so how much remains is told.

    Args:
        dtype: of the result. label: what the adapters are called.
    """
    dequantize(model)
    kept = 1.0 if dtype == torch.float32 else _share_kept(model, dtype)
    plain = model.float().merge_and_unload()  # type: ignore[operator]
    if kept < _TOLD_BELOW:
        say(
            f"warning: {label}: merged in {str(dtype).removeprefix('torch.')}, {kept:.0%} of what "
            "the adapters add to the weights remains; model.dtype=float32 keeps all of it"
        )
    return plain.to(dtype).requires_grad_(True)


@torch.no_grad()
def _share_kept(model: PeftModel, dtype: torch.dtype) -> float:
    """The part of the adapters' update that rounding to ``dtype`` leaves, along the update."""
    whole = kept = 0.0
    for module in model.modules():
        if not hasattr(module, "get_delta_weight") or not hasattr(module, "get_base_layer"):
            continue
        weight = module.get_base_layer().weight  # type: ignore[operator, union-attr]
        for adapter in model.active_adapters:
            if adapter not in getattr(module, "lora_A", {}):
                continue
            delta = module.get_delta_weight(adapter).float()  # type: ignore[operator]
            rounded = (weight.float() + delta).to(dtype).float() - weight.to(dtype).float()
            whole += float((delta * delta).sum())
            kept += float((rounded * delta).sum())
    return kept / whole if whole > 0 else 1.0
