"""The whole experiment on configs/tiny.yaml: its outputs; a kill in any stage is harmless."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.output.terminal import KEY_NUMBERS
from pipeline.report.pictures import FAMILIES
from tests.checkout import ROOT
from tests.nursery import Nursery
from tests.project.whole import run

METHODS = ("sft", "ppo", "dpo", "best_of_n")
MEASURES = (
    *("reward", "gold", "gold_positive", "kl", "objective", "optimality", "optimality_ci"),
    *("perplexity", "distinct_2", "length", "ended"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the real command."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run("tiny.yaml", output)
    return output


def test_every_stage_leaves_its_outputs(whole: Path) -> None:
    for stage in ("sft", "reward", "ppo", "dpo", "compare"):
        record = json.loads((whole / stage / "stage.json").read_text())
        assert record["status"] == "finished"
        assert record["seed"] == 0
        assert {"torch", "transformers", "trl"} <= set(record["versions"])
    for stage in ("sft", "ppo", "dpo"):
        assert (whole / stage / "model" / "model.safetensors").is_file()
        lines = (whole / stage / "metrics.jsonl").read_text().splitlines()
        assert all("step" in json.loads(line) for line in lines) and lines
    ppo = json.loads((whole / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("objective/kl", "objective/scores", "objective/rlhf_reward", "objective/entropy"):
        assert name in ppo
    assert {"policy/clipfrac_avg", "policy/approxkl_avg", "val/ratio"} <= set(ppo)
    metrics = json.loads((whole / "reward" / "metrics.json").read_text())
    assert metrics["proxy"]["accuracy"] > 0.8 and metrics["gold"]["accuracy"] > 0.8


def test_what_is_shown_while_training_is_logged(whole: Path, tmp_path: Path) -> None:
    """Every metric of the report's curves and of the terminal's lines is one that a trainer logs.

    Those of evaluations are the reward stage's and PPO's, where they are switched on.
    """
    command = [sys.executable, "-m", "pipeline", "ppo", "--config", "configs/tiny.yaml"]
    evaluating = ["reward.eval_strategy=steps", "reward.eval_steps=38", "ppo.eval_strategy=epoch"]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}", *evaluating],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    logged: dict[str, set[str]] = {}
    folders = [whole / "sft", whole / "ppo", whole / "dpo", tmp_path / "reward", tmp_path / "ppo"]
    for folder in folders:
        lines = [
            line for path in folder.glob("metrics*.jsonl") for line in path.read_text().splitlines()
        ]
        names = {name for line in lines for name in json.loads(line)}
        logged[folder.name] = logged.get(folder.name, set()) | names
    for family, member in zip(FAMILIES, ("ppo", "dpo", "sft"), strict=True):
        assert logged[member] & set(family.key)
        for title, names in family.panels.items():
            assert logged[member] & set(names), title
    assert set(KEY_NUMBERS) <= set().union(*logged.values())


def test_results_have_the_documented_shape(whole: Path) -> None:
    results = json.loads((whole / "compare" / "results.json").read_text())
    assert results["beta"] == 1.0
    assert set(results["methods"]) == set(METHODS)
    for name in METHODS:
        assert set(MEASURES) <= set(results["methods"][name])
    assert results["methods"]["sft"]["kl"] == 0.0
    assert results["methods"]["sft"]["optimality"] == 0.0
    assert results["methods"]["ppo"]["kl"] > 0.0
    for point in results["frontier"]:
        assert {"beta", "reward", "kl", "ess"} <= set(point)
    assert (results["prompts"], results["samples_per_prompt"]) == (16, 2)


def test_report_is_written(whole: Path) -> None:
    html = (whole / "report" / "index.html").read_text()
    assert "<html" in html and "PPO" in html and "DPO" in html
    assert (whole / "report" / "report.md").is_file()
    assert list((whole / "report").glob("*.png"))


def test_a_stage_under_a_launcher(whole: Path, tmp_path: Path) -> None:
    """As a cluster's own tools start it; `--accelerate` is tested in tests/pipeline/launch."""
    for stage in ("sft", "reward"):
        shutil.copytree(whole / stage, tmp_path / stage)
    launcher, processes = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], 2
    command = [sys.executable, "-m", *launcher, "-m", "pipeline", "ppo"]
    command += ["--config", "configs/tiny.yaml"]
    backend = ["ppo.ddp_backend=gloo"]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}", *backend],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()
    rollouts = [row for row in map(json.loads, lines) if "objective/kl" in row]
    # 128 episodes; a rollout holds 32 in each process.
    assert len(rollouts) == 128 // (32 * processes)
    assert rollouts[0]["objective/kl_exact"] == pytest.approx(0.0, abs=1e-4)
    assert rollouts[0]["val/ratio"] == pytest.approx(1.0, abs=0.05)
    assert (tmp_path / "ppo" / "model" / "model.safetensors").is_file()


KILL_WHEN = {
    "sft": "sft/checkpoints/checkpoint-*/complete.json",
    "reward": "reward/checkpoints/gold/checkpoint-*/complete.json",
    "ppo": "ppo/checkpoints/checkpoint-*/complete.json",
    "dpo": "dpo/checkpoints/checkpoint-*/complete.json",
    "compare": "compare/measured/*.json",
}


@pytest.mark.slow
def test_killed_in_every_stage_and_started_again_the_numbers_are_the_same(
    whole: Path, tiny: Path, tmp_path: Path, nursery: Nursery
) -> None:
    output = tmp_path / "run"
    command = ["run", "--config", str(tiny), f"output_dir={output}"]
    for stage, pattern in KILL_WHEN.items():
        pid = nursery.start(tmp_path / f"{stage}.log", "rlhf", *command)
        deadline = time.monotonic() + 120
        while not list(output.glob(pattern)):
            ended = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            assert not ended, f"ended before it could be killed in {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait(pid) == -signal.SIGKILL
        status = json.loads((output / stage / "stage.json").read_text())["status"]
        assert status == "started", f"{stage} was over before the kill"
    log = tmp_path / "last.log"
    assert nursery.wait(nursery.start(log, "rlhf", *command)) == 0, log.read_text()
    for name in ("sft/model", "ppo/model", "dpo/model", "reward/proxy", "reward/gold"):
        ours, theirs = (folder / name / "model.safetensors" for folder in (output, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name
    for name in ("compare/results.json", "compare/samples.jsonl", "dpo/pairs.jsonl"):
        assert (output / name).read_text() == (whole / name).read_text(), name
