"""Knowing which checkpoint is whole.

transformers' Trainer writes a checkpoint file by file, so a killed process leaves half of one
under its final name. `Trainer._save_checkpoint` has written everything when `on_save` is called;
the marker written there, once the disk has it all, lists the files with their sizes and checksums
and is what makes a checkpoint count. Older checkpoints go only after that. One that does not
count is never removed here: it is set aside, and its owner is told.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from common.files import read_json, write_json
from pipeline.errors import UserError
from pipeline.output.console import say, wait_for_every_rank

MARKER = "complete.json"
ASIDE = "not-whole"
"""Ends the name of a checkpoint that was set aside."""
_PAUSES = (0.5, 2.0)  # seconds before what cannot be read is tried again
_BLOCK = 1 << 20  # bytes read at once
_THREADS = 8  # checksums let go of the interpreter lock; more than this no disk feeds


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint-N folders in ``folder``, whole or not, by ascending step."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    folders = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and path.name.startswith(prefix) and path.name[len(prefix) :].isdigit()
    ]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


# --- Whole or not -------------------------------------------------------------------------------


def mark_complete(checkpoint: Path) -> None:
    """Write the marker: each file's size in bytes and CRC-32, once the disk has every file."""
    paths = [p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != MARKER]
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(_flushed_checksum, paths))
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "crc32": checksum}
        for path, checksum in zip(paths, sums, strict=True)
    }
    for folder in {path.parent for path in paths} | {checkpoint.parent}:
        _flush(folder)
    write_json(checkpoint / MARKER, {"step": step_of(checkpoint), "files": files})
    _flush(checkpoint)


def flaw(checkpoint: Path) -> str | None:
    """What is wrong with ``checkpoint``, to follow its name; None when it is whole.

    Raises:
        UserError: it cannot be read, whatever is in it: the disk or the network, which may pass.
    """
    for pause in _PAUSES:
        try:
            return _flaw(checkpoint)
        except OSError:
            time.sleep(pause)
    try:
        return _flaw(checkpoint)
    except OSError as error:
        raise UserError(
            f"{error.filename or checkpoint}: cannot be read ({error.strerror or error}), which"
            f" does not say that it is broken; run the same command when the disk reads again, or"
            f" move {checkpoint} away to do without it"
        ) from error


def _flaw(checkpoint: Path) -> str | None:
    """As `flaw`; OSError where something cannot be read."""
    try:
        files = dict(read_json(checkpoint / MARKER)["files"])
        expected = {str(n): (int(f["bytes"]), int(f["crc32"])) for n, f in files.items()}
    except FileNotFoundError:
        return "was not finished" if checkpoint.is_dir() else "is not there"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"has an unreadable {MARKER}"
    for name, (size, _) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes of {name} instead of {size}"
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(_plain_checksum, (checkpoint / name for name in expected))
        for (name, (_, checksum)), present in zip(expected.items(), sums, strict=True):
            if present != checksum:
                return f"has other content in {name} than was saved"
    return None


