"""`python -m pipeline.launch.agent …`: accelerate's launcher, which tells its end in one line.

The words are those of `accelerate launch`. torchrun's block of a traceback a process is not shown:
a user's mistake was told by the process that found it, and for what ended without a word the line
is made here.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.launch.children import (
    INTERRUPTED,
    LOST,
    MISTAKE,
    RESUME,
    by_signal,
    end_with_parent,
)
from pipeline.output import quiet

UNTOLD = 76
"""Exit code of this module for LOST where nothing was told: the reason is not on this machine."""


def main(words: Sequence[str]) -> int:
    """Start what ``words`` say, wait for it, and return how it ended."""
    end_with_parent()
    quiet.before_imports()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not quiet.verbose():
        logging.disable(logging.ERROR)
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        return ended(error.failures)
    except (SignalException, KeyboardInterrupt):
        return INTERRUPTED
    except ConnectionError as error:
        return _tell(f"--main-process-port: {' '.join(str(error).split())}", MISTAKE)
    return 0


def ended(failures: dict[int, Any]) -> int:
    """The exit code of a run some of whose processes failed, told where none of them could.

    Args:
        failures: torchrun's, by rank; only ``exitcode`` is read, negative for a signal.
    """
    codes = {rank: int(failure.exitcode) for rank, failure in failures.items()}
    killed = {rank: code for rank, code in codes.items() if code < 0}
    if killed:
        # Of those that torchrun ends as another is lost, it sends SIGTERM.
        rank, code = min(killed.items(), key=lambda each: (each[1] == -signal.SIGTERM, each[0]))
        return _tell(f"process {rank} {by_signal(code)}; {RESUME}", LOST)
    if MISTAKE in codes.values():
        return MISTAKE
    told = {rank: code for rank, code in codes.items() if code not in (LOST, INTERRUPTED)}
    if not told:
        return INTERRUPTED if INTERRUPTED in codes.values() else UNTOLD
    rank, code = min(told.items())
    return _tell(f"process {rank} ended with exit code {code}; the reason stands above", code)


def _tell(line: str, code: int) -> int:
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
