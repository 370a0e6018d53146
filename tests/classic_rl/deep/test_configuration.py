"""Settings of the deep algorithms: files, flags and overrides, and one line for each mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from classic_rl.algorithms import ALGORITHMS, find_algorithm
from classic_rl.deep.configuration import (
    FOLDERS,
    config_path,
    configure,
    to_yaml,
    with_checkpoints,
    write_yaml,
)
from classic_rl.envs import environments
from classic_rl.errors import ProblemError
from classic_rl.folders import slug
from classic_rl.ppo import PPOConfig

SHIPPED = sorted(FOLDERS[0].glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_found_by_its_environment(path: Path) -> None:
    algorithm, _, rest = path.stem.partition("-")
    env_id = yaml.safe_load(path.read_text(encoding="utf-8"))["env_id"]
    assert slug(env_id) == rest
    assert config_path(algorithm, env_id) == path
    config = configure(algorithm, env_id)
    assert config == configure(algorithm, path=path)
    assert environments.find(config.env_id).id == config.env_id


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_has_defaults(algorithm: str) -> None:
    config = configure(algorithm, "Acrobot-v1" if algorithm != "ppo" else "MountainCar-v0")
    cls = find_algorithm(algorithm).config_class()
    assert isinstance(config, cls)
    if config_path(algorithm, config.env_id) is None:
        assert config == replace(cls(), env_id=config.env_id)


def test_later_sources_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("gamma: 0.5\nlam: 0.5\nlearning_rate: 0.5\n", encoding="utf-8")
    config = configure("ppo", path=path, flags={"lam": 0.6, "seed": 7}, overrides=["lam=0.7"])
    assert isinstance(config, PPOConfig)
    assert (config.gamma, config.lam, config.learning_rate, config.seed) == (0.5, 0.7, 0.5, 7)
    assert config.env_id == "CartPole-v1"


def test_the_command_line_names_the_environment_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("env_id: Acrobot-v1\ngamma: 0.5\n", encoding="utf-8")
    assert configure("ppo", path=path).env_id == "Acrobot-v1"
    assert configure("ppo", "Pendulum-v1", path=path).env_id == "Pendulum-v1"


def test_short_ids_find_their_file() -> None:
    config = configure("ppo", "TrafficLight")
    assert config == configure("ppo", "classic_rl/TrafficLight-v0")
    assert config.env_id == "classic_rl/TrafficLight-v0"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("gamma=1", "gamma", 1.0),
        ("hidden=[32, 16]", "hidden", (32, 16)),
        ("hidden=[]", "hidden", ()),
        ("anneal=false", "anneal", False),
        ("target_kl=null", "target_kl", None),
        ("target_kl=0.01", "target_kl", 0.01),
        ("activation=relu", "activation", "relu"),
        ("env_kwargs={render_mode: null}", "env_kwargs", {"render_mode": None}),
        ("env_kwargs.sutton_barto_reward=true", "env_kwargs", {"sutton_barto_reward": True}),
    ],
)
def test_overrides_have_yaml_values(override: str, key: str, value: object) -> None:
    setting = getattr(configure("ppo", overrides=[override]), key)
    assert setting == value and type(setting) is type(value)


def test_arguments_of_the_environment_add_up() -> None:
    overrides = ["env_kwargs={a: 1, b: 2}", "env_kwargs.b=3", "env_kwargs.c=4"]
    assert configure("ppo", overrides=overrides).env_kwargs == {"a": 1, "b": 3, "c": 4}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gama=1", "override gama=1: unknown setting gama; did you mean gamma?"),
        ("gamma=high", "override gamma=high: gamma: 'high' is not a number"),
        ("gamma=true", "override gamma=true: gamma: True is not a number"),
        ("gamma=.nan", "override gamma=.nan: gamma: nan is not a number"),
        ("n_envs=2.5", "override n_envs=2.5: n_envs: 2.5 is not a whole number"),
        ("hidden=64", "override hidden=64: hidden: 64 is not a list of whole numbers"),
        ("activation=sine", "activation: 'sine' is not one of tanh, relu"),
        ("gamma=1.5", "override gamma=1.5: gamma: 1.5 must be at least 0 and at most 1"),
        ("gamma", "override 'gamma': expected key=value, such as seed=1"),
        ("=1", "override '=1': expected key=value"),
        ("hidden=[1", "override 'hidden=[1': the value is not YAML"),
        ("gamma.x=1", "override gamma.x=1: only env_kwargs has parts"),
        ("env_id=CartPol-v1", "CartPol-v1: no such environment; did you mean CartPole-v1?"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ProblemError) as problem:
        configure("ppo", overrides=["lam=0.9", override])
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gama: 1\n", "mine.yaml: unknown setting gama; did you mean gamma?"),
        ("gamma: 2\n", "mine.yaml: gamma: 2.0 must be at least 0 and at most 1"),
        ("hidden: wide\n", "mine.yaml: hidden: 'wide' is not a list of whole numbers"),
        ("- 1\n", "mine.yaml: expected `key: value` lines"),
        ("gamma: [\n", "mine.yaml:2:1: "),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProblemError) as problem:
        configure("ppo", path=path)
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_missing_file_and_an_unknown_algorithm_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="none.yaml: no such file"):
        configure("ppo", path=tmp_path / "none.yaml")
    with pytest.raises(ProblemError, match="pop: no such algorithm; there are dqn, reinforce"):
        configure("pop")


def test_a_problem_across_settings_names_the_override() -> None:
    with pytest.raises(ProblemError, match="estimator: gae needs baseline value"):
        configure("reinforce", overrides=["estimator=gae", "baseline=none"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_yaml_there_and_back(tmp_path: Path, algorithm: str) -> None:
    config = configure(algorithm, overrides=["env_kwargs={a: [1, 2]}", "hidden=[3]", "seed=4"])
    path = write_yaml(config, tmp_path / "config.yaml")
    assert configure(algorithm, path=path) == config
    assert list(yaml.safe_load(to_yaml(config))) == list(vars(config))


def test_checkpoints_leave_room_for_whole_episodes() -> None:
    config = configure("ppo", overrides=["n_envs=8", "total_steps=1_000_000"])
    assert with_checkpoints(config).checkpoint_every == 100_000
    assert with_checkpoints(replace(config, total_steps=50_000)).checkpoint_every == 16_000
    assert with_checkpoints(replace(config, checkpoint_every=5)).checkpoint_every == 5
