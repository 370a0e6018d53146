"""Where runs write: the folder of all of them, and the name of one."""

from __future__ import annotations

import re
from pathlib import Path

RUNS = Path("runs/classic")


def slug(env_id: str) -> str:
    """An environment's id as a part of a file name: ``ALE/Pong-v5`` is ``ALE-Pong-v5``."""
    return re.sub(r"[^\w.-]+", "-", env_id)
