"""The config that makes a policy again, as a card shows it: nothing private, nothing default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.cards.known import without_place
from pipeline.config import Experiment
from pipeline.config.stages import Stage

_NAMES = {
    "model": ("model_name_or_path",),
    "data": ("dataset_name", "prompts_name", "preferences_name"),
    "reward": ("source", "gold", "encoder"),
}
_HUB = ("push_to_hub", "hub_")
_PRIVATE = re.compile(r"://|^(?:/|~|\.\.?/|[A-Za-z]:[\\/])")


def settings_yaml(config: Mapping[str, Any], stage: Stage) -> str:
    """YAML of what in ``config`` is not at its default and makes ``stage``'s policy.

    Args:
        config: as the stage's record has it: the policy's own settings are in its sections.

    Names of local files lose their folders, and services their addresses. What makes no other
    policy (where a generation server is) is left out.
    """
    default = Experiment().model_dump(mode="json")
    read = {"name", "model", "data", "generation", "sft", "seed"}
    if stage.method:
        read |= {"beta", "reward", stage.method} | ({"pairs"} if stage.from_pairs else set())
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key not in read:
            continue
        if not isinstance(value, dict):
            if key == "name" or value != default.get(key):
                kept[key] = value
        elif differing := _differing(key, value, default.get(key) or {}, stage):
            kept[key] = differing
    if stage.method:
        kept["policies"] = {stage.name: stage.method}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100).strip()


def _differing(
    section: str, own: Mapping[str, Any], default: Mapping[str, Any], stage: Stage
) -> dict[str, Any]:
    made = {}
    for key, value in own.items():
        nothing = section == stage.section and f"{section}.{key}" in stage.unread
        if value != default.get(key) and not key.startswith(_HUB) and not nothing:
            made[key] = _named(value) if key in _NAMES.get(section, ()) else public(value)
    return made


def public(value: Any) -> Any:
    """A setting without the addresses, and the folders of this machine, that are in it."""
    if isinstance(value, Mapping):
        return {key: public(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    if not isinstance(value, str) or not _PRIVATE.search(value):
        return value
    return "…" if "://" in value else Path(value).name


def _named(value: Any) -> Any:
    """A name, or the names in a list of parts, as they may be published."""
    if isinstance(value, list):
        return [
            {**part, "source": _named(part["source"])}
            | ({"arguments": "…"} if part.get("arguments") else {})
            for part in value
        ]
    return without_place(value) if isinstance(value, str) else value
