"""Processes that start within milliseconds, because all they need is imported already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT


class Nursery:
    """Starts runs within milliseconds, see forker.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "forker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(self, log: Path, function: str, *arguments: str) -> int:
        """Call a function (``package.module:name``) in a new process, its output in ``log``.

        Without a module it is one of in_child.py. Returns the process id.
        """
        return self._ask("start", str(log), function, *arguments)

    def wait(self, pid: int) -> int:
        """The exit status, negative for a signal."""
        return self._ask("wait", str(pid))

    def close(self) -> None:
        """End the process that children are forked from."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, *request: str) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())
