"""Q-learning with ε-greedy exploration in one tight loop of plain Python.

The loop of `control.q_learning` with everything inlined: acting takes no call, nor does a step on
an MDP's own table, and max_a Q(S', a) serves both the update and the next greedy choice. It draws
the same numbers and gives the same table, bit for bit (the tests compare them).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import cast

from classic_rl.tabular.experience import Learned, Run
from classic_rl.tabular.exploration import EpsilonGreedy
from classic_rl.tabular.sampling import Simulator


def q_learning(run: Run) -> Learned:
    """Runs ``run``, whose rule is `EpsilonGreedy`, to its end."""
    world, explore = run.world, cast(EpsilonGreedy, run.explore)
    rows = world.rows if isinstance(world, Simulator) else None
    Q, gamma, step, max_steps = run.table, run.gamma, world.step, run.max_steps
    s, draw = run.first_draws()
    q, a = Q[s], explore(Q[s], s, 0, draw)
    t, began, limit, total = 0, 0, max_steps, 0.0
    for block in run.blocks():
        random_actions = explore.random_actions(block.action, block.first + 1, world.n_actions)
        columns = (block.transition, block.alpha, random_actions)
        for u, alpha, chosen in zip(*(column.tolist() for column in columns), strict=True):
            if rows:
                thresholds, outcomes = rows[s][a]
                s2, r, ended = outcomes[bisect_right(thresholds, u)]
            else:
                s2, r, ended = step(s, a, u)
            q2 = Q[s2]
            best = max(q2)
            # Q(S,A) ← Q(S,A) + α [R + γ max_a Q(S',a) − Q(S,A)]   (Sutton & Barto 2018, 6.8)
            q[a] += alpha * (r + gamma * best - q[a])
            total += r
            t += 1
            if ended or t == limit:
                if run.episode_ended(total, t - began, s2):
                    return run.learned()
                total, began, limit = 0.0, t, t + max_steps
                s = world.start(block.restart[t - 1 - block.first])
                q = Q[s]
                best = max(q)
            elif s2 == s:
                best = max(q)  # the update may have changed it
            else:
                s, q = s2, q2
            if chosen >= 0:
                a = chosen
            elif q.count(best) == 1:
                a = q.index(best)
            else:
                a = explore(q, s, t, float(block.action[t - 1 - block.first]))
    return run.learned()
