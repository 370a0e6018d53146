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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from common.files import new_folder, write_json
from pipeline.config import OVER_SFT, TRAINED_HERE, TRAINED_LENGTH, Experiment, ModelSection
from pipeline.data.records import RatedText
from pipeline.data.splits import ExperimentData, load_data
from pipeline.errors import FailedReward, UserError
from pipeline.lm.hardware import best_device, compute_dtype, one_device
from pipeline.output.checkpoints import CompleteMarker
from pipeline.output.console import is_main_process, say
from pipeline.stages import tracking
from pipeline.stages.encoders import new_encoder, sft_model
from pipeline.stages.heldout import prompts_and_endings
from pipeline.stages.training import resume
from reward_models import RewardCall, RewardError, RewardFunction, load_reward, measure
from reward_models.adapters import save_adapter_classifier
from reward_models.reading import length_limit
from reward_models.sentiment import SequenceClassifier
from reward_models.training import classifier_trainer, encode

Part = Literal["proxy", "gold"]

PARTS: tuple[Part, Part] = ("proxy", "gold")
# A reward without labels to measure it is tried on this many texts before hours are spent on it.
_TRIED = 64
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
        if _spec(experiment, part) == TRAINED_HERE and not _is_trained(experiment, part):
            texts = data.proxy if part == "proxy" else data.gold
            _train(experiment, part, texts, data.classifier_test)
    if is_main_process():
        metrics = _measure(experiment, data)
        write_json(experiment.stage_dir("reward") / "metrics.json", metrics)
        _tell(metrics)


def proxy_reward(experiment: Experiment, policy: nn.Module | None = None) -> RewardFunction:
    """The reward that is optimised. Loading it, or calling it, raises UserError on a mistake.

    Args:
        policy: the reward uses this model's frozen weights where its own equal them.
    """
    return _reward(experiment, "proxy", policy)


def gold_reward(experiment: Experiment) -> RewardFunction:
    """The judge, against which nothing is optimised; UserError as for `proxy_reward`.

    It is the proxy itself where ``reward.source`` is not ``sentiment`` and ``reward.gold`` is null.
    """
    return _reward(experiment, "gold")


def judge_is_proxy(experiment: Experiment) -> bool:
    """True where no judge of its own is trained or named: then nothing tells hacking apart."""
    return _spec(experiment, "gold") == _spec(experiment, "proxy") != TRAINED_HERE


def _spec(experiment: Experiment, part: Part) -> str:
    """What the config names for a part."""
    section = experiment.reward
    return section.source if part == "proxy" or section.gold is None else section.gold


def _folder(experiment: Experiment, part: Part) -> Path:
    return experiment.stage_dir("reward") / part


def _is_trained(experiment: Experiment, part: Part) -> bool:
    # The folder appears at once and whole, when training has ended.
    return (_folder(experiment, part) / "config.json").is_file()


# --- Scoring ------------------------------------------------------------------------------------


def _reward(experiment: Experiment, part: Part, policy: nn.Module | None = None) -> RewardCall:
    spec, section = _spec(experiment, part), experiment.reward
    trained, gold = spec == TRAINED_HERE, part == "gold" and section.gold is not None
    key = "reward.gold" if gold else "reward.source"
    base = None
    if trained:
        folder = _folder(experiment, part)
        if not _is_trained(experiment, part):
            raise UserError(
                f"{folder}: there is no {part} reward; run `rlhf reward` with this config"
            )
        spec = str(folder.absolute())
        # Of this run, wherever its folder was moved or copied to.
        base = sft_model(experiment) if section.encoder == OVER_SFT else None
    mixed = _has_bfloat16(experiment)
    if base is None:  # else the base's dtype decides
        mixed = bool(experiment.trainer_args("reward").get("bf16", mixed))
    try:
        reward = load_reward(
            spec,
            max_length=_max_length(experiment) if trained else section.max_length,
            positive_labels=section.gold_positive_labels if gold else section.positive_labels,
            format="text" if trained else section.gold_format if gold else section.format,
            warn=_warn,
            dtype=torch.bfloat16 if mixed else None,
            device=best_device(),
            base_model=base,
            share_with=policy,
        )
    except RewardError as error:
        raise UserError(f"{key}: {str(error).removeprefix('reward ')}") from error
    return replace(
        reward,
        label=f"{key}: {spec}",
        timeout=section.timeout,
        retries=section.retries,
        raises=FailedReward,
    )


