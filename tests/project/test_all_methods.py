"""configs/methods.yaml: every method as a policy of one experiment, and gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from common.files import read_json, write_json
from pipeline.config.stages import METHODS
from pipeline.output.metrics_file import read_metrics
from tests.checkout import ROOT
from tests.project.whole import run

CONFIG = ROOT / "configs" / "methods.yaml"
ON_PAIRS = ("dpo", "ipo", "rebel", "kto", "orpo", "cpo", "simpo")


@pytest.mark.slow
@pytest.mark.long
def test_all_methods_are_trained_compared_and_gone_on_with(tmp_path: Path) -> None:
    policies = list(yaml.safe_load(CONFIG.read_text())["policies"])
    assert set(policies) >= {method.name for method in METHODS}
    said = run(CONFIG.name, tmp_path)
    for name in policies:
        folder = tmp_path / name
        assert read_json(folder / "stage.json")["status"] == "finished"
        assert (folder / "model" / "model.safetensors").is_file()
        assert len(read_metrics(folder / "metrics.jsonl")) > 2
        assert read_json(folder / "cost.json")["reward_queries"] > 0
        assert (folder / "preference.json").is_file() == (name in ON_PAIRS)
    first, *others = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in ON_PAIRS)
    assert all(pairs == first for pairs in others)
    assert said.count("made from the same") == len(ON_PAIRS)  # and reweighted rejection's
    costs = [read_json(tmp_path / name / "cost.json") for name in ON_PAIRS]
    assert all(cost == costs[0] for cost in costs)
    measured = read_json(tmp_path / "compare" / "results.json")["methods"]
    assert set(policies) <= measured.keys()
    # Two of them lose their end, one its middle too: they go on, the others are not made again.
    before = {
        name: (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in policies
    }
    for name in ("rloo", "kto"):
        record = read_json(tmp_path / name / "stage.json")
        write_json(tmp_path / name / "stage.json", record | {"status": "started"})
        shutil.rmtree(tmp_path / name / "model")
    last = max(
        (tmp_path / "rloo" / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:])
    )
    shutil.rmtree(last)
    again = run(CONFIG.name, tmp_path)
    lines = [line.rpartition(": ") for line in again.splitlines()]
    assert {name for name, _, done in lines if done == "resuming"} == {"rloo", "kto"}
    assert {name for name, _, done in lines if done == "starting"} <= {"compare"}
    for name, weights in before.items():
        assert (tmp_path / name / "model" / "model.safetensors").read_bytes() == weights, name
