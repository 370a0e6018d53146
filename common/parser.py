"""The parser of every command: a mistake is one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions of the caller's kind.

    Args:
        raises: what a mistake raises, with one line for its message. Others as for argparse.
        settings: gives the names of what is set as ``name=value``, asked for when a flag is
            unknown: other programs have flags for them.
    """

    def __init__(
        self,
        *args: Any,
        raises: type[Exception],
        settings: Callable[[], Iterable[str]] = tuple,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._raises = raises
        self._settings = settings

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        near = self._nearest(message)
        hint = f"; did you mean {near}?" if near else ""
        raise self._raises(f"{message}{hint}; `{self.prog} --help` shows how")

    def _nearest(self, message: str) -> str | None:
        """The setting or option that is spelt most like the first unknown flag."""
        begin = "unrecognized arguments: "
        words = message.removeprefix(begin).split() if message.startswith(begin) else []
        flag = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
        options = {
            option.lstrip("-").replace("-", "_"): option for option in self._option_string_actions
        }
        ways = options | {name: f"{name}=…" for name in self._settings()}
        near = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), ways, n=1)
        return ways[near[0]] if near else None