def is_complete(checkpoint: Path) -> bool:
    """True when the marker is there and every file it lists still is what was saved."""
    return flaw(checkpoint) is None


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``, None when there is none.

    The broken ones newer than it are told in one line.

    Raises:
        UserError: one of them cannot be read.
    """
    broken, chosen = [], None
    for checkpoint in reversed(checkpoints(folder)):
        problem = flaw(checkpoint)
        if problem is None:
            chosen = checkpoint
            break
        broken.append(f"{checkpoint.name} {problem}")
    if broken:
        where = f"from {chosen.name}" if chosen else "from the start"
        say(f"{folder}: {'; '.join(broken)}: skipped, going on {where}")
    return chosen


def beside(checkpoint: Path, step: int) -> Path:
    """The folder of the checkpoint of ``step`` in the folder that ``checkpoint`` lies in."""
    return checkpoint.parent / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def require_whole(checkpoint: Path) -> None:
    """Make sure that ``checkpoint`` can be resumed from.

    Raises:
        UserError: it is broken; the message names the newest whole one beside it.
    """
    problem = flaw(checkpoint)
    if problem is None:
        return
    others = [c for c in reversed(checkpoints(checkpoint.parent)) if c.name != checkpoint.name]
    whole = next(filter(is_complete, others), None)
    mend = f"resume_from_checkpoint={str(whole)!r}" if whole else "start without resuming"
    raise UserError(f"{checkpoint}: {problem}, so it cannot be resumed from; use {mend}")


def _checksum(path: Path, flush: bool) -> int:
    block = bytearray(_BLOCK)
    view, total = memoryview(block), 0
    with path.open("rb", buffering=0) as stream:
        if flush:
            os.fsync(stream.fileno())
        while count := stream.readinto(block):
            total = zlib.crc32(view[:count], total)
    return total


def _flushed_checksum(path: Path) -> int:
    return _checksum(path, flush=True)


def _plain_checksum(path: Path) -> int:
    return _checksum(path, flush=False)


def _flush(folder: Path) -> None:
    """Put a folder's list of names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network mounts cannot; the files themselves are there
    finally:
        os.close(handle)


# --- Keeping and removing -----------------------------------------------------------------------


def set_aside_after(folder: Path, checkpoint: Path | None) -> None:
    """Rename the checkpoints after ``checkpoint``, all of them for None, and tell the new names.

    After the last whole one there are only half-written and damaged ones. Under another name no
    training writes over them and no rotation takes them away.
    """
    for other in checkpoints(folder):
        if checkpoint is None or step_of(other) > step_of(checkpoint):
            aside = folder / f"{other.name}-{ASIDE}"
            number = 1
            while aside.exists():
                number += 1
                aside = folder / f"{other.name}-{ASIDE}-{number}"
            other.rename(aside)
            say(f"{other.name} is kept as {aside}; remove it when the space is needed")


def _rotate(folder: Path, limit: int | None, keep: Iterable[Path]) -> None:
    """Remove the oldest until ``limit`` are left, unfinished ones first, never those in ``keep``.

    As in the Trainer age is the time of writing, as a run that was started anew counts its steps
    from 0 again.
    """
    protected = {path.resolve() for path in keep}
    all_of_them = checkpoints(folder)
    spare = [c for c in all_of_them if c.resolve() not in protected]
    spare.sort(key=lambda c: ((c / MARKER).is_file(), c.stat().st_mtime))
    for checkpoint in spare[: max(0, len(all_of_them) - limit)] if limit else ():
        shutil.rmtree(checkpoint, ignore_errors=True)


class CompleteMarker(TrainerCallback):
    """Marks each checkpoint when it is whole, and only then removes older ones.

    Add it on every rank. The Trainer itself applies ``save_total_limit`` before the new checkpoint
    is marked, so that a kill in between could leave none; the limit is taken over from it here.
    """

    def __init__(self) -> None:
        self._limit: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the limit (which may be ours still, when an earlier call was cut short)."""
        self._limit = args.save_total_limit or self._limit
        args.save_total_limit = None
        if state.best_global_step and state.best_model_checkpoint is None:
            # The Trainer forgets a best checkpoint whose run was moved to another folder.
            best = _folder(args, state.best_global_step)
            state.best_model_checkpoint = str(best) if best.is_dir() else None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give it back."""
        args.save_total_limit = self._limit

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An earlier run's checkpoint of this step no longer counts: it may be written over now."""
        if state.is_world_process_zero and args.output_dir is not None:
            (_folder(args, state.global_step) / MARKER).unlink(missing_ok=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the checkpoint that was just saved, once every rank has written its part."""
        wait_for_every_rank()  # each writes its own RNG state
        if state.is_world_process_zero and args.output_dir is not None:
            saved = _folder(args, state.global_step)
            mark_complete(saved)
            best = [Path(path) for path in (state.best_model_checkpoint,) if path]
            _rotate(saved.parent, self._limit, [saved, *best])


def _folder(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
