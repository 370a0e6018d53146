"""Demonstrations that have a prompt set apart: pairs of prompt and completion, conversations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.data.columns import Columns
from pipeline.data.conversations import check_answer, check_prompt, is_blank, is_conversation
from pipeline.data.forms import NUMBERS, Forms
from pipeline.data.large import keep
from pipeline.data.prompts import without_answer
from pipeline.data.records import Demonstration, Prompt, Row, number_of
from pipeline.data.shapes import (
    Found,
    as_messages,
    before_prompt,
    find_completion,
    find_conversation,
    find_prompt,
    side,
    tell_columns,
)
from pipeline.data.stored import Kept, Seen
from pipeline.data.tally import Tally
from pipeline.errors import UserError

_EMPTY = "the prompt or the answer is empty"


def are_demonstrations(row: Row, columns: Columns) -> bool:
    """Whether a data set with this row holds prompts and answers rather than plain texts."""
    text = row.values.get(columns.name("text"))
    if isinstance(text, str):
        return False
    if is_conversation(text) or find_conversation(row, columns):
        return True
    return find_prompt(row, columns) is not None and find_completion(row, columns) is not None


def read_demonstrations(
    name: str, rows: Iterable[Row], columns: Mapping[str, str]
) -> Sequence[Demonstration]:
    """The different demonstrations of these rows, in their order.

    Of a conversation the assistant's last words are the answer. Empty ones are left out, and one
    line says how many.

    Raises:
        UserError: A row has another shape, or an answer that is not the assistant's.
    """
    make = _Demonstrations(Columns(columns))
    return keep(
        rows, ["demonstrations", columns], make, lambda kept: _read(name, rows, make, kept), NUMBERS
    )


class _Demonstrations:
    """Makes demonstrations of rows; an object, so that it can be sent to other processes."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __call__(self, row: Row, which: int = 0) -> Demonstration:
        made, _ = _demonstration(row, self.columns)
        assert isinstance(made, Demonstration)  # as it was when it was kept
        return made


def _read(name: str, rows: Iterable[Row], make: _Demonstrations, kept: Kept[Demonstration]) -> None:
    """Keep the different demonstrations of the rows."""
    tally, seen, forms = Tally(name, "demonstrations"), Seen(), Forms()
    used: set[str] = set()
    columns: dict[Any, None] = {}
    kind, count = "", 0
    for row in rows:
        count += 1
        columns.update(dict.fromkeys(row.values))
        made, read = _demonstration(row, make.columns)
        used.update(read)
        if isinstance(made, str):
            tally.leave_out(made, row.place)
            continue
        this = "texts" if isinstance(made.prompt, str) else "messages"
        kind = kind or this
        if this != kind:
            raise UserError(f"{row.place}: {this}, not {kind} as before: use one kind in all rows")
        key = json.dumps([made.prompt, made.completion], sort_keys=True)
        if seen.place(key, len(kept)) < len(kept):
            tally.leave_out("there already", row.place)
        else:
            form = forms.number(made.prompt, made.completion)
            kept.add(made, row, form=form, prompt=number_of(made.prompt))
    if not len(kept):
        raise UserError(
            f"data.dataset_name: none of the {count} demonstrations of {name} can be used "
            f"({tally.reasons()})"
        )
    tell_columns(name, columns, used, [])
    tally.tell(count)


def _demonstration(row: Row, columns: Columns) -> tuple[Demonstration | str, tuple[str, ...]]:
    """A row as prompt and answer, or why it is left out; and the columns it is read from."""
    talk = _conversation(row, columns)
    before, context = before_prompt(row, columns)
    if talk is not None:
        read = talk.columns + context
        messages = before + as_messages(side(row.place, talk.column, talk.value), "user")
        prompt = without_answer(messages)
        answer = messages[len(prompt) :]
        if not answer or prompt[-1]["role"] == "assistant":
            return "it does not end with the assistant's answer to somebody", read
        if is_blank(prompt) or is_blank(answer):
            return _EMPTY, read
        check_answer(row.place, talk.column, answer)
        check_prompt(row.place, talk.column, prompt)
        return Demonstration(prompt, answer), read
    asked, answered = find_prompt(row, columns), find_completion(row, columns)
    if asked is None:
        raise columns.missing(row, "prompt")
    if answered is None:
        raise columns.missing(row, "completion")
    read = asked.columns + answered.columns + context
    sides: list[Prompt] = [side(row.place, f.column, f.value) for f in (asked, answered)]
    if any(map(is_blank, sides)):
        return _EMPTY, read
    if before or not all(isinstance(part, str) for part in sides):
        question, answer = (
            before + as_messages(sides[0], "user"),
            as_messages(sides[1], "assistant"),
        )
        check_prompt(row.place, asked.column, question)
        check_answer(row.place, answered.column, answer)
        return Demonstration(question, answer), read
    return Demonstration(sides[0], sides[1]), read


def _conversation(row: Row, columns: Columns) -> Found | None:
    """The column that holds the whole conversation, `data.text_column` included."""
    text = row.values.get(columns.name("text"))
    if is_conversation(text):
        return Found(text, (columns.name("text"),))
    whole = find_prompt(row, columns) is not None and find_completion(row, columns) is not None
    return None if whole else find_conversation(row, columns)
