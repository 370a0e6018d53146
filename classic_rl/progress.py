"""Progress of a long run: one line on a terminal, redrawn in place."""

from __future__ import annotations

import sys
import time
from types import TracebackType

BAR = 24  # characters
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
        self.live = sys.stderr.isatty()
        self.start = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """So many steps of the present part are done."""
        now = time.monotonic()
        if self.live and now - self.shown >= REDRAW:
            self.shown = now
            self._draw(min((self.finished + done / total) / self.parts, 1.0), now - self.start)

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
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        if error is None:
            print(f"{self.label}: {time.monotonic() - self.start:.1f} s", file=sys.stderr)

    def _draw(self, fraction: float, spent: float) -> None:
        filled = int(BAR * fraction)
        left = f", {spent / fraction * (1 - fraction):.0f} s left" if fraction else ""
        bar = "#" * filled + "." * (BAR - filled)
        line = f"{self.label} [{bar}] {fraction:.0%}{left}"
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
