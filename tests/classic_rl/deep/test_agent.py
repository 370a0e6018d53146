"""Policies that are saved, loaded and evaluated, runs that are resumed, and every user mistake."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from classic_rl import ppo
from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policies import ActorCritic, QNetwork
from classic_rl.deep.policy_file import load_policy, save_policy
from classic_rl.deep.settings import config_from, load_config
from classic_rl.envs import environments
from classic_rl.errors import ProblemError

SMALL = ppo.PPOConfig(
    env_id="Pendulum-v1",
    total_steps=2400,
    n_envs=4,
    n_steps=210,
    epochs=2,
    minibatch_size=64,
    normalize_observations=True,
    normalize_rewards=True,
    checkpoint_every=800,
    hidden=(16,),
)


def weights(policy: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in policy.state_dict().values()])


def problem(message: str):
    return pytest.raises(ProblemError, match=re.escape(message))


def test_save_load_evaluate_unchanged(tmp_path: Path) -> None:
    result = ppo.train(SMALL)
    result.save(tmp_path)
    policy, env_id, kwargs = load_policy(tmp_path)
    before = evaluate(result.policy, env_id, 5, seed=3, env_kwargs=kwargs)
    after = evaluate(policy, env_id, 5, seed=3, env_kwargs=kwargs)
    assert np.array_equal(before.returns, after.returns)
    assert before.lengths.tolist() == [200] * 5
    assert not np.array_equal(before.returns, evaluate(policy, env_id, 5, seed=4).returns)
    sampled = [evaluate(policy, env_id, 5, seed=3, greedy=False).returns for _ in range(2)]
    assert np.array_equal(sampled[0], sampled[1]) and not np.array_equal(sampled[0], after.returns)


class Killed(Exception):
    pass


def test_killed_and_resumed_ends_bit_equal(tmp_path: Path) -> None:
    """Observation and reward statistics, Adam's moments, the curve and the episodes included."""
    whole = ppo.train(SMALL, out=tmp_path / "whole")

    def kill(steps: int, metrics: object) -> None:
        if steps >= 2000:
            raise Killed

    with pytest.raises(Killed):
        ppo.train(SMALL, out=tmp_path / "killed", on_log=kill)
    resumed_at: list[int] = []
    resumed = ppo.train(
        SMALL,
        out=tmp_path / "killed",
        resume=True,
        on_log=lambda steps, _: resumed_at.append(steps),
    )
    assert resumed_at[0] > 1600  # it did not begin anew
    assert torch.equal(weights(resumed.policy), weights(whole.policy))
    assert resumed.curve == whole.curve
    assert resumed.episodes == whole.episodes and len(whole.episodes.returns) >= 8
    # Where the checkpoints are written does not matter, only when.
    assert torch.equal(weights(ppo.train(SMALL).policy), weights(whole.policy))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    ppo.train(SMALL, out=tmp_path)
    with problem("its gamma is 0.99, this run's is 0.9; use the same settings or another --out"):
        ppo.train(replace(SMALL, gamma=0.9), out=tmp_path, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"broken")
    with problem("not a readable checkpoint"):
        ppo.train(SMALL, out=tmp_path, resume=True)


def test_foreign_policies_are_refused(tmp_path: Path) -> None:
    with problem("no such file"):
        load_policy(tmp_path)
    env = environments.make("CartPole-v1")
    policy = ActorCritic(env.observation_space, env.action_space, hidden=(8,))
    path = save_policy(policy, tmp_path / "policy.safetensors", "CartPole-v1")
    with problem("Acrobot-v1 has observations"):
        evaluate(load_policy(path)[0], "Acrobot-v1", 1)
    policy.settings["hidden"] = [9]
    save_policy(policy, path, "CartPole-v1")
    with problem("actor_body.0.bias has shape (8,), the policy needs (9,)"):
        load_policy(path)
    path.write_bytes(path.read_bytes()[:40])
    with problem("not a readable safetensors file"):
        load_policy(path)


