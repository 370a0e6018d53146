"""How the reward stage trains a reward: as a classifier of rated texts, or on comparisons."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from common.files import new_folder
from pipeline.config import OVER_SFT, PAIRWISE, Experiment
from pipeline.config.hub import without_hub
from pipeline.data.comparisons import Comparison, Comparisons
from pipeline.data.forms import sample
from pipeline.data.records import RatedText
from pipeline.data.splits import ExperimentData
from pipeline.data.stored import Stored, taken
from pipeline.errors import UserError
from pipeline.lm.hardware import best_device, one_device
from pipeline.output.checkpoints import CompleteMarker
from pipeline.output.console import say
from pipeline.stages import tracking
from pipeline.stages.encoders import new_encoder
from pipeline.stages.later import Later
from pipeline.stages.reward_sources import Part, has_bfloat16, max_length, trained_source, warn
from pipeline.stages.training import resume
from reward_models import RewardError
from reward_models.adapters import save_adapter_classifier
from reward_models.calibration import calibrate, fit_temperature
from reward_models.pairwise import encode_pairs, pairwise_trainer, ready_to_read
from reward_models.reading import APPENDS_EOS, length_limit
from reward_models.sentiment import SequenceClassifier
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
# What RewardConfig has other defaults for than TrainingArguments.
_PAIRWISE = {"disable_dropout": False, "gradient_checkpointing": False, "max_length": None}
# Texts of a large data set by which the share of long ones is told.
_LOOKED_AT = 10_000
T = TypeVar("T")
# Of a classifier's texts, those that its temperature is fitted on.
_CALIBRATED_ON = 0.1


@dataclass(frozen=True)
class Job:
    """One model to train.

    Attributes:
        part: ``proxy`` or ``gold``.
        folder: Where it goes; its name is that of checkpoints and metrics, and gives the seed.
    """

    experiment: Experiment
    part: Part
    folder: Path

    @property
    def seed(self) -> int:
        """One of each model's own: with a shared one all would make the same chance errors."""
        name = f"{self.experiment.seed}/reward/{self.folder.name}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")

    def checkpoints(self) -> Path:
        return self.experiment.stage_dir("reward") / "checkpoints" / self.folder.name

    def callbacks(self) -> list[Any]:
        made = tracking.callbacks(self.experiment, "reward", self.folder.name)
        return [*made, CompleteMarker()]

    def drawn(self, items: Sequence[T]) -> Sequence[T]:
        """What this member learns from: all, or a random half, in the same order."""
        if self.part == "gold" or self.experiment.reward.member_texts == "all":
            return items
        draw = random.Random(f"{self.seed}/half")
        return taken(items, sorted(draw.sample(range(len(items)), (len(items) + 1) // 2)))


def train(job: Job, data: ExperimentData, comparisons: Comparisons | None) -> None:
    """Train one model and write its folder; goes on from its last whole checkpoint.

    Args:
        comparisons: What a pairwise model learns from.

    Raises:
        UserError: The encoder cannot be trained so, or the arguments do not go together.
    """
    set_seed(job.seed)
    if trained_source(job.experiment, job.part) == PAIRWISE:
        assert comparisons is not None
        own: list[Comparison] = getattr(comparisons, job.part)
        _train_pairwise(job, job.drawn(own), comparisons.test)
    else:
        _train_classifier(job, data)


def texts_of(experiment: Experiment, data: ExperimentData, part: Part) -> Sequence[RatedText]:
    """What a classifier learns from: neutral texts too where its labels are no classes."""
    if experiment.reward.labels == "hard":
        return data.proxy if part == "proxy" else data.gold
    return data.half(part)


def targets(texts: Sequence[RatedText], labels: str, limit: float) -> list[Any]:
    """What a classifier is to say of each text; see ``reward.labels``."""
    if labels == "hard":
        return [text.rating > limit for text in texts]
    if labels == "mean":
        return [text.rating - limit for text in texts]
    scores = (np.asarray(text.ratings) for text in texts)
    return [float(np.mean((np.sign(each - limit) + 1) / 2)) for each in scores]


def _train_classifier(job: Job, data: ExperimentData) -> None:
    experiment, section = job.experiment, job.experiment.data
    labels, limit = experiment.reward.labels, section.positive_above
    texts = job.drawn(texts_of(experiment, data, job.part))
    held: Sequence[RatedText] = []
    if experiment.reward.calibrate:
        texts, held = _set_aside(texts, job.seed)
    test = [t for t in data.classifier_test if abs(t.rating - limit) >= section.neutral_margin]
    model, tokenizer = new_encoder(experiment, job.seed, 1 if labels == "mean" else 2)
    length = max_length(experiment)
    looked_at = [text.text for text in sample(texts, _LOOKED_AT)]
    _look_at_lengths(model, tokenizer, looked_at, length)
    encoded = _Encoded(tokenizer, labels, limit, length)
    train_rows: Sequence[dict[str, Any]]
    if isinstance(texts, Stored):
        train_rows = Later(texts, encoded.one, "reward.max_length")
    else:
        train_rows = encoded(texts)
    test_rows = encoded(test)
    arguments = _arguments(job, TrainingArguments)
    trainer = classifier_trainer(
        model, tokenizer, arguments, train_rows, test_rows, job.callbacks()
    )
    tracking.quieten(trainer)
    resume(trainer)
    decided = [t for t in held if abs(t.rating - limit) >= section.neutral_margin]
    _finish(trainer, job, tokenizer, decided)


class _Encoded:
    """Makes what a classifier learns of rated texts: tokens, and what to say of them."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, labels: str, limit: float, length: int
    ) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._labels, self._limit = labels, limit

    def __call__(self, texts: Sequence[RatedText]) -> list[dict[str, Any]]:
        wanted = targets(texts, self._labels, self._limit)
        return encode(self._tokenizer, [text.text for text in texts], wanted, self._length)

    def one(self, text: RatedText) -> dict[str, Any]:
        return self([text])[0]


def calibrated_on(texts: int) -> int:
    """How many of so many texts ``reward.calibrate`` takes from training."""
    return max(1, round(texts * _CALIBRATED_ON))


def _set_aside(
    texts: Sequence[RatedText], seed: int
) -> tuple[Sequence[RatedText], Sequence[RatedText]]:
    """Texts to train on, and those to calibrate on."""
    count = calibrated_on(len(texts))
    chosen = set(random.Random(f"{seed}/calibration").sample(range(len(texts)), count))
    parts: tuple[list[int], list[int]] = ([], [])
    for place in range(len(texts)):
        parts[place in chosen].append(place)
    return taken(texts, parts[0]), taken(texts, parts[1])


def _calibrate(
    model: Any, tokenizer: PreTrainedTokenizerBase, job: Job, held: list[RatedText]
) -> None:
    """Scale the output so that σ(reward) is P(positive), on texts held out from training."""
    limit = job.experiment.data.positive_above
    positive = [text.rating > limit for text in held]
    if not 0 < sum(positive) < len(positive):
        raise UserError(
            f"reward.calibrate: the {len(held)} texts set aside for it are all on one side; use "
            "more texts, or calibrate=false"
        )
    length = max_length(job.experiment)
    reward = SequenceClassifier(model, tokenizer, max_length=length, format="text")
    temperature = fit_temperature(reward.score([text.text for text in held]), positive)
    try:
        calibrate(model, temperature)
    except RewardError as error:
        raise UserError(f"reward.calibrate: {error}") from error
    say(f"reward {job.folder.name} · temperature {temperature:.2f} on {len(held)} texts held out")


def _train_pairwise(job: Job, own: Sequence[Comparison], test: Sequence[Comparison]) -> None:
    from trl import RewardConfig  # takes seconds, which other rewards do without

    experiment = job.experiment
    model, tokenizer = new_encoder(experiment, job.seed, outputs=1)
    length, margins = max_length(experiment), experiment.reward.margins
    try:
        ready_to_read(model, tokenizer, talks=not isinstance(own[0].chosen, str))
        rows, held = (
            encode_pairs(model, tokenizer, [_columns(c, margins) for c in part], length, warn=warn)
            for part in (own, test)
        )
    except RewardError as error:
        raise UserError(f"reward.source: pairwise: {error}") from error
    _check_length(model, tokenizer, length)
    centred = experiment.reward.center_rewards_coefficient
    arguments = _arguments(job, RewardConfig, center_rewards_coefficient=centred, **_PAIRWISE)
    groups: list[Hashable] = [comparison.group for comparison in own]
    shared = groups if len(set(groups)) < len(groups) else None
    trainer = pairwise_trainer(
        model, tokenizer, arguments, rows, held, shared, callbacks=job.callbacks()
    )
    tracking.quieten(trainer)
    resume(trainer)
    _finish(trainer, job, tokenizer, [])


def _columns(comparison: Comparison, margins: bool) -> dict[str, Any]:
    columns = {name: getattr(comparison, name) for name in ("prompt", "chosen", "rejected")}
    return columns | ({"margin": comparison.difference} if margins else {})


def _finish(
    trainer: Trainer, job: Job, tokenizer: PreTrainedTokenizerBase, held: list[RatedText]
) -> None:
    """Calibrate where that is asked for, and write the folder, on one process."""
    if trainer.is_world_process_zero():
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        if held:
            _calibrate(trained, tokenizer, job, held)
        if trained.config.num_labels == 1 and not hasattr(trained.config, APPENDS_EOS):
            tokenizer.chat_template = None  # with one, a single output would be taken for a chat's
        with new_folder(job.folder) as beside:
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
    _check_length(model, tokenizer, length)
    encoded: Any = tokenizer(texts, verbose=False)["input_ids"]
    longer = sum(len(ids) > length for ids in encoded)
    if longer:
        warn(
            f"reward.max_length: {longer} of {len(texts)} texts are longer than {length} tokens;"
            " the classifier does not learn from their ends"
        )


def _check_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    limit = length_limit(model, tokenizer, None)
    if length > limit:
        raise UserError(
            f"reward.max_length: {length} tokens are more than the encoder reads; set it to {limit}"
            " or less"
        )


def _arguments(job: Job, kind: type[TrainingArguments], **own: Any) -> Any:
    """The trainer's arguments: our defaults, what the config says, and what is not its to say."""
    experiment = job.experiment
    hardware = {
        "bf16": has_bfloat16(experiment),
        "use_cpu": best_device().type == "cpu",
    }
    owned = {
        "output_dir": str(job.checkpoints()),
        "seed": job.seed,
        "report_to": tracking.report_to(experiment),
        "run_name": f"{experiment.name}-reward-{job.folder.name}",
        "disable_tqdm": True,
    }
    if experiment.reward.encoder == OVER_SFT:  # the base's dtype decides
        owned["bf16"] = hardware["bf16"]
    try:
        given = without_hub(experiment.trainer_args("reward"))
        made = kind(**{**DEFAULTS, **own, **hardware, **given, **owned})
    except (ValueError, ImportError) as error:  # e.g. fp16 on a processor
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"reward: these training arguments do not go together: {reason}") from error
    one_device(made)
    return made
