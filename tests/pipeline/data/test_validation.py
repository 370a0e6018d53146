"""What the best is chosen by is neither trained on nor what the comparison measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import load_experiment
from pipeline.data.splits import load_data
from pipeline.data.validation import validation_pairs, validation_prompts
from pipeline.errors import UserError


def test_prompts_come_from_the_heldout_texts(tiny: Path) -> None:
    experiment = load_experiment(tiny)
    data = load_data(experiment)
    held, train = validation_prompts(experiment, data)
    assert train == data.train_prompts  # training is the same with and without evaluation
    assert len(held) == len(set(map(str, held))) > 8
    assert not {*map(str, held)} & {*map(str, train), *map(str, data.eval_prompts)}
    assert all(any(str(text).startswith(str(prompt)) for text in data.heldout) for prompt in held)
    fewer = load_experiment(tiny, ["data.eval_prompts=3"])
    assert len(validation_prompts(fewer, load_data(fewer))[0]) == 3


def test_own_prompts_give_some_up(tiny: Path) -> None:
    experiment = load_experiment(tiny, ["data.prompts_name=own.jsonl"])
    data = load_data(load_experiment(tiny))
    prompts = [[{"role": "user", "content": f"question {i % 40}"}] for i in range(60)]
    held, train = validation_prompts(experiment, replace(data, train_prompts=prompts))
    assert held == prompts[30:40]  # a quarter of the 40 different ones, wherever they are repeated
    assert train == [prompt for prompt in prompts if prompt not in held]
    with pytest.raises(UserError, match="ppo.eval_strategy: a single training prompt"):
        validation_prompts(experiment, replace(data, train_prompts=[prompts[0]] * 9))


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
