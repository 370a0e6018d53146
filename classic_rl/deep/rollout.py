"""Collecting rollouts from parallel environments, time-major ``(T, N)``.

With NEXT_STEP autoreset the observation that follows an episode's last step *is* its final
observation, so the value of the state a step led to is always the next row's; the row after an end
is a reset, not a step, and is masked out. Nothing else needs to know about autoreset.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from classic_rl.deep.normalization import RewardScaler
from classic_rl.deep.policies import ActorCritic


@dataclass
class Rollout:
    """T steps of N environments; every tensor begins ``(T, N)``."""

    observations: Tensor  # (T, N, ...), scaled
    actions: Tensor  # (T, N) or (T, N, D), as drawn
    logps: Tensor  # of those actions under the policy that drew them
    values: Tensor  # V of the observations
    next_values: Tensor  # V of the state each step led to, the final observation at an end
    rewards: Tensor
    terminated: Tensor  # bool
    ended: Tensor  # bool: terminated or truncated
    mask: Tensor  # bool: False on the resets between episodes


@dataclass
class Episodes:
    """Finished training episodes in order: env steps taken in all, return, length."""

    steps: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def recent_return(self, last: int = 100) -> float:
        """The mean return of the ``last`` ones; NaN before the first."""
        return float(np.mean(self.returns[-last:] or [np.nan]))


class Stepper:
    """Steps a vector environment and keeps count of its episodes.

    Args:
        envs: a NEXT_STEP vector environment. seed: of the environments and of `rng`.
    """

    def __init__(self, envs: VectorEnv, seed: int) -> None:
        self.envs = envs
        self.episodes = Episodes()
        self.steps = 0  # real environment steps so far
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Begin new episodes everywhere, from ``seed`` alone.

        Environments cannot be saved in general, so a run that checkpoints restarts them there; a
        resumed run restarts from the same seed and goes on equal.
        """
        n_envs = self.envs.num_envs
        self.rng = np.random.default_rng(seed)
        self.observations, _ = self.envs.reset(seed=int(self.rng.integers(2**31)))
        self.resetting = np.zeros(n_envs, dtype=bool)  # the next step is a reset
        self.running_return = np.zeros(n_envs)
        self.running_length = np.zeros(n_envs, dtype=np.int64)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take ``actions`` as the environment counts them; `observations` moves on.

        Returns:
            rewards, terminated, ended (terminated or truncated) and real (no reset), ``(N,)`` each.
        """
        real = ~self.resetting
        self.observations, rewards, terminated, truncated, _ = self.envs.step(actions)
        ended = terminated | truncated
        self.running_return += rewards
        self.running_length += real
        self.steps += int(real.sum())
        if ended.any():
            self._count_episodes(ended)
        self.resetting = ended
        return rewards, terminated, ended, real

    def _count_episodes(self, ended: np.ndarray) -> None:
        for index in np.flatnonzero(ended):
            self.episodes.steps.append(self.steps)
            self.episodes.returns.append(float(self.running_return[index]))
            self.episodes.lengths.append(int(self.running_length[index]))
        self.running_return[ended] = 0.0
        self.running_length[ended] = 0


class Collector(Stepper):
    """A `Stepper` whose actions are a policy's, and whose steps become rollouts.

    Args:
        policy: acts and values. n_steps: T. seed: of the actions drawn, too.
        reward_scaler: applied to the rewards that are learned from; returns are counted unscaled.
    """

    def __init__(
        self,
        envs: VectorEnv,
        policy: ActorCritic,
        n_steps: int,
        seed: int,
        reward_scaler: RewardScaler | None = None,
    ) -> None:
        self.policy, self.n_steps, self.reward_scaler = policy, n_steps, reward_scaler
        super().__init__(envs, seed)

    def restart(self, seed: int) -> None:
        """See `Stepper.restart`."""
        super().restart(seed)
        if self.reward_scaler is not None:
            self.reward_scaler.returns[:] = 0.0

    def collect(self) -> Rollout:
        """Take T steps in every environment."""
        steps: list[tuple[np.ndarray, ...]] = []
        for _ in range(self.n_steps):
            steps.append(self._step())
        observations, actions, logps, values, rewards, terminated, ended, mask = (
            torch.from_numpy(np.stack(column)) for column in zip(*steps, strict=True)
        )
        last = torch.from_numpy(self.policy.values(self._scaled()))
        return Rollout(
            observations=observations,
            actions=actions,
            logps=logps.float(),
            values=values,
            next_values=torch.cat([values[1:], last[None]]),
            rewards=rewards.float(),
            terminated=terminated,
            ended=ended,
            mask=mask,
        )

    def _scaled(self) -> np.ndarray:
        return self.policy.scale(self.observations)

    def _step(self) -> tuple[np.ndarray, ...]:
        policy = self.policy
        if policy.scaler is not None:
            policy.scaler.moments.update(self.observations)
        observations = self._scaled()
        actions, logps, values = policy.act(observations, self.rng)
        rewards, terminated, ended, real = self.step(policy.for_environment(actions))
        if self.reward_scaler is not None:
            rewards = self.reward_scaler(rewards, ended, real)
        return observations, actions, logps, values, rewards, terminated, ended, real
