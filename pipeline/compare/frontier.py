"""The best that any method could do: the optimum of KL-regularised RL, from reference samples.

For J_β(π) = E[r] − β·KL(π‖π_ref) the optimum is known in closed form (Korbak et al. 2022;
Rafailov et al. 2023):

    π*(y|x) = π_ref(y|x)·exp(r(x,y)/β) / Z_x,   Z_x = E_{y∼π_ref} exp(r(x,y)/β)
    J*_β    = β·E_x log Z_x

Every expectation here is estimated from the same N samples of π_ref a prompt, given as their
rewards ``(P, N)``: P prompts, N samples. Two limits follow and are shown rather than hidden: the
estimate of J* is biased low (Jensen, log of a mean), and no reweighting of N samples is further
than log N nats from them. All KLs are in nats per completion, rewards in the reward's own unit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

# The first row of the doubling table: fewer samples than this say little about a log of a mean.
FIRST_DOUBLING = 8
# Numbers of one column that the bootstrap holds at once: 16 MB.
_HELD = 2_000_000


def log_partition(rewards: Array, beta: float) -> Array:
    """Log Z_x by log-mean-exp of r/β: ``(P, N)`` → ``(P,)``, biased low in N."""
    scaled = rewards / beta
    top = scaled.max(axis=1)
    return top + np.log(np.exp(scaled - top[:, None]).mean(axis=1))


def optimal_weights(rewards: Array, beta: float) -> Array:
    """Self-normalised weights ``(P, N)`` that turn the π_ref samples into samples of π*."""
    scaled = rewards / beta
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def effective_sample_size(rewards: Array, beta: float) -> Array:
    """Samples that count under π*, 1/Σw² a prompt: ``(P,)``, between 1 and N."""
    return 1.0 / np.square(optimal_weights(rewards, beta)).sum(axis=1)


def optimum(rewards: Array, beta: float) -> Array:
    """Each prompt's part of J*_β, β·log Z_x: ``(P,)``; J*_β is the mean."""
    return beta * log_partition(rewards, beta)


@dataclass(frozen=True)
class OptimumEstimate:
    """J*_β as ``n`` samples a prompt estimate it; see :func:`doubling`."""

    n: int
    j_star: float
    ess: float


