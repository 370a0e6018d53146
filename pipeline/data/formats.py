"""The rows of one local file, each with the place that an error message names.

Text formats are parsed here and not by ``datasets``, because a mistake in them must be told with
its line: pandas and Arrow name neither the line nor the byte that is not UTF-8.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.words import first_line
from pipeline.data.compression import PACKED, unpacked
from pipeline.data.records import Row, shown
from pipeline.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt")
"""The local file formats; each may be compressed (``pipeline.data.compression.PACKED``)."""

# Longest first: the mark of UTF-32 little-endian begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS = ",;\t|"
# The largest that the csv module takes on every platform; its own limit is 128 KiB a cell.
_LONGEST_CELL = 2**31 - 1


def format_of(path: Path) -> str | None:
    """The file's suffix among ``SUFFIXES``, below that of its compression; None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_file(path: Path, column: str) -> list[Row]:
    """Read one file; ``column`` is what the lines of a text file stand for.

    Raises:
        UserError: It is unreadable, of another encoding, or not in its format.
    """
    form = format_of(path)
    if form is None:
        raise UserError(
            f"{path}: unknown format; use one of {', '.join(SUFFIXES)}, or one of them with "
            f"{', '.join(PACKED)}"
        )
    try:
        data = unpacked(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if form in (".parquet", ".arrow", ".feather"):
        return _read_table(path, data, form)
    text = _decoded(path, data)
    if form in (".csv", ".tsv"):
        return _read_csv(path, text, tabs=form == ".tsv")
    if form == ".txt":
        return [
            Row(f"{path}, line {number}", {column: line.strip()})
            for number, line in enumerate(_lines(text), start=1)
            if line.strip()
        ]
    return _read_json(path, text, lines=form != ".json")


def _lines(text: str) -> list[str]:
    """Not splitlines(): it also cuts at U+2028 and others, which JSON strings may hold."""
    return text.replace("\r\n", "\n").split("\n")


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


# --- JSON -----------------------------------------------------------------------------------------


def _read_json(path: Path, text: str, lines: bool) -> list[Row]:
    """A list of objects, or one object a line, whatever the suffix says.

    Args:
        lines: The suffix says one object a line.
    """
    if text.lstrip().startswith("["):
        try:
            values = _parsed(text)
        except ValueError as error:
            if not lines:
                line = getattr(error, "lineno", 1)
                raise UserError(
                    f"{path}, line {line}: not JSON ({_reason(error)}): write a list of objects"
                ) from error
        else:
            if not lines or all(isinstance(value, dict) for value in values):
                places = (f"{path}, row {number}" for number in range(1, len(values) + 1))
                return [_object(place, value) for place, value in zip(places, values, strict=True)]
    rows = []
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            rows.append(_object(place, _parsed(line)))
        except ValueError as error:
            if not rows:
                _refuse_single_object(path, text)
            raise UserError(
                f"{place}: not JSON ({_reason(error)}): write one object a line"
            ) from error
    return rows


def _refuse_single_object(path: Path, text: str) -> None:
    """A file whose rows lie within one object gets an advice that fits."""
    try:
        whole = _parsed(text)
    except ValueError:
        return
    if isinstance(whole, dict):
        keys = ", ".join(map(repr, list(whole)[:6]))
        raise UserError(
            f"{path}: holds one object over several lines (its keys: {keys}): write a list of "
            "objects, or one object a line"
        )


def _parsed(text: str) -> Any:
    """JSON; every reason why it is none is a ValueError, nesting and repeated keys included."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; the second of two values under one key would win in silence."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return made


def _reason(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)


def _object(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: a row must be an object with named columns, found {shown(value)}"
        )
    return Row(place, value)


# --- CSV ------------------------------------------------------------------------------------------


def _read_csv(path: Path, text: str, tabs: bool) -> list[Row]:
    """A header line and rows; the delimiter is the one that cuts the header into most columns."""
    skipped = 0
    delimiter = "\t" if tabs else ""
    if told := re.match(r"sep=(.)\r?\n", text):  # as spreadsheets write and read it
        delimiter, text, skipped = told[1], text[told.end() :], 1
    delimiter = delimiter or _delimiter(text)
    # newline="" keeps line ends within cells; a file of bare carriage returns is cut at them too.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    begin = 1
    with _long_cells():
        try:
            for cells in reader:
                place = f"{path}, line {begin + skipped}"
                begin = reader.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue  # spreadsheets leave empty rows at the end
                if header is None:
                    header = _header(place, cells)
                elif len(cells) > len(header) and any(c.strip() for c in cells[len(header) :]):
                    named = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter)
                    raise UserError(
                        f"{place}: more cells than the header has ({len(cells)}, not "
                        f"{len(header)}): quote cells with {named or repr(delimiter)}"
                    )
                else:
                    # A cell that the row does not have is a column that it does not have.
                    rows.append(Row(place, dict(zip(header, cells, strict=False))))
        except csv.Error as error:
            raise UserError(f"{path}, line {begin + skipped}: not CSV ({error})") from error
    return rows


def _delimiter(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)  # what a quoted name holds divides nothing
    return max(_DELIMITERS, key=bare.count)


def _header(place: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:  # a delimiter at the end of each line
        names.pop()
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise UserError(
            f"{place}: the header has {shown(twice[0])} twice: rename one of the columns, or put "
            "a header line above if this line is data"
        )
    # An unnamed column (often a saved index) must not shadow another unnamed one.
    return [name or f"unnamed {number}" for number, name in enumerate(names, start=1)]


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module's limit of a cell, which is global, lifted inside the block."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


# --- Arrow and parquet ----------------------------------------------------------------------------


def _read_table(path: Path, data: bytes, form: str) -> list[Row]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    buffer = pyarrow.py_buffer(data)
    name = "parquet" if form == ".parquet" else "Arrow"
    openers: list[Callable[[], Any]] = (
        [lambda: pyarrow.parquet.read_table(pyarrow.BufferReader(buffer))]
        if form == ".parquet"
        else [  # a file, as Feather is, or a stream, as `datasets` writes it
            lambda: pyarrow.ipc.open_file(buffer).read_all(),
            lambda: pyarrow.ipc.open_stream(buffer).read_all(),
        ]
    )
    reason = ""
    for opener in openers:
        try:
            values = opener().to_pylist()
        # Beside ArrowException it is OSError, ValueError, OverflowError, UnicodeDecodeError, ...,
        # by where the file is damaged or which value Python has no type for.
        except Exception as error:
            reason = reason or first_line(error)
            continue
        return [Row(f"{path}, row {number}", value) for number, value in enumerate(values, start=1)]
    raise UserError(f"{path}: cannot be read as {name}: {reason}")
