"""Returns and advantages, written once for environments and for language models.

Time runs along the last axis, so a rollout of completions is ``(B, T)`` as it stands; transpose a
time-major environment rollout ``(T, N)`` before calling. Masks are True where a step really
happened; nothing behind a mask reaches a result.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is True, as a scalar; 0 when the mask is empty.

    Args:
        values: any shape. mask: bool, the same shape.
    """
    total = torch.where(mask, values, torch.zeros_like(values)).sum()
    return total / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Shift and scale ``values`` by statistics the caller computed over *all* processes.

    The statistics are arguments because in a distributed run they must be global: whitening each
    process's share by its own mean biases the gradient (Huang et al. 2024, "The N+ Implementation
    Details of RLHF with PPO", detail 7).

    Args:
        values, mask: ``(B, T)``. mean, variance: scalars.

    Returns:
        ``(B, T)``, zero outside the mask.
    """
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened, torch.zeros_like(whitened))


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Statistics ``[count, sum, sum of squares]`` over the mask, shape ``(3,)``, float64.

    They add across processes, so one all-reduce turns local moments into global ones.
    """
    kept = values[mask].double()
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


def mean_and_variance(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) variance from the ``(3,)`` statistics of :func:`moments`."""
    count = statistics[0].clamp(min=1)
    mean = statistics[1] / count
    return mean, (statistics[2] / count - mean.square()).clamp(min=0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation (Schulman et al. 2016, equations 11, 12 and 16).

    .. math:: \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad
              \hat A_t = \delta_t + \gamma\lambda\,\hat A_{t+1}

    An episode ends at its last masked step: the value beyond it is 0 (a completion cut off by the
    length limit is terminal for the language-model problem, whose horizon is that limit).

    Args:
        rewards, values: ``(B, T)``, ``values[:, t]`` belongs to the state *before* step ``t``.
        mask: bool ``(B, T)``, True on a contiguous run of steps from the start of each row.
        gamma: discount in (0, 1]. lam: λ in [0, 1]; 0 is the TD error, 1 is return minus value.

    Returns:
        advantages and returns (advantages + values), both ``(B, T)``, zero outside the mask.
    """
    zero = torch.zeros_like(rewards)
    rewards, values = torch.where(mask, rewards, zero), torch.where(mask, values, zero)
    advantages = torch.zeros_like(rewards)
    following_value = torch.zeros_like(rewards[:, 0])
    following_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = torch.where(
            mask[:, t], delta + gamma * lam * following_advantage, zero[:, t]
        )
        advantages[:, t] = following_advantage
        following_value = values[:, t]
    return advantages, torch.where(mask, advantages + values, zero)