def doubling(rewards: Array, beta: float) -> list[OptimumEstimate]:
    """J*_β from 8, 16, 32, … N samples a prompt, to see whether it has settled.

    Each n averages the estimates of all disjoint blocks of n samples, so that rows differ by bias
    and not by the luck of the first n.
    """
    prompts, samples = rewards.shape
    sizes = [FIRST_DOUBLING]
    while sizes[-1] * 2 <= samples:
        sizes.append(sizes[-1] * 2)
    sizes = sorted({n for n in sizes if n < samples} | {samples})
    rows = []
    for n in sizes:
        blocks = rewards[:, : samples // n * n].reshape(prompts * (samples // n), n)
        j_star = float(optimum(blocks, beta).mean())
        rows.append(OptimumEstimate(n, j_star, float(effective_sample_size(blocks, beta).mean())))
    return rows


def kl_cap(samples: int) -> float:
    """The largest KL that a reweighting of ``samples`` samples can show: log N nats."""
    return math.log(samples)


@dataclass(frozen=True)
class FrontierPoint:
    """The optimum at one β: its reward R*, its KL K*, and the effective sample size behind it."""

    beta: float
    reward: float
    kl: float
    ess: float


def frontier_point(rewards: Array, beta: float) -> FrontierPoint:
    """R*(β) = E_x E_{π*}[r] and K*(β) = E_x[E_{π*}[r]/β − log Z_x]."""
    best = (optimal_weights(rewards, beta) * rewards).sum(axis=1)
    # The difference is a KL, hence ≥ 0; at a large β only rounding could say otherwise.
    kl = np.maximum(best / beta - log_partition(rewards, beta), 0.0)
    ess = effective_sample_size(rewards, beta)
    return FrontierPoint(beta, float(best.mean()), float(kl.mean()), float(ess.mean()))


def frontier(rewards: Array, betas: list[float]) -> list[FrontierPoint]:
    """The optimum at each of ``betas``, sorted by β: reward and KL fall along the list."""
    return [frontier_point(rewards, beta) for beta in sorted(set(betas))]


def least_kl(rewards: Array, reward: float, lowest_beta: float) -> float | None:
    """K*(R): the least KL that any policy pays for the mean reward ``reward``.

    Solves R*(β) = R for β by bisection (R* falls as β grows), which unlike interpolation between
    a few points of a convex curve does not overstate K*.

    Returns:
        nats, or None outside the reachable range from E_ref[r] to R*(``lowest_beta``), beyond
        which N samples do not carry the estimate.
    """
    base = float(rewards.mean())
    if not base <= reward <= frontier_point(rewards, lowest_beta).reward:
        return None
    low = math.log(lowest_beta)
    # R*(β) − E_ref[r] is about Var(r)/β for large β, so this β is as good as infinite.
    high = max(low, math.log(1e9 * (1.0 + float(np.ptp(rewards)))))
    for _ in range(100):
        middle = (low + high) / 2
        if frontier_point(rewards, math.exp(middle)).reward > reward:
            low = middle
        else:
            high = middle
    return frontier_point(rewards, math.exp(low)).kl


def kl_efficiency(rewards: Array, reward: float, kl: float, lowest_beta: float) -> float | None:
    """K*(R(π)) / KL(π): the share of a policy's KL that its reward was worth; 1 is optimal.

    Returns:
        None when the KL is 0 or the reward is outside the reachable range (:func:`least_kl`).
    """
    needed = least_kl(rewards, reward, lowest_beta)
    return needed / kl if needed is not None and kl > 0 else None


def ratio(gain: Array, room: Array) -> float | None:
    """Mean of ``gain`` over mean of ``room``, both ``(P,)``; None when there is no room.

    With gain = J(π) − J(π_ref) and room = J* − J(π_ref) a prompt this is the optimality of π: 0
    for the reference, 1 for the best that any method can reach at that β.
    """
    value = float(_ratios(gain, room))
    return value if math.isfinite(value) else None


def _ratios(gain: Array, room: Array, axis: int = -1) -> Array:
    """`ratio` along ``axis``; NaN where there is no room."""
    total = room.sum(axis=axis)
    # room is ≥ 0 for every prompt (Jensen); equal rewards throughout leave rounding errors.
    enough = total > 1e-9 * room.shape[axis]
    return np.where(enough, gain.sum(axis=axis) / np.where(enough, total, 1.0), np.nan)


def ratio_interval(
    gain: Array, room: Array, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float] | None:
    """Bootstrap interval of :func:`ratio` over prompts; None without room or from one prompt.

    A drawn prompt brings its method, reference and optimum along, so their shared luck cancels.
    It covers the choice of prompts and the samples behind each; not the bias of J* in N.
    """
    return _interval(_ratios, (gain, room), resamples, seed, level)


def mean_interval(
    values: Array, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float] | None:
    """Bootstrap interval of the mean of ``values`` ``(P,)`` over prompts; None from one prompt."""
    return _interval(np.mean, (values,), resamples, seed, level)


def _interval(
    statistic: Callable[..., Array],
    columns: tuple[Array, ...],
    resamples: int,
    seed: int,
    level: float,
) -> tuple[float, float] | None:
    """Interval of ``statistic(*columns, axis)`` over prompts, by BCa (Efron 1987).

    BCa moves the percentiles by the bias and the skew that the draws show. Where these do not exist
    (all draws are equal, as the reference's against itself; all are on one side of the value; in
    some there is no room) the plain percentiles of the draws that have a value are taken.
    """
    prompts = len(columns[0])
    if prompts < 2:
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            columns,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            # Draws, and BCa's P leave-one-out columns of P − 1, held at once.
            batch=max(1, _HELD // prompts),
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        draws = result.bootstrap_distribution
        draws = draws[np.isfinite(draws)]
        if not len(draws):
            return None
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
