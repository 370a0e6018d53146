"""Stage 1: supervised fine-tuning on demonstrations; its result is the reference π_ref."""

from __future__ import annotations

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from pipeline.config import Experiment
from pipeline.data.splits import load_data
from pipeline.lm.hardware import best_device
from pipeline.lm.models import load_base, make_trainable
from pipeline.lm.positions import check_prompts, cut_length
from pipeline.stages import tracking
from pipeline.stages.training import fit, save_trained, stage_arguments
from pipeline.stages.trl_compat import fit_tiles_to


@tracking.tracked("sft")
def run(experiment: Experiment) -> None:
    """Train on ``data.demonstrations`` and write ``sft/model``."""
    data = load_data(experiment)
    arguments = stage_arguments(
        experiment, "sft", SFTConfig, gradient_checkpointing=False, dataset_text_field="text"
    )
    model, tokenizer = load_base(experiment.model, experiment.seed)
    for prompts, kind in ((data.train_prompts, "training"), (data.eval_prompts, "evaluation")):
        check_prompts(model, tokenizer, prompts, experiment.generation.max_new_tokens, kind)
    arguments.max_length = cut_length(model, arguments.max_length, "sft.max_length")
    fit_tiles_to(best_device().type)
    trainer = SFTTrainer(
        model=make_trainable(model, experiment.model, experiment.seed),  # type: ignore[arg-type]
        args=arguments,
        train_dataset=Dataset.from_dict({arguments.dataset_text_field: data.demonstrations}),
        processing_class=tokenizer,
    )
    fit(trainer, experiment, "sft")
    policy = trainer.accelerator.unwrap_model(trainer.model)
    save_trained(trainer, experiment, "sft", policy)
