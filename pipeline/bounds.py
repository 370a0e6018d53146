"""Bounds of numbers, stated once: in the type of the field, for whoever checks it."""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
AboveZero = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]

_WORDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Gt: ("gt", "above", operator.gt),
    Ge: ("ge", "at least", operator.ge),
    Lt: ("lt", "below", operator.lt),
    Le: ("le", "at most", operator.le),
}


def limits(hint: Any) -> Iterator[Gt | Ge | Lt | Le]:
    """The bounds in a type hint such as ``Annotated[float, Gt(0)] | None``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from (part for part in arguments[1:] if type(part) in _WORDS)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from limits(argument)


def out_of_bounds(hint: Any, value: Any) -> str | None:
    """The bounds in words, "above 0, at most 1", where ``value`` is outside; None inside.

    What is no number is outside, but for None where the hint allows it.
    """
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    words, inside = [], isinstance(value, Real)
    for limit in limits(hint):
        name, word, holds = _WORDS[type(limit)]
        bound = getattr(limit, name)
        words.append(f"{word} {bound:g}")
        inside = inside and holds(value, bound)
    return ", ".join(words) if words and not inside else None
