"""The model cards of the rewards that were trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.words import flatten
from pipeline.cards.known import ON_THE_HUB, RATINGS, on_hub
from pipeline.cards.settings import public
from pipeline.config import OVER_SFT, PAIRWISE, Experiment, is_trained_here
from pipeline.stages.reward_scale import Part
from pipeline.stages.reward_sources import PARTS, folders_of, trained_source
from reward_models.card import Facts, write_card

_HALVES = {
    "proxy": "It is the proxy: the reward that a policy is optimised against.",
    "gold": "It is the gold judge, trained on the other half of the texts: nothing is optimised "
    "against it, so that it tells progress from exploitation.",
}


def write_cards(experiment: Experiment, metrics: dict[str, Any]) -> None:
    """A README.md in the folder of each model trained here.

    Args:
        metrics: As `measure_rewards` gives them.
    """
    for part in PARTS:
        if trained_source(experiment, part) is None:
            continue
        for index, folder in enumerate(folders_of(experiment, part)):
            write_card(folder, _facts(experiment, part, folder, index, metrics))


def _measured(of_part: dict[str, Any], index: int) -> dict[str, Any]:
    """The numbers of a model itself, where the part is made of several."""
    own = [part for part in of_part.get("parts", {}).values() if is_trained_here(part["source"])]
    return own[index] if index < len(own) else of_part


def _facts(
    experiment: Experiment, part: Part, folder: Path, index: int, metrics: dict[str, Any]
) -> Facts:
    section, data = experiment.reward, experiment.data
    over_sft = section.encoder == OVER_SFT
    base = experiment.model.model_name_or_path if over_sft else section.encoder
    texts = _own(data.dataset_name, "data")
    ratings = data.dataset_name.removeprefix("embedded:")
    embedded = ratings != data.dataset_name
    described = f"Half of the rated texts of {texts}. {_HALVES[part]}"
    if trained_source(experiment, part) == PAIRWISE:
        own = data.preferences_name
        of = _own(own, "data") if own else f"the raters of {texts}"
        described = f"Half of the comparisons of {of}. {_HALVES[part]}"
    if over_sft:
        described += " It is adapters over the experiment's own SFT model, not over its base."
    settings = flatten(section.model_dump(mode="json", exclude={"source", "gold"}))
    return Facts(
        name=f"{experiment.name} reward {folder.name}",
        trained_on=described,
        base_model=ON_THE_HUB.get(base, _own(base, "model")),
        dataset=f"{RATINGS.format(kind=ratings)}, MIT licence" if embedded else texts,
        license="apache-2.0" if embedded and base in ON_THE_HUB else None,
        measured=_measured(metrics[part], index),
        ceiling=(metrics.get("one_rater") or {}).get("accuracy"),
        texts=metrics["texts"],
        settings={"seed": experiment.seed} | public(settings),
    )


def _own(name: str, what: str) -> str:
    """A model's or a data set's name, of a local one without where it lies."""
    if name == "toy":
        return "random weights, for tests" if what == "model" else name
    is_public = name.startswith("embedded:") or on_hub(name)
    return name if is_public else f"own {what} ({Path(name).name})"
