"""KTO from the SFT checkpoint: each completion of a pair with its label, desirable or not.

Ethayarajh et al. 2024 (arXiv 2402.01306), on ``trl.KTOTrainer``. A pair becomes two rows. The
reference point of equation 8, the KL at which a completion counts as neither gain nor loss, is
TRL's: the mean log-ratio, floored at 0, of a batch's prompts with completions of other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl import KTOConfig

from pipeline.config import Experiment
from pipeline.lm.hardware import best_device
from pipeline.lm.models import base_of, frozen_copy
from pipeline.lm.positions import cut_length
from pipeline.stages import tracking
from pipeline.stages.later import Later
from pipeline.stages.pair_data import (
    Pair,
    divided,
    finish,
    preference_dataset,
    shown_first,
    token_pairs,
)
from pipeline.stages.training import fit, load_trainable_sft, save_trained, stage_arguments
from pipeline.stages.trl_compat import TokenizedKTOTrainer, fit_tiles_to


def labelled(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """A row for each completion of the pairs, and with it one that was not written for its prompt.

    The latter is the completion half of all rows further on: so every completion serves once, and
    prompts that stand together (their pairs do) get those of others. Where that is the same
    prompt's, it is the next row's of another; with a single prompt, the row's before.
    """
    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[f"{side}_ids"], "label": label}
        for pair in pairs
        for side, label in (("chosen", True), ("rejected", False))
    ]
    count = len(rows)
    several = any(row["prompt_ids"] != rows[0]["prompt_ids"] for row in rows)
    for place, row in enumerate(rows):
        other = (place + count // 2) % count if several else place - 1
        while several and rows[other]["prompt_ids"] == row["prompt_ids"]:
            other = (other + 1) % count
        row["KL_completion_ids"] = rows[other]["completion_ids"]
    return rows


class LabelledLater(Sequence[Pair]):
    """:func:`labelled` of pairs that are made into tokens when they are asked for."""

    def __init__(self, pairs: Later[Any]) -> None:
        self._pairs = pairs
        prompts = pairs.records.column("prompt")
        self._several = bool((prompts != prompts[0]).any())

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def __getitem__(self, place: Any) -> Any:
        row, count = self._row(place), len(self)
        other = self._row((place + count // 2) % count if self._several else place - 1)
        for step in range(1, count):
            if not self._several or other["prompt_ids"] != row["prompt_ids"]:
                break
            other = self._row((place + count // 2 + step) % count)
        return row | {"KL_completion_ids": other["completion_ids"]}

    def _row(self, place: int) -> Pair:
        pair = self._pairs[place // 2]
        answer = pair["rejected_ids" if place % 2 else "chosen_ids"]
        label = not place % 2
        return {"prompt_ids": pair["prompt_ids"], "completion_ids": answer, "label": label}


def make_trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: KTOConfig,
    pairs: Sequence[Pair],
    held: Sequence[Pair] | None = None,
    data_collator: Callable[..., Any] | None = None,
) -> TokenizedKTOTrainer:
    """A trainer on pairs of tokens, whose reference is ``model`` as it is now."""
    # Without a reference TRL loads one from config._name_or_path, whatever the weights in memory.
    reference: Any = None if isinstance(model, PeftModel) else frozen_copy(model)
    trainer = TokenizedKTOTrainer(
        model=model,  # type: ignore[arg-type]
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(labelled(shown_first(pairs))),
        eval_dataset=Dataset.from_list(labelled(shown_first(held))) if held else None,
        processing_class=tokenizer,
        data_collator=data_collator,
    )
    if isinstance(pairs, Later):
        trainer.train_dataset = LabelledLater(pairs)  # type: ignore[assignment]
    if isinstance(held, Later):
        trainer.eval_dataset = LabelledLater(held)  # type: ignore[assignment]
    return trainer


@tracking.tracked("kto")
def run(experiment: Experiment) -> None:
    """Train on preference pairs, taken apart, and write ``kto/model``."""
    arguments = stage_arguments(
        experiment,
        "kto",
        KTOConfig,
        gradient_checkpointing=False,
        logging_first_step=True,
        beta=experiment.beta,
    )
    every, held = divided(experiment, "kto", preference_dataset(experiment, "kto"), arguments)
    model, tokenizer = load_trainable_sft(experiment)
    arguments.max_length = cut_length(base_of(model), arguments.max_length, "kto.max_length")
    fit_tiles_to(best_device().type)
    limit = arguments.max_length, "kto.max_length"
    pairs = token_pairs(every, tokenizer, *limit)
    aside = token_pairs(held, tokenizer, *limit) if held else None
    trainer = make_trainer(model, tokenizer, arguments, pairs, aside)
    fit(trainer, experiment, "kto")
    save_trained(trainer, experiment, "kto", trainer.accelerator.unwrap_model(trainer.model))
    finish(experiment, "kto", pairs, aside)
