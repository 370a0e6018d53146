"""Where experience comes from: an MDP's own table, or a gymnasium environment as it is.

Both look the same to a learner. A world has states 0 to S − 1, and `step` answers
``(next state, reward, ended)`` where *ended* means terminated or truncated. Which of the two it was
shows in the next state alone:

* **termination** leads to a terminal state, whose value is fixed (0, or its own reward where an
  MDP pays rewards in states), so :math:`R + \\gamma V(S')` needs no special case;
* **truncation**, by a time limit, leaves the ordinary next state there, and its value is
  bootstrapped: the episode was cut off, the problem was not over.

A gymnasium environment says "terminated" beside an ordinary state, so its world has one extra
state, number S, that stands for every terminal one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, TypeAlias

import gymnasium as gym
import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP

Environment: TypeAlias = gym.Env | MDP

# (next state, reward, terminated or truncated)
Step = tuple[int, float, bool]


class World(Protocol):
    """What the learners need of an environment."""

    n_states: int
    n_actions: int
    # The value of each terminal state: fixed, never learned.
    terminal_values: dict[int, float]

    def start(self, uniform: float, /) -> int:
        """A first state; ``uniform`` in [0, 1) draws it."""
        ...

    def step(self, state: int, action: int, uniform: float, /) -> Step:
        """What follows; ``uniform`` in [0, 1) draws it."""
        ...


class Simulator:
    """The world of an MDP's own table, in plain lists, which Python reads fastest.

    Attributes:
        rows: ``rows[s][a] = (thresholds, outcomes)``; the outcome of a uniform draw is
            ``outcomes[bisect_right(thresholds, draw)]``. None in a terminal state.
    """

    def __init__(self, mdp: MDP) -> None:
        self.n_states, self.n_actions = mdp.rewards.shape
        self.terminal_values = {
            int(s): float(mdp.rewards[s, 0]) for s in np.flatnonzero(mdp.terminal)
        }
        if mdp.start[mdp.terminal].any():
            raise ProblemError("start: an episode cannot start in a terminal state")
        self._starts = np.flatnonzero(mdp.start).tolist()
        self._start_thresholds = _thresholds(mdp.start[self._starts].tolist())
        self.rows: list[Any] = [
            None if mdp.terminal[s] else [self._row(mdp, s, a) for a in range(self.n_actions)]
            for s in range(self.n_states)
        ]

    def _row(self, mdp: MDP, state: int, action: int) -> tuple[list[float], list[Step]]:
        likely = [outcome for outcome in mdp.outcomes(state, action) if outcome[0] > 0]
        outcomes = [(s2, reward, s2 in self.terminal_values) for _, s2, reward in likely]
        return _thresholds([probability for probability, _, _ in likely]), outcomes

    def start(self, uniform: float) -> int:
        return self._starts[bisect_right(self._start_thresholds, uniform)]

    def step(self, state: int, action: int, uniform: float) -> Step:
        thresholds, outcomes = self.rows[state][action]
        return outcomes[bisect_right(thresholds, uniform)]

    def starts(self, uniforms: np.ndarray) -> np.ndarray:
        """`start` for many draws at once."""
        return np.asarray(self._starts)[
            np.searchsorted(self._start_thresholds, uniforms, side="right")
        ]

    def arrays(self) -> TableArrays:
        """The same table as padded arrays, for code that works on arrays."""
        pairs = [
            pair
            for row in self.rows
            for pair in (row or [([], [(0, 0.0, False)])] * self.n_actions)
        ]
        most = max(len(outcomes) for _, outcomes in pairs)
        # No draw reaches the padding: uniform numbers are below 1.
        thresholds = np.full((len(pairs), most - 1), 2.0)
        next_state = np.zeros((len(pairs), most), dtype=np.int64)
        reward = np.zeros((len(pairs), most))
        ended = np.zeros((len(pairs), most), dtype=bool)
        for pair, (limits, outcomes) in enumerate(pairs):
            thresholds[pair, : len(limits)] = limits
            count = len(outcomes)
            next_state[pair, :count], reward[pair, :count], ended[pair, :count] = zip(
                *outcomes, strict=True
            )
        return TableArrays(thresholds, next_state, reward, ended)


@dataclass(frozen=True)
class TableArrays:
    """A simulator's table as arrays; row ``s * A + a``, K outcomes at most.

    A draw ``u`` has the outcome ``(thresholds[row] <= u).sum()``.
    """

    thresholds: np.ndarray  # (S * A, K - 1)
    next_state: np.ndarray  # (S * A, K)
    reward: np.ndarray  # (S * A, K)
    ended: np.ndarray  # (S * A, K), bool


class GymnasiumWorld:
    """A gymnasium environment with discrete spaces, unmodified.

    It draws its own randomness (seeded once), so the uniform numbers go unused.
    """

    def __init__(self, env: gym.Env, seed: int) -> None:
        self.n_states = _size(env, "observation")
        self.n_actions = _size(env, "action")
        self._end = self.n_states
        self.terminal_values = {self._end: 0.0}
        self._reset: Callable[..., Any] = env.reset
        self._step: Callable[[int], Any] = env.step
        self._seed: int | None = seed

    def start(self, uniform: float) -> int:
        state, _ = self._reset(seed=self._seed)
        self._seed = None
        return self._checked(int(state))

    def step(self, state: int, action: int, uniform: float) -> Step:
        following, reward, terminated, truncated, _ = self._step(action)
        if terminated:
            return self._end, reward, True
        return self._checked(int(following)), reward, truncated

    def _checked(self, state: int) -> int:
        """A list would take a negative state from its end, and n for the terminal one."""
        if not 0 <= state < self._end:
            raise ProblemError(
                f"the environment's observation {state} is not among 0 to {self._end - 1}, as its"
                " observation_space says"
            )
        return state


def make_world(env: Environment, seed: int) -> World:
    """The world of an environment or MDP.

    Raises:
        ProblemError: for continuous or composite spaces.
    """
    if isinstance(env, MDP):
        return Simulator(env)
    if isinstance(env, gym.Env):
        return GymnasiumWorld(env, seed)
    raise ProblemError(f"env: {env!r} is neither a gymnasium environment nor an MDP")


def _size(env: gym.Env, kind: str) -> int:
    """The n of a Discrete space."""
    space = getattr(env, f"{kind}_space")
    if not isinstance(space, gym.spaces.Discrete) or space.start != 0:
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        raise ProblemError(
            f"{name}: tabular methods need Discrete {kind}s counted from 0, but these are {space}; "
            f"discretise them with a gymnasium wrapper"
        )
    return int(space.n)


def _thresholds(probabilities: Sequence[float]) -> list[float]:
    """Where one outcome's stretch of [0, 1) ends and the next begins."""
    return list(accumulate(probabilities))[:-1]
