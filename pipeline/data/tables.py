"""Rows of Arrow and parquet files, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common.words import first_line
from pipeline.data.compression import is_packed, opened
from pipeline.data.records import Row
from pipeline.errors import UserError

TABLES = (".parquet", ".arrow", ".feather")
_BATCH = 1024  # rows of a parquet file that are decoded at once


def read_table(path: Path, form: str) -> Iterator[Row]:
    """The rows of a file in parquet, Arrow or Feather.

    Raises:
        UserError: It cannot be read, or not as that.
    """
    start = 0
    for batch in record_batches(path, form):
        yield from rows_of(path, form, batch, start)
        start += batch.num_rows


def rows_of(path: Path, form: str, batch: Any, start: int) -> list[Row]:
    """The rows of one of the file's batches, the first of which is at ``start``."""
    values = enumerate(_told(path, form, batch.to_pylist), start + 1)
    return [Row(f"{path}, row {number}", value) for number, value in values]


def record_batches(path: Path, form: str) -> Iterator[Any]:
    """The file's record batches; of parquet a thousand rows each. Raises as :func:`read_table`."""
    import pyarrow

    with ExitStack() as files:
        source: Any = files.enter_context(opened(path))
        if is_packed(path):
            source = pyarrow.BufferReader(pyarrow.py_buffer(source.read()))
        elif form != ".parquet" and path.stat().st_size:
            source = files.enter_context(pyarrow.memory_map(str(path)))
        found = _told(path, form, lambda: _opened(source, form))
        while (batch := _told(path, form, lambda: next(found, None))) is not None:
            yield batch


def _opened(source: Any, form: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    if form == ".parquet":
        return pyarrow.parquet.ParquetFile(source).iter_batches(_BATCH)
    try:  # a file, as Feather is, or a stream, as `datasets` writes it
        file = pyarrow.ipc.open_file(source)
    except pyarrow.ArrowInvalid as error:
        source.seek(0)
        try:
            return iter(pyarrow.ipc.open_stream(source))
        except pyarrow.ArrowInvalid:
            raise error from None
    return (file.get_batch(number) for number in range(file.num_record_batches))


def _told(path: Path, form: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    # Beside ArrowException it is OSError, ValueError, OverflowError, UnicodeDecodeError, ..., by
    # where the file is damaged or which value Python has no type for.
    except Exception as error:
        name = "parquet" if form == ".parquet" else "Arrow"
        raise UserError(f"{path}: cannot be read as {name}: {first_line(error)}") from error
