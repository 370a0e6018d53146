"""Rewards that are rules: no model, and exactly what they say."""

from __future__ import annotations

import re
from collections.abc import Callable

from reward_models.interface import RewardFunction


def length_window(shortest: int, longest: int, slope: float = 1.0) -> RewardFunction:
    """Zero for completions of ``shortest`` to ``longest`` words, ``−slope`` a word outside."""
    if not 0 <= shortest <= longest:
        raise ValueError(f"0 <= shortest <= longest is needed, found {shortest} and {longest}")

    def score(text: str) -> float:
        words = len(text.split())
        return -slope * max(shortest - words, words - longest, 0)

    return _each(score, "length_window")


def contains(text: str, reward: float = 1.0, *, ignore_case: bool = True) -> RewardFunction:
    """``reward`` for completions that contain ``text``, zero for others."""
    return matches(re.escape(text), reward, ignore_case=ignore_case)


def matches(pattern: str, reward: float = 1.0, *, ignore_case: bool = False) -> RewardFunction:
    """``reward`` for completions that the regular expression matches somewhere, zero for others."""
    expression = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    return _each(lambda text: reward if expression.search(text) else 0.0, "matches")


def repetition_penalty(n: int = 3, weight: float = 1.0) -> RewardFunction:
    """``−weight`` times the share of a completion's word ``n``-grams that it has had before."""
    if n < 1:
        raise ValueError(f"n must be at least 1, found {n}")

    def score(text: str) -> float:
        words = text.casefold().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return -weight * (1 - len(set(grams)) / len(grams)) if grams else 0.0

    return _each(score, "repetition_penalty")


def _each(score: Callable[[str], float], name: str) -> RewardFunction:
    """A reward that looks at one completion at a time, and not at its prompt."""

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(score(completion)) for completion in completions]

    reward.__name__ = name
    return reward
