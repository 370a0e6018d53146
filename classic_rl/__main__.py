"""``python -m classic_rl``."""

from __future__ import annotations

import io
import os
import sys

from classic_rl.cli import main


def program() -> int:
    """`main` for a terminal or a pipe of any kind; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets ? for an arrow
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(program())
