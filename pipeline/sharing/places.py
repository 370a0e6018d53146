"""What of an experiment goes where on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import OVER_SFT, Experiment
from pipeline.config.policies import own_key
from pipeline.errors import UserError
from pipeline.output.hub import Repo
from pipeline.output.policies import ADAPTER, MODEL
from pipeline.stages.reward_sources import PARTS, folders_of, trained_source


@dataclass(frozen=True)
class Place:
    """A folder and where it goes.

    Attributes:
        stage: whose output it is. folder: what is pushed, finished or not yet.
        over_sft: whether it is adapters over the SFT model, which must be on the hub with it.
    """

    stage: str
    folder: Path
    repo: Repo
    over_sft: bool = False


def places(experiment: Experiment, stages: Sequence[str]) -> list[Place]:
    """Where the output of ``stages`` goes, SFT's first; adapters bring SFT's own place with them.

    Raises:
        UserError: nothing is there to be pushed, two would go to one place, or adapters would be
            pushed without what they belong to.
    """
    names = [*(s.name for s in experiment.stages()), "report"]
    made = [place for name in names if name in stages for place in _of(experiment, name)]
    for place in made:
        if place.over_sft and not any(other.stage == "sft" for other in made):
            raise UserError(
                f"{place.repo.key}: {place.repo.id} would be adapters over the SFT model, and that"
                " is not pushed: push sft too (sft.push_to_hub=true)"
            )
    taken: dict[str, Place] = {}
    for place in made:
        other = taken.setdefault(f"{place.repo.kind} {place.repo.id}", place)
        if other is not place:
            key = place.repo.key.rpartition(".")[0] + ".hub_model_id"
            raise UserError(f"{key}: {place.repo.id} is that of {other.stage} too; set another")
    return made


def _of(experiment: Experiment, name: str) -> Iterator[Place]:
    if name == "report":
        section = experiment.report
        repo = Repo(
            "report.push_to_hub",
            section.hub_space_id or _plain(f"{experiment.name}-report"),
            "space",
            section.hub_private_repo,
        )
        yield Place(name, experiment.stage_dir(name), repo)
        return
    stage, view = experiment.stage(name), experiment.of(name)
    if stage.arguments is None:
        raise UserError(f"{name}: makes nothing that could be pushed; the report shows it: report")
    given = view.trainer_args(stage.section)
    key = f"{stage.section}.push_to_hub"
    if name in experiment.policies:
        key = own_key(name, experiment.policies[name], key)
    stem = given.get("hub_model_id") or _plain(f"{experiment.name}-{name}")
    settings = given.get("hub_private_repo"), given.get("hub_revision")
    if name == "reward":
        yield from _rewards(experiment, key, stem, settings)
        return
    folder = experiment.stage_dir(name)
    form = experiment.model.save if stage.method else "merged"
    if form != ADAPTER:
        yield Place(name, folder / MODEL, Repo(key, stem, "model", *settings))
    if form != "merged":
        own = stem if form == ADAPTER else f"{stem}-{ADAPTER}"
        yield Place(name, folder / ADAPTER, Repo(key, own, "model", *settings), over_sft=True)


def _rewards(
    experiment: Experiment, key: str, stem: str, settings: tuple[bool | None, str | None]
) -> Iterator[Place]:
    """A place for each model that the reward stage trains: ``<stem>-proxy``, ``<stem>-gold``, …"""
    folders = [
        folder
        for part in PARTS
        if trained_source(experiment, part) is not None
        for folder in folders_of(experiment, part)
    ]
    if not folders:
        raise UserError(f"{key}: no reward is trained here, so there is none to push; remove it")
    over_sft = experiment.reward.encoder == OVER_SFT
    for folder in folders:
        repo = Repo(key, f"{stem}-{folder.name}", "model", *settings)
        yield Place("reward", folder, repo, over_sft)


def _plain(name: str) -> str:
    """A name with characters that the hub takes."""
    return re.sub(r"-{2,}|\.{2,}", "-", re.sub(r"[^A-Za-z0-9_.-]+", "-", name)).strip("-.")
