r"""Replay: the last transitions of parallel environments, drawn uniformly or by priority.

A ring of rows, one a vector step, as the environments give them: row t holds the observations
before the step, so its successor's observation is row t + 1's and is stored once. With NEXT_STEP
autoreset that is so at an episode's end too: the row after it begins with the final observation,
and is itself a reset, which is never drawn.

An n-step transition from row t is (Sutton 1988; Watkins 1989)

.. math:: R = \sum_{i<k} \gamma^i r_{t+i}, \qquad
          y = R + d \, \max_a Q(s_{t+k}, a)

where k is n, or less when the episode ends first, and the discount d is :math:`\gamma^k`, or 0
where the episode *terminated*. One that was cut off by a time limit goes on from its final
observation (Pardo et al. 2018, "Time Limits in Reinforcement Learning").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from classic_rl.errors import ProblemError

PRIORITY_FLOOR = 1e-6  # ε in p = |δ| + ε: nothing is never drawn again


class Transitions(NamedTuple):
    """A batch to learn from; every array begins ``(B,)``."""

    observations: np.ndarray
    actions: np.ndarray
    returns: np.ndarray  # R, float32
    discounts: np.ndarray  # d, float32
    next_observations: np.ndarray
    indices: np.ndarray  # where they lie, for `Replay.prioritize`
    weights: np.ndarray  # importance weights, float32; 1 where drawn uniformly


class SumTree:
    """Numbers :math:`p_i \\ge 0` that can be drawn in proportion and changed, in O(log n).

    A complete binary tree in one array: node j has the children 2j and 2j + 1 and holds their sum,
    so node 1 holds the total (Schaul et al. 2016, appendix B.2.1). Sums are always made anew from
    the children: no rounding error builds up. Every operation takes a batch.

    Args:
        size: how many numbers; all begin as 0.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.depth = max(size - 1, 0).bit_length()
        self.nodes = np.zeros(2 << self.depth)

    @property
    def leaves(self) -> np.ndarray:
        """The numbers, ``(size,)``, a view."""
        first = 1 << self.depth
        return self.nodes[first : first + self.size]

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self.nodes[1])

    def set(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Put ``values`` at ``indices``, ``(B,)`` each; of equal indices the last one counts."""
        nodes = indices + (1 << self.depth)
        self.nodes[nodes] = values
        for _ in range(self.depth):
            nodes = nodes >> 1
            self.nodes[nodes] = self.nodes[2 * nodes] + self.nodes[2 * nodes + 1]

    def find(self, masses: np.ndarray) -> np.ndarray:
        """The indices i whose share of the cumulative sum holds each mass: the first with
        :math:`m < p_0 + ... + p_i`, for ``(B,)`` masses in [0, total)."""
        nodes = np.ones(len(masses), dtype=np.int64)
        masses = masses.astype(float)
        for _ in range(self.depth):
            nodes *= 2
            left = self.nodes[nodes]
            # A right child of 0 is never entered, even if rounding put the mass beyond the left.
            right = (masses >= left) & (self.nodes[nodes + 1] > 0)
            masses -= left * right
            nodes += right
        return nodes - (1 << self.depth)


class Replay:
    r"""The last ``capacity`` steps of ``n_envs`` environments.

    Args:
        capacity: how many steps are kept, of all environments together.
        space: of one observation. n_envs: N.
        n_step: n. gamma: γ.
        alpha: prioritised replay's exponent: a transition is drawn with probability
            :math:`P(i) = p_i^\alpha / \sum_j p_j^\alpha` (Schaul et al. 2016, equation 1);
            0 draws uniformly and needs no priorities.
    """

    def __init__(
        self,
        capacity: int,
        space: gym.Space,
        n_envs: int = 1,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        alpha: float = 0.0,
    ) -> None:
        self.n_envs, self.n_step, self.gamma, self.alpha = n_envs, n_step, gamma, alpha
        # One row more for the observations that the newest step led to.
        self.rows = -(-capacity // n_envs) + 1
        if self.rows <= n_step + 1:
            raise ProblemError(
                f"buffer_size: {capacity} is too small for {n_envs} environments and "
                f"{n_step}-step returns"
            )
        assert space.shape is not None
        dtype = space.dtype if len(space.shape) == 3 else np.float32  # images stay as they are
        shape = (self.rows, n_envs)
        self.observations = np.zeros((*shape, *space.shape), dtype)
        self.actions = np.zeros(shape, np.int64)
        self.rewards = np.zeros(shape, np.float32)
        self.terminated = np.zeros(shape, bool)
        self.ended = np.zeros(shape, bool)
        self.real = np.zeros(shape, bool)  # False on resets
        self.head = 0  # the row to be written next
        self.filled = 0  # rows that hold steps, at most rows - 1
        self.tree = SumTree(self.rows * n_envs) if alpha > 0 else None
        self.highest = 1.0  # the largest priority so far

    def __len__(self) -> int:
        """How many starting points of whole n-step windows there are, resets counted."""
        return max(self.filled - self.n_step + 1, 0) * self.n_envs

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        ended: np.ndarray,
        real: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take in one step of every environment; all begin ``(N,)``.

        ``ended`` is terminated or truncated, ``real`` is False where the step was a reset.
        """
        head = self.head
        self.observations[head] = observations
        self.actions[head], self.rewards[head] = actions, rewards
        self.terminated[head], self.ended[head], self.real[head] = terminated, ended, real
        self.head = (head + 1) % self.rows
        self.observations[self.head] = next_observations
        self.filled = min(self.filled + 1, self.rows - 1)
        if self.tree is not None:
            self._set_row(self.head, np.zeros(self.n_envs))  # overwritten
            if self.filled >= self.n_step:
                # New transitions get the highest priority: everything is seen once.
                whole = (head - self.n_step + 1) % self.rows
                self._set_row(whole, np.where(self.real[whole], self.highest**self.alpha, 0.0))

    def cut(self) -> None:
        """The environments are about to be restarted: every episode ends here, as if truncated."""
        if not self.filled:
            return
        self.ended[(self.head - 1) % self.rows] = True
        # A row of resets keeps the final observations.
        none = np.zeros(self.n_envs, bool)
        final = self.observations[self.head].copy()
        self.add(final, none, none, none, none, none, final)

    def sample(self, batch_size: int, rng: np.random.Generator, beta: float = 1.0) -> Transitions:
        r"""Draw transitions, with replacement.

        Args:
            beta: how far the importance weights :math:`w_i = (N P(i))^{-\beta}`, divided by their
                maximum, undo the bias of priorities; annealed to 1 (Schaul et al. 2016, 3.4).
        """
        if self.tree is None:
            indices = self._draw(batch_size, rng)
            return self._gather(indices, np.ones(batch_size, np.float32))
        # One draw from each of B equal ranges of the cumulative sum.
        masses = (np.arange(batch_size) + rng.random(batch_size)) * (self.tree.total / batch_size)
        indices = self.tree.find(masses)
        # N and the sum of priorities are the same for all and drop out of the division.
        weights = self.tree.leaves[indices] ** -beta
        return self._gather(indices, (weights / weights.max()).astype(np.float32))

    def latest(self, count: int) -> Transitions:
        """The newest ``count`` whole transitions, oldest first."""
        # A reset comes after a step at least: in twice the rows there are enough.
        rows = min(2 * -(-count // self.n_envs), len(self) // self.n_envs)
        newest = (self.head - self.n_step + 1) * self.n_envs
        indices = np.arange(newest - rows * self.n_envs, newest) % (self.rows * self.n_envs)
        indices = indices[self.real.reshape(-1)[indices]][-count:]
        return self._gather(indices, np.ones(len(indices), np.float32))

    def prioritize(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """Set the priorities of drawn transitions to their new TD errors, ``(B,)`` each."""
        if self.tree is None:
            return
        priorities = np.abs(errors) + PRIORITY_FLOOR  # p = |δ| + ε
        self.highest = max(self.highest, float(priorities.max()))
        self.tree.set(indices, priorities**self.alpha)

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, as arrays; unwritten rows are left out."""
        used = slice(0, min(self.filled + 1, self.rows))
        arrays = {name: getattr(self, name)[used] for name in self._columns()}
        if self.tree is not None:
            arrays["priorities"] = self.tree.leaves[: used.stop * self.n_envs]
        position = np.array([self.head, self.filled])
        return arrays | {"position": position, "highest": np.array(self.highest)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Undo `state`."""
        for name in self._columns():
            getattr(self, name)[: len(state[name])] = state[name]
        self.head, self.filled = (int(number) for number in state["position"])
        self.highest = float(state["highest"])
        if self.tree is not None:
            self.tree.set(np.arange(len(state["priorities"])), state["priorities"])

    def _columns(self) -> tuple[str, ...]:
        return ("observations", "actions", "rewards", "terminated", "ended", "real")

    def _set_row(self, row: int, priorities: np.ndarray) -> None:
        assert self.tree is not None
        self.tree.set(row * self.n_envs + np.arange(self.n_envs), priorities)

    def _draw(self, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Uniform over the real starting points: resets are drawn again."""
        oldest, real = (self.head - self.filled) * self.n_envs, self.real.reshape(-1)
        indices = np.empty(batch_size, np.int64)
        missing = np.ones(batch_size, bool)
        while missing.any():
            drawn = rng.integers(len(self), size=int(missing.sum()))
            indices[missing] = (oldest + drawn) % (self.rows * self.n_envs)
            missing = ~real[indices]
        return indices

    def _gather(self, indices: np.ndarray, weights: np.ndarray) -> Transitions:
        batch, n, size = np.arange(len(indices)), self.n_step, self.rows * self.n_envs
        window = (indices + self.n_envs * np.arange(n)[:, None]) % size  # (n, B): t, t + 1, ...
        inside = np.ones(window.shape, bool)  # up to the episode's last step
        inside[1:] = ~np.logical_or.accumulate(self.ended.reshape(-1)[window[:-1]])
        powers = self.gamma ** np.arange(n + 1, dtype=np.float32)
        returns = powers[:n] @ (self.rewards.reshape(-1)[window] * inside)  # R = Σ γ^i r
        k = inside.sum(0)
        last = window[k - 1, batch]
        observations = self.observations.reshape(size, *self.observations.shape[2:])
        return Transitions(
            observations[indices],
            self.actions.reshape(-1)[indices],
            returns,
            powers[k] * ~self.terminated.reshape(-1)[last],  # d = γ^k, or 0
            observations[(last + self.n_envs) % size],
            indices,
            weights,
        )
