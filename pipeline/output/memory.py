"""How much memory the process took; light to import."""

from __future__ import annotations

import re
from pathlib import Path

import psutil


def peak_memory() -> float:
    """The most memory that this process had resident so far, in GiB."""
    status = Path("/proc/self/status")  # unlike getrusage's, never its parent's before it began
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    if peak is not None:
        return int(peak[1]) / 2**20
    memory = psutil.Process().memory_info()
    # Windows keeps the peak; where nobody does (macOS), what is resident now stands for it.
    return getattr(memory, "peak_wset", memory.rss) / 2**30
