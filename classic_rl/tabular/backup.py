r"""The Bellman backup as one sparse product, and the loop that repeats it to its fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP

# Up to about this many entries gathering successors' values beats the sparse call's overhead alone
# (4 actions, 3 successors: 340 states).
GATHERED_ENTRIES = 4_096
# Measuring the change of a small table costs as much as half a sweep, so it is done now and then.
CHECK_EVERY = 8


class Backup:
    r"""The backups of the states ``first`` to ``last - 1``, laid out for speed.

    .. math:: Q_a = r_a + \gamma P_a V

    The rows of :math:`\gamma P` lie action by action, so that the maximum over actions runs along
    contiguous memory; γ is multiplied in once; and a terminal's rows are zero, since nothing
    follows it.
    """

    def __init__(self, mdp: MDP, first: int = 0, last: int | None = None) -> None:
        last = mdp.n_states if last is None else last
        self.rows = slice(first, last)
        states = np.arange(first, last)
        order = (states * mdp.n_actions + np.arange(mdp.n_actions)[:, None]).ravel()
        self.matrix = discounted(mdp, order)
        self.rewards = np.ascontiguousarray(mdp.rewards[first:last].T)  # (A, S)
        counts = np.diff(self.matrix.indptr)
        self.gathered = len(order) * int(counts.max(initial=1)) <= GATHERED_ENTRIES
        if self.gathered:
            self._gather(counts)

    def action_values(self, values: np.ndarray) -> np.ndarray:
        """``(A, S)``: one row an action. The next call may write over it."""
        if self.gathered:
            values.take(self._successors, out=self._terms, mode="clip")  # "raise" would buffer
            self._terms *= self._weights
            q, *others = self._by_successor
            for term in others:
                q += term  # γ P V, one successor after the other
        else:
            q = self.matrix.dot(values).reshape(self.rewards.shape)  # γ P V
        q += self.rewards  # + r
        return q

    def _gather(self, counts: np.ndarray) -> None:
        """Lay the rows out as arrays ``(K, A, S)`` of their k-th successors and weights, padded
        with weights of zero."""
        shape = (int(counts.max(initial=1)), *self.rewards.shape)
        self._successors, self._weights = np.zeros(shape, dtype=np.intp), np.zeros(shape)
        rows = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(rows)) - self.matrix.indptr[rows]
        self._successors.reshape(shape[0], -1)[place, rows] = self.matrix.indices
        self._weights.reshape(shape[0], -1)[place, rows] = self.matrix.data
        self._terms = np.empty(shape)
        self._by_successor = list(self._terms)  # views, taken once

    def sweep(self, values: np.ndarray, out: np.ndarray) -> None:
        """V ← max_a Q_a (Sutton & Barto 2018, equation 4.10), for these states."""
        self.action_values(values).max(axis=0, out=out[self.rows])


def discounted(mdp: MDP, rows: np.ndarray) -> sp.csr_array:
    """Those rows of γP, a terminal's rows zero."""
    matrix = mdp.transitions[rows]
    matrix.data *= mdp.gamma
    if mdp.terminal.any():
        ends = mdp.terminal[rows // mdp.n_actions]
        matrix.data[np.repeat(ends, np.diff(matrix.indptr))] = 0.0
    return matrix


class FixedPoint(NamedTuple):
    values: np.ndarray
    sweeps: int


@np.errstate(over="ignore", invalid="ignore")  # an overflow is told in one line
def iterate(
    sweep: Callable[[np.ndarray, np.ndarray], None],
    start: np.ndarray,
    *,
    tolerance: float,
    max_sweeps: int,
    name: str,
    on_sweep: Callable[[int, np.ndarray], None] | None = None,
) -> FixedPoint:
    """Repeats V ← T V until ‖TV − V‖∞ ≤ ``tolerance``, looking at every eighth sweep.

    It also stops where V moves no more than its own rounding error, which is as far as floating
    point goes when the values are large and the tolerance small.

    Args:
        sweep: ``sweep(V, out)`` writes T V into ``out``. start: the first V, ``(S,)``.
        name: what is running, for the error. on_sweep: called with (k, V_k) after each sweep.

    Raises:
        ProblemError: when ``max_sweeps`` did not suffice.
    """
    check_stopping(name, tolerance, max_sweeps)
    old, new = start.copy(), np.empty_like(start)
    change = previous = np.inf
    for k in range(1, max_sweeps + 1):
        sweep(old, new)
        if on_sweep is not None:
            on_sweep(k, new.copy())
        if k % CHECK_EVERY == 0 or k == max_sweeps:
            change = float(np.abs(new - old).max())
            if not np.isfinite(change):
                raise ProblemError(f"{name}: the values overflow: the rewards are too large")
            if change <= tolerance or previous <= change <= rounding(new):
                return FixedPoint(new, k)
            previous = change
        old, new = new, old
    raise not_converged(name, change, max_sweeps, tolerance)


def check_stopping(name: str, tolerance: float, max_sweeps: int) -> None:
    if not tolerance >= 0 or max_sweeps < 1:
        raise ProblemError(
            f"{name}: tolerance {tolerance} and max_sweeps {max_sweeps}: the first must not be "
            "negative, the second at least 1"
        )


def rounding(values: np.ndarray) -> float:
    """The size of the change that rounding alone makes in one sweep of these values."""
    return 16 * np.finfo(float).eps * float(np.abs(values).max())


def not_converged(name: str, change: float, sweeps: int, tolerance: float) -> ProblemError:
    return ProblemError(
        f"{name}: the values still change by {change:.3g} after {sweeps} sweeps (tolerance "
        f"{tolerance:g}): raise max_sweeps or tolerance, or lower gamma if a loop earns for ever"
    )
