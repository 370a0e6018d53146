"""Stage 4b: direct preference optimisation from the SFT checkpoint, on ``trl.DPOTrainer``."""

from __future__ import annotations

from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig

from pipeline.config import Experiment
from pipeline.data import load_preferences
from pipeline.data.validation import validation_pairs
from pipeline.errors import UserError
from pipeline.lm.hardware import best_device
from pipeline.lm.models import base_of, frozen_copy
from pipeline.lm.positions import cut_length
from pipeline.stages import tracking
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
    return Dataset.from_list([{key: pair[key] for key in _TOKENS} for pair in pairs])


@tracking.tracked("dpo")
def run(experiment: Experiment) -> None:
    """Train on preference pairs and write ``dpo/model``.

    What it is evaluated on, where it is, are the pairs of ``dpo.eval_share`` of the prompts.
    """
    arguments = stage_arguments(
        experiment, "dpo", DPOConfig, gradient_checkpointing=False, beta=experiment.beta
    )
    pairs, held = preference_dataset(experiment), None
    if evaluates(arguments):
        share, seed = experiment.dpo.eval_share, experiment.seed
        held, pairs = map(Dataset.from_list, validation_pairs(pairs.to_list(), share, seed))
    model, tokenizer = load_trainable_sft(experiment)
    arguments.max_length = cut_length(base_of(model), arguments.max_length, "dpo.max_length")
    # Without a reference TRL loads one from config._name_or_path, whatever the weights in memory.
    reference = None if isinstance(model, PeftModel) else frozen_copy(model)
    fit_tiles_to(best_device().type)
    trainer = TokenizedDPOTrainer(
        model=model,  # type: ignore[arg-type]
        ref_model=reference,  # type: ignore[arg-type]
        args=arguments,
        train_dataset=pairs,
        eval_dataset=held,
        processing_class=tokenizer,
    )
    fit(trainer, experiment, "dpo")
    policy = trainer.accelerator.unwrap_model(trainer.model)
    save_trained(trainer, experiment, "dpo", policy)
