"""Compressed files: what the standard library unpacks."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from common.words import first_line
from pipeline.errors import UserError


def _only_member(data: bytes) -> bytes:
    """The single file of a zip archive, aside from what macOS puts beside it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not name.startswith("__MACOSX/")
        ]
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} files, not one; unpack it and name the folder")
        return archive.read(names[0])


_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".lzma": lzma.decompress,
    ".zip": _only_member,
}
PACKED = tuple(_UNPACK)
"""The suffixes of compressed files."""


def unpacked(path: Path) -> bytes:
    """The file's bytes, unpacked where its suffix is one of ``PACKED``.

    Raises:
        OSError: It cannot be read.
        UserError: It is not compressed so, is cut off or damaged, or too large for memory.
    """
    data = path.read_bytes()
    unpack = _UNPACK.get(path.suffix.lower())
    if unpack is None:
        return data
    try:
        return unpack(data)
    # A damaged archive shows as any of these, by where the damage lies; RuntimeError and
    # NotImplementedError are zipfile's for a password and for an unknown method.
    except (
        OSError, EOFError, ValueError, MemoryError, RuntimeError,
        zlib.error, lzma.LZMAError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        what = path.suffix.lower().removeprefix(".")
        raise UserError(f"{path}: cannot be unpacked as {what} ({first_line(error)})") from error
