r"""What a given policy is worth: policy evaluation, with and without a horizon.

A policy is an int array ``(S,)``, one action a state, or a float array ``(S, A)`` whose rows are
distributions. Under it the process is a Markov chain with rewards, and

.. math:: V_\pi = r_\pi + \gamma P_\pi V_\pi

is a linear system (Sutton & Barto 2018, section 4.1).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order, reverse_cuthill_mckee
from scipy.sparse.linalg import spsolve

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP
from classic_rl.tabular.backup import Backup, discounted, iterate

# Factorising is taken as cheap up to about this many operations (a second or two on one core).
CHEAP_OPERATIONS = 4e9
# Action values this close to the best one, in parts of it plus 1, are equal to it: rounding
# errors are smaller.
TIE = 1e-10


def action_values(mdp: MDP, values: np.ndarray) -> np.ndarray:
    """``(S, A)``: ``r(s, a) + γ Σ P(s'|s, a) V(s')``, a terminal's being its own reward."""
    following = (mdp.transitions @ values).reshape(mdp.rewards.shape)
    following[mdp.terminal] = 0.0
    return mdp.rewards + mdp.gamma * following


def greedy(action_values: np.ndarray) -> np.ndarray:
    """``(S,)``: the best action of each state; of equally good ones, the lowest index.

    Actions that are worth the same may differ in the last digits, and how they do depends on the
    processor. Up to `TIE` they count as equal, so that the policy is the same on all of them.
    """
    q = np.asarray(action_values)
    best = q.max(axis=1, keepdims=True)
    return (q >= best - TIE * (1.0 + np.abs(best))).argmax(axis=1)


def policy_evaluation(
    mdp: MDP,
    policy: np.ndarray,
    *,
    method: Literal["auto", "direct", "iterative"] = "auto",
    tolerance: float = 1e-8,
    max_sweeps: int = 100_000,
    initial: np.ndarray | None = None,
) -> np.ndarray:
    r"""V of a policy, ``(S,)``.

    Args:
        policy: int ``(S,)`` or float ``(S, A)``.
        method: "direct" solves the linear system by sparse LU: exact, cheap on grids and chains,
            but on large random transitions the factors fill in (10⁴ states: over a minute).
            "iterative" sweeps V ← r + γPV from zero. "auto" is direct where that is cheap.
        tolerance: "iterative" stops at ‖TV − V‖∞ ≤ tolerance; for γ < 1 the values are then
            within γ/(1 − γ) · tolerance of the true ones.
        max_sweeps: the most sweeps of "iterative".
        initial: where "iterative" starts, ``(S,)``; zeros if None.

    Raises:
        ProblemError: for a malformed policy, one that never ends while γ = 1, or no convergence.
    """
    if method not in ("auto", "direct", "iterative"):
        raise ProblemError(f"policy_evaluation: method {method!r} is not auto, direct or iterative")
    chain, rewards = under_policy(mdp, policy)
    if mdp.gamma == 1:
        lost = np.flatnonzero(next_on_shortest_way(chain, mdp.terminal) < 0)
        if lost.size:
            raise ProblemError(
                f"gamma = 1 needs a policy that ends, but from state {lost[0]} this one never "
                "reaches a terminal state: lower gamma, choose another policy or, where policy "
                "iteration found it, take away the loop that earns for ever"
            )
    if method == "direct" or (method == "auto" and _cheap_to_factorise(chain)):
        identity = sp.eye_array(mdp.n_states, format="csc")
        return np.asarray(spsolve(sp.csc_array(identity - chain), rewards))  # (I − γP) V = r

    def sweep(values: np.ndarray, out: np.ndarray) -> None:
        np.add(rewards, chain @ values, out=out)  # V ← r + γ P V

    start = np.zeros(mdp.n_states) if initial is None else np.asarray(initial, dtype=float)
    return iterate(
        sweep, start, tolerance=tolerance, max_sweeps=max_sweeps, name="policy_evaluation"
    ).values


def finite_horizon_values(mdp: MDP, policy: np.ndarray | None, steps: int) -> np.ndarray:
    """``(S,)``: the expected (discounted) return of the next ``steps`` rewards.

    With a policy, of following it; with None, of the best time-dependent policy, which for example
    takes more risk when few steps are left. It is ``steps`` sweeps of policy evaluation or value
    iteration from zero (Puterman 1994, section 4.5). On a process that pays 1 for success it is the
    chance of success within the time limit.
    """
    if steps < 0:
        raise ProblemError(f"finite_horizon_values: steps {steps} is negative")
    values = np.zeros(mdp.n_states)
    if policy is None:
        backup = Backup(mdp)
        for _ in range(steps):
            values = backup.action_values(values).max(axis=0)  # V ← max_a [r + γ P V]
    else:
        chain, rewards = under_policy(mdp, policy)
        for _ in range(steps):
            values = rewards + chain @ values  # V ← r + γ P V
    return values


