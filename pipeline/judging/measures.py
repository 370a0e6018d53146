"""How well scores agree with people, each number with its bootstrap interval.

A statistic is a function of how often each unit (a text, or texts that the same people rated) was
drawn: ``(B, U)`` counts of B draws give B numbers, NaN where it is not defined. Drawn once each it
is the value itself; drawn with replacement it is the bootstrap. Every statistic of the same units
sees the same draws, so that what they share cancels in a difference.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

DRAWS = 1000
LEVEL = 0.95
_HELD = 2_000_000  # counts held at once: 16 MB
# Draws in which a statistic exists, as a share of all: with fewer its interval says nothing.
_ENOUGH = 0.5


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; without one where it cannot be told (a single text)."""

    value: float
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval) if self.interval else None}


def estimate(statistic: Statistic, units: int) -> Estimate | None:
    """Value and interval by the bootstrap's percentiles (Efron 1979); None where not defined.

    The interval always holds the value: percentiles of a statistic that noise pushes one way (the
    calibration error, upwards) need not. Same arguments, same numbers.
    """
    if units < 1:
        return None
    value = float(statistic(np.ones((1, units)))[0])
    if not math.isfinite(value):
        return None
    if units < 2:
        return Estimate(value, None)
    rng = np.random.default_rng(0)
    batch = max(1, _HELD // units)
    sizes = [min(batch, DRAWS - start) for start in range(0, DRAWS, batch)]
    with np.errstate(all="ignore"):
        drawn = np.concatenate([statistic(_counts(rng, size, units)) for size in sizes])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < _ENOUGH * DRAWS:
        return Estimate(value, None)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, (min(float(low), value), max(float(high), value)))


def _counts(rng: np.random.Generator, draws: int, units: int) -> Array:
    """How often each unit is among ``units`` drawn with replacement: ``(draws, units)``."""
    drawn = rng.integers(0, units, (draws, units)) + units * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units).astype(float)


def difference(first: Statistic, second: Statistic) -> Statistic:
    """``first − second``, both of the same draws."""
    return lambda counts: first(counts) - second(counts)


def ratio(numerators: Sequence[float] | Array, weights: Sequence[float] | Array) -> Statistic:
    """Σ numerators / Σ weights over the drawn units."""
    top, below = np.asarray(numerators, dtype=float), np.asarray(weights, dtype=float)
    return lambda counts: _divided(counts @ top, counts @ below)


def accuracy(margins: Sequence[float], positive: Sequence[bool]) -> Statistic:
    """Share of texts whose margin has the label's sign; a margin of zero is half right."""
    right = (np.sign(margins) * np.where(positive, 1, -1) + 1) / 2
    return ratio(right, np.ones(len(right)))


def auc(scores: Sequence[float], positive: Sequence[bool]) -> Statistic:
    """Probability that a positive text scores above a negative one; a tie is half a win."""
    labels, ordered = np.asarray(positive, dtype=float), _Order(scores)

    def statistic(counts: Array) -> Array:
        good, bad = counts * labels, counts * (1 - labels)
        below = ordered.below(bad)
        wins = (good * below).sum(axis=1)
        return _divided(wins, good.sum(axis=1) * bad.sum(axis=1))

    return statistic


def pearson(first: Sequence[float], second: Sequence[float]) -> Statistic:
    """Pearson's correlation; not defined where one of the two is the same for all texts."""
    x, y = (np.asarray(values, dtype=float) for values in (first, second))
    return lambda counts: correlation(counts, x, y)


def spearman(first: Sequence[float], second: Sequence[float]) -> Statistic:
    """Spearman's correlation: Pearson's of the ranks, tied ones at their mean rank."""
    x, y = _Order(first), _Order(second)
    return lambda counts: correlation(counts, x.below(counts), y.below(counts))


def correlation(counts: Array, x: Array, y: Array) -> Array:
    """Pearson's correlation of ``x`` and ``y`` (``(U,)`` or ``(B, U)``), weighted by ``counts``."""
    total = counts.sum(axis=1, keepdims=True)
    # Of equal values rounding leaves a spread, of about 1e-16 of their size.
    least_x, least_y = (total[:, 0] * (1e-12 * np.abs(values).max()) ** 2 for values in (x, y))
    x = x - (counts * x).sum(axis=1, keepdims=True) / total
    y = y - (counts * y).sum(axis=1, keepdims=True) / total
    xx, yy, xy = ((counts * product).sum(axis=1) for product in (x * x, y * y, x * y))
    there = (xx > least_x) & (yy > least_y)
    return np.where(there, _divided(xy, np.sqrt(xx) * np.sqrt(yy)), np.nan)


def calibration_error(
    margins: Sequence[float], positive: Sequence[bool], bins: int = 10
) -> Statistic:
    """Expected calibration error, as `reward_models.measure.calibration` defines it."""
    probability = probabilities(margins)
    which = np.minimum((probability * bins).astype(int), bins - 1)
    gap = probability - np.asarray(positive, dtype=float)
    inside = np.zeros((len(gap), bins))
    inside[np.arange(len(gap)), which] = gap
    return lambda counts: _divided(np.abs(counts @ inside).sum(axis=1), counts.sum(axis=1))


def calibration_error_by_chance(margins: Sequence[float], bins: int = 10) -> float:
    """The error that a perfectly calibrated judge would show on so many texts, from noise alone:
    the mean over labels drawn from its own probabilities."""
    probability = probabilities(margins)
    rng = np.random.default_rng(0)
    errors = [
        calibration_error(margins, (rng.random(len(probability)) < probability).tolist(), bins)
        for _ in range(200)
    ]
    return float(np.mean([error(np.ones((1, len(probability)))) for error in errors]))


def probabilities(margins: Sequence[float]) -> Array:
    """P(positive) = σ(margin)."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(margins, dtype=float), -500, 500)))


def quantile_ranks(values: Sequence[float]) -> Array:
    """Where each value stands among all, from 0 (lowest) to 1; ties share their mean place."""
    ones = np.ones((1, len(values)))
    return _Order(values).below(ones)[0] / len(values)


class _Order:
    """The order of U values, to rank them however often each was drawn."""

    def __init__(self, values: Sequence[float]) -> None:
        self._unique, self._group = np.unique(np.asarray(values, dtype=float), return_inverse=True)
        self._order = np.argsort(self._group, kind="stable")
        self._starts = np.searchsorted(self._group[self._order], np.arange(len(self._unique)))

    def below(self, counts: Array) -> Array:
        """How many of the drawn values are below each value, of equal ones half: ``(B, U)``."""
        grouped = np.add.reduceat(counts[:, self._order], self._starts, axis=1)
        return (np.cumsum(grouped, axis=1) - grouped / 2)[:, self._group]


def _divided(top: Array, below: Array) -> Array:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        return np.where(below > 0, top / np.where(below > 0, below, 1.0), np.nan)
