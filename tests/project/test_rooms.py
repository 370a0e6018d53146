"""Imports go one way: no circle, no arrow to a higher room, and docs/rooms.txt shows them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.checkout import ROOT


def load() -> ModuleType:
    """docs/make/rooms.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "make" / "rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rooms = load()
ALL = rooms.module_arrows()


def wrong(arrows: dict[str, set[str]]) -> list[object]:
    """Circles, and arrows that go up."""
    between = rooms.room_arrows(arrows)
    circles = [way for way in (rooms.circle(arrows), rooms.circle(between)) if way]
    return [*circles, *sorted(rooms.upward(between))]


def test_every_room_has_its_place() -> None:
    """One that is new is declared in the ORDER of docs/make/rooms.py."""
    assert set(rooms.room_arrows(ALL)) <= set(rooms.ORDER)
    assert len(set(rooms.ORDER)) == len(rooms.ORDER)


def test_imports_go_one_way() -> None:
    assert wrong(ALL) == []


def test_the_drawing_is_up_to_date() -> None:
    """`python docs/make/rooms.py` writes it anew."""
    assert rooms.PAGE.read_text(encoding="utf-8") == rooms.page(rooms.room_arrows(ALL))


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small one, with every way to import."""
    files = {
        "common/__init__.py": "",
        "common/files.py": "import os",
        "pipeline/__init__.py": "",
        "pipeline/errors.py": "def late():\n    from . import output",
        "pipeline/output/__init__.py": "from pipeline.output.console import say",
        "pipeline/output/console.py": "from typing import TYPE_CHECKING\nimport common.files\n"
        "if TYPE_CHECKING:\n    from pipeline.lm import text\nelse:\n    from pipeline import lm\n",
        "pipeline/lm.py": "try:\n    from .output.console import say\nfinally:\n    pass",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_counts_as_an_arrow(house: Path) -> None:
    arrows = rooms.module_arrows(house)
    assert arrows == {
        "common": set(),
        "common.files": set(),
        "pipeline": set(),
        "pipeline.errors": {"pipeline.output"},
        "pipeline.output": {"pipeline.output.console"},
        "pipeline.output.console": {"common", "common.files", "pipeline.lm"},
        "pipeline.lm": {"pipeline.output", "pipeline.output.console"},
    }
    between = rooms.room_arrows(arrows)
    assert between == {
        "common": set(),
        "pipeline.errors": {"pipeline.output"},
        "pipeline.output": {"common", "pipeline.lm"},
        "pipeline.lm": {"pipeline.output"},
    }
    assert rooms.circle(between) == ["pipeline.output", "pipeline.lm", "pipeline.output"]
    assert rooms.upward(between) == {
        ("pipeline.errors", "pipeline.output"),
        ("pipeline.output", "pipeline.lm"),
    }


def test_a_circle_is_told_from_a_way_that_ends() -> None:
    assert rooms.circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert rooms.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
