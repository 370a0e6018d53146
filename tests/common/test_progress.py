"""Bars on a terminal, lines above them."""

from __future__ import annotations

import sys

import pytest

from common import progress
from pipeline.output import terminal


def test_bars_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    outer = terminal.Meter("sft", 4, done=1)
    inner = terminal.Meter("sampling", 2, leave=False)
    inner.update(1)
    outer.update(1)
    progress.say("a line [bold]as it is[/bold]")
    inner.close()
    outer.close()
    assert progress._display is None
    printed = capsys.readouterr()
    assert "a line [bold]as it is[/bold]" in printed.err and printed.out == ""
    last = printed.err[printed.err.rindex("sft") :]
    assert "2/4" in last and "50%" in last and "sampling" not in last


def test_without_a_terminal_there_are_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    meter = terminal.Meter("sft", 4)
    meter.update(1)
    meter.close()
    progress.say("a line")
    assert capsys.readouterr().err == "a line\n"
