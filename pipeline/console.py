"""Lines for the person at the terminal; light to import."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm


def is_main_process() -> bool:
    """True on the one process that prints, writes records and owns the W&B run (rank 0)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line on stderr, once over all processes, above any open bar."""
    if is_main_process():
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
