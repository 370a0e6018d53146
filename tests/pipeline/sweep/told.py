"""What the tests of whole sweeps share: one small sweep, and how two are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_json

SETTINGS = ["sweep.seeds=[0,1]", "sweep.threads=1", "reward.num_train_epochs=1"]
SETTINGS += ["ppo.total_episodes=64", "pairs.max_pairs=32"]
TRIALS = ["ppo-b1-s0", "dpo-b1-s0", "ppo-b1-s1", "dpo-b1-s1"]
LAST = TRIALS[-1]


@dataclass
class Told:
    """What the three calls of one sweep did: exit code, and the jobs that were started."""

    folder: Path
    words: list[str]
    codes: list[int]
    started: list[list[str]]
    first: dict[str, Any]
    page: str


def kept(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "shared" / "measured").glob("*.json"))


def wait_until(ready: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def same_numbers(folder: Path, other: Path) -> None:
    """What every policy wrote and got, to the bit."""
    for name in TRIALS:
        policy = name.partition("-")[0]
        place = Path("trials", name, "compare", "measured", f"{policy}.json")
        assert read_json(folder / place) == read_json(other / place), name
