"""The small pieces of PPO that keep state between rollouts."""

from __future__ import annotations

import math


class KLController:
    """β, fixed or steered towards a target KL (Ziegler et al. 2019, section 2.2).

    .. math:: e = \\mathrm{clip}(KL / target - 1, -0.2, 0.2),\\quad \\beta \\leftarrow
              \\beta (1 + e\\, n / horizon)
    """

    def __init__(self, coefficient: float, target: float | None, horizon: float) -> None:
        """``target`` None is a fixed coefficient; ``horizon`` counts episodes."""
        self.coefficient = coefficient
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Steer by the mean KL per completion (nats) of ``episodes`` new completions."""
        if self.target is not None:
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            self.coefficient *= 1.0 + error * episodes / self.horizon


class RunningDeviation:
    """Running standard deviation of all scores so far (Chan et al.'s parallel update)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0

    def update(self, count: float, total: float, total_squares: float) -> None:
        """Take in ``count`` scores given by their sum and their sum of squares."""
        if count <= 0:
            return
        mean = total / count
        squares = max(total_squares - count * mean * mean, 0.0)
        delta, merged = mean - self.mean, self.count + count
        self.squares += squares + delta * delta * self.count * count / merged
        self.mean += delta * count / merged
        self.count = merged

    @property
    def value(self) -> float:
        """The (population) deviation; 1 before there is any spread."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 1e-6 else 1.0
