"""Demonstrations that have a prompt set apart: pairs of prompt and completion, conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pipeline.data.columns import Columns
from pipeline.data.conversations import check_answer, check_prompt, is_blank, is_conversation
from pipeline.data.prompts import without_answer
from pipeline.data.records import Demonstration, Prompt, Row
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
    name: str, rows: Sequence[Row], columns: Mapping[str, str]
) -> list[Demonstration]:
    """The different demonstrations of these rows, in their order.

    Of a conversation the assistant's last words are the answer. Empty ones are left out, and one
    line says how many.

    Raises:
        UserError: A row has another shape, or an answer that is not the assistant's.
    """
    names = Columns(columns)
    tally = Tally(name, "demonstrations")
    kept: dict[str, Demonstration] = {}
    used: set[str] = set()
    kind = ""
    for row in rows:
        made, read = _demonstration(row, names)
        used.update(read)
        if isinstance(made, str):
            tally.leave_out(made, row.place)
            continue
        this = "texts" if isinstance(made.prompt, str) else "messages"
        kind = kind or this
        if this != kind:
            raise UserError(f"{row.place}: {this}, not {kind} as before: use one kind in all rows")
        key = json.dumps([made.prompt, made.completion], sort_keys=True)
        if key in kept:
            tally.leave_out("there already", row.place)
        kept.setdefault(key, made)
    if not kept:
        raise UserError(
            f"data.dataset_name: none of the {len(rows)} demonstrations of {name} can be used "
            f"({tally.reasons()})"
        )
    tell_columns(name, rows, used, [])
    tally.tell(len(rows))
    return list(kept.values())


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
