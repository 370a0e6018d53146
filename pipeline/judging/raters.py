"""What people can do: how often one rater agrees with another, and with the mean of the others.

A rater prefers the text that the rater scored higher; equal scores say nothing and are left out.
Another rater who is asked may be undecided, which is half right: all are asked the same questions.
Where the data tells which texts the same people rated (a batch), each judgement compares two
scores of one person. Otherwise it compares a score of one text with one of another, which may be
two persons' whose scales differ: people then agree less often than one person comparing would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.records import RatedText
from pipeline.judging.measures import Array, Estimate, Statistic, estimate, ratio

_BLOCK = 5  # texts that are compared with each other where there are no batches


@dataclass(frozen=True)
class Comparisons:
    """P pairs of texts and what their raters said of them; everything is ``(P,)``.

    Attributes:
        first, second: The texts' places among the held-out ones.
        judgements: How many raters preferred one of the two; of unknown raters their share.
        first_better: Share of those who preferred the first.
        another: Share with whom another rater, drawn at random, sides; an undecided one is half.
        others: Share with whom the mean of the other raters sides; an undecided one is half.
        unit: The batch or block that the pair is from; units are drawn, never single pairs.
        same_people: Each judgement is one person's.
    """

    first: np.ndarray
    second: np.ndarray
    judgements: Array
    first_better: Array
    another: Array
    others: Array
    unit: np.ndarray
    same_people: bool

    @property
    def units(self) -> int:
        return int(self.unit.max()) + 1 if len(self.unit) else 0

    def share(self, right: Array) -> Statistic:
        """Mean of ``right`` over the judgements, a number of each pair."""
        top, below = (
            np.bincount(self.unit, values, minlength=self.units).astype(float)
            for values in (self.judgements * right, self.judgements)
        )
        return ratio(top, below)

    def agreement(self, scores: Sequence[float]) -> Statistic:
        """How often a rater prefers the text that scores higher; equal scores are half right."""
        values = np.asarray(scores, dtype=float)
        side = np.sign(values[self.first] - values[self.second])
        return self.share(0.5 + side * (self.first_better - 0.5))


def compare(texts: Sequence[RatedText]) -> Comparisons | None:
    """Every pair within a batch, or within blocks of five texts; None without two raters each."""
    rated = [index for index, text in enumerate(texts) if len(text.ratings) > 1]
    panels = _batches(texts, rated)
    same = bool(panels)
    if not same:
        panels = [rated[start : start + _BLOCK] for start in range(0, len(rated), _BLOCK)]
    rows = []
    for unit, panel in enumerate(panels):
        for place, first in enumerate(panel):
            for second in panel[place + 1 :]:
                a, b = (np.asarray(texts[index].ratings) for index in (first, second))
                said = _one_panel(a, b) if same else _two_panels(a, b)
                if said is not None:
                    rows.append((first, second, unit, *said))
    if not rows:
        return None
    first, second, unit, *numbers = (np.asarray(column) for column in zip(*rows, strict=True))
    judgements, better, another, others = (column.astype(float) for column in numbers)
    _, unit = np.unique(unit, return_inverse=True)  # units without a pair are not drawn
    return Comparisons(first, second, judgements, better, another, others, unit, same)


def _batches(texts: Sequence[RatedText], rated: Sequence[int]) -> list[list[int]]:
    """Texts that the same people rated, two or more together; empty where no data tells."""
    found: dict[tuple[object, int], list[int]] = {}
    for index in rated:
        batch = texts[index].batch
        if batch is not None:
            found.setdefault((batch, len(texts[index].ratings)), []).append(index)
    return [panel for panel in found.values() if len(panel) > 1]


_Said = tuple[float, float, float, float]


def _one_panel(a: Array, b: Array) -> _Said | None:
    """Judgements, first better, another, others: rater k scored the texts ``a[k]`` and ``b[k]``."""
    side = np.sign(a - b)
    decided = side != 0
    count = float(decided.sum())
    if not count:
        return None
    # Of a decided rater: every other one's side is the same (1), another (−1) or none (0).
    another = (side * (side.sum() - side)).sum() / (count * (len(side) - 1))
    mean = np.sign(np.round((a.sum() - a) - (b.sum() - b), 9))
    others = (side * mean).sum() / count
    better = (side > 0).sum() / count
    return count, float(better), float(0.5 + another / 2), float(0.5 + others / 2)


def _two_panels(a: Array, b: Array) -> _Said | None:
    """The same where ``a[k]`` and ``b[k]`` are no one person's: over every score of each."""
    side = np.sign(a[:, None] - b[None, :])
    count = float((side != 0).sum())
    if not count:
        return None
    # Another judgement shares neither rater: of all, less those of the same row or column.
    rest = side.sum() - side.sum(axis=1, keepdims=True) - side.sum(axis=0, keepdims=True) + side
    another = (side * rest).sum() / (count * (len(a) - 1) * (len(b) - 1))
    rest_a, rest_b = ((m.sum() - m) / (len(m) - 1) for m in (a, b))
    mean = np.sign(np.round(rest_a[:, None] - rest_b[None, :], 9))
    others = (side * mean).sum() / count
    better = (side > 0).sum() / count
    return count / side.size, float(better), float(0.5 + another / 2), float(0.5 + others / 2)


