"""Stage 2: the reward that is optimised (the proxy) and the judge that never is (gold).

    labelled texts ─┬─ one half ────► classifier ──► reward/proxy   r(x, y) of PPO, DPO, best-of-N
                    ├─ other half ──► classifier ──► reward/gold    tells progress from exploitation
                    └─ held out ────► reward/metrics.json

Both are BERT-like sequence classifiers (labels negative, positive) trained by transformers'
Trainer; r is the logit margin, log P(positive) − log P(negative), of prompt and completion, in
nats and not rescaled: β is in the same unit. A checkpoint or a Python function can take the place
of either.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from pipeline import assets, tracking
from pipeline.checkpoints import CompleteMarker, last_complete
from pipeline.config import Experiment, ModelSection
from pipeline.data import ExperimentData, first_words, load_data
from pipeline.errors import UserError
from pipeline.files import new_folder, write_json
from pipeline.models import best_device, compute_dtype
from pipeline.records import RatedText
from pipeline.terminal import say
from pipeline.toy import toy_encoder, toy_tokenizer
from reward_models import RewardError, RewardFunction, load_reward, measure

Part = Literal["proxy", "gold"]

PARTS: tuple[Part, Part] = ("proxy", "gold")
LABELS = {0: "negative", 1: "positive"}
EMBEDDED_ENCODER = "embedded:all-minilm-l6-v2"
# Without labels, a reward is tried on this many texts before hours are spent on it.
_TRIED = 64
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-4,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,  # below 1: the share of all steps
    "weight_decay": 0.01,
    "logging_steps": 20,
    "save_steps": 100,
    "save_total_limit": 1,
    "train_sampling_strategy": "group_by_length",
}


def run(experiment: Experiment) -> None:
    """Train what is to be trained, then measure both; resumes in either half.

    Raises:
        UserError: The data, the encoder, or a reward that is not trained here is unusable.
    """
    data = load_data(experiment)
    tracking.setup(experiment, "reward")
    try:
        seconds: dict[str, float] = {}
        for part in PARTS:
            if _spec(experiment, part) == "sentiment" and not _trained(experiment, part):
                texts = data.proxy if part == "proxy" else data.gold
                seconds[part] = _train(experiment, part, texts, data.classifier_test)
        if tracking.is_main_process():
            _measure(experiment, data)
    finally:
        tracking.finish()


def proxy_reward(experiment: Experiment) -> RewardFunction:
    """The reward that is optimised; a mistake in it is a UserError."""
    return _reward(experiment, "proxy")


def gold_reward(experiment: Experiment) -> RewardFunction:
    """The judge, which nothing is optimised against; a mistake in it is a UserError.

    It is the proxy itself where ``reward.source`` is not ``sentiment`` and ``reward.gold`` is null.
    """
    return _reward(experiment, "gold")


def _spec(experiment: Experiment, part: Part) -> str:
    """What the config names for a part; ``sentiment`` is trained here."""
    section = experiment.reward
    return section.source if part == "proxy" or section.gold is None else section.gold
