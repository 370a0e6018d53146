"""Whether an environment keeps to gymnasium's interface, told in a line before anything is trained.

gymnasium's own checker stops at many things that do no harm here, and its vector environments end
in the middle of an unpacking. What is asked here is what they rely on.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from classic_rl.errors import ProblemError
from common.places import raised_at

# What `gymnasium.make` puts around an environment: they unpack what it returns.
_ADDED = (
    gym.wrappers.TimeLimit,
    gym.wrappers.OrderEnforcing,
    gym.wrappers.PassiveEnvChecker,
)
_STEP = ("observation", "reward", "terminated", "truncated", "info")
_WANTED = (
    f"two values of reset() (observation, info) and five of step() ({', '.join(_STEP)}), info a"
    " dict"
)


def check_interface(env: gym.Env, env_id: str) -> None:
    """Reset ``env`` and take one step in it.

    Raises:
        ProblemError: it lacks a space, fails, or takes or returns something else than gymnasium's
            environments do; the message names the method and what it should be.
    """
    inner: Any = env
    while isinstance(inner, _ADDED):
        inner = inner.env
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(inner, name, None), gym.Space):
            raise ProblemError(f"{env_id}: {name} is not a gymnasium space; set it in __init__")
    _check_arguments(inner, env_id)
    began = call(env_id, "reset()", inner.reset, seed=0)
    if not (isinstance(began, tuple) and len(began) == 2 and isinstance(began[1], dict)):
        raise ProblemError(f"{env_id}: reset() returns {_what(began)}; gymnasium wants {_WANTED}")
    _check_observation(inner, env_id, "reset", began[0])
    inner.action_space.seed(0)
    went = call(env_id, "step()", inner.step, inner.action_space.sample())
    if not (isinstance(went, tuple) and len(went) == len(_STEP) and isinstance(went[-1], dict)):
        raise ProblemError(f"{env_id}: step() returns {_what(went)}; gymnasium wants {_WANTED}")
    _check_observation(inner, env_id, "step", went[0])
    if np.shape(went[1]) != () or not np.issubdtype(np.asarray(went[1]).dtype, np.number):
        raise ProblemError(f"{env_id}: step()'s reward must be a number, it is {went[1]!r:.40}")
    for name, value in zip(_STEP[2:4], went[2:4], strict=True):
        if not isinstance(value, bool | np.bool_ | int | np.integer):
            raise ProblemError(f"{env_id}: step()'s {name} must be a bool, it is {value!r:.40}")


def _check_arguments(env: Any, env_id: str) -> None:
    taken = inspect.signature(env.reset).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        return
    if not {"seed", "options"} <= {p.name for p in taken if p.kind is not p.POSITIONAL_ONLY}:
        raise ProblemError(
            f"{env_id}: reset() must take seed and options; write"
            " `def reset(self, *, seed=None, options=None)` and call super().reset(seed=seed)"
        )


def _check_observation(env: Any, env_id: str, method: str, observation: Any) -> None:
    space = env.observation_space
    shape = space.shape  # None for spaces of parts
    if shape is not None and np.shape(observation) != shape:
        raise ProblemError(
            f"{env_id}: {method}()'s observation has the shape {np.shape(observation)}, and"
            f" observation_space {shape}"
        )
    if isinstance(space, gym.spaces.Discrete) and not space.contains(observation):
        raise ProblemError(
            f"{env_id}: {method}()'s observation is {observation!r:.40}, which is not in"
            f" observation_space {space}"
        )


def call(env_id: str, what: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """``function(...)``, code of the environment's author: what it raises is told in a line."""
    try:
        return function(*args, **kwargs)
    except (Exception, SystemExit) as error:  # whatever its author's code raises
        place, reason = raised_at(error), str(error)
        if isinstance(error, SyntaxError) and error.filename:  # raised by Python, not at its place
            place, reason = (Path(error.filename), error.lineno or 0), error.msg
        where = f" in {place[0].name}, line {place[1]}" if place else ""
        raise ProblemError(
            f"{env_id}: {what} fails{where}: {type(error).__name__}: {' '.join(reason.split())}"
        ) from error


def _what(returned: Any) -> str:
    """What a method returned instead, in a few words."""
    if not isinstance(returned, tuple):
        return f"one value, {type(returned).__name__}"
    kinds = ", ".join(type(value).__name__ for value in returned)
    return f"{len(returned)} values ({kinds})"
