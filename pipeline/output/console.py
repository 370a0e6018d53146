"""Lines for the person at the terminal; light to import."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from common import progress


def is_main_process() -> bool:
    """True on the one process that prints, writes records and owns the W&B run (rank 0)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line on stderr, once over all processes, above any open bar."""
    if is_main_process():
        progress.say(text)


def complain(text: str) -> None:
    """Print why the run ends, once: where several processes fail together, the first one does."""
    progress.close_all()
    if _first_to_fail():
        print(text, file=sys.stderr, flush=True)


def _first_to_fail() -> bool:
    """True for the first process of this run that asks; they agree through the launcher's store."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"rlhf/failed/{attempt}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # no launcher that could be asked
        return is_main_process()


def wait_for_every_rank() -> None:
    """A barrier where there are several processes."""
    torch = sys.modules.get("torch")  # whoever has begun a process group has imported it
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
