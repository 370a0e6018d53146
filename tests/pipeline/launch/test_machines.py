"""Two machines, each a network of its own on this one, with two processes each.

`ip netns` gives a network namespace, a pair of virtual cables joins two of them. What they share is
the disk, as machines of a cluster share their file system.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.launch.children import INTERRUPTED, LOST
from tests.checkout import ROOT
from tests.nursery import Nursery

pytestmark = pytest.mark.long
CONFIG = ROOT / "configs" / "accelerate" / "ddp-cpu.yaml"
PORT = "29517"
SILENCE = 5.0
DRIVER = f"""
import sys
from pipeline.launch import machines
machines.SILENCE = {SILENCE}
from pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def networks() -> Iterator[list[str]]:
    """Two namespaces that reach each other as 10.77.0.1 and 10.77.0.2, and nothing else."""
    names = [f"rlhf-{os.getpid()}-{rank}" for rank in (0, 1)]
    cables = [f"rlhf{os.getpid() % 10_000}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for rank, (name, cable) in enumerate(zip(names, cables, strict=True)):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(names)
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)!r}")
    yield names
    _remove(names)


def _remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> SimpleNamespace:
    """A folder with SFT and rewards, and in another the PPO of one process."""
    folder = tmp_path_factory.mktemp("machines")
    words = ["--config", str(ROOT / "configs" / "tiny.yaml"), "reward.num_train_epochs=1"]
    words += ["ppo.total_episodes=256", "ppo.logging_steps=1", "ppo.save_steps=4"]
    one = ["ppo", *words, "ppo.per_device_train_batch_size=16", f"output_dir={folder / 'one'}"]
    log = folder / "one.log"
    assert nursery.wait(nursery.start(log, "rlhf", *one)) == 0, log.read_text()
    many = folder / "many"
    for stage in ("sft", "reward"):
        shutil.copytree(folder / "one" / stage, many / stage)
    words += ["ppo.per_device_train_batch_size=4", f"output_dir={many}"]
    return SimpleNamespace(folder=folder, words=words, many=many, one=folder / "one")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the command of a machine; what a failed test leaves is ended."""
    begun: list[subprocess.Popen] = []

    def started(*machine: Any) -> subprocess.Popen:
        begun.append(_start(*machine))
        return begun[-1]

    yield started
    for job in begun:
        if job.poll() is None:
            job.terminate()
            job.wait(120)


def _start(network: str, rank: int, words: list[str], log: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, "ppo", *words, "--accelerate", str(CONFIG)]
    command += ["--num-processes", "4", "--num-machines", "2", "--machine-rank", str(rank)]
    command += ["--main-process-ip", "10.77.0.1", "--main-process-port", PORT]
    return subprocess.Popen(
        ["ip", "netns", "exec", network, *command],
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def wait_for_checkpoint(
    folder: Path, jobs: list[subprocess.Popen[bytes]], logs: list[Path]
) -> None:
    deadline = time.monotonic() + 300
    while not list((folder / "ppo" / "checkpoints").glob("*/complete.json")):
        assert all(job.poll() is None for job in jobs), [log.read_text() for log in logs]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = (folder / "ppo" / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, rows) if "loss" in row]


def test_a_machine_that_loses_power_ends_the_run_and_it_resumes(
    networks: list[str], prepared: SimpleNamespace, start: Any, tmp_path: Path
) -> None:
    """Four processes on two machines, cut apart in the middle, train what one process does.

    The one that is left says so once, within seconds and not after half an hour. The seed is 0;
    the losses differ from one process's by rounding.
    """
    logs = [tmp_path / f"{rank}.log" for rank in (0, 1)]
    jobs = [start(networks[rank], rank, prepared.words, logs[rank]) for rank in (0, 1)]
    wait_for_checkpoint(prepared.many, jobs, logs)
    left = psutil.Process(jobs[0].pid).children(recursive=True)
    # No word and no packet comes from the second machine any more, whatever its processes do.
    cable = subprocess.run(
        ["ip", "-n", networks[1], "-o", "link", "show", "type", "veth"],
        check=True, capture_output=True, text=True,
    ).stdout.split(":")[1].partition("@")[0].strip()  # fmt: skip
    ip("-n", networks[1], "link", "set", cable, "down")
    for process in [*psutil.Process(jobs[1].pid).children(recursive=True)]:
        process.kill()
    jobs[1].kill()
    began = time.monotonic()
    assert jobs[0].wait(timeout=120) == LOST, logs[0].read_text()
    took = time.monotonic() - began
    told = [line for line in logs[0].read_text().splitlines() if line.startswith("error")]
    assert len(told) == 1 and "run the same command to resume" in told[0], logs[0].read_text()
    assert took < SILENCE + 60
    assert not any(process.is_running() for process in left)
    assert json.loads((prepared.many / "ppo" / "stage.json").read_text())["status"] == "started"

    ip("-n", networks[1], "link", "set", cable, "up")
    jobs = [start(networks[rank], rank, prepared.words, logs[rank]) for rank in (0, 1)]
    ends = [job.wait(timeout=300) for job in jobs]
    assert ends == [0, 0], [log.read_text() for log in logs]
    assert logs[0].read_text().count("ppo: resuming") == 1
    assert "resuming" not in logs[1].read_text()
    record = json.loads((prepared.many / "ppo" / "stage.json").read_text())
    assert (record["status"], record["processes"]) == ("finished", 4)
    ours, theirs = losses(prepared.many), losses(prepared.one)
    assert [step for step, _ in ours] == [step for step, _ in theirs] == list(range(1, 33))
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-4)


def test_interrupting_one_machine_ends_all(
    networks: list[str], prepared: SimpleNamespace, start: Any, tmp_path: Path
) -> None:
    logs = [tmp_path / f"{rank}.log" for rank in (0, 1)]
    words = [*prepared.words, "seed=1"]
    words[words.index(f"output_dir={prepared.many}")] = f"output_dir={tmp_path / 'run'}"
    jobs = [start(networks[rank], rank, words, logs[rank]) for rank in (0, 1)]
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "sft" / "stage.json").exists():  # by a process of its own
        assert time.monotonic() < deadline, [log.read_text() for log in logs]
        time.sleep(0.05)
    psutil.Process(jobs[1].pid).terminate()
    assert [job.wait(timeout=120) for job in jobs] == [INTERRUPTED, INTERRUPTED]
    for log in logs:
        said = log.read_text()
        assert said.count("interrupted; run the same command to resume") == 1, said
        assert "Traceback" not in said
