"""Looking up a row's columns by the names that TRL uses, whatever the file calls them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from pipeline.data.records import Row, shown
from pipeline.errors import UserError

# A header cell longer than this is more likely a text.
_LONGEST_NAME = 60


class Columns:
    """What a file calls the columns, by the names of this project: those that TRL uses."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        """``given`` is ``data.columns``: this project's name to the file's."""
        self._given = dict(given or {})

    def name(self, ours: str) -> str:
        """What the file calls it."""
        return self._given.get(ours, ours)

    def gives(self, ours: str) -> bool:
        """Whether the config names this column."""
        return ours in self._given

    def get(self, row: Row, ours: str) -> Any:
        """A column's value, or None; one that the config names must be there."""
        if self.gives(ours) and self.name(ours) not in row.values:
            raise self.missing(row, ours)
        return row.values.get(self.name(ours))

    def value(self, row: Row, ours: str) -> Any:
        """A column's value; a missing one is an error that lists the columns there are."""
        value = row.values.get(self.name(ours))
        if value is not None:
            return value
        if self.name(ours) in row.values:
            raise UserError(
                f"{row.place}: column {self.name(ours)!r} is empty: fill it or remove the row"
            )
        raise self.missing(row, ours)

    def text(self, row: Row, ours: str) -> str:
        """A column's text.

        Raises:
            UserError: It is missing, no text, or holds what no tokenizer can take.
        """
        value = self.value(row, ours)
        name = self.name(ours)
        if not isinstance(value, str):
            raise UserError(f"{row.place}: column {name!r} must be text, found {shown(value)}")
        check_characters(row.place, name, value)
        return value

    def number(self, row: Row, ours: str, known: Mapping[str, float], rows: Iterable[Row]) -> float:
        """A column's number, or the one that ``known`` (``data.label_values``) gives its word.

        Args:
            rows: The data set, for the words that it holds.
        """
        value = self.value(row, ours)
        if isinstance(value, str) and value.strip() in known:
            return known[value.strip()]
        number = _number(value)
        if math.isfinite(number):
            return number
        name = self.name(ours)
        values = (other.values.get(name) for other in rows)
        texts = {v.strip()[:20] for v in values if isinstance(v, str)}
        words = sorted(text for text in texts if not math.isfinite(_number(text)))
        how = "use ratings such as -4..4, or classes 0 and 1"
        if isinstance(value, str):
            pairs = ", ".join(f"{_key(w)}: …" for w in words) if len(words) <= 10 else "word: …"
            how += f", or give each word its number: data.label_values={{{pairs}}}"
        raise UserError(
            f"{row.place}: column {name!r} must be a number, found {shown(value)}: {how}"
        )

    def missing(self, row: Row, ours: str) -> UserError:
        """The error about a column that the row lacks; it lists those there are."""
        names = [str(name) for name in row.values]
        listed = ", ".join(repr(name[:_LONGEST_NAME]) for name in names[:20]) or "none"
        if len(names) > 20:
            listed += f" and {len(names) - 20} more"
        key = f"data.{ours}_column" if ours in ("text", "label") else f"data.columns.{ours}"
        mend = f"; {key} names it"
        if any(_looks_like_data(name) for name in names):
            mend = "; the first line looks like data: put a header line with names above it"
        return UserError(f"{row.place}: no column {self.name(ours)!r}; there are {listed}{mend}")


def check_characters(place: str, column: str, text: str) -> None:
    """JSON can write half of a surrogate pair, which no tokenizer and no file can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise UserError(
            f"{place}: column {column!r} holds {code} alone at character {error.start}, which is "
            "no character: remove it"
        ) from error


def _looks_like_data(name: str) -> bool:
    """Whether a column is called like a cell: a number, or a whole text."""
    try:
        float(name)
    except ValueError:
        return len(name) > _LONGEST_NAME
    return True


def _number(value: Any) -> float:
    """The value as a number; NaN where it is none."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):  # no number, or a whole one of 310 digits
        return math.nan


def _key(word: str) -> str:
    """The word as a key in YAML's braces, in quotes where it is not itself without."""
    try:
        plain = yaml.safe_load(f"{{{word}: 1}}") == {word: 1}
    except yaml.YAMLError:
        plain = False
    return word if plain else json.dumps(word, ensure_ascii=False)
