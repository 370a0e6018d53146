"""The small records that pass between the stages."""

from __future__ import annotations

from dataclasses import dataclass

Prompt = str | list[dict[str, str]]
"""A prompt: plain text, or a conversation as messages with ``role`` and ``content``."""


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
