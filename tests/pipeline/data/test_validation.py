"""What the best is chosen by is neither trained on nor what the comparison measures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Experiment, load_experiment
from pipeline.data.splits import load_data
from pipeline.data.tally import listening
from pipeline.data.validation import validation_pairs, validation_prompts
from pipeline.data.words import same_but_for_form
from pipeline.errors import UserError

TOY = {"model_name_or_path": "toy"}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(draw: random.Random, count: int) -> list[dict[str, Any]]:
    """Rated texts of which many begin alike, and some are the same but for their form."""
    rows = []
    for number in range(count):
        beginning = " ".join(draw.choices("abcdef", k=3))
        text = f"{beginning} and then {number - number % 2 * draw.randint(0, 1)} follows it here"
        rows.append({"text": text, "label": number % 2})
    return rows


def demonstrations(draw: random.Random, count: int) -> list[dict[str, Any]]:
    """Prompts with answers; many prompts are asked several times."""
    return [
        {"prompt": f"question {draw.randint(0, count // 2)}?", "completion": f"answer {number}"}
        for number in range(count)
    ]


def talks(draw: random.Random, count: int) -> list[dict[str, Any]]:
    """Prompts that are conversations, some of them twice."""
    asked = [f"question {draw.randint(0, count)}?" for _ in range(count)]
    return [{"prompt": [{"role": "user", "content": text}]} for text in asked]


KINDS: dict[str, tuple[Callable[..., list[dict[str, Any]]], str]] = {
    "toy": (texts, "dataset_name"),
    "texts": (texts, "dataset_name"),
    "demonstrations": (demonstrations, "dataset_name"),
    "own prompts": (talks, "prompts_name"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_no_prompt_and_no_text_is_in_two_parts(kind: str, seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    make, key = KINDS[kind]
    name = "toy" if kind == "toy" else write(tmp_path / "rows.jsonl", make(draw, 260))
    counts = {part: draw.randint(1, 60) for part in ("demonstrations", "heldout", "train_prompts")}
    counts |= {"validation_prompts": draw.randint(1, 40), "eval_prompts": draw.randint(1, 30)}
    section = {"dataset_name": "toy", **counts, "prompt_words": 3, key: name}
    source = "mine.py:score" if kind == "demonstrations" else "sentiment"
    data = {**section, "positive_above": 0.5 if kind == "texts" else 0.0, "neutral_margin": 0.1}
    experiment = Experiment.model_validate(
        {"seed": seed, "model": TOY, "data": data, "reward": {"source": source, "encoder": "toy"}}
    )
    made = load_data(experiment)
    train, held, evaluated = (
        [json.dumps(prompt, sort_keys=True) for prompt in prompts]
        for prompts in (made.train_prompts, made.validation_prompts, made.eval_prompts)
    )
    assert not set(train) & set(held) and not set(train) & set(evaluated)
    assert not set(held) & set(evaluated)
    assert len(train) == counts["train_prompts"] and len(evaluated) == counts["eval_prompts"]
    assert len(set(held)) == len(held) <= counts["validation_prompts"]
    learnt = {same_but_for_form(str(text)) for text in made.demonstrations}
    learnt |= {same_but_for_form(rated.text) for rated in [*made.proxy, *made.gold]}
    assert not learnt & {same_but_for_form(str(text)) for text in made.heldout}
    on, trained = validation_prompts(experiment, made)
    assert len(on) > 0 and not {*map(str, on)} & {*map(str, trained), *map(str, made.eval_prompts)}


def test_prompts_come_from_the_heldout_texts(tiny: Path) -> None:
    experiment = load_experiment(tiny)
    data = load_data(experiment)
    held, train = validation_prompts(experiment, data)
    assert held == data.validation_prompts
    assert train == data.train_prompts  # training is the same with and without evaluation
    assert len(held) == len(set(map(str, held))) > 8
    assert not {*map(str, held)} & {*map(str, train), *map(str, data.eval_prompts)}
    assert all(any(str(text).startswith(str(prompt)) for text in data.heldout) for prompt in held)
    fewer = load_experiment(tiny, ["data.validation_prompts=3"])
    assert load_data(fewer).validation_prompts == held[:3]
    assert load_data(fewer).train_prompts == train


def test_fewer_than_asked_for_are_told(tiny: Path) -> None:
    experiment = load_experiment(tiny)
    data = load_data(experiment)
    with listening() as lines:
        held, _ = validation_prompts(experiment, data)
    assert lines == [
        f"PPO is evaluated on {len(held)} prompts, not 64 (data.validation_prompts): "
        "there are no more in data.heldout"
    ]


def test_own_prompts_give_up_what_is_missing(tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}"} for number in range(100)]
    name = write(tmp_path / "own.jsonl", rows)
    own = [f"data.prompts_name={name}", "data.eval_prompts=10", "data.train_prompts=60"]
    with listening() as lines:
        enough = load_experiment(tiny, [*own, "data.validation_prompts=20"])
        data = load_data(enough)
        assert len(data.validation_prompts) == 20 and len(data.train_prompts) == 60
        assert validation_prompts(enough, data) == (data.validation_prompts, data.train_prompts)
    assert lines == []
    with listening() as lines:
        more = load_experiment(tiny, [*own, "data.validation_prompts=40"])
        data = load_data(more)
        left = data.validation_prompts
        held, train = validation_prompts(more, data)
    assert len(left) == 30 and held == [*left, *data.train_prompts[-10:]]
    assert train == data.train_prompts[:-10]
    assert lines == ["PPO is evaluated, and not trained, on 10 of the training prompts"]


def test_own_prompts_give_some_up(tiny: Path) -> None:
    experiment = load_experiment(tiny, ["data.prompts_name=own.jsonl"])
    made = replace(load_data(load_experiment(tiny)), validation_prompts=[])
    prompts = [[{"role": "user", "content": f"question {i % 40}"}] for i in range(60)]
    held, train = validation_prompts(experiment, replace(made, train_prompts=prompts))
    assert held == prompts[30:40]  # a quarter of the 40 different ones, wherever they are repeated
    assert train == [prompt for prompt in prompts if prompt not in held]
    single = replace(made, train_prompts=[prompts[0]] * 9)
    with pytest.raises(UserError, match="ppo.eval_strategy: a single training prompt"):
        validation_prompts(experiment, single)
    left = replace(single, validation_prompts=[prompts[1]])
    assert validation_prompts(experiment, left) == ([prompts[1]], single.train_prompts)


@pytest.mark.parametrize("key", ["prompt", "prompt_ids"])
def test_pairs_of_a_prompt_stay_together(key: str) -> None:
    prompts = [f"p{i}" if key == "prompt" else [i, 7] for i in range(20)]
    pairs = [{key: prompts[i % 20], "chosen": i} for i in range(60)]
    held, train = validation_pairs(pairs, 0.1, seed=3)
    assert (len(held), len(train)) == (6, 54)
    assert sorted(pair["chosen"] for pair in [*held, *train]) == list(range(60))
    assert not {str(pair[key]) for pair in held} & {str(pair[key]) for pair in train}
    assert validation_pairs(pairs, 0.1, seed=3) == (held, train)
    assert validation_pairs(pairs, 0.1, seed=4) != (held, train)
    assert len(validation_pairs(pairs, 0.99, seed=3)[1]) == 3  # one prompt is left to train on
    with pytest.raises(UserError, match="dpo.eval_strategy: pairs of a single prompt"):
        validation_pairs(pairs[::20], 0.5, seed=3)
