r"""A feed that shows one item after another to one person: minutes now, or a person who stays.

Every item has a share of clickbait c. Clickbait holds the person longer today and leaves them less
satisfied, good content the other way round; whoever is dissatisfied watches less and leaves sooner.
After RecSim's environment ``long_term_satisfaction`` (Ie et al. 2019, arXiv 1909.04847), with
satisfaction in steps, so that the process is a table. The numbers are made up. In life nobody sees
satisfaction: the process is then only partly observed.

With satisfaction s in [0, 1] and an item of clickbait c,

* the person watches :math:`s \, (1 + 6 \sqrt c)` minutes, which is the reward;
* then leaves for good with chance :math:`0.05 + 0.1 (1 - s)`;
* else satisfaction falls a level with chance :math:`c / 2` and rises one with
  :math:`(1 - c) / 2`, as far as there are levels.

The return of an episode is the minutes that the person spent here.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym

from classic_rl.envs.drawing import check_action
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, Outcome, from_function

GAIN = 6.0  # of pure clickbait over pure content, in minutes
LEAVE, LEAVE_SOONER = 0.05, 0.1  # chance to leave when satisfied, and what dissatisfaction adds
MOVE = 0.5  # chance that satisfaction moves at all, where an item pulls one way only


class Recommender(gym.Env):
    """One person's session; the time limit, 200 items, is hardly ever reached.

    Observation: the level of satisfaction, 0 to ``levels`` − 1; ``levels`` stands for having left.
    Action: the item, from 0, all content, to ``items`` − 1, all clickbait.

    Args:
        levels: of satisfaction, at least 2. items: to choose from, at least 2.

    Raises:
        ProblemError: for numbers that cannot be used.
    """

    metadata = {"render_modes": []}

    def __init__(self, *, levels: int = 11, items: int = 5) -> None:
        for name, number in (("levels", levels), ("items", items)):
            if number < 2:
                raise ProblemError(f"{name}: {number} is too few, at least 2")
        self.levels, self.items = levels, items
        self.observation_space = gym.spaces.Discrete(levels + 1)
        self.action_space = gym.spaces.Discrete(items)
        self.state = levels  # nobody is here

    def clickbait(self, item: int) -> float:
        """c of an item."""
        return item / (self.items - 1)

    def outcomes(self, level: int, item: int) -> list[Outcome]:
        """(probability, next state, minutes) of all that can follow."""
        satisfied, bait = level / (self.levels - 1), self.clickbait(item)
        minutes = satisfied * (1 + GAIN * math.sqrt(bait))
        leave = LEAVE + LEAVE_SOONER * (1 - satisfied)
        down, up = MOVE * bait, MOVE * (1 - bait)
        stay = 1 - leave
        return [
            (leave, self.levels, minutes),
            (stay * down, max(level - 1, 0), minutes),
            (stay * up, min(level + 1, self.levels - 1), minutes),
            (stay * (1 - down - up), level, minutes),
        ]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.levels // 2
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if self.state == self.levels:
            raise gym.error.ResetNeeded("nobody is here: call reset() first")
        check_action(action, self.items)
        chances, following, minutes = zip(*self.outcomes(self.state, action), strict=True)
        self.state = following[int(self.np_random.choice(len(chances), p=chances))]
        return self.state, minutes[0], self.state == self.levels, False, {}

    def mdp(self, gamma: float) -> MDP:
        """The exact process, without the time limit."""
        return from_function(
            self.outcomes, self.levels + 1, self.items, gamma,
            start=self.levels // 2, terminal=[self.levels],
        )  # fmt: skip
