"""Reading what a reward function returned: numbers, lists of numbers a token, or `Scores`.

A NaN among the rewards would silently turn every weight of the policy into NaN, and a list of the
wrong length would give completions each other's scores.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.interface import RewardError, Scores

_SHOWN = 40  # characters of a completion in a message
_CLOSE = 1e-5  # how far the sum of a row may be from its total, as a share of its largest part
Cell = float | list[float] | None
"""What a completion got: a number, one a token, or nothing, because the reward does not apply."""
Parts = dict[str, list[float | None]]


@dataclass(frozen=True)
class Asked:
    """The completions of one call, for messages.

    Attributes:
        label: What messages call the function. first: The index of the call's first completion.
    """

    label: str
    completions: Sequence[str]
    first: int = 0

    def shown(self, index: int) -> str:
        """A completion: its index among all and its first characters, on one line."""
        text = self.completions[index]
        cut = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
        return f"completion {self.first + index} ({cut!r})"


def read(asked: Asked, result: Any) -> tuple[list[Cell], Parts]:
    """One cell for each completion, and the parts of a `Scores`.

    Raises:
        RewardError: It is no list of one number, or one list of numbers, for each completion.
    """
    if not isinstance(result, Scores):
        return _cells(asked, result), {}
    cells = _cells(asked, result.total)
    if result.tokens is not None:
        rows = _cells(asked, result.tokens)
        _check_sums(asked, cells, rows)
        cells = [None if c is None else row for c, row in zip(cells, rows, strict=True)]
    parts: Parts = {}
    for name, scores in result.parts.items():
        part = Asked(f"{asked.label}: {name}", asked.completions, asked.first)
        parts[name] = [_one(part, i, cell) for i, cell in enumerate(_cells(part, scores))]
    return cells, parts


def _check_sums(asked: Asked, totals: list[Cell], rows: list[Cell]) -> None:
    for index, (total, row) in enumerate(zip(totals, rows, strict=True)):
        if total is None and row in (None, []):
            continue
        total = _one(asked, index, total)
        if total is None or not isinstance(row, list):
            raise RewardError(f"{asked.label}: has no total or no list for {asked.shown(index)}")
        largest = max(map(abs, (1.0, total, *row)))
        if abs(math.fsum(row) - total) > _CLOSE * largest:
            raise RewardError(
                f"{asked.label}: the scores of the tokens of {asked.shown(index)} sum to "
                f"{math.fsum(row):g}, and its total is {total:g}; let them be equal"
            )


def numbers_and_tokens(
    asked: Asked, cells: Sequence[Cell], ids: Sequence[Sequence[int]] | None
) -> tuple[list[float | None], list[list[float]] | None]:
    """A number for each completion, and one for each token where the reward is dense.

    Lists of one number each are a column, ``(N, 1)``, as a classifier's head has it: what that
    means is the same where the completions have one token.

    Args:
        ids: The completions' tokens; None where they are not known.

    Raises:
        RewardError: Some are numbers and some lists, or a list is not as long as its completion.
    """
    listed = next((i for i, c in enumerate(cells) if isinstance(c, list) and len(c) != 1), None)
    if listed is None:
        return [_one(asked, i, cell) for i, cell in enumerate(cells)], None
    totals: list[float | None] = []
    rows: list[list[float]] = []
    for index, cell in enumerate(cells):
        if cell is not None and not isinstance(cell, list):
            raise RewardError(
                f"{asked.label}: scored {asked.shown(listed)} as {cells[listed]!r:.60} and "
                f"{asked.shown(index)} as one number; return one number for each, or for each a "
                "list with one a token"
            )
        if cell is not None and ids is not None and len(cell) != len(ids[index]):
            raise RewardError(
                f"{asked.label}: scored {asked.shown(index)} as {len(cell)} numbers, and it has "
                f"{len(ids[index])} tokens; return one for each of its completion_ids, without "
                "padding, or one number"
            )
        totals.append(None if cell is None else math.fsum(cell))
        rows.append(cell or [])
    return totals, rows


def _one(asked: Asked, index: int, cell: Cell) -> float | None:
    if isinstance(cell, list):
        if len(cell) != 1:
            raise RewardError(
                f"{asked.label}: scored {asked.shown(index)} as {len(cell)} numbers; return one"
            )
        return cell[0]
    return cell


def _cells(asked: Asked, result: Any) -> list[Cell]:
    values = _as_list(result)
    count = len(asked.completions)
    if values is None:
        raise RewardError(
            f"{asked.label}: returned {type(result).__name__}; return a list with one number for "
            "each completion"
        )
    if len(values) != count:
        raise RewardError(
            f"{asked.label}: returned {len(values)} scores for {count} completions; return "
            f"one number for each completion (the first without its own is completion "
            f"{asked.first + min(len(values), count)})"
        )
    return [_cell(asked, index, value) for index, value in enumerate(values)]


def _cell(asked: Asked, index: int, value: Any) -> Cell:
    """A value as floats, all finite."""
    row = None if isinstance(value, str | bytes | dict | set) else _as_list(value)
    each_of = [value] if row is None else row
    cells = [_as_number(each) for each in each_of]
    for number, each in zip(cells, each_of, strict=True):
        if each is None and row is None:
            return None
        if number is None or not math.isfinite(number):
            shown = repr(each) if number is None else str(number)
            raise RewardError(
                f"{asked.label}: scored {asked.shown(index)} as {shown[:60]}; return a finite "
                "number"
            )
    finite = [float(number) for number in cells if number is not None]
    return finite if row is not None else finite[0]


def _as_list(result: Any) -> list[Any] | None:
    """The elements of a list, tuple, generator, array or tensor; None for anything else."""
    if hasattr(result, "detach"):  # a tensor: perhaps on a GPU, perhaps with a gradient
        result = result.detach().cpu().tolist()
    elif hasattr(result, "tolist"):  # an array
        result = result.tolist()
    if isinstance(result, str | bytes | dict | set) or not isinstance(result, Iterable):
        return None
    return list(result)


def _as_number(value: Any) -> float | None:
    """A number or an array of one, as a float; None for anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
