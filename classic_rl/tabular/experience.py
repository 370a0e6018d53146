"""The one loop in which every learner gathers experience, and the options they all share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Required, TypedDict

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP
from classic_rl.schedules import Schedule, checked
from classic_rl.tabular.exploration import Explore, Follow
from classic_rl.tabular.sampling import Environment, make_world

# Random numbers and schedules are prepared for so many steps at a time.
BLOCK = 2048

# (S, A, R, S', A', ended, α); A' is None unless it was asked for.
Transition = tuple[int, int, float, int, Any, bool, float]


class Options(TypedDict, total=False):
    """The options that every learner takes.

    Attributes:
        seed: of all random numbers. Required.
        episodes: train for so many episodes, or
        steps: for so many steps; exactly one of the two.
        gamma: discount in (0, 1]; an MDP's own where left out.
        initial: the first value of every entry, one number or a whole table. Above what can be
            earned ("optimistic") it makes the greedy policy explore (Sutton & Barto 2018, 2.6).
        max_steps: truncate an episode after so many steps, on top of a gymnasium time limit.
        record: keep a copy of the table before the first and after every so many episodes (or
            steps, whichever counts the training); 0 keeps none.
        on_progress: called now and then with (done, of how many), for a progress bar.
    """

    seed: Required[int]
    episodes: int | None
    steps: int | None
    gamma: float | None
    initial: float | np.ndarray
    max_steps: int
    record: int
    on_progress: Callable[[int, int], None] | None


@dataclass(frozen=True)
class Learned:
    """What control learned.

    Attributes:
        action_values: ``(S, A)``; a terminal state's row holds its own reward, mostly 0.
        policy: int ``(S,)``, greedy; ties go to the lowest action.
        returns: ``(E,)``, the undiscounted sum of rewards of each finished training episode.
        lengths: int ``(E,)``, its steps.
        snapshots: ``(episodes or steps so far, action values (S, A))`` where `record` asked.
    """

    action_values: np.ndarray
    policy: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    snapshots: list[tuple[int, np.ndarray]]


@dataclass(frozen=True)
class Prediction:
    """What prediction learned.

    Attributes:
        values: ``(S,)``; a terminal state's is its own reward, mostly 0.
        snapshots: ``(episodes or steps so far, values (S,))`` where `record` asked.
    """

    values: np.ndarray
    snapshots: list[tuple[int, np.ndarray]]


class Block(NamedTuple):
    """What is drawn ahead for the next steps: arrays ``(n,)``.

    Step t of a seed uses the t-th triple of ``default_rng(seed)``'s uniform numbers, whichever
    implementation runs it: `transition` draws S', `restart` the next first state if S' ended the
    episode, and `action` the action that follows.
    """

    first: int
    action: np.ndarray
    transition: np.ndarray
    restart: np.ndarray
    alpha: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, first: int, count: int, alpha: Schedule) -> Block:
        action, transition, restart = rng.random((count, 3)).T
        return cls(first, action, transition, restart, alpha.over(first, count))


class Run:
    """One training run: its world, its table, and what is kept of it.

    Args:
        explore: how to act, or a policy to follow: int ``(S,)`` or float ``(S, A)``.
        columns: entries a state: A for a Q-table, 1 for state values (a flat list).
        look_ahead: choose the next action before the learner updates the table, as SARSA does.
        options: see `Options`.
    """

    def __init__(
        self,
        env: Environment,
        explore: Explore | np.ndarray,
        alpha: float | Schedule = 1.0,
        *,
        columns: int | None = None,
        look_ahead: bool = False,
        seed: int,
        episodes: int | None = None,
        steps: int | None = None,
        gamma: float | None = None,
        initial: float | np.ndarray = 0.0,
        max_steps: int = 10_000,
        record: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.world = make_world(env, at_least("seed", 0, seed))
        self.gamma = discount(env, gamma)
        self.alpha = checked("alpha", alpha, 0.0, 1.0, low_open=True)
        if isinstance(explore, (np.ndarray, list)):
            explore = Follow(explore, self.world.n_states, self.world.n_actions)
        self.explore: Explore = copy.deepcopy(explore)  # UCB counts its own choices
        self.look_ahead = look_ahead
        self.episodes, self.steps = episodes, steps
        if (episodes is None) == (steps is None):
            raise ProblemError("give either episodes or steps")
        self.total = (
            at_least("episodes", 1, episodes) if steps is None else at_least("steps", 1, steps)
        )
        self.max_steps = at_least("max_steps", 1, max_steps)
        self.record = at_least("record", 0, record)
        self.on_progress = on_progress
        self.rng = np.random.default_rng(seed)
        self.table: Any = first_table(self.world, initial, columns or self.world.n_actions)
        if columns == 1:
            self.table = [value for [value] in self.table]
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.snapshots: list[tuple[int, np.ndarray]] = []
        self._keep(0)

    def first_draws(self) -> tuple[int, float]:
        """The first state, and the draw of the first action."""
        start, action = self.rng.random(2)
        return self.world.start(start), float(action)

    def blocks(self) -> Iterator[Block]:
        """Draws for the steps to come, until the run is over."""
        done = 0
        while self.steps is None or done < self.steps:
            count = BLOCK
            if self.steps is not None:
                count = min(BLOCK, self.steps - done)
                if self.record:  # a block ends where a snapshot is due
                    count = min(count, self.record - done % self.record)
            yield Block.draw(self.rng, done, count, self.alpha)
            done += count
            if self.steps is not None:
                self._keep(done)
            if self.on_progress:
                self.on_progress(done if self.steps else len(self.returns), self.total)

    def episode_ended(self, total: float, length: int, last: int) -> bool:
        """Notes an episode's sum of rewards, length and last state. True when it was the last."""
        self.returns.append(total + self.world.terminal_values.get(last, 0.0))
        self.lengths.append(length)
        if self.episodes is None:
            return False
        self._keep(len(self.returns))
        if len(self.returns) < self.episodes:
            return False
        if self.on_progress:
            self.on_progress(self.episodes, self.episodes)
        return True

    def transitions(self) -> Iterator[Transition]:
        """Acts by `explore` on the table as it stands and yields what happens, step by step.

        The caller updates the table between the steps.
        """
        table, explore, step = self.table, self.explore, self.world.step
        terminal = self.world.terminal_values
        s, draw = self.first_draws()
        a = explore(table[s], s, 0, draw)
        total, began, limit = 0.0, 0, self.max_steps
        for block in self.blocks():
            numbers = zip(*(column.tolist() for column in block[1:]), strict=True)
            for t, (draw, transition, restart, alpha) in enumerate(numbers, block.first + 1):
                s2, r, ended = step(s, a, transition)
                ended = ended or t == limit
                a2 = None
                if self.look_ahead:
                    # In a terminal state all actions are worth the same. Where an episode was
                    # truncated A' only closes the target, and the next episode's first action,
                    # in a state of its own, uses the same draw.
                    a2 = 0 if s2 in terminal else explore(table[s2], s2, t, draw)
                yield s, a, r, s2, a2, ended, alpha
                total += r
                if ended:
                    if self.episode_ended(total, t - began, s2):
                        return
                    total, began, limit = 0.0, t, t + self.max_steps
                    s2, a2 = self.world.start(restart), None
                s, a = s2, explore(table[s2], s2, t, draw) if a2 is None else a2

    def learned(self) -> Learned:
        """The finished Q-table and what was kept on the way."""
        action_values = self._finite()
        return Learned(
            action_values,
            action_values.argmax(axis=1),
            np.array(self.returns, dtype=float),
            np.array(self.lengths, dtype=int),
            self.snapshots,
        )

    def prediction(self) -> Prediction:
        """The finished values and what was kept on the way."""
        return Prediction(self._finite(), self.snapshots)

    def _finite(self) -> np.ndarray:
        """`_copy`, or a ProblemError where learning ran away."""
        table = self._copy()
        if not np.isfinite(table).all():
            raise ProblemError("the values grew without bound: lower alpha, lambda or gamma")
        return table

    def _copy(self) -> np.ndarray:
        return np.array(self.table, dtype=float)[: self.world.n_states]

    def _keep(self, done: int) -> None:
        if self.record and done % self.record == 0:
            self.snapshots.append((done, self._copy()))


