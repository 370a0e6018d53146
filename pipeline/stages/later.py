"""Rows of large data sets, of which tokens are made when training asks for them.

TRL makes the tokens of all rows before the first step. Of a million long rows that takes an hour
and as much disk again; here a batch's are made when it is its turn, the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

from pipeline.data.stored import Stored
from pipeline.errors import UserError

T = TypeVar("T")
Row = dict[str, Any]
_TRIED = 1000  # rows of which nothing is left, one behind the other, after which it is an error


class Later(Sequence[Row], Generic[T]):
    """What ``tokens`` makes of each stored record, when it is asked for.

    In place of a record of which nothing is left to learn stands the next that has something.
    """

    def __init__(self, records: Stored[T], tokens: Callable[[T], Row | None], key: str) -> None:
        """``key`` is the setting that leaves nothing of some, for errors."""
        self.records, self._tokens, self._key = records, tokens, key

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        for step in range(min(_TRIED, len(self))):
            row = self._tokens(self.records[(place + step) % len(self)])
            if row is not None:
                return row
        raise UserError(
            f"{self._key}: of {_TRIED} rows together it leaves nothing to train on; raise it"
        )

    def mapped(self, change: Callable[[Row], Row]) -> Later[T]:
        """What ``change`` makes of each row."""

        def tokens(record: T) -> Row | None:
            row = self._tokens(record)
            return None if row is None else change(row)

        return Later(self.records, tokens, self._key)

    def sizes(self) -> list[int]:
        """About how long each row is, in characters, without making it."""
        return self.records.sizes().tolist()
