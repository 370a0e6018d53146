"""Rows in JSON: one object a line, or a list of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.words import first_line
from pipeline.data.compression import opened
from pipeline.data.lines import WHOLE, Line, beginning, is_utf8, text_lines, whole_text
from pipeline.data.records import Row, Span, shown
from pipeline.errors import UserError


def read_json(path: Path, lines: bool, in_place: bool) -> Iterator[Row]:
    """A list of objects, or one object a line, whatever the suffix says.

    Args:
        lines: The suffix says one object a line.
        in_place: A line can be read again where it stands: the file is not compressed.
    """
    if beginning(path).lstrip().startswith("["):
        listed = _long_list(path, lines) if not _fits(path) else _list(path, lines)
        if listed is not None:
            yield from listed
            return
    first = True
    for line in text_lines(path):
        if not line.text.strip():
            continue
        try:
            row = row_of_line(path, line, in_place)
        except ValueError as error:
            if first and _fits(path):
                _refuse_single_object(path, whole_text(path))
            raise UserError(
                f"{path}, line {line.number}: not JSON ({_reason(error)}): write one object a line"
            ) from error
        yield row
        first = False


def in_lines(path: Path) -> bool:
    """Whether a file is read an object a line, at places in its bytes: UTF-8, and no list."""
    return is_utf8(path) and not beginning(path).lstrip().startswith("[")


def row_of_line(path: Path, line: Line, in_place: bool = True) -> Row:
    """The object of a line, which may be read again where it stands ``in_place``.

    Raises:
        ValueError: It is no JSON.
        UserError: It is no object.
    """
    at = Span(line.number, line.start, line.length) if in_place and line.start >= 0 else None
    return _object(f"{path}, line {line.number}", parsed(line.text), at)


def _list(path: Path, lines: bool) -> Iterator[Row] | None:
    """The rows of a list; None where it is one of the ``lines`` that begins like a list."""
    try:
        values = parsed(whole_text(path))
    except ValueError as error:
        if lines:
            return None
        line = getattr(error, "lineno", 1)
        raise UserError(
            f"{path}, line {line}: not JSON ({_reason(error)}): write a list of objects"
        ) from error
    if lines and not all(isinstance(value, dict) for value in values):
        return None
    return (_object(f"{path}, row {n}", value) for n, value in enumerate(values, start=1))


def _long_list(path: Path, lines: bool) -> Iterator[Row] | None:
    """:func:`_list` of a file that is too large to be read at once."""
    if lines and not re.match(r"\s*\[\s*\{", beginning(path)):
        return None
    return _elements(path)


def _elements(path: Path) -> Iterator[Row]:
    """The elements of a list, of which never much more than one is in memory."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    with opened(path) as stream:
        pieces = codecs.getreader("utf-8-sig")(stream)
        text, place, line, number, ended = "", 0, 1, 0, False
        opener = "["  # what comes before an element
        while True:
            begin = _BLANK.match(text, place).end()  # type: ignore[union-attr]
            reason = f"Expecting {opener!r} delimiter"
            if text[begin : begin + 1] == "]" and opener == ",":
                return
            if text[begin : begin + 1] == opener:
                inner = _BLANK.match(text, begin + 1).end()  # type: ignore[union-attr]
                if text[inner : inner + 1] == "]" and opener == "[":
                    return
                try:
                    value, end = decoder.raw_decode(text, inner)
                except (ValueError, RecursionError) as error:
                    begin, reason = inner, _reason(error) if isinstance(error, ValueError) else ""
                    begin = getattr(error, "pos", begin)
                else:
                    if end < len(text) or ended:
                        number += 1
                        yield _object(f"{path}, row {number}", value)
                        line += text.count("\n", place, end)
                        place, opener = end, ","
                        continue
            if ended or len(text) - place > WHOLE:
                line += text.count("\n", place, begin)
                reason = reason or "nested too deeply"
                raise UserError(
                    f"{path}, line {line}: not JSON ({reason}): write a list of objects"
                )
            # As much again as waits already: each text is tried a few times, however long it is.
            more = pieces.read(max(2**20, len(text) - place))
            text, place, ended = text[place:] + more, 0, not more


_BLANK = re.compile(r"[ \t\r\n]*")


def _fits(path: Path) -> bool:
    """Whether the file, unpacked, may be read at once."""
    with opened(path) as stream:
        return len(stream.read(WHOLE + 1)) <= WHOLE


def _refuse_single_object(path: Path, text: str) -> None:
    """A file whose rows lie within one object gets an advice that fits."""
    try:
        whole = parsed(text)
    except ValueError:
        return
    if isinstance(whole, dict):
        keys = ", ".join(map(repr, list(whole)[:6]))
        raise UserError(
            f"{path}: holds one object over several lines (its keys: {keys}): write a list of "
            "objects, or one object a line"
        )


def parsed(text: str) -> Any:
    """JSON; every reason why it is none is a ValueError, nesting and repeated keys included."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; the second of two values under one key would win in silence."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return made


def _reason(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)


def _object(place: str, value: Any, at: Span | None = None) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: a row must be an object with named columns, found {shown(value)}"
        )
    return Row(place, value, at)
