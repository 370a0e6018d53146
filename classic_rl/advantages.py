"""Returns and advantages, written once for environments and for language models.

Time runs along ``time_dim``: a rollout of completions is ``(B, T)`` as it stands (the default, the
last axis), a rollout of N parallel environments is ``(T, N)`` with ``time_dim=0``. Masks are True
where a step really happened; nothing behind a mask reaches a result.
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


def discounted_sums(terms: Tensor, decay: Tensor | float, time_dim: int = -1) -> Tensor:
    r"""Backward recursion :math:`S_t = x_t + d_t S_{t+1}` with :math:`S_T = 0`: every return and
    every advantage below is one of these.

    Args:
        terms: x, any shape. decay: d, a number or the same shape.
    """
    sums = torch.empty_like(terms)
    # Views on the steps, taken once: indexing inside the loop would cost more than the arithmetic.
    steps = sums.unbind(time_dim)
    decays = decay.unbind(time_dim) if isinstance(decay, Tensor) else [decay] * len(steps)
    following = torch.zeros_like(steps[-1])
    for total, term, d in zip(
        reversed(steps), reversed(terms.unbind(time_dim)), reversed(decays), strict=True
    ):
        following = torch.add(term, d * following, out=total)
    return sums


def discounted_returns(
    rewards: Tensor,
    ended: Tensor,
    gamma: float,
    bootstrap: Tensor | None = None,
    time_dim: int = -1,
) -> Tensor:
    r"""Reward-to-go :math:`G_t = r_t + \gamma G_{t+1}` (Sutton & Barto 2018, equation 3.9).

    Args:
        rewards: one shape for all. ended: bool, True on the last step of an episode, however it
            ended. gamma: discount in (0, 1].
        bootstrap: :math:`V(s_{t+1})`, used where an episode was cut off (truncation, the end of the
            rollout) and zero elsewhere; None counts nothing beyond a cut.
    """
    terms = rewards if bootstrap is None else rewards + gamma * bootstrap
    return discounted_sums(terms, gamma * (~ended).to(rewards.dtype), time_dim)


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    ended: Tensor,
    mask: Tensor | None = None,
    gamma: float = 0.99,
    lam: float = 0.95,
    time_dim: int = -1,
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation (Schulman et al. 2016, equations 11, 12 and 16).

    .. math:: \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad
              \hat A_t = \delta_t + \gamma\lambda\,\hat A_{t+1}

    A *terminated* episode has no future: V(s_{t+1}) is 0. One cut off by a time limit has one, and
    V of its final observation stands for it (Pardo et al. 2018, "Time Limits in RL"). In neither
    case does the next episode's advantage flow back.

    Args:
        rewards, values: ``values`` belongs to the state *before* the step.
        next_values: value of the state the step led to; at a truncation that is the episode's final
            observation, not the first one of the next.
        terminated: bool, the step ended its episode for good.
        ended: bool, the step was its episode's last one (terminated or truncated).
        mask: bool, True on real steps; None where all are. An ended step must come before a gap.
        gamma: discount in (0, 1]. lam: λ in [0, 1]; 0 is the TD error, 1 is return minus value.

    Returns:
        advantages and returns (advantages + values), zero outside the mask.
    """
    if mask is not None:
        zero = torch.zeros_like(rewards)
        rewards, values = torch.where(mask, rewards, zero), torch.where(mask, values, zero)
        next_values = torch.where(mask, next_values, zero)
        ended = ended | ~mask
    delta = rewards + gamma * torch.where(terminated, 0.0, next_values) - values
    advantages = discounted_sums(delta, gamma * lam * (~ended).to(delta.dtype), time_dim)
    return advantages, advantages + values


def completion_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`gae` for completions: each row is one episode that ends at its last masked token.

    Without ``bootstrap`` the value beyond that token is 0: a completion cut off by the length limit
    is terminal for the language-model problem whose horizon is that limit.

    Args:
        rewards, values: ``(B, T)``, ``values[:, t]`` belongs to the state *before* token ``t``.
        mask: bool ``(B, T)``, True on a contiguous run of tokens from the start of each row.
        gamma: discount in (0, 1]. lam: λ in [0, 1].
        bootstrap: ``(B,)`` V of the state after the last token of a row that was cut off and would
            have gone on, 0 for one that ended.

    Returns:
        advantages and returns, both ``(B, T)``, zero outside the mask.
    """
    following = torch.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    last = ~following
    next_values = torch.zeros_like(values)
    next_values[:, :-1] = values[:, 1:]
    terminated = last
    if bootstrap is not None:
        terminated = torch.zeros_like(last)
        next_values = torch.where(last, bootstrap[:, None].to(values.dtype), next_values)
    return gae(
        rewards,
        values,
        next_values,
        terminated=terminated,
        ended=last,
        mask=mask,
        gamma=gamma,
        lam=lam,
    )
