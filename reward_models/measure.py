"""How good a reward is as a judge of texts that people have rated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation; None where it is not defined (a constant, fewer than two texts)."""
    if len(first) < 2 or np.std(first) == 0 or np.std(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def accuracy(margins: Sequence[float], positive: Sequence[bool]) -> float:
    """Share of texts whose margin has the label's sign; a margin of zero is half right."""
    right = np.sign(margins) * np.where(positive, 1, -1)
    return float(np.mean((right + 1) / 2))


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Probability that a positive text scores above a negative one; needs no threshold."""
    labels = np.asarray(positive, dtype=bool)
    ranks = rankdata(scores)  # ties share their mean rank: half a win each
    n, m = int(labels.sum()), int((~labels).sum())
    return float((ranks[labels].sum() - n * (n + 1) / 2) / (n * m))


def calibration(
    margins: Sequence[float], positive: Sequence[bool], bins: int = 10
) -> dict[str, Any]:
    """Expected calibration error of P(positive) = σ(margin), with the bins behind it.

    ``ECE = Σ_b (n_b / n) · |mean P in b − share positive in b|`` over ``bins`` equal widths of P
    (Guo et al. 2017). Both classes count: P is of *positive*, not of the predicted label.
    """
    labels = np.asarray(positive, dtype=float)
    probability = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))
    which = np.minimum((probability * bins).astype(int), bins - 1)
    table, error = [], 0.0
    for index in range(bins):
        inside = which == index
        count = int(inside.sum())
        if not count:
            continue
        said, was = float(probability[inside].mean()), float(labels[inside].mean())
        error += count / len(labels) * abs(said - was)
        bounds = {"from": index / bins, "to": (index + 1) / bins}
        table.append({**bounds, "texts": count, "predicted": said, "positive": was})
    return {"ece": error, "bins": table}


def human_agreement(
    ratings: Sequence[Sequence[float]], threshold: float, margin: float
) -> dict[str, Any] | None:
    """How well one person foretells the others: what a judge can be expected to reach.

    For every rater of every text, the rater's own score against the mean of the other raters': the
    expectation over a rater drawn at random.

    Args:
        ratings: Every rater's score, by text; texts with fewer than two are left out.
        threshold: A score above it is positive.
        margin: ``accuracy`` counts where the others' mean is at least this far from the threshold;
            a rater exactly at the threshold (undecided) is half right.

    Returns:
        ``accuracy``, ``correlation``, ``texts`` and ``raters`` (mean a text); None without such
        ratings.
    """
    own, others, weights = [], [], []
    rated = [np.asarray(scores, dtype=float) for scores in ratings if len(scores) > 1]
    for scores in rated:
        own.append(scores)
        others.append((scores.sum() - scores) / (len(scores) - 1))
        weights.append(np.full(len(scores), 1 / len(scores)))  # every text counts once
    if not rated:
        return None
    one, rest, weight = (np.concatenate(parts) for parts in (own, others, weights))
    decided = np.abs(rest - threshold) >= margin
    if not decided.any():
        return None
    agrees = (np.sign(one - threshold) * np.sign(rest - threshold) + 1) / 2
    return {
        "accuracy": float(np.average(agrees[decided], weights=weight[decided])),
        "correlation": correlation(one.tolist(), rest.tolist()),
        "texts": len(rated),
        "raters": float(np.mean([len(scores) for scores in rated])),
    }
