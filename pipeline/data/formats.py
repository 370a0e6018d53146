"""The rows of one local file, each with the place that an error message names, one at a time.

Text formats are parsed here and not by ``datasets``, because a mistake in them must be told with
its line: pandas and Arrow name neither the line nor the byte that is not UTF-8. Nothing reads a
file whole that may be large: see :mod:`pipeline.data.lines`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from pipeline.data.compression import PACKED, is_packed
from pipeline.data.json_rows import in_lines, read_json
from pipeline.data.lines import text_lines
from pipeline.data.records import Row, shown
from pipeline.data.tables import TABLES, read_table
from pipeline.errors import UserError

_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*_LINES, ".csv", ".tsv", *TABLES, ".txt")
"""The local file formats; each may be compressed (``pipeline.data.compression.PACKED``)."""

_DELIMITERS = ",;\t|"
# The largest that the csv module takes on every platform; its own limit is 128 KiB a cell.
_LONGEST_CELL = 2**31 - 1


def format_of(path: Path) -> str | None:
    """The file's suffix among ``SUFFIXES``, below that of its compression; None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_file(path: Path, column: str) -> Iterator[Row]:
    """Read one file, row after row; ``column`` is what the lines of a text file stand for.

    Raises:
        UserError: It is unreadable, of another encoding, or not in its format; as it is read.
    """
    form = format_of(path)
    if form is None:
        raise UserError(
            f"{path}: unknown format; use one of {', '.join(SUFFIXES)}, or one of them with "
            f"{', '.join(PACKED)}"
        )
    if form in TABLES:
        yield from read_table(path, form)
    elif form in (".csv", ".tsv"):
        yield from _read_csv(path, tabs=form == ".tsv")
    elif form == ".txt":
        for line in text_lines(path):
            if line.text.strip():
                yield Row(f"{path}, line {line.number}", {column: line.text.strip()})
    else:
        yield from read_json(path, lines=form != ".json", in_place=not is_packed(path))


def reads_in_place(path: Path) -> bool:
    """Whether rows can be read again where they stand: lines of JSON in UTF-8."""
    return format_of(path) in _LINES and not is_packed(path) and in_lines(path)


# --- CSV ------------------------------------------------------------------------------------------


def _read_csv(path: Path, tabs: bool) -> Iterator[Row]:
    """A header line and rows; the delimiter is the one that cuts the header into most columns."""
    skipped = 0
    delimiter = "\t" if tabs else ""
    lines = _cut_at_returns(path)
    above: list[str] = []  # the header, and blank lines before it
    for line in lines:
        told = re.fullmatch(r"sep=(.)\r?\n", line)  # as spreadsheets write and read it
        if told and not skipped and not above:
            delimiter, skipped = told[1], 1
            continue
        above.append(line)
        if line.strip():
            break
    delimiter = delimiter or _delimiter("".join(above))
    reader = csv.reader(chain(above, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begin = 1
    while True:
        place = f"{path}, line {begin + skipped}"
        try:
            with _long_cells():
                cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{place}: not CSV ({error})") from error
        if cells is None:
            return
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
            yield Row(place, dict(zip(header, cells, strict=False)))


def _cut_at_returns(path: Path) -> Iterator[str]:
    """Lines with their ends; a file of bare carriage returns is cut at them too."""
    for line in text_lines(path):
        whole = line.text + line.end
        if "\r" in line.text:
            yield from io.StringIO(whole, newline="")
        elif whole:
            yield whole


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
