"""Tokens that are made when training asks for them: those that TRL makes, and the same training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import DPOConfig, KTOConfig, SFTConfig

from pipeline.data.demonstrations import read_demonstrations
from pipeline.data.preferences import load_preferences
from pipeline.data.records import RatedText
from pipeline.data.sources import read_rows
from pipeline.data.stored import Stored
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.stages import dpo, kto, sft
from pipeline.stages.later import Later
from pipeline.stages.pair_data import token_pairs
from pipeline.stages.sft import demonstration_dataset, training_rows

KEY = "data.dataset_name"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PAIRS = [
    {"prompt": "the film is" + " a" * (n % 3), "chosen": " warm" * (n + 1), "rejected": f" {n}"}
    for n in range(6)
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(kind: Any, tmp_path: Path, **own: Any) -> Any:
    plain = dict(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[])
    steps = dict(max_steps=3, per_device_train_batch_size=2, logging_steps=1, save_strategy="no")
    return kind(**plain, **steps, gradient_checkpointing=False, disable_tqdm=True, **own)


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "own",
    [{}, {"completion_only_loss": False}, {"max_length": 5}],
    ids=["completion", "whole", "cut"],
)
@pytest.mark.parametrize("talks", [False, True], ids=["texts", "talks"])
def test_demonstrations_are_learnt_as_trl_prepares_them(
    own: dict[str, Any], talks: bool, tmp_path: Path, as_large: Callable[[], None]
) -> None:
    asked = ["the film is", "a plot", "the actor is a long and very dull story with"]
    rows: list[dict[str, Any]] = [{"prompt": p, "completion": " warm"} for p in asked]
    if talks:
        said = [{"role": "assistant", "content": "warm"}]
        rows = [{"messages": [{"role": "user", "content": prompt}, *said]} for prompt in asked]
    name = jsonl(tmp_path / "rows.jsonl", rows)
    tokenizer, arguments = toy_tokenizer(), settings(SFTConfig, tmp_path, **own)
    tokenizer.chat_template = TEMPLATE
    small = read_demonstrations(name, read_rows(name, key=KEY), {})
    trainer = sft._Trainer(
        model=toy_language_model(0),
        args=arguments,
        train_dataset=demonstration_dataset(small, arguments),
        processing_class=tokenizer,
    )
    prepared: Any = trainer.train_dataset
    as_large()
    stored = read_demonstrations(name, read_rows(name, key=KEY), {})
    assert training_rows(small, tokenizer, arguments) is None
    later = training_rows(stored, tokenizer, arguments)
    assert later is not None
    expected = [{name: row[name] for name in ("input_ids", "labels")} for row in prepared]
    left = [row for row in map(later._tokens, later.records) if row is not None]
    assert left == expected and (len(left) < len(asked)) == ("max_length" in own)
    assert len(later) == len(asked) and all(row in expected for row in later)


@pytest.mark.parametrize("limit", [1024, 6])
def test_dpo_learns_the_same_from_a_large_file(
    limit: int, tmp_path: Path, as_large: Callable[[], None]
) -> None:
    name = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    small = Dataset.from_list(list(load_preferences(name)))
    arguments = settings(DPOConfig, tmp_path, max_length=limit)
    given = toy_tokenizer(), arguments
    trainer = dpo.make_trainer(toy_language_model(0), *given, small)
    prepared: Any = trainer.train_dataset
    expected = losses(trainer)
    as_large()
    stored = load_preferences(name)
    assert isinstance(stored, Stored)
    later = dpo.make_trainer(toy_language_model(0), *given, stored)
    assert isinstance(later.train_dataset, Later)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows: Any = later.train_dataset
    found = [[row[name][:limit] for name in names] for row in rows]
    if limit > 6:
        assert found == [[row[name] for name in names] for row in prepared]
        assert losses(later) == pytest.approx(expected, rel=1e-6)
    else:
        assert len(found) == len(PAIRS) and all(prompt and one for prompt, one, _ in found)


def test_kto_learns_the_same_from_a_large_file(
    tmp_path: Path, as_large: Callable[[], None]
) -> None:
    name, tokenizer = jsonl(tmp_path / "pairs.jsonl", PAIRS), toy_tokenizer()
    small = Dataset.from_list(list(load_preferences(name)))
    rows = kto.labelled(token_pairs(small, tokenizer, 64, "kto.max_length"))
    as_large()
    stored = load_preferences(name)
    assert isinstance(stored, Stored)
    later = token_pairs(stored, tokenizer, 64, "kto.max_length")
    arguments = settings(KTOConfig, tmp_path)
    trainer = kto.make_trainer(toy_language_model(0), tokenizer, arguments, later)
    assert list(trainer.train_dataset) == rows  # type: ignore[arg-type]
    assert all(loss > 0 for loss in losses(trainer))


def test_nothing_left_to_learn_is_one_line(tmp_path: Path, as_large: Callable[[], None]) -> None:
    name = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    as_large()
    stored = load_preferences(name)
    assert isinstance(stored, Stored)
    with pytest.raises(UserError, match=r"dpo\.max_length: of .* it leaves nothing to train on"):
        token_pairs(stored, toy_tokenizer(), 1, "dpo.max_length")[0]


def test_a_classifier_learns_rows_that_know_about_how_long_they_are(
    tmp_path: Path, as_large: Callable[[], None]
) -> None:
    from pipeline.config import Experiment
    from pipeline.data import load_data
    from pipeline.stages.reward_training import _Encoded, texts_of

    says = "film is a plot with warm actors and a story"
    texts = [{"text": f"{n} {says[: 40 - n % 3]} ends", "label": n % 2} for n in range(60)]
    tree = dict(positive_above=0.5, demonstrations=4, heldout=4, train_prompts=4, eval_prompts=4)
    name = jsonl(tmp_path / "texts.jsonl", texts)
    made = Experiment.model_validate({"data": {"dataset_name": name, **tree}})
    as_large()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.splits.MOST_SEARCHED", 0)
        rated = texts_of(made, load_data(made), "proxy")
    assert isinstance(rated, Stored)
    encoded = _Encoded(toy_tokenizer(), "hard", 0.5, 16)
    later: Later[RatedText] = Later(rated, encoded.one, "reward.max_length")
    assert list(later) == encoded(list(rated))
    assert later.sizes() == [
        len(json.dumps({"text": t.text, "label": int(t.rating)})) + 1 for t in rated
    ]
