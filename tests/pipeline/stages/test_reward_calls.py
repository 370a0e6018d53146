"""Rewards that are not trained here: how every stage calls them, and the settings that say how."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, LlamaForSequenceClassification

from common.files import read_json
from pipeline.config import Experiment, load_experiment
from pipeline.data.toy import toy_encoder, toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.ppo.config import PPOConfig
from pipeline.provenance import fingerprint, stage_inputs
from pipeline.stages import ppo, reward, reward_sources
from reward_models import calling
from reward_models.sentiment import SequenceClassifier

CONFIG = """
data: {dataset_name: toy, demonstrations: 8, heldout: 8, train_prompts: 8, eval_prompts: 8}
model: {model_name_or_path: toy}
reward: {encoder: toy, use_cpu: true}
tracking: {report_to: []}
"""
SERVICE = """
import threading
calls, away, hang = [], [], threading.Event()

def flaky(completions):
    calls.append(completions)
    if len(calls) % 3 == 2:
        raise ConnectionError("HTTP Error 503: Service Unavailable")
    return [float(len(text)) for text in completions]

async def later(completions):
    calls.append(completions)
    return [float(len(text)) for text in completions]

def hangs(completions):
    hang.wait(30)
"""
Make = Callable[..., Experiment]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An experiment of the given settings; every test has a service of its own."""
    (tmp_path / "toy.yaml").write_text(CONFIG)
    (tmp_path / "service.py").write_text(SERVICE)

    def experiment(*settings: str, source: str | None = None) -> Experiment:
        words = [f"reward.source={tmp_path / (source or 'service.py:flaky')}", *settings]
        return load_experiment(tmp_path / "toy.yaml", [f"output_dir={tmp_path}/run", *words])

    return experiment


def module_of(function: Callable[..., Any]) -> dict[str, Any]:
    return function.__globals__


def metrics(experiment: Experiment) -> dict[str, Any]:
    return read_json(experiment.stage_dir("reward") / "metrics.json")


def save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]
    toy_tokenizer().save_pretrained(folder)


def named(folder: Path, labels: list[str], size: float = 40.0) -> None:
    """A classifier with labels of these names, the same weights every time."""
    config = toy_encoder(0).config
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: column for column, name in config.id2label.items()}
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    model.classifier.weight.data.mul_(size)
    save(model, folder)


def test_a_passing_failure_of_a_service_does_not_end_the_stage(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calling.time, "sleep", lambda seconds: None)
    experiment = make()
    function = reward_sources.proxy_reward(experiment).function  # type: ignore[attr-defined]
    reward.run(experiment)
    sizes = [len(texts) for texts in module_of(function)["calls"]]
    assert max(sizes) <= 64 and sizes[1] == sizes[2]  # what failed is asked again, and no more
    assert "503: Service Unavailable" in (said := capsys.readouterr().err)
    assert "try 2 of 3 in 1 s" in said
    texts = metrics(experiment)["texts"]
    assert sum(sizes) >= 2 * texts  # as proxy and as judge


def test_without_retries_it_does_and_a_hang_ends_in_time(make: Make) -> None:
    with pytest.raises(UserError, match="reward.source: .*raised ConnectionError: HTTP Error 503"):
        reward.run(make("reward.retries=0"))
    experiment = make("reward.retries=0", "reward.timeout=0.05", source="service.py:hangs")
    hangs = reward_sources.proxy_reward(experiment)
    with pytest.raises(UserError, match="raised TimeoutError: no answer in 0.05 s") as error:
        reward.run(experiment)
    assert "\n" not in str(error.value)
    event: threading.Event = module_of(hangs.function)["hang"]  # type: ignore[attr-defined]
    event.set()


def test_an_async_reward_is_awaited(make: Make) -> None:
    experiment = make(source="service.py:later")
    reward.run(experiment)
    assert metrics(experiment)["proxy"]["mean"] > 0


def test_ppo_takes_the_sections_time_out_and_retries_unless_it_has_its_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PPOConfig] = []

    def stop(**settings: Any) -> None:
        made.append(settings["args"])
        raise KeyboardInterrupt

    monkeypatch.setattr(ppo, "_Counted", stop)
    monkeypatch.setattr(ppo, "load_trainable_sft", lambda experiment: (toy_language_model(0), None))
    for own in ([], ["ppo.reward_timeout=9", "ppo.reward_retries=1"]):
        with pytest.raises(KeyboardInterrupt):
            ppo.run(make("reward.timeout=5", "reward.retries=4", *own))
    assert [(a.reward_timeout, a.reward_retries) for a in made] == [(5, 4), (9, 1)]


