"""What is kept out of training to be evaluated on while it goes on, and to choose the best by.

The comparison's own evaluation prompts are never among it: what was chosen by them would look
better on them than it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from pipeline.config import Experiment
from pipeline.data.records import Prompt
from pipeline.data.splits import ExperimentData
from pipeline.data.words import Unit, unit_of
from pipeline.errors import UserError

Pair = dict[str, Any]


def validation_prompts(
    experiment: Experiment, data: ExperimentData
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts for PPO to be evaluated on, and those to train on; no prompt is in both.

    The first are the beginnings of the held-out texts, so that training is the same with and
    without evaluation. Own prompts have none held out: there the last training prompts are given
    up for it, a quarter at most.

    Raises:
        UserError: there is but one training prompt to divide.
    """
    wanted, train = experiment.data.eval_prompts, data.train_prompts
    if experiment.data.prompts_name is None:
        used = {_key(prompt) for prompt in [*train, *data.eval_prompts]}
        held: dict[str, Prompt] = {}
        unit = unit_of(experiment)
        for item in data.heldout:
            prompt = _beginning(item, unit, experiment.data.prompt_words)
            if len(held) < wanted and _key(prompt) not in used:
                held.setdefault(_key(prompt), prompt)
        if held:
            return list(held.values()), train
    distinct = list({_key(prompt): prompt for prompt in train}.values())
    count = min(wanted, max(1, len(distinct) // 4))
    if len(distinct) < 2:
        raise UserError("ppo.eval_strategy: a single training prompt leaves none to evaluate on")
    held = {_key(prompt): prompt for prompt in distinct[-count:]}
    return list(held.values()), [prompt for prompt in train if _key(prompt) not in held]


def validation_pairs(
    pairs: Sequence[Pair], share: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to evaluate DPO on and pairs to train on, in order; all of a prompt on one side.

    Raises:
        UserError: all pairs are of one prompt.
    """
    prompts = list(dict.fromkeys(_key(_prompt(pair)) for pair in pairs))
    if len(prompts) < 2:
        raise UserError("dpo.eval_strategy: pairs of a single prompt leave none to evaluate on")
    count = min(len(prompts) - 1, max(1, round(share * len(prompts))))
    held = set(random.Random(seed).sample(prompts, count))
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[_key(_prompt(pair)) not in held].append(pair)
    return sides


def _beginning(item: Any, unit: Unit, count: int) -> Prompt:
    """The prompt of a held-out text, or of a demonstration that has one."""
    return unit.first(item, count) if isinstance(item, str) else item.prompt


def _prompt(pair: Pair) -> Any:
    return pair["prompt"] if "prompt" in pair else pair["prompt_ids"]


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)
