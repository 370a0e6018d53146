"""Stage 1: supervised fine-tuning on demonstrations; its result is the reference π_ref."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from pipeline.config import Experiment
from pipeline.config.choices import ppo_evaluates
from pipeline.data.records import Demonstration
from pipeline.data.splits import load_data
from pipeline.data.stored import Stored
from pipeline.lm.check import check_policy
from pipeline.lm.hardware import best_device, compute_dtype, policy_dtype
from pipeline.lm.models import load_base, make_trainable
from pipeline.lm.positions import check_prompts, cut_length
from pipeline.lm.quantization import keep_reference
from pipeline.lm.route import lm_head
from pipeline.lm.saving import save_policy
from pipeline.output.console import is_main_process, say
from pipeline.stages import tracking
from pipeline.stages.batches import LikeLengths, epoch_of
from pipeline.stages.later import Later
from pipeline.stages.tokens import learnt_tokens
from pipeline.stages.training import (
    QUANTIZED,
    evaluates,
    fit,
    save_trained,
    stage_arguments,
)
from pipeline.stages.trl_compat import fit_tiles_to


def demonstration_dataset(items: Sequence[str | Demonstration], arguments: SFTConfig) -> Dataset:
    """Demonstrations in the columns by which TRL chooses what the loss is on.

    Texts are learnt whole. Of a prompt with its answer the answer is (all of it with
    ``completion_only_loss=False``), and of a conversation with ``assistant_only_loss`` every
    answer.
    """
    pairs = [item for item in items if isinstance(item, Demonstration)]
    if not pairs:
        return Dataset.from_dict({arguments.dataset_text_field: list(items)})
    if arguments.assistant_only_loss:
        talks = [[*pair.prompt, *pair.completion] for pair in pairs]
        return Dataset.from_dict({"messages": talks})
    return Dataset.from_dict(
        {
            "prompt": [pair.prompt for pair in pairs],
            "completion": [pair.completion for pair in pairs],
        }
    )


class LearntLater:
    """Makes what SFT learns of a demonstration: the tokens and labels that TRL makes of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: SFTConfig) -> None:
        self._tokenizer = tokenizer
        self._whole = arguments.completion_only_loss is False
        limit, start = arguments.max_length, arguments.truncation_mode == "keep_start"
        self._cut = slice(None, limit) if start or limit is None else slice(-limit, None)

    def __call__(self, item: str | Demonstration) -> dict[str, list[int]] | None:
        prompt, answer = ("", item) if isinstance(item, str) else (item.prompt, item.completion)
        begin, tokens = learnt_tokens(self._tokenizer, prompt, answer)
        begin = 0 if self._whole or isinstance(item, str) else begin
        labels = ([-100] * begin + tokens[begin:])[self._cut]
        if all(label == -100 for label in labels):
            return None
        return {"input_ids": tokens[self._cut], "labels": labels}


def training_rows(
    items: Sequence[str] | Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
) -> Later[Any] | None:
    """Demonstrations of a large data set, made into tokens one batch after another.

    None of others: TRL makes all of theirs first; so it does where it packs them, or learns every
    answer of a conversation.
    """
    if not isinstance(items, Stored) or arguments.packing or arguments.assistant_only_loss:
        return None
    return Later(items, LearntLater(tokenizer, arguments), "sft.max_length")


class _Trainer(SFTTrainer):
    """TRL's, with texts of like length in one batch where ``group_by_length`` asks for it."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        grouped = args.train_sampling_strategy == "group_by_length"
        later = isinstance(dataset, Later)
        if not grouped or not (later or "input_ids" in getattr(dataset, "column_names", ())):
            return super()._get_train_sampler(train_dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        lengths = dataset.sizes() if later else [len(ids) for ids in dataset["input_ids"]]
        # The processes share a batch of like lengths: its rows are those that one would draw.
        return LikeLengths(lengths, args.train_batch_size * args.world_size, seed, epoch_of(self))


@tracking.tracked("sft")
def run(experiment: Experiment) -> None:
    """Train on ``data.demonstrations`` and write ``sft/model``: the model as it is for sft.skip.

    What it is evaluated on, where it is, are the texts of ``data.heldout``.
    """
    if experiment.sft.skip:
        return _take_over(experiment)
    data = load_data(experiment, labels=False)
    arguments = stage_arguments(
        experiment, "sft", SFTConfig, gradient_checkpointing=False, dataset_text_field="text"
    )
    model, tokenizer = load_base(experiment.model, experiment.seed)
    lm_head(model)  # that it runs on plain tokens, before anything else is asked of it
    length, longest = experiment.generation.max_new_tokens, 0
    asked = {"training": data.train_prompts, "evaluation": data.eval_prompts}
    if ppo_evaluates(experiment):
        asked["validation"] = data.validation_prompts
    for kind, prompts in asked.items():
        longest = max(longest, check_prompts(model, tokenizer, prompts, length, kind))
    check_policy(model, tokenizer, longest + length)
    arguments.max_length = cut_length(model, arguments.max_length, "sft.max_length")
    fit_tiles_to(best_device().type)
    later = training_rows(data.demonstrations, tokenizer, arguments)
    shown = data.demonstrations if later is None else data.demonstrations[:1]
    trainer = _Trainer(
        model=make_trainable(model, experiment.model, experiment.seed),  # type: ignore[arg-type]
        args=arguments,
        train_dataset=demonstration_dataset(list(shown), arguments),
        eval_dataset=(
            demonstration_dataset(data.heldout, arguments) if evaluates(arguments) else None
        ),
        processing_class=tokenizer,
    )
    if later is not None:
        trainer.train_dataset = later  # type: ignore[assignment]
    fit(trainer, experiment, "sft")
    policy = trainer.accelerator.unwrap_model(trainer.model)
    save_trained(trainer, experiment, "sft", policy)


def _take_over(experiment: Experiment) -> None:
    """Write the model that the experiment starts from as the reference policy, untrained."""
    if is_main_process():
        model, tokenizer = load_base(experiment.model, experiment.seed)
        check_policy(model, tokenizer)
        folder, dtype = experiment.stage_dir("sft") / "model", compute_dtype(experiment.model)
        if experiment.model.quantization is not None:  # what the codes stand for, as they are
            keep_reference(model, folder.with_name(QUANTIZED), experiment.seed)
            dtype = policy_dtype(experiment.model)
        save_policy(model, tokenizer, folder, dtype)
        name = experiment.model.model_name_or_path
        say(f"sft: skipped, {name} is the reference as it is")
