"""The names that docs/coming-from.md gives for ours are settings and metrics that are there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from trl import DPOConfig

from classic_rl.a2c import A2CConfig
from classic_rl.dqn import DQNConfig
from classic_rl.ppo import PPOConfig as ClassicPPO
from pipeline.config import Experiment
from pipeline.ppo import PPOConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"
METRICS = Path(__file__).resolve().parents[2] / "docs" / "ppo-metrics.md"
QUOTED = re.compile(r"`([^`]+)`")


def rows(heading: str) -> list[list[str]]:
    """The cells of every table below a heading."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def ours(heading: str) -> list[str]:
    """The names in the columns that are called *here*, and those of ours in what differs."""
    names: list[str] = []
    columns: list[int] = []
    for cells in rows(heading):
        if "here" in cells:
            columns = [i for i, cell in enumerate(cells) if cell == "here"]
            continue
        for i, cell in enumerate(cells):
            found = QUOTED.findall(cell)
            names += found if i in columns else [x for x in found if re.match(r"\w+\.\w+$", x)]
    return [name for name in names if not name.endswith(".py")]


def is_setting(name: str) -> bool:
    section, _, key = name.partition(".")
    sections = Experiment.model_fields
    if not key:
        return section in sections
    trainer = {"ppo": PPOConfig, "dpo": DPOConfig}.get(section)
    if trainer is not None and key in {item.name for item in fields(trainer)}:
        return True
    annotation = sections[section].annotation
    return key in getattr(annotation, "model_fields", {})


def test_settings_of_language_models_are_there() -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", METRICS.read_text(encoding="utf-8"), re.M)
    names = [name for name in ours("Language models") if " " not in name and "(" not in name]
    assert len(names) > 50
    unknown = [n for n in names if not (n in documented if "/" in n else is_setting(n))]
    assert unknown == []


def test_settings_of_environments_are_there() -> None:
    known = {item.name for config in (ClassicPPO, A2CConfig, DQNConfig) for item in fields(config)}
    names = ours("Environments")
    assert len(names) > 40
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize("name", ["ppo.no_such_key", "nothing", "reward.sauce"])
def test_a_name_that_is_not_there_is_found_out(name: str) -> None:
    assert not is_setting(name)
