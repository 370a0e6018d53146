"""Stage 4b: direct preference optimisation from the SFT checkpoint, on ``trl.DPOTrainer``."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig

from pipeline.config import Experiment
from pipeline.config.losses import REBEL, loss_names
from pipeline.data import load_preferences
from pipeline.data.validation import validation_pairs
from pipeline.errors import UserError
from pipeline.lm.hardware import best_device
from pipeline.lm.models import base_of, frozen_copy
from pipeline.lm.positions import cut_length
from pipeline.stages import tracking
from pipeline.stages.offline import PairPolicy, PairTrainer, longest, splits_weights, why_trl
from pipeline.stages.preferences import make_pairs
from pipeline.stages.training import (
    evaluates,
    fit,
    load_trainable_sft,
    save_trained,
    stage_arguments,
)
from pipeline.stages.trl_compat import TokenizedDPOTrainer, fit_tiles_to

_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


def preference_dataset(experiment: Experiment) -> Dataset:
    """The user's own pairs (text, TRL's format), or pairs sampled from π_ref (tokens).

    Raises:
        UserError: sampling gave no pair of different completions.
    """
    data = experiment.data
    if data.preferences_name is not None:
        own = load_preferences(data.preferences_name, data.column_names(), data.train_split)
        return Dataset.from_list(own)
    pairs = make_pairs(experiment)
    if not pairs:
        raise UserError(
            "dpo: every sampled pair holds the same completion twice; raise pairs.max_pairs or "
            "generation.max_new_tokens"
        )
    return Dataset.from_list([pair_row(experiment, pair) for pair in pairs])


def pair_row(experiment: Experiment, pair: dict[str, Any]) -> dict[str, Any]:
    """What training needs of a pair: tokens, and what the loss reads beside them."""
    row = {key: pair[key] for key in _TOKENS}
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
        experiment, "dpo", DPOConfig, gradient_checkpointing=False, beta=experiment.beta
    )
    splitter = splits_weights(arguments)
    if splitter is not None:
        _need_plain_labels(experiment, f"{splitter}, under which TRL's trainer runs")
    pairs, held = preference_dataset(experiment), None
    if evaluates(arguments):
        share, seed = experiment.dpo.eval_share, experiment.seed
        held, pairs = map(Dataset.from_list, validation_pairs(pairs.to_list(), share, seed))
    model, tokenizer = load_trainable_sft(experiment)
    arguments.max_length = cut_length(base_of(model), arguments.max_length, "dpo.max_length")
    fit_tiles_to(best_device().type)
    trainer = _trainer(experiment, model, arguments, pairs, held, tokenizer)
    fit(trainer, experiment, "dpo")
    policy = trainer.accelerator.unwrap_model(trainer.model)
    save_trained(trainer, experiment, "dpo", policy)


def _trainer(
    experiment: Experiment,
    model: nn.Module,
    arguments: DPOConfig,
    pairs: Dataset,
    held: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
) -> TokenizedDPOTrainer:
    """The trainer of what is frozen runs once, or TRL's own where that does not apply.

    Raises:
        UserError: only the former knows the labels or the loss.
    """
    given: dict[str, Any] = dict(model=model, args=arguments, processing_class=tokenizer)
    reason = why_trl(arguments, pairs, model)
    if reason is None:
        policy = PairPolicy(model, arguments, longest(pairs, held))
        train, test = policy.with_logps(pairs, held, label="dpo: the reference")
        arguments.precompute_ref_log_probs = True
        whole = experiment.pairs.samples_per_prompt > 2
        given |= {"train_dataset": train, "eval_dataset": test}
        return PairTrainer(policy, whole, **given)
    _need_plain_labels(experiment, reason)
    # Without a reference TRL loads one from config._name_or_path, whatever the weights in memory.
    reference = None if isinstance(model, PeftModel) else frozen_copy(model)
    given |= {"train_dataset": pairs, "eval_dataset": held, "ref_model": reference}
    return TokenizedDPOTrainer(**given)


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
