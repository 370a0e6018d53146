"""What the model computes on and in: device, dtype, autocast, attention."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from pipeline.config import ModelSection

# Tokens, of so many rows; a layer's attention weights of 9 heads are then 75 MiB.
_PLAIN_ATTENTION_UP_TO, _OF_ROWS = 512, 8
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_MIXED = (torch.bfloat16, torch.float16)


def best_device() -> torch.device:
    """The accelerator that torch sees, else the processor.

    Apple's MPS is passed over: it has no float64, which sums over rollouts are kept in.
    """
    if torch.accelerator.is_available():
        device = cast(torch.device, torch.accelerator.current_accelerator())
        if device.type != "mps":
            return device
    return torch.device("cpu")


def one_device(arguments: TrainingArguments) -> None:
    """Make a process without a launcher use one GPU, where there are several.

    The Trainer would wrap the model in ``nn.DataParallel``, which neither TRL's trainers nor
    PPO's batches go through. Several GPUs are used with ``--accelerate`` or ``torchrun``.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def compute_dtype(section: ModelSection) -> torch.dtype:
    """The dtype of matrix products: as configured, else bfloat16 where the hardware has it."""
    if section.dtype is not None:
        return _DTYPES[section.dtype]
    if section.model_name_or_path == "toy":
        return torch.float32
    device = best_device()
    if device.type == "cuda":
        # Older cards (T4, V100) only emulate it, many times slower than their float32.
        real = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if real else torch.float32
    has_bf16 = "AVX512" in torch.backends.cpu.get_cpu_capability() and bool(
        torch.cpu.get_capabilities().get("avx512_bf16", False)
    )
    return torch.bfloat16 if device.type == "cpu" and has_bf16 else torch.float32


def policy_dtype(section: ModelSection) -> torch.dtype:
    """The dtype that PPO's and DPO's policies are saved and compared in, with their reference.

    Adapters add less to a weight than bfloat16 resolves, so merged ones are float32.
    """
    return torch.float32 if section.use_peft else compute_dtype(section)


def trainer_precision(section: ModelSection) -> dict[str, bool]:
    """The TrainingArguments that make a Trainer compute as :func:`compute_dtype` says.

    TRL's configs default to bf16 and to an accelerator; both are stated here instead.
    """
    return {
        "bf16": compute_dtype(section) == torch.bfloat16,
        "fp16": compute_dtype(section) == torch.float16,
        "use_cpu": best_device().type == "cpu",
    }


def autocast(model: nn.Module) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 or float16 when any weight of ``model`` is that, else nothing.

    A policy in training keeps float32 weights above such a trunk; this is how both compute
    together outside the Trainer's own autocast.
    """
    mixed = next((p.dtype for p in model.parameters() if p.dtype in _MIXED), None)
    device = next(model.parameters()).device.type
    return torch.autocast(device, mixed) if mixed else nullcontext()


def choose_attention(model: PreTrainedModel, name: str | None) -> None:
    """Note that ``name`` is a person's choice, which :func:`use_plain_attention` leaves alone."""
    model._chosen_attention = name  # type: ignore[assignment]


def use_plain_attention(
    model: PreTrainedModel, device: torch.device, longest: int, rows: int = _OF_ROWS
) -> None:
    """On a processor, compute attention by plain matrix products while sequences are short.

    The backward pass of torch's fused attention takes six times as long there in bfloat16, a fifth
    of a whole training step at 26 tokens; what fusing saves is memory, quadratic in the length.
    Another implementation than torch's fused one (``sdpa``, the default) stays, and so does what
    the config names (``model.attn_implementation``).

    Args:
        device: where the model will compute. longest: the longest sequence to expect, in tokens.
        rows: learned from at once; with more than `_OF_ROWS` it ends at shorter sequences.
    """
    chosen = getattr(model, "_chosen_attention", None) is not None
    fused = model.config._attn_implementation == "sdpa"
    small = max(rows, _OF_ROWS) * longest**2 <= _OF_ROWS * _PLAIN_ATTENTION_UP_TO**2
    if fused and not chosen and device.type == "cpu" and small:
        model.set_attn_implementation("eager")
