"""Where a reward's sources with ``normalize: reference`` stand: their mean and deviation on π_ref.

The reward stage estimates both once, on samples for the training prompts, and keeps them in
``reward/scale.json``. Whoever loads the reward reads them back, if they are of this reference and
of this source: another's would be wrong in silence.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from common.files import read_json, write_json
from pipeline.config import Experiment, RewardPart, is_trained_here
from pipeline.config.content import content_hash
from pipeline.errors import UserError
from reward_models.combined import Scale
from reward_models.loading import kind_of

Part = Literal["proxy", "gold"]


def scale_file(experiment: Experiment) -> Path:
    return experiment.stage_dir("reward") / "scale.json"


def scale_of(experiment: Experiment, part: Part, place: str, source: RewardPart) -> Scale:
    """How a source's scores are scaled.

    Args:
        place: the config's for it, such as ``reward.source[1]``.

    Raises:
        UserError: it is normalised, and its mean and deviation are not known.
    """
    if source.normalize is None:
        return Scale(source.bounds())
    kept = known_scales(experiment).get(fingerprint(experiment, part, source))
    if kept is None:
        raise UserError(
            f"{place}.normalize: {scale_file(experiment)} holds no scale of this source on this "
            "reference model; run `rlhf reward` with this config"
        )
    return Scale(source.bounds(), kept["mean"], kept["deviation"])


def known_scales(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """What ``reward/scale.json`` holds, by fingerprint; empty where it is not there."""
    path = scale_file(experiment)
    return read_json(path)["scales"] if path.is_file() else {}


def keep_scale(
    experiment: Experiment, part: Part, place: str, source: RewardPart, measured: dict[str, float]
) -> None:
    """Add one to the file: what `measured` says of a source's scores on π_ref's samples."""
    scales = known_scales(experiment)
    scales[fingerprint(experiment, part, source)] = {"source": place, "part": part} | measured
    write_json(scale_file(experiment), {"scales": scales})


def fingerprint(experiment: Experiment, part: Part, source: RewardPart) -> str:
    """sha256 over all that a source's mean and deviation on π_ref's samples depend on."""
    section = experiment.reward
    name, place = source.source, source.source
    if is_trained_here(name):
        place = str(experiment.stage_dir("reward") / part)
    content = content_hash(place, without=("README.md",))  # a card is written when all is measured
    if content is not None:  # wherever it lies
        name = name.rpartition(":")[2] if kind_of(name) == "function" else ""
    made = {
        "source": name,
        "content": content,
        "reads": source.max_length or section.max_length,
        "read as": source.model_dump(
            mode="json", exclude={"source", "weight", "name", "normalize", "max_length"}
        ),
        "reference": content_hash(str(experiment.stage_dir("sft") / "model")),
        "max_new_tokens": experiment.generation.max_new_tokens,
        "samples": section.normalize_samples,
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
