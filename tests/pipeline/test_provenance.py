"""What a finished stage was made from, held against what it would be made from now."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_experiment
from pipeline.provenance import differences, stage_inputs


def test_embedded_texts_that_were_divided_otherwise_make_another_run(tiny: Path) -> None:
    """Today's held-out texts may be among those that an earlier release trained on."""
    experiment = load_experiment(tiny, ["data.dataset_name=embedded:tweets"])
    now = stage_inputs(experiment)["sft"]
    before = {"inputs": {key: value for key, value in now.items() if key != "division"}}
    assert differences(experiment, "sft", {"inputs": now}, now) == []
    (found,) = differences(experiment, "sft", before, now)
    assert "an earlier release divided otherwise" in str(found)
    assert "division" not in stage_inputs(load_experiment(tiny))["sft"]


def test_another_function_of_the_same_file_is_another_reward(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_rewards.py").write_text("f = g = len")
    monkeypatch.chdir(tmp_path)
    for form in ("two_rewards.py", "two_rewards"):
        first, second = (load_experiment(tiny, [f"reward.source={form}:{name}"]) for name in "fg")
        made = {"inputs": stage_inputs(first)["reward"]}
        assert differences(first, "reward", made, stage_inputs(first)["reward"]) == []
        assert differences(second, "reward", made, stage_inputs(second)["reward"])
