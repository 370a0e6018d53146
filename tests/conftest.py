"""What all tests share: one thread, quiet libraries, no network, configs in a temporary folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Before torch is imported anywhere: learning curves depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

from pipeline.output import quiet  # noqa: E402
from tests.checkout import ROOT  # noqa: E402
from tests.nursery import Nursery  # noqa: E402

quiet.before_imports()
# How long an example takes is the machine's, and says nothing of the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, files with slow tests come first: a long one at the end would run alone."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes do not name a test: they may hold a time, and all processes must agree on names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def tiny() -> Path:
    """configs/tiny.yaml."""
    return ROOT / "configs" / "tiny.yaml"


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """The process that others are forked from."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a config with the given text and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def as_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has every file count as large from then on, and as old enough to be remembered."""
    from pipeline.data import large, remembered

    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))

    def from_now_on() -> None:
        monkeypatch.setattr(large, "IN_MEMORY", 0)
        monkeypatch.setattr(remembered, "_YOUNG", 0)

    return from_now_on
