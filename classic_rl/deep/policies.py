r"""Policies: an actor with its critic, and an action-value network.

Each acts on numpy observations ``(N, ...)``: with a generator it explores, without one it is
greedy. Discrete actions are softmax, continuous ones a diagonal Gaussian whose standard deviation
does not depend on the state; what leaves the distribution is stored and scored as it is, and only
the environment sees it moved to the action space's scale and clipped to its bounds (Huang et al.
2022, continuous details 1 to 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from classic_rl.deep.networks import Activation, NumpyMLP, body, orthogonal
from classic_rl.deep.normalization import ObservationScaler
from classic_rl.errors import ProblemError
from classic_rl.losses import categorical_entropy, gaussian_entropy

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Acted(NamedTuple):
    """What acting on ``(N, ...)`` observations gives."""

    actions: np.ndarray  # (N,) int, or (N, D) float before clipping
    logps: np.ndarray  # (N,)
    values: np.ndarray  # (N,)


class ActorCritic(nn.Module):
    r"""A policy :math:`\pi(a|s)` and its value :math:`V(s)`.

    Vectors get a network each; images share the convolutional body.

    Args:
        observation_space: a Box of vectors or images.
        action_space: Discrete or a Box of vectors.
        hidden: widths of the hidden layers. activation: behind each of them.
        log_std: start of the Gaussian's log standard deviation, in units of half the action range.
        normalize: keep running statistics of the observations and scale by them.
    """

    kind = "actor-critic"

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        log_std: float = 0.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "hidden": list(hidden),
            "activation": activation,
            "log_std": log_std,
            "normalize": normalize,
        }
        self.observation_space, self.action_space = observation_space, action_space
        if isinstance(action_space, gym.spaces.Discrete):
            outputs = int(action_space.n)
        elif isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1:
            outputs = action_space.shape[0]
            self.log_std = nn.Parameter(torch.full((outputs,), log_std))
        else:
            raise ProblemError(f"actions are {action_space}: they must be Discrete or a vector Box")
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        shape = observation_space.shape or ()
        self.scaler = ObservationScaler(shape) if normalize else None
        self.actor_body, features = body(observation_space, hidden, activation)
        self.shares_body = len(shape) == 3
        # Images share one body; registered twice it could not be saved.
        self.critic_body = (
            None if self.shares_body else body(observation_space, hidden, activation)[0]
        )
        # A small gain makes the first policy near uniform, so that everything is tried.
        self.actor_head = orthogonal(nn.Linear(features, outputs), 0.01)
        self.critic_head = orthogonal(nn.Linear(features, 1), 1.0)
        self._actor = NumpyMLP(self.actor_body, self.actor_head)
        self._critic = NumpyMLP(self.critic_body or self.actor_body, self.critic_head)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits or means ``(N, A)`` and values ``(N,)`` of (scaled) observations."""
        features = self.actor_body(observations)
        of_critic = features if self.critic_body is None else self.critic_body(observations)
        return self.actor_head(features), self.critic_head(of_critic).squeeze(-1)

    def log_probs(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of ``actions`` and entropy, ``(N,)`` each, from `forward`'s outputs."""
        if self.discrete:
            logps = torch.log_softmax(outputs, -1)
            return logps.gather(-1, actions[:, None]).squeeze(-1), categorical_entropy(logps)
        z = (actions - outputs) * torch.exp(-self.log_std)
        logps = (-0.5 * z.square() - self.log_std - LOG_SQRT_2PI).sum(-1)
        return logps, gaussian_entropy(self.log_std).expand(len(actions))

    def scale(self, observations: np.ndarray) -> np.ndarray:
        """Observations as the networks want them: float32, normalised where that is on."""
        if self.scaler is not None:
            return self.scaler(observations)
        keep = observations.dtype in (np.float32, np.uint8, np.bool_)
        return observations if keep else observations.astype(np.float32)

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> Acted:
        """Act on scaled observations ``(N, ...)``: sampled with ``rng``, the mode without."""
        outputs, values = self._numpy_forward(observations)
        if self.discrete:
            logps = outputs - outputs.max(-1, keepdims=True)
            logps -= np.log(np.exp(logps).sum(-1, keepdims=True))
            # Gumbel's trick: the arg-max of perturbed log-probabilities is a sample.
            noisy = logps if rng is None else logps + rng.gumbel(size=logps.shape)
            actions = noisy.argmax(-1)
            return Acted(actions, logps[np.arange(len(actions)), actions], values)
        log_std = self.log_std.detach().numpy()
        z = (
            np.zeros_like(outputs)
            if rng is None
            else rng.standard_normal(outputs.shape, np.float32)
        )
        logps = (-0.5 * z**2 - log_std - LOG_SQRT_2PI).sum(-1)
        return Acted(outputs + z * np.exp(log_std), logps, values)

    def for_environment(self, actions: np.ndarray) -> np.ndarray:
        """Actions as the environment takes them: shifted, or moved to its range and clipped."""
        if isinstance(self.action_space, gym.spaces.Discrete):
            return actions + int(self.action_space.start)
        space = self.action_space
        assert isinstance(space, gym.spaces.Box)
        bounded = np.isfinite(space.low) & np.isfinite(space.high)
        middle = np.where(bounded, (space.low + space.high) / 2, 0.0)
        half = np.where(bounded, (space.high - space.low) / 2, 1.0)
        return np.clip(middle + half * actions, space.low, space.high).astype(space.dtype)

    def values(self, observations: np.ndarray) -> np.ndarray:
        """V of scaled observations, ``(N,)``."""
        return self._numpy_forward(observations)[1]

    def _numpy_forward(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.shares_body:  # images: convolutions are torch's
            with torch.no_grad():
                outputs, values = self(torch.from_numpy(observations))
            return outputs.numpy(), values.numpy()
        return self._actor(observations), self._critic(observations)[:, 0]


class QNetwork(nn.Module):
    r"""Action values :math:`Q(s, a)`, optionally dueling.

    Dueling (Wang et al. 2016, equation 9): :math:`Q = V + A - \mathrm{mean}_a A`, two heads over
    one body.
    """

    kind = "q-network"

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: Activation = "relu",
        dueling: bool = False,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "hidden": list(hidden),
            "activation": activation,
            "dueling": dueling,
        }
        if not isinstance(action_space, gym.spaces.Discrete):
            raise ProblemError(
                f"actions are {action_space}: action values need Discrete ones; "
                "use ppo for continuous actions"
            )
        self.observation_space, self.action_space = observation_space, action_space
        self.body, features = body(observation_space, hidden, activation)
        self.advantage = orthogonal(nn.Linear(features, int(action_space.n)), 1.0)
        self.value = orthogonal(nn.Linear(features, 1), 1.0) if dueling else None
        self._advantage = NumpyMLP(self.body, self.advantage)
        self._value = NumpyMLP(self.body, self.value) if self.value is not None else None

    def forward(self, observations: Tensor) -> Tensor:
        """Action values ``(N, A)``."""
        features = self.body(observations)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(-1, keepdim=True)

    def scale(self, observations: np.ndarray) -> np.ndarray:
        """Observations as the network wants them."""
        keep = observations.dtype in (np.float32, np.uint8, np.bool_)
        return observations if keep else observations.astype(np.float32)

    def act(
        self,
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
        epsilon: float = 0.0,
    ) -> Acted:
        r"""Greedy actions, or :math:`\epsilon`-greedy ones with ``rng``."""
        q = self.action_values(observations)
        actions = q.argmax(-1)
        if rng is not None and epsilon > 0:
            random = rng.integers(q.shape[1], size=len(q))
            actions = np.where(rng.random(len(q)) < epsilon, random, actions)
        return Acted(actions, np.zeros(len(q), np.float32), q.max(-1))

    def for_environment(self, actions: np.ndarray) -> np.ndarray:
        """Actions as the environment counts them."""
        assert isinstance(self.action_space, gym.spaces.Discrete)
        return actions + int(self.action_space.start)

    def action_values(self, observations: np.ndarray) -> np.ndarray:
        """Q of scaled observations, ``(N, A)``."""
        if observations.ndim == 4:  # images: convolutions are torch's
            with torch.no_grad():
                return self(torch.from_numpy(observations)).numpy()
        advantage = self._advantage(observations)
        if self._value is None:
            return advantage
        return self._value(observations) + advantage - advantage.mean(-1, keepdims=True)


Policy = ActorCritic | QNetwork
