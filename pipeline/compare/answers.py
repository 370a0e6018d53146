"""How a policy answers, be it sampled from or chosen among another's samples, as expectations.

Of a policy that is sampled from each sample counts alike; best-of-n's are π_ref's samples, each
with its chance to be the best of n. Numbers are by prompt, ``(P,)``; NaN where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compare import best_of_n
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.intervals import Array

Scores = Sequence[float | None]


@dataclass(frozen=True)
class Answers:
    """Samples, and how the answer comes from them.

    Attributes:
        evaluation: the samples, P·m.
        n: the answer is the best by proxy of so many of them; 1: any.
    """

    evaluation: Evaluation
    n: int = 1

    def grid(self, values: Scores) -> Array:
        """One value a sample, laid out as ``(P, m)``; NaN for None."""
        return self.evaluation.grid([np.nan if value is None else value for value in values])

    def expected(self, values: Scores) -> Array:
        """The mean of those values that there are: ``(P,)``."""
        return self._over_samples(values)[0]

    def share(self, values: Scores) -> Array:
        """The share of answers that have a value: ``(P,)``."""
        return self._over_samples(values)[1]

    def _over_samples(self, values: Scores) -> tuple[Array, Array]:
        grid, proxy = self.grid(values), self.grid(self.evaluation.proxy)
        if self.n == 1:
            weights = np.full(proxy.shape, 1 / proxy.shape[1])
        else:
            weights = best_of_n.weights(proxy, self.n)
        there = np.isfinite(grid)
        share = (weights * there).sum(axis=1)
        sums = (weights * np.where(there, grid, 0.0)).sum(axis=1)
        return _ratio(sums, share), share

    def win_rate(self, values: Scores, theirs: Array) -> Array:
        """Of all pairs of an answer and a sample of π_ref, the share where the answer is higher.

        A tie counts half; a pair that lacks a score is left out. Best-of-n's opponents are the
        samples that are not among its n, so there is none where N is n.

        Args:
            theirs: ``(P, k)`` scores of π_ref's samples, NaN for none.
        """
        grid = self.grid(values)
        if self.n == 1:
            return np.array([_wins(a, b) for a, b in zip(grid, theirs, strict=True)])
        samples = grid.shape[1]
        if samples == self.n:
            return np.full(len(grid), np.nan)
        pairs = pair_weights(samples, self.n)
        order = np.argsort(self.grid(self.evaluation.proxy), axis=1, kind="stable")
        ranked = np.take_along_axis(grid, order, axis=1)
        return np.array([_wins(row, row, pairs) for row in ranked])


def pair_weights(samples: int, n: int) -> Array:
    """The chance that k is the best of n drawn of N samples, and l one of those not drawn.

    Of the samples in the order of their rewards, that of rank k is the best of C(k−1, n−1) of the
    C(N, n) draws. The N − k above it are then not drawn, and of the k − 1 below it k − n are not:
    each with chance (k − n)/(k − 1). Every one of the N − n not drawn is the opponent alike.

    Returns:
        ``(N, N)``, which sums to 1.
    """
    rank = np.arange(1, samples + 1, dtype=np.float64)
    best = best_of_n.weights(rank[None], n)[0]
    below = _ratio((rank - n).clip(min=0), rank - 1)
    pairs = np.triu(np.ones((samples, samples)), 1)
    pairs += np.tril(np.ones((samples, samples)), -1) * np.nan_to_num(below)[:, None]
    return pairs * best[:, None] / (samples - n)


def _wins(ours: Array, theirs: Array, weights: Array | None = None) -> float:
    """The share won of one prompt's pairs, ``(m,)`` against ``(k,)``; NaN without any."""
    valid = np.isfinite(ours)[:, None] & np.isfinite(theirs)[None]
    weighted = valid * (np.ones(valid.shape) if weights is None else weights)
    won = np.greater.outer(ours, theirs) + 0.5 * np.equal.outer(ours, theirs)
    return float(_ratio((weighted * won).sum(), weighted.sum()))


def _ratio(above: Array, below: Array) -> Array:
    """Their quotient, NaN where ``below`` is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
