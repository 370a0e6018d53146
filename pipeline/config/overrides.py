"""Settings from the command line, `key.sub=value`, put into the tree of a config file."""

from __future__ import annotations

import re
from typing import Any

from common.yamlfile import parse_override
from pipeline.errors import UserError


def apply(tree: dict[str, Any], override: str) -> str:
    """Set `key.sub=value`, or `key[0].sub=value` in a list, in ``tree`` and return the dotted key.

    A section that the tree gives as null or not at all is made.

    Raises:
        UserError: The form is wrong, or the key goes through what is no section or no list.
    """
    key, value = parse_override(override, UserError)
    *places, last = re.split(r"\.|(?=\[\d+\])", key)
    place: Any = tree
    way = ""
    for part in places:
        place = _inside(place, part, way, override)
        way += part if part.startswith("[") or not way else f".{part}"
    _inside(place, last, way, override)
    place[int(last[1:-1]) if last.startswith("[") else last] = value
    return key


def _inside(place: Any, part: str, way: str, override: str) -> Any:
    """What ``place``, which ``way`` led to, has under a key or at an index written as ``[0]``."""
    if part.startswith("["):
        if not isinstance(place, list):
            raise UserError(f"override {override!r}: {way} is no list")
        if int(part[1:-1]) >= len(place):
            raise UserError(f"override {override!r}: {way} has {len(place)} items; count from 0")
        return place[int(part[1:-1])]
    if not isinstance(place, dict):
        raise UserError(f"override {override!r}: {way} is no section")
    if place.get(part) is None:
        place[part] = {}
    return place[part]
