"""Child processes that end with their parent, and ways for a run to end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

MISTAKE = 2
"""Exit code of a user's mistake: to try again would end the same."""
LOST = 75
"""Exit code where a process or machine is lost: the same command resumes (EX_TEMPFAIL)."""
INTERRUPTED = 130
RESUME = "run the same command to resume"
PATIENCE = 45.0
"""Seconds until what was told to end is killed; torchrun gives its processes 30."""
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the system end this process when its parent is gone, however that ended (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def by_signal(code: int) -> str:
    """How a process with this exit code below 0 ended, to follow its name."""
    why = " (memory may have run out)" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{why}"


def start(module: str, words: Sequence[str], told: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start ``python -m module words``, in a session of its own: Ctrl-C comes here alone.

    Args:
        told: of `pipeline.launched`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env=os.environ | told,
        start_new_session=True,
    )


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child, which ends its own; kill it where it does not."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
