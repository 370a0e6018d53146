"""Every notebook runs with small settings; each check tells the unsolved from the solved.

The cells run in this process, one after another in one namespace, as a kernel would run them.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
VERDICT = re.compile(r"^([✓✗]) exercise (\S+?):", re.M)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, NOTEBOOKS / f"{name}.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


run = module("run")


@pytest.fixture
def lesson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The notebooks' helper with small settings; what they write goes to a folder of the test."""
    monkeypatch.setenv("RLHF_NOTEBOOKS", "small")
    monkeypatch.setitem(sys.modules, "lesson", None)  # put back at the end of the test
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    return module("lesson")


@pytest.mark.parametrize("path", run.paths(), ids=lambda path: path.stem)
def test_notebook(path: Path, lesson: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "__main__"}
    exercises = 0
    for number, cell in enumerate(run.cells(path)):
        place = f"{path.name}, code cell {number}"

        def do(source: str, place: str = place) -> str:
            capsys.readouterr()
            exec(compile(source, place, "exec"), names)
            return capsys.readouterr().out

        if cell.check:
            exercises += 1
            before = VERDICT.findall(do(cell.source))
            assert [sign for sign, _ in before] == ["✗"], f"{place}: unsolved, it passes"
            do(cell.solution)
            after = VERDICT.findall(do(cell.source))
            assert [sign for sign, _ in after] == ["✓"], f"{place}: the solution fails"
        else:
            do(cell.source)
    pyplot.close("all")
    assert exercises >= 2, "a lesson without exercises"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("# %% tags=['exercise']\nx = ...\n", "no check"),
        ("# %% tags=['check']\nassert x\n", "needs an exercise"),
        ("# %% tags=['exercise']\nx = ...\n# %% tags=['check']\nassert x\n", "solution"),
    ],
)
def test_a_lesson_that_is_not_built_as_one(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "01_x.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(run.NotebookError, match=reason):
        list(run.cells(path))


def test_a_claim_that_does_not_come_out_stops_the_notebook(
    lesson: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lesson.claim("more than all", False)
    assert "not judged" in capsys.readouterr().out
    monkeypatch.setattr(lesson, "SMALL", False)
    with pytest.raises(AssertionError, match="more than all"):
        lesson.claim("more than all", False)


def test_names_that_fit_no_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["99"])
    assert "no notebook begins with '99'" in capsys.readouterr().err
