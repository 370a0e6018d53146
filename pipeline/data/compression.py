"""Compressed files: what the standard library unpacks, as streams of bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from common.words import first_line
from pipeline.errors import UserError

_BUFFER = 2**20


@contextmanager
def _only_member(path: Path) -> Iterator[IO[bytes]]:
    """The single file of a zip archive, aside from what macOS puts beside it."""
    with zipfile.ZipFile(path) as archive:
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not name.startswith("__MACOSX/")
        ]
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} files, not one; unpack it and name the folder")
        with archive.open(names[0]) as member:
            yield member


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".lzma": lzma.open,
    ".zip": _only_member,
}
PACKED = tuple(_OPEN)
"""The suffixes of compressed files."""


def is_packed(path: Path) -> bool:
    """Whether the file's suffix is one of ``PACKED``."""
    return path.suffix.lower() in _OPEN


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes as a stream, unpacked where its suffix is one of ``PACKED``.

    Raises:
        UserError: It cannot be read, is not compressed so, or is cut off or damaged; inside the
            block too, where that shows.
    """
    if not is_packed(path):
        try:
            with path.open("rb", buffering=_BUFFER) as plain:
                yield plain
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    packed = _Packed(path)
    with packed:
        yield cast("IO[bytes]", packed)


class _Packed:
    """A compressed file, whose damage is told in one line wherever it shows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._context: Any = None
        self._stream: Any = None

    def __enter__(self) -> _Packed:
        def open_it() -> None:
            self._context = _OPEN[self._path.suffix.lower()](self._path)
            self._stream = self._context.__enter__()

        self._told(open_it)
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(None, None, None)

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; all that are left where it is negative."""
        data: bytes = self._told(lambda: self._stream.read(size))
        return data

    def readline(self) -> bytes:
        """The bytes up to the next line end and with it."""
        line: bytes = self._told(self._stream.readline)
        return line

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _told(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # A damaged archive shows as any of these, by where the damage lies; RuntimeError and
        # NotImplementedError are zipfile's for a password and for an unknown method.
        except (
            OSError, EOFError, ValueError, MemoryError, RuntimeError,
            zlib.error, lzma.LZMAError, zipfile.BadZipFile,
        ) as error:  # fmt: skip
            what = self._path.suffix.lower().removeprefix(".")
            raise UserError(
                f"{self._path}: cannot be unpacked as {what} ({first_line(error)})"
            ) from error
