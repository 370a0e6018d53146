"""A process that has everything imported and forks children which run the command line.

Starting Python and importing torch and transformers takes ten times as long as the runs that tests
interrupt. This process (one thread, no training of its own, so that a fork is safe) does it once.
It reads a JSON list a line: ``["start", LOG, FUNCTION, ARGUMENT...]`` forks a child that calls a
function (``package.module:name``, or the name of one of in_child.py) with its output in LOG and
answers its process id; ``["wait", PID]`` answers the exit status, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print while they are imported is no answer
sys.path[0] = str(Path(__file__).resolve().parents[1])
from tests import in_child  # noqa: E402


def imported() -> set[str]:
    """Modules that are worth having before the fork."""
    wanted = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pipeline")
    return {name for name in sys.modules if name.split(".")[0] in wanted}


def child(log: str, function: str, arguments: list[str]) -> int:
    """Run it, and leave a list of the modules that it had to import itself beside ``log``."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdin.close()
    before = imported()
    try:
        module, _, name = function.rpartition(":")
        home = importlib.import_module(module) if module else in_child
        status = getattr(home, name)(*arguments)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    Path(f"{log}.imports").write_text("\n".join(sorted(imported() - before)), encoding="utf-8")
    return status


def answer(request: list[str]) -> int:
    """Start a child, or wait for one."""
    if request[0] == "wait":
        _, status = os.waitpid(int(request[1]), 0)
        return os.waitstatus_to_exitcode(status)
    _, log, function, *arguments = request
    learned = Path(f"{log}.imports")
    if learned.is_file():
        for name in learned.read_text(encoding="utf-8").split():
            importlib.import_module(name)
    pid = os.fork()
    if pid == 0:
        os._exit(child(log, function, arguments))
    return pid


if __name__ == "__main__":
    in_child.warm()
    print("ready", file=ANSWERS, flush=True)
    for line in sys.stdin:
        print(answer(json.loads(line)), file=ANSWERS, flush=True)
