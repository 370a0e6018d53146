"""``python -m classic_rl`` for the deep algorithms: train, resume, track, evaluate, watch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from classic_rl import cli
from classic_rl.algorithms import ALGORITHMS
from classic_rl.deep import networks, training
from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.policy_file import load_policy
from classic_rl.deep.training import LiveLine, learning_curve
from classic_rl.deep.watch import film, write_film
from classic_rl.envs import environments
from tests.checkout import ROOT

# Small enough for a second, large enough for several updates.
SMALL = {
    "dqn": ["n_envs=4", "learning_starts=200", "buffer_size=2000", "batch_size=32"],
    "reinforce": ["n_episodes=4", "value_steps=2"],
    "a2c": ["n_envs=4", "n_steps=8"],
    "ppo": ["n_envs=4", "n_steps=64", "epochs=2", "minibatch_size=128"],
}


def train(algorithm: str, folder: Path, *more: str) -> int:
    """Train on CartPole for 1,500 steps with checkpoints every 400."""
    words = ["--env", "CartPole-v1", "--steps", "1500", "--out", str(folder), "--episodes", "3"]
    return cli.main([algorithm, *words, *more, "checkpoint_every=400", *SMALL[algorithm]])


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    [line] = captured.err.strip().splitlines()
    return line


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_train_then_evaluate(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(algorithm, tmp_path, "--seed", "3") == 0
    out = capsys.readouterr().out
    assert "evaluation" in out and str(tmp_path) in out
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        "README.md",
        "checkpoint.safetensors",
        "config.yaml",
        "evaluation.json",
        "learning-curve.png",
        "policy.safetensors",
        "result.json",
    }
    result, evaluation = read(tmp_path, "result.json"), read(tmp_path, "evaluation.json")
    assert result["config"]["seed"] == 3 and result["steps"] >= 1500
    assert np.isfinite(result["episodes"]["returns"]).all()
    (tmp_path / "evaluation.json").unlink()
    assert cli.main(["evaluate", str(tmp_path), "--episodes", "3"]) == 0
    assert f"return {evaluation['mean']:.1f}" in capsys.readouterr().out
    assert read(tmp_path, "evaluation.json") == evaluation


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_interrupted_run_resumes_to_the_same_end(
    algorithm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(algorithm, whole) == 0

    def interrupt(line: LiveLine, steps: int, metrics: Mapping[str, float]) -> None:
        if steps > 1000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LiveLine, "show", interrupt)
        capsys.readouterr()
        assert train(algorithm, cut) == 130
    assert error_line(capsys) == f"interrupted: the same command with --resume goes on in {cut}"
    assert not (cut / "result.json").exists()
    assert train(algorithm, cut, "--resume") == 0
    same = [read(folder, "result.json") for folder in (whole, cut)]
    for result in same:
        del result["seconds"]
    assert same[0] == same[1]
    policies = [(folder / "policy.safetensors").read_bytes() for folder in (whole, cut)]
    assert policies[0] == policies[1]


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("ppo", tmp_path) == 0

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(training, "_train", never)
        assert train("ppo", tmp_path, "--resume") == 0
        with pytest.raises(AssertionError, match="trained again"):
            train("ppo", tmp_path, "--resume", "gamma=0.9")


def test_a_checkpoint_of_other_settings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("ppo", tmp_path) == 0
    capsys.readouterr()
    assert train("ppo", tmp_path, "--resume", "gamma=0.9") == 2
    assert "its gamma is 0.99, this run's is 0.9" in error_line(capsys)
    assert train("a2c", tmp_path, "--resume") == 2
    assert "its algorithm is ppo, this run's is a2c" in error_line(capsys)


def test_several_seeds_get_a_folder_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # An override behind --seeds or --track is not one of their values.
    assert train("ppo", tmp_path, "--seeds", "0", "5", "gamma=0.9") == 0
    assert "mean of 2 seeds" in capsys.readouterr().out
    for seed in (0, 5):
        config = read(tmp_path / f"seed{seed}", "result.json")["config"]
        assert (config["seed"], config["gamma"]) == (seed, 0.9)
    assert (tmp_path / "learning-curve.png").is_file()
    assert train("ppo", tmp_path / "one", "--seed", "5", "gamma=0.9") == 0
    one, among = (read(tmp_path / n, "result.json")["curve"] for n in ("one", "seed5"))
    assert one == among


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["ppo", "--env", "TokenMDP", "--seed", "4", "--steps", "200", "--episodes", "1"]
    assert cli.main([*words, "n_envs=2", "n_steps=16"]) == 0
    assert (tmp_path / "runs/classic/ppo-classic_rl-TokenMDP-v0-seed4/result.json").is_file()


def test_the_written_config_repeats_the_run(tmp_path: Path) -> None:
    assert train("ppo", tmp_path / "a") == 0
    words = ["ppo", "--config", str(tmp_path / "a" / "config.yaml"), "--episodes", "3"]
    assert cli.main([*words, "--out", str(tmp_path / "b")]) == 0
    a, b = (read(tmp_path / n, "result.json") for n in "ab")
    assert a["config"] == b["config"] and a["curve"] == b["curve"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo", "--env", "CartPol-v1"], "CartPol-v1: no such environment; did you mean CartPole"),
        (["dqn", "--env", "Pendulum-v1"], "action values need Discrete ones; use ppo"),
        (["ppo", "gama=0.9"], "override gama=0.9: unknown setting gama; did you mean gamma?"),
        (["ppo", "--seeds", "1", "one"], "--seeds 1 one: seeds are whole numbers"),
        (["ppo", "--seeds", "1", "1"], "--seeds 1 1: a seed is there twice"),
        (["ppo", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["ppo", "--steps", "0"], "total_steps: 0 must be at least 1"),
        (["ppo", "--episodes", "0"], "--episodes 0: must be at least 1"),
        (["ppo", "--track", "mlflow"], "--track mlflow: there are wandb"),
        (["ppo", "--config", "none.yaml"], "none.yaml: no such file; --config"),
        (["ppo", "--frobnicate"], "unrecognized arguments: --frobnicate; `"),
        (["ppo", "--total-timesteps", "9"], "--total-timesteps; did you mean total_steps=…?"),
        (["dqn", "--learning-rate=1e-3"], "did you mean learning_rate=…?"),
        (["ppo", "--num-envs", "4"], "did you mean n_envs=…?"),
        (["evaluate", "x", "--episode", "4", "--sead", "1"], "did you mean --seed?"),
        (["ppo", "--env-arg", "wind=1"], "unexpected keyword argument 'wind'"),
        (["evaluate", "nowhere"], "no such file; train with --out"),
        (["watch"], "the following arguments are required: FOLDER"),
        (["pop"], "pop: no such algorithm; did you mean ppo?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    line = error_line(capsys)
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_a_broken_policy_is_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.safetensors").write_bytes(content)
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "not a readable safetensors file" in error_line(capsys)


def test_print_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ppo", "--env", "Pendulum-v1", "--print-config"]
    assert cli.main([*words, "gamma=0.5"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert "gamma: 0.5\n" in text and "env_id: Pendulum-v1\n" in text
    assert cli.main(["ppo", "--config", str(tmp_path / "config.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == text


def test_watch_makes_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("ppo", tmp_path) == 0
    first = read(tmp_path, "evaluation.json")
    capsys.readouterr()
    assert cli.main(["watch", str(tmp_path), "--out", str(tmp_path / "film")]) == 0
    gif, png = map(Path, capsys.readouterr().out.split())
    with Image.open(gif) as animation, Image.open(png) as picture:
        shown = sum(frame.info["duration"] for frame in ImageSequence.Iterator(animation))
        assert animation.format == "GIF" and picture.format == "PNG" and picture.width > 800
    # The evaluation's first episode: 20 ms before every step and after the last.
    assert shown == 20 * (first["lengths"][0] + 1)


def test_long_episodes_are_thinned_out(tmp_path: Path) -> None:
    env = environments.make("Pendulum-v1")
    torch.manual_seed(0)
    policy = ActorCritic(env.observation_space, env.action_space)
    shown = film(policy, "Pendulum-v1", {}, seed=0)
    assert (shown.steps, shown.every) == (200, 2)
    assert sorted(shown.frames) == [*range(0, 201, 2)]
    again = evaluate(policy, "Pendulum-v1", 1, seed=0)
    assert shown.episode_return == pytest.approx(again.returns[0])
    gif, _ = write_film(shown, tmp_path)
    with Image.open(gif) as picture:
        assert (picture.n_frames, picture.width) == (101, 320)  # type: ignore[attr-defined]
    assert gif.stat().st_size < 1_000_000


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train("ppo", tmp_path, "--track", "tensorboard") == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curve = read(tmp_path, "result.json")["curve"]
    logged = events.Scalars("entropy")
    assert [event.step for event in logged] == curve["steps"]
    np.testing.assert_allclose([event.value for event in logged], curve["entropy"], rtol=1e-6)


def test_weights_and_biases_logs_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    assert train("ppo", tmp_path, "--track") == 0
    assert "warning" not in capsys.readouterr().err
    [kept] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert kept.stem == f"run-{read(tmp_path, 'wandb.json')['id']}"
    assert kept.stat().st_size > 1000


@pytest.mark.parametrize("moment", ["__init__", "log", "finish"])
def test_a_tracker_in_trouble_costs_one_line(
    moment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from common import tracking

    def trouble(*_: object) -> None:
        raise RuntimeError("disk on fire\nand more")

    monkeypatch.setattr(tracking.TensorBoard, moment, trouble)
    assert train("ppo", tmp_path, "--track", "tensorboard") == 0
    assert error_line(capsys) == "warning: TensorBoard: disk on fire. Going on without it."


def test_commands_start_fast(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from classic_rl.cli import main
        try:
            main(["ppo", "--help"])
        except SystemExit:
            pass
        assert main(["value-iteration", "--env", "GridWorld3x4", "--out", sys.argv[1]]) == 0
        loaded = {"torch", "yaml", "wandb", "rich"} & sys.modules.keys()
        assert not loaded, loaded
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_live_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    live = LiveLine("ppo CartPole-v1 seed 0", 10_000)
    now[0] = 101.0
    live.show(4_000, {"episode_return": float("nan")})  # resumed: these were there
    now[0] = 102.0
    live.show(6_000, {"episode_return": 123.4})
    live.show(6_100, {"episode_return": 0.0})  # too soon
    shown = capsys.readouterr().err.split("\r\033[K")
    assert shown == [
        "",
        "ppo CartPole-v1 seed 0 · 4,000/10,000 steps",
        "ppo CartPole-v1 seed 0 · 6,000/10,000 steps · return 123.4 · 2,000 steps/s · 2 s left",
    ]


def test_learning_curves_average_what_ended_in_the_window() -> None:
    episodes = {"steps": [10, 20, 20, 50], "returns": [1.0, 2.0, 4.0, 7.0]}
    curve = learning_curve(episodes, np.array([5, 10, 20, 30, 40, 50]), 10)
    # Before the first episode nothing is known; where none ended the last one stands.
    np.testing.assert_array_equal(curve, [np.nan, 1, 7 / 3, 3, 4, 7])


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_policies_of_images_are_saved(algorithm: str, tmp_path: Path) -> None:
    more = {"ppo": ["n_envs=4", "n_steps=16", "epochs=1"], "dqn": ["learning_starts=64"]}
    words = ["--env", "MinAtar/Seaquest-v1", "--out", str(tmp_path), "--episodes", "2"]
    small = ["total_steps=200", "checkpoint_every=100", "hidden=[16]", *more[algorithm]]
    assert cli.main([algorithm, *words, *small]) == 0
    policy, env_id, kwargs = load_policy(tmp_path)
    again = evaluate(policy, env_id, 2, training.EVALUATION_SEED, env_kwargs=kwargs)
    assert again.returns.tolist() == read(tmp_path, "evaluation.json")["returns"]


def test_channels_last_even_where_there_are_as_many_as_rows() -> None:
    space = environments.make("MinAtar/Seaquest-v1").observation_space
    assert space.shape == (10, 10, 10)
    scale = next(m for m in networks.body(space, (8,))[0].modules() if hasattr(m, "channels_last"))
    assert scale.channels_last


def test_an_environment_without_a_time_limit_gets_one() -> None:
    env = environments.make_for_networks("CliffWalking-v1")
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(environments.LONGEST)]  # up, against the wall
    assert [bool(truncated) for *_, truncated, _ in steps[-2:]] == [False, True]


def test_a_mistake_costs_no_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("ppo", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert train("ppo", tmp_path, "hidden=[0]") == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_run_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    assert train("ppo", tmp_path) == 0
    assert (tmp_path / "checkpoint.safetensors").exists()
    words = ["--env", "CartPole-v1", "--out", str(tmp_path), "--episodes", "3"]
    assert cli.main(["ppo", *words, "total_steps=500", "checkpoint_every=0", *SMALL["ppo"]]) == 0
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_diverged_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("ppo", tmp_path, "learning_rate=1e30") == 2
    assert "training diverged" in error_line(capsys)


def test_the_environment_may_be_an_override(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ppo", "env_id=LunarLander-v3", "--print-config"]) == 0
    by_override = capsys.readouterr().out
    assert cli.main(["ppo", "--env", "LunarLander-v3", "--print-config"]) == 0
    assert by_override == capsys.readouterr().out
