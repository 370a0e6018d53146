"""Jobs in processes of this machine, so many at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.sweep.jobs import PATIENCE, Ended, Job, Process


class Local:
    """Runs at most ``at_once`` jobs side by side.

    Args:
        environment: variables of each beside this process's own.
    """

    def __init__(self, at_once: int, environment: Mapping[str, str]) -> None:
        self.at_once = at_once
        self._where = (dict(environment), os.getcwd(), checkout())
        self._running: dict[str, Process] = {}
        self._unable: dict[str, Ended] = {}

    def has_room(self) -> bool:
        """Whether `start` may be called."""
        return len(self._running) < self.at_once

    def start(self, job: Job) -> None:
        """Begin ``job``; where that cannot be done (a full disk), it has failed."""
        try:
            process = Process(str(job.log), str(job.config), job.stages, *self._where)
            self._running[job.name] = process
        except OSError as error:
            self._unable[job.name] = Ended(1, 0.0, f"{job.log}: {error.strerror}")

    def ended(self) -> dict[str, Ended]:
        """What ended since it was last asked, by name."""
        found = {name: process.ended() for name, process in self._running.items()}
        done = {name: ended for name, ended in found.items() if ended is not None}
        for name in done:
            del self._running[name]
        unable, self._unable = self._unable, {}
        return done | unable

    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._running or self._unable)

    def stop(self) -> None:
        """End what runs; each keeps its checkpoints."""
        for process in self._running.values():
            process.ask_to_end()
        deadline = time.monotonic() + PATIENCE
        for process in self._running.values():
            process.end(deadline - time.monotonic())
        self._running.clear()


def environment(threads: int | None, at_once: int) -> dict[str, str]:
    """Variables of a job's process.

    Args:
        threads: of each; None is the machine's cores shared out where several run side by side,
            and what the caller's environment says where it says anything.
    """
    made = {"PYTHONUNBUFFERED": "1"}
    if threads is None and at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, _cores() // at_once)
    if threads is not None:
        made["OMP_NUM_THREADS"] = str(threads)
    return made


def checkout() -> str:
    """The folder to import this project from where it may not be installed; else empty."""
    root = Path(__file__).resolve().parents[2]
    return str(root) if (root / "pyproject.toml").is_file() else ""


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
