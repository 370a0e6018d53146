"""Which proxies there are, and how several become one reward.

A *proxy* is a classifier trained on so many of the rated texts; proxies of one size that differ by
their seed are the members of an ensemble. Each score is put on one scale first: mean 0 and
standard deviation 1 over the samples of π_ref. What several make together stays in their unit, as
in Coste et al. 2023: put on deviation 1 once more, a cautious ensemble would claim what it gave up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config.sections import OveroptimiseSection
from pipeline.data.records import RatedText
from pipeline.errors import UserError
from reward_models import RewardFunction, checked, combined

Array = NDArray[np.float64]
Size = int | Literal["all"]
How = Literal["single", "mean", "minimum", "uncertainty"]
HOWS: tuple[How, ...] = ("single", "mean", "minimum", "uncertainty")
# What they are to `reward_models.combined`.
_NAMED: dict[How, combined.How] = {
    "single": "mean",
    "mean": "mean",
    "minimum": "min",
    "uncertainty": "pessimistic",
}


@dataclass(frozen=True)
class Proxy:
    """One classifier of the grid."""

    size: Size
    member: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.size}-{self.member}"


def proxies(section: OveroptimiseSection) -> list[Proxy]:
    """Every proxy that the section asks for, each size once."""
    sizes = list(dict.fromkeys(section.sizes))
    return [Proxy(size, member) for size in sizes for member in range(section.members)]


def texts_for(texts: Sequence[RatedText], size: Size, above: float, seed: int) -> list[RatedText]:
    """The rated texts that proxies of ``size`` learn from; smaller ones are in larger ones.

    They are drawn from both sides in turn, so that few texts are not all of one.

    Args:
        above: ratings above this are positive.

    Raises:
        UserError: there are fewer.
    """
    if size == "all":
        return list(texts)
    if size > len(texts):
        raise UserError(
            f"overoptimise.sizes: {size} texts are asked for, and the proxy's half has"
            f" {len(texts)}; lower it, or set all"
        )
    shuffled = random.Random(f"{seed}/overoptimise").sample(list(texts), len(texts))
    sides = [[t for t in shuffled if (t.rating > above) == side] for side in (True, False)]
    shorter = min(map(len, sides))
    dealt = [text for pair in zip(*sides, strict=False) for text in pair]
    return (dealt + sides[0][shorter:] + sides[1][shorter:])[:size]


def combine(scores: Array, how: How, penalty: float) -> Array:
    """Several members' scores as one: ``(M, …)`` → ``(…)``.

    ``uncertainty`` is the mean less ``penalty`` standard deviations of the members, ``minimum`` the
    worst-case of Coste et al. (2023). ``single`` is the first member.
    """
    if how == "single":
        return scores[0]
    if how == "minimum":
        return scores.min(axis=0)
    mean = scores.mean(axis=0)
    return mean - penalty * scores.std(axis=0) if how == "uncertainty" else mean


@dataclass(frozen=True)
class Scale:
    """The mean and standard deviation of a reward over π_ref's samples."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, scores: Array, name: str) -> Scale:
        """Of ``scores``; UserError where they are all the same, and so are no reward."""
        deviation = float(scores.std())
        if not deviation > 0:
            raise UserError(f"{name}: it scores every sample of the reference alike")
        return cls(float(scores.mean()), deviation)

    def __call__(self, scores: Array) -> Array:
        """``scores`` on the common scale."""
        return (scores - self.mean) / self.deviation


def scaled(function: RewardFunction, scale: Scale) -> RewardFunction:
    """``function`` on the common scale."""

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        scores = function(prompts, completions, **columns)
        return scale(np.asarray(scores, dtype=np.float64)).tolist()

    return reward


def optimised(
    members: Sequence[Callable[..., Any]],
    scales: Sequence[Scale],
    how: How,
    penalty: float,
) -> RewardFunction:
    """The reward that PPO optimises: what best-of-n ranks by. ``scales`` are the members'."""
    used = members[:1] if how == "single" else members
    parts = [
        combined.Part(
            f"member-{number}",
            checked(member),
            scale=combined.Scale(mean=scale.mean, deviation=scale.deviation),
        )
        for number, (member, scale) in enumerate(zip(used, scales, strict=False))
    ]
    return checked(combined.combined(parts, _NAMED[how], penalty), how)
