"""The line that an error is blamed on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.places import raised_at


def error_of(path: Path, text: str) -> BaseException:
    """What ``text``, run as the file ``path``, raises."""
    try:
        exec(compile(text, path, "exec"), {"json": json, "sys": sys})
    except BaseException as error:
        # As the caller sees it who is no author of a file: without this test's own line.
        return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    raise AssertionError("nothing was raised")


def test_the_authors_line_not_the_librarys(tmp_path: Path) -> None:
    for folder in (tmp_path, Path("/opt/venv/lib/python3.13/site-packages/poor")):
        assert raised_at(error_of(folder / "own.py", "\n1 / 0")) == (folder / "own.py", 2)
    own = tmp_path / "own.py"
    assert raised_at(error_of(own, "def f():\n    json.loads('{')\nf()")) == (own, 2)


def test_a_replaced_exit_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb puts a function of its own in the place of ``sys.exit``."""
    known: dict[str, Any] = {}
    text = "def exit(code):\n    raise SystemExit(code)"
    exec(compile(text, "/opt/venv/lib/python3.13/site-packages/wandb/exit_hooks.py", "exec"), known)
    monkeypatch.setattr(sys, "exit", known["exit"])
    own = tmp_path / "own.py"
    assert raised_at(error_of(own, "import os\n\nsys.exit(0)")) == (own, 3)


def test_where_all_lines_are_a_librarys_it_is_the_last() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        place = raised_at(error)
    assert place is not None and place[0].name == "decoder.py"


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert raised_at(ValueError("made")) is None
