"""A checkpoint counts only when it is whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    IntervalStrategy,
    SchedulerType,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import pipeline.output.checkpoints as output_checkpoints
from pipeline.errors import UserError
from pipeline.output.checkpoints import (
    MARKER,
    CompleteMarker,
    checkpoints,
    is_complete,
    last_complete,
    mark_complete,
    require_whole,
)
from pipeline.stages.training import resume
from tests.nursery import Nursery


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


DAMAGES = {
    "unmarked": (lambda c: (c / MARKER).unlink(), "was not finished"),
    "truncated": (lambda c: (c / "weights").write_bytes(b"123"), "3 bytes of weights instead of 5"),
    "corrupted": (lambda c: (c / "weights").write_bytes(b"12354"), "other content in weights"),
    "missing": (lambda c: (c / "part" / "state").unlink(), "lacks part/state"),
    "marker cut": (lambda c: (c / MARKER).write_text('{"step": 20, "fil'), f"unreadable {MARKER}"),
    "marker of lists": (
        lambda c: (c / MARKER).write_text('{"files": [1]}'),
        f"unreadable {MARKER}",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_one_is_passed_over_and_told(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, newest = fake(tmp_path, 10), fake(tmp_path, 20)
    assert last_complete(tmp_path) == newest
    assert capsys.readouterr().err == ""
    DAMAGES[damage][0](newest)
    assert last_complete(tmp_path) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert DAMAGES[damage][1] in line
    assert "checkpoint-20" in line and "going on from checkpoint-10" in line
    with pytest.raises(UserError) as error:
        require_whole(newest)
    assert DAMAGES[damage][1] in str(error.value) and str(before) in str(error.value)


def test_every_part_of_a_large_file_counts(tmp_path: Path) -> None:
    """Checksums are read in blocks: the last byte of the last one matters like the first."""
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    content = bytearray(os.urandom((1 << 21) + 7))
    (checkpoint / "weights").write_bytes(content)
    mark_complete(checkpoint)
    assert is_complete(checkpoint)
    for position in (0, 1 << 20, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (checkpoint / "weights").write_bytes(damaged)
        assert not is_complete(checkpoint), position


def test_trainer_marks_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, 6).train()
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 4, 6)]
    assert all(map(is_complete, checkpoints(tmp_path)))
    # As after a kill: the newest is half-written, so the one before is resumed from, the half-
    # written one is set aside, and training ends with the same weights.
    expected = (tmp_path / "checkpoint-6" / "model.safetensors").read_bytes()
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(expected[:9])
    (tmp_path / "checkpoint-6-not-whole").mkdir()  # of an earlier kill
    again, seen = trainer(tmp_path, 6), SeenAtStart()
    again.add_callback(seen)
    resume(again)
    assert seen.found == [(4, ["checkpoint-2", "checkpoint-4"])]
    assert (tmp_path / "checkpoint-6" / "model.safetensors").read_bytes() == expected
    assert is_complete(tmp_path / "checkpoint-6")
    kept = tmp_path / "checkpoint-6-not-whole-2"
    assert (kept / "model.safetensors").read_bytes() == expected[:9]
    assert str(kept) in capsys.readouterr().err


def test_a_read_error_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that passes costs a second; one that stays ends the run and leaves all as it is."""
    whole = fake(tmp_path, 10)
    plain, errors = output_checkpoints._checksum, [OSError(5, "Input/output error", "weights")]
    monkeypatch.setattr(output_checkpoints, "_PAUSES", (0.0, 0.0))

    def read(path: Path, flush: bool) -> int:
        if errors and path.name == "weights":
            raise errors.pop()
        return plain(path, flush)

    monkeypatch.setattr(output_checkpoints, "_checksum", read)
    assert last_complete(tmp_path) == whole and errors == []
    errors += [OSError(5, "Input/output error", "weights")] * 9
    with pytest.raises(UserError, match="weights: cannot be read .Input/output error., which does"):
        resume(trainer(tmp_path, 12))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def best_trainer(folder: Path, losses: dict[int, float]) -> Trainer:
    """A trainer that evaluates before each checkpoint, with these losses by step for results."""
    made = trainer(folder, 6)
    made.args.eval_strategy = IntervalStrategy.STEPS
    made.args.eval_steps, made.args.load_best_model_at_end = 2, True
    made.args.metric_for_best_model, made.args.greater_is_better = "loss", False
    made.evaluate = lambda **_: {"eval_loss": losses[made.state.global_step]}  # type: ignore[method-assign]
    return made


