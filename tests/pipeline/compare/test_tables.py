"""Columns that people see, results.csv, and what training left beside a policy."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.columns import COLUMNS, GROUPS, shown
from pipeline.compare.spreadsheet import csv_text, flat
from pipeline.compare.training import per_answer, records

PART = {"mean": 1.5, "mean_se": 0.1, "win_rate": 0.75, "win_rate_ci": [0.7, 0.8], "share": 1.0}


def cell(key: str, row: dict[str, Any]) -> tuple[str, str]:
    column = next(column for column in COLUMNS if column.key == key)
    return column.value(row), column.range(row)


def test_cells() -> None:
    row = {
        "win_rate_gold": 0.756, "win_rate_gold_ci": (0.7, 0.8), "gold_gain": 1.25,
        "gold_gain_ci": [-0.5, 3.0], "train_reward_queries": 12345, "fluency": 41.26,
        "reward_gain": 2.0,
        "reward_gain_ci": [2.0, 2.0], "kl": None,
    }  # fmt: skip
    assert cell("win_rate_gold", row) == ("76\u00a0%", "[70 to 80\u00a0%]")
    assert cell("gold_gain", row) == ("+1.25", "[−0.50 to +3.00]")
    assert cell("train_reward_queries", row) == ("12\u202f345", "")
    assert cell("fluency", row) == ("41.3", "")
    assert cell("reward_gain", row) == ("+2.00", "")  # a point is no interval
    assert cell("kl", row) == ("–", "")
    assert cell("train_seconds", row) == ("–", "")


@pytest.mark.parametrize(
    "bound, sign", [("at most", "≤\u00a0"), ("at least", "≥\u00a0"), (None, "")]
)
def test_a_bound_is_told_as_one(bound: str | None, sign: str) -> None:
    row = {"optimality": 0.5, "optimality_bound": bound}
    assert cell("optimality", row) == (f"{sign}50\u00a0%", "")


def test_columns_with_no_number_are_not_shown() -> None:
    rows = [{"kl": None, "reward": 1.0, "gold_gain": 2.0}, {"kl": 0.5, "train_seconds": 3.0}]
    assert [c.key for c in shown(rows)] == ["reward", "kl", "train_seconds"]
    whole = [c.key for c in shown(rows, main=False)]
    assert whole == ["gold_gain", "reward", "kl", "train_seconds"]


def test_the_parts_of_a_reward_are_columns_of_the_whole_table() -> None:
    rows = [{"reward": 1.0, "parts": {}}, {"reward": 2.0, "parts": {"length": PART}}]
    assert [c.heading for c in shown(rows)] == ["reward"]
    _, mean, wins = shown(rows, main=False)
    assert (mean.heading, wins.heading) == ("length", "wins by length")
    assert (mean.value(rows[1]), mean.value(rows[0])) == ("1.50", "–")
    assert (wins.value(rows[1]), wins.range(rows[1])) == ("75\u00a0%", "[70 to 80\u00a0%]")


def test_groups_stay_together() -> None:
    groups = [column.group for column in COLUMNS]
    assert list(dict.fromkeys(groups)) == list(GROUPS)
    assert groups == sorted(groups, key=GROUPS.index)
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)


def test_flat_names() -> None:
    metrics = {"kl": 1.0, "gain_ci": [0.0, 2.0], "none_ci": None, "parts": {"a": PART}, "empty": {}}
    assert flat(metrics) == {
        "kl": 1.0, "gain_ci_low": 0.0, "gain_ci_high": 2.0, "none_ci_low": None,
        "none_ci_high": None, "parts/a/mean": 1.5, "parts/a/mean_se": 0.1,
        "parts/a/win_rate": 0.75, "parts/a/win_rate_ci_low": 0.7, "parts/a/win_rate_ci_high": 0.8,
        "parts/a/share": 1.0,
    }  # fmt: skip


def test_the_csv_reads_back() -> None:
    results = {
        "policies": [
            {"name": "sft", "title": "SFT", "kind": "reference", "method": "", "beta": None},
            {"name": "a,b", "title": 'a "b"\nc', "kind": "trained", "method": "dpo", "beta": 0.5},
        ],
        "methods": {"sft": {"kl": 0.0}, "a,b": {"kl": None, "self_bleu": 0.1, "kl_ci": [1, 2]}},
    }
    text = csv_text(results)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == ["sft", "a,b"]
    assert rows[1]["title"] == 'a "b"\nc' and rows[1]["beta"] == "0.5"
    assert (rows[0]["kl"], rows[1]["kl"], rows[0]["self_bleu"]) == ("0.0", "", "")
    assert (rows[1]["kl_ci_low"], rows[1]["kl_ci_high"]) == ("1", "2")
    assert csv_text({"methods": {"sft": {"kl": 0.0}}}).startswith("name,title,")  # an older run


def test_what_training_left(tmp_path: Path) -> None:
    files = {
        "stage.json": {"seconds": 12.5, "peak_memory_gib": 2.0},
        "cost.json": {"reward_queries": 100, "completions": 100, "tokens": 1500},
        "preference.json": {
            "accuracy": 0.7, "margin": 0.2, "chosen_logp_start": -20.0, "chosen_logp_end": -25.0,
            "rejected_logp_start": -21.0, "rejected_logp_end": -30.0, "pairs": 64,
            "held_out": True,
        },
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    row = records(tmp_path)
    assert (row["train_seconds"], row["train_memory_gib"]) == (12.5, 2.0)
    assert (row["train_reward_queries"], row["train_completions"]) == (100, 100)
    assert (row["train_tokens"], row["implicit_accuracy"], row["implicit_margin"]) == (
        1500,
        0.7,
        0.2,
    )
    assert (row["preference_pairs"], row["preference_held_out"]) == (64, True)
    assert (row["chosen_logp_change"], row["rejected_logp_change"]) == pytest.approx((-5.0, -9.0))


@pytest.mark.parametrize("there", [True, False])
def test_nothing_left_is_none(tmp_path: Path, there: bool) -> None:
    row = records(tmp_path if there else None)
    assert row and set(row.values()) == {None}
    assert {column.key for column in COLUMNS if column.group == "preferences"} <= set(row)


def test_what_an_answer_costs() -> None:
    assert per_answer(8) == {"answer_completions": 8, "answer_reward_queries": 8}
    assert per_answer(1) == {"answer_completions": 1, "answer_reward_queries": 0}
