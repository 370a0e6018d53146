"""What is told of a sweep while it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.sweep import table
from pipeline.sweep.jobs import Ended, Job
from pipeline.sweep.table import Board

FACTS = {"seconds": 61.0, "queries": 1536, "numbers": "reward 1.20, KL 0.30, optimality 52 %"}


def jobs(count: int) -> list[Job]:
    return [Job(f"t{i}", Path("x", f"t{i}"), Path("c"), ("ppo", "compare")) for i in range(count)]


def drawn(board: Board) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(board.table())
    return capture.get()


def three() -> Board:
    """One finished before, one done now, one failed, one that cannot run."""
    all_jobs = jobs(4)
    board = Board(all_jobs, {"t0"}, lambda job: FACTS)
    board.started(all_jobs[1])
    board.finished(all_jobs[1], Ended(0, 75.0))
    board.started(all_jobs[2])
    board.finished(all_jobs[2], Ended(2, 5.0, "[x]: the disk is full"))
    board.left_out(all_jobs[3], "t2")
    return board


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    three()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sweep: t1: started (1 of 4)"
    assert lines[1].startswith("sweep: t1: done in 1 min 15 s · reward 1.20, KL 0.30, optimality")
    assert "(2 of 4" in lines[1]
    assert lines[3] == f"sweep: t2: failed: [x]: the disk is full; its log: {Path('x/t2/log.txt')}"
    assert lines[4].startswith("sweep: t3: not run: it builds on t2")


def test_the_table() -> None:
    text = drawn(three())
    rows = {line.split()[0]: line for line in text.splitlines() if re.match(r"t\d ", line)}
    assert "skipped" in rows["t0"] and "1,536" in rows["t0"] and "1 min 01 s" in rows["t0"]
    assert "done" in rows["t1"] and "1 min 15 s" in rows["t1"] and "optimality 52 %" in rows["t1"]
    assert "failed" in rows["t2"] and "[x]: the disk is full" in rows["t2"]  # no markup
    assert "failed" in rows["t3"] and "it builds on t2" in rows["t3"]
    assert "1 skipped, 1 done, 2 failed" in text


def test_a_long_table_shows_what_matters() -> None:
    """Of ninety: all that run or failed, the last that are done, the next to come."""
    all_jobs = jobs(90)
    board = Board(all_jobs, set(), lambda job: FACTS)
    for job in all_jobs[:40]:
        board.started(job)
        board.finished(job, Ended(int(job.name == "t3"), 1.0, "why"))
    board.started(all_jobs[40])
    text = drawn(board)
    shown = set(re.findall(r"^(t\d+) ", text, flags=re.MULTILINE))
    assert {"t3", "t39", "t40", "t41"} <= shown and not {"t4", "t80"} & shown
    assert len(shown) == 1 + table._RECENT + 1 + table._NEXT
    assert "76 more not shown" in text and "39 done" in text


def test_what_is_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(table.time, "monotonic", lambda: now[0])
    all_jobs = jobs(4)
    board = Board(all_jobs, set(), lambda job: FACTS)
    assert board.left() == ""
    board.started(all_jobs[0])
    now[0] = 60.0
    board.finished(all_jobs[0], Ended(0, 60.0))
    assert board.left() == ", about 3 min 00 s left"


def test_the_last_line_of_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "on_terminal", lambda: True)
    job = Job("t", tmp_path, tmp_path / "c", ("ppo",))
    job.log.write_text("ppo 4/8, 0:10 left · score 1.2\n", encoding="utf-8")
    board = Board([job], set(), lambda job: {"queries": 64})
    board.started(job)
    board.refresh()
    assert "running" in drawn(board) and "64" in drawn(board)
    assert "ppo 4/8, 0:10 left · score 1.2" in drawn(board)
