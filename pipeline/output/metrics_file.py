"""Every metric of a training as JSON lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from common import files
from common.words import json_able


class MetricsFile(TrainerCallback):
    """Appends every log event to ``path``: ``{"step", "epoch", "time", metric: number, ...}``.

    ``time`` is in seconds since 1970. A metric that is not finite is written as null. When a run
    resumes, the lines after the step it resumes from are dropped, so the steps in the file are
    those of an uninterrupted run. Only the first rank writes.
    """

    def __init__(self, path: Path) -> None:
        """``path`` is made, with its folder, when training begins."""
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to ``state.global_step``, which is 0 unless the run resumes."""
        if not state.is_world_process_zero:
            return
        kept = []
        for row in read_metrics(self.path) if state.global_step > 0 else []:
            # The closing summary of a run that had ended is written again at its new end.
            if row["step"] <= state.global_step and "train_runtime" not in row:
                kept.append(json.dumps(row, ensure_ascii=False) + "\n")
        files.write_text(self.path, "".join(kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append one line."""
        if not state.is_world_process_zero or not logs:
            return
        metrics = {name: json_able(value) for name, value in logs.items() if name != "total_flos"}
        row = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3)}
        line = json.dumps(row | metrics, ensure_ascii=False, allow_nan=False, default=str)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read what `MetricsFile` wrote; a missing file is empty, a line cut off by a kill is left
    out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
