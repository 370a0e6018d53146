r"""How actions are chosen from a row of the Q-table.

Every rule is a function ``explore(q_row, state, step, uniform) -> action``: ``q_row`` holds
:math:`Q(s, \cdot)`, ``step`` counts the steps taken so far, and ``uniform`` in [0, 1) is the only
randomness, so the same draws always give the same actions. Any function with that signature works.
Ties are broken at random (Sutton & Barto 2018, section 2.2): an all-zero table explores evenly.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.schedules import Schedule, checked

Row = Sequence[float]


class Explore(Protocol):
    """Choose an action; see the module."""

    def __call__(self, q_row: Row, state: int, step: int, uniform: float, /) -> int: ...


@runtime_checkable
class ExploreWithProbabilities(Explore, Protocol):
    """A rule that can also say how likely each action is, as expected SARSA needs."""

    def probabilities(self, q_row: Row, state: int, step: int, /) -> list[float]: ...


class EpsilonGreedy:
    """With probability ε any action, else the best one (Sutton & Barto 2018, section 2.2).

    Args:
        epsilon: a number in [0, 1], or a `Schedule` of one.
    """

    def __init__(self, epsilon: float | Schedule) -> None:
        self.epsilon = checked("epsilon", epsilon, 0.0, 1.0)

    def __call__(self, q_row: Row, state: int, step: int, uniform: float) -> int:
        epsilon = self.epsilon(step)
        if uniform < epsilon:
            return int(uniform / epsilon * len(q_row))
        best = max(q_row)
        if q_row.count(best) == 1:
            return q_row.index(best)
        return random_best(q_row, best, (uniform - epsilon) / (1 - epsilon))

    def random_actions(self, uniforms: np.ndarray, first: int, n_actions: int) -> np.ndarray:
        """For many steps ahead: the random action of each, or −1 where it is the best one's turn.

        Args:
            uniforms: the draws of steps ``first``, ``first + 1``, ...: ``(n,)`` or ``(n, ...)``.

        Returns:
            int, shaped like ``uniforms``: what single calls do with the same draws.
        """
        epsilon = self.epsilon.over(first, len(uniforms))
        epsilon = np.broadcast_to(epsilon.reshape(-1, *[1] * (uniforms.ndim - 1)), uniforms.shape)
        actions = np.full(uniforms.shape, -1)
        random = uniforms < epsilon
        actions[random] = uniforms[random] / epsilon[random] * n_actions
        return actions

    def probabilities(self, q_row: Row, state: int, step: int) -> list[float]:
        """π(a|s): ε/A for every action, and 1 − ε shared among the best. ``(A,)``."""
        epsilon = self.epsilon(step)
        best = max(q_row)
        each, bonus = epsilon / len(q_row), (1 - epsilon) / q_row.count(best)
        return [each + bonus if q == best else each for q in q_row]


class Greedy(EpsilonGreedy):
    """Always the best action: ε = 0."""

    def __init__(self) -> None:
        super().__init__(0.0)


class Softmax:
    r"""Boltzmann exploration, :math:`\pi(a|s) \propto e^{Q(s, a) / \tau}`.

    Args:
        temperature: τ > 0, in the unit of the returns, or a `Schedule` of it.
    """

    def __init__(self, temperature: float | Schedule) -> None:
        self.temperature = checked("temperature", temperature, 0.0, math.inf, low_open=True)

    def __call__(self, q_row: Row, state: int, step: int, uniform: float) -> int:
        return pick(self.probabilities(q_row, state, step), uniform)

    def probabilities(self, q_row: Row, state: int, step: int) -> list[float]:
        # A schedule may end at 0, where only the best action is left.
        temperature = max(self.temperature(step), 1e-12)
        best = max(q_row)  # subtracted, so that no exponential overflows
        weights = [math.exp((q - best) / temperature) for q in q_row]
        total = sum(weights)
        return [weight / total for weight in weights]


class UCB:
    r"""Upper confidence bounds, each state a bandit of its own (Sutton & Barto 2018, eq. 2.10):

    .. math:: A = \arg\max_a\, Q(s, a) + c \sqrt{\ln N(s) / N(s, a)}

    Actions never tried come first. It counts its own choices; training works on a fresh copy.

    Args:
        c: confidence, at least 0, in the unit of the returns.
    """

    def __init__(self, c: float) -> None:
        if not (c >= 0 and math.isfinite(c)):
            raise ProblemError(f"UCB: c {c} must be a number of at least 0")
        self.c = c
        self.counts: dict[int, list[int]] = {}

    def bounds(self, q_row: Row, state: int) -> list[float]:
        """The upper bound of each action, infinite where it was never tried. ``(A,)``."""
        counts = self.counts.get(state)
        if counts is None:
            return [math.inf] * len(q_row)
        log_visits = math.log(sum(counts))
        return [
            q + self.c * math.sqrt(log_visits / n) if n else math.inf
            for q, n in zip(q_row, counts, strict=True)
        ]

    def __call__(self, q_row: Row, state: int, step: int, uniform: float) -> int:
        bounds = self.bounds(q_row, state)
        action = random_best(bounds, max(bounds), uniform)
        self.counts.setdefault(state, [0] * len(q_row))[action] += 1
        return action

    def probabilities(self, q_row: Row, state: int, step: int) -> list[float]:
        bounds = self.bounds(q_row, state)
        best = max(bounds)
        return [1 / bounds.count(best) if bound == best else 0.0 for bound in bounds]


class Follow:
    """No exploration at all: the actions of a given policy.

    Args:
        policy: int ``(S,)``, or float ``(S, A)`` with rows that sum to one.
        n_states, n_actions: what the policy must fit.
    """

    def __init__(self, policy: np.ndarray, n_states: int, n_actions: int) -> None:
        policy = np.asarray(policy)
        self.actions: list[int] | None = None
        if policy.shape == (n_states,):
            if policy.dtype.kind not in "iu" or not np.isin(policy, np.arange(n_actions)).all():
                raise ProblemError(f"policy: expected whole numbers from 0 to {n_actions - 1}")
            self.actions = policy.tolist()
        elif policy.shape == (n_states, n_actions):
            # Written so that NaN fails too.
            if not ((policy >= 0).all() and np.allclose(policy.sum(axis=1), 1, atol=1e-8)):
                raise ProblemError("policy: every row must be a distribution that sums to 1")
            self.rows: list[list[float]] = policy.tolist()
        else:
            raise ProblemError(
                f"policy: shape {policy.shape}, expected ({n_states},) or ({n_states}, {n_actions})"
            )

    def __call__(self, q_row: object, state: int, step: int, uniform: float) -> int:
        if self.actions is not None:
            return self.actions[state]
        return pick(self.rows[state], uniform)


def pick(probabilities: Sequence[float], uniform: float) -> int:
    """The action whose stretch of the cumulative distribution holds ``uniform``."""
    cumulative = list(accumulate(probabilities))
    return bisect_right(cumulative, uniform * cumulative[-1], hi=len(cumulative) - 1)


def random_best(row: Row, best: float, uniform: float) -> int:
    """One of the actions whose entry equals ``best``, evenly by ``uniform`` in [0, 1)."""
    tied = [action for action, q in enumerate(row) if q == best]
    return tied[int(uniform * len(tied))]
