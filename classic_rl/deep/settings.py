"""Settings of a run: checking them, and reading them from YAML. Each mistake is one line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from classic_rl.errors import ProblemError

Config = TypeVar("Config")


def check_range(
    config: Any, *names: str, low: float, high: float = math.inf, open_low: bool = False
) -> None:
    """Raise a ProblemError unless the fields ``names`` lie in [low, high], or (low, high].

    A field that is None is left alone: None switches a setting off.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or (low <= value <= high and not (open_low and value == low)):
            continue
        wanted = f"above {low:g}" if open_low else f"at least {low:g}"
        wanted += f" and at most {high:g}" if high < math.inf else ""
        raise ProblemError(f"{name}: {value} must be {wanted}")


def load_config(cls: type[Config], path: str | Path, **overrides: Any) -> Config:
    """A config dataclass from a YAML file of its fields; ``overrides`` win over the file.

    Raises:
        ProblemError: for a missing or unreadable file, an unknown field (with the nearest known
            one) or a value of the wrong type.
    """
    return config_from(cls, {**read_settings(path), **overrides}, str(path))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The ``name: value`` lines of a YAML file; a ProblemError names file and line."""
    from common.yamlfile import read_yaml  # only where a file is read

    return read_yaml(Path(path), ProblemError)


def config_from(cls: type[Config], values: Mapping[str, Any], origin: str) -> Config:
    """A config dataclass from a mapping of its fields; ``origin`` is named in errors."""
    fitted = fit(cls, values, origin)
    try:
        return cls(**fitted)
    except ProblemError as error:
        raise ProblemError(f"{origin}: {error}") from error


def fit(cls: type, values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """``values`` as the types of the fields of ``cls``; a ProblemError names ``origin``."""
    types_by_name = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    fitted = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; {cls.__name__} has no such field"
            raise ProblemError(f"{origin}: unknown setting {name}{hint}")
        fitted[name] = _fit(value, types_by_name[name], f"{origin}: {name}")
    return fitted


def _fit(value: Any, wanted: Any, where: str) -> Any:
    """``value`` as the type ``wanted``: YAML's lists become tuples, and 1 or 1e-3 a float."""
    kinds = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for kind in kinds:
        origin = typing.get_origin(kind)
        if kind is type(None):
            if value is None:
                return None
        elif origin is typing.Literal:
            if value in typing.get_args(kind):
                return value
        elif origin is tuple:
            inner = typing.get_args(kind)[0]
            if isinstance(value, (list, tuple)) and all(type(item) is inner for item in value):
                return tuple(value)
        elif kind is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                number = float(value)
                if math.isfinite(number):
                    return number
        elif isinstance(value, origin or kind) and isinstance(value, bool) == (kind is bool):
            return value
    raise ProblemError(f"{where}: {value!r} is not {_name(wanted)}")


def _name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_name(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "a list of whole numbers"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }.get(kind, "a mapping of names to values")
