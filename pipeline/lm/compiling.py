"""torch.compile, a decoder layer at a time; and Liger's kernels: faster layers, the same numbers.

The Trainer would compile what it calls, the whole model's forward pass. PPO scores rollouts by
another way through the same layers, and would compile nothing of that. A layer that is compiled in
its place serves every way; drawing tokens, whose shapes change at every step, runs as it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.liger import apply_liger_kernel

from common.words import first_line
from pipeline.errors import UserError
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of, decoder_layers
from pipeline.lm.route import hidden_states

_VARIANTS = 64  # of a layer's code: with and without gradient, adapters, in training, …
_PROBE = 12  # tokens
_SAME, _SAME_ROUNDED = 1e-3, 0.1  # largest difference of final states, in their deviations
# What would put a loss in the place of the logits, which are scored here.
_NOT_LIGER = ("cross_entropy", "fused_linear_cross_entropy")


def compile_layers(model: nn.Module, arguments: TrainingArguments) -> int:
    """Compile each decoder layer in its place, where ``arguments.torch_compile`` asks for it.

    The arguments then ask for it no more, so that nothing is compiled twice.

    Returns:
        how many layers are.

    Raises:
        UserError: it cannot be compiled here, or computes something else then.
    """
    if not arguments.torch_compile:
        return 0
    backend, mode = arguments.torch_compile_backend, arguments.torch_compile_mode
    arguments.torch_compile = False
    arguments.torch_compile_backend = arguments.torch_compile_mode = None
    base = base_of(model)
    layers = decoder_layers(base)
    expected = _states(model)
    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    for layer in layers:
        layer.compile(backend=backend or "inductor", mode=mode, dynamic=True)
    counters = torch._dynamo.utils.counters["frames"]
    before = counters["ok"]
    try:
        found = _states(model)
    except Exception as error:  # whatever a compiler raises
        for layer in layers:
            layer._compiled_call_impl = None
        raise UserError(
            f"torch_compile: {type(base).__name__} cannot be compiled by {backend or 'inductor'} "
            f"here ({first_line(error)}); set it to false"
        ) from error
    if counters["ok"] == before:
        raise UserError(
            f"torch_compile: nothing of {type(base).__name__} can be compiled; set it to false"
        )
    mixed = any(p.dtype != torch.float32 for p in base.parameters() if p.is_floating_point())
    apart = float((found - expected).abs().max() / expected.std().clamp(min=1e-6))
    if not apart <= (_SAME_ROUNDED if mixed else _SAME):
        raise UserError(
            f"torch_compile: {type(base).__name__} computes something else when compiled, by"
            f" {apart:.2g} deviations of its states; set it to false"
        )
    return len(layers)


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Within, compiled layers run as they are."""
    compiled = any(getattr(m, "_compiled_call_impl", None) for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@torch.no_grad()
def _states(model: nn.Module) -> torch.Tensor:
    base = base_of(model)
    known = base.config.get_text_config().vocab_size
    tokens = torch.arange(1, _PROBE + 1, device=base.device)[None] % known
    with autocast(model):
        return hidden_states(model, tokens).float()


# --- Liger ----------------------------------------------------------------------------------------


def check_liger(given: Mapping[str, Any], section: str) -> None:
    """Refuse ``use_liger_kernel`` where the package is not there.

    Args:
        given: a section's arguments. section: its name.
    """
    if given.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            f"{section}.use_liger_kernel: needs the package liger-kernel: pip install liger-kernel,"
            " or set it to false"
        )


def use_liger(model: nn.Module, arguments: TrainingArguments) -> None:
    """Put Liger's norms, MLPs and rotations into the model, where the arguments ask for them.

    The Trainer would look for a model of transformers, and PPO's is one inside another. What
    replaces logits by a loss is left out.
    """
    if not arguments.use_liger_kernel:
        return
    check_liger({"use_liger_kernel": True}, "ppo")
    off = dict.fromkeys(_NOT_LIGER, False)
    apply_liger_kernel(model, {**(arguments.liger_kernel_config or {}), **off})
    arguments.use_liger_kernel = False