def test_how_often_is_asked_makes_no_other_result(make: Make) -> None:
    one, other = make(), make("reward.timeout=5", "reward.retries=4")
    for stage, inputs in stage_inputs(one).items():
        assert fingerprint(inputs) == fingerprint(stage_inputs(other)[stage])
    read = make("reward.format=pair")
    assert stage_inputs(read)["reward"] != stage_inputs(one)["reward"]


def test_labels_of_source_and_judge(make: Make, tmp_path: Path) -> None:
    grades = ["Very Negative", "Negative", "Neutral", "Positive", "Very Positive"]
    named(tmp_path / "grades", grades)
    named(tmp_path / "codes", ["A", "B", "C", "D", "E"])
    judge = f"reward.gold={tmp_path / 'codes'}"
    experiment = make(judge, "reward.gold_positive_labels=[E, D]", source="grades")
    reward.run(experiment)
    result = metrics(experiment)
    assert result["proxy_gold_correlation"] == pytest.approx(1.0)
    assert result["proxy"]["std"] > 0.01
    assert result["proxy"]["described"].endswith("gives the log-odds of Positive, Very Positive")
    with pytest.raises(UserError, match="reward.gold: .*do not tell which are positive"):
        reward.run(make(judge, source="grades"))
    with pytest.raises(UserError, match="reward.source: .*names 'Good', but its labels are"):
        reward.run(make("reward.positive_labels=[Good]", source="grades"))


def test_a_chat_reward_model_is_asked_in_its_template(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = toy_language_model(0).config
    config.num_labels = 1
    save(LlamaForSequenceClassification(config), tmp_path / "chat")
    experiment = make(source="chat")
    reward.run(experiment)
    assert "reward proxy · reads a chat in its template" in capsys.readouterr().err
    asked = reward_sources.proxy_reward(experiment)(["the film"], [" is dull"])
    plain = reward_sources.proxy_reward(make("reward.format=text", source="chat"))
    assert asked != plain(["the film"], [" is dull"])


def test_a_checkpoint_reads_all_it_can_and_one_trained_here_what_it_was_trained_on(
    make: Make, tmp_path: Path
) -> None:
    named(tmp_path / "named", ["negative", "positive"])
    named(tmp_path / "run" / "reward" / "proxy", ["negative", "positive"])
    for settings, source, limit in (
        ([], "named", 128),
        (["reward.max_length=40"], "named", 40),
        (["reward.source=sentiment"], None, 64),
        (["reward.source=sentiment", "reward.max_length=100"], None, 100),
    ):
        classifier = reward_sources.proxy_reward(make(*settings, source=source)).function  # type: ignore
        assert isinstance(classifier, SequenceClassifier) and classifier.max_length == limit


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["generation.max_new_tokens=64"], "reward.max_length: a completion of generation.max_new"),
        (["reward.format=chat"], "reward.format=chat: is for a checkpoint or a function, and"),
        (["reward.positive_labels=[a]"], "is for a checkpoint, and reward.source is 'sentiment'"),
        (["reward.gold_format=pair"], "is for a checkpoint or a function, and reward.gold is"),
        (["reward.positive_labels=[]"], "must not be empty"),
        (["reward.format=dialogue"], "expected text or pair or chat or null, found 'dialogue'"),
        (["reward.timeout=0"], "expected a number above 0"),
        (["reward.retries=-1"], "expected a number at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_one_line(
    make: Make, settings: list[str], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        make("reward.source=sentiment", *settings)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_what_the_classifier_trained_here_cannot_read_is_said(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = ["reward.source=sentiment", "reward.max_steps=1"]
    with pytest.raises(UserError, match="reward.max_length: 200 tokens .* set it to 128 or less"):
        reward.run(make(*trained, "reward.max_length=200"))
    settings = ["reward.max_length=12", "generation.max_new_tokens=8"]
    reward.run(make(*trained, *settings))
    said = capsys.readouterr().err
    assert "texts are longer than 12 tokens; the classifier does not learn from their ends" in said
    assert "reads 12 tokens, and" in said  # when they are measured, their beginnings are cut
