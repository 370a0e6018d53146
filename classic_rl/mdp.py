r"""A finite Markov decision process as arrays.

With S states and A actions, row ``s * A + a`` of the sparse matrix ``transitions`` holds
:math:`P(\cdot \mid s, a)` and ``rewards[s, a]`` holds :math:`r(s, a) = E[r \mid s, a]`. The Bellman
backup of a value vector is then one sparse product (Sutton & Barto 2018, equation 4.6):

.. math:: Q(s, a) = r(s, a) + \gamma \sum_{s'} P(s' \mid s, a)\, V(s')

**Terminal states.** Nothing follows a terminal state, so its value is its own reward,
``rewards[s]``, whatever the action. Two conventions meet there:

* *reward on the transition* (Sutton & Barto, gymnasium): the step into the terminal state pays,
  and the terminal's own reward, hence its value, is 0;
* *reward of the state* (Russell & Norvig 2021, section 16.1): ``R(s)`` is paid in every state, and
  a terminal's value is its ``R(s)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import scipy.sparse as sp

from classic_rl.errors import ProblemError

# One outcome of an action: probability, next state, reward.
Outcome = tuple[float, int, float]


@dataclass(frozen=True, eq=False)
class MDP:
    """A finite MDP; building one checks it.

    Args:
        transitions: sparse ``(S * A, S)``; row ``s * A + a`` is the distribution of the next state.
        rewards: ``(S, A)``, the expected reward of each action.
        gamma: discount in (0, 1].
        start: ``(S,)``, the distribution of the first state.
        terminal: bool ``(S,)``. A terminal state's rows of ``transitions`` are never followed.
        transition_rewards: ``(nnz,)`` in the order of ``transitions.data``, the reward of each
            single transition, for sampling; None when a reward depends on (s, a) alone.

    Raises:
        ProblemError: naming the first state and action at fault.
    """

    transitions: sp.csr_array
    rewards: np.ndarray
    gamma: float
    start: np.ndarray
    terminal: np.ndarray
    transition_rewards: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_numbers(self)

    @property
    def n_states(self) -> int:
        return self.rewards.shape[0]

    @property
    def n_actions(self) -> int:
        return self.rewards.shape[1]

    def with_gamma(self, gamma: float) -> MDP:
        """The same process with another discount."""
        return replace(self, gamma=gamma)

    def outcomes(self, state: int, action: int) -> list[Outcome]:
        """The possible outcomes of one action, as in a gymnasium table; none in a terminal."""
        if self.terminal[state]:
            return []
        row = state * self.n_actions + action
        first, last = self.transitions.indptr[row], self.transitions.indptr[row + 1]
        paid = self.transition_rewards
        return [
            (
                float(self.transitions.data[k]),
                int(self.transitions.indices[k]),
                float(self.rewards[state, action] if paid is None else paid[k]),
            )
            for k in range(first, last)
        ]


def from_arrays(
    transitions: np.ndarray | sp.sparray,
    rewards: np.ndarray,
    gamma: float,
    *,
    start: np.ndarray | int = 0,
    terminal: Iterable[int] = (),
) -> MDP:
    """An MDP from arrays.

    Args:
        transitions: ``(S, A, S)`` dense, or sparse ``(S * A, S)``.
        rewards: ``(S, A)``, or ``(S, A, S)`` dense with a reward for each transition.
        gamma: discount in (0, 1].
        start: the first state, or its distribution ``(S,)``.
        terminal: the terminal states' indices.
    """
    rewards = np.asarray(rewards, dtype=float)
    if sp.issparse(transitions):
        matrix = sp.csr_array(transitions, dtype=float)
    else:
        dense = np.asarray(transitions, dtype=float)
        if dense.ndim != 3 or dense.shape[0] != dense.shape[2]:
            raise ProblemError(f"transitions: shape {dense.shape}, expected (S, A, S)")
        matrix = sp.csr_array(dense.reshape(-1, dense.shape[2]))
    shape: Any = matrix.shape
    n_rows, n_states = shape
    paid = None
    if rewards.ndim == 3:
        if rewards.shape != (n_states, n_rows // n_states, n_states):
            raise ProblemError(f"rewards: shape {rewards.shape} does not match the transitions")
        rows = np.repeat(np.arange(n_rows), np.diff(matrix.indptr))
        paid = rewards.reshape(-1, n_states)[rows, matrix.indices]
        weighted = np.bincount(rows, weights=matrix.data * paid, minlength=n_rows)
        rewards = weighted.reshape(n_states, -1)
    ends = _terminal_mask(terminal, n_states)
    return MDP(_compact(matrix), rewards, gamma, _start_distribution(start, n_states), ends, paid)


def from_function(
    outcomes: Callable[[int, int], Iterable[Outcome]],
    n_states: int,
    n_actions: int,
    gamma: float,
    *,
    start: np.ndarray | int = 0,
    terminal: Iterable[int] = (),
) -> MDP:
    """An MDP from a function ``outcomes(state, action)`` -> (probability, next state, reward)s.

    The function is not called for terminal states. Outcomes with one next state are merged, their
    rewards averaged by probability.
    """
    ends = _terminal_mask(terminal, n_states)
    rows: list[int] = []
    columns: list[int] = []
    probabilities: list[float] = []
    rewards: list[float] = []
    for state in range(n_states):
        for action in range(n_actions):
            following = [(1.0, state, 0.0)] if ends[state] else outcomes(state, action)
            for probability, next_state, reward in following:
                if not 0 <= next_state < n_states:
                    raise ProblemError(
                        f"state {state}, action {action} leads to state {next_state}, "
                        f"but the states are 0 to {n_states - 1}"
                    )
                rows.append(state * n_actions + action)
                columns.append(next_state)
                probabilities.append(probability)
                rewards.append(reward)
    shape = (n_states * n_actions, n_states)
    weight = np.asarray(probabilities, dtype=float)
    pay = weight * np.asarray(rewards, dtype=float)
    if not np.isfinite(pay).all() or not (weight >= 0).all():
        bad = int(np.flatnonzero(~np.isfinite(pay) | ~(weight >= 0))[0])
        raise ProblemError(
            f"state {rows[bad] // n_actions}, action {rows[bad] % n_actions}: "
            f"probability {probabilities[bad]}, reward {rewards[bad]} cannot be used"
        )
    # Zero probabilities are dropped first, so that both matrices keep the same pattern.
    kept = weight > 0
    index = (np.asarray(rows)[kept], np.asarray(columns)[kept])
    matrix = sp.csr_array((weight[kept], index), shape=shape)
    weighted = sp.csr_array((pay[kept], index), shape=shape)
    matrix.sum_duplicates()
    weighted.sum_duplicates()
    expected = np.asarray(weighted.sum(axis=1)).reshape(n_states, n_actions)
    paid = np.divide(weighted.data, matrix.data)
    return MDP(_compact(matrix), expected, gamma, _start_distribution(start, n_states), ends, paid)


def from_gymnasium(env: gym.Env | str, gamma: float, **kwargs: Any) -> MDP:
    """The exact MDP of an environment that has one.

    That is any environment with a method ``mdp(gamma)`` (those in `classic_rl.envs`) or a table
    ``P[state][action] = [(probability, next state, reward, terminated), ...]`` (gymnasium's
    toy-text environments). Time limits are no part of it.

    Args:
        env: the environment or its id. gamma: discount. kwargs: passed to ``gymnasium.make``.

    Raises:
        ProblemError: where there is no such table, as for continuous observations.
    """
    if isinstance(env, str):
        try:
            made = gym.make(env, **kwargs)
        except gym.error.Error as error:
            raise ProblemError(f"environment {env}: {error}") from error
        try:
            return from_gymnasium(made, gamma)
        finally:
            made.close()
    inner: Any = env.unwrapped
    name = env.spec.id if env.spec else type(inner).__name__
    if hasattr(inner, "mdp"):
        model = inner.mdp(gamma) if callable(inner.mdp) else None
        if not isinstance(model, MDP):
            raise ProblemError(f"{name}: mdp must be a method that returns a classic_rl.mdp.MDP")
        if model.gamma != gamma:
            raise ProblemError(
                f"{name}: mdp({gamma:g}) returns a process with the discount {model.gamma:g}; it"
                " must hand on the one that it is given"
            )
        return model
    if not hasattr(inner, "P") or not hasattr(inner, "initial_state_distrib"):
        raise ProblemError(
            f"{name}: no exact model: tabular planning needs an environment with a transition "
            f"table P and initial_state_distrib; this one's observations are "
            f"{env.observation_space}"
        )
    return _from_table(inner.P, gamma, np.asarray(inner.initial_state_distrib, dtype=float))


def _from_table(table: Any, gamma: float, start: np.ndarray) -> MDP:
    """The MDP of a gymnasium table, whose transitions say themselves whether they terminate.

    A state that a terminating transition enters becomes terminal. Where a reachable state is
    entered both ways, its terminating entries lead to one extra absorbing state instead.
    """
    n_states, n_actions = len(table), len(table[0])
    reachable = {int(s) for s in np.flatnonzero(start)}
    queue, ended, passed = list(reachable), set(), set()
    # FrozenLake's holes and goal terminate again from within themselves.
    absorbing = {
        state
        for state in range(n_states)
        if all(o[1] == state and o[3] for a in range(n_actions) for o in table[state][a])
    }
    while queue:
        state = queue.pop()
        for action in range(n_actions):
            for probability, following, _, terminated in table[state][action]:
                if probability == 0 or (state in absorbing and terminated):
                    continue
                (ended if terminated else passed).add(int(following))
                if not terminated and following not in reachable:
                    reachable.add(int(following))
                    queue.append(int(following))
    mixed = ended & (passed | set(np.flatnonzero(start).tolist()))
    sink = n_states
    terminal = (ended - mixed) | ({sink} if mixed else set())

    def outcomes(state: int, action: int) -> list[Outcome]:
        return [
            (probability, sink if terminated and following in mixed else int(following), reward)
            for probability, following, reward, terminated in table[state][action]
        ]

    start = np.append(start, 0.0) if mixed else start
    return from_function(
        outcomes, n_states + bool(mixed), n_actions, gamma, start=start, terminal=terminal
    )


def _compact(matrix: sp.csr_array) -> sp.csr_array:
    """The same with 32-bit indices where they suffice: a third less memory and faster products."""
    if matrix.nnz >= np.iinfo(np.int32).max:
        return matrix
    indices, indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return sp.csr_array((matrix.data, indices, indptr), shape=matrix.shape)


def _terminal_mask(terminal: Iterable[int], n_states: int) -> np.ndarray:
    mask = np.zeros(n_states, dtype=bool)
    for state in terminal:
        whole = isinstance(state, (int, np.integer)) and not isinstance(state, bool)
        if not whole or not 0 <= state < n_states:
            raise ProblemError(f"terminal: {state!r} is not a state's number, 0 to {n_states - 1}")
        mask[state] = True
    return mask


def _start_distribution(start: np.ndarray | int, n_states: int) -> np.ndarray:
    if isinstance(start, (int, np.integer)):
        if not 0 <= start < n_states:
            raise ProblemError(f"start: state {start} is not among 0 to {n_states - 1}")
        distribution = np.zeros(n_states)
        distribution[start] = 1.0
        return distribution
    return np.asarray(start, dtype=float)


def _check_shapes(mdp: MDP) -> None:
    if mdp.rewards.ndim != 2 or 0 in mdp.rewards.shape:
        raise ProblemError(f"rewards: shape {mdp.rewards.shape}, expected (S, A), neither empty")
    n_states, n_actions = mdp.rewards.shape
    expected = {
        "transitions": (mdp.transitions.shape, (n_states * n_actions, n_states)),
        "start": (np.shape(mdp.start), (n_states,)),
        "terminal": (np.shape(mdp.terminal), (n_states,)),
    }
    if mdp.transition_rewards is not None:
        expected["transition_rewards"] = (mdp.transition_rewards.shape, mdp.transitions.data.shape)
    for name, (shape, needed) in expected.items():
        if shape != needed:
            raise ProblemError(
                f"{name}: shape {shape}, but rewards of shape {mdp.rewards.shape} need {needed}"
            )
    if mdp.terminal.dtype != bool:
        raise ProblemError(f"terminal: {mdp.terminal.dtype}, expected bool, one for each state")


def _check_numbers(mdp: MDP) -> None:
    if not 0 < mdp.gamma <= 1:
        raise ProblemError(f"gamma: {mdp.gamma} is outside (0, 1]")
    if not np.isfinite(mdp.rewards).all():
        state, action = np.argwhere(~np.isfinite(mdp.rewards))[0]
        raise ProblemError(
            f"the reward of state {state}, action {action} is {mdp.rewards[state, action]}"
        )
    if mdp.terminal.any():
        ends = np.flatnonzero(mdp.terminal)
        first = mdp.rewards[ends, :1]
        unequal = ~np.isclose(mdp.rewards[ends], first, rtol=1e-8, atol=1e-8).all(axis=1)
        if unequal.any():
            raise ProblemError(
                f"the rewards of terminal state {ends[unequal][0]} differ between actions, but "
                "none is taken there: its own reward, mostly 0, must stand in all of them"
            )
    probabilities = mdp.transitions.data
    wrong = np.flatnonzero(~(probabilities >= 0))
    if wrong.size:
        row = int(np.searchsorted(mdp.transitions.indptr, wrong[0], side="right")) - 1
        raise ProblemError(
            f"the transitions of {_place(row, mdp)} have the probability {probabilities[wrong[0]]}"
        )
    sums = np.asarray(mdp.transitions.sum(axis=1))
    wrong = np.flatnonzero(np.abs(sums - 1) > 1e-8)
    if wrong.size:
        row = int(wrong[0])
        raise ProblemError(
            f"the transition probabilities of {_place(row, mdp)} sum to {sums[row]:.6g}, not 1"
        )
    if not (mdp.start >= 0).all():
        state = int(np.flatnonzero(~(mdp.start >= 0))[0])
        raise ProblemError(f"start: state {state} has the probability {mdp.start[state]}")
    if abs(mdp.start.sum() - 1) > 1e-8:
        raise ProblemError(f"start: the probabilities sum to {mdp.start.sum():.6g}, not 1")


def _place(row: int, mdp: MDP) -> str:
    return f"state {row // mdp.n_actions}, action {row % mdp.n_actions}"
