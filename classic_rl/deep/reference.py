r"""Learning under a KL penalty to a reference policy, as language models are tuned.

The objective of `classic_rl.tabular.soft`, sampled: every action is charged for the reference's
surprise at it (Ziegler et al. 2019, equation 2; Ouyang et al. 2022, equation 2),

.. math:: \tilde r_t = r_t - \beta \big(\log \pi(a_t|s_t) - \log \pi_{ref}(a_t|s_t)\big)

so that the expected return of :math:`\tilde r` is :math:`J_\beta(\pi) = E[r] -
\beta\,KL(\pi \| \pi_{ref})`. On a `TokenMDP` the optimum of that is known exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from classic_rl.deep.policies import ActorCritic
from classic_rl.envs import TokenMDP
from classic_rl.errors import ProblemError


class Reference:
    """π_ref as a table over the states of a small environment.

    Args:
        table: probabilities ``(S, A)``; the state is the position of the one in an observation.
    """

    def __init__(self, table: np.ndarray) -> None:
        self.log_table = torch.from_numpy(table).log().float()

    def logps(self, observations: Tensor, actions: Tensor) -> Tensor:
        """log π_ref of ``actions`` ``(...)`` in one-hot ``observations`` ``(..., S)``."""
        return self.log_table[observations.argmax(-1), actions]


def reference_of(envs: VectorEnv, env_id: str) -> Reference:
    """The reference policy that the environments carry in their attribute ``reference``.

    Raises:
        ProblemError: where they carry none.
    """
    inner = getattr(envs, "envs", None)
    table = getattr(inner[0].unwrapped, "reference", None) if inner else None
    if table is None:
        raise ProblemError(
            f"kl_coef: {env_id} has no reference policy; classic_rl/TokenMDP-v0 has one"
        )
    return Reference(table)


def tabulate(policy: ActorCritic) -> np.ndarray:
    """Action probabilities ``(S, A)`` of a policy of one-hot states, all of them exactly."""
    n_states = (policy.observation_space.shape or (0,))[0]
    with torch.no_grad():
        outputs, _ = policy(torch.eye(n_states))
        return torch.softmax(outputs.double(), -1).numpy()


def objective(env: TokenMDP, table: np.ndarray, beta: float) -> float:
    r"""Exactly :math:`J_\beta(\pi) = \sum_y \pi(y)\,(r(y) - \beta\log(\pi(y)/\pi_{ref}(y)))`.

    Args:
        table: π, ``(S, A)``. beta: β, reward per nat.
    """
    logps, ref_logps = env.sequence_logps(table), env.sequence_logps(env.reference)
    written = logps > -np.inf
    penalty = beta * (logps[written] - ref_logps[written])
    return float(np.exp(logps[written]) @ (env.sequence_rewards[written] - penalty))


def optimality(env: TokenMDP, table: np.ndarray, beta: float) -> float:
    r""":math:`(J_\beta(\pi) - J_\beta(\pi_{ref})) / (J^*_\beta - J_\beta(\pi_{ref}))`: 0 for the
    reference, 1 for the best that any method can reach at this β."""
    start = objective(env, env.reference, beta)
    return (objective(env, table, beta) - start) / (env.optimum(beta)[1] - start)
