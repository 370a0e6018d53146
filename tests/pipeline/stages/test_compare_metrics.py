"""What the files of a comparison hold of each policy, from answers made up."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.files import read_json
from pipeline.compare import columns, training
from pipeline.compare.evaluate import Evaluation
from pipeline.stages import compare
from tests.pipeline.stages.compared import PROMPTS, Models, checkpoints, experiment, read


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    return Models(monkeypatch)


def test_a_policy_without_kl_is_measured_in_all_else(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with another tokenizer than π_ref's has none."""

    def measured(policy: str, *args: Any, **kwargs: Any) -> Evaluation:
        found = models.evaluate(policy, *args, **kwargs)
        return found if Path(policy).parent.name == "sft" else replace(found, kl=[])

    monkeypatch.setattr(compare, "evaluate_policy", measured)
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    compare.run(exp)
    results, details, rows = read(exp)
    ppo = results["methods"]["ppo"]
    none = ("kl", "objective", "objective_gain", "optimality", "kl_efficiency", "reverse_kl")
    assert all(ppo[name] is None for name in none)
    for name in ("reward_gain", "gold_gain", "win_rate_gold", "length_controlled_reward"):
        assert ppo[f"{name}_ci"][0] < ppo[name] < ppo[f"{name}_ci"][1]
    assert details["differences"] == []
    assert rows[0]["kl"] == {"sft": 0.0, "ppo": None, "dpo": None, "best_of_n": None}


def test_every_metric_is_documented_and_no_other(tmp_path: Path, models: Models) -> None:
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    compare.run(exp)
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    tables = page[page.index("## Quality") : page.index("## Examples")]
    rows = [line for line in tables.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    intervals = {name for row in rows for name in re.findall(r"`(\w+_(?:se|ci))`", row)}
    results, details, _ = read(exp)
    assert not {"train_seconds", "train_memory_gib"} & results["methods"]["ppo"].keys()
    for row in training.together(results, details)["methods"].values():
        assert set(row) - intervals == told
        assert {name for name in row if name.endswith(("_se", "_ci"))} <= intervals
    shown = {column.key for column in columns.COLUMNS}
    assert shown <= told


def test_training_records_are_columns(tmp_path: Path, models: Models) -> None:
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    cost = {"reward_queries": 7, "completions": 8, "tokens": 9}
    (exp.stage_dir("dpo") / "cost.json").write_text(json.dumps(cost))
    compare.run(exp)
    methods = read(exp)[0]["methods"]
    assert methods["dpo"]["train_reward_queries"] == 7
    assert methods["ppo"]["train_reward_queries"] is None
    assert methods["best_of_n"]["answer_reward_queries"] == exp.compare.best_of_n
    assert methods["ppo"]["answer_reward_queries"] == 0


def test_examples_and_all_answers(tmp_path: Path, models: Models) -> None:
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    compare.run(exp)
    folder = exp.stage_dir("compare")
    lines = (folder / "samples_all.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert (
        len(rows) == PROMPTS * 4 * 4
    )  # as many of SFT, though it has 16; four blocks of best-of-4
    assert {row["policy"] for row in rows} == {"sft", "ppo", "dpo", "best_of_n"}
    by_place = {(r["prompt"], r["policy"], r["sample"]): r for r in rows}
    examples = read_json(folder / "examples.json")
    assert {e["kind"] for e in examples} == {
        "improved", "degraded", "suspected_hacking", "disagreement",
    }  # fmt: skip
    for example in examples:
        for name, gold in example["gold"].items():
            assert by_place[example["prompt"], name, example["sample"]]["gold"] == gold
        kind, name = example["kind"], example["policy"]
        if kind == "disagreement":
            assert name is None
            continue
        reward, gold = (example[by][name] - example[by]["sft"] for by in ("rewards", "gold"))
        assert (gold > 0) == (kind == "improved")
        assert kind != "suspected_hacking" or reward > 0
    best = max(
        by_place[p, "ppo", s]["gold"] - by_place[p, "sft", s]["gold"]
        for p, policy, s in by_place
        if policy == "ppo"
    )
    first = next(e for e in examples if (e["kind"], e["policy"]) == ("improved", "ppo"))
    assert first["gold"]["ppo"] - first["gold"]["sft"] == best
