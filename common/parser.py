"""The parser of every command: a mistake is one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions of the caller's kind.

    Args:
        raises: what a mistake raises, with one line for its message. Others as for argparse.
    """

    def __init__(self, *args: Any, raises: type[Exception], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._raises = raises

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise self._raises(f"{message}; `{self.prog} --help` shows how")
