"""Rows of data sets that are too large for memory, and what is remembered of them.

Lines of JSON stay where they are: a row is read again from its bytes. What cannot be entered in its
middle (CSV, lists, compressed files, parquet) is copied once, as Arrow, into the cache of this
user, and memory-mapped; so are data sets of the hub, by ``datasets``. Validated once, a data set is
known by the paths, sizes and times of its files: as long as these are the same, the places of its
records are read from the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.data.arrow_copy import ArrowCopy
from pipeline.data.compression import is_packed
from pipeline.data.formats import format_of, read_file, reads_in_place
from pipeline.data.json_rows import row_of_line
from pipeline.data.lines import Line
from pipeline.data.loading import called
from pipeline.data.records import Row, Span
from pipeline.data.remembered import Remembered
from pipeline.data.stored import Kept, Stored
from pipeline.data.tally import listening, tell
from pipeline.errors import UserError

T = TypeVar("T")

IN_MEMORY = 64 * 2**20
"""Bytes of a data set's files up to which its rows are a list."""
_UNPACKED = 8  # about as many times larger is a text than its compressed file


class LargeRows(ABC):
    """Rows that are read as they are asked for, all in their order or one where it stands."""

    def __init__(self, name: str, files: Sequence[Path], which: Sequence[Any] = ()) -> None:
        """``which`` of the files' rows it has, where that is not all of them."""
        self.name, self.which = name, list(which)
        self.remembered = Remembered(files)

    @abstractmethod
    def __iter__(self) -> Iterator[Row]: ...

    @abstractmethod
    def row(self, at: Span) -> Row:
        """The row that stands there."""

    def first(self) -> Row | None:
        """The first row; None where there is none."""
        return next(iter(self), None)


def is_large(files: Sequence[Path]) -> bool:
    """Whether the rows of these files are better not held in memory."""
    sizes = (file.stat().st_size * (_UNPACKED if is_packed(file) else 1) for file in files)
    return sum(sizes) > IN_MEMORY


class RowsOfFiles(LargeRows):
    """The rows of local files, one file after another."""

    def __init__(self, name: str, files: Sequence[Path], column: str) -> None:
        """``column`` is what the lines of a text file stand for."""
        super().__init__(name, files)
        self._files, self._column = list(files), column
        self._open: dict[int, int] = {}  # descriptors, by part
        self._copies: dict[int, ArrowCopy] = {}
        self._copied: dict[int, bool] = {}
        self._owner = os.getpid()

    def __iter__(self) -> Iterator[Row]:
        for part, path in enumerate(self._files):
            rows = self._copy(part) if self._is_copied(part) else read_file(path, self._column)
            for row in rows:
                assert row.at is not None
                yield replace(row, at=row.at._replace(part=part)) if part else row
        self.remembered.check()

    def row(self, at: Span) -> Row:
        if self._is_copied(at.part):
            return self._copy(at.part).row(at.start)
        path = self._files[at.part]
        data = os.pread(self._descriptor(at.part), at.length, at.start)
        try:
            text = data.decode().rstrip("\r\n")
            return row_of_line(path, Line(at.number, text, "", at.start, at.length))
        except ValueError as error:
            raise UserError(f"{path}: was changed while it was read: run again") from error

    def _descriptor(self, part: int) -> int:
        """The open file; each process has its own, and each look at it is a look at its state."""
        if self._owner != os.getpid():
            self._open, self._owner = {}, os.getpid()
        if part not in self._open:
            self._open[part] = os.open(self._files[part], os.O_RDONLY)
        self.remembered.check_open(part, self._open[part])
        return self._open[part]

    def _is_copied(self, part: int) -> bool:
        if part not in self._copied:
            self._copied[part] = not reads_in_place(self._files[part])
        return self._copied[part]

    def _copy(self, part: int) -> ArrowCopy:
        if part not in self._copies:
            path = self._files[part]
            copy = f"{part}.arrow"
            if format_of(path) == ".txt":  # whose rows have the column that is asked for
                copy = f"{part}-{hashlib.sha256(self._column.encode()).hexdigest()[:16]}.arrow"
            self._copies[part] = ArrowCopy(path, self._column, self.remembered.file(copy))
        return self._copies[part]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_copies": {}}


class RowsOfDataset(LargeRows):
    """The rows of a data set that ``datasets`` has memory-mapped."""

    def __init__(self, name: str, dataset: Any) -> None:
        files = [Path(file["filename"]) for file in dataset.cache_files]
        # `train[:50%]` and `train[50%:]` are of the same files.
        super().__init__(name, files, [name, len(dataset), dataset._fingerprint])
        self._dataset = dataset

    def __iter__(self) -> Iterator[Row]:
        found = iter(self._dataset)
        for number in range(len(self._dataset)):
            yield self._row(lambda: next(found), Span(number + 1, number, 0))

    def row(self, at: Span) -> Row:
        return self._row(lambda: self._dataset[at.start], at)

    def _row(self, read: Callable[[], Any], at: Span) -> Row:
        """The row that is read there; pictures and sounds are decoded, which may fail."""
        return Row(f"{self.name}, row {at.number}", called(read, self.name), at)


def keep(
    rows: Iterable[Row],
    settings: Sequence[Any],
    make: Callable[[Row, int], T],
    read: Callable[[Kept[T]], None],
    columns: Mapping[str, str] | None = None,
) -> Sequence[T]:
    """The records that ``read`` keeps of ``rows``: a list, or places in a large data set.

    What it finds in a large one is remembered, the lines it tells too, so it is asked once.

    Args:
        settings: What decides what is kept, beside the rows.
        make: Makes a record of its row, as ``read`` did. columns: as :class:`Kept`'s.
    """
    if not isinstance(rows, LargeRows):
        kept = Kept[T](columns=columns)
        read(kept)
        return kept.records
    memory = rows.remembered
    said = json.dumps([repr(one) for one in (*settings, *rows.which)])
    key = hashlib.sha256(said.encode()).hexdigest()[:32]
    with memory.locked():
        saved = memory.load(key)
        if saved is None:
            kept = Kept[T](lambda at, which: make(rows.row(at), which), columns)
            with listening() as lines:
                read(kept)
            arrays = {name: np.asarray(values) for name, values in kept.columns.items()}
            about = np.array(kept.about)
            saved = arrays | {"index": kept.index(), "about": about}, lines
            memory.save(key, *saved)
    arrays, lines = saved
    for line in lines:
        tell(line)
    index, about = arrays.pop("index"), str(arrays.pop("about"))
    return Stored(rows, index, make, arrays, about)
