"""From a command's words to an algorithm's settings, and back to a YAML file.

Later wins: the defaults of the config dataclass, ``configs/classic/<algorithm>-<environment>.yaml``
(or a file of the user's), the command's flags, its ``key=value`` overrides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classic_rl.algorithms import find_algorithm
from classic_rl.deep.settings import fit, read_settings
from classic_rl.errors import ProblemError
from classic_rl.folders import slug
from classic_rl.results import write_bytes
from common.yamlfile import parse_override

if TYPE_CHECKING:
    from classic_rl.deep.run import RunConfig

# In a checkout, and as classic-rl installs it.
FOLDERS = (
    Path(__file__).resolve().parents[2] / "configs" / "classic",
    Path(__file__).resolve().parents[1] / "configs",
)
CHECKPOINTS = 10  # of a run, unless its settings say how far apart
EPISODE_STEPS = 2_000  # of each environment between two, at least


def configure(
    algorithm: str,
    env_id: str | None = None,
    *,
    path: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The settings of a run.

    Args:
        algorithm: a name in `classic_rl.algorithms`.
        env_id: gymnasium id; None takes the file's, or the default.
        path: a YAML file instead of the one in ``configs/classic``.
        flags: settings by name. overrides: ``key=value`` with YAML values, which win over all;
            ``env_kwargs.name=value`` sets one argument of the environment.

    Raises:
        ProblemError: for an unknown algorithm, environment or setting, a value of the wrong type or
            out of range, a file that cannot be read; it names the file or the override.
    """
    from classic_rl.envs import environments  # gymnasium takes a while

    cls = find_algorithm(algorithm).config_class()
    pairs = [parse_override(override, ProblemError) for override in overrides]
    named = [value for key, value in pairs if key == "env_id"]
    env_id = named[-1] if named and isinstance(named[-1], str) else env_id
    chosen = {} if env_id is None else {"env_id": environments.full_id(env_id)}
    path = path or config_path(algorithm, chosen.get("env_id", cls.env_id))
    values, origin = {}, {}  # a setting's value, and where it was given
    for place, source in (
        (str(path), read_settings(path) if path else {}),
        (algorithm, {**chosen, **(flags or {})}),
    ):
        values |= fit(cls, source, place)
        origin |= dict.fromkeys(source, place)
    for override, (key, value) in zip(overrides, pairs, strict=True):
        place = f"override {override}"
        name, dot, argument = key.partition(".")
        if dot and name != "env_kwargs":
            raise ProblemError(f"{place}: only env_kwargs has parts")
        if dot:
            name, value = "env_kwargs", {**values.get("env_kwargs", {}), argument: value}
        values |= fit(cls, {name: value}, place)
        origin[name] = place
    try:
        config = cls(**values)
    except ProblemError as error:  # a number out of range, or settings that contradict each other
        raise ProblemError(f"{origin.get(str(error).partition(':')[0], algorithm)}: {error}") from (
            error
        )
    return replace(config, env_id=environments.full_id(config.env_id))


def with_checkpoints(config: RunConfig) -> RunConfig:
    """``config`` with up to ten checkpoints on its way, unless it says how far apart they are.

    A checkpoint begins new episodes everywhere, so each environment gets time to finish several; a
    run of seconds has none at all.
    """
    if config.checkpoint_every:
        return config
    apart = EPISODE_STEPS * getattr(config, "n_envs", 1)
    every = max(-(-config.total_steps // CHECKPOINTS), apart)
    return replace(config, checkpoint_every=every)


def config_path(algorithm: str, env_id: str) -> Path | None:
    """The tuned settings for an environment, where there are some."""
    name = f"{algorithm}-{slug(env_id.rpartition(':')[2])}.yaml"
    return next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)


def to_yaml(config: RunConfig) -> str:
    """Every setting as YAML, in the order of the dataclass; `configure` reads it back unchanged."""
    import yaml

    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)


def write_yaml(config: RunConfig, path: str | Path) -> Path:
    """Write `to_yaml` to a file."""
    return write_bytes(path, to_yaml(config).encode())
