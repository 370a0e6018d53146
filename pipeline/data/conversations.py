"""Conversations in the forms that files have them, as messages with ``role`` and ``content``."""

from __future__ import annotations

from typing import Any

from pipeline.data.columns import check_characters
from pipeline.data.records import Messages, shown
from pipeline.errors import UserError

# ShareGPT writes from/value, with these names of the speakers beside role names proper.
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_ROLES = ("system", "developer", "user", "assistant", "tool")


def is_conversation(value: Any) -> bool:
    """Whether a column's value is meant as messages: a list of objects, one of them, or columns."""
    if isinstance(value, dict):
        return True
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) for m in value)


def messages_of(place: str, column: str, value: Any) -> Messages:
    """The messages of a column, whatever their form.

    Args:
        value: A list of ``{"role", "content"}`` or of ShareGPT's ``{"from", "value"}``, one such
            message, or an object of two equally long lists (as `datasets` keeps them).

    Raises:
        UserError: It is none of these, or a message lacks text or has an unknown role.
    """
    if isinstance(value, dict):
        parts = [part for part in value.values() if part is not None]
        in_columns = parts and all(isinstance(part, list) for part in parts)
        if in_columns and len({len(part) for part in parts}) == 1:
            filled = {name: part for name, part in value.items() if part is not None}
            value = [dict(zip(filled, cells, strict=True)) for cells in zip(*parts, strict=True)]
        else:
            value = [value]
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{place}: column {column!r} must be text or a list of messages, found {shown(value)}"
        )
    return [_message(place, column, message) for message in value]


def _message(place: str, column: str, message: Any) -> dict[str, str]:
    fields = message if isinstance(message, dict) else {}
    given = ("from", "value") if "from" in fields and "role" not in fields else ("role", "content")
    role, content = fields.get(given[0]), _joined(fields.get(given[1]))
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(
            f"{place}: column {column!r}: a message needs role and content, both text; "
            f"found {shown(message)}"
        )
    role = _SPEAKERS.get(role.strip().lower(), role.strip().lower())
    if role not in _ROLES:
        raise UserError(
            f"{place}: column {column!r}: unknown role {shown(fields[given[0]])} of a message; "
            f"known are {', '.join(_ROLES)}"
        )
    for extra in ("tool_calls", "function_call"):
        if fields.get(extra):
            raise UserError(
                f"{place}: column {column!r}: a message holds {extra}, which is not supported: "
                "remove it or write it into content"
            )
    check_characters(place, column, content)
    return {"role": role, "content": content}


def _joined(content: Any) -> Any:
    """Content in parts, ``[{"type": "text", "text": …}]``, as one text; other content as it is."""
    if isinstance(content, list) and content:
        texts = [
            part["text"]
            for part in content
            if isinstance(part, dict)
            and part.get("type") in ("text", None)
            and isinstance(part.get("text"), str)
        ]
        if len(texts) == len(content):
            return "".join(texts)
    return content


def is_blank(value: str | Messages) -> bool:
    """Whether a text, or every message of a conversation, holds nothing but blanks."""
    if isinstance(value, str):
        return not value.strip()
    return not any(message["content"].strip() for message in value)


def check_answer(place: str, column: str, answer: Messages) -> None:
    """An answer must be the assistant's: a template would teach the wrong turn otherwise.

    Tool messages may lie between the assistant's.

    Raises:
        UserError: It holds another role, or does not begin and end with the assistant.
    """
    roles = [message["role"] for message in answer]
    wrong = next((role for role in roles if role not in ("assistant", "tool")), None)
    if wrong is None and roles and (roles[0], roles[-1]) != ("assistant", "assistant"):
        wrong = roles[0] if roles[0] != "assistant" else roles[-1]
    if wrong is not None:
        raise UserError(
            f"{place}: column {column!r}: an answer must come from the role assistant, found a "
            f"message of the role {wrong!r}: correct the role"
        )


def check_prompt(place: str, column: str, prompt: Messages) -> None:
    """A prompt must leave the next turn to the assistant.

    Raises:
        UserError: Its last message is the assistant's, or nobody asks anything.
    """
    roles = [message["role"] for message in prompt]
    if roles and roles[-1] == "assistant":
        raise UserError(
            f"{place}: column {column!r}: a prompt must not end with the assistant's message"
        )
    if "user" not in roles and "tool" not in roles:
        raise UserError(f"{place}: column {column!r}: a prompt needs a message of the role user")
