"""The keys of a trainer's section that say whether and where its finished model is pushed.

They are TrainingArguments' own. The Trainer does not get them: it would push checkpoints from its
output folder, under that folder's name, while what is finished lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

PUSH = "push_to_hub"
HUB_KEYS = (PUSH, "hub_model_id", "hub_private_repo", "hub_revision")
"""They decide nothing of what a stage makes."""
NOT_HERE = dict.fromkeys(
    ("hub_strategy", "hub_always_push"),
    "push_to_hub: the finished model is pushed, and no checkpoint",
)
"""Keys about pushing while training, and what there is instead."""


def without_hub(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A trainer's arguments without those about the hub."""
    return {key: value for key, value in arguments.items() if key not in HUB_KEYS}


def pushes(experiment: Experiment) -> list[str]:
    """The stages whose output the config asks to push, `report` last."""
    asked = [
        stage.name
        for stage in experiment.stages()
        if stage.arguments and experiment.of(stage.name).trainer_args(stage.section).get(PUSH)
    ]
    return asked + (["report"] if experiment.report.push_to_hub else [])