def panels_of(texts: Sequence[RatedText]) -> list[int]:
    """For each text the number of its raters' panel: the texts of a batch have one, others own."""
    keys = [
        ("text", place) if text.batch is None else ("batch", text.batch)
        for place, text in enumerate(texts)
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


def one_rater(
    texts: Sequence[RatedText], threshold: float, margin: float
) -> dict[str, Estimate | None] | None:
    """How well one person foretells the mean of the others; None without two raters a text.

    As `reward_models.measure.human_agreement`, with intervals: ``accuracy`` where the others' mean
    is at least ``margin`` from the threshold, and ``pearson``. Texts that the same people rated are
    drawn together, since a good or bad rater among them is so in all.
    """
    known = [text for text in texts if len(text.ratings) > 1]
    if not known:
        return None
    rated = [np.asarray(text.ratings, dtype=float) for text in known]
    panel = np.asarray(panels_of(known))
    panels = int(panel.max()) + 1
    right, decided = np.zeros(len(rated)), np.zeros(len(rated))
    own, others, weights, which = [], [], [], []
    for index, scores in enumerate(rated):
        rest = (scores.sum() - scores) / (len(scores) - 1)
        share = (np.abs(rest - threshold) >= margin) / len(scores)  # every text counts once
        right[index] = (
            share * (np.sign(scores - threshold) * np.sign(rest - threshold) + 1) / 2
        ).sum()
        decided[index] = share.sum()
        own.append(scores)
        others.append(rest)
        weights.append(np.full(len(scores), 1 / len(scores)))
        which.append(np.full(len(scores), panel[index]))
    x, y, weight, unit = (np.concatenate(parts) for parts in (own, others, weights, which))
    top, below = (np.bincount(panel, values).astype(float) for values in (right, decided))
    return {
        "accuracy": estimate(ratio(top, below), panels),
        "pearson": estimate(_pooled(x, y, weight, unit, panels), panels),
    }


def _pooled(x: Array, y: Array, weight: Array, unit: np.ndarray, units: int) -> Statistic:
    """Correlation over the raters of the drawn units, from each unit's sums.

    The means are taken off first, which changes nothing and keeps the differences of sums exact.
    """
    x, y = x - x.mean(), y - y.mean()
    columns = (weight, weight * x, weight * y, weight * x * x, weight * y * y, weight * x * y)
    sums = np.stack([np.bincount(unit, column, minlength=units) for column in columns], axis=1)

    def statistic(counts: Array) -> Array:
        n, sx, sy, sxx, syy, sxy = (counts @ sums).T
        xx, yy, xy = sxx / n - (sx / n) ** 2, syy / n - (sy / n) ** 2, sxy / n - sx * sy / n**2
        with np.errstate(all="ignore"):
            return np.where((xx > 1e-12) & (yy > 1e-12), xy / np.sqrt(xx * yy), np.nan)

    return statistic
