"""The best policy of a run, kept for when training loses it again.

A policy that was good can be forgotten within a few updates, by DQN above all, and what a run ends
with is then not what it found. How good one is, is judged by the last training episodes, which
costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

RECENT = 20  # episodes: fewer than a curve's, as it must be seen before a policy is another
FALL = 0.2  # of the way from the worst to the best: a run that ends further below has lost it


@dataclass
class Best:
    """The policy with the best mean of its last training episodes so far.

    Attributes:
        steps: environment steps after which it was there; 0 before there is any.
        episode_return: that mean. worst: the lowest so far, last: the latest.
        tensors: the policy's.
    """

    steps: int = 0
    episode_return: float = -math.inf
    worst: float = math.inf
    last: float = math.nan
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def look_at(self, steps: int, episode_return: float, tensors: Mapping[str, Tensor]) -> None:
        """Keep a copy of ``tensors`` where they did better than all before."""
        if math.isnan(episode_return):
            return
        self.last, self.worst = episode_return, min(self.worst, episode_return)
        if episode_return > self.episode_return:
            self.steps, self.episode_return = steps, episode_return
            self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    @property
    def fell(self) -> bool:
        """Whether the run went on to end well below it."""
        return self.well_below(self.episode_return, self.last)

    def well_below(self, high: float, low: float) -> bool:
        """Whether from ``high`` to ``low`` is a fall, measured by what the run has learned."""
        return high - low > FALL * (high - self.worst) > 0

    def state(self) -> dict[str, Any]:
        """All but the tensors, as JSON has it."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "tensors" and (isinstance(value, int) or math.isfinite(value))
        }