def test_both_kinds_of_policy_survive_saving(tmp_path: Path) -> None:
    env = environments.make("CartPole-v1")
    observations = np.stack([env.observation_space.sample() for _ in range(9)])
    observations = np.clip(observations, -3, 3)
    for policy in (
        QNetwork(env.observation_space, env.action_space, hidden=(8,), dueling=True),
        ActorCritic(env.observation_space, env.action_space, activation="relu"),
    ):
        loaded = load_policy(save_policy(policy, tmp_path / policy.kind, "CartPole-v1"))[0]
        assert type(loaded) is type(policy)
        ours, theirs = policy.act(observations), loaded.act(observations)
        assert np.array_equal(ours.values, theirs.values)
        outputs = policy(torch.from_numpy(observations))
        q = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        assert np.array_equal(ours.actions, q.argmax(-1).numpy())


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", "CartPol-v1: no such environment; did you mean CartPole-v1?"),
        ("TrafficLigt-v0", "did you mean classic_rl/TrafficLight-v0?"),
        ("Nothing/Like-this", "Nothing/Like-this: no such environment"),
        ("CartPole-v7", "CartPole-v7: no such environment; did you mean CartPole-v1?"),
    ],
)
def test_unknown_environments(env_id: str, message: str) -> None:
    with problem(message):
        ppo.train(ppo.PPOConfig(env_id=env_id))


@pytest.mark.parametrize(
    ("env_id", "module", "message"),
    [
        ("LunarLander-v3", "Box2D", 'needs Box2D: pip install "gymnasium[box2d]"'),
        ("ALE/Pong-v5", "ale_py", "pip install ale-py opencv-python-headless"),
        ("MinAtar/Breakout-v1", "minatar", "pip install minatar"),
    ],
)
def test_missing_extras_say_what_to_install(
    env_id: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == module or name.startswith("gymnasium.envs.box2d"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with problem(message):
        environments.make_vector(env_id, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_envs": 0}, "n_envs: 0 must be at least 1"),
        ({"n_steps": 1}, "n_steps: 1 must be at least 2"),
        ({"minibatch_size": 0}, "minibatch_size: 0 must be at least 1"),
        ({"total_steps": 0}, "total_steps: 0 must be at least 1"),
        ({"gamma": 1.5}, "gamma: 1.5 must be at least 0 and at most 1"),
        ({"cliprange": 0.0}, "cliprange: 0.0 must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan must be above 0"),
        ({"hidden": (64, 0)}, "hidden: [64, 0] must be positive widths"),
        ({"kl_coef": 0.1}, "kl_coef: CartPole-v1 has no reference policy"),
        ({"kl_coef": 0.1, "normalize_rewards": True}, "normalize_rewards: would change"),
        ({"env_kwargs": {"colour": "red"}}, "CartPole-v1: "),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with problem(message) as caught:
        ppo.train(ppo.PPOConfig(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown setting learning_rat; did you mean learning_rate?"),
        ("n_envs: many", "n_envs: 'many' is not a whole number"),
        ("n_envs: true", "n_envs: True is not a whole number"),
        ("gamma: [1]", "gamma: [1] is not a number"),
        ("hidden: 64", "hidden: 64 is not a list of whole numbers"),
        ("activation: gelu", "activation: 'gelu' is not one of tanh, relu"),
        ("n_envs: 0", "c.yaml: n_envs: 0 must be at least 1"),
        ("- 1", "expected `key: value` lines"),
        ("a: [", ":1:5: "),
    ],
)
def test_bad_config_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with problem(message) as caught:
        load_config(ppo.PPOConfig, path)
    assert "\n" not in str(caught.value)


def test_config_files_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 3e-4\ngamma: 1\nhidden: []\ntarget_kl: null\n")
    config = load_config(ppo.PPOConfig, path, seed=4)
    assert config == ppo.PPOConfig(learning_rate=3e-4, gamma=1.0, hidden=(), seed=4)
    assert config_from(ppo.PPOConfig, {"target_kl": 1}, "").target_kl == 1.0
    with problem("no such file"):
        load_config(ppo.PPOConfig, tmp_path / "none.yaml")


def test_every_ppo_config_is_valid_and_named_after_its_environment(root: Path) -> None:
    paths = sorted((root / "configs" / "classic").glob("ppo-*.yaml"))
    assert len(paths) >= 6
    for path in paths:
        config = load_config(ppo.PPOConfig, path)
        assert path.stem == f"ppo-{config.env_id.replace('/', '-')}"


def test_atari_path() -> None:
    """A few hundred steps of Pong through gymnasium's preprocessing and frame stacking."""
    pytest.importorskip("ale_py", reason="Atari is an extra")
    config = ppo.PPOConfig(
        env_id="ALE/Pong-v5", total_steps=200, n_envs=2, n_steps=50, epochs=1, minibatch_size=50,
        hidden=(64,), activation="relu",
    )  # fmt: skip
    result = ppo.train(config)
    assert result.steps == 200
    observations = np.zeros((3, 4, 84, 84), np.uint8)
    assert result.policy.act(observations).actions.shape == (3,)
