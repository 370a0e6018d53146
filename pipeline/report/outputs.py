"""What the stages of an experiment wrote, as the report reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import files
from pipeline.compare.training import together
from pipeline.config import Experiment
from pipeline.errors import UserError
from pipeline.output.metrics_file import read_metrics


@dataclass(frozen=True)
class Outputs:
    """Everything but ``results`` may be empty.

    Attributes:
        results, details, samples, examples: of the comparison: what its files hold.
        answers: rows of samples_all.jsonl, an answer each.
        reward: reward/metrics.json.
        histories: metrics.jsonl of each stage. stages: its stage.json.
    """

    results: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


def load(experiment: Experiment) -> Outputs:
    """Read everything that the stages of ``experiment`` wrote for the report."""
    path = experiment.stage_dir("compare") / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: not there; run the compare stage before the report")
    results = _json(path)
    if not isinstance(results.get("methods"), dict) or "beta" not in results:
        raise UserError(f"{path}: not a comparison's results; run the compare stage again")
    compare = experiment.stage_dir("compare")
    details = _json(compare / "details.json")
    names = [stage.name for stage in experiment.stages()]
    return Outputs(
        results=together(results, details),
        details=details,
        reward=_json(experiment.stage_dir("reward") / "metrics.json"),
        samples=_jsonl(compare / "samples.jsonl"),
        answers=_jsonl(compare / "samples_all.jsonl"),
        examples=_list(compare / "examples.json"),
        histories={
            stage: read_metrics(experiment.stage_dir(stage) / "metrics.jsonl") for stage in names
        },
        stages={stage: _json(experiment.stage_dir(stage) / "stage.json") for stage in names},
    )


def _json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is no such file."""
    value = _read(path)
    return value if isinstance(value, dict) else {}


def _list(path: Path) -> list[dict[str, Any]]:
    """A file's list; empty where there is no such file."""
    value = _read(path)
    return value if isinstance(value, list) else []


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return files.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); run its stage again") from None


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # Not splitlines(): generated text may hold characters that it, but not JSON, breaks at.
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON lines ({error}); run its stage again") from None
