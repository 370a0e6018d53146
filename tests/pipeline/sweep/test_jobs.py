"""A job's process: its log, its last words, its end when nobody waits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.sweep.jobs import Ended, Job, Process, tail
from pipeline.sweep.local import Local, environment
from tests.checkout import ROOT


def test_tail_reads_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert tail(log) == []
    log.write_bytes(b"old\n" + b"x" * 50_000 + b"\n\n 1/3\r 2/3\r 3/3 done\nerror: why\n")
    assert tail(log)[-2:] == ["3/3 done", "error: why"]
    assert tail(log, log.stat().st_size - len("error: why\n")) == ["error: why"]


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    """Of the process's own words, not of what an earlier try left in the log."""
    job = Job("t", tmp_path, tmp_path / "config.yaml", ("sft",))
    job.config.write_text("beta: -1\n", encoding="utf-8")
    job.log.write_text("error: from before\n", encoding="utf-8")
    runner = Local(1, environment(None, 1))
    runner.start(job)
    assert runner.busy() and not runner.has_room()
    while not (ended := runner.ended()):
        time.sleep(0.05)
    assert ended["t"].code == 2
    assert ended["t"].error == f"{job.config}: beta: expected a number at least 0, found -1"
    assert not runner.busy() and runner.has_room()


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    runner = Local(1, {})
    runner.start(Job("t", tmp_path / "file" / "t", tmp_path / "config.yaml", ("sft",)))
    (ended,) = runner.ended().values()
    assert ended.code == 1 and "log.txt" in ended.error and not runner.busy()


@pytest.mark.parametrize("code", [-9, 1])
def test_last_words_without_an_error_line(tmp_path: Path, code: int) -> None:
    process = Process.__new__(Process)
    process.log, process._from = tmp_path / "log.txt", 0
    process.log.write_text("Traceback\nValueError: no\n", encoding="utf-8")
    why = "ended by signal 9" if code < 0 else "exit code 1"
    assert process.last_words(code) == f"{why}: ValueError: no"


def test_a_full_disk_is_known_by_the_runners_words() -> None:
    from pipeline import runner

    assert "the disk is full" in Path(runner.__file__).read_text(encoding="utf-8")
    assert Ended(2, 1.0, "output_dir x: the disk is full; free some").disk_full
    assert not Ended(2, 1.0, "something else").disk_full


def test_the_process_ends_with_whoever_started_it(tmp_path: Path, tiny: Path) -> None:
    """A killed parent leaves no orphan that holds the folder."""
    words = [str(tmp_path / "log.txt"), str(tiny), ("sft",), {}, str(tmp_path), str(ROOT)]
    program = (
        "import time\nfrom pipeline.sweep.jobs import Process\n"
        f"print(Process(*{words!r}).process.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _lives(child):
        time.sleep(0.1)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in environment(None, 1)
    shared = int(environment(None, 2)["OMP_NUM_THREADS"])
    assert shared == max(1, len(os.sched_getaffinity(0)) // 2)
    assert environment(3, 2)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP_NUM_THREADS" not in environment(None, 2)
