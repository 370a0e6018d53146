"""Running statistics of observations and rewards (Huang et al. 2022, continuous details 5-8)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class RunningMoments:
    """Mean and variance of all rows seen, by Chan et al.'s parallel update.

    Args:
        shape: the shape of one row.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)
        self.count = 1e-4  # the prior of mean 0 and variance 1 is gone after the first batch

    def update(self, rows: np.ndarray) -> None:
        """Take ``(N, *shape)`` rows in."""
        if not len(rows):
            return
        mean, variance, count = rows.mean(0), rows.var(0), len(rows)
        total = self.count + count
        delta = mean - self.mean
        spread = self.variance * self.count + variance * count
        self.variance = (spread + delta**2 * self.count * count / total) / total
        self.mean = self.mean + delta * count / total
        self.count = total

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, as arrays."""
        return {
            "mean": np.array(self.mean),
            "variance": np.array(self.variance),
            "count": np.array(self.count),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Undo `state`."""
        self.mean, self.variance = np.array(state["mean"]), np.array(state["variance"])
        self.count = float(state["count"])


class ObservationScaler:
    """Observations shifted and scaled to zero mean and unit variance, clipped to ±``clip``."""

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        self.moments, self.clip = RunningMoments(shape), clip

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Scale ``(N, *shape)`` by the statistics as they stand, float32."""
        scaled = (observations - self.moments.mean) / np.sqrt(self.moments.variance + 1e-8)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


class RewardScaler:
    """Rewards divided by the standard deviation of the running discounted return.

    Not shifted: a shift would change which policy is best (it pays for staying alive).
    """

    def __init__(self, n_envs: int, gamma: float, clip: float = 10.0) -> None:
        self.moments, self.gamma, self.clip = RunningMoments(), gamma, clip
        self.returns = np.zeros(n_envs)

    def __call__(self, rewards: np.ndarray, ended: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Update by one step of every environment, then scale; all ``(N,)``.

        ``real`` is False where the step was a reset, which has no return.
        """
        self.returns = self.returns * self.gamma + rewards
        self.moments.update(self.returns[real])
        self.returns[ended] = 0.0
        return np.clip(rewards / np.sqrt(self.moments.variance + 1e-8), -self.clip, self.clip)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs; it begins new episodes, whose returns start at 0."""
        return {name: torch.from_numpy(array) for name, array in self.moments.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.moments.restore({name: tensor.numpy() for name, tensor in state.items()})
