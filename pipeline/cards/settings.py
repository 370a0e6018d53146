"""The config that makes a policy again, as a card shows it: nothing private, nothing default."""

from __future__ import annotations

from collections.abc import Mapping
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


def settings_yaml(config: Mapping[str, Any], stage: Stage) -> str:
    """YAML of what in ``config`` is not at its default and makes ``stage``'s policy.

    Args:
        config: as the stage's record has it: the policy's own settings are in its sections.

    Names of local files lose their folders, and services their addresses.
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
        elif differing := _differing(key, value, default.get(key) or {}):
            kept[key] = differing
    if stage.method:
        kept["policies"] = {stage.name: stage.method}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100).strip()


def _differing(section: str, own: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    made = {}
    for key, value in own.items():
        if value != default.get(key) and not key.startswith(_HUB):
            made[key] = _public(value) if key in _NAMES.get(section, ()) else value
    return made


def _public(value: Any) -> Any:
    """A name, or the names in a list of parts, as they may be published."""
    if isinstance(value, list):
        return [
            {**part, "source": _public(part["source"])}
            | ({"arguments": "…"} if part.get("arguments") else {})
            for part in value
        ]
    return without_place(value) if isinstance(value, str) else value
