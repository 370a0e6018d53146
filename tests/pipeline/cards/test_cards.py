"""Cards say what is known, nothing else, and nothing private; the hub's library reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from common.files import read_json, write_json, write_text
from pipeline.cards import known
from pipeline.cards.policy import fenced
from pipeline.cards.writing import write_cards
from pipeline.config import Experiment, load_experiment
from pipeline.config.content import CARD_MARK, content_hash

Make = Callable[..., Experiment]
ROW = {
    "reward": 3.0, "gold": 1.5, "kl": 0.25, "objective": 2.75, "optimality": 0.62,
    "optimality_ci": [0.5, 0.71], "gold_positive": 0.75, "length": 12.0, "ended": 0.5,
}  # fmt: skip


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    """An experiment whose SFT and PPO models are there, as far as a card looks."""

    def made(*overrides: str) -> Experiment:
        experiment = load_experiment(tiny, [f"output_dir={tmp_path / 'out'}", *overrides])
        for stage in ("sft", "ppo"):
            folder = experiment.stage_dir(stage)
            write_json(folder / "model" / "config.json", {})
            config = experiment.of(stage).model_dump(mode="json")
            versions = {"torch": "2.13.0", "trl": "1.16.0"}
            record = {"status": "finished", "fingerprint": stage, "config": config}
            record |= {"versions": versions, "git": {"commit": "abcdef0123456789"}}
            write_json(folder / "stage.json", record)
        write_json(experiment.stage_dir("ppo") / "cost.json", {"reward_queries": 4096})
        return experiment

    return made


def compared(experiment: Experiment, measured: str = "ppo") -> None:
    """A finished comparison; ``measured`` is the fingerprint of the PPO policy that it was of."""
    folder = experiment.stage_dir("compare")
    inputs = {"upstream": {"sft": "sft", "ppo": measured}}
    write_json(folder / "stage.json", {"status": "finished", "inputs": inputs})
    sft = ROW | {"kl": 0.0, "optimality": 0.0, "optimality_ci": None}
    results = {"beta": 0.5, "prompts": 128, "samples_per_prompt": 8}
    results |= {"methods": {"sft": sft, "ppo": ROW, "best_of_n": ROW}}
    write_json(folder / "results.json", results)
    write_json(folder / "details.json", {"judge_is_proxy": False})
    said = {"sft": "a ``` b", "ppo": "of the sea"}
    prompts = ["The end", [{"role": "user", "content": "Hi"}]]
    rows = [json.dumps({"prompt": prompt, "completions": said}) for prompt in prompts]
    write_text(folder / "samples.jsonl", "\n".join(rows) + "\n")


def card_of(experiment: Experiment, stage: str = "ppo") -> ModelCard:
    return ModelCard.load(experiment.stage_dir(stage) / "model" / "README.md")


def test_a_card_is_completed_by_the_comparison(make: Make) -> None:
    experiment = make("beta=0.5")
    write_cards(experiment, ["ppo"])
    assert not (experiment.stage_dir("sft") / "model" / "README.md").exists()
    first = card_of(experiment)
    assert "It was not measured yet" in first.text and "eval_results" not in first.data.to_dict()
    compared(experiment)
    write_cards(experiment, ["compare"])
    card = card_of(experiment)
    results: Any = card.data.get("eval_results")
    found = {result.metric_type: result.metric_value for result in results}
    assert found == {key: ROW[key] for key in ("optimality", "objective", "reward", "gold", "kl")}
    assert "**Optimality 62\u00a0%** [50 to 71\u00a0%]" in card.text and "β = 0.5" in card.text
    assert "128 held-out prompts, 8 completions each" in card.text
    assert "````text\nprompt: The end\nSFT:    a ``` b\nthis:   of the sea\n````" in card.text
    assert "prompt: user: Hi" in card.text
    for words in ("4096", "torch 2.13.0", "commit abcdef012345", "another half of" and "half of"):
        assert words in card.text
    assert (
        card.data.get("tags") == ["rlhf", "ppo"]
        and card.data.get("pipeline_tag") == "text-generation"
    )
    assert "the reference of an RLHF experiment" in card_of(experiment, "sft").text


def test_numbers_of_an_earlier_policy_are_not_its_own(make: Make) -> None:
    experiment = make()
    compared(experiment, measured="an earlier one")
    write_cards(experiment, ["ppo"])
    assert "It was not measured yet" in card_of(experiment).text


def test_the_settings_of_a_card_make_the_policy_again(make: Make, tmp_path: Path) -> None:
    own = ("policies={ppo: {lam: 0.9, push_to_hub: true}, dpo: null}", "dpo.learning_rate=0.1")
    experiment = make(*own, "seed=3")
    write_cards(experiment, ["ppo"])
    text = card_of(experiment).text
    settings = text.split("```yaml\n")[1].split("\n```")[0]
    tree = yaml.safe_load(settings)
    assert tree["ppo"]["lam"] == 0.9 and "push_to_hub" not in tree["ppo"] and "dpo" not in tree
    (tmp_path / "again.yaml").write_text(settings)
    again = load_experiment(tmp_path / "again.yaml")
    for key in ("model", "data", "generation", "sft", "reward", "seed", "beta"):
        assert getattr(again, key) == getattr(experiment, key), key
    ours, theirs = experiment.of("ppo").trainer_args("ppo"), again.of("ppo").trainer_args("ppo")
    assert theirs == {key: value for key, value in ours.items() if key != "push_to_hub"}


def test_nothing_private_is_in_a_card(make: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret-place"
    secret.mkdir()
    (secret / "texts.jsonl").write_text("{}")
    experiment = make(
        f"data.dataset_name={secret / 'texts.jsonl'}",
        f"model.model_name_or_path={secret}",
        "reward.source=https://inner.example/score",
        f"reward.gold={secret / 'judge.py'}:mark",
        f"model.init_kwargs={{cache_dir: {secret}, proxies: {{https: 'http://me:word@inner.example'}}}}",
        "policies={ppo: {generation: vllm, server: 'http://inner.example:8000', lam: 0.9}}",
        f"ppo.server_folder={secret}",
    )
    write_cards(experiment, ["ppo", "sft"])
    for stage in ("ppo", "sft"):
        content = card_of(experiment, stage).content
        for private in (str(secret.parent), "inner.example", "out/"):
            assert private not in content
    text = card_of(experiment).text
    assert "an HTTP service" in text and "judge.py:mark" in text and "(texts.jsonl)" in text
    assert "lam: 0.9" in text and "generation: vllm" in text


def test_licences_are_known_or_unknown(make: Make, tmp_path: Path) -> None:
    embedded = known.base("embedded:smollm2-135m-instruct")
    assert (embedded.hub_id, embedded.license) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    )
    assert known.data("embedded:movie-reviews").license == "mit"
    own = tmp_path / "own-model"
    own.mkdir()
    assert known.base(str(own)).licence == "unknown"
    (own / "README.md").write_text("---\nlicense: gemma\n---\n# mine")
    assert known.base(str(own)).licence == "gemma"
    (own / "README.md").write_text("---\nlicense: [a\n---\n")
    assert known.base(str(own)).licence == "unknown"
    offline = known.base("somebody/model")  # the tests have no hub
    assert (offline.hub_id, offline.licence) == ("somebody/model", "unknown")
    experiment = make(f"model.model_name_or_path={own}")
    write_cards(experiment, ["ppo"])
    card = card_of(experiment)
    assert card.data.get("license") is None and "the base model: unknown" in card.text
    experiment = make("model.model_name_or_path=embedded:smollm2-135m-instruct")
    write_cards(experiment, ["ppo"])
    card = card_of(experiment)
    assert card.data.get("license") == "apache-2.0"
    assert card.data.get("base_model") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_card_counts_for_no_content_and_a_persons_is_kept(make: Make) -> None:
    experiment = make()
    folder = experiment.stage_dir("ppo") / "model"
    before = content_hash(str(folder))
    write_cards(experiment, ["ppo"])
    assert (folder / "README.md").is_file() and content_hash(str(folder)) == before
    own = (folder / "README.md").read_text().replace(CARD_MARK, "Mine.")
    (folder / "README.md").write_text(own)
    assert content_hash(str(folder)) != before
    compared(experiment)
    write_cards(experiment, ["compare"])
    assert (folder / "README.md").read_text() == own


def test_a_base_taken_as_it_is_was_not_fine_tuned(make: Make) -> None:
    experiment = make("sft.skip=true", "model.trainable_layers=1", "model.policy_modules=[v_proj]")
    write_cards(experiment, ["sft", "ppo"])
    for stage, trained in (("sft", "nothing"), ("ppo", "the upper 1 layers (v_proj)")):
        text = card_of(experiment, stage).text
        assert "fine-tuned" not in text and f"| trained | {trained} |" in text
    experiment = make("model.trainable_layers=1", "model.policy_modules=[v_proj]")
    write_cards(experiment, ["sft"])
    text = card_of(experiment, "sft").text
    assert ", fine-tuned on demonstrations (" in text and "| the upper 1 layers |" in text


def test_of_methods_without_a_price_of_kl_none_is_told(make: Make) -> None:
    experiment = make("policies={ppo: {method: rejection}}")
    write_cards(experiment, ["ppo"])
    text = card_of(experiment).text
    assert "rejection sampling, which has no KL penalty" in text and "β, a nat" not in text


def test_adapters_and_unfinished_stages(make: Make) -> None:
    experiment = make("model.use_peft=true", "model.save=adapter")
    folder = experiment.stage_dir("ppo")
    (folder / "model").rename(folder / "adapter")
    (folder / "adapter" / "config.json").rename(folder / "adapter" / "adapter_config.json")
    write_cards(experiment, ["ppo"])
    card = ModelCard.load(folder / "adapter" / "README.md")
    assert card.data.get("library_name") == "peft" and "AutoPeftModelForCausalLM" in card.text
    assert card.data.get("base_model") is None and "LoRA adapters of rank 16" in card.text
    (folder / "adapter" / "README.md").unlink()
    write_json(folder / "stage.json", read_json(folder / "stage.json") | {"status": "started"})
    write_cards(experiment, ["ppo"])
    assert not (folder / "adapter" / "README.md").exists()


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a ```` b").startswith("`````text\n")
    assert fenced("plain") == "```text\nplain\n```"
