"""Which job runs when: each as soon as what it builds on is there, in the order given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.sweep.jobs import Ended, Job

# Seconds between two looks at what runs.
INTERVAL = 0.2


class Runner(Protocol):
    """What runs jobs: `pipeline.sweep.local.Local`, `pipeline.sweep.cluster.Cluster`."""

    def has_room(self) -> bool:
        """Whether `start` may be called."""
        ...

    def start(self, job: Job) -> None:
        """Begin a job."""
        ...

    def ended(self) -> dict[str, Ended]:
        """What ended since it was last asked, by name."""
        ...

    def busy(self) -> bool:
        """Whether anything runs."""
        ...

    def stop(self) -> None:
        """End what runs."""
        ...


class Watcher(Protocol):
    """Who is told of it: `pipeline.sweep.table.Board`."""

    def started(self, job: Job) -> None:
        """A job begins."""
        ...

    def finished(self, job: Job, ended: Ended) -> None:
        """A job ended, well or not."""
        ...

    def left_out(self, job: Job, because: str) -> None:
        """A job cannot run, as the one that it builds on failed."""
        ...

    def refresh(self) -> None:
        """Time went by."""
        ...


def work_off(
    jobs: Sequence[Job],
    done: set[str],
    runner: Runner,
    watcher: Watcher,
    after_each: Callable[[], object],
) -> set[str]:
    """Run ``jobs`` but those in ``done``; a failed one stops nothing but what builds on it.

    Whatever interrupts this ends the jobs that run.

    Args:
        done: names of finished jobs; what finishes here is added.
        after_each: called when a job has finished.

    Returns:
        the names of those that failed or could not run.
    """
    waiting = [job for job in jobs if job.name not in done]
    by_name, failed = {job.name: job for job in jobs}, set[str]()
    try:
        while waiting or runner.busy():
            for job in list(waiting):
                lost = [name for name in job.after if name in failed]
                if lost:
                    waiting.remove(job)
                    failed.add(job.name)
                    watcher.left_out(job, lost[0])
                elif done.issuperset(job.after) and runner.has_room():
                    waiting.remove(job)
                    watcher.started(job)
                    runner.start(job)
            for name, ended in runner.ended().items():
                (done if ended.code == 0 else failed).add(name)
                watcher.finished(by_name[name], ended)
                after_each()
            watcher.refresh()
            time.sleep(INTERVAL if runner.busy() else 0)
    except BaseException:
        runner.stop()
        raise
    return failed
