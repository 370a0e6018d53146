r"""Control: a good policy, learned from experience alone.

Every function has the same shape. `Run.transitions` acts and yields
``(S, A, R, S', A', ended, α)``; the body of the loop is the method's update rule. The row of a
terminal state is fixed, and truncation leads to an ordinary state, so :math:`R + \gamma \ldots`
needs no special case (see `classic_rl.tabular.sampling`).
"""

from __future__ import annotations

import random
from typing import Unpack

from classic_rl.errors import ProblemError
from classic_rl.schedules import Schedule
from classic_rl.tabular import tight
from classic_rl.tabular.experience import Learned, Options, Run
from classic_rl.tabular.exploration import EpsilonGreedy, Explore, ExploreWithProbabilities
from classic_rl.tabular.sampling import Environment


def monte_carlo_control(
    env: Environment,
    *,
    explore: Explore,
    alpha: float | Schedule | None = None,
    **options: Unpack[Options],
) -> Learned:
    """On-policy first-visit Monte-Carlo control (Sutton & Barto 2018, section 5.4).

    Args:
        env: a gymnasium environment with discrete spaces, or an MDP.
        explore: how actions are chosen; it should try every action for ever.
        alpha: step size in (0, 1]; None averages, 1 / number of visits.
        options: see `Options`.

    Raises:
        ProblemError: for continuous spaces or options out of range.
    """
    run = Run(env, explore, 1.0 if alpha is None else alpha, **options)
    Q, gamma = run.table, run.gamma
    visits = [[0] * len(row) for row in Q]
    episode: list[tuple[int, int, float, float]] = []
    for s, a, r, s2, _, ended, step_size in run.transitions():
        episode.append((s, a, r, step_size))
        if not ended:
            continue
        first_visit = {(s, a): t for t, (s, a, *_) in reversed(list(enumerate(episode)))}
        G = max(Q[s2])  # fixed in a terminal state; the estimate where the episode was truncated
        for t, (s, a, r, step_size) in reversed(list(enumerate(episode))):
            G = r + gamma * G
            if first_visit[s, a] == t:
                visits[s][a] += 1
                step_size = 1 / visits[s][a] if alpha is None else step_size
                # Q(S,A) ← Q(S,A) + α [G − Q(S,A)]
                Q[s][a] += step_size * (G - Q[s][a])
        episode = []
    return run.learned()


def sarsa(
    env: Environment,
    *,
    explore: Explore,
    alpha: float | Schedule,
    **options: Unpack[Options],
) -> Learned:
    """SARSA, on-policy TD control (Sutton & Barto 2018, section 6.4).

    Args:
        env: a gymnasium environment with discrete spaces, or an MDP.
        explore: how actions are chosen.
        alpha: step size in (0, 1].
        options: see `Options`.

    Raises:
        ProblemError: for continuous spaces or options out of range.
    """
    run = Run(env, explore, alpha, look_ahead=True, **options)
    Q, gamma = run.table, run.gamma
    for s, a, r, s2, a2, _, step_size in run.transitions():
        # Q(S,A) ← Q(S,A) + α [R + γ Q(S',A') − Q(S,A)]   (6.7)
        Q[s][a] += step_size * (r + gamma * Q[s2][a2] - Q[s][a])
    return run.learned()


def expected_sarsa(
    env: Environment,
    *,
    explore: ExploreWithProbabilities,
    alpha: float | Schedule,
    **options: Unpack[Options],
) -> Learned:
    """Expected SARSA (Sutton & Barto 2018, section 6.6). Arguments as for `sarsa`.

    Args:
        explore: how actions are chosen; it must know its own probabilities.
    """
    if not isinstance(explore, ExploreWithProbabilities):
        raise ProblemError(
            "explore: expected SARSA needs a rule with probabilities(q_row, state, step), "
            "such as EpsilonGreedy, Softmax or UCB"
        )
    run = Run(env, explore, alpha, **options)
    Q, gamma = run.table, run.gamma
    probabilities = run.explore.probabilities  # type: ignore[attr-defined]
    for step, (s, a, r, s2, _, _, step_size) in enumerate(run.transitions(), 1):
        policy = probabilities(Q[s2], s2, step)
        expected = sum(p * q for p, q in zip(policy, Q[s2], strict=True))
        # Q(S,A) ← Q(S,A) + α [R + γ Σ_a π(a|S') Q(S',a) − Q(S,A)]   (6.9)
        Q[s][a] += step_size * (r + gamma * expected - Q[s][a])
    return run.learned()


def q_learning(
    env: Environment,
    *,
    explore: Explore,
    alpha: float | Schedule,
    compiled: bool = False,
    **options: Unpack[Options],
) -> Learned:
    """Q-learning, off-policy TD control (Watkins 1989; Sutton & Barto 2018, section 6.5).

    With ε-greedy exploration the loop below is run by `tight`, which gives the same numbers bit
    for bit, sooner.

    Args:
        env: a gymnasium environment with discrete spaces, or an MDP.
        explore: how actions are chosen.
        alpha: step size in (0, 1].
        compiled: run the loop in numba; for an MDP, ε-greedy and ``steps``. Same numbers again.
        options: see `Options`.

    Raises:
        ProblemError: for continuous spaces or options out of range.
    """
    run = Run(env, explore, alpha, **options)
    if compiled:
        from classic_rl.tabular import compiled_learning

        return compiled_learning.q_learning(run)
    if isinstance(run.explore, EpsilonGreedy):
        return tight.q_learning(run)
    Q, gamma = run.table, run.gamma
    for s, a, r, s2, _, _, step_size in run.transitions():
        # Q(S,A) ← Q(S,A) + α [R + γ max_a Q(S',a) − Q(S,A)]   (6.8)
        Q[s][a] += step_size * (r + gamma * max(Q[s2]) - Q[s][a])
    return run.learned()


def double_q_learning(
    env: Environment,
    *,
    explore: Explore,
    alpha: float | Schedule,
    **options: Unpack[Options],
) -> Learned:
    """Double Q-learning (van Hasselt 2010; Sutton & Barto 2018, section 6.7).

    One table picks the best next action and the other values it, so that noise is not mistaken
    for value. Exploration and the result use the mean of both. Arguments as for `sarsa`.
    """
    run = Run(env, explore, alpha, **options)
    Q, gamma = run.table, run.gamma
    Q_a, Q_b = [row[:] for row in Q], [row[:] for row in Q]
    coin = random.Random(options["seed"]).random
    for s, a, r, s2, _, _, step_size in run.transitions():
        Q1, Q2 = (Q_a, Q_b) if coin() < 0.5 else (Q_b, Q_a)
        best = Q1[s2].index(max(Q1[s2]))
        # Q1(S,A) ← Q1(S,A) + α [R + γ Q2(S', argmax_a Q1(S',a)) − Q1(S,A)]   (6.10)
        Q1[s][a] += step_size * (r + gamma * Q2[s2][best] - Q1[s][a])
        Q[s][a] = (Q1[s][a] + Q2[s][a]) / 2
    return run.learned()
