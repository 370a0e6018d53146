"""The shapes of rows that people have: where a prompt and its answer stand in each.

TRL's names come first (``prompt``, ``completion``, ``messages``, ``chosen``, ``rejected``), or what
``data.columns`` gives for them; then Alpaca's (``instruction``, ``input``, ``output``), ShareGPT's
(``conversations``) and ms-swift's (``query``, ``response``, ``rejected_response``), where a row has
none of TRL's. Columns in front of a prompt are the same everywhere: ``system`` and ``history``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.data.columns import Columns, check_characters
from pipeline.data.conversations import is_conversation, messages_of
from pipeline.data.records import Messages, Prompt, Row, shown
from pipeline.data.tally import tell
from pipeline.errors import UserError

_PROMPTS = ("instruction", "query")
_CONVERSATIONS = ("messages", "conversations")
_ANSWERS = ("output", "response")


@dataclass(frozen=True)
class Found:
    """A value and the columns that it was read from.

    Attributes:
        column: What an error message names.
    """

    value: Any
    columns: tuple[str, ...]

    @property
    def column(self) -> str:
        return self.columns[0]


def find_prompt(row: Row, columns: Columns) -> Found | None:
    """A row's prompt; None where it has none of its own."""
    given = columns.get(row, "prompt")
    if given is not None:
        return Found(given, (columns.name("prompt"),))
    for name in _PROMPTS:
        value = row.values.get(name)
        if value is None:
            continue
        if name != "instruction" or "input" not in row.values:
            return Found(value, (name,))
        extra = row.values["input"]
        extra = "" if extra is None else Columns().text(row, "input")
        if isinstance(value, str) and extra.strip():
            value = f"{value}\n{extra}"
        return Found(value, (name, "input"))
    return None


def find_conversation(row: Row, columns: Columns) -> Found | None:
    """A row's column of messages; None where it has none."""
    given = columns.get(row, "messages")
    if given is not None:
        return Found(given, (columns.name("messages"),))
    for name in _CONVERSATIONS:
        if is_conversation(row.values.get(name)):
            return Found(row.values[name], (name,))
    return None


def find_completion(row: Row, columns: Columns) -> Found | None:
    """A row's answer; None where it has none."""
    if columns.get(row, "completion") is not None or columns.name("completion") in row.values:
        return Found(columns.get(row, "completion"), (columns.name("completion"),))
    found = (name for name in _ANSWERS if name in row.values)
    return next((Found(row.values[name], (name,)) for name in found), None)


def side(place: str, column: str, value: Any) -> Prompt:
    """A prompt or an answer: a text as it is, or messages; an empty list is an empty text.

    Raises:
        UserError: It is neither.
    """
    if value is None:
        raise UserError(f"{place}: column {column!r} is empty: fill it or remove the row")
    if isinstance(value, str):
        check_characters(place, column, value)
        return value
    return "" if value == [] else messages_of(place, column, value)


def as_messages(value: Prompt, role: str) -> Messages:
    """Messages as they are; a text as one message of ``role``."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def before_prompt(row: Row, columns: Columns) -> tuple[Messages, tuple[str, ...]]:
    """What a row says before its prompt, ``system`` and ``history``, and those columns.

    Raises:
        UserError: One of them is in no known form.
    """
    said: Messages = []
    used = []
    system = columns.get(row, "system")
    name = columns.name("system")
    if name in row.values:
        used.append(name)
    if system and not (isinstance(system, str) and not system.strip()):
        said = as_messages(side(row.place, name, system), "system")
        wrong = next((m["role"] for m in said if m["role"] != "system"), None)
        if wrong:
            raise UserError(
                f"{row.place}: column {name!r}: expected the role system, found {wrong!r}"
            )
    if history := row.values.get("history"):
        used.append("history")
        said = said + _history(row.place, history)
    return said, tuple(used)


def _history(place: str, history: Any) -> Messages:
    """Earlier turns: messages, or pairs of a question and its answer."""
    if is_conversation(history):
        return messages_of(place, "history", history)
    turns: Messages = []
    for turn in history if isinstance(history, list) else [history]:
        asked_and_answered = isinstance(turn, list | tuple) and len(turn) == 2
        if not asked_and_answered or not all(isinstance(part, str) for part in turn):
            raise UserError(
                f"{place}: column 'history' must be a list of [question, answer], "
                f"found {shown(turn)}"
            )
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    for turn in turns:
        check_characters(place, "history", turn["content"])
    return turns


def tell_columns(
    name: str, columns: Iterable[Any], used: Iterable[str], notes: Iterable[str]
) -> None:
    """Print what was read from which of the ``columns``, and which were not read at all."""
    read = set(used)
    unread = list(dict.fromkeys(str(column) for column in columns if column not in read))
    parts = list(dict.fromkeys(notes))
    if unread:
        more = f" and {len(unread) - 12} more" if len(unread) > 12 else ""
        names = ", ".join(shown(name)[1:-1] for name in unread[:12])
        parts.append(f"columns not read: {names}{more}")
    if parts:
        tell(f"{name}: {'; '.join(parts)}")
