"""The lines of a text file as a stream: each with its number and where its bytes stand."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.data.compression import opened
from pipeline.errors import UserError

WHOLE = 64 * 2**20
"""Bytes that may be read at once: what cannot be read in pieces is told apart by its beginning."""
_HEAD = 2**20  # by which the encoding is told
# Longest first: the mark of UTF-32 little-endian begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Line(NamedTuple):
    """A line of a text file.

    Attributes:
        number: From 1. text: Without its end. end: ``""``, a line feed, or one behind a return.
        start, length: Where its bytes stand in the (unpacked) file, with the end; -1 where the
            file is not UTF-8.
    """

    number: int
    text: str
    end: str
    start: int
    length: int


def text_lines(path: Path) -> Iterator[Line]:
    """The file's lines; they end at line feeds alone.

    Not ``splitlines``: it also cuts at U+2028 and others, which JSON strings may hold. Files in
    UTF-8 are read a line at a time, others whole.

    Raises:
        UserError: It cannot be read, or a line is not what its mark says or without one not UTF-8;
            the line and the byte are named.
    """
    head = _head(path)
    if _reads_as_utf8(head):
        with opened(path) as stream:
            yield from _utf8(path, stream, marked=head.startswith(codecs.BOM_UTF8))
        return
    for number, raw in enumerate(io.StringIO(whole_text(path), newline="\n"), start=1):
        yield Line(number, *_without_end(raw), -1, -1)


def beginning(path: Path) -> str:
    """What a file begins with, by which its form is told: a million characters at most."""
    head = _head(path)
    if _reads_as_utf8(head):
        return head.decode("utf-8-sig", errors="ignore")
    return whole_text(path)


def is_utf8(path: Path) -> bool:
    """Whether the file is read as UTF-8, a line at a time."""
    return _reads_as_utf8(_head(path))


def _head(path: Path) -> bytes:
    with opened(path) as stream:
        return stream.read(_HEAD)


def _reads_as_utf8(head: bytes) -> bool:
    mark = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    # UTF-16 without a mark has a NUL in every ASCII letter.
    return mark == "utf-8-sig" or (mark is None and b"\0" not in head)


def _without_end(line: str) -> tuple[str, str]:
    end = "\r\n" if line.endswith("\r\n") else "\n" if line.endswith("\n") else ""
    return line[: len(line) - len(end)], end


def _utf8(path: Path, stream: IO[bytes], marked: bool) -> Iterator[Line]:
    start = len(stream.read(len(codecs.BOM_UTF8))) if marked else 0
    for number, raw in enumerate(stream, start=1):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            byte = f"byte {start + error.start} is 0x{raw[error.start]:02x}"
            raise UserError(
                f"{path}, line {number}: not UTF-8 ({byte}): save the file as UTF-8"
            ) from error
        if not marked and "\0" in text:
            raise UserError(f"{path}, line {number}: holds a NUL byte, so it is no text file")
        yield Line(number, *_without_end(text), start, len(raw))
        start += len(raw)


def whole_text(path: Path) -> str:
    """All of a file, decoded; for what cannot be read in pieces.

    Raises:
        UserError: As :func:`text_lines`.
    """
    with opened(path) as stream:
        return _decoded(path, stream.read())


def _decoded(path: Path, data: bytes) -> str:
    """The file as text; a byte-order mark tells the encoding and is dropped.

    Raises:
        UserError: It is not what its mark says, or without one not UTF-8: names line and byte.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:  # UTF-16 without a mark has one in every ASCII letter
        half = len(data) // 2
        halves = {"utf-16-le": data[1::2], "utf-16-be": data[0::2]}
        found = [name for name, part in halves.items() if part.count(0) > 0.4 * half]
        if len(found) != 1:
            line = data.count(b"\n", 0, data.index(b"\0")) + 1
            raise UserError(f"{path}, line {line}: holds a NUL byte, so it is no text file")
        encoding = found[0]
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = "UTF-8" if encoding in (None, "utf-8-sig") else f"{encoding.upper()} to its end"
        byte = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise UserError(
            f"{path}, line {line}: not {name} ({byte}): save the file as UTF-8"
        ) from error
