"""The judge while PPO trains: what every evaluation measured, and whether gold has fallen.

The judge audits. It sees a fall when it has happened, at the next evaluation, and only what its own
errors let it see: it promises no early warning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from common import files
from pipeline.output.metrics_file import read_metrics

LEVEL = 0.95


@dataclass
class GoldWatch:
    """The best evaluation so far by its mean gold, and whether a later one fell below it.

    Attributes:
        looks: evaluations so far.
        step: of the best. best: its gold, prompt by prompt.
        fallen: a later one was lower by more than its interval.
    """

    looks: int = 0
    step: int = 0
    best: list[float] = field(default_factory=list)
    fallen: bool = False

    def look(self, step: int, gold: Sequence[float], planned: int) -> float:
        """Take in one evaluation's gold, a number a prompt, in the prompts' order.

        It has fallen when the mean over prompts of the difference to the best is below 0 by more
        than its one-sided interval (Student's t, paired by prompt; every evaluation draws with the
        same random numbers). Among many evaluations the best is partly luck, so the level is
        shared by all pairs of them (Bonferroni): without any fall, at most 5 % of runs are ended.

        Args:
            planned: evaluations in the whole run.

        Returns:
            how far the mean is below the best's; 0 for a new best.
        """
        self.looks += 1
        self.fallen = False
        values = np.asarray(gold, dtype=np.float64)
        if len(self.best) != len(values) or values.mean() > np.mean(self.best):
            self.step, self.best = step, values.tolist()
            return 0.0
        fall = np.asarray(self.best) - values
        if len(values) > 1:
            evaluations = max(self.looks, planned)
            pairs = evaluations * (evaluations - 1) / 2
            limit = stats.t.ppf(1 - (1 - LEVEL) / pairs, len(values) - 1)
            error = float(fall.std(ddof=1)) / math.sqrt(len(values))
            self.fallen = bool(fall.mean() > limit * error)
        return float(fall.mean())


class EvaluationsFile:
    """Every evaluation while training, prompt by prompt, a JSON line each; only rank 0 may write.

    ``{"step", "scores": [P], "kl": [P], "gold": [P] or null}``: reward, nats a completion, reward.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, step: int) -> None:
        """Drop the lines of an earlier run after ``step``, where this one goes on."""
        if self.path.is_file():
            rows = [row for row in read_metrics(self.path) if 0 < step >= row["step"]]
            files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, row: dict[str, Any]) -> None:
        """Append one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
