r"""Bidding for advertising space: a budget, and auctions that cost what the next bidder offers.

A campaign has T auctions and a budget of B. Each auction shows an impression of a known worth, in
expected clicks, and is a second-price auction: a bid of at least the market price m wins, and pays
m. What is spent now is missing later. After Cai et al. (2017), *Real-time bidding by reinforcement
learning in display advertising* (arXiv 1701.02490, section 3): the same state, action, reward and
dynamics, with three worths and whole prices, so that its dynamic programme is exact. The numbers
are made up; the worths are clicks in a hundred impressions.

With t auctions and a budget b left, and W their value before the worth is known (W is 0 at t = 0),

.. math:: W_t(b) = E_v \max_a \Big[ \sum_{m \le \min(a, b)} p(m) \, (v + W_{t-1}(b - m))
          + P(m > \min(a, b)) \, W_{t-1}(b) \Big]

so the best bid is the highest price at which :math:`v \ge W_{t-1}(b) - W_{t-1}(b - m)`: an
impression is worth buying while it brings more than its price would bring later.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import gymnasium as gym
import numpy as np

from classic_rl.envs.drawing import check_action
from classic_rl.errors import ProblemError

WORTHS, CHANCES = np.array([1.0, 2.0, 5.0]), np.array([0.6, 0.3, 0.1])
HIGHEST = 10  # market price; prices 1 to this
# Cheap prices are likelier: 10/55 for a price of 1, down to 1/55 for one of 10.
PRICES = np.arange(HIGHEST, 0, -1) / (HIGHEST * (HIGHEST + 1) / 2)
# Where in [0, 1) the draws of one outcome end.
KINDS_UP_TO, PRICES_UP_TO = (odds.cumsum()[:-1].tolist() for odds in (CHANCES, PRICES))


class Bidding(gym.Env):
    """A campaign; it ends when no auction or no budget is left.

    Observation, float32 ``(3,)`` in [0, 1]: auctions left / T, budget left / B, the impression's
    worth / 5. Action: the bid, 0 (none) to 10; more than the budget left counts as all of it.
    Reward: the worth of an impression that was won. Info: ``paid``, the price, 0 if it was lost.

    Args:
        auctions: T. budget: B, a whole number.

    Raises:
        ProblemError: for numbers that cannot be used.
    """

    metadata = {"render_modes": []}

    def __init__(self, *, auctions: int = 60, budget: int = 60) -> None:
        for name, number in (("auctions", auctions), ("budget", budget)):
            if number < 1 or number != int(number):
                raise ProblemError(f"{name}: {number} is not a whole number of at least 1")
        self.auctions, self.budget = int(auctions), int(budget)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(HIGHEST + 1)
        self.left, self.purse, self.kind = 0, 0, 0

    def observation(self, left: Any, purse: Any, kind: Any) -> np.ndarray:
        """``(3, ...)``, of numbers or of arrays of one shape."""
        parts = [left / self.auctions, purse / self.budget, WORTHS[kind] / WORTHS[-1]]
        return np.array(parts, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.purse = self.auctions, self.budget
        return self._next()

    def _next(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.kind = bisect_right(KINDS_UP_TO, self.np_random.random())
        return self.observation(self.left, self.purse, self.kind), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.left == 0 or self.purse == 0:
            raise gym.error.ResetNeeded("the campaign is over: call reset() first")
        check_action(action, HIGHEST + 1)
        price = 1 + bisect_right(PRICES_UP_TO, self.np_random.random())
        won = min(action, self.purse) >= price
        reward = float(WORTHS[self.kind]) if won else 0.0
        self.left, self.purse = self.left - 1, self.purse - (price if won else 0)
        observation, info = self._next()
        ended = self.left == 0 or self.purse == 0
        return observation, reward, ended, False, info | {"paid": price if won else 0}

    def plan(self, bids: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        """Backward induction: the optimum, or what given bids are worth.

        Args:
            bids: ``(T, B + 1, 3)``, by auctions left − 1, budget left and kind of impression;
                anything that broadcasts to it. None: the best.

        Returns:
            the expected clicks of a campaign, and the bids.
        """
        shape = (self.auctions, self.budget + 1, len(WORTHS))
        made = np.zeros(shape, dtype=int) if bids is None else np.broadcast_to(bids, shape)
        after = np.zeros(self.budget + 1)  # W_{t-1}, by budget
        purses = np.arange(self.budget + 1)
        for t in range(self.auctions):
            # What winning adds, by price, budget and kind, and the sum of it up to each bid.
            rest = purses - np.arange(1, HIGHEST + 1)[:, None]
            gain = WORTHS + (after[np.maximum(rest, 0)] - after)[:, :, None]
            gain = np.where(rest[:, :, None] >= 0, gain * PRICES[:, None, None], 0.0)
            worth = np.concatenate([np.zeros((1, *shape[1:])), gain.cumsum(axis=0)])
            if bids is None:
                made[t] = worth.argmax(axis=0)
            after = after + np.take_along_axis(worth, made[t][None], axis=0)[0] @ CHANCES
        return float(after[-1]), made


def linear_bids(rate: float) -> np.ndarray:
    """``(3,)``: bid the same times the worth at all times, what most programs did before."""
    return np.minimum(np.rint(rate * WORTHS), HIGHEST).astype(int)
