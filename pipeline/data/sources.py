"""Reading the rows of a data set, each with the place that an error message names.

Text formats are parsed here and not by ``datasets``, because a mistake in them must be told with
its line: pandas and Arrow name neither the line nor the byte that is not UTF-8.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.words import first_line
from pipeline.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""The local file formats."""

# A file of a folder belongs to a split by its name or its folder's: train.csv, test-00001.parquet.
_SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in their folder.
_SAVED_DATASET = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Row:
    """One row of a data set: its columns, and where it stands (``reviews.csv, line 3``)."""

    place: str
    values: dict[str, Any]


def read_rows(
    name: str, *, key: str, split: str = "train", config: str | None = None, column: str = "text"
) -> list[Row]:
    """Read a data set.

    Args:
        name: A local file (``SUFFIXES``), a folder of such files or one written by
            ``save_to_disk``, or a hub id.
        key: The config key that named it; error messages start with it.
        split: The split of a hub data set or a folder. A single file is one split.
        config: The configuration of a hub data set.
        column: The column that the lines of a ``.txt`` file stand for.

    Raises:
        UserError: It is missing, empty, unreadable, not UTF-8, or not in its format.
    """
    path = Path(name).expanduser()
    if path.is_file():
        rows = _read_file(path, column)
    elif path.is_dir():
        rows = _read_folder(path, split, column)
    elif _looks_local(name):
        raise UserError(f"{key}: {name}: there is no such file or folder{_nearest(path)}")
    else:
        rows = _read_hub(name, key=key, split=split, config=config)
    if not rows:
        raise UserError(f"{key}: {name} has no rows: it is empty")
    return rows


def _looks_local(name: str) -> bool:
    """Whether a name that is not on disk was meant as a path and not as a hub id."""
    return (
        Path(name).suffix.lower() in SUFFIXES
        or name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
    )


def _nearest(path: Path) -> str:
    """``; nearest: X`` where the folder holds a similar name, else nothing."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; nearest: {path.parent / near[0]}" if near else ""


def _read_file(path: Path, column: str) -> list[Row]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown format; use one of {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        return _read_parquet(path)
    text = _read_text(path)
    if suffix == ".csv":
        return _read_csv(path, text)
    if suffix == ".txt":
        return [
            Row(f"{path}, line {number}", {column: line.strip()})
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    if suffix == ".json" and text.lstrip().startswith("["):
        return _read_json_list(path, text)
    return _read_json_lines(path, text)


def _read_text(path: Path) -> str:
    """The file as text; a byte-order mark is dropped.

    Raises:
        UserError: It cannot be read, or is not UTF-8: names the line and the byte.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}): "
            "save the file as UTF-8"
        ) from error


def _read_json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    # Not splitlines(): it also cuts at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            rows.append(_object(place, json.loads(line)))
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise UserError(f"{place}: not JSON ({reason}): write one object a line") from error
    return rows


def _read_json_list(path: Path, text: str) -> list[Row]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}): write a list of objects"
        ) from error
    return [_object(f"{path}, row {number}", value) for number, value in enumerate(values, start=1)]


def _object(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: a row must be an object with named columns, found {value!r:.40}")
    return Row(place, value)


def _read_csv(path: Path, text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for values in reader:
            place = f"{path}, line {reader.line_num}"
            if None in values:
                raise UserError(f"{place}: more cells than the header has: quote cells with commas")
            # A cell that the row does not have is a column that it does not have.
            present = {name: cell for name, cell in values.items() if cell is not None}
            rows.append(Row(place, present))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: cannot be read as parquet: {reason}") from error
    return [Row(f"{path}, row {number}", value) for number, value in enumerate(values, start=1)]


def _read_folder(folder: Path, split: str, column: str) -> list[Row]:
    if any((folder / name).is_file() for name in _SAVED_DATASET):
        import datasets

        saved = _load(lambda: datasets.load_from_disk(str(folder)), str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise UserError(
                    f"{folder}: there is no split {split!r}; it has {', '.join(map(str, saved))}: "
                    "set data.train_split"
                )
            saved = saved[split]
        return _dataset_rows(str(folder), saved)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise UserError(f"{folder}: no data file in this folder ({', '.join(SUFFIXES)})")
    named = [path for path in files if _in_split(path, folder, split)]
    others = (_in_split(path, folder, other) for path in files for other in _SPLIT_NAMES)
    if not named and any(others):
        files_there = ", ".join(str(path.relative_to(folder)) for path in files[:8])
        raise UserError(
            f"{folder}: no file for split {split!r} ({files_there}): set data.train_split"
        )
    return [row for path in named or files for row in _read_file(path, column)]


def _in_split(path: Path, folder: Path, split: str) -> bool:
    parts = path.relative_to(folder).parts
    return any(re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", part) for part in parts)


def _read_hub(name: str, *, key: str, split: str, config: str | None) -> list[Row]:
    import datasets

    where = f"{key}: {name}"
    loaded = _load(
        lambda: datasets.load_dataset(name, config, split=split),
        where,
        mend="; it is no local file, and as a hub id it needs the network or an earlier download",
    )
    return _dataset_rows(f"{name} [{split}]", loaded)


def _load(load: Callable[[], Any], where: str, mend: str = "") -> Any:
    """Call ``load``; whatever ``datasets`` raises becomes one line."""
    try:
        with quiet_datasets():
            return load()
    # Not found, gated, offline, a script, an unknown split or configuration: `datasets` and
    # `huggingface_hub` raise more than a dozen unrelated types for what the user can mend.
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: cannot be loaded ({reason}){mend}") from error


def _dataset_rows(name: str, dataset: Any) -> list[Row]:
    return [Row(f"{name}, row {number}", row) for number, row in enumerate(dataset, start=1)]


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence bars and messages of ``datasets`` inside the block, and the hub's retries too."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    shown = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    hub_verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if shown:
            datasets.enable_progress_bars()
