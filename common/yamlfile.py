"""Reading YAML the way people write it: 1e-5 is a number, `no` is a word, mistakes have a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML with the 1.2 core schema's scalars; a key given twice is an error."""


# YAML 1.1 (PyYAML's default) reads 1e-5 as text, `no` as false, 2026-01-01 as a date and 1:30 as
# 90. Trainer arguments contain `save_strategy: no` and `learning_rate: 1e-5`, so take 1.2's rules.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] == "tag:yaml.org,2002:merge"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Construct a mapping; unlike PyYAML, refuse a key that is there twice."""
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key in seen and key != "<<":
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is there twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


# 010 is ten, as in YAML 1.2 (PyYAML reads it as octal).
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda _, node: int(node.value.replace("_", ""), base=10)
)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _parse(text: str) -> Any:
    """Parse one YAML document; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)


def _one_line(error: yaml.YAMLError) -> str:
    """Say what is wrong and where (line and column from 1), in one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{mark.line + 1}:{mark.column + 1}: {problem}" if mark else problem


def read_yaml(path: Path, raises: type[Exception]) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ``raises``, with one line that names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise raises(f"{path}: no such file; --config takes a YAML file") from None
    except UnicodeDecodeError as error:
        raise raises(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise raises(f"{path}: cannot be read: {error.strerror}") from None
    try:
        tree = _parse(text)
    except yaml.YAMLError as error:
        raise raises(f"{path}:{_one_line(error)}") from None
    if tree is None:
        raise raises(f"{path}: the file is empty; start from one in configs/")
    if not isinstance(tree, dict):
        raise raises(f"{path}: expected `key: value` lines, found {type(tree).__name__}")
    return tree


def parse_override(override: str, raises: type[Exception]) -> tuple[str, Any]:
    """Return the key and the value of ``key=value``; the value is YAML.

    Raises:
        ``raises``, when the form is wrong or a part of a dotted key is empty.
    """
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise raises(f"override {override!r}: expected key=value, such as seed=1")
    try:
        return key, _parse(value)
    except yaml.YAMLError as error:
        raise raises(f"override {override!r}: the value is not YAML: {_one_line(error)}") from None
