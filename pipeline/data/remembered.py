"""What is remembered of files that are too large to be read at every start: a folder of the cache.

A file is known by its path, size and times. A file whose times are so young that it could be
changed again without another time is remembered for this process alone, as git does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from pipeline.data.cache import cache_folder
from pipeline.errors import UserError

# Seconds: no file system keeps times more coarsely (FAT: two).
_YOUNG = 2.0
_DEAD = 7 * 24 * 3600.0  # after which nobody is at work with what another process left
Arrays = dict[str, NDArray[Any]]


class Remembered:
    """The cache folder of some files as they are now; made when something is put there."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [file.resolve() for file in files]
        self._states = self._now()
        youngest = max((max(state[1:]) for state in self._states), default=0)
        self._passing = time.time_ns() - youngest < _YOUNG * 1e9
        self._folder: Path | None = None

    def file(self, name: str) -> Path:
        """A file in the folder, whether it is there or not.

        Raises:
            UserError: The folder cannot be made.
        """
        if self._folder is None:
            with told(cache_folder()):
                self._folder = self._made()
        return self._folder / name

    def check(self) -> None:
        """See to it that the files are still the same.

        Raises:
            UserError: One was changed meanwhile.
        """
        for file, before, now in zip(self._files, self._states, self._now(), strict=True):
            if before[:2] != now[:2]:
                raise UserError(f"{file}: was changed while it was read: run again")

    def check_open(self, part: int, descriptor: int) -> None:
        """:meth:`check` of one file that is open."""
        state = os.fstat(descriptor)
        if (state.st_size, state.st_mtime_ns) != self._states[part][:2]:
            raise UserError(f"{self._files[part]}: was changed while it was read: run again")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time read what all of them want to know."""
        lock = filelock.FileLock(self.file("lock"))
        with told(cache_folder()):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def load(self, name: str) -> tuple[Arrays, list[str]] | None:
        """Arrays and lines that were saved under a name; None where they are not there whole."""
        try:
            with np.load(self.file(f"{name}.npz"), allow_pickle=False) as saved:
                arrays = {key: saved[key] for key in saved.files}
            return arrays, json.loads(str(arrays.pop("lines")))
        # Missing, or damaged in any way: it is made again.
        except Exception:
            return None

    def save(self, name: str, arrays: Mapping[str, NDArray[Any]], lines: Sequence[str]) -> None:
        """Put arrays and lines there, whole or not at all.

        Raises:
            UserError: The folder cannot be written to.
        """
        told_lines = np.array(json.dumps(lines))
        with new_file(self.file(f"{name}.npz")) as beside, beside.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **(dict(arrays) | {"lines": told_lines}))

    def _now(self) -> list[tuple[int, int, int]]:
        """Size, and nanoseconds of the last change of content and of anything, of each file."""
        found = (file.stat() for file in self._files)
        return [(state.st_size, state.st_mtime_ns, state.st_ctime_ns) for state in found]

    def _made(self) -> Path:
        root = cache_folder() / "data"
        root.mkdir(parents=True, exist_ok=True)
        _remove(left for left in root.glob(".passing-*") if _is_dead(left))  # of killed processes
        if self._passing:
            folder = tempfile.mkdtemp(dir=root, prefix=".passing-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            return Path(folder)
        above = root / _digest([str(file) for file in self._files])
        same = above / _digest(self._states)
        _remove(old for old in above.glob("*") if old != same)  # of files as they are no more
        folder = same / _digest(_reader())
        # Another release may be at work with its own, of the same files.
        _remove(old for old in same.glob("*") if old != folder and _is_dead(old))
        _remove(left for left in folder.glob(".*") if _is_dead(left))
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        return folder


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` that takes its place only when the block succeeds.

    Raises:
        UserError: It cannot be written; the disk may be full.
    """
    # Not by the process alone: one may read a file while it reads it, and in containers all
    # processes have the same few numbers.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with told(path.parent):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Tell in one line that the cache cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: the cache of large data sets cannot be written "
            f"({error.strerror or error}): make room, or set RLHF_CACHE to a folder that can"
        ) from error


def _is_dead(left: Path) -> bool:
    """Whether nobody is at work there; not where another process has removed it just now."""
    try:
        return time.time() - left.stat().st_mtime > _DEAD
    except FileNotFoundError:
        return False


def _remove(old: Iterable[Path]) -> None:
    for path in list(old):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


@cache
def _reader() -> str:
    """What reads the files: another release may read something else of the same ones."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
