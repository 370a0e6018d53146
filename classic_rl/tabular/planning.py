r"""Planning with a known model: the optimal values and policy of a finite MDP.

Three algorithms solve the Bellman optimality equation (Sutton & Barto 2018, equation 4.1)

.. math:: V(s) = (TV)(s) = \max_a \Big[ r(s, a) + \gamma \sum_{s'} P(s' \mid s, a) V(s') \Big]

* `value_iteration` repeats V ← TV (section 4.4): simplest, many cheap sweeps;
* `policy_iteration` evaluates a policy exactly, then improves it (section 4.3): few dear steps;
* `modified_policy_iteration` lies between: some sweeps of evaluation after each improvement
  (Puterman & Shin 1978), for large problems usually the fastest.

All stop by one rule, a *Bellman residual* ‖TV − V‖∞ of at most ``tolerance``; for γ < 1 the values
are then within ``tolerance / (1 − γ)`` of the optimum. A terminal's value is its own reward (see
`classic_rl.mdp`). With γ = 1 every state needs a way to a terminal, and where a loop pays exactly
nothing there are two optima: value iteration, from V = 0, counts going round for ever as worth 0;
the other two look for the best policy that ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP
from classic_rl.tabular.backup import Backup, check_stopping, iterate, not_converged, rounding
from classic_rl.tabular.evaluation import (
    action_values,
    finite_horizon_values,
    greedy,
    policy_evaluation,
    proper_policy,
    require_endings,
    under_policy,
)

__all__ = [
    "Solution",
    "action_values",
    "finite_horizon_values",
    "greedy",
    "modified_policy_iteration",
    "policy_evaluation",
    "policy_iteration",
    "value_iteration",
]

# A Gauss-Seidel sweep without compilation updates at most this many blocks one after the other.
BLOCKS = 64


@dataclass(frozen=True, eq=False)
class Solution:
    """The optimum as an algorithm left it.

    Attributes:
        values: V, ``(S,)``. action_values: Q, ``(S, A)``, one backup of V.
        policy: int ``(S,)``. Value iteration's is greedy in Q; among actions that tie, with γ = 1,
            such a policy may go round for ever, while policy iteration's always ends.
        sweeps: sweeps of value iteration, in steps of eight; improvements of the other two.
        residual: ‖TV − V‖∞ of these values.
    """

    values: np.ndarray
    action_values: np.ndarray
    policy: np.ndarray
    sweeps: int
    residual: float


def value_iteration(
    mdp: MDP,
    *,
    tolerance: float = 1e-8,
    max_sweeps: int = 100_000,
    sweep: Literal["synchronous", "gauss-seidel"] = "synchronous",
    on_sweep: Callable[[int, np.ndarray], None] | None = None,
    compiled: bool = False,
) -> Solution:
    r"""Value iteration from V = 0: :math:`V \leftarrow \max_a [r_a + \gamma P_a V]`.

    Args:
        tolerance: the Bellman residual to reach; it is looked at every eighth sweep.
        max_sweeps: the most sweeps before it is an error.
        sweep: "synchronous" computes all new values from the old ones. "gauss-seidel" goes through
            the states in their order and uses each new value at once, which takes fewer sweeps.
            True to the order up to 64 states and when compiled; beyond, 64 consecutive blocks
            take turns and the states of one block are updated together.
        on_sweep: called with (k, V_k) after each sweep k = 1, 2, …; V_k is a copy.
        compiled: run the sweeps in a numba kernel (an extra package).

    Raises:
        ProblemError: when γ = 1 and a state has no way to a terminal, or after ``max_sweeps``.
    """
    if sweep not in ("synchronous", "gauss-seidel"):
        raise ProblemError(f"value_iteration: sweep {sweep!r} is not synchronous or gauss-seidel")
    if mdp.gamma == 1:
        require_endings(mdp)
    if compiled:
        from classic_rl.tabular.compiled import compiled_sweep

        step = compiled_sweep(mdp, in_place=sweep == "gauss-seidel")
    elif sweep == "gauss-seidel":
        step = _gauss_seidel(mdp)
    else:
        step = Backup(mdp).sweep
    start = np.zeros(mdp.n_states)
    values, sweeps = iterate(
        step,
        start,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
        name="value_iteration",
        on_sweep=on_sweep,
    )
    return _solution(mdp, values, None, sweeps)


def policy_iteration(
    mdp: MDP,
    *,
    tolerance: float = 1e-8,
    max_sweeps: int = 1_000,
    method: Literal["auto", "direct", "iterative"] = "auto",
    on_policy: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> Solution:
    """Policy iteration: evaluate π, make it greedy, until no action is better than π's.

    With γ = 1 it starts from a policy that ends from every state. An action is replaced only by a
    better one, never by an equal one, so each next policy ends too, unless some loop earns for
    ever, which is then the error.

    Args:
        tolerance: the Bellman residual to reach. max_sweeps: the most improvements.
        method: how policies are evaluated, see `policy_evaluation`.
        on_policy: called with (k, π_k, V_k), int ``(S,)`` and float ``(S,)``, after each
            evaluation k = 1, 2, …; the last π_k is the best one.

    Raises:
        ProblemError: as `policy_evaluation`, and after ``max_sweeps`` improvements.
    """
    check_stopping("policy_iteration", tolerance, max_sweeps)
    ending = mdp.gamma == 1
    policy = proper_policy(mdp) if ending else greedy(mdp.rewards)
    # An error e in V shifts differences of Q by up to 2γe, and e ≤ residual / (1 − γ): evaluation
    # must be this much finer than the gain that counts as better.
    finer = 1.0 if ending else 1 - mdp.gamma
    values = np.zeros(mdp.n_states)
    everything = np.arange(mdp.n_states)
    gain = np.zeros(0)
    for k in range(1, max_sweeps + 1):
        values = policy_evaluation(
            mdp, policy, method=method, tolerance=tolerance * finer / 8, initial=values
        )
        if on_policy is not None:
            on_policy(k, policy, values)
        q = action_values(mdp, values)
        kept = q[everything, policy]
        best = greedy(q)
        gain = q[everything, best] - kept
        noise = 2 * float(np.abs(kept - values).max()) / finer
        better = gain > max(tolerance / 2, noise)
        if not better.any():
            return _solution(mdp, values, policy, k)
        policy = np.where(better, best, policy)
    raise not_converged("policy_iteration", float(gain.max()), max_sweeps, tolerance)


def modified_policy_iteration(
    mdp: MDP, *, evaluations: int = 12, tolerance: float = 1e-8, max_sweeps: int = 100_000
) -> Solution:
    r"""Modified policy iteration (Puterman & Shin 1978; Puterman 1994, section 6.5).

    Each round makes the policy greedy, which is one backup TV, and then sweeps
    :math:`V \leftarrow r_\pi + \gamma P_\pi V` a few times, which costs a fraction 1/A each.

    Without terminal states V + c and T(V + c) = TV + γc have the same greedy policy, so the part of
    TV − V that is the same in every state is summed to the end at once (MacQueen's bounds, section
    6.6.3) and only its span has to shrink.

    Args:
        evaluations: sweeps of evaluation after each improvement; 0 is value iteration.
        tolerance: the Bellman residual to reach. max_sweeps: the most improvements.

    Raises:
        ProblemError: as `value_iteration`.
    """
    check_stopping("modified_policy_iteration", tolerance, max_sweeps)
    states = np.arange(mdp.n_states)
    values = _lower_bound(mdp)
    endless = mdp.gamma < 1 and not mdp.terminal.any()
    evaluated = np.zeros(mdp.n_states, dtype=int)
    chain, rewards = under_policy(mdp, evaluated)
    change = previous = np.inf
    for k in range(1, max_sweeps + 1):
        q = action_values(mdp, values)
        policy = q.argmax(axis=1)  # ties may fall either way here: they leave TV the same
        improved = q[states, policy]  # TV
        difference = improved - values
        low, high = float(difference.min()), float(difference.max())
        common = (low + high) / 2 if endless else 0.0
        change = max(high - common, common - low)
        if change <= tolerance or previous <= change <= rounding(values):
            if endless:
                improved += mdp.gamma / (1 - mdp.gamma) * common  # Σ_k γ^k · common, k ≥ 1
            return _solution(mdp, improved, None, k)
        previous = change
        if (policy != evaluated).any():
            chain, rewards = under_policy(mdp, policy)
            evaluated = policy  # towards the end it stays
        values = improved
        for _ in range(evaluations):
            values = chain @ values
            values += rewards  # V ← r_π + γ P_π V
    raise not_converged("modified_policy_iteration", change, max_sweeps, tolerance)


def _lower_bound(mdp: MDP) -> np.ndarray:
    """A V with TV ≥ V, from which modified policy iteration rises to the optimum."""
    if mdp.gamma == 1:
        return policy_evaluation(mdp, proper_policy(mdp))
    return np.full(mdp.n_states, min(0.0, float(mdp.rewards.min())) / (1 - mdp.gamma))


def _gauss_seidel(mdp: MDP) -> Callable[[np.ndarray, np.ndarray], None]:
    edges = np.unique(np.linspace(0, mdp.n_states, BLOCKS + 1).round().astype(int))
    blocks = [Backup(mdp, *ends) for ends in zip(edges[:-1], edges[1:], strict=True)]

    def sweep(values: np.ndarray, out: np.ndarray) -> None:
        out[:] = values
        for block in blocks:
            block.sweep(out, out)  # reads what the blocks before it have just written

    return sweep


def _solution(mdp: MDP, values: np.ndarray, policy: np.ndarray | None, sweeps: int) -> Solution:
    q = action_values(mdp, values)
    residual = float(np.abs(q.max(axis=1) - values).max())
    return Solution(values, q, greedy(q) if policy is None else policy, sweeps, residual)
