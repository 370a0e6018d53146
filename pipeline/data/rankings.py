"""Rankings of K answers as pairs: D > C > A > B gives K(K − 1)/2 of them.

As in InstructGPT (Ouyang et al. 2022, section 3.5) every answer is paired with every worse one. The
pairs of a prompt are not independent: they stay in one split, and next to each other in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from pipeline.data.records import Row, shown
from pipeline.errors import UserError

RANKING, ANSWERS = "ranking", "completions"


def is_ranking(row: Row) -> bool:
    """Whether a row holds a list of answers, best first or with their order beside it."""
    return isinstance(row.values.get(ANSWERS), list) and "chosen" not in row.values


def pair_rows(row: Row) -> list[Row]:
    """The row once for each pair, with ``chosen`` and ``rejected`` instead of its answers.

    ``completions`` are best first; or ``ranking`` gives their order: places counted from 0
    (``[3, 2, 0, 1]``), or letters (``D > C > A > B``, with ``=`` between equals, which make no
    pair).

    Raises:
        UserError: There are fewer than two answers, or the ranking does not name each once.
    """
    answers: list[Any] = row.values[ANSWERS]
    if len(answers) < 2:
        raise UserError(
            f"{row.place}: column {ANSWERS!r} must hold two answers or more, found {len(answers)}"
        )
    order = row.values.get(RANKING)
    levels = _levels(row, order, len(answers)) if order is not None else range(len(answers))
    others = {k: v for k, v in row.values.items() if k not in (RANKING, ANSWERS)}
    pairs = []
    for one, other in combinations(range(len(answers)), 2):
        if levels[one] == levels[other]:
            continue
        better, worse = (one, other) if levels[one] < levels[other] else (other, one)
        values = {**others, "chosen": answers[better], "rejected": answers[worse]}
        pairs.append(Row(row.place, values))
    return pairs


def _levels(row: Row, order: Any, count: int) -> Sequence[int]:
    """For each answer its place, 0 the best; equals have the same."""
    try:
        if isinstance(order, str):
            steps = [[_letter(part) for part in step.split("=")] for step in order.split(">")]
        else:
            steps = [[place] for place in order]
        found = {place: level for level, step in enumerate(steps) for place in step}
        complete = sorted(place for step in steps for place in step) == list(range(count))
    except (TypeError, ValueError):
        complete = False
    if not complete or any(isinstance(place, bool) for place in found):
        letters = " > ".join(chr(ord("A") + place) for place in range(min(count, 26)))
        raise UserError(
            f"{row.place}: column {RANKING!r} must name each of the {count} answers once, as in "
            f"{letters!r} or {list(range(count))}, found {shown(order)}"
        )
    return [found[place] for place in range(count)]


def _letter(part: str) -> int:
    letter = part.strip().upper()
    if len(letter) != 1 or not "A" <= letter <= "Z":
        raise ValueError(letter)
    return ord(letter) - ord("A")
