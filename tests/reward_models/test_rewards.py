"""The rewards: labels by name, own tokenizer, measures, training helpers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel

from pipeline.data.toy import toy_encoder, toy_language_model, toy_tokenizer
from reward_models import RewardError, checked, load_reward, measure
from reward_models.labels import find_positive
from reward_models.pairwise import pair_accuracy, train_pairwise
from reward_models.sentiment import SequenceClassifier, load_classifier
from reward_models.training import LengthGrouped, new_classifier

PROMPTS = ["the film about love", "a movie about war", "this story about jazz"]
COMPLETIONS = [
    " is very wonderful and the cast is warm",
    " is dull",
    " is quite moving with a clever plot",
]


def classifier(labels: dict[int, str], seed: int = 0) -> BertForSequenceClassification:
    config = toy_encoder(seed).config
    config.id2label = labels
    config.label2id = {name: column for column, name in labels.items()}
    torch.manual_seed(seed)
    return BertForSequenceClassification(config).eval()


def save(folder: Path, labels: dict[int, str]) -> Path:
    classifier(labels).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def logits(model: BertForSequenceClassification, text: str) -> list[float]:
    tokenizer = toy_tokenizer()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0].tolist()


# --- Scoring ------------------------------------------------------------------------------------


def test_a_score_does_not_depend_on_batch_order_or_padding() -> None:
    model = classifier({0: "negative", 1: "positive"})
    tokenizer = toy_tokenizer()
    alone = [
        SequenceClassifier(model, tokenizer)([p], [c])[0]
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    for size in (1, 2, 64):
        together = SequenceClassifier(model, tokenizer, batch_size=size)(PROMPTS, COMPLETIONS)
        assert together == pytest.approx(alone, abs=1e-6)
    back = SequenceClassifier(model, tokenizer)(PROMPTS[::-1], COMPLETIONS[::-1])
    assert back == pytest.approx(alone[::-1], abs=1e-6)
    assert len({round(score, 5) for score in alone}) == 3


def test_scoring_is_in_evaluation_mode_without_gradients() -> None:
    model = classifier({0: "negative", 1: "positive"}).train()
    reward = SequenceClassifier(model, toy_tokenizer())
    assert reward(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS)
    assert not model.training


def test_texts_too_long_keep_their_end_where_the_completion_is() -> None:
    tokenizer = toy_tokenizer()
    model = classifier({0: "negative", 1: "positive"})
    short = SequenceClassifier(model, tokenizer, max_length=3)
    scores = short(["the film about love is very"] * 2, [" wonderful", " awful"])
    assert scores == pytest.approx(short([" is very"] * 2, [" wonderful", " awful"]), abs=1e-6)
    assert abs(scores[0] - scores[1]) > 1e-5
    assert tokenizer.truncation_side == "right"  # the caller's tokenizer is left as it was
    # Never more than the model has positions for.
    assert SequenceClassifier(model, tokenizer, max_length=10**6).max_length == 128
    assert len(short(["a film " * 500], [" is dull"])) == 1


def test_empty_texts_are_scored() -> None:
    reward = checked(SequenceClassifier(classifier({0: "neg", 1: "pos"}), toy_tokenizer()))
    assert len(reward(["", "the film"], ["", ""])) == 2
    assert reward([], []) == []


def test_bfloat16_is_close_to_float32() -> None:
    model = classifier({0: "negative", 1: "positive"})
    exact = SequenceClassifier(model, toy_tokenizer())(PROMPTS, COMPLETIONS)
    rough = SequenceClassifier(model, toy_tokenizer(), dtype=torch.bfloat16)(PROMPTS, COMPLETIONS)
    assert rough == pytest.approx(exact, abs=0.02)
    assert rough != exact


# --- Loading ------------------------------------------------------------------------------------


def test_loading_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "model", {0: "positive", 1: "negative"})
    raw = logits(classifier({0: "positive", 1: "negative"}), PROMPTS[0] + COMPLETIONS[0])
    reward = load_reward("model", base=tmp_path)
    assert reward([PROMPTS[0]], [COMPLETIONS[0]]) == pytest.approx([raw[0] - raw[1]], abs=1e-6)


def test_loading_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbour_of_reward.py").write_text("FACTOR = 2\n")
    (tmp_path / "my_reward.py").write_text(
        "from neighbour_of_reward import FACTOR\n"
        "def length(prompts, completions):\n    return [FACTOR * len(c) for c in completions]\n"
        "def trl_style(completions, **kwargs):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_reward("my_reward.py:length", base=tmp_path)(["a"], ["xyz"]) == [6.0]
    assert load_reward("my_reward.py:trl_style", base=tmp_path)(["a"], ["xyz"]) == [3.0]
    assert load_reward("my_reward:length", base=tmp_path)(["a"], ["xyz"]) == [6.0]


def _bad_specs(folder: Path) -> dict[str, str]:
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "names.py").write_text("def score(prompts, completions): return []\nNUMBER = 3\n")
    (folder / "narrow.py").write_text("def score(text): return 0\n")
    (folder / "empty").mkdir()
    toy_encoder(0).save_pretrained(folder / "encoder")
    toy_tokenizer().save_pretrained(folder / "encoder")
    save(folder / "unnamed", {0: "spam", 1: "ham"})
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    return {
        "missing.py:score": "there is no file",
        "syntax.py:f": "cannot be imported (SyntaxError",
        "names.py:scores": "did you mean score?",
        "names.py:NUMBER": "is int, not a function",
        "names.py": "write names.py:function",
        "narrow.py:score": "would not get the completions",
        "no_such_module_here:score": "cannot be imported (ModuleNotFoundError",
        "./nowhere": "there is no such folder",
        "empty": "config.json is missing",
        "encoder": "is no trained classifier (it has no weights for classifier.",
        "unnamed": "do not tell which are positive",
        "broken": "no sequence-classification model can be loaded",
        "names": "no sequence-classification model can be loaded",
    }


def test_what_cannot_be_loaded_is_one_line_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for spec, expected in _bad_specs(tmp_path).items():
        with pytest.raises(RewardError) as error:
            load_reward(spec, base=tmp_path)
        message = str(error.value)
        assert expected in message, f"{spec}: {message}"
        assert spec in message
        assert "\n" not in message


# --- Measures -----------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    margins, positive = [2.0, -1.0, 0.5, 0.0], [True, False, False, True]
    assert measure.accuracy(margins, positive) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    # Pairs (positive, negative): 2>-1, 2>0.5, 0>-1 are wins, 0<0.5 is not.
    assert measure.auc(margins, positive) == pytest.approx(3 / 4)
    assert measure.auc([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    assert measure.correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert measure.correlation([1, 1], [1, 2]) is None


def test_calibration_by_hand() -> None:
    # P = 0.75 four times, of which half are positive; P = 0.5 once in its own bin, positive.
    margins = [math.log(3)] * 4 + [0.0]
    result = measure.calibration(margins, [True, True, False, False, True])
    assert result["ece"] == pytest.approx(0.8 * 0.25 + 0.2 * 0.5)
    assert [row["texts"] for row in result["bins"]] == [1, 4]
    assert measure.calibration([1000.0, -1000.0], [True, False])["ece"] == pytest.approx(0.0)


def test_human_agreement_by_hand() -> None:
    # Others' means of the first text: 1.5, 0.5, 1; of the second: -2, -2. Rater two of the first
    # text is at the threshold: half right.
    one = measure.human_agreement([(0.0, 2.0, 1.0), (-2.0, -2.0), (1.0,)], 0.0, 0.5)
    assert one is not None
    assert one["accuracy"] == pytest.approx(((0.5 + 1 + 1) / 3 + 1) / 2)
    assert (one["texts"], one["raters"]) == (2, 2.5)
    assert measure.human_agreement([(), ()], 0.0, 0.5) is None


# --- Training helpers ---------------------------------------------------------------------------


def test_length_grouping_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    lengths = [(7 * i) % 23 for i in range(203)]
    sampler = LengthGrouped(lengths, 8, seed=1)
    first = list(sampler)
    torch.manual_seed(5)
    assert first == list(LengthGrouped(lengths, 8, seed=1))
    assert sorted(first) == list(range(203))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthGrouped(lengths, 8, seed=2)) != first
    spreads = [
        max(lengths[i] for i in first[s : s + 8]) - min(lengths[i] for i in first[s : s + 8])
        for s in range(0, 200, 8)
    ]
    assert max(spreads) <= 2  # of 23 lengths; a shuffled order has about 18


def test_a_new_classifier_keeps_a_trained_pooler_and_replaces_an_untrained_one(
    tmp_path: Path,
) -> None:
    encoder = toy_encoder(0)
    assert encoder.pooler is not None
    for bias in (0.0, 0.5):
        encoder.pooler.dense.bias.data.fill_(bias)
        encoder.save_pretrained(tmp_path / str(bias))
    pooler, layer = "bert.pooler.dense.weight", "encoder.layer.1.output.dense.weight"
    model = new_classifier(str(tmp_path / "0.0"), seed=1)
    fresh, trunk = model.state_dict(), encoder.state_dict()
    assert torch.equal(fresh[pooler], torch.eye(32))
    kept = new_classifier(str(tmp_path / "0.5"), seed=1).state_dict()
    assert torch.equal(kept[pooler], trunk["pooler.dense.weight"])
    # Everything else is the encoder's; the head follows the seed and nothing else does.
    assert torch.equal(fresh[f"bert.{layer}"], trunk[layer])
    torch.manual_seed(7)
    again = new_classifier(str(tmp_path / "0.0"), seed=1).state_dict()
    assert torch.equal(fresh["classifier.weight"], again["classifier.weight"])
    other = new_classifier(str(tmp_path / "0.0"), seed=2).state_dict()
    assert not torch.equal(fresh["classifier.weight"], other["classifier.weight"])
    assert find_positive(model.config.id2label or {}) == [1]


def test_a_pairwise_model_learns_the_preference_and_loads_as_a_reward(tmp_path: Path) -> None:
    toy_language_model(0).save_pretrained(tmp_path / "trunk")
    toy_tokenizer().save_pretrained(tmp_path / "trunk")
    pairs = [
        {"prompt": f"the film about {word} is", "chosen": f" {good}", "rejected": f" {bad}"}
        for word in ("love", "war", "jazz", "school", "money", "winter", "ghosts", "family")
        for good, bad in (("wonderful", "awful"), ("brilliant", "dull"))
    ]
    folder = train_pairwise(
        tmp_path / "trunk",
        pairs,
        tmp_path / "out",
        num_train_epochs=6,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    reward = load_reward(str(folder))
    assert pair_accuracy(reward, pairs) == 1.0
    assert pair_accuracy(lambda prompts, completions: [0.0] * len(prompts), pairs) == 0.5
    # It was trained on texts that end with EOS, and is shown them so.
    assert json.loads((folder / "config.json").read_text())["reward_appends_eos"] is True
    assert load_classifier(folder).read.ending == "<eos>"


def test_the_package_does_not_import_the_pipeline() -> None:
    code = (
        "import sys, reward_models, reward_models.training, reward_models.pairwise\n"
        "sys.exit(any(name.split('.')[0] in ('pipeline', 'classic_rl') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_encoder_is_not_mistaken_for_a_classifier() -> None:
    assert isinstance(toy_encoder(0), BertModel)  # the case in _bad_specs relies on it
