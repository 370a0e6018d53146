"""How good a trained policy is: fresh episodes, played to their ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from classic_rl.deep.policies import Policy
from classic_rl.envs import environments
from classic_rl.errors import ProblemError


@dataclass
class Evaluation:
    """Returns and lengths of evaluation episodes, ``(episodes,)`` each."""

    returns: np.ndarray
    lengths: np.ndarray


def evaluate(
    policy: Policy,
    env_id: str,
    episodes: int = 100,
    seed: int = 0,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    greedy: bool = True,
) -> Evaluation:
    """Play fresh episodes, episode i in an environment of its own that is reset with ``seed + i``.

    Args:
        policy: trained on an environment of the same spaces.
        greedy: the most probable action; False samples (for ``seed``, reproducibly).
    """
    if episodes < 1:
        raise ProblemError(f"episodes: {episodes} is not a positive number")
    if not 0 <= seed < 2**31:
        raise ProblemError(f"seed: {seed} must be at least 0 and below 2^31")
    envs = [environments.make_for_networks(env_id, env_kwargs) for _ in range(episodes)]
    check_spaces(policy, envs[0], env_id)
    rng = None if greedy else np.random.default_rng(seed)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    playing = list(range(episodes))
    observations = [env.reset(seed=seed + i)[0] for i, env in enumerate(envs)]
    while playing:
        batch = policy.scale(np.stack([observations[i] for i in playing]))
        actions = policy.for_environment(policy.act(batch, rng).actions)
        unfinished = []
        for i, action in zip(playing, actions, strict=True):
            observations[i], reward, terminated, truncated, _ = envs[i].step(action)
            returns[i] += float(reward)
            lengths[i] += 1
            if terminated or truncated:
                envs[i].close()
            else:
                unfinished.append(i)
        playing = unfinished
    return Evaluation(returns, lengths)


def check_spaces(policy: Policy, env: gym.Env, env_id: str) -> None:
    """Raise a ProblemError unless ``env`` has the spaces that ``policy`` was made for."""
    for name in ("observation", "action"):
        ours, theirs = getattr(policy, f"{name}_space"), getattr(env, f"{name}_space")
        if ours.shape != theirs.shape or getattr(ours, "n", None) != getattr(theirs, "n", None):
            raise ProblemError(f"{env_id} has {name}s {theirs}, the policy was made for {ours}")
