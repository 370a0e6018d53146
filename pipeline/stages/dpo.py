"""Stage 4b: direct preference optimisation from the SFT checkpoint, on ``trl.DPOTrainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig

from pipeline.config import Experiment
from pipeline.config.losses import REBEL, loss_names
from pipeline.data.stored import Stored
from pipeline.errors import UserError
from pipeline.lm.hardware import best_device
from pipeline.lm.models import base_of, frozen_copy
from pipeline.lm.positions import cut_length
from pipeline.ppo.config import sharded
from pipeline.stages import tracking
from pipeline.stages.offline import PairPolicy, PairTrainer, longest, why_trl
from pipeline.stages.pair_data import (
    TOKENS,
    divided,
    finish,
    learn_later,
    preference_dataset,
    token_pairs,
)
from pipeline.stages.training import (
    fit,
    load_trainable_sft,
    save_trained,
    stage_arguments,
)
from pipeline.stages.trl_compat import TokenizedDPOTrainer, fit_tiles_to


def pair_row(experiment: Experiment, pair: dict[str, Any]) -> dict[str, Any]:
    """What training needs of a pair: tokens, and what the loss reads beside them."""
    row = {key: pair[key] for key in TOKENS}
    if loss_names(experiment.trainer_args("dpo")) == [REBEL]:
        row["reward_difference"] = pair["chosen_reward"] - pair["rejected_reward"]
    elif experiment.pairs.labels == "soft":
        row["probability"] = pair["probability"]
    return row


@tracking.tracked("dpo")
def run(experiment: Experiment) -> None:
    """Train on preference pairs and write ``dpo/model``.

    What it is evaluated on, where it is, are the pairs of ``dpo.eval_share`` of the prompts.
    """
    arguments = stage_arguments(
        experiment,
        "dpo",
        DPOConfig,
        gradient_checkpointing=False,
        logging_first_step=True,
        beta=experiment.beta,
    )
    if sharded(arguments):
        _need_plain_labels(experiment, "FSDP, under which TRL's trainer runs")
    every = preference_dataset(experiment, "dpo", pair_row)
    pairs, held = divided(experiment, "dpo", every, arguments)
    model, tokenizer = load_trainable_sft(experiment)
    arguments.max_length = cut_length(base_of(model), arguments.max_length, "dpo.max_length")
    fit_tiles_to(best_device().type)
    reason = why_trl(arguments, pairs, model)
    if reason is not None:
        _need_plain_labels(experiment, reason)
    batch = batch_of_groups(experiment, arguments)
    trainer = make_trainer(model, tokenizer, arguments, pairs, held, batch)
    fit(trainer, experiment, "dpo")
    policy = trainer.accelerator.unwrap_model(trainer.model)
    save_trained(trainer, experiment, "dpo", policy)
    limit = arguments.max_length, "dpo.max_length"
    sides = [token_pairs(rows, tokenizer, *limit) if rows else None for rows in (pairs, held)]
    finish(experiment, "dpo", sides[0] or [], sides[1])


def batch_of_groups(experiment: Experiment, arguments: DPOConfig) -> int | None:
    """Pairs of a batch of whole groups, on each device; None where pairs stand alone."""
    drawn = experiment.data.preferences_name is None
    shuffled = arguments.train_sampling_strategy == "random"  # else groups do not stay together
    if not drawn or not shuffled or experiment.pairs.samples_per_prompt == 2:
        return None
    return experiment.pairs.batch(arguments.per_device_train_batch_size)


def make_trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: DPOConfig,
    pairs: Dataset | Stored[Any],
    held: Dataset | Stored[Any] | None = None,
    group_rows: int | None = None,
    data_collator: Callable[..., Any] | None = None,
) -> TokenizedDPOTrainer:
    """The trainer of what is frozen runs once, or TRL's own where that does not apply.

    The reference is ``model`` as it is now.

    Args:
        pairs, held: rows of :func:`pair_row`, or texts; those of a large data set are made into
            tokens batch by batch.
        group_rows: see :class:`PairTrainer`.
    """
    given: dict[str, Any] = dict(model=model, args=arguments, processing_class=tokenizer)
    given["data_collator"] = data_collator
    if isinstance(pairs, Dataset) and why_trl(arguments, pairs, model) is None:
        assert not isinstance(held, Stored)
        policy = PairPolicy(model, arguments, longest(pairs, held))
        train, test = policy.with_logps(pairs, held, label="dpo: the reference")
        arguments.precompute_ref_log_probs = True
        given |= {"train_dataset": train, "eval_dataset": test}
        return PairTrainer(policy, group_rows, **given)
    # Without a reference TRL loads one from config._name_or_path, whatever the weights in memory.
    reference = None if isinstance(model, PeftModel) else frozen_copy(model)
    given["ref_model"] = reference
    if isinstance(pairs, Stored) and not arguments.precompute_ref_log_probs:
        # TRL cuts answers itself; a prompt that leaves no room for one makes way for the next row.
        limit = arguments.max_length if arguments.truncation_mode == "keep_start" else None
        rows = token_pairs(pairs, tokenizer, limit, "dpo.max_length")
        aside = token_pairs(held, tokenizer, limit, "dpo.max_length") if held else None
        given["train_dataset"] = Dataset.from_list([rows[0]])
        given["eval_dataset"] = aside and Dataset.from_list([aside[0]])
        trainer = TokenizedDPOTrainer(**given)
        learn_later(trainer, rows, aside)
        return trainer
    texts = [Dataset.from_list(list(r)) if isinstance(r, Stored) else r for r in (pairs, held)]
    return TokenizedDPOTrainer(train_dataset=texts[0], eval_dataset=texts[1], **given)


def _need_plain_labels(experiment: Experiment, reason: str) -> None:
    """UserError where labels or loss are none of TRL's trainer, which ``reason`` asks for."""
    if experiment.data.preferences_name is not None:
        return
    if loss_names(experiment.trainer_args("dpo")) == [REBEL]:
        raise UserError(
            f"dpo.loss_type: rebel does not go with {reason}; set dpo.loss_type=sigmoid"
        )
    if experiment.pairs.labels == "soft":
        raise UserError(f"pairs.labels: soft does not go with {reason}; set pairs.labels=sampled")
