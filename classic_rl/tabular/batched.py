"""Q-learning on an MDP for many seeds at once, one array operation for all of them.

For bands over seeds and for sweeps. Every seed draws its own numbers and ends with the very table
that `control.q_learning` gives it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP
from classic_rl.schedules import Schedule, checked
from classic_rl.tabular.experience import Learned, at_least, discount, first_table
from classic_rl.tabular.exploration import EpsilonGreedy
from classic_rl.tabular.sampling import Simulator

# Steps drawn ahead at a time: few, since there are as many numbers as steps times seeds.
BLOCK = 256


def q_learning_many(
    mdp: MDP,
    *,
    seeds: Sequence[int],
    explore: EpsilonGreedy,
    alpha: float | Schedule,
    steps: int,
    gamma: float | None = None,
    initial: float | np.ndarray = 0.0,
    max_steps: int = 10_000,
    record: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Learned]:
    """Q-learning (Sutton & Barto 2018, section 6.5) once for each of N seeds.

    Args:
        mdp: the problem. seeds: one for each run. explore: ε-greedy.
        steps: of each run. The rest as in `experience.Options`.

    Returns:
        a `Learned` for each seed, in order.

    Raises:
        ProblemError: for anything but an MDP and ε-greedy, or options out of range.
    """
    if not isinstance(mdp, MDP) or not isinstance(explore, EpsilonGreedy):
        raise ProblemError("many seeds at once need an MDP (see mdp.from_gymnasium), EpsilonGreedy")
    if not len(seeds):
        raise ProblemError("seeds: give at least one")
    batch = _Batch(mdp, seeds, explore, discount(mdp, gamma), initial, max_steps)
    record, steps = at_least("record", 0, record), at_least("steps", 1, steps)
    alpha = checked("alpha", alpha, 0.0, 1.0, low_open=True)
    snapshots = [(0, batch.action_values())] if record else []
    done = 0
    while done < steps:
        count = min(BLOCK, steps - done, record - done % record if record else BLOCK)
        for numbers in batch.draws(done, count, alpha):
            batch.step(*numbers)
        done += count
        if record and done % record == 0:
            snapshots.append((done, batch.action_values()))
        if on_progress:
            on_progress(done, steps)
    return batch.learned(snapshots)


class _Batch:
    """The state of all N runs. The Q-tables are one array ``(A, N * S)``, so that the best of a
    few actions is found along the fast axis; column ``offset[i] + s`` is seed i's state s."""

    def __init__(
        self,
        mdp: MDP,
        seeds: Sequence[int],
        explore: EpsilonGreedy,
        gamma: float,
        initial: float | np.ndarray,
        max_steps: int,
    ) -> None:
        self.world = Simulator(mdp)
        self.explore, self.gamma = explore, gamma
        self.max_steps = at_least("max_steps", 1, max_steps)
        self.n = len(seeds)
        table = self.world.arrays()
        self.thresholds = np.ascontiguousarray(table.thresholds.T)
        self.most = table.next_state.shape[1]
        self.outcomes = [x.ravel() for x in (table.next_state, table.reward, table.ended)]
        rows = np.array(first_table(self.world, initial, mdp.n_actions))
        self.Q = np.ascontiguousarray(np.tile(rows, (self.n, 1)).T)
        self.flat = self.Q.reshape(-1)  # a view: entry (a, column) is a * (N * S) + column
        self.offset = np.arange(self.n) * mdp.n_states
        self.rngs = [np.random.default_rng(at_least("seed", 0, seed)) for seed in seeds]
        first = np.array([rng.random(2) for rng in self.rngs])
        self.s = self.world.starts(first[:, 0])
        self.column = self.offset + self.s
        choices = zip(rows[self.s].tolist(), self.s.tolist(), first[:, 1].tolist(), strict=True)
        self.a = np.array([explore(row, s, 0, draw) for row, s, draw in choices])
        self.total, self.length = np.zeros(self.n), np.zeros(self.n, dtype=int)
        # Finished episodes, a few at a time: which seeds, their returns, their lengths.
        self.finished: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.own = np.array([self.world.terminal_values.get(s, 0.0) for s in range(mdp.n_states)])

    def draws(self, first: int, count: int, alpha: Schedule) -> Iterator[tuple]:
        """For each step to come, the arguments of `step`; see `experience.Block`."""
        uniforms = np.stack([rng.random((count, 3)) for rng in self.rngs], axis=2)
        draw, transition, restart = uniforms.transpose(1, 0, 2)
        random_action = self.explore.random_actions(draw, first + 1, self.world.n_actions)
        epsilon = self.explore.epsilon.over(first + 1, count)[:, None]
        # What of a draw is left to break ties; where ε is 1 nothing is, and nothing is needed.
        tie_break = (draw - epsilon) / np.where(epsilon < 1, 1 - epsilon, 1)
        columns = (transition, restart, random_action, tie_break, alpha.over(first, count))
        return zip(*columns, strict=True)

    def step(
        self,
        transition: np.ndarray,
        restart: np.ndarray,
        random_action: np.ndarray,
        tie_break: np.ndarray,
        alpha: float,
    ) -> None:
        """One step of every run."""
        pair = self.s * self.world.n_actions + self.a
        outcome = pair * self.most
        for threshold in self.thresholds:
            outcome += threshold.take(pair) <= transition
        s2, r, ended = (table.take(outcome) for table in self.outcomes)
        entry = self.a * self.Q.shape[1] + self.column
        column = self.offset + s2
        q, best = self.flat.take(entry), self.Q.take(column, axis=1).max(axis=0)
        # Q(S,A) ← Q(S,A) + α [R + γ max_a Q(S',a) − Q(S,A)]   (Sutton & Barto 2018, 6.8)
        self.flat[entry] = q + alpha * (r + self.gamma * best - q)
        self.total += r
        self.length += 1
        ended |= self.length == self.max_steps
        who = ended.nonzero()[0]
        if who.size:
            self.finished.append((who, self.total[who] + self.own[s2[who]], self.length[who]))
            self.total[who], self.length[who] = 0.0, 0
            s2[who] = self.world.starts(restart[who])
            column = self.offset + s2
        self.s, self.column = s2, column
        self.a = self._act(random_action, tie_break)

    def _act(self, random_action: np.ndarray, tie_break: np.ndarray) -> np.ndarray:
        """The next actions ``(N,)``: random where one was drawn, else one of the best."""
        q = self.Q.take(self.column, axis=1)
        rank = (q == q.max(axis=0)).cumsum(axis=0)  # how many of the best there are up to here
        # Among the best, number floor(ties · uniform), as exploration.random_best does.
        number = (tie_break * rank[-1]).astype(int)
        return np.where(random_action >= 0, random_action, (rank <= number).sum(axis=0))

    def action_values(self) -> np.ndarray:
        """``(N, S, A)``, a copy."""
        return self.Q.T.reshape(self.n, -1, self.world.n_actions).copy()

    def learned(self, snapshots: list[tuple[int, np.ndarray]]) -> list[Learned]:
        """Each run's own result."""
        columns = zip(*self.finished, strict=True) if self.finished else ([np.array([], int)],) * 3
        who, returns, lengths = (np.concatenate(list(column)) for column in columns)
        order = np.argsort(who, kind="stable")
        ends = np.searchsorted(who[order], np.arange(1, self.n))
        each_returns, each_lengths = np.split(returns[order], ends), np.split(lengths[order], ends)
        tables = self.action_values()
        return [
            Learned(
                tables[i],
                tables[i].argmax(axis=1),
                each_returns[i],
                each_lengths[i],
                [(done, table[i]) for done, table in snapshots],
            )
            for i in range(self.n)
        ]
