"""Memory of all stages of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.config import Experiment
from pipeline.plan.devices import Machine
from pipeline.plan.lengths import Lengths, read_lengths
from pipeline.plan.memory import Need, need_of
from pipeline.plan.setting import Setting
from pipeline.plan.sizes import read_config


def settings_of(
    experiment: Experiment,
    machine: Machine,
    config: Any,
    lengths: Lengths,
    stages: Sequence[str] | None = None,
    split: bool = False,
) -> Iterator[tuple[str, Setting]]:
    """Every stage that runs, by name, with what its plan is made from."""
    response = experiment.generation.max_new_tokens
    for stage in experiment.stages():
        if stages is None or stage.name in stages:
            view = experiment.of(stage.name)
            own = replace(lengths, response=response)
            yield stage.name, Setting(view, stage.section, config, machine, own, split)


def needs_of(
    experiment: Experiment,
    machine: Machine,
    stages: Sequence[str] | None = None,
    split: bool = False,
    most: float | None = None,
) -> list[Need]:
    """What every stage needs on each process, all stages by default.

    Args:
        most: bytes of files above which the data are not read for their lengths.

    Raises:
        UserError: the model's configuration cannot be read.
    """
    config = read_config(experiment.model)
    lengths, _ = read_lengths(experiment, most)
    made = settings_of(experiment, machine, config, lengths, stages, split)
    return [need_of(name, setting) for name, setting in made]
