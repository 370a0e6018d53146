"""Loss scaling under float16, whose smallest gradients would else be 0.

The loss is multiplied before the backward pass and the gradients are divided after it, by
accelerate's GradScaler. A scale that was too large gives infinite gradients: the scaler leaves that
step out and halves the scale. That is no failure, so long as the scale is large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_LEAST = 1.0  # below this scale a gradient that is not finite is not the scale's doing


class LossScale:
    """What the scaler of an accelerator means for PPO's step; nothing where it has none."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def keep_one(self, model: nn.Module, spare: nn.Parameter) -> None:
        """Give the scaler a gradient to look at where an update has ended and there are none.

        It is 0 and on ``spare``; what is dropped before the step drops it too.
        """
        if self._accelerator.scaler is None:
            return
        if all(parameter.grad is None for parameter in model.parameters()):
            spare.grad = torch.zeros_like(spare)

    @contextmanager
    def divided(self) -> Iterator[None]:
        """Within, gradients are clipped as they are: an optimizer's are divided once a step."""
        accelerator = self._accelerator
        given, accelerator.native_amp = accelerator.native_amp, False
        try:
            yield
        finally:
            accelerator.native_amp = given

    def explains(self, norm: Any) -> bool:
        """Whether a gradient norm that is not finite is only due to the scale."""
        scaler = self._accelerator.scaler
        if scaler is None or norm is None or math.isfinite(float(norm)):
            return False
        return float(scaler.get_scale()) >= _LEAST
