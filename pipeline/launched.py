"""What `rlhf … --accelerate` tells the processes that it starts, in their environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

_COMMAND, _PROCESSES = "RLHF_LAUNCHED", "RLHF_PROCESSES"


def told(command: str, processes: int) -> Mapping[str, str]:
    """The variables for a part of ``command``, whose trainers are of so many processes."""
    return {_COMMAND: command, _PROCESSES: str(processes)}


def launched() -> bool:
    """True in a process that `--accelerate` has started: the launcher tells how it ended."""
    return _COMMAND in os.environ


def part_of_run() -> bool:
    """True where the launcher goes on with other stages after this command."""
    return os.environ.get(_COMMAND) == "run"


def processes() -> int:
    """How many processes train a stage: this one of them, or what the launcher starts."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get(_PROCESSES) or "1")
