"""Progress of a long run: a bar on a terminal, and one line at its end."""

from __future__ import annotations

import time
from types import TracebackType

from common.progress import Bar, on_terminal, say

REDRAW = 0.1  # seconds between two redrawings


class Progress:
    """A bar on stderr, and at the end one line with the time it took.

    The bar shows on a terminal only; where stderr is a file or a pipe there is just the last line.
    Call it as the learners call their ``on_progress``, and `next` when one of the parts is done::

        with Progress("3 seeds", parts=3) as bar:
            for seed in range(3):
                q_learning(mdp, seed=seed, on_progress=bar, ...)
                bar.next()

    Args:
        label: what is running. parts: how many runs make up the whole, each as long.
    """

    def __init__(self, label: str, parts: int = 1) -> None:
        self.label, self.parts, self.finished = label, parts, 0
        self.start = self.shown = time.monotonic()
        self._bar = Bar(label, parts) if on_terminal() else None

    def __call__(self, done: int, total: int) -> None:
        """So many steps of the present part are done."""
        now = time.monotonic()
        if self._bar is not None and now - self.shown >= REDRAW:
            self.shown = now
            self._bar.update(min(self.finished + done / total, self.parts), redraw=True)

    def next(self) -> None:
        """A part is done."""
        self.finished += 1
        self(0, 1)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close(leave=False)
        if error is None:
            say(f"{self.label}: {time.monotonic() - self.start:.1f} s")
