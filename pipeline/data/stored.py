"""Records that stay in their file: of each is known where it stands, and it is read when asked for.

A small data set is a list. Of a large one (:mod:`pipeline.data.large`) a :class:`Stored` keeps 22
bytes a record, and makes the record anew from its row whenever somebody takes it. Both are
sequences, and what divides and shuffles them works on places.
"""

from __future__ import annotations

import hashlib
import random
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.data.records import Row, Span

T = TypeVar("T")
S = TypeVar("S")
Places = Sequence[int] | NDArray[np.integer]
"""Of records in a sequence, from 0."""

_SPAN = np.dtype([("number", "<u4"), ("start", "<u8"), ("length", "<u4"), ("part", "<u2")])
_ENTRY = np.dtype([("at", _SPAN), ("which", "<u4")])
_PACK = struct.Struct("<IQIHI").pack


class ReadsAgain(Protocol):
    """Rows that can be read again, one at a time."""

    def row(self, at: Span) -> Row:
        """The row that stands there."""
        ...


class Stored(Sequence[T]):
    """Records of rows that are read again whenever one is asked for.

    It can be sent to other processes, which open the file themselves.
    """

    def __init__(
        self,
        rows: ReadsAgain,
        index: NDArray[Any],
        make: Callable[[Row, int], T],
        columns: Mapping[str, NDArray[Any]] | None = None,
        about: str = "",
    ) -> None:
        """``index`` is :class:`Kept`'s; ``make`` turns a row, and which of its records, into it.

        Args:
            columns: Numbers known of each record. about: What is said of them in errors.
        """
        self._rows, self._index, self._make, self.about = rows, index, make, about
        self._columns = dict(columns or {})

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Stored[T]: ...
    def __getitem__(self, place: int | slice) -> T | Stored[T]:
        if isinstance(place, slice):
            return self._at(place)
        (number, start, length, part), which = self._index[place].item()
        return self._make(self._rows.row(Span(number, start, length, part)), which)

    def __iter__(self) -> Iterator[T]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, places: Places) -> Stored[T]:
        """Those records, in that order."""
        return self._at(np.asarray(places, dtype=np.int64))

    def mapped(self, change: Callable[[T], S]) -> Stored[S]:
        """What ``change`` makes of each record, when it is asked for."""
        return Stored(self._rows, self._index, _Changed(self._make, change), self._columns)

    def with_all(self, others: Stored[T]) -> Stored[T]:
        """These records and then the others, which are of the same rows."""
        index = np.concatenate([self._index, others._index])
        columns = {
            name: np.concatenate([column, others._columns[name]])
            for name, column in self._columns.items()
        }
        return Stored(self._rows, index, self._make, columns, self.about)

    def knows(self, name: str) -> bool:
        """Whether a number of each record is known by this name."""
        return name in self._columns

    def column(self, name: str) -> NDArray[Any]:
        """A number of each record that is known without reading it."""
        return self._columns[name]

    def sizes(self) -> NDArray[np.int64]:
        """About how long each record is, in characters: what its row takes."""
        return self._index["at"]["length"].astype(np.int64)

    def _at(self, places: slice | NDArray[Any]) -> Stored[T]:
        columns = {name: column[places] for name, column in self._columns.items()}
        return Stored(self._rows, self._index[places], self._make, columns, self.about)


class _Changed(Generic[T, S]):
    """One function after another; an object, so that it can be sent to other processes."""

    def __init__(self, make: Callable[[Row, int], T], change: Callable[[T], S]) -> None:
        self._make, self._change = make, change

    def __call__(self, row: Row, which: int) -> S:
        return self._change(self._make(row, which))


class Kept(Generic[T]):
    """Collects what is kept of a data set's rows: where large ones stand, else the records."""

    def __init__(
        self,
        again: Callable[[Span, int], T] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """``again`` makes a large data set's record from where its row stands.

        Args:
            columns: Numbers of each record by name, with their types in :mod:`array`. They are
                kept of a large data set alone.
        """
        self.records: list[T] = []
        self.columns = {name: array(kind) for name, kind in (columns or {}).items()}
        self._again, self._index, self._count = again, bytearray(), 0
        self.about = ""

    def __len__(self) -> int:
        return self._count

    def add(self, record: T, row: Row, which: int = 0, **numbers: float) -> None:
        """Keep a record that was made of ``row``, and is its ``which``-th."""
        self._count += 1
        if self._again is None:
            self.records.append(record)
            return
        for name, number in numbers.items():
            self.columns[name].append(number)  # type: ignore[arg-type]
        assert row.at is not None
        self._index += _PACK(*row.at, which)

    def record(self, place: int) -> T:
        """One that was kept."""
        if self._again is None:
            return self.records[place]
        (number, start, length, part), which = self.index()[place].item()
        return self._again(Span(number, start, length, part), which)

    def index(self) -> NDArray[Any]:
        """Where the records stand."""
        return np.frombuffer(self._index, dtype=_ENTRY)


class Seen:
    """Which keys were there before, and the place of each; 16 bytes of a key are remembered."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def place(self, key: str, new: int) -> int:
        """The place of a key that was there before; ``new``, which is kept, of another."""
        data = key.encode("utf-8", errors="surrogatepass")
        return self._places.setdefault(hashlib.blake2b(data, digest_size=16).digest(), new)


def taken(items: Sequence[T], places: Places) -> Sequence[T]:
    """The items at these places."""
    if isinstance(items, Stored):
        return items.take(places)
    return [items[place] for place in places]


def joined(items: Sequence[T], others: Sequence[T]) -> Sequence[T]:
    """The items and then the others, which are of the same data set."""
    if isinstance(items, Stored) and isinstance(others, Stored):
        return items.with_all(others)
    return [*items, *others]


def mapped(items: Sequence[T], change: Callable[[T], S]) -> Sequence[S]:
    """What ``change`` makes of each item; of stored ones when it is asked for."""
    return items.mapped(change) if isinstance(items, Stored) else [change(i) for i in items]


def column(items: Sequence[T], name: str, of: Callable[[T], float]) -> NDArray[Any]:
    """A number of each item: one that is known of stored ones by its name, or what ``of`` gives."""
    return items.column(name) if isinstance(items, Stored) else np.array([of(i) for i in items])


def shuffled(count: int, seed: int | str) -> list[int]:
    """Places in the order in which ``random.shuffle`` would put so many items."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
