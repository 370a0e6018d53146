"""Which job runs when, and what becomes of those that fail, with a runner that only pretends."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sweep import schedule
from pipeline.sweep.jobs import Ended, Job
from pipeline.sweep.schedule import work_off


class Pretend:
    """Ends every job at the second look; ``codes`` says how."""

    def __init__(self, room: int, codes: dict[str, int] | None = None) -> None:
        self.room, self.codes = room, codes or {}
        self.running: dict[str, int] = {}
        self.order: list[str] = []
        self.most, self.stopped = 0, False

    def has_room(self) -> bool:
        return len(self.running) < self.room

    def start(self, job: Job) -> None:
        self.order.append(job.name)
        self.running[job.name] = 0
        self.most = max(self.most, len(self.running))

    def ended(self) -> dict[str, Ended]:
        over = [name for name, looks in self.running.items() if looks]
        self.running = {name: 1 for name in self.running if name not in over}
        return {name: Ended(self.codes.get(name, 0), 1.0, "why") for name in over}

    def busy(self) -> bool:
        return bool(self.running)

    def stop(self) -> None:
        self.stopped = True


class Quiet:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def started(self, job: Job) -> None:
        self.told.append(("started", job.name))

    def finished(self, job: Job, ended: Ended) -> None:
        self.told.append(("finished", job.name, str(ended.code)))

    def left_out(self, job: Job, because: str) -> None:
        self.told.append(("left out", job.name, because))

    def refresh(self) -> None:
        pass


def job(name: str, *after: str) -> Job:
    return Job(name, Path(name), Path(name, "config.yaml"), ("sft",), after)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setattr(schedule, "INTERVAL", 0)


JOBS = [job("shared"), job("a", "shared"), job("b", "shared"), job("c", "shared")]


@pytest.mark.parametrize("room", [1, 2, 8])
def test_what_is_built_on_comes_first_and_the_rest_in_order(room: int) -> None:
    runner, done, calls = Pretend(room), set[str](), list[int]()
    failed = work_off(JOBS, done, runner, Quiet(), lambda: calls.append(1))
    assert not failed and done == {"shared", "a", "b", "c"}
    assert runner.order == ["shared", "a", "b", "c"]
    assert runner.most == min(room, 3) and len(calls) == 4


def test_a_failed_trial_stops_nothing() -> None:
    runner, watcher, done = Pretend(2, {"a": 2}), Quiet(), set[str]()
    assert work_off(JOBS, done, runner, watcher, lambda: None) == {"a"}
    assert done == {"shared", "b", "c"}
    assert ("finished", "a", "2") in watcher.told


def test_what_builds_on_a_failed_stage_is_not_run() -> None:
    jobs = [*JOBS, job("other"), job("d", "other")]
    runner, watcher = Pretend(1, {"shared": 1}), Quiet()
    assert work_off(jobs, set(), runner, watcher, lambda: None) == {"shared", "a", "b", "c"}
    assert runner.order == ["shared", "other", "d"]
    assert ("left out", "b", "shared") in watcher.told


def test_finished_ones_are_not_repeated() -> None:
    runner, done = Pretend(1), {"shared", "b"}
    assert not work_off(JOBS, done, runner, Quiet(), lambda: None)
    assert runner.order == ["a", "c"]


def test_an_interruption_ends_what_runs() -> None:
    runner = Pretend(1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_off(JOBS, set(), runner, Quiet(), interrupt)
    assert runner.stopped
