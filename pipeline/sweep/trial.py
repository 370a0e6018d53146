"""The process of one job: `python -m pipeline.sweep.trial CONFIG STAGE…`.

The stages run one after the other as `rlhf STAGE --config CONFIG` would; its exit code is theirs.
The process ends when its standard input does: whoever started it is gone, and another will start
the same job again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.errors import UserError
from pipeline.output import quiet

# Seconds to wait for a process that still works in the folder: one that was just told to end.
HOLDER = 60.0
# Seconds to end by itself when nobody waits any more.
GRACE = 20.0


def main(argv: Sequence[str]) -> int:
    """Run the stages until one fails; the exit code."""
    config, *stages = argv
    threading.Thread(target=_end_with, args=(_own_input(),), daemon=True).start()
    quiet.before_imports()
    _wait_for_folder(Path(config))
    for stage in stages:
        code = cli.main([stage, "--config", config])
        if code != 0:
            return code
    return 0


def _own_input() -> int:
    """A descriptor of the standard input, which what is started from here then finds empty."""
    kept, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return kept


def _end_with(stream: int) -> None:
    """Interrupt this process when ``stream`` ends."""
    while os.read(stream, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(cli.INTERRUPTED)


def _wait_for_folder(config: Path) -> None:
    """Wait until nobody holds the experiment's folder; the command line tells of all else."""
    from pipeline.config import load_experiment
    from pipeline.runner import lock

    deadline = time.monotonic() + HOLDER
    while time.monotonic() < deadline:
        try:
            with lock(load_experiment(config).output_dir):
                return
        except UserError as error:
            if "is working in it" not in str(error):
                return
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
