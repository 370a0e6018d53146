"""Checking the rights of a config's pushes before any work, and pushing what is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.files import read_json
from pipeline.config import Experiment
from pipeline.config.hub import pushes
from pipeline.errors import UserError
from pipeline.output import hub
from pipeline.output.console import say
from pipeline.output.policies import ADAPTER_CONFIG
from pipeline.planning import read_record
from pipeline.sharing.places import Place, places

_SPACE = """---
title: {title}
sdk: static
app_file: index.html
pinned: false
---

{title}: the report of an RLHF experiment. `index.html` is the page, `report.md` its text,
`results.json` and `results.csv` its numbers.
"""


def check(experiment: Experiment, stages: Sequence[str]) -> list[Place]:
    """The places of ``stages``' output, each of which can be pushed to; see `hub.check_rights`."""
    found = places(experiment, stages)
    repos = hub.check_rights([place.repo for place in found])
    return [replace(place, repo=repo) for place, repo in zip(found, repos, strict=True)]


def check_command(experiment: Experiment, command: str, stages: Sequence[str]) -> list[Place]:
    """`check` what the config asks to push of the output of a command.

    Args:
        stages: those that it is about. A comparison completes the cards of all that are finished.
    """
    there = {*stages, *(["report"] if command in ("run", "report") else [])}
    if "compare" in there:
        records = {stage.name: read_record(experiment, stage.name) for stage in experiment.stages()}
        there |= {name for name, r in records.items() if r and r["status"] == "finished"}
    asked = [name for name in pushes(experiment) if name in there]
    return check(experiment, asked) if asked else []


def push(
    experiment: Experiment, checked: Sequence[Place], stages: Sequence[str] | None = None
) -> list[str]:
    """Push what is finished of ``checked``, as it is now.

    Args:
        stages: those alone, and what cannot be pushed of them is told; None is all.

    Returns:
        what could not be pushed, a line each; the rest is there.
    """
    chosen = [p for p in checked if stages is None or p.stage in stages]
    if any(place.over_sft for place in chosen):  # their base first, where it is not there yet
        chosen = [p for p in checked if p in chosen or p.stage == "sft"]
    failed: list[str] = []
    base = next((place.repo for place in checked if place.stage == "sft"), None)
    for place in chosen:
        if not place.folder.is_dir():
            continue
        try:
            if place.over_sft and any(line.startswith("sft: ") for line in failed):
                raise UserError(f"{place.repo.id}: not pushed, as it is over the SFT model")
            instead = _instead(experiment, place, base)
            message = f"{experiment.name}: {place.stage}"
            new = hub.push(place.repo, place.folder, instead, message)
        except UserError as error:
            failed.append(f"{place.stage}: {error}")
            if stages is not None:
                say(f"warning: {failed[-1]}; tried again at the end")
            continue
        if new or stages is None:
            what = "pushed to" if new else "nothing is new for"
            say(f"{place.stage}: {what} {hub.address(place.repo)}")
    return failed


def told(failed: Sequence[str]) -> UserError:
    """The error that ends a command whose work is done and of which something is not pushed."""
    return UserError(
        f"{'; '.join(failed)}. All of it is finished and kept: `rlhf push` with this config sends"
        " what is missing"
    )


def _instead(experiment: Experiment, place: Place, base: hub.Repo | None) -> Mapping[str, bytes]:
    """Contents that on the hub are others than on this machine.

    Adapters name the commit of the SFT model that they were trained over: another is another base.

    Args:
        base: where the SFT model is, pushed before.
    """
    if place.stage == "report":
        title = f"{experiment.name}: report"
        return {"README.md": _SPACE.format(title=json.dumps(title)).encode()}
    if not place.over_sft or base is None:
        return {}
    config = read_json(place.folder / ADAPTER_CONFIG)
    config |= {"base_model_name_or_path": base.id, "revision": hub.head(base)}
    made = {ADAPTER_CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    card = place.folder / "README.md"
    return made | ({"README.md": _with_base(card, base.id)} if card.is_file() else {})


def _with_base(card: Path, base: str) -> bytes:
    """An adapter's card that names its base on the hub."""
    from huggingface_hub import ModelCard

    read = ModelCard.load(card)
    read.data["base_model"] = base
    read.data["base_model_relation"] = "adapter"
    return str(read).encode()
