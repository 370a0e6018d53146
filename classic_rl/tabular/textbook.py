"""Small problems of Sutton & Barto (2018) that gymnasium lacks, as they stand in the book."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from classic_rl.envs.gridworld import MOVES
from classic_rl.mdp import MDP, from_function
from classic_rl.pictures.grids import Grid


def example_3_5() -> tuple[Grid, MDP]:
    """Sutton & Barto 2018, example 3.5: any move from A pays 10 and leads to A', from B 5 and to
    B'; leaving the grid costs 1 and stays."""
    cells = np.array([divmod(state, 5) for state in range(25)])
    jumps = {1: (21, 10.0), 3: (13, 5.0)}

    def outcomes(state: int, action: int) -> list[tuple[float, int, float]]:
        if state in jumps:
            return [(1.0, *jumps[state])]
        row, column = cells[state] + MOVES[action]
        inside = 0 <= row < 5 and 0 <= column < 5
        return [(1.0, 5 * row + column, 0.0) if inside else (1.0, state, -1.0)]

    return Grid((5, 5), cells, MOVES), from_function(outcomes, 25, 4, 0.9)


def random_walk(n: int, left: float = 0.0) -> MDP:
    """A walk over n states to either side with equal chance; leaving to the right pays 1 and to
    the left ``left`` (Sutton & Barto 2018, examples 6.2 and 7.1)."""
    return from_function(
        lambda s, a: [(0.5, s - 1, left * (s == 1)), (0.5, s + 1, float(s == n))],
        n + 2, 1, 1.0, start=(n + 1) // 2, terminal=[0, n + 1],
    )  # fmt: skip


class MaximisationBias(gym.Env):
    """Example 6.7: from A (0), right (1) ends with 0; left (0) leads to B (1), whose ten actions
    all end with a reward drawn from N(−0.1, 1)."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        if self.state == 0:
            self.state = 1
            return 1, 0.0, action == 1, False, {}
        return 1, self.np_random.normal(-0.1, 1.0), True, False, {}
