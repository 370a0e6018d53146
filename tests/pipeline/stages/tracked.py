"""What the tests of tracking share: no account, and a small experiment."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a W&B account, whatever the one that runs the tests has."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("RANK", raising=False)


def experiment(folder: Path, report_to: tuple[str, ...] = ("wandb",)) -> Any:
    """The part of an experiment that tracking reads."""
    return SimpleNamespace(
        name="small",
        output_dir=folder,
        tracking=SimpleNamespace(report_to=list(report_to), project="rlhf", log_samples=4),
        stage_dir=lambda stage: folder / stage,
        called=lambda stage: stage,
        model_dump=lambda mode: {"name": "small"},
    )
