"""Killed at any moment, the same command goes on and ends with the same weights, bit by bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROLLOUTS = 30
# Where each of the twenty tries ends: at a random moment of its start, or after its n-th new
# checkpoint, or while it writes its n-th.
PLAN = [("starting", 0)] * 4 + [("training", 1)] * 4 + [("training", 2)] * 4
PLAN += [("saving", 1)] * 4 + [("saving", 2)] * 4


def kill_when(pid: int, moment: Callable[[], bool], delay: float) -> None:
    """SIGKILL ``pid`` ``delay`` seconds after ``moment()`` first holds (or after a minute)."""
    end = time.monotonic() + 60
    while time.monotonic() < end and not moment():
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)


def a_moment(
    run,  # noqa: ANN001
    kind: str,
    count: int,
    rollout: float,
    choice: random.Random,
) -> tuple[Callable[[], bool], float]:
    """What to wait for before the kill, and for how many seconds from then."""
    last = run.steps()[-1] if run.steps() else 0
    step = last + 4 * count
    if kind == "starting":
        return lambda: True, choice.uniform(0, 1.0)
    if kind == "training":  # the next rollout is sampled, scored, learned from and perhaps saved
        return lambda: step in run.steps(), choice.uniform(0, rollout)
    return (run.checkpoints / f"checkpoint-{step}").exists, choice.uniform(0, 0.015)


@pytest.mark.slow
def test_twenty_kills_change_nothing(make_run) -> None:  # noqa: ANN001
    """Seed 0. After each kill the run is begun anew by the same command."""
    whole, broken = make_run("whole", ROLLOUTS), make_run("broken", ROLLOUTS)
    began = time.monotonic()
    code, text = whole.finish()
    assert code == 0, text
    rollout = (time.monotonic() - began) / ROLLOUTS
    choice, at = random.Random(0), []
    plan = choice.sample(PLAN, len(PLAN))
    assert len(plan) == 20
    for kind, count in plan:
        near_the_end = at and at[-1] > 4 * (ROLLOUTS - 5)
        kind = "starting" if near_the_end else kind
        pid = broken.start()
        kill_when(pid, *a_moment(broken, kind, count, rollout, choice))
        assert broken.nursery.wait(pid) == -signal.SIGKILL, broken.text()
        at.append(broken.steps()[-1] if broken.steps() else 0)
    assert not (broken.folder / "ppo" / "model").exists()
    halves = broken.text().count("was not finished")
    code, text = broken.finish()
    assert code == 0, text
    assert len(set(at)) >= 8 and at[-1] > 4 * ROLLOUTS / 3, at  # all along the run
    assert halves >= 2, broken.text()  # some checkpoints were cut in the middle, and it was told
    assert broken.weights() == whole.weights()
    steps = [line for line in metrics(whole.folder) if "objective/scores" in line]
    assert len(steps) == ROLLOUTS
    kept = [line for line in metrics(broken.folder) if "objective/scores" in line]
    for name in ("step", "objective/scores", "objective/kl_exact", "loss", "policy/approxkl_avg"):
        assert [line[name] for line in kept] == [line[name] for line in steps], name


def metrics(folder: Path) -> list[dict[str, float]]:
    """The run's own log."""
    from pipeline.output.metrics_file import read_metrics

    return read_metrics(folder / "ppo" / "metrics.jsonl")


@pytest.mark.slow
def test_the_real_command_is_killed_and_goes_on(make_run, root: Path) -> None:  # noqa: ANN001
    whole, broken = make_run("whole", 4), make_run("broken", 4)
    assert whole.finish()[0] == 0
    command = [sys.executable, "-m", "pipeline", *broken.command()]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE)
    kill_when(process.pid, lambda: bool(broken.steps()), 0.0)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert broken.steps() and not (broken.folder / "ppo" / "model").exists()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert broken.weights() == whole.weights()
