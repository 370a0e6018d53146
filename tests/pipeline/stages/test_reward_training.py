"""What the reward stage can train beside a classifier of hard labels, on the toy task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from common.files import read_json
from pipeline.config import Experiment, load_experiment
from pipeline.data.records import RatedText
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.provenance import stage_inputs
from pipeline.stages import reward, tracking
from pipeline.stages.reward_sources import (
    folders_of,
    gold_reward,
    judge_is_proxy,
    proxy_reward,
)
from pipeline.stages.reward_training import targets
from reward_models.calibration import TEMPERATURE

SHORT = ["reward.max_steps=48", "reward.save_steps=16", "reward.comparisons_per_rater=2"]
GOOD = [" is truly wonderful and the cast is charming", " is quite moving with a warm story"]
BAD = [" is truly awful and the cast is boring", " is quite dull with a lifeless story"]
PROMPTS = ["the film about love"] * 4

Make = Callable[..., Experiment]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    def experiment(*overrides: str) -> Experiment:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return load_experiment(tiny, [f"output_dir={folder}", *overrides])

    return experiment


def trained(experiment: Experiment) -> dict[str, Any]:
    reward.run(experiment)
    return read_json(experiment.stage_dir("reward") / "metrics.json")


def tells_good_from_bad(experiment: Experiment) -> bool:
    scores = [part(experiment)(PROMPTS, [*GOOD, *BAD]) for part in (proxy_reward, gold_reward)]
    return all(min(each[:2]) > max(each[2:]) for each in scores)


# --- Labels and calibration -----------------------------------------------------------------------


def test_what_a_text_teaches() -> None:
    texts = [RatedText("a", 0.5, (2.0, 0.0, -1.0, 1.0)), RatedText("b", -2.0, (-2.0, -2.0))]
    assert targets(texts, "hard", 0.0) == [True, False]
    assert targets(texts, "soft", 0.0) == [0.625, 0.0]
    assert targets(texts, "soft", 1.0) == [0.375, 0.0]
    assert targets(texts, "mean", 1.0) == [-0.5, -3.0]


@pytest.mark.parametrize("labels", ["soft", pytest.param("mean", marks=pytest.mark.long)])
def test_soft_and_mean_labels_learn_and_are_calibrated(make: Make, labels: str) -> None:
    experiment = make(f"reward.labels={labels}", "reward.calibrate=true", "reward.max_steps=96")
    metrics = trained(experiment)
    assert tells_good_from_bad(experiment)
    for part in ("proxy", "gold"):
        # Chance is 0.5.
        assert metrics[part]["accuracy"] > 0.8
        assert metrics[part]["ece"] < 0.2
        config = read_json(folders_of(experiment, part)[0] / "config.json")
        assert 0.05 <= config[TEMPERATURE] <= 20
    if labels == "mean":
        assert len(read_json(folders_of(experiment, "proxy")[0] / "config.json")["id2label"]) == 1


def test_a_mean_is_in_points_and_has_no_calibration_unless_asked(make: Make) -> None:
    experiment = make("reward.labels=mean", "reward.max_steps=96")
    metrics = trained(experiment)
    rated = load_data(experiment).classifier_test
    assert "ece" not in metrics["proxy"] and "accuracy" not in metrics["proxy"]
    assert metrics["proxy"]["correlation"] > 0.7
    assert metrics["proxy"]["std"] < 1.3 * np.std([text.rating for text in rated])


def test_what_is_calibrated_on_is_not_trained_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages import reward_training

    seen: dict[str, set[str]] = {"encode": set(), "score": set()}
    encode, score = reward_training.encode, reward_training.SequenceClassifier.score

    def record_rows(tokenizer: Any, texts: list[str], *rest: Any) -> Any:
        if len(seen["encode"]) < len(texts):
            seen["encode"] = set(texts)
        return encode(tokenizer, texts, *rest)

    def record_texts(self: Any, texts: list[str]) -> list[float]:
        seen["score"] = set(texts)
        return score(self, texts)

    monkeypatch.setattr(reward_training, "encode", record_rows)
    monkeypatch.setattr(reward_training.SequenceClassifier, "score", record_texts)
    experiment = make("reward.calibrate=true", "reward.max_steps=2", "reward.gold=length.py:f")
    data = load_data(experiment)
    job = reward_training.Job(experiment, "proxy", folders_of(experiment, "proxy")[0])
    reward_training.train(job, data, None)
    half = {text.text for text in data.proxy}
    assert seen["score"] and not seen["score"] & seen["encode"]
    assert seen["score"] | seen["encode"] == half
    assert not half & {text.text for text in data.classifier_test}


# --- Pairwise -------------------------------------------------------------------------------------


def weights(experiment: Experiment) -> dict[str, torch.Tensor]:
    found = {}
    for part in ("proxy", "gold"):
        for folder in folders_of(experiment, part):
            for name, weight in load_file(folder / "model.safetensors").items():
                found[f"{folder.name}/{name}"] = weight
    return found


class Stop(TrainerCallback):
    """Ends the process' work at a step, as a signal would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 21:
            raise KeyboardInterrupt


