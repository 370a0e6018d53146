"""A runner whose jobs start within milliseconds: the tests' nursery forks them, one at a time."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.sweep.jobs import Ended, Job, tail
from tests.nursery import Nursery


def stages(config: str, *names: str) -> int:
    """In the child: what `pipeline.sweep.trial` does, without a parent to end with."""
    from pipeline import cli

    for name in names:
        code = cli.main([name, "--config", config])
        if code:
            return code
    return 0


class Forked:
    """Runs a job to its end before the next one is started."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery, self.started = nursery, list[str]()
        self._over: dict[str, Ended] = {}

    def has_room(self) -> bool:
        return not self._over

    def start(self, job: Job) -> None:
        self.started.append(job.name)
        begun, words = time.monotonic(), (str(job.config), *job.stages)
        Path(job.log).parent.mkdir(parents=True, exist_ok=True)
        pid = self.nursery.start(job.log, "tests.pipeline.sweep.forked:stages", *words)
        code = self.nursery.wait(pid)
        error = "" if code == 0 else tail(job.log)[-1].removeprefix("error: ")
        self._over[job.name] = Ended(code, time.monotonic() - begun, error)

    def ended(self) -> dict[str, Ended]:
        over, self._over = self._over, {}
        return over

    def busy(self) -> bool:
        return bool(self._over)

    def stop(self) -> None:
        pass
