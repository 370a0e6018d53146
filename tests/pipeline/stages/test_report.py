"""The report as a step of the run: written, and logged where a tracker is asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.report.verdict import Verdict
from pipeline.stages import report, tracking


@pytest.mark.parametrize("asked", [[], ["tensorboard"]])
def test_the_files_that_are_there_and_the_verdict_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    def write(experiment: Any) -> Verdict:
        (tmp_path / "report").mkdir()
        for name in ("index.html", "results.json", "optimum.png"):
            (tmp_path / "report" / name).write_text("")
        return Verdict("ppo", False, "Ship PPO.", ["It gains."], ["Read this."])

    logged: list[Any] = []
    monkeypatch.setattr(report.page, "run", write)
    monkeypatch.setattr(tracking, "log_report", lambda *given: logged.append(given))
    experiment: Any = SimpleNamespace(
        stage_dir=lambda stage: tmp_path / stage, tracking=SimpleNamespace(report_to=asked)
    )
    report.run(experiment)
    if not asked:
        assert logged == []
    else:
        ((given, files, lines),) = logged
        assert given is experiment
        assert [path.name for path in files] == ["index.html", "results.json"]
        assert lines == ["Ship PPO.", "Read this.", "It gains."]
