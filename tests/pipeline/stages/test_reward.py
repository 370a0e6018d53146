"""Stage 2 on the toy task: what it writes, that it learns, resumes, and explains mistakes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from common.files import read_json
from pipeline.config import Experiment, load_experiment
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.stages import reward, reward_sources, tracking
from tests.nursery import Nursery

PROMPTS = ["the film about love"] * 4
COMPLETIONS = [
    " is truly wonderful and the cast is charming",
    " is truly awful and the cast is boring",
    " is quite moving with a warm story",
    " is quite dull with a lifeless story",
]
CONFIG = """
data: {dataset_name: toy, demonstrations: 8, heldout: 8, train_prompts: 8, eval_prompts: 8}
reward: {encoder: toy, num_train_epochs: 2, per_device_train_batch_size: 16, learning_rate: 3e-3,
  save_steps: 16, save_total_limit: 2, logging_steps: 8, use_cpu: true}
tracking: {report_to: []}
"""

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeExperiment:
    config = tmp_path_factory.mktemp("config") / "toy.yaml"
    config.write_text(CONFIG)

    def experiment(output_dir: Path, *overrides: str) -> Experiment:
        return load_experiment(config, [f"output_dir={output_dir}", *overrides])

    return experiment


@pytest.fixture(scope="module")
def trained(make: MakeExperiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = make(tmp_path_factory.mktemp("trained"))
    reward.run(experiment)
    return experiment


def metrics_of(experiment: Experiment) -> dict[str, Any]:
    return read_json(experiment.stage_dir("reward") / "metrics.json")


def test_both_classifiers_learn_and_are_measured(trained: Experiment) -> None:
    metrics = metrics_of(trained)
    data = load_data(trained)
    assert metrics["texts"] == len(data.classifier_test)
    for part in ("proxy", "gold"):
        # Chance is 0.5; seeds 0 to 4 gave at least 0.96 accuracy, 0.97 AUC, 0.88 correlation.
        assert metrics[part]["accuracy"] > 0.85
        assert metrics[part]["auc"] > 0.9
        assert metrics[part]["correlation"] > 0.7
        assert 0 <= metrics[part]["ece"] <= 0.5
        bins = metrics[part]["bins"]
        assert sum(row["texts"] for row in bins) == metrics[part]["decided_texts"]
    assert metrics["proxy_gold_correlation"] > 0.7
    assert 0.5 < metrics["one_rater"]["accuracy"] < 1
    assert metrics["judge_is_proxy"] is False


def test_the_two_are_different_models_from_disjoint_texts(trained: Experiment) -> None:
    data = load_data(trained)
    assert not {text.text for text in data.proxy} & {text.text for text in data.gold}
    proxy = reward_sources.proxy_reward(trained)(PROMPTS, COMPLETIONS)
    gold = reward_sources.gold_reward(trained)(PROMPTS, COMPLETIONS)
    assert proxy != gold
    for scores in (proxy, gold):
        assert min(scores[0], scores[2]) > 0 > max(scores[1], scores[3])


def test_saved_folders_name_their_labels(trained: Experiment) -> None:
    folder = trained.stage_dir("reward") / "proxy"
    assert read_json(folder / "config.json")["id2label"] == {"0": "negative", "1": "positive"}
    assert (folder / "tokenizer.json").is_file()
    assert (trained.stage_dir("reward") / "metrics-gold.jsonl").is_file()


def killed_at(config: str, output: str, part: str, step: str) -> None:
    """The stage in another process, which is killed at a step of one part's training."""
    callbacks = tracking.callbacks

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == int(step):
                os.kill(os.getpid(), signal.SIGKILL)

    tracking.callbacks = lambda experiment, stage, name: (
        callbacks(experiment, stage, name) + ([Kill()] if name == part else [])
    )
    reward.run(load_experiment(Path(config), [f"output_dir={output}"]))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "step"), [("proxy", 21), ("gold", 95)])
