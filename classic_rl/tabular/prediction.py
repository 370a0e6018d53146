r"""Prediction: the value of a given policy, learned from episodes.

With G the return, every method moves V(S) towards a target; they differ in how much of the target
was really seen and how much is the current estimate (Sutton & Barto 2018, chapters 5, 6, 7, 12).

A policy does not change while it is evaluated, so an episode is gathered first and learned from
afterwards, its steps in order; the numbers are those of learning on the go. An episode's last state
closes every target: a terminal state has a fixed value, and the state at which an episode was
truncated counts with its current estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.schedules import Schedule
from classic_rl.tabular.experience import Options, Prediction, Run, at_least
from classic_rl.tabular.sampling import Environment

# States S_0 ... S_T, rewards R_1 ... R_T and the step sizes that go with them.
Episode = tuple[list[int], list[float], list[float]]


def monte_carlo_prediction(
    env: Environment,
    policy: np.ndarray,
    *,
    alpha: float | Schedule | None = None,
    **options: Unpack[Options],
) -> Prediction:
    """First-visit Monte Carlo (Sutton & Barto 2018, section 5.1 and equation 6.1).

    Args:
        env: a gymnasium environment with discrete spaces, or an MDP.
        policy: int ``(S,)`` or float ``(S, A)``.
        alpha: step size in (0, 1]; None averages, 1 / number of visits.
        options: see `Options`.

    Raises:
        ProblemError: for continuous spaces or options out of range.
    """
    run = Run(env, policy, 1.0 if alpha is None else alpha, columns=1, **options)
    V, gamma = run.table, run.gamma
    visits = [0] * len(V)
    for states, rewards, alphas in _episodes(run):
        first_visit = {s: t for t, s in reversed(list(enumerate(states[:-1])))}
        G = V[states[-1]]
        for t in reversed(range(len(rewards))):
            s, G = states[t], rewards[t] + gamma * G
            if first_visit[s] == t:
                visits[s] += 1
                step_size = 1 / visits[s] if alpha is None else alphas[t]
                # V(S) ← V(S) + α [G − V(S)]   (6.1)
                V[s] += step_size * (G - V[s])
    return run.prediction()


def td0(
    env: Environment,
    policy: np.ndarray,
    *,
    alpha: float | Schedule,
    **options: Unpack[Options],
) -> Prediction:
    """TD(0) (Sutton & Barto 2018, section 6.1). Arguments as for `monte_carlo_prediction`."""
    run = Run(env, policy, alpha, columns=1, **options)
    V, gamma = run.table, run.gamma
    for s, _, r, s2, _, _, step_size in run.transitions():
        # V(S) ← V(S) + α [R + γ V(S') − V(S)]   (6.2)
        V[s] += step_size * (r + gamma * V[s2] - V[s])
    return run.prediction()


def n_step_td(
    env: Environment,
    policy: np.ndarray,
    *,
    n: int,
    alpha: float | Schedule,
    **options: Unpack[Options],
) -> Prediction:
    """n-step TD (Sutton & Barto 2018, section 7.1).

    Args:
        n: rewards in each target; 1 is TD(0). The rest as for `monte_carlo_prediction`.
    """
    at_least("n", 1, n)
    run = Run(env, policy, alpha, columns=1, **options)
    V, gamma = run.table, run.gamma
    for states, rewards, alphas in _episodes(run):
        for t, s in enumerate(states[:-1]):
            h = min(t + n, len(rewards))
            # G_{t:h} = R_{t+1} + γ R_{t+2} + ... + γ^{h−t} V(S_h)   (7.1)
            G = V[states[h]]
            for r in reversed(rewards[t:h]):
                G = r + gamma * G
            # V(S_t) ← V(S_t) + α [G_{t:h} − V(S_t)]   (7.2)
            V[s] += alphas[t] * (G - V[s])
    return run.prediction()


def td_lambda(
    env: Environment,
    policy: np.ndarray,
    *,
    lam: float,
    alpha: float | Schedule,
    **options: Unpack[Options],
) -> Prediction:
    """TD(λ) with accumulating traces (Sutton & Barto 2018, section 12.2).

    Args:
        lam: λ in [0, 1]; 0 is TD(0), 1 close to Monte Carlo. The rest as for
            `monte_carlo_prediction`.
    """
    if not 0 <= lam <= 1:
        raise ProblemError(f"lam: {lam} is outside [0, 1]")
    run = Run(env, policy, alpha, columns=1, **options)
    V, gamma = run.table, run.gamma
    for states, rewards, alphas in _episodes(run):
        trace: dict[int, float] = {}
        for s, r, s2, step_size in zip(states, rewards, states[1:], alphas, strict=False):
            # z ← γλ z, and z(S) ← z(S) + 1   (12.5)
            trace = {x: gamma * lam * z for x, z in trace.items()}
            trace[s] = trace.get(s, 0.0) + 1
            # δ = R + γ V(S') − V(S)   (12.6)
            delta = r + gamma * V[s2] - V[s]
            for x, z in trace.items():
                # V ← V + α δ z   (12.7)
                V[x] += step_size * delta * z
    return run.prediction()


def _episodes(run: Run) -> Iterator[Episode]:
    """The run's episodes, whole; one cut off by the end of the training is left out."""
    states: list[int] = []
    rewards: list[float] = []
    alphas: list[float] = []
    for s, _, r, s2, _, ended, step_size in run.transitions():
        states.append(s)
        rewards.append(r)
        alphas.append(step_size)
        if ended:
            yield [*states, s2], rewards, alphas
            states, rewards, alphas = [], [], []
