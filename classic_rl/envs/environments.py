"""Making environments: one of them, or many in step, with clear errors for what is missing.

Vector environments are gymnasium's own with its default NEXT_STEP autoreset: the step after an
episode's end ignores the action, pays nothing and returns the next episode's first observation.
`classic_rl.deep.rollout` and `classic_rl.deep.replay` leave those steps out.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import PurePath
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

import classic_rl.envs  # noqa: F401 (registers our environments)
from classic_rl.envs.checks import call, check_interface
from classic_rl.errors import ProblemError

# What an environment's name starts with → what provides it.
EXTRAS = {
    "LunarLander": 'Box2D: pip install "gymnasium[box2d]"',
    "BipedalWalker": 'Box2D: pip install "gymnasium[box2d]"',
    "CarRacing": 'Box2D: pip install "gymnasium[box2d]"',
    "ALE/": "the Arcade Learning Environment: pip install ale-py opencv-python-headless",
    "MinAtar/": "MinAtar: pip install minatar",
}
_KEPT_TO: set[tuple[str, str, str]] = set()  # environments whose interface was looked at
_SHORTEST = 4  # letters of a name that others may begin with
_ALIKE = 0.75  # of two names, as difflib counts it
LONGEST = 10_000  # steps of an episode where the environment sets no limit
ATARI_FRAMES = 4  # frames stacked, and game frames a step (Mnih et al. 2015)


def make(env_id: str, kwargs: Mapping[str, Any] | None = None, **more: Any) -> gym.Env:
    """One environment by its id; ids of `classic_rl.envs` may drop the namespace and version.

    ``module:Env-v0`` imports the module first, which registers the environment.

    Atari games (``ALE/…``) come with gymnasium's preprocessing and four stacked frames.

    Raises:
        ProblemError: unknown id (with the nearest known one), a missing extra, a wrong argument,
            an environment that does not keep to gymnasium's interface.
    """
    spec = find(env_id)
    arguments = {**(kwargs or {}), **more}
    limit = arguments.get("max_episode_steps", -1)
    if limit is None or isinstance(limit, bool):  # which gymnasium takes for its own limit, and 1
        raise ProblemError(
            f"{env_id}: cannot be made with max_episode_steps={limit}: give a number of steps,"
            " or -1 for no limit"
        )
    key = (spec.id, repr(spec.entry_point), repr(arguments))
    if key not in _KEPT_TO:
        env = _make(spec, env_id, arguments)
        check_interface(env, env_id)
        env.close()
        _KEPT_TO.add(key)
    return _make(spec, env_id, arguments)


def _make(spec: Any, env_id: str, arguments: dict[str, Any]) -> gym.Env:
    try:
        if spec.id.startswith("ALE/"):
            return _atari(spec, arguments)
        # Checking every step costs a fifth of a small environment's time; tests check ours.
        return gym.make(spec, disable_env_checker=True, **arguments)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise _missing(spec.id, error) from error
    except ProblemError:
        raise
    except (
        LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError,
    ) as error:  # fmt: skip
        # What constructors raise over their arguments; without any it is a fault to be seen.
        if "gymnasium.Env" in str(error):  # what `gymnasium.make` says of any other class
            raise ProblemError(
                f"{env_id}: the environment must be a gymnasium.Env (`import gymnasium as gym`)"
            ) from error
        if not arguments:
            raise
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        reason = " ".join(str(error).split())
        raise ProblemError(f"{env_id}: cannot be made with {given}: {reason}") from error


def make_vector(env_id: str, n_envs: int, kwargs: Mapping[str, Any] | None = None) -> VectorEnv:
    """``n_envs`` environments in step, NEXT_STEP autoreset.

    Where gymnasium has the environment as array code (CartPole) that is taken: the same dynamics,
    many times the speed.
    """
    if n_envs < 1:
        raise ProblemError(f"n_envs: {n_envs} is not a positive number of environments")
    spec = find(env_id)
    if spec.vector_entry_point is not None and not kwargs:
        try:
            return gym.make_vec(spec, num_envs=n_envs, vectorization_mode="vector_entry_point")
        except ImportError as error:
            raise _missing(spec.id, error) from error
    return gym.vector.SyncVectorEnv(
        [lambda: make_for_networks(env_id, kwargs)] * n_envs,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )


def make_for_networks(env_id: str, kwargs: Mapping[str, Any] | None = None) -> gym.Env:
    """`make`, with a Discrete observation turned into its one-hot vector.

    An environment without a time limit gets one of `LONGEST` steps: a policy that goes round for
    ever would otherwise never be done being evaluated. Atari games have their own.
    """
    env = make(env_id, kwargs)
    if env.spec is not None and env.spec.max_episode_steps is None and "ALE/" not in env.spec.id:
        env = gym.wrappers.TimeLimit(env, LONGEST)
    if isinstance(env.observation_space, gym.spaces.Box):
        return env
    if isinstance(env.observation_space, gym.spaces.Discrete):
        check = partial(_in_space, env_id, env.observation_space)
        env = gym.wrappers.TransformObservation(env, check, env.observation_space)
    return gym.wrappers.FlattenObservation(env)


def _in_space(env_id: str, space: gym.spaces.Discrete, observation: Any) -> Any:
    """``observation``; one-hot a negative number would stand for one from the end."""
    if not space.start <= observation < space.start + space.n:
        raise ProblemError(f"{env_id}: the observation {observation} is not in {space}")
    return observation


def find(env_id: str) -> Any:
    """The registered specification of an environment id, as `gymnasium.spec` gives it.

    Raises:
        ProblemError: a module before a colon that cannot be imported, an id that is not known.
    """
    module, colon, env_id = env_id.rpartition(":")
    if colon:
        _import(module, env_id)
    _register_guests(env_id)
    # Behind a module our short names would stand for what that module lacks.
    short = () if colon else (f"classic_rl/{env_id}", f"classic_rl/{env_id}-v0")
    for name in (env_id, *short):
        if name in gym.registry and not _is_old_atari(gym.registry[name]):
            return gym.registry[name]
    with suppress(gym.error.Error):
        spec = gym.spec(env_id)  # resolves an id without its version
        if not _is_old_atari(spec):
            return spec
    prefix = next((name for name in EXTRAS if env_id.startswith(name)), None)
    if prefix in ("ALE/", "MinAtar/") and not any(key.startswith(prefix) for key in gym.registry):
        raise _missing(env_id)
    near = nearest(env_id)
    hint = f"; did you mean {module}{colon}{near}?" if near else ""
    if not near and isinstance(getattr(sys.modules.get(module), env_id, None), type):
        hint = f"; {env_id} is a class: {module} must register it with gymnasium.register"
    raise ProblemError(f"{module}{colon}{env_id}: no such environment{hint}")


def full_id(env_id: str) -> str:
    """The id by which any other process finds the same: complete, and with its module if given."""
    module, colon, _ = env_id.rpartition(":")
    return module + colon + find(env_id).id


def _import(module: str, env_id: str) -> None:
    """Import the module that registers an environment, also one in the present folder."""
    if module.endswith(".py"):
        path = PurePath(module)
        where = "here" if path == PurePath(path.name) else f"in {path.parent}"
        raise ProblemError(
            f"{module}:{env_id}: that is a file; the module is {path.stem}:{env_id},"
            f" started {where}"
        )
    here = os.getcwd()
    if not {"", here} & set(sys.path):  # a program that pip made does not look there by itself
        sys.path.append(here)
    parts = module.split(".")
    # A package's own code runs before its module is looked for: step by step, to tell what fails.
    for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
        try:
            missing = importlib.util.find_spec(name) is None
        except (ImportError, ValueError):  # no package, or no name of a module
            missing = True
        if missing:
            raise ProblemError(
                f"{module}:{env_id}: there is no module {module}; start in its folder,"
                " or install it"
            )
        call(f"{module}:{env_id}", f"importing {name}", importlib.import_module, name)


def nearest(env_id: str) -> str | None:
    """Today's id of an environment that has another version, namespace or case, or a like name.

    Of the registered environments of the same name the newest, those of the same namespace or of
    none first; else of the longest name that this one begins with (``BreakoutNoFrameskip``, once);
    else of the name that is spelt most alike.
    """
    _register_guests("ALE/")
    namespace, _, name = env_id.rpartition("/")
    name = re.sub(r"-v\d+$", "", name).lower()
    known: dict[str, list[Any]] = {}
    for spec in gym.registry.values():
        if not _is_old_atari(spec):
            known.setdefault(spec.name.lower(), []).append(spec)
    begins = [other for other in known if len(other) >= _SHORTEST and name.startswith(other)]
    alike = difflib.get_close_matches(name, list(known), n=1, cutoff=_ALIKE)
    found = [name] if name in known else [max(begins, key=len)] if begins else alike
    if not found:
        return None

    def rank(spec: Any) -> tuple[bool, bool, int]:
        return spec.namespace == namespace, not spec.namespace, spec.version or 0

    return max(known[found[0]], key=rank).id


def _is_old_atari(spec: Any) -> bool:
    """Whether it is one of ale-py's ids of before, such as ``Breakout-v0``: raw frames."""
    return str(spec.entry_point).startswith("ale_py") and not spec.id.startswith("ALE/")


