"""Splits that do not leak, and one clear line for every mistake in a data file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Experiment, load_experiment
from pipeline.data import load_data, load_preferences
from pipeline.data.records import RatedText
from pipeline.data.tally import listening
from pipeline.data.toy import toy_texts, toy_tokenizer
from pipeline.data.words import first_words
from pipeline.errors import UserError

SMALL = {"demonstrations": 60, "heldout": 20, "train_prompts": 50, "eval_prompts": 10}


def experiment(
    seed: int = 0,
    reward: dict[str, Any] | None = None,
    model_name: str = "toy",
    seed_of_data: int | None = None,
    **data: Any,
) -> Experiment:
    tree = {"seed": seed, "data": {"dataset_name": "toy", **SMALL, **data}, "reward": reward}
    tree["model"] = {"model_name_or_path": model_name}
    if seed_of_data is not None:
        tree["data"]["seed"] = seed_of_data
    return Experiment.model_validate(tree)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rated_rows(count: int = 200) -> list[dict[str, Any]]:
    return [{"text": text.text, "label": text.rating} for text in toy_texts(count, seed=5)]


def message_of(name: Path | str, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_data(experiment(dataset_name=str(name), **data))
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- Splits ---------------------------------------------------------------------------------------


def texts_of(rated: Sequence[RatedText]) -> set[str]:
    return {text.text for text in rated}


def test_split_sizes_and_determinism():
    data = load_data(experiment())
    assert [len(getattr(data, name)) for name in SMALL] == list(SMALL.values())
    assert data == load_data(experiment())
    assert data.demonstrations != load_data(experiment(seed=1)).demonstrations


def test_runs_of_different_seeds_may_share_their_data() -> None:
    plain = load_data(experiment(3))
    assert load_data(experiment(7, seed_of_data=3)) == plain
    assert load_data(experiment(7)) != plain


@pytest.mark.parametrize(
    ("config", "expected"),
    [("tiny", "83d7c5318631572b"), ("quickstart", "2b8f415b44a81d66")],
)
def test_shipped_configs_keep_their_splits(config, expected, root):
    """Finished runs of the shipped configs stay comparable."""
    data = load_data(load_experiment(root / "configs" / f"{config}.yaml"))
    parts = dataclasses.asdict(data)
    assert len(parts.pop("validation_prompts")) > 8  # made from the held-out texts
    assert {"proxy", "gold"} == set(parts.pop("neutral"))
    for name in ("proxy", "gold", "classifier_test"):
        for text in parts[name]:
            text.pop("batch")
    plain = json.dumps(parts, sort_keys=True)
    assert hashlib.sha256(plain.encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize("seed", range(3))
def test_nothing_held_out_is_trained_on(seed):
    data = load_data(experiment(seed=seed))
    training = set(data.demonstrations) | texts_of(data.proxy) | texts_of(data.gold)
    assert not training & set(data.heldout)
    assert not training & texts_of(data.classifier_test)
    assert not set(data.heldout) & texts_of(data.classifier_test)
    assert not texts_of(data.proxy) & texts_of(data.gold)
    assert not set(map(str, data.train_prompts)) & set(map(str, data.eval_prompts))
    assert len(set(map(str, data.eval_prompts))) == len(data.eval_prompts)
    assert all(
        len(str(prompt).split()) == 4 for prompt in [*data.train_prompts, *data.eval_prompts]
    )


def test_evaluation_texts_are_in_no_training_split(tmp_path):
    rows = [
        {"text": f"remark number {number} says that it is good", "label": number % 2 * 2 - 1}
        for number in range(150)
    ]  # three words tell which text it is
    path = write_jsonl(tmp_path / "remarks.jsonl", rows)
    data = load_data(experiment(dataset_name=str(path), prompt_words=3))
    rated = [text.text for text in [*data.proxy, *data.gold, *data.classifier_test]]
    used = {first_words(str(text), 3) for text in [*data.demonstrations, *data.heldout, *rated]}
    assert not used & set(map(str, data.eval_prompts))


def test_the_classifier_trains_on_clear_texts_and_is_tested_on_all():
    data = load_data(experiment(neutral_margin=1.0))
    assert all(abs(text.rating) >= 1.0 for text in [*data.proxy, *data.gold])
    assert any(abs(text.rating) < 1.0 for text in data.classifier_test)
    assert 0.8 < len(data.proxy) / len(data.gold) < 1.25


def test_duplicates_are_removed_before_splitting(tmp_path):
    rows = rated_rows(150)
    shouted = [{**row, "text": row["text"].upper() + " !"} for row in rows]
    path = write_jsonl(tmp_path / "twice.jsonl", rows + shouted)
    data = load_data(experiment(dataset_name=str(path), demonstrations=50))
    training = [*data.demonstrations, *texts_of(data.proxy), *texts_of(data.gold)]
    held = [*data.heldout, *texts_of(data.classifier_test)]
    assert not {text.lower().strip(" !") for text in training} & {
        text.lower().strip(" !") for text in held
    }


def test_lengths_are_respected():
    data = load_data(experiment(min_words=12, max_words=16))
    assert {len(str(text).split()) for text in [*data.demonstrations, *data.heldout]} <= set(
        range(12, 17)
    )


def test_long_texts_are_counted_or_cut(tmp_path):
    rows = [{"text": f"{n} " + f"and {n} and on " * (2 + n % 3), "label": n % 2} for n in range(90)]
    path = write_jsonl(tmp_path / "long.jsonl", rows)  # 9, 13 or 17 words
    limits = {"max_words": 13, "demonstrations": 20, "train_prompts": 20, "positive_above": 0.5}
    own = {"source": "my_rewards:length"}
    with listening() as lines:
        load_data(experiment(dataset_name=str(path), reward=own, **limits))
    assert lines == [
        f"{path}: 30 of 90 texts left out: above data.max_words (13 words; data.long_texts=cut"
        " cuts them) (30)"
    ]
    with listening() as lines:
        data = load_data(experiment(dataset_name=str(path), reward=own, long_texts="cut", **limits))
    assert lines == [f"{path}: 30 of 90 texts cut at data.max_words (13 words)"]
    words = {len(str(text).split()) for text in [*data.demonstrations, *data.heldout]}
    assert words == {9, 13}
    message = message_of(path, max_words=13, demonstrations=60, positive_above=0.5)
    assert "60 different texts of 8 to 13 words (left out above data.max_words (13 words" in message


def test_texts_without_blanks(tmp_path):
    places, things = "东西南北上下左右前后", "水壶台灯帐篷耳机电脑"
    rows = [
        {"text": f"我在{a}边买的{b}质量很好，声音{a}也不大，大家都喜欢{n}次。", "label": n % 2}
        for n, (a, b) in enumerate((a, b) for a in places for b in things)
    ]
    path = write_jsonl(tmp_path / "zh.jsonl", rows)
    few = {"demonstrations": 30, "heldout": 5, "train_prompts": 20, "positive_above": 0.5}
    data = load_data(experiment(dataset_name=str(path), **few))
    assert all(len(str(prompt)) == 8 for prompt in data.train_prompts)


def test_lengths_in_tokens():
    data = load_data(experiment(unit="tokens", min_words=9, max_words=30, prompt_words=5))
    tokenizer = toy_tokenizer()
    lengths = {len(tokenizer(str(text))["input_ids"]) for text in data.demonstrations}
    assert min(lengths) >= 9 and max(lengths) <= 30
    assert {len(tokenizer(str(prompt))["input_ids"]) for prompt in data.train_prompts} == {5}


def test_labels_that_are_words(tmp_path):
    rows = [{**row, "label": ["bad", "good"][row["label"] > 0]} for row in rated_rows()]
    path = write_jsonl(tmp_path / "words.jsonl", rows)
    assert "data.label_values={bad: …, good: …}" in message_of(path)
    values = {"bad": -1.0, "good": 1.0}
    data = load_data(experiment(dataset_name=str(path), label_values=values))
    assert {text.rating for text in data.proxy} == {-1.0, 1.0}
    # What is a number already needs none; what YAML would read otherwise is put in quotes.
    given = ["", "yes", "a: b", "3", "2.5", "3 stars"]
    mixed = [{**row, "label": given[n % 6]} for n, row in enumerate(rated_rows())]
    offered = 'data.label_values={"": …, 3 stars: …, "a: b": …, "yes": …}'
    assert offered in message_of(write_jsonl(tmp_path / "mixed.jsonl", mixed))


def test_star_ratings_name_the_limit_to_set(tmp_path):
    rows = [{**row, "label": 1 + number % 5} for number, row in enumerate(rated_rows())]
    message = message_of(write_jsonl(tmp_path / "stars.jsonl", rows))
    assert message.endswith("set data.positive_above=3 for labels from 1 to 5")


def test_a_header_that_looks_like_data_is_named(tmp_path):
    path = tmp_path / "raw.csv"
    path.write_text("0,17,the film is good\n4,18,the film is bad\n", encoding="utf-8")
    assert "the first line looks like data: put a header line" in message_of(path)


def test_first_words_keeps_the_spacing():
    assert first_words("  a\tb\n c d", 3) == "  a\tb\n c"
    assert first_words("a b", 5) == "a b"
    assert first_words("", 5) == ""


def test_labels_are_not_needed_when_no_classifier_is_trained(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("\n\n".join(row["text"] for row in rated_rows()) + "\n", encoding="utf-8")
    own = {"source": "my_rewards:length"}
    data = load_data(experiment(dataset_name=str(path), reward=own))
    assert len(data.demonstrations) == 60
    assert data.proxy == data.gold == data.classifier_test == []
    assert "line 1: no column 'label'; there are 'text'" in message_of(path)


# --- Own prompts and preferences ------------------------------------------------------------------


def chat(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("wrap", [str, chat])
def test_own_prompts(wrap, tmp_path):
    rows = [{"prompt": wrap(f"question {number}")} for number in range(60)]
    path = write_jsonl(tmp_path / "prompts.jsonl", rows + rows)
    data = load_data(experiment(prompts_name=str(path)))
    assert len(data.eval_prompts) == 10 and len(data.train_prompts) == 50
    shown = [json.dumps(prompt) for prompt in [*data.eval_prompts, *data.train_prompts]]
    assert sorted(shown) == sorted(json.dumps(row["prompt"]) for row in rows)
    assert len(data.demonstrations) == 60
    with pytest.raises(UserError, match="60 different prompts.*lower data.train_prompts"):
        load_data(experiment(prompts_name=str(path), train_prompts=51))


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"question {number}" for number in range(60)), encoding="utf-8")
    data = load_data(experiment(prompts_name=str(path)))
    assert set(map(str, data.eval_prompts)) <= {f"question {number}" for number in range(60)}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (3, "must be text or a list of messages, found 3"),
        (" ", "column 'prompt' is empty"),
        ([], "column 'prompt' is empty"),
        (["hello"], "a message needs role and content"),
        ([{"role": "user"}], "a message needs role and content"),
        ([{"role": "assistant", "content": "x"}], "must not end with the assistant's message"),
    ],
)
def test_bad_prompts(prompt, expected, tmp_path):
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "fine"}, {"prompt": prompt}])
    with pytest.raises(UserError) as caught:
        load_data(experiment(prompts_name=str(path)))
    assert f"{path}, line 2: " in str(caught.value) and expected in str(caught.value)


def test_preferences(tmp_path):
    answer = [{"role": "assistant", "content": "yes"}]
    refusal = [{"role": "assistant", "content": "no"}]
    rows = [
        {"prompt": "is it", "chosen": " good", "rejected": " bad", "score": 1},
        {"prompt": chat("is it?"), "chosen": answer, "rejected": refusal},
        {"chosen": chat("is it?") + answer, "rejected": chat("is it?") + refusal},
    ]
    pairs = load_preferences(str(write_jsonl(tmp_path / "pairs.jsonl", rows[:1])))
    assert pairs == [{"prompt": "is it", "chosen": " good", "rejected": " bad"}]
    pairs = load_preferences(str(write_jsonl(tmp_path / "talks.jsonl", rows[1:])))
    assert pairs == [rows[1], rows[1]]
    with pytest.raises(UserError, match="line 2: not text as in .*line 1"):
        load_preferences(str(write_jsonl(tmp_path / "both.jsonl", rows)))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected'; there are 'prompt', 'chosen'"),
        ({"prompt": "a", "chosen": "b", "rejected": 4}, "column 'rejected' must be text"),
        ({"prompt": "a", "chosen": "b", "rejected": chat("c")}, "must both be text or messages"),
        ({"chosen": "b", "rejected": chat("c")}, "must both be text or messages"),
    ],
)
def test_bad_preferences(row, expected, tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", [row])
    with pytest.raises(UserError) as caught:
        load_preferences(str(path))
    assert f"{path}, line 1: " in str(caught.value) and expected in str(caught.value)