def test_killed_and_started_again_gives_the_same_numbers(
    make: MakeExperiment,
    trained: Experiment,
    nursery: Nursery,
    tmp_path: Path,
    part: str,
    step: int,
) -> None:
    """Killed in mid-epoch, behind the checkpoint at step 16 (first epoch) or 80 (second)."""
    config = tmp_path / "toy.yaml"
    config.write_text(CONFIG)
    killed = make(tmp_path / "killed")
    log = tmp_path / "log"
    words = [str(config), str(killed.output_dir), part, str(step)]
    pid = nursery.start(log, f"{__name__}:killed_at", *words)
    assert nursery.wait(pid) == -signal.SIGKILL, log.read_text()
    assert not (killed.stage_dir("reward") / part).exists()
    first_part = killed.stage_dir("reward") / "proxy" / "model.safetensors"
    before = first_part.stat().st_mtime_ns if part == "gold" else None
    reward.run(killed)
    if before is not None:  # what had been trained is not trained again
        assert first_part.stat().st_mtime_ns == before
    assert metrics_of(killed) == metrics_of(trained)
    for name in ("proxy", "gold"):
        one, other = (
            load_file(experiment.stage_dir("reward") / name / "model.safetensors")
            for experiment in (trained, killed)
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


def rules_file(folder: Path, body: str, name: str = "rules.py") -> str:
    path = folder / name
    path.write_text(f"def score(prompts, completions):\n    {body}\n")
    return f"{path}:score"


def test_a_function_as_reward_and_a_classifier_as_judge(
    make: MakeExperiment, tmp_path: Path
) -> None:
    spec = rules_file(
        tmp_path, "return [c.count('wonderful') - c.count('awful') for c in completions]"
    )
    experiment = make(tmp_path / "run", f"reward.source={spec}", "reward.gold=sentiment")
    reward.run(experiment)
    metrics = metrics_of(experiment)
    assert reward_sources.proxy_reward(experiment)(PROMPTS, COMPLETIONS) == [1.0, -1.0, 0.0, 0.0]
    assert metrics["proxy"]["correlation"] > 0.2
    assert 0.5 < metrics["proxy"]["auc"] < 0.9
    assert "accuracy" not in metrics["proxy"]  # a count is no log-odds
    assert metrics["gold"]["accuracy"] > 0.85
    assert not (experiment.stage_dir("reward") / "proxy").exists()


def test_without_labels_a_reward_is_tried_and_may_judge_itself(
    make: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = rules_file(tmp_path, "return [float(len(c)) for c in completions]", "length.py")
    experiment = make(tmp_path / "run", f"reward.source={spec}")
    reward.run(experiment)
    metrics = metrics_of(experiment)
    assert metrics["judge_is_proxy"] is True
    assert metrics["proxy_gold_correlation"] == pytest.approx(1.0)
    assert metrics["proxy"]["source"] == metrics["gold"]["source"] == spec
    assert "judges itself" in capsys.readouterr().err


def test_a_checkpoint_as_reward(make: MakeExperiment, trained: Experiment, tmp_path: Path) -> None:
    folder = trained.stage_dir("reward")
    experiment = make(
        tmp_path / "run", f"reward.source={folder / 'gold'}", f"reward.gold={folder / 'proxy'}"
    )
    ours = reward_sources.proxy_reward(experiment)(PROMPTS, COMPLETIONS)
    assert ours == reward_sources.gold_reward(trained)(PROMPTS, COMPLETIONS)
    reward.run(experiment)
    assert metrics_of(experiment)["judge_is_proxy"] is False


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [0.0]", "returned 1 scores for 8 completions"),
        ("return [float('nan')] * len(completions)", "scored completion 0"),
        ("return [1 / 0 for c in completions]", "raised ZeroDivisionError"),
    ],
)
def test_a_bad_function_stops_the_stage_before_any_use(
    make: MakeExperiment, tmp_path: Path, body: str, expected: str
) -> None:
    spec = rules_file(tmp_path, body)
    experiment = make(tmp_path / "run", f"reward.source={spec}")
    with pytest.raises(UserError) as error:
        reward.run(experiment)
    message = str(error.value)
    assert message.startswith(f"reward.source: {spec}: ")
    assert expected in message
    assert "\n" not in message
    assert not (experiment.stage_dir("reward") / "metrics.json").exists()


def test_mistakes_name_the_key(make: MakeExperiment, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = [
        (
            ["reward.gold=nowhere.py:f", "reward.source=sentiment"],
            "reward.gold: nowhere.py:f: there",
        ),
        ([f"reward.source={tmp_path / 'empty'}"], "config.json is missing"),
        ([f"reward.encoder={tmp_path / 'empty'}"], "reward.encoder: no encoder can be loaded"),
        (["reward.fp16=true", "reward.bf16=true"], "reward: these training arguments do not go"),
    ]
    for number, (overrides, expected) in enumerate(cases):
        experiment = make(tmp_path / str(number), *overrides)
        with pytest.raises(UserError) as error:
            reward.run(experiment)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)


def test_a_reward_that_was_not_trained_yet(make: MakeExperiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `rlhf reward`"):
        reward_sources.proxy_reward(make(tmp_path / "run"))


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.long
def test_the_embedded_encoder_scores_sentiment_after_a_little_training(
    make: MakeExperiment, tmp_path: Path
) -> None:
    experiment = make(
        tmp_path / "run",
        "data.dataset_name=embedded:movie-reviews",
        "reward.encoder=embedded:all-minilm-l6-v2",
        "reward.max_steps=40",
        "reward.learning_rate=2e-4",
    )
    reward.run(experiment)
    metrics = metrics_of(experiment)
    for part in ("proxy", "gold"):
        assert metrics[part]["accuracy"] > 0.65
    assert 0.8 < metrics["one_rater"]["accuracy"] < 1
    json.dumps(metrics, allow_nan=False)
