r"""Probe environments: problems so small that a failure names the piece that is broken.

An agent that learns CartPole badly may be wrong anywhere; one that cannot learn the value of a
constant reward is wrong in its value loss (A. Jones 2021, "Debugging RL, without the agonizing
pain"). Each probe adds one piece to those before it, is solved in seconds, and comes with its exact
answer, which planning computes from the probe's own MDP. Run them in order and stop at the first
that `failures` names.

Importing this module registers the environments ``classic_rl/Probe…-v0`` and ``classic_rl/MDP-v0``,
the latter for any `MDP` of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from classic_rl.deep.policies import Policy
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, Outcome, from_function
from classic_rl.tabular.planning import value_iteration

GAMMA = 0.8  # strong enough that forgetting it shows


class MDPEnv(gym.Env):
    """A finite MDP as an environment that shows each state as a vector.

    Args:
        model: its rewards must be on the transitions, a terminal state's own must be 0.
        observations: ``(S, D)``, what each state looks like; None: one-hot.
    """

    def __init__(self, model: MDP, observations: np.ndarray | None = None) -> None:
        if np.any(model.rewards[model.terminal]):
            raise ProblemError("model: rewards of terminal states are never paid; they must be 0")
        self.model = model
        shown = np.eye(model.n_states) if observations is None else np.asarray(observations)
        if shown.ndim != 2 or len(shown) != model.n_states:
            raise ProblemError(
                f"observations: shape {shown.shape}, expected one row for each of the "
                f"{model.n_states} states"
            )
        self.observations = shown.astype(np.float32)
        self.observation_space = gym.spaces.Box(
            self.observations.min(), self.observations.max(), shown.shape[1:], np.float32
        )
        self.action_space = gym.spaces.Discrete(model.n_actions)
        # Cumulative probabilities, next states and rewards of each (s, a), for sampling.
        self._rows: dict[tuple[int, int], tuple[np.ndarray, list[Outcome]]] = {}
        for state in np.flatnonzero(~model.terminal):
            for action in range(model.n_actions):
                outcomes = model.outcomes(int(state), action)
                self._rows[int(state), action] = np.cumsum([o[0] for o in outcomes]), outcomes
        self._start = np.cumsum(model.start)
        self.state = 0

    def mdp(self, gamma: float) -> MDP:
        """The exact MDP under a discount."""
        return self.model.with_gamma(gamma)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a first state."""
        super().reset(seed=seed)
        self.state = self._draw(self._start)
        return self.observations[self.state].copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Draw an outcome of ``action``."""
        cumulative, outcomes = self._rows[self.state, int(action)]
        _, self.state, reward = outcomes[self._draw(cumulative)]
        ended = bool(self.model.terminal[self.state])
        return self.observations[self.state].copy(), reward, ended, False, {}

    def _draw(self, cumulative: np.ndarray) -> int:
        drawn = np.searchsorted(cumulative, self.np_random.random() * cumulative[-1], side="right")
        return int(drawn)


@dataclass(frozen=True)
class Probe:
    """A probe and its answer under the discount `GAMMA`, for the K states that are acted in.

    Args:
        env_id: its environment. purpose: what works in an agent that passes.
        observations: ``(K, D)``. values: ``(K,)``, the optimal ones.
        actions: ``(K,)``, the best action; -1 where all are equally good.
    """

    env_id: str
    purpose: str
    observations: np.ndarray
    values: np.ndarray
    actions: np.ndarray


def failures(policy: Policy, probe: Probe, tolerance: float = 0.15) -> list[str]:
    """What a trained policy got wrong, one line each; empty when it passed.

    Args:
        policy: trained on ``probe.env_id`` with the discount `GAMMA`.
        tolerance: the largest error of a value, and the most probability of worse actions.
    """
    actions, logps, values = policy.act(policy.scale(probe.observations))
    wrong = []
    for k, observation in enumerate(probe.observations):
        place = f"{probe.env_id}, observation {observation}"
        if not abs(values[k] - probe.values[k]) <= tolerance:
            wrong.append(f"{place}: the value is {probe.values[k]:.2f}, learned: {values[k]:.2f}")
        if probe.actions[k] >= 0:
            share = np.exp(logps[k]) if actions[k] == probe.actions[k] else 0.0
            if not share >= 1 - tolerance:
                wrong.append(f"{place}: action {probe.actions[k]} is best, not taken enough")
    return wrong


def _probe(
    name: str,
    purpose: str,
    outcomes: Callable[[int, int], list[Outcome]],
    shown: Sequence[float],
    *,
    starts: int = 1,
    ends: bool = True,
    limit: int | None = None,
) -> Probe:
    """Register one probe and solve it.

    Args:
        outcomes: as `from_function` takes them, of two actions. shown: what each state looks like;
            the last state is terminal if ``ends``. starts: how many first states, equally likely.
        limit: steps after which an episode is cut off.
    """
    n_states = len(shown)
    start = np.where(np.arange(n_states) < starts, 1 / starts, 0.0)
    terminal = [n_states - 1] if ends else []
    mdp = from_function(outcomes, n_states, 2, GAMMA, start=start, terminal=terminal)
    observations = np.array(shown, dtype=np.float32)[:, None]
    env_id = f"classic_rl/Probe{name}-v0"
    settings = {"model": mdp, "observations": observations}
    if env_id not in gym.registry:  # Reloading must not register twice.
        gym.register(env_id, f"{__name__}:MDPEnv", max_episode_steps=limit, kwargs=settings)
    solution = value_iteration(mdp)
    acted = ~mdp.terminal
    indifferent = np.ptp(solution.action_values, axis=1) == 0
    actions = np.where(indifferent, -1, solution.policy)[acted]
    return Probe(env_id, purpose, observations[acted], solution.values[acted], actions)


# A state's number, or what it looks like, is all that these rewards depend on. The terminal state
# looks like a first one wherever it can, so that an agent which looks beyond an end sees a future.
PROBES: Mapping[str, Probe] = {
    "constant reward": _probe(
        "ConstantReward",
        "the value loss, and that nothing follows a termination",
        lambda s, a: [(1.0, 1, 1.0)],
        shown=[1.0, 1.0],
    ),
    "reward by observation": _probe(
        "RewardByObservation",
        "observations reach the value",
        lambda s, a: [(1.0, 2, (-1.0, 1.0)[s])],
        shown=[-1.0, 1.0, 1.0],
        starts=2,
    ),
    "two-step discount": _probe(
        "TwoStepDiscount",
        "values flow back in time, discounted",
        lambda s, a: [(1.0, s + 1, (0.0, 1.0)[s])],
        shown=[-1.0, 1.0, -1.0],
    ),
    "time limit": _probe(
        "TimeLimit",
        "a time limit is no termination: what would have followed counts",
        lambda s, a: [(1.0, 0, 1 - GAMMA)],
        shown=[1.0],
        ends=False,
        limit=5,
    ),
    "reward by action": _probe(
        "RewardByAction",
        "advantages (or action values) move the policy, and the right way",
        lambda s, a: [(1.0, 1, (-1.0, 1.0)[a])],
        shown=[1.0, 1.0],
    ),
    "reward by both": _probe(
        "RewardByBoth",
        "observations reach the policy",
        lambda s, a: [(1.0, 2, 1.0 if a == s else -1.0)],
        shown=[-1.0, 1.0, 1.0],
        starts=2,
    ),
}
if "classic_rl/MDP-v0" not in gym.registry:
    gym.register("classic_rl/MDP-v0", f"{__name__}:MDPEnv")
