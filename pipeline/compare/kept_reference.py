"""The reference's samples and scores, kept for the trials of a sweep that would draw the same.

They follow from the SFT model, the rewards, the prompts, how completions are sampled and the seed:
not from the policy, nor from β. A sweep makes the folder ``measured`` beside the stages that its
trials share (`Experiment.shared`); without it nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from common.files import read_json, write_bytes
from pipeline.compare.evaluate import Evaluation
from pipeline.config import Experiment
from pipeline.config.stages import SHARED

FOLDER = "measured"
# Of what the comparison reads: what only its arithmetic and the other policies need.
_UNREAD = (
    "beta",
    "compare.best_of_n",
    "compare.bootstrap",
    "compare.frontier_betas",
    "compare.policies",
    "compare.samples_per_prompt",
)


def fetch(experiment: Experiment, paths: Sequence[Path]) -> bool:
    """Copy to ``paths`` what another trial has kept; False where none has all of it."""
    found = _places(experiment, paths)
    if not found or not all(kept.is_file() for kept in found):
        return False
    for path, kept in zip(paths, found, strict=True):
        write_bytes(path, kept.read_bytes())
    return True


def keep(experiment: Experiment, paths: Sequence[Path]) -> None:
    """Keep what ``paths`` hold for the other trials."""
    for path, kept in zip(paths, _places(experiment, paths) or paths, strict=True):
        if kept != path:
            write_bytes(kept, path.read_bytes())


def _places(experiment: Experiment, paths: Sequence[Path]) -> list[Path]:
    """Where ``paths`` are kept, told apart by their endings; [] where nothing is."""
    place = _place(experiment)
    return [place.with_suffix("".join(path.suffixes)) for path in paths] if place else []


def _place(experiment: Experiment) -> Path | None:
    """The name for these inputs, which stand in the stage's record; None where none is kept."""
    record = experiment.stage_dir("compare") / "stage.json"
    if experiment.shared is None or not record.is_file():
        return None
    folder = experiment.shared / FOLDER
    if not folder.is_dir():
        return None
    inputs = read_json(record)["inputs"]
    config = {key: value for key, value in inputs["config"].items() if _is_read(key)}
    made_of = {
        "config": config,
        "content": inputs["content"],
        "upstream": {stage: inputs["upstream"][stage] for stage in SHARED},
        "division": inputs.get("division"),
        "fields": [field.name for field in fields(Evaluation)],
    }
    text = json.dumps(made_of, sort_keys=True, ensure_ascii=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _is_read(key: str) -> bool:
    return not any(key == part or key.startswith(f"{part}.") for part in _UNREAD)
