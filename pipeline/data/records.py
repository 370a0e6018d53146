"""The small records that pass between the stages."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 40, 40

Messages = list[dict[str, str]]
"""A conversation: messages with ``role`` and ``content``."""

Prompt = str | Messages
"""A prompt: plain text, or a conversation."""


@dataclass(frozen=True)
class Row:
    """One row of a data set: its columns, and where it stands (``reviews.csv, line 3``)."""

    place: str
    values: dict[str, Any]


def shown(value: Any) -> str:
    """A value as an error message shows it: on one line and short, however deep it is nested."""
    return _short.repr(value)[:60]


@dataclass(frozen=True)
class RatedText:
    """A text and how good people found it.

    Attributes:
        text: The text.
        rating: The mean human rating (the embedded ratings run from −4 to +4), or a class 0/1.
        ratings: Every rater's own score, where the source has them; empty otherwise.
    """

    text: str
    rating: float
    ratings: tuple[float, ...] = ()


@dataclass(frozen=True)
class Demonstration:
    """A prompt and its answer; SFT learns the answer.

    Attributes:
        prompt: A text, or the messages before the answer.
        completion: A text where the prompt is one; else the answer's message.
    """

    prompt: Prompt
    completion: Prompt
