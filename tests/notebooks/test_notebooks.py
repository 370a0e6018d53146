"""Every notebook runs with small settings; each check tells the unsolved from the solved.

The cells run in this process, one after another in one namespace, as a kernel would run them. A
solution has a copy of it: the cells that follow find the exercise unsolved, as "run all" does.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import matplotlib
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"run": ROOT / "notebooks", "lesson": ROOT / "notebooks", "lessons": ROOT / "docs/make"}
VERDICT = re.compile(r"^([✓✗]) exercise (\S+?):", re.M)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDERS[name] / f"{name}.py")
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

        def do(source: str, where: dict[str, Any], place: str = place) -> str:
            capsys.readouterr()
            exec(compile(source, place, "exec"), where)
            return capsys.readouterr().out

        if cell.check:
            exercises += 1
            before = VERDICT.findall(do(cell.source, names))
            assert [sign for sign, _ in before] == ["✗"], f"{place}: unsolved, it passes"
            solved = dict(names)
            do(cell.solution, solved)
            after = VERDICT.findall(do(cell.source, solved))
            assert [sign for sign, _ in after] == ["✓"], f"{place}: the solution fails"
        else:
            do(cell.source, names)
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


def test_what_failed_is_counted_and_becomes_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {
        "01_fails.py": "# %%\nassert 1 == 2, 'as {it} must'\n",
        "02_dies.py": "# %%\nimport os\nos._exit(1)\n",
        "03_says.py": "# %%\nfrom lesson import SMALL\nprint('small' if SMALL else 'full')\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    made = tmp_path / "made"
    made.mkdir()
    (made / "01_fails.ipynb").write_text("of an earlier run", encoding="utf-8")
    monkeypatch.setattr(run, "paths", lambda names: sorted(tmp_path.glob("*.py")))
    monkeypatch.setattr(run, "MADE", made)
    monkeypatch.setenv("RLHF_NOTEBOOKS", "small")  # a full run is a full run all the same
    assert run.main([]) == 1
    out, error = capsys.readouterr()
    assert "1 of 3 notebooks" in out
    assert "a cell failed: AssertionError: as {it} must" in error
    assert "02_dies.py: after" in error and "the kernel ended by itself" in error
    assert [path.name for path in made.glob("*.ipynb")] == ["03_says.ipynb"]
    assert "full" in (made / "03_says.ipynb").read_text(encoding="utf-8")
    assert (made / "failed" / "01_fails.ipynb").exists()


@pytest.mark.parametrize(
    "change, shown",
    [("none", True), ("text", False), ("failed", False), ("small", False), ("stopped", False)],
)
def test_a_page_shows_whole_runs_of_todays_text_only(
    change: str, shown: bool, tmp_path: Path
) -> None:
    for folder in ("docs", "notebooks", "build/notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    text = "# %% [markdown]\n# # 1. X\n\n# %%\nprint(2)\n"
    (tmp_path / "notebooks/01_x.py").write_text(text, encoding="utf-8")
    done = jupytext.reads(text, fmt="py:percent")
    cell = done.cells[1]
    said = "· 450 (not judged with small settings)" if change == "small" else "what it said"
    cell.execution_count = None if change == "stopped" else 1
    cell.outputs = [nbformat.v4.new_output("stream", text=said)]
    if change == "failed":
        cell.outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))
    if change == "text":
        cell.source = "print(3)"
    nbformat.write(done, tmp_path / "build/notebooks/01_x.ipynb")
    (page,) = module("lessons").write(tmp_path)
    found = page.read_text(encoding="utf-8")
    assert ("what it said" in found) is shown
    assert ("No outputs here" in found) is not shown