def _max_length(experiment: Experiment) -> int:
    """Tokens that a classifier trained here reads."""
    return experiment.reward.max_length or TRAINED_LENGTH


def _warn(line: str) -> None:
    say(f"warning: {line}")


def _has_bfloat16(experiment: Experiment) -> bool:
    """True where the hardware computes in bfloat16; never for the toy, which tests compare."""
    if experiment.reward.encoder == "toy":
        return False
    own = experiment.reward.encoder == OVER_SFT
    return compute_dtype(experiment.model if own else ModelSection()) == torch.bfloat16


# --- Training -----------------------------------------------------------------------------------


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
    length = _max_length(experiment)
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
        with new_folder(_folder(experiment, part)) as beside:
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
        _warn(
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
        "bf16": _has_bfloat16(experiment),
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


# --- Measuring ----------------------------------------------------------------------------------


def _measure(experiment: Experiment, data: ExperimentData) -> dict[str, Any]:
    """Score the held-out texts with both and compare them with people and with each other."""
    rated = data.classifier_test
    texts = [text.text for text in rated] or data.heldout[:_TRIED]
    prompts, endings = prompts_and_endings(texts, experiment)
    rewards = {part: _reward(experiment, part) for part in PARTS}
    scores = {part: reward(prompts, endings) for part, reward in rewards.items()}
    metrics: dict[str, Any] = {
        "texts": len(texts),
        "judge_is_proxy": judge_is_proxy(experiment),
        "proxy_gold_correlation": measure.correlation(scores["proxy"], scores["gold"]),
    }
    for part in PARTS:
        spec = _spec(experiment, part)
        metrics[part] = {"source": spec} | _spread(scores[part])
        if spec != TRAINED_HERE and isinstance(rewards[part].function, SequenceClassifier):
            metrics[part]["described"] = rewards[part].function.describe()
        if rated:
            metrics[part] |= _against_people(experiment, rated, scores[part], spec == TRAINED_HERE)
    if rated:
        section = experiment.data
        metrics["one_rater"] = measure.human_agreement(
            [text.ratings for text in rated], section.positive_above, section.neutral_margin
        )
    return metrics


def _spread(scores: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(scores)), "std": float(np.std(scores))}


def _against_people(
    experiment: Experiment, rated: list[RatedText], scores: list[float], is_margin: bool
) -> dict[str, Any]:
    """Agreement with the human ratings.

    The correlation is over all held-out texts, neutral ones included; the rest over the decided
    ones. Accuracy and calibration need scores that are logit margins (``is_margin``).
    """
    limit = experiment.data.positive_above
    far = experiment.data.neutral_margin
    ratings = [text.rating for text in rated]
    decided = [
        (s, r > limit) for s, r in zip(scores, ratings, strict=True) if abs(r - limit) >= far
    ]
    margins, positive = [score for score, _ in decided], [label for _, label in decided]
    result: dict[str, Any] = {"correlation": measure.correlation(scores, ratings)}
    if not 0 < sum(positive) < len(positive):
        return result  # all held-out texts on one side: nothing to tell apart
    result |= {"decided_texts": len(decided), "auc": measure.auc(margins, positive)}
    if is_margin:
        result |= {"accuracy": measure.accuracy(margins, positive)}
        result |= measure.calibration(margins, positive)
    return result


def _tell(metrics: dict[str, Any]) -> None:
    """Print the key numbers, a line a part."""
    shown: list[tuple[str, str, Callable[[float], str]]] = [
        ("accuracy", "accuracy on held-out texts", lambda v: f"{v:.1%}"),
        ("correlation", "correlation with the human mean", lambda v: f"{v:.2f}"),
        ("ece", "calibration error", lambda v: f"{v:.3f}"),
        ("mean", "mean reward", lambda v: f"{v:.2f}"),
        ("std", "spread", lambda v: f"{v:.2f}"),
    ]
    for part in PARTS:
        numbers = metrics[part]
        if "described" in numbers:
            say(f"reward {part} · {numbers['described']}")
        parts = [
            f"{word} {show(numbers[k])}" for k, word, show in shown if numbers.get(k) is not None
        ]
        say(f"reward {part} · " + ", ".join(parts))
    if metrics.get("one_rater"):
        ceiling = metrics["one_rater"]["accuracy"]
        say(f"reward · one person against the mean of the others: accuracy {ceiling:.1%}")
    if metrics["judge_is_proxy"]:
        say("reward · no judge of its own (reward.gold is null): the proxy judges itself")
