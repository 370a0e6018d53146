"""Stage 2: the reward that is optimised (the proxy) and the judge that never is (gold).

    rated texts ─┬─ one half ────► classifier ──► reward/proxy   r(x, y) of PPO, DPO, best-of-N
                 ├─ other half ──► classifier ──► reward/gold    tells progress from exploitation
                 └─ held out ────► reward/metrics.json

r is the classifier's logit margin on prompt and completion, log P(positive) − log P(negative): in
nats, and not rescaled, so β is in the same unit. A checkpoint or a Python function can take the
place of either.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from common.files import new_folder, write_json
from pipeline.config import OVER_SFT, Experiment
from pipeline.data.records import RatedText
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.lm.hardware import best_device, one_device
from pipeline.output.checkpoints import CompleteMarker
from pipeline.output.console import is_main_process
from pipeline.stages import tracking
from pipeline.stages.encoders import new_encoder
from pipeline.stages.reward_card import write_cards
from pipeline.stages.reward_quality import measure_rewards, tell
from pipeline.stages.reward_reference import estimate_scales
from pipeline.stages.reward_sources import (
    PARTS,
    Part,
    folder_of,
    has_bfloat16,
    is_trained,
    max_length,
    trains,
    warn,
)
from pipeline.stages.training import resume
from reward_models.adapters import save_adapter_classifier
from reward_models.reading import length_limit
from reward_models.training import classifier_trainer, encode

DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-4,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,  # below 1 it is a share of all steps
    "weight_decay": 0.01,
    "logging_steps": 20,
    "save_steps": 100,
    "save_total_limit": 1,
    "train_sampling_strategy": "group_by_length",
}


@tracking.tracked("reward")
def run(experiment: Experiment) -> None:
    """Train what is to be trained, then measure both; an interrupted run resumes in either half.

    Raises:
        UserError: The data, the encoder, or a reward that is not trained here is unusable.
    """
    data = load_data(experiment)
    for part in PARTS:
        if trains(experiment, part) and not is_trained(experiment, part):
            texts = data.proxy if part == "proxy" else data.gold
            _train(experiment, part, texts, data.classifier_test)
    if is_main_process():
        estimate_scales(experiment, data.train_prompts)
        metrics = measure_rewards(experiment, data)
        write_json(experiment.stage_dir("reward") / "metrics.json", metrics)
        write_cards(experiment, metrics)
        tell(metrics)


def _train(
    experiment: Experiment, part: Part, texts: list[RatedText], test: list[RatedText]
) -> None:
    """Train one classifier and write its folder; goes on from its last whole checkpoint."""
    seed = _seed(experiment, part)
    set_seed(seed)
    model, tokenizer = new_encoder(experiment, seed)
    checkpoints = experiment.stage_dir("reward") / "checkpoints" / part
    label = experiment.data.positive_above
    margin = experiment.data.neutral_margin
    test = [text for text in test if abs(text.rating - label) >= margin]
    length = max_length(experiment)
    _look_at_lengths(model, tokenizer, [text.text for text in texts], length)
    train_rows, test_rows = (
        encode(
            tokenizer,
            [text.text for text in rows],
            [text.rating > label for text in rows],
            length,
        )
        for rows in (texts, test)
    )
    trainer = classifier_trainer(
        model,
        tokenizer,
        _arguments(experiment, part, checkpoints, seed),
        train_rows,
        test_rows,
        [*tracking.callbacks(experiment, "reward", part), CompleteMarker()],
    )
    tracking.quieten(trainer)
    resume(trainer)
    if trainer.is_world_process_zero():
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        with new_folder(folder_of(experiment, part)) as beside:
            if isinstance(trained, PeftModel):
                save_adapter_classifier(trained, beside)
            else:
                trained.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
    trainer.accelerator.wait_for_everyone()


def _look_at_lengths(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int
) -> None:
    """Say what is cut off; UserError where the encoder cannot read ``length`` tokens."""
    limit = length_limit(model, tokenizer, None)
    if length > limit:
        raise UserError(
            f"reward.max_length: {length} tokens are more than the encoder reads; set it to {limit}"
            " or less"
        )
    encoded: Any = tokenizer(texts, verbose=False)["input_ids"]
    longer = sum(len(ids) > length for ids in encoded)
    if longer:
        warn(
            f"reward.max_length: {longer} of {len(texts)} texts are longer than {length} tokens;"
            " the classifier does not learn from their ends"
        )


def _seed(experiment: Experiment, part: Part) -> int:
    """A seed of each part's own: with a shared one both would make the same chance errors."""
    digest = hashlib.sha256(f"{experiment.seed}/reward/{part}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _arguments(
    experiment: Experiment, part: Part, checkpoints: Path, seed: int
) -> TrainingArguments:
    hardware = {
        "bf16": has_bfloat16(experiment),
        "use_cpu": best_device().type == "cpu",
    }
    owned = {
        "output_dir": str(checkpoints),
        "seed": seed,
        "report_to": tracking.report_to(experiment),
        "run_name": f"{experiment.name}-reward-{part}",
        "disable_tqdm": True,
    }
    if experiment.reward.encoder == OVER_SFT:  # the base's dtype decides
        owned["bf16"] = hardware["bf16"]
    try:
        made = TrainingArguments(
            **{**DEFAULTS, **hardware, **experiment.trainer_args("reward"), **owned}
        )
    except (ValueError, ImportError) as error:  # e.g. fp16 on a processor
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"reward: these training arguments do not go together: {reason}") from error
    one_device(made)
    return made
