"""What is trained here is a Hugging Face folder with a card: saved, loaded, read by others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import pipeline as transformers_pipeline

from common.files import read_json
from pipeline.config import Experiment, load_experiment
from pipeline.data import toy
from pipeline.stages import reward, reward_sources
from pipeline.stages.reward_card import write_cards
from reward_models import RewardError, load_reward
from reward_models.card import Facts, write_card

CONFIG = """
name: cards
data: {dataset_name: toy, demonstrations: 8, heldout: 8, train_prompts: 8, eval_prompts: 8}
model: {model_name_or_path: toy, lora_r: 4}
reward: {encoder: toy, max_steps: 4, per_device_train_batch_size: 16, use_cpu: true}
tracking: {report_to: []}
"""
PROMPTS = ["the film about love", "a movie about war", ""]
COMPLETIONS = [" is truly wonderful and warm", " is dull", "awful"]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Experiment]:
    """An experiment whose reward stage has run; adapters are over a toy SFT model."""
    folder = tmp_path_factory.mktemp("cards")
    (folder / "toy.yaml").write_text(CONFIG)

    def made(encoder: str) -> Experiment:
        out = folder / encoder
        experiment = load_experiment(
            folder / "toy.yaml", [f"output_dir={out}", f"reward.encoder={encoder}"]
        )
        if not out.exists():
            toy.toy_language_model(0).save_pretrained(out / "sft" / "model")
            toy.toy_tokenizer().save_pretrained(out / "sft" / "model")
            reward.run(experiment)
        return experiment

    return made


def results_of(card: ModelCard) -> list[Any]:
    """What the hub shows as measured."""
    return getattr(card.data, "eval_results", None) or []


@pytest.mark.parametrize("encoder", ["toy", "sft"])
def test_a_folder_gives_the_scores_that_were_measured(
    make: Callable[..., Experiment], encoder: str
) -> None:
    experiment = make(encoder)
    for part in ("proxy", "gold"):
        folder = experiment.stage_dir("reward") / part
        used = reward_sources.reward_of(experiment, part)(PROMPTS, COMPLETIONS)
        assert load_reward(str(folder), max_length=64)(PROMPTS, COMPLETIONS) == used
        assert load_reward(part, base=folder.parent)(PROMPTS, COMPLETIONS) == used


def test_plain_transformers_reads_a_full_checkpoint(make: Callable[..., Experiment]) -> None:
    folder = make("toy").stage_dir("reward") / "proxy"
    classify = transformers_pipeline("text-classification", model=str(folder), device="cpu")
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    labels = classify(texts, function_to_apply="none", top_k=None)
    margins = []
    for row in labels:
        by_name: dict[str, Any] = {item["label"]: item["score"] for item in row}  # type: ignore
        margins.append(by_name["positive"] - by_name["negative"])
    assert margins == pytest.approx(load_reward(str(folder))(PROMPTS, COMPLETIONS), abs=1e-5)


@pytest.mark.parametrize("encoder", ["toy", "sft"])
def test_the_card_says_what_was_measured(make: Callable[..., Experiment], encoder: str) -> None:
    experiment = make(encoder)
    stage = experiment.stage_dir("reward")
    metrics = read_json(stage / "metrics.json")
    for part in ("proxy", "gold"):
        card = ModelCard.load(stage / part / "README.md")
        found = {r.metric_type: r.metric_value for r in results_of(card)}
        for key, name in (("accuracy", "accuracy"), ("correlation", "pearsonr"), ("ece", "ece")):
            assert found[name] == metrics[part][key]
        assert card.data.get("library_name") == ("peft" if encoder == "sft" else "transformers")
        assert card.data.get("license") is None and card.data.get("base_model") is None
        assert f"{metrics['texts']:,} texts held out" in card.text
        assert f"{metrics['one_rater']['accuracy']:.3f}" in card.text
        for words in ("`negative`, `positive`", "must not be used for", "load_reward", "max_steps"):
            assert words in card.text
        assert ("adapter_config.json" in card.text) == (encoder == "sft")
        assert str(stage.parent) not in card.content  # no paths of this machine


def test_cards_of_parts_and_of_what_is_on_the_hub(
    make: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = make("toy")
    metrics = read_json(experiment.stage_dir("reward") / "metrics.json")
    own = metrics["proxy"] | {"accuracy": 0.125}
    metrics["proxy"] = {"mean": 1.0, "parts": {"a": {"source": "rules:ended"}, "b": own}}
    config = experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"dataset_name": "embedded:tweets"}),
            "reward": experiment.reward.model_copy(update={"encoder": "embedded:all-minilm-l6-v2"}),
        }
    )
    write_cards(config, metrics)
    card = ModelCard.load(experiment.stage_dir("reward") / "proxy" / "README.md")
    assert results_of(card)[0].metric_value == 0.125
    assert card.data.get("base_model") == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.get("license") == "apache-2.0" and "the tweets of Hutto" in card.text
    private = {"dataset_name": str(tmp_path / "texts.csv"), "preferences_name": None}
    config = experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update=private),
            "reward": experiment.reward.model_copy(update={"encoder": str(tmp_path / "trunk")}),
        }
    )
    write_cards(config, metrics)
    card = ModelCard.load(experiment.stage_dir("reward") / "proxy" / "README.md")
    assert "own data (texts.csv)" in card.text and "own model (trunk)" in card.text
    assert str(tmp_path) not in card.content and card.data.get("datasets") is None
    with pytest.raises(RewardError, match="holds no model"):
        write_card(tmp_path, Facts("a", "b", "c", "d"))


def test_a_card_without_figures_for_one_output(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"id2label": {"0": "LABEL_0"}}')
    write_card(tmp_path, Facts("mine", "pairs of mine", "org/base", "org/data", "mit"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict()["datasets"] == "org/data" and results_of(card) == []
    assert "It was not measured against people." in card.text and "One number." in card.text
    assert 'function_to_apply="none"' in card.text
