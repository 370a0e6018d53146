"""What is kept out of training to be evaluated on while it goes on, and to choose the best by.

The comparison's own evaluation prompts are never among it: what was chosen by them would look
better on them than it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipeline.config import Experiment
from pipeline.data.records import Prompt, number_of
from pipeline.data.splits import ExperimentData
from pipeline.data.stored import Stored, taken
from pipeline.data.tally import tell
from pipeline.errors import UserError

Pair = dict[str, Any]
T = TypeVar("T")


def validation_prompts(
    experiment: Experiment, data: ExperimentData, stage: str = "ppo"
) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """Prompts for an on-policy method to be evaluated on, and to train on; no prompt is in both.

    The first are ``data.validation_prompts``, so that training is the same with and without
    evaluation. Where own prompts leave too few of them, or other data none at all, the last
    training prompts are given up for it, a quarter at most. Fewer than asked for are told.

    Raises:
        UserError: there is but one training prompt to divide.
    """
    title = stage.upper()
    wanted, held = experiment.data.validation_prompts, data.validation_prompts
    train: Sequence[Prompt] = []
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


def _give_up(prompts: Sequence[Prompt], count: int) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """The last ``count`` different prompts, a quarter of all at most, and the others."""
    keys = _keys(prompts, lambda prompt: prompt)
    last = {key: place for place, key in enumerate(keys)}
    different = list(last)
    count = min(count, max(1, len(different) // 4), len(different) - 1)
    held = set(different[len(different) - count :])
    given_up = [last[key] for key in different[len(different) - count :]]
    return taken(prompts, given_up), taken(
        prompts, [p for p, k in enumerate(keys) if k not in held]
    )


def validation_pairs(
    pairs: Sequence[Pair], share: float, seed: int, stage: str = "dpo"
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """Pairs to evaluate a method on and pairs to train on, in order; all of a prompt on one side.

    Raises:
        UserError: all pairs are of one prompt.
    """
    keys = _keys(pairs, _prompt)
    prompts = list(dict.fromkeys(keys))
    if len(prompts) < 2:
        raise UserError(
            f"{stage}.eval_strategy: pairs of a single prompt leave none to evaluate on"
        )
    count = min(len(prompts) - 1, max(1, round(share * len(prompts))))
    held = set(random.Random(seed).sample(prompts, count))
    sides: tuple[list[int], list[int]] = ([], [])
    for place, key in enumerate(keys):
        sides[key not in held].append(place)
    return taken(pairs, sides[0]), taken(pairs, sides[1])


def _prompt(pair: Pair) -> Any:
    return pair["prompt"] if "prompt" in pair else pair["prompt_ids"]


def _keys(items: Sequence[T], prompt_of: Callable[[T], Any]) -> list[int]:
    """By which the items' prompts are known, without reading stored ones again."""
    if isinstance(items, Stored) and items.knows("prompt"):
        return items.column("prompt").tolist()
    return [number_of(prompt_of(item)) for item in items]
