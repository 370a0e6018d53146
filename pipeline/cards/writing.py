"""Writing the cards of an experiment's finished policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.files import read_json, write_text
from pipeline.cards.facts import gather
from pipeline.cards.policy import card
from pipeline.config import Experiment
from pipeline.config.content import is_own_card
from pipeline.config.stages import Stage
from pipeline.output.policies import ADAPTER, MODEL, is_policy

README = "README.md"


def write_cards(experiment: Experiment, names: Sequence[str]) -> None:
    """Write the card of every finished policy, SFT's too, of the stages ``names``.

    After `compare` all of them are written again, with their numbers. A README.md that is not one
    of these cards is somebody's, and left alone.
    """
    for stage in experiment.stages():
        policy = stage.method or stage.name == "sft"
        if not policy or (stage.name not in names and "compare" not in names):
            continue
        folder = experiment.stage_dir(stage.name)
        if experiment.shares(stage.name) is None and _finished(folder):
            _write(experiment, stage, folder)


def _write(experiment: Experiment, stage: Stage, folder: Path) -> None:
    facts = None
    for form in (MODEL, ADAPTER):
        place = folder / form / README
        if not is_policy(folder / form) or (place.is_file() and not is_own_card(place)):
            continue
        facts = facts or gather(experiment, stage)
        text = card(facts, form)
        if not place.is_file() or place.read_text(encoding="utf-8") != text:
            write_text(place, text)


def _finished(folder: Path) -> bool:
    record = folder / "stage.json"
    return record.is_file() and read_json(record).get("status") == "finished"