def test_pairwise_learns_and_resumes_to_the_same_numbers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["reward.source=pairwise", "reward.margins=true", *SHORT]
    asked += ["reward.center_rewards_coefficient=0.01"]
    whole, stopped = make(*asked), make(*asked)
    metrics = trained(whole)
    assert tells_good_from_bad(whole)
    for part in ("proxy", "gold"):
        assert metrics[part]["correlation"] > 0.6
        assert metrics[part]["pairs"]["accuracy"] > 0.7
        assert "accuracy" not in metrics[part]  # only differences mean anything
    assert 0.7 < metrics["one_rater_pairs"]["one_other"] < 1
    assert metrics["judge_is_proxy"] is False and not judge_is_proxy(whole)
    callbacks = tracking.callbacks
    monkeypatch.setattr(tracking, "callbacks", lambda *a: [*callbacks(*a), Stop()])
    with pytest.raises(KeyboardInterrupt):
        reward.run(stopped)
    assert not folders_of(stopped, "proxy")[0].exists()
    monkeypatch.setattr(tracking, "callbacks", callbacks)
    reward.run(stopped)
    one, other = weights(whole), weights(stopped)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("talks", [False, True])
def test_pairwise_learns_from_own_rankings(make: Make, tmp_path: Path, talks: bool) -> None:
    rows = []
    for number in range(60):
        prompt: Any = f"the film about love {number} is"
        answers: list[Any] = [" brilliant", " warm", " awful"]
        if talks:
            prompt = [{"role": "user", "content": prompt}]
        rows.append({"prompt": prompt, "completions": answers, "ranking": "A > B > C"})
    if talks:
        for row in rows:
            row["chosen"], _, row["rejected"] = (
                [{"role": "assistant", "content": text}] for text in row.pop("completions")
            )
            del row["ranking"]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment = make("reward.source=pairwise", f"data.preferences_name={path}", *SHORT)
    metrics = trained(experiment)
    assert metrics["proxy"]["pairs"]["accuracy"] > 0.9
    assert "one_rater_pairs" not in metrics or metrics["one_rater_pairs"] is None
    # What it learns from is part of its fingerprint.
    assert "data.preferences_name" in stage_inputs(experiment)["reward"]["config"]


# --- Ensembles ------------------------------------------------------------------------------------


def test_members_differ_and_are_combined(make: Make) -> None:
    members = ["reward.members=2", "reward.member_texts=half", "reward.max_steps=24"]
    lowest = make(*members, "reward.combine=min")
    metrics = trained(lowest)
    folders = folders_of(lowest, "proxy")
    assert [folder.name for folder in folders] == ["proxy-0", "proxy-1"]
    assert all((folder / "config.json").is_file() for folder in folders)
    assert set(metrics["proxy"]["parts"]) == {"proxy-0", "proxy-1"}
    assert [folder.name for folder in folders_of(lowest, "gold")] == ["gold"]
    same = lowest.reward.model_copy(update={"combine": "mean"})
    mean = lowest.model_copy(update={"reward": same})
    low, middle = (proxy_reward(e)(PROMPTS, [*GOOD, *BAD]) for e in (lowest, mean))
    assert all(a < b for a, b in zip(low, middle, strict=True))


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.dataset_name=x.jsonl", "reward.labels=soft"], "reward.labels=soft: soft is the"),
        (["reward.margins=true"], "is for 'pairwise', which neither"),
        (["reward.source=pairwise", "reward.labels=mean"], "is for 'sentiment', which neither"),
        (
            ["reward.source=pairwise", "data.dataset_name=embedded:tweets"],
            "nothing in embedded:tweets tells which ratings are one person's",
        ),
        (
            ["reward.source=pairwise", "data.preferences_name=x.jsonl", "reward.margins=true"],
            "data.preferences_name has none of",
        ),
        (["reward.members=2"], "need reward.combine: mean, min or pessimistic"),
        (["reward.members=2", "reward.combine=min", "reward.source=a.py:f"], "are trained here"),
        (["reward.member_texts=half"], "set reward.members above 1"),
    ],
)
def test_settings_that_do_not_go_together(make: Make, overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error:
        make(*overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_unset_keys_leave_the_record_of_older_runs(tiny: Path) -> None:
    settings = stage_inputs(load_experiment(tiny))["reward"]["config"]
    new = ["labels", "calibrate", "comparisons_per_rater", "margins", "members", "member_texts"]
    assert not {f"reward.{key}" for key in [*new, "center_rewards_coefficient"]} & set(settings)
    assert "data.preferences_name" not in settings
