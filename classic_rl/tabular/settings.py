"""What a tabular command runs with: the problem, and settings tuned to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from classic_rl.envs import environments
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_gymnasium
from classic_rl.schedules import Linear, Schedule, checked
from classic_rl.tabular.exploration import UCB, EpsilonGreedy, Explore, Greedy, Softmax
from classic_rl.tabular.names import CONTROL, PLANNING
from classic_rl.tabular.sampling import make_world
from classic_rl.tabular.tuned import (
    MONTE_CARLO_ALPHA,
    PLAIN_RATE,
    PREDICTION_ALPHA,
    PREDICTION_STEPS,
    Rate,
    Tuned,
    tuned_for,
)

LIMITED = "max_episode_steps"  # gymnasium's word for the time limit
TABLE_STARTS = "initial_state_distrib"  # beside gymnasium's table P; any class may have a P
LIMIT = 1000  # steps of an episode, where the environment has no limit of its own


@dataclass(frozen=True)
class Problem:
    """What is to be solved.

    Attributes:
        env: the environment. env_id, env_args: what it was made of.
        mdp: its exact model, None where it has none.
        limit: steps of an episode at most. tuned: settings that suit it.
    """

    env: gym.Env
    env_id: str
    env_args: Mapping[str, Any]
    mdp: MDP | None
    limit: int
    tuned: Tuned

    @property
    def name(self) -> str:
        """The id without its namespace."""
        return self.env_id.rpartition("/")[2]

    @property
    def model(self) -> MDP:
        """`mdp`, where planning needs it."""
        if self.mdp is None:
            raise ProblemError(f"{self.env_id}: has no exact model to plan with")
        return self.mdp

    def uniform_policy(self) -> np.ndarray:
        """``(S, A)``: every action as likely."""
        world = make_world(self.mdp or self.env, 0)
        n_states = self.mdp.n_states if self.mdp else world.n_states
        return np.full((n_states, world.n_actions), 1 / world.n_actions)


def open_problem(arguments: argparse.Namespace) -> Problem:
    """The environment that a command names, with its exact model where there is one.

    Raises:
        ProblemError: for an unknown environment, an argument that it does not take, or spaces that
            no table covers.
    """
    spec = environments.find(arguments.env)
    env_args = dict(arguments.env_arg)
    limited = {LIMITED: arguments.max_steps} if arguments.max_steps else {}
    if limited and LIMITED in env_args:
        raise ProblemError(f"--max-steps and --env-arg {LIMITED}=… say the same: give one")
    env = environments.make(arguments.env, env_args, **limited)
    tuned = tuned_for(spec.id, slippery=env_args.get("is_slippery", True))
    gamma = arguments.gamma or tuned.gamma
    inner = env.unwrapped
    exact = hasattr(inner, "mdp") or (hasattr(inner, "P") and hasattr(inner, TABLE_STARTS))
    mdp = from_gymnasium(env, gamma) if exact or arguments.algorithm in PLANNING else None
    make_world(mdp or env, 0)
    limit = (env.spec and env.spec.max_episode_steps) or LIMIT
    return Problem(
        env, environments.full_id(arguments.env), env_args, mdp, limit, replace(tuned, gamma=gamma)
    )


@dataclass(frozen=True)
class Learning:
    """How to learn: what the learners take, and the same as text for results.json."""

    gamma: float
    alpha: float | Schedule | None  # None: an average
    explore: Explore | None
    initial: float
    steps: int | None
    episodes: int | None
    text: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that every learner shares."""
        return {
            name: getattr(self, name) for name in ("gamma", "alpha", "initial", "steps", "episodes")
        }


def learning(arguments: argparse.Namespace, tuned: Tuned, **swept: float) -> Learning:
    """The settings of a learner: the user's, else those tuned to the problem.

    Args:
        swept: settings of one point of a sweep, which replace the others.
    """
    control = arguments.algorithm in CONTROL
    if not control:
        tuned = Tuned(tuned.gamma, PREDICTION_ALPHA, steps=PREDICTION_STEPS)
    steps, episodes = arguments.steps, arguments.episodes
    if steps is None and episodes is None:
        steps, episodes = tuned.steps, tuned.episodes
    if episodes is not None and tuned.episodes is None:
        tuned = replace(tuned, alpha=PLAIN_RATE, epsilon=PLAIN_RATE)
    alpha = arguments.alpha or _default_alpha(arguments.algorithm, tuned)
    alpha = Rate(swept["alpha"]) if "alpha" in swept else alpha
    initial = tuned.initial if arguments.initial is None else arguments.initial
    gamma = swept.get("gamma", tuned.gamma)
    text: dict[str, Any] = {"gamma": gamma, "alpha": str(alpha), "initial": initial}
    explore = None
    if control:
        epsilon = Rate(swept["epsilon"]) if "epsilon" in swept else arguments.epsilon
        explore, words = _exploration(arguments, epsilon or tuned.epsilon, steps)
        text |= words
    text |= {"steps": steps} if steps else {"episodes": episodes}
    made = None
    if isinstance(alpha, Rate):
        made = checked("alpha", _schedule("alpha", alpha, steps), 0.0, 1.0, low_open=True)
    return Learning(gamma, made, explore, initial, steps, episodes, text)


def _default_alpha(algorithm: str, tuned: Tuned) -> Rate | str:
    if algorithm == "monte-carlo-prediction":
        return "average"
    return MONTE_CARLO_ALPHA if algorithm == "monte-carlo-control" else tuned.alpha


def _exploration(
    arguments: argparse.Namespace, epsilon: Rate, steps: int | None
) -> tuple[Explore, dict[str, Any]]:
    """The rule to explore by, and its settings as text."""
    rule = arguments.explore
    text = {"explore": rule}
    if rule == "greedy":
        return Greedy(), text
    if rule == "ucb":
        c = 1.0 if arguments.confidence is None else arguments.confidence
        return UCB(c), text | {"confidence": c}
    if rule == "softmax":
        rate = arguments.temperature or PLAIN_RATE
        explore = Softmax(_schedule("temperature", rate, steps))
        return explore, text | {"temperature": str(rate)}
    return EpsilonGreedy(_schedule("epsilon", epsilon, steps)), text | {"epsilon": str(epsilon)}


def _schedule(name: str, rate: Rate, steps: int | None) -> float | Schedule:
    if rate.end is None:
        return rate.start
    over = rate.steps or steps
    if over is None:
        raise ProblemError(
            f"--{name} {rate}: with --episodes say over how many steps: {rate}:STEPS"
        )
    return Linear(rate.start, rate.end, over)
