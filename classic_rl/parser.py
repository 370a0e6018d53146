"""The parser of both halves of the command line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from classic_rl.errors import ProblemError


class Parser(argparse.ArgumentParser):
    """Report a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise a ProblemError."""
        raise ProblemError(f"{message}; `{self.prog} --help` explains the options")
