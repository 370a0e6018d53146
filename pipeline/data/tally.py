"""Telling what was left out of a data set, or changed in it, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.output.console import say

# Every stage reads the data anew; a person reads the line once.
_told: set[str] = set()
_listeners: list[list[str]] = []


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the lines about the data inside the block instead of printing them."""
    lines: list[str] = []
    _listeners.append(lines)
    try:
        yield lines
    finally:
        _listeners.pop()  # they end in the order in which they began, reversed


def tell(line: str) -> None:
    """Print a line about the data, once a process; or add it to what :func:`listening` collects."""
    if _listeners:
        if line not in _listeners[-1]:
            _listeners[-1].append(line)
    elif line not in _told:
        _told.add(line)
        say(f"data: {line}")


class Tally:
    """Counts what is left out of a data set, a reason at a time, with the first place of each."""

    def __init__(self, name: str, what: str) -> None:
        """``name`` is the data set's; ``what`` its rows are called, such as pairs."""
        self.name, self.what = name, what
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def leave_out(self, reason: str, place: str = "") -> None:
        """Count a row that is left out for ``reason``; ``place`` is where it stands."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._first.setdefault(reason, place)

    @property
    def left_out(self) -> int:
        """How many rows were left out."""
        return sum(self._counts.values())

    def reasons(self) -> str:
        """Each reason with its count and first place."""
        parts = []
        for reason, count in self._counts.items():
            place = self._first[reason]
            first = "" if not place else f"; first: {place}" if count > 1 else f": {place}"
            parts.append(f"{reason} ({count:,}{first})")
        return ", ".join(parts)

    def tell(self, total: int) -> None:
        """Print what was left out of ``total``, if anything was."""
        if self._counts:
            counts = f"{self.left_out:,} of {total:,} {self.what}"
            tell(f"{self.name}: {counts} left out: {self.reasons()}")
