"""Reading the rows of a data set: a file, a folder, one that ``datasets`` saved, or a hub id."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from pipeline.data import large
from pipeline.data.formats import SUFFIXES, format_of, read_file
from pipeline.data.large import LargeRows, RowsOfDataset, RowsOfFiles
from pipeline.data.loading import loaded
from pipeline.data.records import Row
from pipeline.data.tally import tell
from pipeline.errors import UserError

# A file of a folder belongs to a split by its name or its folder's: train.csv, test-00001.parquet.
_SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in their folder.
_SAVED_DATASET = ("state.json", "dataset_dict.json")
# What the hub and `datasets` put beside the data, in a format that data may have.
_NO_DATA = ("dataset_infos.json", "dataset_info.json", "state.json", "readme.txt")


def read_rows(
    name: str, *, key: str, split: str = "train", config: str | None = None, column: str = "text"
) -> list[Row] | LargeRows:
    """Read a data set: at once, or a large one (:mod:`pipeline.data.large`) as it is iterated.

    Args:
        name: A local file (``SUFFIXES``, compressed or not), a folder of such files or one
            written by ``save_to_disk``, or a hub id.
        key: The config key that named it; error messages start with it.
        split: The split of a hub data set or a folder. A single file is one split.
        config: The configuration of a hub data set.
        column: The column that the lines of a ``.txt`` file stand for.

    Raises:
        UserError: It is missing, empty, unreadable, not UTF-8, or not in its format.
    """
    path = Path(name).expanduser()
    if path.is_file():
        rows = _rows_of(str(path), [path], column)
    elif path.is_dir():
        rows = _read_folder(path, split, column)
    elif _looks_local(name):
        raise UserError(f"{key}: {name}: there is no such file or folder{_nearest(path)}")
    else:
        rows = _read_hub(name, key=key, split=split, config=config)
    if not (rows.first() if isinstance(rows, LargeRows) else rows):
        raise UserError(f"{key}: {name} has no rows: it is empty")
    return rows


def _looks_local(name: str) -> bool:
    """Whether a name that is not on disk was meant as a path and not as a hub id."""
    return (
        format_of(Path(name)) is not None
        or name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
    )


def _nearest(path: Path) -> str:
    """``; nearest: X`` where the folder holds a similar name, else nothing."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; nearest: {path.parent / near[0]}" if near else ""


def _read_folder(folder: Path, split: str, column: str) -> list[Row] | LargeRows:
    if any((folder / name).is_file() for name in _SAVED_DATASET):
        import datasets

        saved = loaded(lambda: datasets.load_from_disk(str(folder)), str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise UserError(
                    f"{folder}: there is no split {split!r}; it has {', '.join(map(str, saved))}: "
                    "set data.train_split"
                )
            saved = saved[split]
        return _dataset_rows(str(folder), saved)
    files = sorted(path for path in folder.rglob("*") if _holds_data(path, folder))
    if not files:
        raise UserError(f"{folder}: no data file in this folder ({', '.join(SUFFIXES)})")
    named = [path for path in files if _in_split(path, folder, split)]
    others = (_in_split(path, folder, other) for path in files for other in _SPLIT_NAMES)
    if not named and any(others):
        raise UserError(
            f"{folder}: no file for split {split!r} ({_listed(files, folder)}): "
            "set data.train_split"
        )
    taken = named or files
    left = [path for path in sorted(folder.rglob("*")) if _looks_like_data(path, folder)]
    if left := [path for path in left if path not in taken]:
        tell(
            f"{folder}: split {split!r} is read from {_listed(taken, folder)}; "
            f"not read: {_listed(left, folder)}"
        )
    return _rows_of(str(folder), taken, column)


def _rows_of(name: str, files: list[Path], column: str) -> list[Row] | LargeRows:
    if all(format_of(path) for path in files) and large.is_large(files):
        return RowsOfFiles(name, files, column)
    return [row for path in files for row in read_file(path, column)]


def _looks_like_data(path: Path, folder: Path) -> bool:
    """Whether a person may think that the file is part of the data, whatever its format."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    described = path.name.lower() in _NO_DATA or path.suffix.lower() in ("", ".md")
    return not hidden and not described and path.is_file()


def _holds_data(path: Path, folder: Path) -> bool:
    return _looks_like_data(path, folder) and format_of(path) is not None


def _listed(files: list[Path], folder: Path) -> str:
    """The first few by name, and how many more there are."""
    more = f" and {len(files) - 8} more" if len(files) > 8 else ""
    return ", ".join(str(path.relative_to(folder)) for path in files[:8]) + more


def _in_split(path: Path, folder: Path, split: str) -> bool:
    parts = path.relative_to(folder).parts
    return any(re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", part) for part in parts)


def _read_hub(name: str, *, key: str, split: str, config: str | None) -> list[Row] | LargeRows:
    import datasets

    where = f"{key}: {name}"
    found = loaded(
        lambda: datasets.load_dataset(name, config, split=split),
        where,
        mend="; it is no local file, and as a hub id it needs the network or an earlier download",
    )
    return _dataset_rows(f"{name} [{split}]", found)


def _dataset_rows(name: str, dataset: Any) -> list[Row] | LargeRows:
    """The rows; pictures and sounds are decoded here, which may fail."""
    if dataset.cache_files and dataset.data.nbytes > large.IN_MEMORY:
        return RowsOfDataset(name, dataset)
    rows = loaded(lambda: list(dataset), name)
    return [Row(f"{name}, row {number}", row) for number, row in enumerate(rows, start=1)]
