"""Classifiers and pairwise models on tiny random trunks of many kinds: trained, scaled, loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
    TrainingArguments,
)

from pipeline.data.toy import toy_texts, toy_tokenizer
from reward_models import RewardError, load_reward
from reward_models.adapters import (
    load_adapter_classifier,
    new_adapter_classifier,
    save_adapter_classifier,
)
from reward_models.calibration import TEMPERATURE, calibrate, fit_temperature
from reward_models.pairwise import Grouped, Shared, pair_accuracy, train_pairwise
from reward_models.sentiment import SequenceClassifier
from reward_models.training import classifier_trainer, encode, new_classifier

TOKENS = len(toy_tokenizer())
ENCODER: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DECODER: dict[str, Any] = {**ENCODER, "num_key_value_heads": 2, "eos_token_id": 0}
GPT2 = GPT2Config(vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=0)
MODERN = ModernBertConfig(**ENCODER, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
TRUNKS = {
    "bert": BertConfig(**ENCODER),
    "roberta": RobertaConfig(**ENCODER, bos_token_id=2, eos_token_id=3),
    "deberta": DebertaV2Config(**ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": MODERN,
    "distilbert": DistilBertConfig(
        vocab_size=TOKENS, dim=32, hidden_dim=48, n_layers=2, n_heads=4, pad_token_id=0
    ),
    "gpt2": GPT2,
    "llama": LlamaConfig(**DECODER),
}
TEXTS = toy_texts(96, seed=1)
WORDS = [text.text for text in TEXTS]
PAIRS = [
    {"prompt": f"the film about {word} is", "chosen": f" {good}", "rejected": f" {bad}"}
    for word in ("love", "war", "jazz", "school", "money", "winter", "ghosts", "family")
    for good, bad in (("wonderful", "awful"), ("brilliant", "dull"))
]
QUIET: dict[str, Any] = {
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random trunk of each kind in a folder, with the toy tokenizer, which frames no text."""
    folder = tmp_path_factory.mktemp("trunks")
    for name, config in TRUNKS.items():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder / name)
        toy_tokenizer().save_pretrained(folder / name)
    return folder


def trained(trunk: Path, targets: Sequence[Any], outputs: int, folder: Path, **options: Any) -> Any:
    """A model of so many outputs after some steps on the toy's texts, and its tokenizer."""
    model, tokenizer = new_classifier(str(trunk), 0, outputs), AutoTokenizer.from_pretrained(trunk)
    model.config.pad_token_id = tokenizer.pad_token_id
    options = {"num_train_epochs": 6, "per_device_train_batch_size": 8, **options}
    arguments = TrainingArguments(str(folder), learning_rate=3e-3, **QUIET, **options)
    rows = encode(tokenizer, WORDS, targets, 64)
    trainer = classifier_trainer(model, tokenizer, arguments, rows, rows)
    trainer.train()
    return model, tokenizer, trainer


@pytest.mark.parametrize("name", TRUNKS)
def test_any_trunk_learns_is_calibrated_and_comes_back_the_same(
    trunks: Path, tmp_path: Path, name: str
) -> None:
    targets = [text.rating > 0 for text in TEXTS]
    model, tokenizer, _ = trained(trunks / name, targets, 2, tmp_path, num_train_epochs=8)
    before = np.array(SequenceClassifier(model, tokenizer).score(WORDS))
    # It has seen these texts; chance is 0.5 give or take 0.05.
    assert np.mean((before > 0) == targets) > 0.7
    calibrate(model, 2.5)
    model.save_pretrained(tmp_path / "made")
    tokenizer.save_pretrained(tmp_path / "made")
    after = load_reward(str(tmp_path / "made"), format="text")([""] * len(WORDS), WORDS)
    np.testing.assert_allclose(after, before / 2.5, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TRUNKS)
def test_any_trunk_learns_from_pairs(trunks: Path, tmp_path: Path, name: str) -> None:
    options = {**QUIET, "num_train_epochs": 8, "per_device_train_batch_size": 8}
    folder = train_pairwise(
        trunks / name, PAIRS, tmp_path, learning_rate=5e-3, gradient_checkpointing=False, **options
    )
    assert pair_accuracy(load_reward(str(folder)), PAIRS) > 0.8


