r"""Where each method ends, by enumeration: π* for some, another policy for others.

PPO with the KL in the reward, RLOO, DPO on Bradley–Terry pairs drawn from π_ref, and SFT on samples
drawn again by exp(r/β) have the optimum of the KL-regularised problem, π*
(`classic_rl.envs.TokenMDP.optimum`). The functions here
give what the others' losses, read from their code, have as their minimum or as the point where
their expected gradient vanishes. Each takes any policy as reachable, and infinitely many samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from classic_rl.envs import TokenMDP
from pipeline.certify.problem import Problem

Tilt = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From Q and π_ref of one state, both ``(A,)``, to the policy there."""


def win_probability(problem: Problem) -> np.ndarray:
    r""":math:`P(y) = E_{y' \sim \pi_{ref}}\,\sigma(r(y) - r(y'))`, ``(N,)``: Bradley–Terry."""
    return expit(problem.rewards[:, None] - problem.rewards[None]) @ problem.reference


def ipo(problem: Problem, tau: float, per_token: bool) -> np.ndarray:
    r"""IPO's minimum (Azar et al. 2024, equation 17), ``(N,)``.

    The loss :math:`(g(y_w) - g(y_l) - 1/2\tau)^2` over pairs from π_ref is least squares in g, with
    the solution :math:`g(y) = P(y)/\tau + c`. In the paper g is log π/π_ref, so that
    :math:`\pi \propto \pi_{ref}\, e^{P(y)/\tau}`. TRL divides it by the completion's tokens:
    :math:`\log \pi/\pi_{ref} = |y|\,(P(y)/\tau + c)`, where c makes π sum to 1 and longer
    completions are moved further.
    """
    wins = win_probability(problem) / tau
    if not per_token:
        return softmax(np.log(problem.reference) + wins)
    lengths = np.array([len(y) for y in problem.env.sequences])

    def excess(shift: float) -> float:
        return float(problem.reference @ np.exp(lengths * (wins + shift))) - 1.0

    shift = _root(excess, -wins.max(), -wins.min())
    return problem.reference * np.exp(lengths * (wins + shift))


def kto(problem: Problem, beta: float) -> np.ndarray:
    r"""KTO's minimum (Ethayarajh et al. 2024, equation 8) where chosen is desirable, ``(N,)``.

    TRL's reference point, the mean of h = log π/π_ref over the batch's own completions, is at most
    0 when these come from π_ref, and it is clamped at 0. What is left,
    :math:`-\sum_y \pi_{ref}(y)\,(2P(y) - 1)\,\sigma(\beta h(y))`, is bounded in h: a completion
    that loses more often than it wins (P < ½) is driven to 0 whatever its reward, and for the
    others :math:`e^h / \sigma'(\beta h) \propto 2P - 1`. For β ≤ 1 that has one solution.
    """
    gain = 2 * win_probability(problem) - 1
    wins = gain > 0

    def log_ratio(level: float) -> np.ndarray:
        low, high = np.full(wins.sum(), -80.0), np.full(wins.sum(), 80.0)
        for _ in range(100):
            h = (low + high) / 2
            slope = np.logaddexp(0, -beta * h) + np.logaddexp(0, beta * h)  # −log σ'(βh)
            above = h + slope > np.log(gain[wins]) + level
            low, high = np.where(above, low, h), np.where(above, h, high)
        return (low + high) / 2

    def excess(level: float) -> float:
        return float(problem.reference[wins] @ np.exp(log_ratio(level))) - 1.0

    policy = np.zeros(len(wins))
    policy[wins] = problem.reference[wins] * np.exp(log_ratio(_root(excess, -40.0, 40.0)))
    return policy / policy.sum()


def best_of_n(problem: Problem, n: int) -> np.ndarray:
    r"""The best of n samples of π_ref, ``(N,)``: where SFT on them ends.

    Of completions with different rewards, y is the best of n with probability
    :math:`F(y)^n - F(y^-)^n`, F the chance of a reward of at most, and below, its own.
    """
    order = np.argsort(problem.rewards)
    upto = problem.reference[order].cumsum() / problem.reference.sum()
    chances = np.empty(len(order))
    chances[order] = np.diff(upto**n, prepend=0.0)
    return chances


def token_by_token(env: TokenMDP, tilt: Tilt) -> np.ndarray:
    """The policy ``(S, A)`` that is ``tilt`` of its own Q = E_π[r | s, a] in every state.

    So ends a method whose penalty at a token has a gradient at that token only: Q is of the reward
    alone, and what later tokens will pay for leaving the reference is not seen. π* would have it in
    Q (`classic_rl.tabular.soft`).
    """
    values = np.zeros(len(env.prefixes))
    values[env.terminal] = env.sequence_rewards
    table = env.reference.copy()
    for state in reversed(np.flatnonzero(~env.terminal)):  # children come after their parents
        q = values[env.children[state]]
        table[state] = tilt(q, env.reference[state])
        values[state] = table[state] @ q
    return table


def reverse_tilt(beta: float) -> Tilt:
    r""":math:`\pi \propto \pi_{ref}\, e^{Q/\beta}`: the penalty's gradient is that of KL(π‖π_ref)
    of the next token, as for k2 in the loss, and for k3 times the ratio."""
    return lambda q, reference: softmax(np.log(reference) + q / beta)


def forward_tilt(beta: float) -> Tilt:
    r""":math:`\pi = \beta \pi_{ref} / (c - Q)`: the gradient of k3 in the loss is that of the
    forward KL(π_ref‖π), :math:`E_\pi[(1 - \pi_{ref}/\pi) \nabla \log \pi]`."""

    def tilt(q: np.ndarray, reference: np.ndarray) -> np.ndarray:
        def excess(level: float) -> float:
            return float((beta * reference / (level - q)).sum()) - 1.0

        # The largest term alone is at least 1 at the left end; all are at most β / β at the right.
        left = float((q + beta * reference).max())
        level = left if excess(left) <= 0 else _root(excess, left, q.max() + beta)
        return beta * reference / (level - q)

    return tilt


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high, xtol=1e-14))  # type: ignore[arg-type]


def in_loss(problem: Problem, tilt: Callable[[float], Tilt], beta: float) -> np.ndarray:
    """π(y) ``(N,)`` of a method with its penalty in the loss."""
    return np.exp(problem.env.sequence_logps(token_by_token(problem.env, tilt(beta))))


def grpo(problem: Problem, group: int, tilt: Callable[[float], Tilt]) -> np.ndarray:
    """Where TRL's GRPO ends with ``loss_type="dr_grpo"`` and ``scale_rewards="none"``, ``(N,)``.

    A group's mean holds the completion's own reward, which shrinks advantages by (G − 1)/G and so
    raises β by the inverse.
    """
    return in_loss(problem, tilt, problem.beta * group / (group - 1))
