"""The small records that pass between the stages."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 40, 40

Messages = list[dict[str, str]]
"""A conversation: messages with ``role`` and ``content``."""

Prompt = str | Messages
"""A prompt: plain text, or a conversation. One whose row has other columns knows them, see
:func:`columns_of`."""


class Span(NamedTuple):
    """Where a row can be read again.

    Attributes:
        number: Of its line or row, from 1.
        start, length: Of its bytes in the file; or the row of an Arrow table, from 0, and 0.
        part: Which of the data set's files.
    """

    number: int
    start: int
    length: int
    part: int = 0


@dataclass(frozen=True)
class Row:
    """One row of a data set.

    Attributes:
        place: Where it stands, for people (``reviews.csv, line 3``).
        values: Its columns.
        at: Where it can be read again; None where it cannot.
    """

    place: str
    values: dict[str, Any]
    at: Span | None = field(default=None, compare=False)


def shown(value: Any) -> str:
    """A value as an error message shows it: on one line and short, however deep it is nested."""
    return _short.repr(value)[:60]


def number_of(prompt: Prompt) -> int:
    """By which a prompt is known; of 2⁶⁴, so that no two of millions have the same."""
    text = json.dumps(prompt, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


_NO_COLUMNS: Mapping[str, Any] = {}


class TextOfRow(str):
    """A prompt that is text and knows the other columns of its row."""

    columns: Mapping[str, Any]


class MessagesOfRow(list[dict[str, str]]):
    """A prompt that is a conversation and knows the other columns of its row."""

    columns: Mapping[str, Any]


def with_columns(prompt: Prompt, columns: Mapping[str, Any]) -> Prompt:
    """The same prompt, which knows its row's other columns, for rewards that ask for them."""
    if not columns:
        return prompt
    made = TextOfRow(prompt) if isinstance(prompt, str) else MessagesOfRow(prompt)
    made.columns = dict(columns)
    return made


def columns_of(prompt: Prompt) -> Mapping[str, Any]:
    """The other columns of a prompt's row; empty where it has none."""
    columns: Mapping[str, Any] = getattr(prompt, "columns", _NO_COLUMNS)
    return columns


@dataclass(frozen=True)
class RatedText:
    """A text and how good people found it.

    Attributes:
        text: The text.
        rating: The mean human rating (the embedded ratings run from −4 to +4), or a class 0/1.
        ratings: Every rater's own score, in the order of the file; empty where the source has none.
        batch: Texts of the same batch were rated by the same people, each at the same place of
            ``ratings``; None where nothing tells who rated.
    """

    text: str
    rating: float
    ratings: tuple[float, ...] = ()
    batch: int | None = None


@dataclass(frozen=True)
class Demonstration:
    """A prompt and its answer; SFT learns the answer.

    Attributes:
        prompt: A text, or the messages before the answer.
        completion: A text where the prompt is one; else the answer's message.
    """

    prompt: Prompt
    completion: Prompt
