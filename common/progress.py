"""Lines and bars on stderr, so that what a command prints as its result can be piped."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# What rich redraws now, and how many bars are still open in it.
_display: Progress | None = None
_open = 0


def on_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def say(text: str) -> None:
    """Print a line on stderr, above any open bar."""
    if _display is not None:
        _display.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar with the time left, for a terminal; bars that are open together stand in rows.

    Args:
        label: what is counted. total: None where it is not known. done: steps made before.
    """

    def __init__(self, label: str, total: float | None, done: float = 0) -> None:
        global _display, _open
        if _display is None:
            _display = _new_display()
            atexit.register(close_all)
            _display.start()
        _open += 1
        self._display = _display
        self._task: TaskID = _display.add_task(label, total=total, count="")
        self.update(done)

    def update(self, done: float, count: str = "", redraw: bool = False) -> None:
        """Show ``done`` steps, and ``count`` in words; at once where ``redraw`` asks for it."""
        self._display.update(self._task, completed=done, count=count, refresh=redraw)

    def close(self, leave: bool) -> None:
        """Count no further; the row stays where ``leave`` says so."""
        global _open
        if self._display is not _display:  # ended already, by an error
            return
        if not leave:
            self._display.remove_task(self._task)
        _open -= 1
        if _open == 0:
            close_all()


def close_all() -> None:
    """End all bars, after an error too: rich gives the cursor back only then."""
    global _display, _open
    if _display is not None:
        _display.stop()
    _display, _open = None, 0


def _new_display() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
        redirect_stdout=False,  # results go to stdout, whatever is open here
        redirect_stderr=False,
    )
