"""A2C: learning, reproducibility, resuming and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from classic_rl.a2c import A2CConfig, train
from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policy_file import load_policy
from classic_rl.deep.settings import load_config
from classic_rl.errors import ProblemError

QUICK = A2CConfig(total_steps=1500, n_envs=4, hidden=(16,))


@pytest.mark.slow
def test_solves_cartpole(root: Path) -> None:
    """The committed settings, seed 0; seeds 0 to 4 all end at 500 in every episode."""
    config = load_config(A2CConfig, root / "configs/classic/a2c-CartPole-v1.yaml")
    result = train(config)
    assert evaluate(result.policy, "CartPole-v1", 100, seed=10_000).returns.mean() >= 475
    assert result.curve["entropy"][-1] < result.curve["entropy"][0] - 0.2


def test_same_seed_same_curve_and_another_seed_another() -> None:
    first, again, other = (train(replace(QUICK, seed=s)) for s in (3, 3, 4))
    np.testing.assert_equal(first.curve, again.curve)  # NaN before the first episode's end
    assert first.episodes == again.episodes
    assert first.curve["entropy"] != other.curve["entropy"]
    assert set(first.curve) == {
        "steps",
        "episode_return",
        "policy_loss",
        "value_loss",
        "entropy",
        "explained_variance",
    }


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_killed_and_resumed_ends_equal(optimizer, tmp_path: Path) -> None:
    config = replace(QUICK, checkpoint_every=400, optimizer=optimizer, normalize_observations=True)
    whole = train(config)

    def kill(steps: int, metrics) -> None:
        if steps > 1000:
            raise Killed

    with pytest.raises(Killed):
        train(config, out=tmp_path, on_log=kill)
    resumed = train(config, out=tmp_path, resume=True)
    np.testing.assert_equal(resumed.curve, whole.curve)
    assert resumed.episodes == whole.episodes
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name])
    with pytest.raises(ProblemError, match="its n_envs is 4, this run's is 2"):
        train(replace(config, n_envs=2), out=tmp_path, resume=True)


def test_saved_policy_plays_the_same(tmp_path: Path) -> None:
    result = train(QUICK)
    result.save(tmp_path)
    policy, env_id, _ = load_policy(tmp_path)
    before, after = (evaluate(p, env_id, 5, seed=1) for p in (result.policy, policy))
    assert before.returns.tolist() == after.returns.tolist()


def test_episodes_end_between_updates_and_go_on_across_them() -> None:
    """Rollouts of 8 steps see whole CartPole episodes: their lengths add up to the steps taken."""
    result = train(replace(QUICK, n_envs=1))
    assert max(result.episodes.lengths) > 8 * 2
    assert result.episodes.steps == np.cumsum(result.episodes.lengths).tolist()


def test_continuous_actions() -> None:
    result = train(replace(QUICK, env_id="Pendulum-v1", entropy_coef=0.01, max_grad_norm=0))
    assert np.isfinite(result.curve["value_loss"]).all()
    assert result.policy.state_dict()["log_std"].item() != 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer: 'sgd' is none of rmsprop, adam"),
        ({"n_envs": 0}, "n_envs: 0 must be at least 1"),
        ({"lam": -0.1}, "lam: -0.1 must be at least 0 and at most 1"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 must be above 0"),
        ({"env_id": "CartPoll-v1"}, "no such environment; did you mean CartPole-v1"),
    ],
)
def test_bad_settings_are_one_line(settings, message) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        train(A2CConfig(**settings))
    assert "\n" not in str(caught.value)


def test_configs_load(root: Path) -> None:
    files = sorted((root / "configs/classic").glob("a2c-*.yaml"))
    assert files
    for file in files:
        config = load_config(A2CConfig, file)
        assert file.stem == f"a2c-{config.env_id.replace('/', '-')}"
