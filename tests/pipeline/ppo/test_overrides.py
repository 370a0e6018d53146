"""What is overridden of the libraries' trainers: their private methods change without notice."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

import pipeline
from pipeline.output import versions


def trainers() -> Iterator[type]:
    """Every trainer of ours, and every class that is mixed into one."""
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, left = [], [Trainer]
    while left:
        for heir in left.pop().__subclasses__():
            left.append(heir)
            found += [c for c in heir.__mro__ if c.__module__.startswith("pipeline.")]
    yield from dict.fromkeys(found)


def parents(owner: type) -> list[type]:
    """The libraries' classes behind ``owner`` in every trainer of ours that it is part of."""
    heirs = [owner, *owner.__subclasses__()]
    lines = [heir.__mro__ for heir in heirs if issubclass(heir, Trainer)]
    return [c for line in lines for c in line if not c.__module__.startswith("pipeline.")]


def private() -> list[tuple[type, str]]:
    """Methods of ours with an underscore in front."""
    return [
        (owner, name)
        for owner in trainers()
        for name, value in vars(owner).items()
        if name.startswith("_") and not name.startswith("__") and inspect.isfunction(value)
    ]


OURS = private()
OVERRIDES = [(c, n) for c, n in OURS if any(n in vars(parent) for parent in parents(c))]


def called_by_us() -> set[str]:
    """Names of methods that our own code calls or hands on, on other objects than super()."""
    names = set()
    for path in Path(pipeline.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Call):
                names.add(node.attr)
    return names


def test_there_is_something_to_look_at() -> None:
    names = {name for _, name in OVERRIDES}
    assert {"_save", "_clip_grad_norm", "_load_from_checkpoint", "_prepare_dataset"} <= names
    assert len(OVERRIDES) >= 9


def test_no_private_method_is_left_without_a_caller() -> None:
    """One that the library called under this name, and now under another, would never run."""
    known = called_by_us()
    lost = [f"{owner.__name__}.{name}" for owner, name in OURS if (owner, name) not in OVERRIDES]
    assert [name for name in lost if name.partition(".")[2] not in known] == []


@pytest.mark.parametrize(
    ("owner", "name"), OVERRIDES, ids=lambda value: getattr(value, "__name__", value)
)
def test_an_override_takes_what_the_library_passes(owner: type, name: str) -> None:
    """The same parameters at the same places, under the same names, required of nobody more."""
    ours = inspect.signature(getattr(owner, name)).parameters
    if any(p.kind is p.VAR_POSITIONAL for p in ours.values()):
        assert any(p.kind is p.VAR_KEYWORD for p in ours.values())
        return
    for parent in parents(owner):
        if name not in vars(parent):
            continue
        theirs = inspect.signature(vars(parent)[name]).parameters
        assert list(ours) == list(theirs)
        for key, parameter in theirs.items():
            assert ours[key].kind is parameter.kind
            assert ours[key].default is ours[key].empty or parameter.default is not ours[key].empty
            if parameter.default is not parameter.empty:
                assert ours[key].default == parameter.default


def test_the_releases_asked_for_are_those_tested(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package, release in versions.TESTED.items():
        assert f"{package}~={release}.0" in project["dependencies"]


def test_another_release_is_told_in_a_line(monkeypatch: Any, capsys: Any) -> None:
    versions.warn_untested.cache_clear()
    versions.warn_untested()
    assert capsys.readouterr().err == ""
    installed = {"transformers": "5.24.1", "trl": f"{versions.TESTED['trl']}.7"}
    monkeypatch.setattr(versions.importlib.metadata, "version", installed.get)
    versions.warn_untested.cache_clear()
    versions.warn_untested()
    versions.warn_untested()
    (line,) = capsys.readouterr().err.splitlines()
    assert "transformers 5.24.1 is installed, and 5.23 is tested" in line
    assert "pip install 'transformers~=5.23.0'" in line
