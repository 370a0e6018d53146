"""Whether the libraries whose insides are overridden are those that were tested."""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache

from pipeline.output.console import say

TESTED = {"transformers": "5.23", "trl": "1.16"}
"""Releases whose private methods the trainers override; pyproject.toml asks for the same."""


@lru_cache(maxsize=1)
def warn_untested() -> None:
    """Say so, once a process, where another release is installed."""
    for package, tested in TESTED.items():
        installed = importlib.metadata.version(package)
        if installed.split(".")[:2] != tested.split("."):
            say(
                f"warning: {package} {installed} is installed, and {tested} is tested: methods that"
                f" the trainers override may have changed; pip install '{package}~={tested}.0'"
            )
