"""What runs, what is done and what it costs: a live table on a terminal, else plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from common.progress import on_terminal
from common.words import clock
from pipeline.output.console import say
from pipeline.sweep.jobs import Ended, Job, tail

WAITING, RUNNING, DONE, FAILED, SKIPPED = "waiting", "running", "done", "failed", "skipped"
_COLOURS = {RUNNING: "bold", DONE: "green", FAILED: "red", SKIPPED: "dim", WAITING: "dim"}
# Seconds between two readings of the logs, and rows shown of each kind that could be many.
_LOOK, _RECENT, _NEXT = 2.0, 8, 4

Facts = Callable[[Job], Mapping[str, Any]]
"""What a job's folder tells: `queries`, `seconds` of its stages, `numbers` in words."""


@dataclass
class Row:
    """A job as it stands."""

    job: Job
    state: str = WAITING
    began: float = 0.0
    seconds: float | None = None
    queries: int | None = None
    note: str = ""


class Board:
    """Keeps and shows how every job stands.

    Args:
        jobs: in order. done: names of those that were finished before.
        facts: reads a job's folder; see `Facts`.
    """

    def __init__(self, jobs: Sequence[Job], done: set[str], facts: Facts) -> None:
        self.rows = {job.name: Row(job) for job in jobs}
        self._facts, self._looked, self._start = facts, 0.0, time.monotonic()
        for name in done & self.rows.keys():
            self.rows[name].state = SKIPPED
            self._read(self.rows[name])
        self._live: Live | None = None
        if on_terminal():
            console = Console(stderr=True)
            self._live = Live(console=console, refresh_per_second=4, get_renderable=self.table)

    def __enter__(self) -> Board:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last drawing."""
        if self._live is not None:
            self._live.stop()

    # -- what happens (see `schedule.Watcher`) ---------------------------------------------------

    def started(self, job: Job) -> None:
        """A job begins."""
        row = self.rows[job.name]
        row.state, row.began = RUNNING, time.monotonic()
        self._tell(f"{job.name}: started ({self.count()})")

    def finished(self, job: Job, ended: Ended) -> None:
        """A job ended, well or not."""
        row = self.rows[job.name]
        row.state = DONE if ended.code == 0 else FAILED
        self._read(row)
        row.seconds = ended.seconds
        if ended.code == 0:
            words = f"done in {clock(ended.seconds)}" + (f" · {row.note}" if row.note else "")
            self._tell(f"{job.name}: {words} ({self.count()}{self.left()})")
        else:
            row.note = ended.error
            self._tell(f"{job.name}: failed: {ended.error}; its log: {job.log}")

    def left_out(self, job: Job, because: str) -> None:
        """A job cannot run, as the one that it builds on failed."""
        row = self.rows[job.name]
        row.state, row.note = FAILED, f"not run: it builds on {because}, which failed"
        self._tell(f"{job.name}: {row.note}")

    def refresh(self) -> None:
        """Read the logs of what runs, now and then."""
        if self._live is None or time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        for row in self.rows.values():
            if row.state == RUNNING:
                row.note = (tail(row.job.log) or [""])[-1]
                row.queries = self._facts(row.job).get("queries")

    def _read(self, row: Row) -> None:
        facts = self._facts(row.job)
        row.seconds, row.queries = facts.get("seconds"), facts.get("queries")
        row.note = facts.get("numbers") or ""

    def _tell(self, text: str) -> None:
        if self._live is None:
            say(f"sweep: {text}")

    # -- words -----------------------------------------------------------------------------------

    def states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        counts: dict[str, int] = {}
        for row in self.rows.values():
            counts[row.state] = counts.get(row.state, 0) + 1
        return counts

    def count(self) -> str:
        """Return e.g. ``12 of 27``: those that are over, and all."""
        states = self.states()
        over = sum(states.get(state, 0) for state in (DONE, FAILED, SKIPPED))
        return f"{over} of {len(self.rows)}"

    def left(self) -> str:
        """About how long the rest takes, from the pace so far; nothing before the first is done."""
        states = self.states()
        made = states.get(DONE, 0) + states.get(FAILED, 0)
        rest = states.get(WAITING, 0) + 0.5 * states.get(RUNNING, 0)
        if not made or not rest:
            return ""
        return f", about {clock((time.monotonic() - self._start) / made * rest)} left"

    def table(self) -> Table:
        """The jobs that matter now: running, failed, the last that are done, the next to come."""
        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("trial", "state", "time", "queries"):
            drawn.add_column(name, justify="left" if name in ("trial", "state") else "right")
        drawn.add_column("", no_wrap=True, overflow="ellipsis")
        rows, hidden = self._shown()
        for row in rows:
            seconds = row.seconds
            if row.state == RUNNING:
                seconds = time.monotonic() - row.began
            drawn.add_row(
                escape(row.job.name),
                row.state,
                "" if seconds is None else clock(seconds),
                "" if row.queries is None else f"{row.queries:,}",
                escape(row.note),
                style=_COLOURS[row.state],
            )
        words = ", ".join(f"{number} {state}" for state, number in self.states().items())
        more = f"; {hidden} more not shown" if hidden else ""
        drawn.caption = f"{words}{more}; {clock(time.monotonic() - self._start)}{self.left()}"
        drawn.caption_justify = "left"
        return drawn

    def _shown(self) -> tuple[list[Row], int]:
        """The rows to draw, in order, and how many are left out."""
        rows = list(self.rows.values())
        over = [row for row in rows if row.state in (DONE, SKIPPED)]
        coming = [row for row in rows if row.state == WAITING]
        hidden = {id(row) for row in [*over[:-_RECENT], *coming[_NEXT:]]}
        return [row for row in rows if id(row) not in hidden], len(hidden)
