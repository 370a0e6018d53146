"""The order of roles in conversations, and columns beside prompts.

By them a chat template and a reward are tried: once for each that there is, however many rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from pipeline.data.records import Prompt
from pipeline.data.stored import Stored

T = TypeVar("T")
NUMBERS = {"form": "q", "prompt": "q"}
"""The numbers that stored records have of their form, and of their prompt (`number_of`)."""


class Forms:
    """Numbers for the orders of roles, as they come, and for the columns beside them."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[tuple[str, ...], frozenset[str]], int] = {}

    def number(self, *talk: Prompt, columns: Iterable[str] = ()) -> int:
        """The number of a prompt, or of a prompt and its answer."""
        roles = tuple(
            message["role"] for part in talk if not isinstance(part, str) for message in part
        )
        return self._numbers.setdefault((roles, frozenset(columns)), len(self._numbers))


def one_of_each(items: Sequence[T]) -> Sequence[T]:
    """The first of each form; all where they are not stored, as they are few."""
    if not isinstance(items, Stored):
        return items
    if not items.knows("form"):  # plain texts, or their beginnings
        return items[:1]
    first = np.unique(items.column("form"), return_index=True)[1]
    return items.take(np.sort(first))


def sample(items: Sequence[T], count: int) -> Sequence[T]:
    """So many of stored items, at equal distances; all where they are not stored."""
    if not isinstance(items, Stored) or len(items) <= count:
        return items
    return items.take(np.linspace(0, len(items) - 1, count).astype(np.int64))
