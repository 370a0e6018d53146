"""Bars on a terminal, lines above them."""

from __future__ import annotations

import sys

import pytest

from common import progress
from pipeline.output import console, terminal


def test_bars_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    outer = terminal.Meter("sft", 4, done=1)
    inner = terminal.Meter("sampling", 2, leave=False)
    inner.update(1)
    outer.update(1)
    progress.say("a line [bold]as it is[/bold] :smile:")
    inner.close()
    outer.close()
    assert progress._display is None
    printed = capsys.readouterr()
    assert "a line [bold]as it is[/bold] :smile:" in printed.err and printed.out == ""
    last = printed.err[printed.err.rindex("sft") :]
    assert "2/4" in last and "50%" in last and "sampling" not in last


def test_without_a_terminal_there_are_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    meter = terminal.Meter("sft", 4)
    meter.update(1)
    meter.close()
    progress.say("a line")
    assert capsys.readouterr().err == "a line\n"


def test_an_error_ends_the_bars_and_gives_the_cursor_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    meter = terminal.Meter("sft", 4)
    console.complain("error: no")
    printed = capsys.readouterr().err
    assert printed.endswith("\x1b[?25herror: no\n")  # the cursor is shown again
    meter.close()  # late
    again = terminal.Meter("ppo", 2)
    assert progress._display is not None
    again.close()
    assert progress._display is None
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.on_terminal()
