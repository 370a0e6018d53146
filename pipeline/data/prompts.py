"""Prompts of a person's own: from a file, or from what a script passes to the trainer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.data.columns import Columns
from pipeline.data.conversations import check_prompt, is_blank
from pipeline.data.forms import NUMBERS, Forms
from pipeline.data.large import keep
from pipeline.data.records import Messages, Prompt, Row, columns_of, number_of, with_columns
from pipeline.data.shapes import (
    Found,
    as_messages,
    before_prompt,
    find_conversation,
    find_prompt,
    side,
    tell_columns,
)
from pipeline.data.sources import read_rows
from pipeline.data.stored import Kept, Seen, Stored, shuffled, taken
from pipeline.data.tally import Tally
from pipeline.errors import UserError

KEY = "data.prompts_name"


def read_prompts(
    name: str, columns: Mapping[str, str] | None = None, split: str = "train"
) -> Sequence[Prompt]:
    """The different prompts of a data set, in its order.

    A row holds a text or messages in ``prompt``, or is a conversation, whose last answer is then
    left away, or in one of the other shapes of :mod:`pipeline.data.shapes`. The row's other columns
    go with it, for a reward that asks for them.

    Raises:
        UserError: It cannot be read, or a row's prompt is missing, empty or no prompt.
    """
    names = Columns(columns)
    rows = read_rows(name, key=KEY, split=split, column=names.name("prompt"))
    make = _Prompts(names)
    return keep(
        rows, ["prompts", columns], make, lambda kept: _read(name, rows, make, kept), NUMBERS
    )


class _Prompts:
    """Makes prompts of rows; an object, so that it can be sent to other processes."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def __call__(self, row: Row, which: int = 0) -> Prompt:
        return self.read(row)[0]

    def read(self, row: Row) -> tuple[Prompt, tuple[str, ...]]:
        """A row's prompt, which knows the row's other columns; and the columns it is read from."""
        found = _find(row, self._columns)
        prompt = side(row.place, found.column, found.value)
        if is_blank(prompt):
            raise UserError(
                f"{row.place}: column {found.column!r} is empty: fill it or remove the row"
            )
        before, context = before_prompt(row, self._columns)
        if before or not isinstance(prompt, str):
            prompt = before + as_messages(prompt, "user")
            check_prompt(row.place, found.column, prompt)
        read = found.columns + context
        return with_columns(prompt, _others(row, read)), read


def _read(name: str, rows: Iterable[Row], make: _Prompts, kept: Kept[Prompt]) -> None:
    """Keep the different prompts of the rows."""
    tally, seen, forms = Tally(name, "prompts"), Seen(), Forms()
    used: set[str] = set()
    others: dict[str, None] = {}
    columns: dict[Any, None] = {}
    count = 0
    for row in rows:
        count += 1
        columns.update(dict.fromkeys(row.values))
        prompt, read = make.read(row)
        used.update(read)
        own = columns_of(prompt)
        others.update(dict.fromkeys(own))
        place = seen.place(json.dumps(prompt, sort_keys=True), len(kept))
        if place < len(kept):
            alike = own == columns_of(kept.record(place))
            reason = "there already" if alike else "there already, with other columns"
            tally.leave_out(reason, row.place)
        else:
            kept.add(prompt, row, form=forms.number(prompt, columns=own), prompt=number_of(prompt))
    notes = [f"columns that a reward may ask for: {', '.join(others)}"] if others else []
    tell_columns(name, columns, used | set(others), notes)
    tally.tell(count)


def own_prompts(
    prompts: Sequence[Prompt], seed: int, evaluation: int
) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """The prompts shuffled: ``evaluation`` of them, and the others."""
    order = shuffled(len(prompts), seed)
    return taken(prompts, order[:evaluation]), taken(prompts, order[evaluation:])


def as_prompts(dataset: Iterable[Any]) -> Sequence[Prompt]:
    """Prompts as a script passes them: texts, messages, or rows with a column ``prompt``.

    A row's other columns go with its prompt, for a reward that asks for them.

    Args:
        dataset: A list, or a ``datasets.Dataset``.

    Raises:
        UserError: A row has no prompt, or an empty one, or one of another type.
    """
    if isinstance(dataset, Stored):
        return dataset  # looked at when they were read
    names = Columns()
    prompts: list[Prompt] = []
    for number, item in enumerate(dataset, start=1):
        place = f"prompt {number}"
        column, value, others = "prompt", item, columns_of(item)
        if isinstance(item, dict):
            row = Row(place, item)
            found = _find(row, names)
            column, value = found.column, found.value
            others = _others(row, found.columns)
        prompt = side(place, column, value)
        if is_blank(prompt):
            raise UserError(f"{place}: is empty: remove it")
        if not isinstance(prompt, str):
            check_prompt(place, column, prompt)
        prompts.append(with_columns(prompt, others))
    return prompts


def _others(row: Row, used: Iterable[str]) -> dict[str, Any]:
    """The columns of a row that are no part of its prompt; nor, as in TRL, its completion."""
    left = {str(name): value for name, value in row.values.items() if name not in set(used)}
    left.pop("completion", None)
    return left


def _find(row: Row, columns: Columns) -> Found:
    """The prompt of a row; of a conversation all but its last answer."""
    if found := find_prompt(row, columns):
        return found
    if found := find_conversation(row, columns):
        messages: Prompt = side(row.place, found.column, found.value)
        return Found(without_answer(as_messages(messages, "user")), found.columns)
    columns.value(row, "prompt")  # tells what is missing
    raise AssertionError


def without_answer(conversation: Messages) -> Messages:
    """A conversation up to where the assistant last begins to speak."""
    end = len(conversation)
    while end > 1 and conversation[end - 1]["role"] == "assistant":
        end -= 1
    return conversation[:end]
