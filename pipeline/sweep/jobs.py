"""A job of a sweep: stages of one experiment, run in a process of its own.

Only the standard library is imported here: a cluster's node gets these functions by value.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOG = "log.txt"
# Seconds that a job has to end by itself before it is killed.
PATIENCE = 30.0
# What the command line answers to a full disk: `pipeline.runner`.
FULL_DISK = "the disk is full"
_TAIL = 16_384


@dataclass(frozen=True)
class Job:
    """Stages of one experiment.

    Attributes:
        name: for people, and in sweep.json.
        folder: where its log is; the experiment's output folder.
        config: the experiment's file.
        stages: commands, in order.
        after: names of the jobs that must be finished before it.
    """

    name: str
    folder: Path
    config: Path
    stages: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """All that its processes printed, oldest first."""
        return self.folder / LOG


@dataclass(frozen=True)
class Ended:
    """How a job's process ended.

    Attributes:
        code: exit code; 0 is success, negative a signal, -9 also a lost machine.
        seconds: wall-clock time of the process.
        error: its last words where it failed.
        node: where it ran, on a cluster.
    """

    code: int
    seconds: float
    error: str = ""
    node: str = ""

    @property
    def disk_full(self) -> bool:
        """Whether it failed because a disk was full."""
        return self.code != 0 and FULL_DISK in self.error


class Process:
    """A started job.

    Args:
        folder, log, config, stages: see `Job`; plain, as they travel.
        environment: variables beside this process's own.
        directory: the working directory, which paths in the config are relative to.
        root: a checkout to import this project from; empty where it is installed.
    """

    def __init__(
        self,
        log: str,
        config: str,
        stages: tuple[str, ...],
        environment: Mapping[str, str],
        directory: str,
        root: str = "",
    ) -> None:
        self.began = time.monotonic()
        self.log = Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._from = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "pipeline.sweep.trial", config, *stages]
        variables = {**os.environ, **environment}
        if root:
            before = variables.get("PYTHONPATH")
            variables["PYTHONPATH"] = f"{root}{os.pathsep}{before}" if before else root
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells the child that nobody waits any more
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=variables,
                start_new_session=True,  # Ctrl-C comes through `stop`, once
            )

    def ended(self) -> Ended | None:
        """How it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        if self.process.stdin is not None:
            self.process.stdin.close()
        seconds = round(time.monotonic() - self.began, 3)
        return Ended(code, seconds, "" if code == 0 else self.last_words(code))

    def wait(self) -> Ended:
        """Wait for its end."""
        self.process.wait()
        ended = self.ended()
        assert ended is not None
        return ended

    def last_words(self, code: int) -> str:
        """The line that says why it failed."""
        lines = tail(self.log, self._from)
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
        why = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{why}: {lines[-1]}" if lines else why

    def ask_to_end(self) -> None:
        """Interrupt it, as Ctrl-C would."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def end(self, patience: float) -> None:
        """Wait at most ``patience`` seconds for its end, then kill it."""
        try:
            self.process.wait(max(0.0, patience))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def on_node(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Run a job's process on a node of a cluster: the fields of `Ended`.

    Args:
        arguments: those of `Process`.
    """
    node = importlib.import_module("ray").get_runtime_context().get_node_id()
    try:
        ended = Process(*arguments).wait()
    except OSError as error:  # the log cannot be written
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        ended = Ended(1, 0.0, f"{arguments[0]}: {FULL_DISK if full else error.strerror}")
    return {**asdict(ended), "node": node}


def tail(log: Path, start: int = 0) -> list[str]:
    """The last lines of ``log`` from byte ``start`` on that are not empty; [] where there is none.

    What the child drew over (a carriage return) is left out.
    """
    try:
        with log.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(start, end - _TAIL))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = (line.rpartition("\r")[2].strip() for line in text.splitlines())
    return [line for line in lines if line]
