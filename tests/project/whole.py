"""The real command, on a config of the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT


def run(config: str, output: Path) -> str:
    """`rlhf run --config configs/<config>` on one thread to the end; what it printed."""
    command = [sys.executable, "-m", "pipeline", "run", "--config", f"configs/{config}"]
    done = subprocess.run(
        [*command, f"output_dir={output}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