def test_soft_labels_are_cross_entropy_against_the_share(trunks: Path, tmp_path: Path) -> None:
    share = [0.0, 0.25, 0.5, 1.0] * 24
    model, _, trainer = trained(trunks / "bert", share, 2, tmp_path, max_steps=1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    targets = batch["labels"].float()
    loss = trainer.compute_loss(model.eval(), dict(batch))
    with torch.no_grad():
        logs = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.log_softmax(-1)
    expected = -(targets * logs[:, 1] + (1 - targets) * logs[:, 0]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_shares_of_0_and_1_are_the_hard_labels(trunks: Path, tmp_path: Path) -> None:
    targets = [text.rating > 0 for text in TEXTS]
    options: dict[str, Any] = {"max_steps": 6, "gradient_accumulation_steps": 2}
    hard, tokenizer, _ = trained(trunks / "bert", targets, 2, tmp_path, **options)
    soft, _, _ = trained(trunks / "bert", [float(t) for t in targets], 2, tmp_path, **options)
    one, other = (SequenceClassifier(m, tokenizer).score(WORDS[:8]) for m in (hard, soft))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_single_output_learns_the_mean(trunks: Path, tmp_path: Path) -> None:
    ratings = [text.rating for text in TEXTS]
    model, tokenizer, trainer = trained(trunks / "bert", ratings, 1, tmp_path, num_train_epochs=20)
    assert model.config.problem_type == "regression"
    scores = SequenceClassifier(model, tokenizer, format="text").score(WORDS)
    assert np.corrcoef(scores, ratings)[0, 1] > 0.6
    assert np.std(scores) == pytest.approx(np.std(ratings), rel=0.5)  # in points, as they are
    sides = float(np.mean((np.array(scores) > 0) == (np.array(ratings) > 0)))
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(sides)


# --- Temperature ----------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_one_that_made_the_labels(truth: float) -> None:
    """Labels drawn from σ(margin / T): the fit finds T within its standard error (about 3 %)."""
    draw = np.random.default_rng(0)
    margins = draw.normal(0, 3, 20_000)
    positive = draw.random(20_000) < 1 / (1 + np.exp(-margins / truth))
    assert fit_temperature(margins.tolist(), positive.tolist()) == pytest.approx(truth, rel=0.1)


def test_a_temperature_stays_within_sense() -> None:
    assert fit_temperature([1.0, -1.0], [True, False]) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature([1.0, -1.0], [False, True]) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match="no texts"):
        fit_temperature([], [])


def test_adapters_over_a_language_model_are_calibrated_too(tmp_path: Path) -> None:
    from pipeline.data.toy import toy_language_model

    toy_language_model(0).save_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["v_proj"])
    model = new_adapter_classifier(tmp_path / "base", lora, torch.float32, 0)
    model.config.pad_token_id = 0
    tokenizer = toy_tokenizer()
    before = SequenceClassifier(model, tokenizer, format="text").score(WORDS[:8])
    calibrate(model, 0.5)
    save_adapter_classifier(model, tmp_path / "made")
    again = load_adapter_classifier(tmp_path / "made", tmp_path / "base")
    after = SequenceClassifier(again, tokenizer, format="text").score(WORDS[:8])
    np.testing.assert_allclose(after, np.array(before) * 2, rtol=1e-4)
    assert getattr(again.get_base_model().config, TEMPERATURE) == 0.5


def test_logits_that_no_weights_scale_are_refused() -> None:
    class Squashed(torch.nn.Module):
        """A head behind which something else happens."""

        def __init__(self) -> None:
            super().__init__()
            self.config = BertConfig(**ENCODER)
            self.head = torch.nn.Linear(4, 2)
            self.device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            made = BertConfig()
            made.logits = torch.tanh(self.head(torch.ones(len(input_ids), 4))) + 1
            return made

    with pytest.raises(RewardError, match="not its last layer's output"):
        calibrate(Squashed(), 0.5)  # type: ignore[arg-type]


# --- Pairs ----------------------------------------------------------------------------------------


def test_the_pairs_of_a_group_are_neighbours_in_every_epoch() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    sampler = Grouped(groups, seed=3)
    orders = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(6))
        runs = [groups[index] for index in order]
        assert len([1 for one, other in zip(runs, runs[1:], strict=False) if one != other]) == 2
        orders.append(tuple(order))
    assert len(set(orders)) > 2
    assert list(Grouped(groups, 3)) == list(orders[0])


def test_a_text_of_several_pairs_is_read_once() -> None:
    pairs = [
        {"chosen_ids": [5, 6, 7], "rejected_ids": [8], "margin": 1.0},
        {"chosen_ids": [9, 0], "rejected_ids": [5, 6, 7], "margin": 2.0},
    ]
    batch = Shared(pad=0)(pairs)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 0, 0], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch["chosen"].tolist() == [0, 1] and batch["rejected"].tolist() == [2, 0]
    assert batch["margin"].tolist() == [1.0, 2.0]


def test_margins_and_centring_are_in_the_loss(trunks: Path, tmp_path: Path) -> None:
    from trl import RewardConfig

    from reward_models.pairwise import encode_pairs, pairwise_trainer, ready_to_read

    model, tokenizer = new_classifier(str(trunks / "bert"), 0, 1), toy_tokenizer()
    ready_to_read(model, tokenizer, talks=False)
    rows = encode_pairs(model, tokenizer, [{**p, "margin": 2} for p in PAIRS], 64)
    arguments = RewardConfig(
        str(tmp_path), center_rewards_coefficient=0.5, gradient_checkpointing=False, **QUIET
    )
    trainer = pairwise_trainer(model, tokenizer, arguments, rows, [])
    batch = trainer.data_collator(rows)
    model.eval()
    loss = trainer.compute_loss(model, dict(batch)).item()
    reward = SequenceClassifier(model, tokenizer, format="text")
    score = {s: np.array(reward([p["prompt"] for p in PAIRS], [p[s] for p in PAIRS]))
             for s in ("chosen", "rejected")}  # fmt: skip
    apart = score["chosen"] - score["rejected"] - 2
    expected = np.mean(np.logaddexp(0, -apart))
    expected += 0.5 * np.mean((score["chosen"] + score["rejected"]) ** 2)
    assert math.isclose(loss, expected, rel_tol=1e-4)
