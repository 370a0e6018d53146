"""What a training tells beside its numbers: a policy that was lost, a goal that was not reached."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classic_rl.cli import main
from classic_rl.deep import training
from classic_rl.deep.best import Best
from classic_rl.deep.configuration import configure
from classic_rl.deep.remarks import remarks


def trained(algorithm: str, env_id: str, folder: Path, steps: int, **settings: Any) -> Any:
    overrides = [f"{key}={value}" for key, value in settings.items()]
    flags = {"total_steps": steps, "seed": 1}
    config = configure(algorithm, env_id, flags=flags, overrides=overrides)
    return training.train(algorithm, config, folder, episodes=20)


def test_the_best_is_the_highest_and_a_copy() -> None:
    best, weights = Best(), torch.zeros(2)
    for steps, value in ((10, math.nan), (20, 5.0), (30, 105.0), (40, 90.0)):
        weights.fill_(steps)
        best.look_at(steps, value, {"w": weights})
    assert (best.steps, best.episode_return, best.worst, best.last) == (30, 105.0, 5.0, 90.0)
    assert best.tensors["w"].tolist() == [30, 30]
    assert not best.fell  # by 15 of 100
    best.look_at(50, 84.0, {"w": weights})
    assert best.fell
    assert not Best().fell


def test_a_policy_that_was_lost_is_kept_and_told_of(tmp_path: Path) -> None:
    """DQN as tutorials have it forgets what it knew."""
    plain = {"n_step": 1, "huber": "true"}
    run = trained("dqn", "CartPole-v1", tmp_path, 30_000, **plain)
    assert run.best is not None
    steps, returns = run.best
    assert steps < 25_000 and returns.mean() > run.returns.mean() + 50
    folder = tmp_path / "best-in-training"
    assert np.array_equal(training.evaluate(folder, 20).returns, returns)
    (line,) = remarks(run)
    assert f"that of {steps:,} steps plays {returns.mean():.1f}" in line and str(folder) in line
    again = training.train("dqn", run.config, tmp_path, episodes=20, resume=True)
    assert again.best is not None and np.array_equal(again.best[1], returns)


def test_a_goal_that_was_never_reached_is_told_with_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ppo", "--env", "MountainCar-v0", "--steps", "7000", "--episodes", "5"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "every return was -200, as no episode ended before the limit of 200 steps" in shown
    assert "the goal was never reached" in shown and "--env-arg max_episode_steps=" in shown


def test_returns_that_differ_do_not_hide_that_no_episode_ended(tmp_path: Path) -> None:
    run = trained("ppo", "MountainCarContinuous-v0", tmp_path, 18_000)
    assert len(set(run.episodes["returns"])) > 1
    (line,) = remarks(run)
    assert "no episode ended before the limit of 999 steps" in line and "90 is far" in line


def test_where_episodes_last_by_nature_or_by_skill_nothing_is_said(tmp_path: Path) -> None:
    assert remarks(trained("ppo", "Pendulum-v1", tmp_path / "a", 3000)) == []
    run = trained("ppo", "CartPole-v1", tmp_path / "b", 2000)
    assert remarks(run) == []
    full = np.full(20, 500)
    long = {"returns": full.tolist(), "lengths": full.tolist()}
    run = dataclasses.replace(run, episodes=long, returns=full.astype(float), lengths=full)
    assert remarks(run) == []
