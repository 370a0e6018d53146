"""PPO's losses and diagnostics, element by element, so that the caller decides how to average.

Every function takes and returns tensors of one shape (``(B, T)`` for completions); reducing them
over a mask is the caller's job, because a minibatch may be split over microbatches and processes
and its mean must be taken over all of their tokens together.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
"""Estimates from sampled tokens; see :func:`kl_estimate`."""


def policy_gradient(logps: Tensor, advantages: Tensor) -> Tensor:
    r"""The surrogate :math:`-\log\pi(a|s)\,\hat A`, whose gradient is minus the policy gradient
    (Williams 1992; Sutton & Barto 2018, equation 13.8)."""
    return -logps * advantages


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, cliprange: float, dual_clip: float | None = None
) -> Tensor:
    r"""PPO's clipped surrogate as a loss (Schulman et al. 2017, equation 7, negated).

    .. math:: -\min\big(r\hat A,\ \mathrm{clip}(r, 1-\epsilon, 1+\epsilon)\hat A\big),\quad
              r = \exp(\log\pi - \log\pi_{old})

    Args:
        log_ratio, advantages: one shape. cliprange: ε > 0.
        dual_clip: c > 1 bounds the loss at :math:`-c\hat A` where the advantage is negative, so
            that a runaway ratio cannot dominate the batch (Ye et al. 2020, equation 5); None: no
            bound.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def clip_active(log_ratio: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """True where the clipped branch is the larger loss, that is where the gradient is cut off."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return -advantages * clipped > -advantages * ratio


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of categorical distributions, from normalised log-probabilities ``(..., A)``.

    An action of probability 0 (log-probability −inf) contributes nothing.
    """
    probabilities = log_probs.exp()
    return -(probabilities * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy in nats of diagonal Gaussians, from their log standard deviations ``(..., D)``."""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def value_loss(
    values: Tensor, returns: Tensor, old_values: Tensor, cliprange_value: float | None
) -> Tensor:
    """Half the squared error to the return, optionally clipped around the rollout's values.

    With ``cliprange_value`` the larger of the clipped and the plain error counts (the original
    PPO code; Huang et al. 2022, "The 37 Implementation Details of PPO", detail 9). ``None``
    switches the clipping off.
    """
    loss = (values - returns).square()
    if cliprange_value is not None:
        clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        loss = torch.maximum(loss, (clipped - returns).square())
    return 0.5 * loss


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    r"""Estimates of KL(π‖π_ref) from y ~ π (Schulman 2020, "Approximating KL divergence").

    With ``log r = log π_ref − log π``: k1 is ``−log r`` (unbiased, noisy, may be negative), k2 is
    ``(log r)²/2`` (biased, never negative), k3 is ``(r − 1) − log r`` (unbiased, never negative).
    """
    log_r = ref_logps - logps
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return 0.5 * log_r.square()
    return torch.expm1(log_r) - log_r


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 − Var[returns − values] / Var[returns]; 1 is perfect, 0 no better than a constant.

    Args:
        values, returns: 1-d, masked steps only. NaN-free: 0 when the returns do not vary.
    """
    variance = returns.var(unbiased=False)
    if variance <= 1e-12:
        return torch.zeros_like(variance)
    return 1.0 - (returns - values).var(unbiased=False) / variance