def discount(env: Environment, gamma: float | None) -> float:
    """``gamma``, or an MDP's own where it is None."""
    if gamma is None:
        if not isinstance(env, MDP):
            raise ProblemError("gamma: a gymnasium environment needs one, such as 0.99")
        return env.gamma
    if not 0 < gamma <= 1:
        raise ProblemError(f"gamma: {gamma} is outside (0, 1]")
    return gamma


def at_least(name: str, least: int, value: int | None) -> int:
    """``value`` if it is a whole number of at least ``least``; otherwise a ProblemError."""
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ProblemError(f"{name}: {value} must be a whole number of at least {least}")
    return int(value)


def first_table(world: Any, initial: float | np.ndarray, columns: int) -> list[list[float]]:
    """Lists ``(S or S + 1, columns)`` of ``initial``; terminal states hold their fixed value."""
    shape = (world.n_states, columns)
    given = np.asarray(initial, dtype=float)
    if given.ndim == 1 and columns == 1:
        given = given[:, None]
    if given.shape not in ((), shape):
        raise ProblemError(f"initial: shape {given.shape}, expected a number or {shape}")
    if not np.isfinite(given).all():
        raise ProblemError("initial: every entry must be finite")
    table = np.broadcast_to(given, shape).tolist()
    if world.n_states in world.terminal_values:  # the one that stands for all of an environment's
        table.append([0.0] * columns)
    for state, value in world.terminal_values.items():
        table[state] = [value] * columns
    return table
