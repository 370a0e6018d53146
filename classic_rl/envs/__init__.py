"""Small gymnasium environments. Importing this package registers them:

``classic_rl/GridWorld3x4-v0``, ``classic_rl/GridWorld4x4-v0``, ``classic_rl/TrafficLight-v0``,
``classic_rl/TokenMDP-v0``, ``classic_rl/Recommender-v0`` and ``classic_rl/Bidding-v0``; keyword
arguments of the class can be given to ``gymnasium.make``.
"""

from __future__ import annotations

import gymnasium as gym

from classic_rl.envs.bidding import Bidding, linear_bids
from classic_rl.envs.gridworld import GridWorld
from classic_rl.envs.recommender import Recommender
from classic_rl.envs.tokens import TokenMDP, random_token_mdp
from classic_rl.envs.traffic import FixedCycle, LongestQueue, TrafficLight

__all__ = [
    "Bidding",
    "FixedCycle",
    "GridWorld",
    "LongestQueue",
    "Recommender",
    "TokenMDP",
    "TrafficLight",
    "linear_bids",
    "random_token_mdp",
]

for _name, _entry, _limit, _settings in (
    ("GridWorld3x4", "gridworld:GridWorld", 100, {"layout": "3x4", "slip": 0.2}),
    ("GridWorld4x4", "gridworld:GridWorld", 100, {"layout": "4x4", "step_reward": -0.01}),
    ("TrafficLight", "traffic:TrafficLight", 600, {}),
    ("TokenMDP", "tokens:random_token_mdp", None, {}),
    ("Recommender", "recommender:Recommender", 200, {}),
    ("Bidding", "bidding:Bidding", None, {}),
):
    _id = f"classic_rl/{_name}-v0"
    if _id not in gym.registry:  # Reloading must not register twice.
        gym.register(_id, f"{__name__}.{_entry}", max_episode_steps=_limit, kwargs=_settings)