def _register_guests(env_id: str) -> None:
    """Atari and MinAtar register themselves only when asked to."""
    try:
        if env_id.startswith("ALE/"):
            import ale_py

            gym.register_envs(ale_py)
        elif env_id.startswith("MinAtar/") and "MinAtar/Breakout-v1" not in gym.registry:
            import minatar.gym

            minatar.gym.register_envs()
    except ModuleNotFoundError:
        pass  # `find` says what to install


def _atari(spec: Any, arguments: dict[str, Any]) -> gym.Env:
    """Frame skip 4, 84x84 grey, up to 30 no-ops at the start, a lost life does not end an episode;
    four frames stacked (Machado et al. 2018)."""
    env = gym.make(spec, frameskip=1, disable_env_checker=True, **arguments)
    env = gym.wrappers.AtariPreprocessing(env, frame_skip=ATARI_FRAMES)
    return gym.wrappers.FrameStackObservation(env, ATARI_FRAMES)


def _missing(env_id: str, error: Exception | None = None) -> ProblemError:
    extra = next((text for name, text in EXTRAS.items() if env_id.startswith(name)), None)
    if extra is None:
        today = nearest(env_id)
        hint = f"; today's is {today}" if today and today != env_id else ""
        return ProblemError(f"{env_id} needs a package: {' '.join(str(error).split())}{hint}")
    return ProblemError(f"{env_id} needs {extra}")
