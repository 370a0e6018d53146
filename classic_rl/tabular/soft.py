r"""Soft value iteration: the KL-regularised problem, solved exactly.

The objective charges a policy for leaving a reference policy,

.. math:: J_\beta(\pi) = E_\pi \sum_t \gamma^t \big[ r_t
          - \beta\, KL(\pi(\cdot|s_t) \| \pi_{ref}(\cdot|s_t)) \big]

and its Bellman equation has a maximum in closed form (Todorov 2006; Ziebart 2010; Levine 2018):

.. math:: V(s) = \beta \log \sum_a \pi_{ref}(a|s)\, e^{Q(s, a) / \beta}, \qquad
          \pi^*(a|s) = \pi_{ref}(a|s)\, e^{(Q(s, a) - V(s)) / \beta}

With a completion's reward at its end and γ = 1 this is the optimum of RLHF,
:math:`\pi^*(y) \propto \pi_{ref}(y) e^{r(y) / \beta}`, and J* = β log Σ π_ref(y) exp(r(y)/β).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP
from classic_rl.tabular.backup import Backup, iterate
from classic_rl.tabular.evaluation import (
    action_values,
    check_probabilities,
    next_on_shortest_way,
    under_policy,
)


@dataclass(frozen=True, eq=False)
class SoftSolution:
    """The KL-regularised optimum.

    Attributes:
        values: soft V, ``(S,)``. action_values: Q = r + γPV, ``(S, A)``.
        policy: π*, ``(S, A)``; zero where the reference is.
        objective: J* = Σ start(s) V(s).
        sweeps: sweeps done. residual: ‖TV − V‖∞ of these values, T the soft backup.
    """

    values: np.ndarray
    action_values: np.ndarray
    policy: np.ndarray
    objective: float
    sweeps: int
    residual: float


def soft_value_iteration(
    mdp: MDP,
    reference: np.ndarray,
    beta: float,
    *,
    tolerance: float = 1e-12,
    max_sweeps: int = 100_000,
    on_sweep: Callable[[int, np.ndarray], None] | None = None,
) -> SoftSolution:
    """The policy that maximises E[Σ γ^t r] − β · KL to the reference.

    Args:
        reference: π_ref, ``(S, A)``; an action that it never takes is never taken.
        beta: β > 0, nats of KL priced in reward. As β → 0 the values become those of
            `value_iteration` over the reference's actions (with γ = 1 over policies that end), as
            β → ∞ those of the reference itself.
        tolerance: the residual to reach, or the values' rounding error where that is larger.
        max_sweeps: the most sweeps before it is an error.
        on_sweep: called with (k, V_k) after each sweep; V_0 = 0.

    Raises:
        ProblemError: for a malformed reference, β ≤ 0, γ = 1 with a reference that never ends from
            some state, or no convergence.
    """
    reference = np.asarray(reference, dtype=float)
    if not 0 < beta < np.inf:
        raise ProblemError(
            f"beta: {beta} must be positive and finite; value_iteration is the limit of beta = 0"
        )
    if reference.shape != mdp.rewards.shape:
        raise ProblemError(
            f"reference: shape {reference.shape}, expected (S, A) = {mdp.rewards.shape}"
        )
    check_probabilities(reference, "reference")
    if mdp.gamma == 1:
        chain, _ = under_policy(mdp, reference)
        lost = np.flatnonzero(next_on_shortest_way(chain, mdp.terminal) < 0)
        if lost.size:
            raise ProblemError(
                f"gamma = 1 needs a reference that ends, but from state {lost[0]} it never reaches "
                "a terminal state: lower gamma or give it a way"
            )
    weights = np.ascontiguousarray((reference / reference.sum(axis=1, keepdims=True)).T)
    backup = Backup(mdp)

    def sweep(values: np.ndarray, out: np.ndarray) -> None:
        out[:] = soft_maximum(backup.action_values(values), weights, beta)[0]

    start = np.zeros(mdp.n_states)
    values, sweeps = iterate(
        sweep,
        start,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
        name="soft_value_iteration",
        on_sweep=on_sweep,
    )
    q = action_values(mdp, values)
    soft, tilted = soft_maximum(q.T, weights, beta)
    policy = np.ascontiguousarray((tilted / tilted.sum(axis=0)).T)  # π* = π_ref exp((Q − V)/β)
    residual = float(np.abs(soft - values).max())
    return SoftSolution(values, q, policy, float(mdp.start @ values), sweeps, residual)


def soft_maximum(
    q: np.ndarray, reference: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """β log Σ_a π_ref(a) exp(Q_a/β), ``(S,)``, and the terms of its sum, ``(A, S)``.

    Both inputs are ``(A, S)``. The largest allowed Q is taken out of the exponentials first, so
    that nothing overflows and the sum keeps at least the reference's probability of that action,
    however small β is. For large β the sum is near 1 and its logarithm needs log1p and expm1.
    """
    allowed = np.where(reference > 0, q, -np.inf)
    most = allowed.max(axis=0)
    with np.errstate(over="ignore"):  # −1 / 1e-308 is −inf, whose exponential is the right 0
        exponents = (allowed - most) / beta
    terms = reference * np.exp(exponents)
    total = terms.sum(axis=0)
    below_one = (reference * np.expm1(exponents)).sum(axis=0)  # total − 1, without cancellation
    with np.errstate(divide="ignore"):  # log1p(−1) where the other branch is taken
        return most + beta * np.where(total > 0.5, np.log1p(below_one), np.log(total)), terms
