"""Temperature scaling: a classifier's probabilities made to mean what they say.

Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2: on texts held out from
training one number T is fitted, and P(positive) = σ(margin / T). The order of the texts, and so
accuracy and AUC, stay as they are. T goes into the head's weights: whatever loads the checkpoint
sees calibrated logits. A single output that is positive for good texts is scaled just so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.interface import RewardError

TEMPERATURE = "reward_temperature"
"""What a calibrated model's config calls its temperature."""
# Beyond, the held-out texts say nothing about T: all of them are told apart, or none.
_LEAST, _MOST = 0.05, 20.0


def fit_temperature(margins: Sequence[float], positive: Sequence[bool]) -> float:
    """The T in [0.05, 20] of the least Σ −log P(label), P(positive) = σ(margin / T).

    The sum is convex in 1/T, so the golden section finds it.

    Args:
        margins: Log-odds of texts that were not trained on. positive: Their labels.
    """
    signed = np.asarray(margins, dtype=float) * np.where(positive, 1.0, -1.0)
    if not len(signed):
        raise ValueError("there are no texts to fit a temperature on")

    def loss(inverse: float) -> float:
        return float(np.logaddexp(0.0, -signed * inverse).sum())

    low, high = 1 / _MOST, 1 / _LEAST
    share = (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - share * (high - low), low + share * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2 / (low + high)


@torch.no_grad()
def calibrate(model: PreTrainedModel | PeftModel, temperature: float) -> None:
    """Divide all logits of a sequence classifier by ``temperature``, in its last layer's weights.

    The config keeps the number, as ``reward_temperature``.

    Raises:
        RewardError: The logits are no linear layer's output, so no weights can do that.
    """
    head, before, by = _head(model), _logits(model), 1 / temperature
    for weights in (head.weight, head.bias):
        if weights is not None:
            weights.mul_(by)
    after = _logits(model)
    if not torch.allclose(after, by * before, rtol=1e-2, atol=1e-3 * max(1.0, by)):
        raise RewardError(
            f"{type(model).__name__}: its logits are not its last layer's output, so they cannot be"
            " calibrated there; do without (calibrate)"
        )
    setattr(model.config, TEMPERATURE, temperature)


def _head(model: nn.Module) -> nn.Linear:
    """The layer that gives the logits: the last with as many outputs as labels, adapted or not."""
    labels = model.config.num_labels  # type: ignore[union-attr]
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == labels
        and "original_module" not in name  # PEFT's copy of a layer that it trains
        and "lora_" not in name
    ]
    if not found:
        raise RewardError(f"{type(model).__name__}: has no last layer that could be calibrated")
    return found[-1]


def _logits(model: PreTrainedModel | PeftModel) -> Tensor:
    """The logits of a few tokens, without dropout."""
    training = model.training
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        model.train(training)
    return logits.float()
