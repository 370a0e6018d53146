"""The pairs that a method learns from, as tokens, and what it made of them.

Which of a pair's two completions became likelier is measured the same way for every method that
learns from pairs, whatever its loss: by the policy's log-ratio to π_ref, DPO's implicit reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from common.files import write_json
from pipeline.config import Experiment
from pipeline.data import load_preferences
from pipeline.data.stored import Stored
from pipeline.data.validation import validation_pairs
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.models import load_checkpoint
from pipeline.lm.paths import completion_nll
from pipeline.output.console import is_main_process, say
from pipeline.output.policies import policy_folder
from pipeline.stages.cost import write_cost
from pipeline.stages.later import Later
from pipeline.stages.preferences import make_pairs, pairs_cost
from pipeline.stages.tokens import learnt_tokens
from pipeline.stages.training import evaluates

Pair = dict[str, Any]
TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
PREFERENCE = "preference.json"
_MEASURED = 256
"""Pairs that are measured at the end: a share is then known to 0.03."""


def preference_dataset(
    experiment: Experiment,
    stage: str,
    row: Callable[[Experiment, Pair], Pair] | None = None,
) -> Dataset | Stored[Pair]:
    """The user's own pairs (text, TRL's format), or pairs sampled from π_ref (tokens).

    Own pairs of a large data set stay where they are.

    Args:
        row: what training needs of a pair; its tokens when left out.

    Raises:
        UserError: sampling gave no pair of different completions.
    """
    data = experiment.data
    if data.preferences_name is not None:
        own = load_preferences(data.preferences_name, data.column_names(), data.train_split)
        return own if isinstance(own, Stored) else Dataset.from_list(list(own))
    pairs = make_pairs(experiment, stage)
    if not pairs:
        raise UserError(
            f"{experiment.called(stage)}: every sampled pair holds the same completion "
            "twice; raise pairs.max_pairs or generation.max_new_tokens"
        )
    of = row or (lambda _, pair: {key: pair[key] for key in TOKENS})
    return Dataset.from_list([of(experiment, pair) for pair in pairs])


def divided(
    experiment: Experiment,
    stage: str,
    pairs: Dataset | Stored[Pair],
    arguments: TrainingArguments,
) -> tuple[Dataset | Stored[Pair], Dataset | Stored[Pair] | None]:
    """Pairs to train on and those to evaluate on: none, unless ``arguments`` ask for it."""
    if not evaluates(arguments):
        return pairs, None
    share = getattr(experiment, stage).eval_share
    if isinstance(pairs, Stored):
        held, rest = validation_pairs(pairs, share, experiment.seed, stage)
        return cast("Stored[Pair]", rest), cast("Stored[Pair]", held)
    held, rest = validation_pairs(pairs.to_list(), share, experiment.seed, stage)
    return Dataset.from_list(list(rest)), Dataset.from_list(list(held))


def token_pairs(
    pairs: Dataset | Stored[Pair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    key: str,
) -> Sequence[Pair]:
    """Pairs as tokens: those that were sampled as they are, the user's own as TRL writes them.

    Tokens of a large data set's pairs are made as they are asked for.

    Args:
        max_length: tokens of prompt and completion, behind which is cut; pairs of which nothing
            is left of a completion are left out. key: its name, for errors.

    Raises:
        UserError: no pair is left.
    """
    tokens = _Tokens(tokenizer, max_length)
    if isinstance(pairs, Stored):
        return Later(pairs, tokens, key)
    made = [row for pair in pairs if (row := tokens(cast("Pair", pair))) is not None]
    if not made:
        raise UserError(f"{key}: it leaves nothing of any answer to train on; raise it")
    return made


_SIDES = ("chosen", "rejected")


class _Tokens:
    """Makes a pair's tokens, cut behind ``max_length``; None where an answer has none left."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self._tokenizer, self._limit = tokenizer, max_length

    def __call__(self, pair: Pair) -> Pair | None:
        if "prompt_ids" in pair:
            rows = {name: list(pair[name]) for name in TOKENS}
        else:
            rows = _own(self._tokenizer, pair)
        room = (self._limit or len(rows["prompt_ids"]) + 10**9) - len(rows["prompt_ids"])
        sides = {f"{side}_ids": rows[f"{side}_ids"][: max(0, room)] for side in _SIDES}
        return {"prompt_ids": rows["prompt_ids"], **sides} if all(sides.values()) else None


