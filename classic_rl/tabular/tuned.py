"""Settings of the learners that suit each environment. Plain numbers: nothing is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Rate(NamedTuple):
    """A number, or a straight line from ``start`` to ``end`` over ``steps`` steps."""

    start: float
    end: float | None = None
    steps: float | None = None  # None: over the whole training

    def __str__(self) -> str:
        if self.end is None:
            return f"{self.start:g}"
        return f"{self.start:g}:{self.end:g}" + (f":{self.steps:.0f}" if self.steps else "")


@dataclass(frozen=True)
class Tuned:
    """Discount, step size, exploration and length of control."""

    gamma: float = 0.99
    alpha: Rate = Rate(0.1)
    epsilon: Rate = Rate(1, 0.05)
    steps: int | None = 200_000
    episodes: int | None = None
    initial: float = 0.0

    def __str__(self) -> str:
        text = f"gamma {self.gamma:g}, alpha {self.alpha}, epsilon {self.epsilon}"
        text += f", {self.steps:,} steps" if self.steps else f", {self.episodes:,} episodes"
        return text + (f", initial {self.initial:g}" if self.initial else "")


DEFAULT = Tuned()
TUNED = {
    "FrozenLake-v1": Tuned(0.99, Rate(0.2, 0.001), Rate(1, 0.1)),
    "FrozenLake8x8-v1": Tuned(0.999, Rate(0.5, 0.001), Rate(1, 0.1), steps=1_000_000),
    "CliffWalking-v1": Tuned(1.0, Rate(0.5), Rate(0.1), steps=None, episodes=500),
    "CliffWalkingSlippery-v1": Tuned(1.0, Rate(0.2, 0.005), Rate(1, 0.1), steps=300_000),
    "Taxi-v4": Tuned(0.99, Rate(0.5, 0.05), Rate(1, 0.05), steps=500_000),
    "classic_rl/GridWorld3x4-v0": Tuned(0.9, Rate(0.5, 0.01), Rate(1, 0.1), steps=100_000),
    "classic_rl/GridWorld4x4-v0": Tuned(0.95, Rate(0.5), Rate(1, 0.1), steps=20_000),
    "classic_rl/Recommender-v0": Tuned(1.0, Rate(0.02, 0.0005), Rate(1, 0.2), steps=500_000),
    "classic_rl/TokenMDP-v0": Tuned(1.0, Rate(0.5, 0.01), Rate(1, 0.1), steps=50_000),
}
# Without slipping the way to the goal must be found once, and then every step is certain.
DRY_LAKE = Tuned(0.95, Rate(0.5), Rate(0.1), steps=20_000, initial=1.0)
# Lines are tuned to a number of steps; where episodes are counted it is not known.
PLAIN_RATE = Rate(0.1)
# Whole returns vary far more than one-step targets, and an average over all of them remembers
# the first, bad policies for too long.
MONTE_CARLO_ALPHA = Rate(0.02)
# Prediction needs no exploring; small last steps average the noise away.
PREDICTION_STEPS, PREDICTION_ALPHA = 100_000, Rate(0.1, 0.001)


def tuned_for(env_id: str, *, slippery: bool = True) -> Tuned:
    """The settings for a full environment id; FrozenLake also comes without slipping."""
    if env_id.startswith("FrozenLake") and not slippery:
        return DRY_LAKE
    return TUNED.get(env_id, DEFAULT)


def listing() -> list[str]:
    """All tuned settings, a line each, for the help."""
    named = TUNED | {"FrozenLake, is_slippery=false": DRY_LAKE, "any other": DEFAULT}
    return [f"  {name.rpartition('/')[2]}: {tuned}" for name, tuned in named.items()]
