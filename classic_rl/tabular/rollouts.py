"""How good a policy is when it is simply followed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classic_rl.tabular.experience import Run
from classic_rl.tabular.sampling import Environment


@dataclass(frozen=True)
class Played:
    """How a policy does within the time limit.

    Attributes:
        mean, std: of the sampled episodes' undiscounted returns.
        exact: the expected return, None without a model.
    """

    mean: float
    std: float
    exact: float | None


def evaluate(
    env: Environment,
    policy: np.ndarray,
    *,
    episodes: int,
    seed: int,
    gamma: float = 1.0,
    max_steps: int = 10_000,
) -> np.ndarray:
    r"""The return :math:`\sum_t \gamma^t R_{t+1}` of each of so many episodes, ``(episodes,)``.

    Args:
        env: a gymnasium environment with discrete spaces, or an MDP.
        policy: int ``(S,)`` or float ``(S, A)``.
        gamma: discount in (0, 1]; 1 gives plain sums of rewards.
        max_steps: an episode stops there, so that a policy that never arrives ends too.

    Raises:
        ProblemError: for continuous spaces, or a policy that does not fit.
    """
    run = Run(
        env, policy, columns=1, seed=seed, episodes=episodes, gamma=gamma, max_steps=max_steps
    )
    returns: list[float] = []
    G, weight = 0.0, 1.0
    for _, _, r, s2, _, ended, _ in run.transitions():
        G += weight * r
        weight *= gamma
        if ended:
            returns.append(G + weight * run.world.terminal_values.get(s2, 0.0))
            G, weight = 0.0, 1.0
    return np.array(returns)
