"""Curves for Weights & Biases or TensorBoard, beside the run's own files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from common.tracking import Backend, TensorBoard, Tracker, WeightsAndBiases, run_id

TrackerName = Literal["wandb", "tensorboard"]
STEP = "environment_steps"


def open_tracker(
    name: TrackerName,
    folder: Path,
    *,
    group: str,
    run: str,
    config: Mapping[str, Any],
    resume: bool = False,
) -> Tracker:
    """Start one run's tracker.

    Args:
        folder: the run's. group, run: how it is called. config: its settings, to be shown beside
            the curves. resume: go on in the curves of the same folder.
    """

    def start() -> Backend:
        if name == "tensorboard":
            return TensorBoard(folder / "tensorboard", f"{group}/{run}", config, resume)
        names = {
            "project": os.environ.get("WANDB_PROJECT", "classic-rl"),
            "group": group,
            "name": run,
            "id": run_id(folder / "wandb.json", resume),
        }
        return WeightsAndBiases(folder, config, names, axis=STEP, shared=False, say=_say)

    return Tracker({"wandb": "Weights & Biases", "tensorboard": "TensorBoard"}[name], start, _say)


def _say(line: str) -> None:
    """Print a line in the place of the live one."""
    print(("\r\033[K" if sys.stderr.isatty() else "") + line, file=sys.stderr)