def under_policy(mdp: MDP, policy: np.ndarray) -> tuple[sp.csr_array, np.ndarray]:
    """The Markov chain that a policy makes: γP_π ``(S, S)``, terminal rows zero, and r_π ``(S,)``.

    Raises:
        ProblemError: naming the state where the policy is malformed.
    """
    policy = np.asarray(policy)
    n_states, n_actions = mdp.rewards.shape
    everything = np.arange(n_states)
    if policy.shape == (n_states,) and np.issubdtype(policy.dtype, np.integer):
        wrong = np.flatnonzero((policy < 0) | (policy >= n_actions))
        if wrong.size:
            raise ProblemError(
                f"policy: state {wrong[0]} has the action {policy[wrong[0]]}, "
                f"but the actions are 0 to {n_actions - 1}"
            )
        return discounted(mdp, everything * n_actions + policy), mdp.rewards[everything, policy]
    if policy.shape != mdp.rewards.shape:
        raise ProblemError(
            f"policy: {policy.dtype} of shape {policy.shape}, expected whole numbers ({n_states},) "
            f"or probabilities {mdp.rewards.shape}"
        )
    check_probabilities(policy, "policy")
    one_row_a_state = np.arange(0, policy.size + 1, n_actions)
    weights = sp.csr_array(
        (policy.astype(float).ravel(), np.arange(policy.size), one_row_a_state),
        shape=(n_states, policy.size),
    )
    chain = weights @ discounted(mdp, np.arange(policy.size))  # Σ_a π(a|s) γP(s'|s, a)
    return sp.csr_array(chain), (policy * mdp.rewards).sum(axis=1)  # Σ_a π(a|s) r(s, a)


def check_probabilities(table: np.ndarray, name: str) -> None:
    """Raise a ProblemError unless each row is a distribution."""
    good = (table >= 0).all(axis=1) & (np.abs(table.sum(axis=1) - 1) <= 1e-8)
    if not good.all():
        state = int(np.flatnonzero(~good)[0])
        raise ProblemError(
            f"{name}: the row of state {state} is not a distribution: it sums to "
            f"{table[state].sum():.6g}, its least entry is {table[state].min():.6g}"
        )


def next_on_shortest_way(transitions: sp.csr_array, terminal: np.ndarray) -> np.ndarray:
    """``(S,)``: the next state on a shortest way to a terminal; −1 where no way exists.

    Args:
        transitions: ``(S * A, S)`` or, for a chain, ``(S, S)``; their non-zeros are the edges.

    The entry of a terminal itself is S.
    """
    n_states = len(terminal)
    rows = _rows(transitions)
    n_actions = (len(transitions.indptr) - 1) // n_states
    edges = (transitions.data > 0) & ~terminal[rows // n_actions]
    # Breadth first, backwards, from one extra node behind all terminals.
    ends = np.flatnonzero(terminal)
    heads = np.append(transitions.indices[edges], np.full(len(ends), n_states))
    tails = np.append(rows[edges] // n_actions, ends)
    backwards = sp.csr_array(
        (np.ones(len(heads)), (heads, tails)), shape=(n_states + 1, n_states + 1)
    )
    _, following = breadth_first_order(backwards, n_states)
    return np.maximum(following[:n_states], -1)  # scipy marks what it never reached by -9999


def require_endings(mdp: MDP) -> np.ndarray:
    """What planning with γ = 1 needs: a way to a terminal from everywhere.

    Returns `next_on_shortest_way`, or raises a ProblemError naming a state that has none.
    """
    following = next_on_shortest_way(mdp.transitions, mdp.terminal)
    lost = np.flatnonzero(following < 0)
    if lost.size:
        raise ProblemError(
            f"gamma = 1 needs a way to a terminal state from everywhere, but state {lost[0]} has "
            "none: add a terminal state or lower gamma"
        )
    return following


def proper_policy(mdp: MDP) -> np.ndarray:
    """``(S,)``: a policy that ends from every state, by always taking a step on a shortest way."""
    following = require_endings(mdp)
    rows = _rows(mdp.transitions)
    states = rows // mdp.n_actions
    leads = (mdp.transitions.indices == following[states]) & (mdp.transitions.data > 0)
    policy = np.zeros(mdp.n_states, dtype=int)
    policy[states[leads]] = rows[leads] % mdp.n_actions
    return policy


def _rows(matrix: sp.csr_array) -> np.ndarray:
    """The row of each stored entry."""
    return np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))


def _cheap_to_factorise(chain: sp.csr_array) -> bool:
    """Whether LU of the chain takes few operations: at most S · b² with the bandwidth b.

    The reverse Cuthill-McKee order shows a small b where there is one: a chain has b = 1, an n × n
    grid about n, while random transitions have b near S.
    """
    pattern = sp.csr_array(chain + chain.T)
    place = np.argsort(reverse_cuthill_mckee(pattern, symmetric_mode=True))
    rows, columns = pattern.nonzero()
    bandwidth = np.abs(place[rows] - place[columns]).max(initial=0)
    return len(place) * float(bandwidth) ** 2 <= CHEAP_OPERATIONS