def shown_first(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """What a trainer is made with: of pairs that are made into tokens later the first alone.

    It then learns from what :func:`learn_later` gives it.
    """
    return pairs[:1] if isinstance(pairs, Later) else pairs


def learn_later(trainer: Any, rows: Sequence[Any], held: Sequence[Any] | None) -> None:
    """Give the trainer the rows of a large data set, which it was not made with."""
    if isinstance(rows, Later):
        trainer.train_dataset = rows
    if isinstance(held, Later):
        trainer.eval_dataset = held


def _own(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> dict[str, list[int]]:
    """Tokens of a pair of texts or of messages; the prompt ends where the first answer begins."""
    learnt = {side: learnt_tokens(tokenizer, pair["prompt"], pair[side]) for side in _SIDES}
    start = min(begin for begin, _ in learnt.values())
    prompt = learnt["chosen"][1][:start]
    return {"prompt_ids": prompt} | {f"{s}_ids": whole[start:] for s, (_, whole) in learnt.items()}


def finish(
    experiment: Experiment, stage: str, train: Sequence[Pair], held: Sequence[Pair] | None
) -> None:
    """Write a finished stage's ``preference.json`` and ``cost.json``, on one process.

    Args:
        train, held: pairs as tokens; those held out are measured where there are any.
    """
    own = experiment.data.preferences_name is not None
    spent = {"reward_queries": 0, "completions": 0, "tokens": 0}
    write_cost(experiment, stage, **(spent if own else pairs_cost(experiment, stage)))
    if not is_main_process():
        return
    pairs = held or train
    pairs = pairs[: len(pairs) : max(1, len(pairs) // _MEASURED)][:_MEASURED]
    logps = []
    try:
        for folder in (experiment.stage_dir("sft"), experiment.stage_dir(stage)):
            model, _ = load_checkpoint(policy_folder(folder), section=experiment.model)
            logps.append(_logps(model, pairs))
            del model
    except torch.OutOfMemoryError:  # beside the trainer; the training itself is done
        say(f"warning: {folder.name}: no memory to measure its pairs; there is no {PREFERENCE}")
        return
    measured = preference(*logps)
    about = {"pairs": len(pairs), "held_out": held is not None}
    write_json(experiment.stage_dir(stage) / PREFERENCE, measured | about)


@torch.no_grad()
def _logps(model: nn.Module, pairs: Sequence[Pair]) -> np.ndarray:
    """log π(y|x) of chosen and rejected completions, ``(2, P)``, nats."""
    sides = [
        [Completion("", tuple(p["prompt_ids"]), tuple(p[f"{side}_ids"]), "", True) for p in pairs]
        for side in _SIDES
    ]
    return -np.array(completion_nll(model, [c for side in sides for c in side])).reshape(2, -1)


def preference(start: np.ndarray, end: np.ndarray) -> dict[str, float]:
    """What training did to pairs, of their log-probabilities ``(2, P)`` under π_ref and policy.

    Returns:
        ``accuracy``, the share of pairs whose chosen completion gained more than the rejected
        one; ``margin``, by how much on average; and both sides' mean log-probabilities before and
        after, in nats a completion. DPO's losses lower the chosen one's too (Razin et al. 2024,
        arXiv 2410.08847), which is why both are kept.
    """
    gains = end - start
    chosen, rejected = gains
    made = {
        "accuracy": float((chosen > rejected).mean() + 0.5 * (chosen == rejected).mean()),
        "margin": float((chosen - rejected).mean()),
    }
    for place, side in enumerate(_SIDES):
        made[f"{side}_logp_start"] = float(start[place].mean())
        made[f"{side}_logp_end"] = float(end[place].mean())
    return made
