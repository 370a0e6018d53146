"""Several rewards as one: each scaled, then their sum, mean, minimum, or mean less their spread.

A policy exploits the errors of the reward it is optimised against. Where independent rewards
disagree an error is likely, so a pessimistic combination leaves less to exploit (Coste et al. 2023,
"Reward Model Ensembles Help Mitigate Overoptimization": the minimum is their worst-case
optimisation; they take a multiple of the variance off the mean, here it is one of the standard
deviation, which has the rewards' unit). It means something of rewards of one scale.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from reward_models.calling import RewardCall
from reward_models.interface import RewardError, Scores

How = Literal["sum", "mean", "min", "pessimistic"]


@dataclass(frozen=True)
class Scale:
    """What is done to a source's scores before they are combined: (clipped − mean) / deviation.

    With the mean and the standard deviation of the clipped scores of π_ref's samples these become
    0 and 1 there (Ziegler et al. 2019, section 2.2).
    """

    clip: tuple[float, float] | None = None
    mean: float = 0.0
    deviation: float = 1.0

    def clipped(self, score: float) -> float:
        """A score within the bounds, in the source's own unit."""
        return score if self.clip is None else min(max(score, self.clip[0]), self.clip[1])

    def __call__(self, score: float) -> float:
        return (self.clipped(score) - self.mean) / self.deviation


@dataclass(frozen=True)
class Part:
    """One source of a combination; the weight counts in a sum alone, and 0 only shows the part."""

    name: str
    reward: RewardCall
    weight: float = 1.0
    scale: Scale = Scale()


class Combined:
    """One reward made of several, with the scores of each beside the total; see `combined`."""

    def __init__(self, parts: Sequence[Part], how: How, k: float) -> None:
        self.parts, self.k = list(parts), k
        self.how: How = how
        self.__name__ = f"{how} of {', '.join(part.name for part in parts)}"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Scores:
        """Ask every source, and combine for each completion those that apply to it.

        Where none does the total is None, which `RewardCall.scores` refuses.
        """
        asked = [part.reward.partial_scores(prompts, completions, **columns) for part in self.parts]
        self._refuse_dense([rows for _, rows in asked])
        totals: list[float | None] = []
        tokens: list[list[float]] = []
        dense = any(rows is not None for _, rows in asked)
        ids = columns.get("completion_ids")
        for index in range(len(completions)):
            scored = [
                (part, score, rows[index] if rows is not None else None)
                for part, (numbers, rows) in zip(self.parts, asked, strict=True)
                if (score := numbers[index]) is not None and self._counts(part)
            ]
            totals.append(
                self._together([(part, part.scale(score)) for part, score, _ in scored])
                if scored
                else None
            )
            if dense:
                length = len(ids[index]) if ids is not None else None
                tokens.append(self._row(scored, length))
        parts = {part.name: numbers for part, (numbers, _) in zip(self.parts, asked, strict=True)}
        return Scores(cast("list[float]", totals), tokens if dense else None, parts)

    def limited(self, timeout: float | None, retries: int) -> Combined:
        """The same, each source with a time-out and retries of its own."""
        parts = [replace(part, reward=part.reward.limited(timeout, retries)) for part in self.parts]
        return Combined(parts, self.how, self.k)

    def needed_columns(self) -> frozenset[str]:
        """Those of all sources."""
        return frozenset().union(*(part.reward.needed_columns() for part in self.parts))

    def check_columns(self, columns: Collection[str]) -> None:
        """RewardError where a source asks for a column that is not there."""
        for part in self.parts:
            part.reward.check_columns(columns)

    def _counts(self, part: Part) -> bool:
        return self.how != "sum" or part.weight != 0

    def _factor(self, part: Part, count: int) -> float:
        """What a scaled score is multiplied by in a sum, or in the mean of ``count``."""
        return part.weight if self.how == "sum" else 1 / count

    def _together(self, scores: Sequence[tuple[Part, float]]) -> float:
        values = [value for _, value in scores]
        if self.how == "sum":
            return math.fsum(part.weight * value for part, value in scores)
        if self.how == "min":
            return min(values)
        mean = math.fsum(values) / len(values)
        if self.how == "mean":
            return mean
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        return mean - self.k * spread

    def _row(
        self, scored: Sequence[tuple[Part, float, list[float] | None]], length: int | None
    ) -> list[float]:
        """One number a token: of dense sources their own, of others all at the last token."""
        rows = [row for _, _, row in scored if row]
        length = len(rows[0]) if rows else length or 1
        total = [0.0] * length if scored else []
        for part, score, row in scored:
            factor, scale = self._factor(part, len(scored)), part.scale
            if row is None:
                total[-1] += factor * scale(score)
                continue
            for token, value in enumerate(row):
                total[token] += factor * value / scale.deviation
            total[-1] -= factor * scale.mean / scale.deviation
        return total

    def _refuse_dense(self, rows: Sequence[list[list[float]] | None]) -> None:
        for part, of_tokens in zip(self.parts, rows, strict=True):
            if of_tokens is None:
                continue
            if self.how not in ("sum", "mean"):
                raise RewardError(
                    f"{part.reward.label}: scores every token, of which there is no {self.how}; "
                    "combine by sum or mean"
                )
            if part.scale.clip is not None:
                raise RewardError(
                    f"{part.reward.label}: scores every token, and clip is for one number a "
                    "completion; clip in the function"
                )


def combined(parts: Sequence[Part], how: How = "sum", k: float = 1.0) -> Combined:
    """Return one reward made of several: a function that gives `Scores`, for `checked`.

    Args:
        parts: At least one, with names of their own. A source that does not apply to a completion
            (None) is left out of that completion's sum, mean, minimum and spread.
        how: ``sum`` by weight, ``mean``, ``min`` or ``pessimistic``: the mean less ``k`` standard
            deviations of the scores (population, so that one score or equal ones lose nothing).
        k: For ``pessimistic``, in standard deviations.

    Raises:
        ValueError: There is no part, two have one name, or there is no such ``how``.
    """
    if not parts or len({part.name for part in parts}) < len(parts):
        raise ValueError("a combination needs at least one reward, each with a name of its own")
    if how not in get_args(How):
        raise ValueError(f"how must be sum, mean, min or pessimistic, found {how!r}")
    return Combined(parts, how, k)
