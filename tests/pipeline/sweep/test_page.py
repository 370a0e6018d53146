"""The sweep's page, of numbers that nobody had to train for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.sweep import page, results
from pipeline.sweep.pooling import Pooling
from tests.pipeline.sweep.made import RECORDS, measured, trial

GAINS = {"ppo": (1.4, 1.3, 1.5), "dpo": (0.9, 0.8, 1.0)}


def sweep(failed: str | None = None, **over: Any) -> dict[str, Any]:
    """The content of sweep.json: two policies, three β, three seeds."""
    found = {}
    for policy, gains in GAINS.items():
        for beta in (0.5, 1.0, 2.0):
            for seed, gain in enumerate(gains):
                one = trial(policy, seed, beta, **over)
                found[one] = measured(one, gain)
    rows = [{"trial": t.name, "over": t.over, "state": "done", "error": None} for t in found]
    if failed is not None:
        rows.append({"trial": "x-b1-s0", "over": {}, "state": "failed", "error": failed})
    return {
        "name": "n",
        "betas": [0.5, 1.0, 2.0],
        "seeds": [0, 1, 2],
        "over": {},
        "done": len(found),
        "trials": rows,
        "rows": results.rows(found),
        "comparisons": Pooling(50, 0, [1.0, 8.0], True, RECORDS).comparisons(found),
    }


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return sweep(failed="<script>alert(1)</script>")


def test_the_verdict_at_each_beta_says_who_wins_and_that_the_seeds_agree(
    content: dict[str, Any],
) -> None:
    verdicts = [page.verdict(found) for found in content["comparisons"]]
    for verdict in verdicts:
        assert verdict.order[0] == "ppo" and "PPO" in verdict.headline, verdict
    assert any("in all 3 seeds" in reason for reason in verdicts[0].reasons), verdicts[0]


def test_seeds_that_disagree_are_told() -> None:
    found = {}
    for policy, gains in {"ppo": (0.9, 0.1, 0.9), "dpo": (0.4, 0.8, 0.4)}.items():
        for seed, gain in enumerate(gains):
            one = trial(policy, seed, 1.0)
            found[one] = measured(one, gain)
    (comparison,) = Pooling(50, 0, [1.0], True, RECORDS).comparisons(found)
    by_seed = comparison["optimality_by_seed"]
    assert by_seed["ppo"]["1"] < by_seed["dpo"]["1"] and by_seed["ppo"]["0"] > by_seed["dpo"]["0"]
    (pair,) = comparison["differences"]
    assert (pair["agree"], pair["seeds"]) == (2, 3)


def test_the_page_is_one_file_and_quotes_what_it_is_given(
    content: dict[str, Any], tmp_path: Path
) -> None:
    path = page.write(tmp_path, content)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "src=" not in text and text.count("<svg") == 2
    for words in ("β = 0.5", "β = 1", "β = 2", "PPO", "DPO", "Best-of-N", "18 of 19 trials"):
        assert words in text, words
    assert text.count("<table>") == 3 and 'name="viewport"' in text
    for name in ("reward_kl", "optimality"):
        assert (path.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_a_policy() -> None:
    content = sweep()
    titles = [row[0] for row in page.table(content["comparisons"][0])]
    assert titles == ["SFT", "PPO", "DPO", "Best-of-N"]
    ppo = list(page.table(content["comparisons"][0]))[1]
    assert ppo[1] == "3" and "%" in ppo[4] and ppo[-1] == "101"
    best = list(page.table(content["comparisons"][0]))[3]
    assert best[3].startswith("≤ ")
    assert best[4].startswith("?\u00a0")  # 12 prompts are too few to trust an optimum
    assert ppo[4].startswith("≤\u00a0")
    content["comparisons"][0]["methods"]["ppo"]["optimality_bound"] = None
    assert not list(page.table(content["comparisons"][0]))[1][4].startswith("≤")


def test_further_axes_have_a_picture_by_queries() -> None:
    made = sweep(over={"ppo.total_episodes": 64})
    names = [picture.name for picture in page.pictures(made)]
    assert names == ["reward_kl", "optimality"]  # all ask for the same number: nothing to draw
    for c in made["comparisons"]:
        for number, row in enumerate(c["methods"].values()):
            row["train_reward_queries"] = 100 * (number + 1)
    assert "queries" in [picture.name for picture in page.pictures(made)]


def test_references_of_two_kinds_are_two_pictures() -> None:
    made = sweep()
    made["comparisons"][-1]["pool"] = ["shared", "generation.max_new_tokens=8"]
    names = [picture.name for picture in page.pictures(made)]
    assert names[:2] == ["reward_kl", "reward_kl_2"]
    assert page.title(made, made["comparisons"][-1]) == "β = 2, generation.max_new_tokens=8"


def test_nothing_finished_is_a_page_too(tmp_path: Path) -> None:
    empty = {"trials": [], "rows": [], "comparisons": [], "done": 0, "name": "n"}
    path = page.write(tmp_path, {**empty, "betas": [1], "seeds": [0], "over": {}})
    assert "No trial is finished" in path.read_text(encoding="utf-8")
