"""Several rewards as one.

A policy exploits the errors of the reward it is optimised against. Where independent rewards
disagree an error is likely, so a pessimistic ensemble (the minimum, or the mean less some standard
deviations) leaves less to exploit (Coste et al. 2024, "Reward Model Ensembles Help Mitigate
Overoptimization").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from reward_models.calling import RewardCall, checked
from reward_models.interface import RewardFunction


def ensemble(
    rewards: Sequence[Callable[..., Any]],
    how: Literal["mean", "min", "pessimistic"] = "mean",
    k: float = 1.0,
) -> RewardFunction:
    """Return one reward made of several that mean the same thing on the same scale.

    Args:
        rewards: At least one.
        how: ``mean``, ``min`` or ``pessimistic``: the mean less ``k`` standard deviations of the
            members (population, so one member or equal members subtract nothing).
        k: For ``pessimistic``, in standard deviations.
    """
    if not rewards:
        raise ValueError("an ensemble needs at least one reward")
    if how not in ("mean", "min", "pessimistic"):
        raise ValueError(f"how must be mean, min or pessimistic, found {how!r}")

    members = [checked(reward) for reward in rewards]

    def combine(scores: tuple[float, ...]) -> float:
        if how == "min":
            return min(scores)
        mean = math.fsum(scores) / len(scores)
        if how == "mean":
            return mean
        return mean - k * math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        asked = [member(prompts, completions, **columns) for member in members]
        return [combine(scores) for scores in zip(*asked, strict=True)]

    return _asking(reward, members)


def weighted_sum(parts: Sequence[tuple[float, Callable[..., Any]]]) -> RewardFunction:
    """Return ``Σ weight · reward``: e.g. a classifier, and rules for length and repetition."""
    if not parts:
        raise ValueError("a weighted sum needs at least one reward")
    members = [checked(part) for _, part in parts]
    weights = [weight for weight, _ in parts]

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        asked = [member(prompts, completions, **columns) for member in members]
        return [
            math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))
            for scores in zip(*asked, strict=True)
        ]

    return _asking(reward, members)


def _asking(reward: Any, members: Sequence[RewardCall]) -> RewardFunction:
    """``reward`` with what `RewardCall` asks of a function made of others: their columns."""

    def check_columns(columns: Collection[str]) -> None:
        for member in members:
            member.check_columns(columns)

    reward.check_columns = check_columns
    reward.needed_columns = lambda: frozenset().union(*(m.needed_columns() for m in members))
    return reward