def test_a_run_killed_after_its_last_checkpoint_keeps_the_best(tmp_path: Path) -> None:
    first = best_trainer(tmp_path / "run", {2: 3.0, 4: 1.0, 6: 2.0})
    first.train()
    model: Any = first.model
    best = model.w.item()
    (tmp_path / "run").rename(tmp_path / "moved")
    again = best_trainer(tmp_path / "moved", {})
    resume(again)
    model = again.model
    assert model.w.item() == best
    # Also where the run goes on: the Trainer itself forgets a best checkpoint that was moved.
    (tmp_path / "moved" / "checkpoint-6" / MARKER).unlink()
    third = best_trainer(tmp_path / "moved", {6: 2.0})
    resume(third)
    model = third.model
    assert model.w.item() == best
    (tmp_path / "moved" / "checkpoint-4" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="checkpoint-4: the best checkpoint lacks model.safetens"):
        resume(best_trainer(tmp_path / "moved", {}))


def test_a_longer_run_ends_as_if_it_had_been_so_long(tmp_path: Path) -> None:
    def made(name: str, steps: int) -> Trainer:
        one = trainer(tmp_path / name, steps)
        one.args.lr_scheduler_type = SchedulerType.CONSTANT
        return one

    made("short", 4).train()
    resume(made("short", 8))
    made("long", 8).train()
    weights = [tmp_path / n / "checkpoint-8" / "model.safetensors" for n in ("short", "long")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


class SeenAtStart(TrainerCallback):
    """Notes the step and the checkpoints that training begins with."""

    def __init__(self) -> None:
        self.found: list[tuple[int, list[str]]] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        names = [path.name for path in checkpoints(Path(str(args.output_dir)))]
        self.found.append((state.global_step, names))


def test_an_older_run_does_not_vouch_for_a_checkpoint_that_is_written_over(tmp_path: Path) -> None:
    trainer(tmp_path, 4).train()
    again = trainer(tmp_path, 4)

    def full(folder: str) -> None:
        raise OSError(28, "No space left on device")

    again._save_optimizer_and_scheduler = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space"):
        again.train()
    assert not is_complete(tmp_path / "checkpoint-2")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize("limit", [1, 2])
def test_older_ones_go_only_when_the_new_one_is_whole(tmp_path: Path, limit: int) -> None:
    """A kill at any moment of saving leaves a whole checkpoint, also with a limit of one."""
    seen: list[Path | None] = []

    class Watch(CompleteMarker):
        def on_save(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
            seen.append(last_complete(tmp_path))  # everything is written, the marker is not
            super().on_save(args, state, control, **kwargs)

    watched = trainer(tmp_path, 6, limit=limit)
    watched.remove_callback(CompleteMarker)
    watched.add_callback(Watch())
    watched.train()
    assert seen == [None, tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"]
    left = [f"checkpoint-{n}" for n in (4, 6)][-limit:]
    assert [path.name for path in checkpoints(tmp_path)] == left
    assert watched.args.save_total_limit == limit


def test_rotation_keeps_whole_ones(tmp_path: Path) -> None:
    trainer(tmp_path, 8, limit=2).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-8"


def killed_while_saving(folder: str) -> None:
    """Training in another process, which is killed between the two halves of a checkpoint."""
    made = trainer(Path(folder), 6)
    whole: Any = made._save_optimizer_and_scheduler

    def die(output_dir: str) -> None:
        if output_dir.endswith("-4"):
            os.kill(os.getpid(), signal.SIGKILL)
        whole(output_dir)

    made._save_optimizer_and_scheduler = die
    made.train()


def test_kill_while_saving(tmp_path: Path, nursery: Nursery) -> None:
    log = tmp_path / "log"
    pid = nursery.start(log, f"{__name__}:killed_while_saving", str(tmp_path))
    assert nursery.wait(pid) == -signal.SIGKILL, log.read_text()
    assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"
