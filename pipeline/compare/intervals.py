"""95 % intervals: over prompts, over samples within a prompt, and over seeds.

Prompts are the independent draws. A prompt's value comes from its own samples, so the spread of the
prompts' values already holds both levels, what prompts differ by and the luck of the samples behind
each: to draw samples again within drawn prompts would count that luck twice (Davison & Hinkley
1997, section 3.8). So a cluster interval over prompts *is* the hierarchical one over prompts and
samples. Seeds are a level above, crossed with the prompts: :func:`over_seeds`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]
Interval = tuple[float, float]

# Numbers of one column that the bootstrap holds at once: 16 MB.
_HELD = 2_000_000


def ratio(gain: Array, room: Array) -> float | None:
    """Mean of ``gain`` over mean of ``room``, of one shape; None when there is no room.

    With gain = J(π) − J(π_ref) and room = J* − J(π_ref) a prompt this is the optimality of π: 0
    for the reference, 1 for the best that any method can reach at that β.
    """
    value = float(_ratios(gain.ravel(), room.ravel()))
    return value if math.isfinite(value) else None


def _ratios(gain: Array, room: Array, axis: int = -1) -> Array:
    """`ratio` along ``axis``; NaN where there is no room."""
    total = room.sum(axis=axis)
    # room is ≥ 0 for every prompt (Jensen); equal rewards throughout leave rounding errors.
    enough = total > 1e-9 * room.shape[axis]
    return np.where(enough, gain.sum(axis=axis) / np.where(enough, total, 1.0), np.nan)


def ratio_interval(
    gain: Array, room: Array, resamples: int, seed: int, level: float = 0.95
) -> Interval | None:
    """Bootstrap interval of :func:`ratio` over prompts ``(P,)``; None without room or from one.

    A drawn prompt brings its method, reference and optimum along, so their shared luck cancels.
    It covers the choice of prompts and the samples behind each; not a bias of J* in N.
    """
    return bootstrap_interval(_ratios, (gain, room), resamples, seed, level)


def mean_interval(values: Array, resamples: int, seed: int, level: float = 0.95) -> Interval | None:
    """Bootstrap interval of the mean of ``values`` ``(P,)`` over prompts; None from one prompt."""
    return bootstrap_interval(np.mean, (values,), resamples, seed, level)


def bootstrap_interval(
    statistic: Callable[..., Array],
    columns: tuple[Array, ...],
    resamples: int,
    seed: int,
    level: float,
) -> Interval | None:
    """Interval of ``statistic(*columns, axis=…)`` over prompts, by BCa (Efron 1987).

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


def skewed_mean_interval(values: Array, level: float = 0.95) -> Interval | None:
    """Interval of the mean of ``values`` ``(P,)`` by Hall's transformation of t; None from one.

    Hall (1992, J. R. Stat. Soc. B 54, eq. 2.5): the cubic g(t) = t + γt²/3 + γ²t³/27 + γ/6 with
    γ = skewness/√P takes the skew out of Student's t. Right to the same order as the bootstrap,
    and without draws: the hundreds of intervals behind a frontier are exact numbers.
    """
    prompts = len(values)
    if prompts < 2:
        return None
    mean, spread = float(values.mean()), float(values.std())
    if spread <= 1e-12 * (1.0 + abs(mean)):
        return mean, mean
    error = spread / math.sqrt(prompts - 1)
    skew = float(((values - mean) ** 3).mean()) / spread**3 / math.sqrt(prompts)
    t = special.stdtrit(prompts - 1, (1 + level) / 2) * np.array([1.0, -1.0])
    if abs(skew) > 1e-6:
        t = 3.0 / skew * (np.cbrt(1.0 + skew * (t - skew / 6.0)) - 1.0)
    low, high = mean - error * t
    return float(low), float(high)


def over_seeds(
    gain: Array, room: Array, resamples: int, seed: int, level: float = 0.95
) -> tuple[float | None, Interval | None]:
    """Mean gain over mean room across seeds and prompts, and its interval.

    For one method its gain over the reference, for two the difference of their gains, so that they
    are paired by prompt and by seed. With ones for room it is a plain mean.

    Seeds are few, often three, and a bootstrap over three values is far too narrow: its variance is
    (S − 1)/S of the right one and its draws never leave the range of the seeds; nor can
    ``scipy.stats.bootstrap`` draw along two axes. So the ratio is made linear, e = (gain −
    ρ·room)/mean room, and its variance is put together as in a table of two crossed random factors
    (Searle, Casella & McCulloch 1992, chapter 4): V = V_seeds + V_prompts − V_rest, with Student's
    t at Satterthwaite's (1946) degrees of freedom. Seeds that agree cost nothing; seeds that differ
    make it as wide as S − 1 degrees of freedom demand. It is right as well where each seed has
    prompts of its own.

    Args:
        gain: ``(S, P)``. room: ``(S, P)``, or ``(P,)`` for all seeds.
        resamples, seed: of the bootstrap over prompts that one seed falls back to.

    Returns:
        The ratio, None without room; its interval, None without room or with one prompt and seed.
    """
    room = np.broadcast_to(room, gain.shape)
    value = ratio(gain, room)
    if value is None:
        return None, None
    seeds, prompts = gain.shape
    if seeds == 1:
        return value, ratio_interval(gain[0], room[0], resamples, seed, level)
    rest = (gain - value * room) / room.mean()
    rows, columns = rest.mean(axis=1), rest.mean(axis=0)
    by_seed = rows.var(ddof=1) / seeds
    by_prompt = columns.var(ddof=1) / prompts if prompts > 1 else 0.0
    alone = rest - rows[:, None] - columns + rest.mean()
    both = (seeds - 1) * (prompts - 1)
    noise = (alone**2).sum() / both / (seeds * prompts) if both else 0.0
    variance = max(by_seed, by_prompt, by_seed + by_prompt - noise)
    if variance <= 0.0:
        return value, (value, value)
    freedom = by_seed**2 / (seeds - 1) + by_prompt**2 / max(1, prompts - 1)
    freedom = (by_seed + by_prompt) ** 2 / freedom
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
    return value, (value - half, value + half)
