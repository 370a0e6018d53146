"""A copy of a file's rows as Arrow, which is memory-mapped and can be entered anywhere."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from pipeline.data.formats import format_of, read_file
from pipeline.data.records import Row, Span
from pipeline.data.remembered import new_file
from pipeline.data.tables import TABLES, record_batches, rows_of

_BATCH = 4 * 2**20  # characters of JSON that are written at once


class ArrowCopy:
    """The rows of a file, copied while they are read for the first time.

    Parquet and Arrow keep their columns. Rows of text formats are a column of JSON, for each has
    columns and types of its own, and one with their places.
    """

    def __init__(self, path: Path, column: str, target: Path) -> None:
        """``target`` is where the copy is, or is to be."""
        self._path, self._column, self._target = path, column, target
        self._batches: list[Any] | None = None
        self._ends: list[int] = []
        self._form = format_of(path) or ""

    def __iter__(self) -> Iterator[Row]:
        if self._target.is_file():
            batches: Iterator[Any] = iter(self._mapped())
        else:
            batches = self._copied()
        start = 0
        for batch in batches:
            yield from self._rows(batch, start)
            start += batch.num_rows

    def row(self, number: int) -> Row:
        """The row at a place, from 0."""
        batches = self._mapped()
        batch = bisect_right(self._ends, number)
        start = self._ends[batch - 1] if batch else 0
        return self._rows(batches[batch].slice(number - start, 1), number)[0]

    def _rows(self, batch: Any, start: int) -> list[Row]:
        """The rows of a batch, the first of which is at ``start``."""
        if self._form in TABLES:
            rows = rows_of(self._path, self._form, batch, start)
        else:
            found = zip(batch["place"].to_pylist(), batch["row"].to_pylist(), strict=True)
            rows = [Row(place, json.loads(row)) for place, row in found]
        return [
            Row(row.place, row.values, Span(number + 1, number, _size(row.values)))
            for number, row in enumerate(rows, start)
        ]

    def _mapped(self) -> list[Any]:
        import pyarrow
        import pyarrow.ipc

        if self._batches is None and not self._target.stat().st_size:
            self._batches = []  # no row has come
        if self._batches is None:
            with pyarrow.ipc.open_stream(pyarrow.memory_map(str(self._target))) as reader:
                self._batches = list(reader)
            self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        return self._batches

    def _copied(self) -> Iterator[Any]:
        """Each batch, after it was written."""
        import pyarrow
        import pyarrow.ipc

        writer: Any = None
        with new_file(self._target) as beside, pyarrow.OSFile(str(beside), "wb") as sink:
            try:
                for batch in self._source():
                    writer = writer or pyarrow.ipc.new_stream(sink, batch.schema)
                    writer.write_batch(batch)
                    yield batch
            finally:
                if writer is not None:
                    writer.close()

    def _source(self) -> Iterator[Any]:
        if self._form in TABLES:
            yield from record_batches(self._path, self._form)
            return
        import pyarrow

        places: list[str] = []
        rows: list[str] = []
        size = 0
        for row in read_file(self._path, self._column):
            places.append(row.place)
            rows.append(json.dumps(row.values))
            size += len(rows[-1])
            if size > _BATCH:
                yield pyarrow.record_batch({"place": places, "row": rows})
                places, rows, size = [], [], 0
        if rows:
            yield pyarrow.record_batch({"place": places, "row": rows})


def _size(values: dict[str, Any]) -> int:
    """Characters of a row, about."""
    return sum(len(one if isinstance(one, str) else str(one)) for one in values.values())
