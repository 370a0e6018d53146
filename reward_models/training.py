"""Training the classifier that `sentiment` reads: transformers' Trainer, thinly.

Two outputs learn a label, or the probability of one; a single output learns a number.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

LABELS = {0: "negative", 1: "positive"}
# Shuffled texts sorted by length at a time, in batches: wide enough that a batch has hardly any
# padding, narrow enough that batches are new in every epoch.
_POOL = 50


class LengthGrouped(Sampler[int]):
    """A shuffled order in which neighbours have about the same length.

    The order is a function of ``seed`` and the epoch alone. transformers' own sampler draws it
    from the global random state, so a run resumed in mid-epoch would see other batches than the
    uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """``lengths`` of the texts in tokens; ``batch_size`` is one process's."""
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the Trainer calls it, after resuming too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        pool = _POOL * self.batch_size
        batches = []
        for start in range(0, len(order), pool):
            near = sorted(order[start : start + pool], key=lambda i: self.lengths[i])
            batches += [near[i : i + self.batch_size] for i in range(0, len(near), self.batch_size)]
        # The last batch may be short, and a short one anywhere else would shift all behind it.
        short = batches.pop() if len(batches[-1]) < self.batch_size else []
        rng.shuffle(batches)
        yield from (index for batch in [*batches, short] for index in batch)


class ClassifierTrainer(Trainer):
    """transformers' Trainer with a group-by-length order that survives resuming."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(rows)
        # Rows that are made into tokens later know about how long they are.
        later = getattr(rows, "sizes", None)
        lengths = later() if later else [len(row["input_ids"]) for row in rows]
        return LengthGrouped(lengths, self.args.train_batch_size, self.args.seed)


def head_options(outputs: int) -> dict[str, Any]:
    """What `from_pretrained` takes for a fresh head: negative and positive, or one number."""
    if outputs == 1:
        return {"num_labels": 1, "problem_type": "regression"}
    label2id = {name: column for column, name in LABELS.items()}
    return {"num_labels": 2, "id2label": LABELS, "label2id": label2id}


def new_classifier(encoder: str, seed: int, outputs: int = 2) -> PreTrainedModel:
    """Put a fresh head on the encoder or decoder in a folder or on the hub, in float32.

    Its ``outputs`` are two, negative and positive, or one number.

    A BERT pooler that was never trained, as in sentence encoders that average over tokens, starts
    as the identity (its bias is still zero): random weights there would scramble what the encoder
    knows. With all-MiniLM that raised held-out accuracy from 84.1 to 85.4 %, correlation with the
    human mean from 0.763 to 0.777 (4,315 movie snippets, 2 epochs, one seed).

    Raises:
        OSError, ValueError: There is no such model, or none that can classify.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            encoder,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head for other labels makes way
            **head_options(outputs),
        )
    dense = getattr(getattr(model.base_model, "pooler", None), "dense", None)
    if isinstance(dense, torch.nn.Linear) and not dense.bias.any():
        torch.nn.init.eye_(dense.weight)
    return model


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    targets: Sequence[bool] | Sequence[float],
    max_length: int,
) -> list[dict[str, Any]]:
    """Texts as the Trainer takes them: token ids cut at ``max_length``, and ``labels``.

    These are 0 or 1 where ``targets`` say which texts are positive, else the numbers themselves.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    names = [name for name in ("input_ids", "attention_mask") if name in encoded]
    return [
        {
            **{name: encoded[name][i] for name in names},  # type: ignore[index]
            "labels": int(target) if isinstance(target, bool) else target,
        }
        for i, target in enumerate(targets)
    ]


def _accuracy(result: EvalPrediction) -> dict[str, float]:
    """Share of texts on whose side the output is: of 1/2 for a probability, of 0 for a number."""
    predicted, labels = np.asarray(result.predictions), np.asarray(result.label_ids)
    if predicted.ndim == 1 or predicted.shape[-1] == 1:
        return {"accuracy": float(np.mean((predicted.reshape(-1) > 0) == (labels > 0)))}
    return {"accuracy": float(np.mean((predicted.argmax(-1) == 1) == (labels > 0.5)))}


def _loss(outputs: Any, targets: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Cross-entropy against the probability of a positive label, or squared error.

    ``(B, 2)`` or ``(B, 1)`` logits, ``(B,)`` targets. A mean over ``num_items_in_batch`` texts
    where the batch is one of several to a step.
    """
    logits = outputs.logits.float()
    targets = targets.to(logits.dtype)
    if logits.shape[-1] == 1:
        loss = ((logits[:, 0] - targets) ** 2).sum()
    else:
        logs = logits.log_softmax(-1)
        loss = -(targets * logs[:, 1] + (1 - targets) * logs[:, 0]).sum()
    return loss / (len(targets) if num_items_in_batch is None else num_items_in_batch)


def classifier_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    train: Sequence[dict[str, Any]],
    test: Sequence[dict[str, Any]],
    callbacks: Sequence[Any] = (),
) -> ClassifierTrainer:
    """Return the trainer; ``train`` and ``test`` as `encode` gives them.

    Two outputs learn labels 0 and 1, or numbers between as probabilities of positive; a single
    output learns numbers, by least squares.
    """
    soft = model.config.num_labels == 2 and isinstance(train[0]["labels"], float)
    # A model's own loss is a mean over its batch, which several batches to a step would add up.
    own_loss = soft or arguments.gradient_accumulation_steps > 1
    return ClassifierTrainer(
        model=model,
        args=arguments,
        train_dataset=train,  # type: ignore[arg-type]
        eval_dataset=test,  # type: ignore[arg-type]
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy,
        compute_loss_func=_loss if own_loss else None,
        callbacks=list(callbacks),
    )
