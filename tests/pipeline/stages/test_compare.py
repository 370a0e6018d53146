from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import read_json, write_json
from pipeline.compare import best_of_n, columns, frontier
from pipeline.compare.evaluate import Evaluation
from pipeline.config import Experiment, RewardSection
from pipeline.data.toy import toy_language_model, toy_texts, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.models import prepare
from pipeline.report import page
from pipeline.stages import compare
from pipeline.stages.reward_sources import judge_is_proxy
from tests.pipeline.stages.compared import (
    PROMPTS,
    Models,
    checkpoints,
    evaluation,
    experiment,
    read,
)

KEYS = {
    "reward", "gold", "gold_positive", "kl", "objective", "optimality", "optimality_ci",
    "perplexity", "distinct_2", "length", "ended",
}  # fmt: skip


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    return Models(monkeypatch)


def test_the_files_of_a_comparison(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    compare.run(exp)
    results, details, rows = read(exp)
    assert (results["beta"], results["prompts"], results["samples_per_prompt"]) == (1.0, PROMPTS, 4)
    assert list(results["methods"]) == ["sft", "ppo", "dpo", "best_of_n"]
    assert all(set(row) >= KEYS for row in results["methods"].values())
    betas = [point["beta"] for point in results["frontier"]]
    assert betas == sorted({*exp.compare.frontier_betas, 1.0})
    assert set(results["frontier"][0]) >= {"beta", "reward", "kl", "ess", "trusted"}

    sft, ppo, best = (results["methods"][name] for name in ("sft", "ppo", "best_of_n"))
    assert (sft["optimality"], sft["optimality_ci"], sft["kl"]) == (0.0, [0.0, 0.0], 0.0)
    assert sft["kl_efficiency"] is None and best["perplexity"] is None
    assert sft["samples"] == PROMPTS * 16 and ppo["samples"] == PROMPTS * 4
    assert sft["perplexity"] == pytest.approx(math.exp(2.0))

    assert [row["n"] for row in details["optimum"]] == [8, 16]
    assert details["j_star"] == pytest.approx(details["optimum"][-1]["j_star"])
    assert details["objective_ref"] == pytest.approx(sft["objective"])
    assert details["kl_cap"] == pytest.approx(math.log(16))
    assert details["judge_is_proxy"] is True
    assert details["best_of_n"] == 4 and "upper bound" in details["best_of_n_kl"]
    low, high = details["j_star_ci"]
    assert low < details["j_star"] < high

    room = details["j_star"] - details["objective_ref"]
    for row in results["methods"].values():
        assert row["objective"] == pytest.approx(row["reward"] - row["kl"])
        expected = (row["objective"] - details["objective_ref"]) / room
        assert row["optimality"] == pytest.approx(expected)
        assert row["optimality_ci"][0] <= row["optimality"] <= row["optimality_ci"][1]
    (difference,) = details["differences"]
    assert (difference["first"], difference["second"]) == ("ppo", "dpo")
    for key in ("optimality", "objective"):
        assert difference[key] == pytest.approx(ppo[key] - results["methods"]["dpo"][key])
        low, high = difference[f"{key}_ci"]
        assert low < difference[key] < high

    out = capsys.readouterr().out.splitlines()
    *lines, summary = [re.split(r" {2,}", line.strip()) for line in out]
    assert lines[0] == ["SFT", "PPO", "DPO", "Best-of-N"]
    told = columns.shown(results["methods"].values())
    assert [line[0] for line in lines[1:]] == [column.heading for column in told]
    for line, column in zip(lines[1:], told, strict=True):
        assert line[2] == f"{column.value(ppo)} {column.range(ppo)}".strip()
    assert re.fullmatch(
        r"β = 1: the objective is \S+ for SFT and \S+ at best; optimality PPO − DPO: [+−]\d+ points"
        r" \[[+−]?\d+ to [+−]?\d+\]; Best-of-N with N = 4",
        summary[0],
    )
    assert "\x1b" not in "".join(out)
    assert len(rows) == PROMPTS


def test_samples_are_the_first_and_not_the_best(tmp_path: Path, models: Models) -> None:
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    compare.run(exp)
    _, _, rows = read(exp)
    sft = Evaluation(**read_json(exp.stage_dir("compare") / "measured" / "sft.json"))
    for i, row in enumerate(rows):
        assert row["prompt"] == f"prompt {i}"
        assert row["completions"]["sft"].startswith(f"sft text {16 * i} ")
        assert row["completions"]["ppo"].startswith(f"ppo text {4 * i} ")
        first = sft.proxy[16 * i : 16 * i + 4]
        assert row["rewards"]["best_of_n"] == max(first)
        at = 16 * i + first.index(max(first))
        assert row["completions"]["best_of_n"] == sft.texts[at]
        assert row["gold"]["best_of_n"] == sft.gold[at]


def test_best_of_n_against_drawing_it() -> None:
    reference = evaluation("sft", 16, 0.0, 0.0)
    metrics, objective = best_of_n.measure(reference, 4, beta=0.5, text_samples=4)
    rewards, gold = reference.grid(reference.proxy), reference.grid(reference.gold)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        pick = rng.permutation(16)[:4]
        at = pick[rewards[:, pick].argmax(1)]
        rows = np.arange(PROMPTS)
        drawn.append((rewards[rows, at].mean(), (gold[rows, at] > 0).mean()))
    # 4,000 draws leave a standard error of about 0.004 and 0.001.
    assert metrics["reward"] == pytest.approx(np.mean([r for r, _ in drawn]), abs=0.03)
    assert metrics["gold_positive"] == pytest.approx(np.mean([g for _, g in drawn]), abs=0.01)
    kl = math.log(4) - 3 / 4
    assert metrics["kl"] == pytest.approx(kl) and metrics["kl_se"] is None
    assert float(objective.mean()) == pytest.approx(metrics["reward"] - 0.5 * kl)
    assert metrics["distinct_2"] is not None
    few, _ = best_of_n.measure(reference, 8, beta=0.5, text_samples=4)
    assert few["distinct_2"] is None  # two blocks of 8 are fewer texts than the others have


@pytest.mark.parametrize("killed_at", ["sft", "ppo", "dpo"])
def test_a_killed_comparison_goes_on_with_the_same_numbers(
    tmp_path: Path, models: Models, killed_at: str
) -> None:
    whole = checkpoints(experiment(tmp_path / "whole"), "sft", "ppo", "dpo")
    compare.run(whole)
    models.evaluated.clear()

    exp = checkpoints(experiment(tmp_path / "killed"), "sft", "ppo", "dpo")
    models.killed_at = killed_at
    with pytest.raises(KeyboardInterrupt):
        compare.run(exp)
    assert not (exp.stage_dir("compare") / "results.json").exists()
    models.killed_at = None
    compare.run(exp)
    assert models.evaluated == ["sft", "ppo", "dpo"]  # each once, before or after
    for name in (
        "results.json", "results.csv", "details.json", "examples.json", "samples.jsonl",
        "samples_all.jsonl",
    ):  # fmt: skip
        ours, theirs = (e.stage_dir("compare") / name for e in (exp, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_method_that_was_not_trained_is_left_out(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    exp = checkpoints(experiment(tmp_path), "sft", "ppo")
    compare.run(exp)
    results, details, rows = read(exp)
    assert list(results["methods"]) == ["sft", "ppo", "best_of_n"]
    assert set(rows[0]["completions"]) == {"sft", "ppo", "best_of_n"}
    assert details["differences"] == []
    err = capfd.readouterr().err
    assert "dpo is left out" in err and "ppo is left out" not in err


def test_without_a_price_of_kl_there_is_no_optimum(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    # As many samples as a frontier that is drawn needs.
    exp = checkpoints(experiment(tmp_path, reference_samples=64), "sft", "ppo", "dpo")
    exp = exp.model_copy(update={"beta": 0.0})
    compare.run(exp)
    results, details, _ = read(exp)
    assert list(results["methods"]) == ["sft", "ppo", "best_of_n"]  # a DPO of another β is no part
    for row in results["methods"].values():
        assert row["objective"] == pytest.approx(row["reward"])
        assert row["optimality"] is row["optimality_ci"] is None
    assert [point["beta"] for point in results["frontier"]] == exp.compare.frontier_betas
    assert (details["j_star"], details["j_star_ci"], details["optimum"]) == (None, None, [])
    told = capsys.readouterr()
    assert "as KL costs nothing there is no best" in told.out and "dpo is left out" in told.err
    page.run(exp)
    for name in ("index.html", "report.md"):
        text = (exp.stage_dir("report") / name).read_text(encoding="utf-8")
        assert "β is 0: KL costs nothing" in text
        assert "β is 0: nothing was paid for KL" in text and "best that any method" not in text
        assert "no point of it is the best" in text and "worth the same" not in text


def test_without_sft_there_is_nothing_to_compare_with(tmp_path: Path, models: Models) -> None:
    with pytest.raises(UserError, match=r"sft/model: there is no SFT model.*rlhf sft"):
        compare.run(checkpoints(experiment(tmp_path), "ppo"))


def test_what_is_undefined_is_null_and_never_nan(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat(policy: str, tokenizer: Any, reference: str, *args: Any, **kwargs: Any) -> Evaluation:
        m = kwargs["samples_per_prompt"]
        return Evaluation(
            ["p"], m, [""] * m, [1] * m, [True] * m, [0.5] * m, [0.5] * m, [0.0] * m, 1e9, 1
        )

    monkeypatch.setattr(compare, "evaluate_policy", flat)
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    compare.run(exp)
    results, details, _ = read(exp)
    row = results["methods"]["ppo"]
    undefined = ("optimality", "optimality_ci", "kl_efficiency", "perplexity", "distinct_2")
    assert [row[key] for key in (*undefined, "reward_se")] == [None] * 6
    (difference,) = details["differences"]
    assert difference["optimality"] is difference["optimality_ci"] is None


def test_the_judge_is_its_own_where_one_is_trained_or_named(tmp_path: Path) -> None:
    exp = experiment(tmp_path)
    found = {}
    for source, gold in (("sentiment", None), ("a:b", None), ("a:b", "c:d"), ("a:b", "a:b")):
        section = RewardSection(source=source, gold=gold)
        found[source, gold] = judge_is_proxy(exp.model_copy(update={"reward": section}))
    assert list(found.values()) == [False, True, False, True]


def test_a_comparison_of_real_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy checkpoints from disk, sampled and scored for real; a policy equal to π_ref is π_ref."""
    tokenizer = toy_tokenizer()
    exp = experiment(tmp_path, reference_samples=8, samples_per_prompt=3, best_of_n=2)
    model = {"dtype": "float32", "model_name_or_path": "toy"}
    exp = exp.model_copy(update={"model": exp.model.model_copy(update=model)})
    for method, seed in (("sft", 0), ("ppo", 0), ("dpo", 1)):
        folder = exp.stage_dir(method) / "model"
        prepare(toy_language_model(seed), tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    texts = [rated.text for rated in toy_texts(6, seed=0)]
    prompts = [" ".join(text.split()[:3]) for text in texts[:4]]
    data = type("Data", (), {"eval_prompts": prompts, "heldout": texts})

    def letters(prompts: list[str], completions: list[str]) -> list[float]:
        return [c.count("e") - 2.0 for c in completions]

    monkeypatch.setattr(compare, "load_data", lambda experiment: data)
    monkeypatch.setattr(compare, "proxy_reward", lambda experiment: letters)
    compare.run(exp)
    results, details, rows = read(exp)
    methods = results["methods"]
    assert methods["ppo"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert methods["dpo"]["kl"] > 0.01 and methods["dpo"]["reverse_kl"] > 0.01
    assert methods["ppo"]["reverse_kl"] == pytest.approx(0.0, abs=1e-6)
    assert methods["dpo"]["reverse_kl_samples"] == exp.compare.reverse_kl_samples
    # To a random model nothing is likely: close to the vocabulary's size.
    assert methods["dpo"]["fluency"] == pytest.approx(len(tokenizer), rel=0.2)
    assert details["fluency_model"] == "toy"
    assert methods["ppo"]["perplexity"] == pytest.approx(methods["sft"]["perplexity"])
    assert methods["best_of_n"]["reward"] > methods["sft"]["reward"]
    assert [row["prompt"] for row in rows] == prompts
    assert rows[0]["rewards"]["dpo"] == letters([], [rows[0]["completions"]["dpo"]])[0]
    sft = Evaluation(**read_json(exp.stage_dir("compare") / "measured" / "sft.json"))
    rewards = sft.grid(sft.proxy)
    point = next(row for row in results["frontier"] if row["beta"] == exp.beta)
    assert point["reward"] == frontier.frontier(rewards, [exp.beta])[0].reward


def test_a_new_policy_is_a_line_of_the_config(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment(tmp_path, best_of_n=4)
    policies = {"ppo": None, "probe": {"method": "dpo"}}
    exp = Experiment.model_validate(exp.model_dump() | {"policies": policies})
    compare.run(checkpoints(exp, "sft", "ppo", "probe"))
    results, details, rows = read(exp)
    assert capsys.readouterr().out.split("\n")[0].split() == ["SFT", "PPO", "probe", "Best-of-N"]
    assert set(results["methods"]["probe"]) == set(results["methods"]["ppo"])
    assert rows[0]["completions"]["probe"].startswith("probe text 0")
    assert [(d["first"], d["second"]) for d in details["differences"]] == [("ppo", "probe")]
    lines = (tmp_path / "compare" / "results.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:3] for line in lines[1:4]] == [
        ["sft", "SFT", "reference"], ["ppo", "PPO", "trained"], ["probe", "probe", "trained"],
    ]  # fmt: skip


def test_a_policy_that_was_trained_anew_is_measured_anew(tmp_path: Path, models: Models) -> None:
    """It was away in between, as when it was taken out of the config and its folder removed."""
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    record = exp.stage_dir("compare") / "stage.json"

    def compared(**made: str) -> list[str]:
        models.evaluated.clear()
        write_json(record, {"inputs": {"upstream": {"sft": "s", "reward": "r", **made}}})
        compare.run(exp)
        return models.evaluated

    assert compared(ppo="p", dpo="d") == ["sft", "ppo", "dpo"]
    assert compared(ppo="p") == []
    assert compared(ppo="p", dpo="d") == []  # the same once more
    assert compared(ppo="p", dpo="another") == ["dpo"]


def test_the_model_of_a_run_that_is_being_made_longer_is_not_compared(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is there, but is not what the config asks for."""
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo")
    inputs = {"upstream": {"sft": "s", "reward": "r", "ppo": "p"}}
    write_json(exp.stage_dir("compare") / "stage.json", {"inputs": inputs})
    compare.run(exp)
    assert models.evaluated == ["sft", "ppo"]
    assert "dpo/model is not of a finished run, so dpo is left out" in capfd.readouterr().err
