"""ORPO, CPO and SimPO, which learn from pairs and have no reference: on TRL's trainers.

None of them knows KL(π‖π_ref): none has an optimum at our β, and the ``beta`` of their sections is
a setting of their own (ORPO's weight of the odds ratio, the others' slope of the loss), for which
the top-level beta does not stand in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.config import Experiment
from pipeline.lm.models import base_of
from pipeline.lm.positions import cut_length
from pipeline.stages.later import Later
from pipeline.stages.pair_data import (
    Pair,
    divided,
    finish,
    learn_later,
    preference_dataset,
    shown_first,
    token_pairs,
)
from pipeline.stages.training import fit, load_trainable_sft, save_trained, stage_arguments


class TokenPairs:
    """Makes a TRL trainer of before its tokenised data sets take the tokens as they are."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """The row itself, which :func:`rows_of` has written."""
        return feature


def rows_of(pairs: Sequence[Pair]) -> Dataset:
    """Pairs of tokens in the columns that these trainers make of text."""
    return Dataset.from_list([_row(pair) for pair in pairs])


def _row(pair: Pair) -> Pair:
    prompt = list(pair["prompt_ids"])
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        answer = list(pair[f"{side}_ids"])
        row[f"{side}_input_ids"] = prompt + answer
        row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{side}_labels"] = [-100] * len(prompt) + answer
    return row


def make_trainer(
    trainer_class: Any,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Any,
    pairs: Sequence[Pair],
    held: Sequence[Pair] | None = None,
) -> Any:
    """A trainer on pairs of tokens."""
    arguments.remove_unused_columns = False  # else TRL does so, with a warning
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows_of(shown_first(pairs)),
        eval_dataset=rows_of(shown_first(held)) if held else None,
        processing_class=tokenizer,
    )
    if isinstance(pairs, Later):
        aside = held.mapped(_row) if isinstance(held, Later) else None
        learn_later(trainer, pairs.mapped(_row), aside)
    return trainer


def learn(experiment: Experiment, stage: str, config_class: Any, trainer_class: Any) -> None:
    """Train on preference pairs and write ``<stage>/model``."""
    arguments = stage_arguments(
        experiment, stage, config_class, gradient_checkpointing=False, logging_first_step=True
    )
    every, held = divided(experiment, stage, preference_dataset(experiment, stage), arguments)
    model, tokenizer = load_trainable_sft(experiment)
    key = f"{stage}.max_length"
    arguments.max_length = cut_length(base_of(model), arguments.max_length, key)
    pairs = token_pairs(every, tokenizer, arguments.max_length, key)
    aside = token_pairs(held, tokenizer, arguments.max_length, key) if held else None
    trainer = make_trainer(trainer_class, model, tokenizer, arguments, pairs, aside)
    fit(trainer, experiment, stage)
    save_trained(trainer, experiment, stage, trainer.accelerator.unwrap_model(trainer.model))
    finish(experiment, stage, pairs, aside)
