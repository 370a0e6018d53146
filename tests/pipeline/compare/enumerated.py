"""A language model small enough to enumerate, so that the optimum is known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.estimates import Array


@dataclass(frozen=True)
class Enumerated:
    """Every completion of a table language model: its probability and its reward, ``(P, Y)``."""

    probabilities: Array
    rewards: Array

    def optimal(self, beta: float) -> Array:
        """π* itself, from its definition."""
        weights = self.probabilities * np.exp(self.rewards / beta)
        return weights / weights.sum(1, keepdims=True)

    def reward(self, policy: Array) -> float:
        return float((policy * self.rewards).sum(1).mean())

    def kl(self, policy: Array) -> float:
        return float((policy * np.log(policy / self.probabilities)).sum(1).mean())

    def objective(self, policy: Array, beta: float) -> float:
        return self.reward(policy) - beta * self.kl(policy)

    def draw(self, policy: Array, count: int, seed: int) -> NDArray[np.intp]:
        """Completions ``(P, count)`` drawn from ``policy`` ``(P, Y)``, by their index."""
        rng = np.random.default_rng(seed)
        return np.array([rng.choice(len(p), size=count, p=p) for p in policy])

    def sample(self, count: int, seed: int) -> Array:
        """Rewards of ``count`` samples of π_ref a prompt, ``(P, count)``."""
        return np.take_along_axis(self.rewards, self.draw(self.probabilities, count, seed), 1)


def enumerate_language_model(prompts: int = 3, seed: int = 0) -> Enumerated:
    """Tokens a, b and EOS; at most 4 tokens; random next-token tables and random rewards."""
    rng = np.random.default_rng(seed)
    eos, longest = 2, 4
    completions = [
        (*body, eos)
        for length in range(longest)
        for body in itertools.product((0, 1), repeat=length)
    ] + list(itertools.product((0, 1), repeat=longest))
    probabilities = np.ones((prompts, len(completions)))
    for prompt in range(prompts):
        tables: dict[tuple[int, ...], Array] = {}
        for y, completion in enumerate(completions):
            for t, token in enumerate(completion):
                table = tables.setdefault(completion[:t], rng.dirichlet(np.ones(3)))
                probabilities[prompt, y] *= table[token]
    rewards = rng.normal(0.5, 2.0, probabilities.shape)
    return Enumerated(probabilities, rewards)
