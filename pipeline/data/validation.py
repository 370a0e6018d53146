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
from pipeline.data.tally import tell
from pipeline.errors import UserError

Pair = dict[str, Any]


def validation_prompts(
    experiment: Experiment, data: ExperimentData, stage: str = "ppo"
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts for an on-policy method to be evaluated on, and to train on; no prompt is in both.

    The first are ``data.validation_prompts``, so that training is the same with and without
    evaluation. Where own prompts leave too few of them, or other data none at all, the last
    training prompts are given up for it, a quarter at most. Fewer than asked for are told.

    Raises:
        UserError: there is but one training prompt to divide.
    """
    title = stage.upper()
    wanted, held, train = experiment.data.validation_prompts, data.validation_prompts, []
    if not held or experiment.data.prompts_name:
        given_up, train = _give_up(data.train_prompts, wanted - len(held))
        held = [*held, *given_up]
        if not held:
            raise UserError(
                f"{stage}.eval_strategy: a single training prompt leaves none to evaluate on"
            )
        if given_up:
            tell(
                f"{title} is evaluated, and not trained, on {len(given_up)} of the training prompts"
            )
    if len(held) < wanted:
        more = "data.prompts_name" if experiment.data.prompts_name else "data.heldout"
        tell(
            f"{title} is evaluated on {len(held)} prompts, not {wanted} (data.validation_prompts): "
            f"there are no more in {more}"
        )
    return held, train or data.train_prompts


def _give_up(prompts: list[Prompt], count: int) -> tuple[list[Prompt], list[Prompt]]:
    """The last ``count`` different prompts, a quarter of all at most, and the others."""
    different = list({_key(prompt): prompt for prompt in prompts}.values())
    count = min(count, max(1, len(different) // 4), len(different) - 1)
    held = {_key(prompt): prompt for prompt in different[len(different) - count :]}
    return list(held.values()), [prompt for prompt in prompts if _key(prompt) not in held]


def validation_pairs(
    pairs: Sequence[Pair], share: float, seed: int, stage: str = "dpo"
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to evaluate a method on and pairs to train on, in order; all of a prompt on one side.

    Raises:
        UserError: all pairs are of one prompt.
    """
    prompts = list(dict.fromkeys(_key(_prompt(pair)) for pair in pairs))
    if len(prompts) < 2:
        raise UserError(
            f"{stage}.eval_strategy: pairs of a single prompt leave none to evaluate on"
        )
    count = min(len(prompts) - 1, max(1, round(share * len(prompts))))
    held = set(random.Random(seed).sample(prompts, count))
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[_key(_prompt(pair)) not in held].append(pair)
    return sides


def _prompt(pair: Pair) -> Any:
    return pair["prompt"] if "prompt" in pair else pair["prompt_ids"]


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)
