"""A checkpoint counts only when it is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from pipeline.checkpoints import (
    MARKER,
    CompleteMarker,
    checkpoints,
    is_complete,
    last_complete,
    mark_complete,
)


class Line(torch.nn.Module):
    """y = w·x, the smallest model that a Trainer trains."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean squared error of (B,) predictions."""
        return {"loss": ((self.w * x - y) ** 2).mean()}


def trainer(folder: Path, steps: int, limit: int | None = None) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=2,
        save_total_limit=limit,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    rows = [{"x": torch.tensor(float(i)), "y": torch.tensor(2.0 * i)} for i in range(8)]
    return Trainer(Line(), arguments, train_dataset=rows, callbacks=[CompleteMarker()])  # pyright: ignore


def fake(folder: Path, step: int, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "part").mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"12345")
    (checkpoint / "part" / "state").write_bytes(b"1")
    if complete:
        mark_complete(checkpoint)
    return checkpoint


def test_no_checkpoint(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "none") is None
    assert last_complete(tmp_path) is None


def test_newest_is_by_number(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        fake(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [
        f"checkpoint-{n}" for n in (9, 20, 100)
    ]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("damage", ["unmarked", "truncated", "missing", "marker"])
def test_broken_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    before = fake(tmp_path, 10)
    newest = fake(tmp_path, 20, complete=damage != "unmarked")
    if damage == "truncated":
        (newest / "weights").write_bytes(b"123")
    if damage == "missing":
        (newest / "part" / "state").unlink()
    if damage == "marker":
        (newest / MARKER).write_text('{"step": 20, "fil', encoding="utf-8")
    assert last_complete(tmp_path) == before


def test_trainer_marks_and_resumes(tmp_path: Path) -> None:
    trainer(tmp_path, 6).train()
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 4, 6)]
    assert all(map(is_complete, checkpoints(tmp_path)))
    # As after a kill: the newest is half-written, so the one before is resumed from, the half-
    # written one goes, and training ends with the same weights.
    expected = (tmp_path / "checkpoint-6" / "model.safetensors").read_bytes()
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(expected[:9])
    resume = last_complete(tmp_path)
    assert resume == tmp_path / "checkpoint-4"
    again = trainer(tmp_path, 6)
    again.add_callback(SeenAtStart)
    again.train(resume_from_checkpoint=str(resume))
    assert SeenAtStart.names == ["checkpoint-2", "checkpoint-4"]
    assert (tmp_path / "checkpoint-6" / "model.safetensors").read_bytes() == expected
    assert is_complete(tmp_path / "checkpoint-6")


class SeenAtStart(CompleteMarker):
    """Notes which checkpoints are there once the marker's `on_train_begin` is done."""

    names: list[str] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        SeenAtStart.names = [path.name for path in checkpoints(Path(str(args.output_dir)))]

    def on_save(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        return None


def test_rotation_keeps_whole_ones(tmp_path: Path) -> None:
    trainer(tmp_path, 8, limit=2).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-8"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from test_checkpoints import trainer
t = trainer(Path({folder!r}), 6)
whole = t._save_optimizer_and_scheduler
def die(folder):
    if folder.endswith("-4"):
        os.kill(os.getpid(), signal.SIGKILL)
    whole(folder)
t._save_optimizer_and_scheduler = die
t.train()
"""


def test_kill_while_saving(tmp_path: Path, root: Path) -> None:
    code = KILLED.format(tests=str(root / "tests"), root=str(root), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"
