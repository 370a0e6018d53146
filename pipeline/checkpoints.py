"""Knowing which checkpoint is whole.

transformers' Trainer writes a checkpoint file by file, so a killed process leaves half of one
under its final name. `Trainer._save_checkpoint` has written everything when `on_save` is called;
the marker written there, which lists the files and their sizes, is what makes a checkpoint count.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.files import read_json, write_json

MARKER = "complete.json"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint-N folders in ``folder``, whole or not, by ascending step."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and path.name.startswith(prefix) and path.name[len(prefix) :].isdigit()
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def mark_complete(checkpoint: Path) -> None:
    """Write the marker: the checkpoint's files with their sizes in bytes."""
    sizes = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    write_json(checkpoint / MARKER, {"step": step_of(checkpoint), "files": sizes})


def is_complete(checkpoint: Path) -> bool:
    """True when the marker is there and every file it lists still has its size."""
    try:
        files: dict[str, int] = read_json(checkpoint / MARKER)["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return False


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; None when there is none."""
    return next(filter(is_complete, reversed(checkpoints(folder))), None)


class CompleteMarker(TrainerCallback):
    """Marks each checkpoint when it is whole. Add it on every rank, after all other callbacks."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove an interrupted run's broken checkpoints and those after the resume point.

        Otherwise they would count towards `save_total_limit`, and be overwritten file by file
        while an old marker calls them whole.
        """
        if not state.is_world_process_zero or args.output_dir is None:
            return
        for checkpoint in checkpoints(Path(args.output_dir)):
            if step_of(checkpoint) > state.global_step or not is_complete(checkpoint):
                shutil.rmtree(checkpoint)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the checkpoint that was just saved, once every rank has written its part."""
        _wait_for_every_rank()
        if state.is_world_process_zero and args.output_dir is not None:
            name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            mark_complete(Path(args.output_dir) / name)


def _wait_for_every_rank() -> None:
    """A barrier where there are several processes (each writes its own RNG state)."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
