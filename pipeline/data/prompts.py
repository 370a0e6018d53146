"""Prompts of a person's own: from a file, or from what a script passes to the trainer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.data.columns import Columns
from pipeline.data.conversations import check_prompt, is_blank
from pipeline.data.records import Messages, Prompt, Row, columns_of, with_columns
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
from pipeline.data.tally import Tally
from pipeline.errors import UserError

KEY = "data.prompts_name"


def read_prompts(
    name: str, columns: Mapping[str, str] | None = None, split: str = "train"
) -> list[Prompt]:
    """The different prompts of a data set, in its order.

    A row holds a text or messages in ``prompt``, or is a conversation, whose last answer is then
    left away, or in one of the other shapes of :mod:`pipeline.data.shapes`. The row's other columns
    go with it, for a reward that asks for them.

    Raises:
        UserError: It cannot be read, or a row's prompt is missing, empty or no prompt.
    """
    names = Columns(columns)
    rows = read_rows(name, key=KEY, split=split, column=names.name("prompt"))
    tally = Tally(name, "prompts")
    prompts: dict[str, Prompt] = {}
    used: set[str] = set()
    others: dict[str, None] = {}
    for row in rows:
        found = _find(row, names)
        prompt = side(row.place, found.column, found.value)
        if is_blank(prompt):
            raise UserError(
                f"{row.place}: column {found.column!r} is empty: fill it or remove the row"
            )
        before, context = before_prompt(row, names)
        used.update(found.columns + context)
        if before or not isinstance(prompt, str):
            prompt = before + as_messages(prompt, "user")
            check_prompt(row.place, found.column, prompt)
        columns = _others(row, found.columns + context)
        others.update(dict.fromkeys(columns))
        key = json.dumps(prompt, sort_keys=True)
        if key in prompts:
            alike = columns == columns_of(prompts[key])
            reason = "there already" if alike else "there already, with other columns"
            tally.leave_out(reason, row.place)
        prompts.setdefault(key, with_columns(prompt, columns))
    notes = [f"columns that a reward may ask for: {', '.join(others)}"] if others else []
    tell_columns(name, rows, used | set(others), notes)
    tally.tell(len(rows))
    return list(prompts.values())


def own_prompts(prompts: list[Prompt], seed: int, evaluation: int) -> tuple[list[Prompt], ...]:
    """The prompts shuffled: ``evaluation`` of them, and the others."""
    shuffled = list(prompts)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:evaluation], shuffled[evaluation:]


def as_prompts(dataset: Iterable[Any]) -> list[Prompt]:
    """Prompts as a script passes them: texts, messages, or rows with a column ``prompt``.

    A row's other columns go with its prompt, for a reward that asks for them.

    Args:
        dataset: A list, or a ``datasets.Dataset``.

    Raises:
        UserError: A row has no prompt, or an empty one, or one of another type.
    """
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
