"""Q-learning's loop as a numba kernel: an option, for very many steps on an MDP's own table.

The same loop as in `tight`, with the same draws and the same numbers bit for bit.
"""

from __future__ import annotations

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.tabular.experience import Learned, Run
from classic_rl.tabular.exploration import EpsilonGreedy
from classic_rl.tabular.sampling import Simulator

try:
    from numba import njit
except ImportError as error:
    raise ProblemError("compiled=True needs numba: pip install numba") from error


def q_learning(run: Run) -> Learned:
    """Runs ``run`` to its end.

    Raises:
        ProblemError: unless it is on an MDP, ε-greedy and counted in steps.
    """
    world, explore = run.world, run.explore
    if not isinstance(world, Simulator) or not isinstance(explore, EpsilonGreedy):
        raise ProblemError("compiled: needs an MDP (see mdp.from_gymnasium) and EpsilonGreedy")
    if run.steps is None:
        raise ProblemError("compiled: needs steps, not episodes")
    table = world.arrays()
    model = (table.thresholds, table.next_state, table.reward, table.ended)
    s, draw = run.first_draws()
    place = np.array([s, explore(run.table[s], s, 0, draw), 0])  # S, A, steps of the episode so far
    total = np.zeros(1)
    Q = run.table = np.array(run.table)
    for block in run.blocks():
        count = len(block.action)
        random_actions = explore.random_actions(block.action, block.first + 1, world.n_actions)
        epsilons = explore.epsilon.over(block.first + 1, count)
        draws = (*block[1:], random_actions, epsilons, world.starts(block.restart))
        totals, lengths, last = np.empty(count), np.empty(count, int), np.empty(count, int)
        ended = _steps(
            Q, *model, run.gamma, run.max_steps, *draws, place, total, totals, lengths, last
        )
        for episode in range(ended):
            run.episode_ended(float(totals[episode]), int(lengths[episode]), int(last[episode]))
    return run.learned()


@njit(cache=True)
def _steps(
    Q, thresholds, next_state, reward, ends, gamma, max_steps,
    draws, transitions, restarts, alphas, random_actions, epsilons, starts,
    place, total, totals, lengths, last,
):  # fmt: skip
    """One block of steps; returns how many episodes ended and describes them in the last three."""
    n_actions, n_thresholds = Q.shape[1], thresholds.shape[1]
    s, a, length = place
    G, episodes = total[0], 0
    for t in range(len(alphas)):
        pair, k = s * n_actions + a, 0
        while k < n_thresholds and thresholds[pair, k] <= transitions[t]:
            k += 1
        s2, r = next_state[pair, k], reward[pair, k]
        best = Q[s2, 0]
        for other in range(1, n_actions):
            best = max(best, Q[s2, other])
        # Q(S,A) ← Q(S,A) + α [R + γ max_a Q(S',a) − Q(S,A)]   (Sutton & Barto 2018, 6.8)
        Q[s, a] += alphas[t] * (r + gamma * best - Q[s, a])
        G += r
        length += 1
        if ends[pair, k] or length == max_steps:
            totals[episodes], lengths[episodes], last[episodes] = G, length, s2
            episodes += 1
            G, length, s2 = 0.0, 0, starts[t]
        s, a = s2, random_actions[t]
        if a < 0:
            best, ties = Q[s, 0], 1
            for other in range(1, n_actions):
                if Q[s, other] > best:
                    best, ties = Q[s, other], 1
                elif Q[s, other] == best:
                    ties += 1
            # Among the best, number floor(ties · uniform), as exploration.random_best does.
            skip = int((draws[t] - epsilons[t]) / (1 - epsilons[t]) * ties) if ties > 1 else 0
            for a in range(n_actions):  # noqa: B007
                if Q[s, a] == best:
                    if skip == 0:
                        break
                    skip -= 1
    place[0], place[1], place[2], total[0] = s, a, length, G
    return episodes
