"""A sequence-classification checkpoint as a reward: the log-odds of its positive label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.adapters import ADAPTER_CONFIG, load_adapter_classifier, share_weights
from reward_models.interface import RewardError

_POSITIVE = {"positive", "pos"}
_NEGATIVE = {"negative", "neg"}
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
# Set in the config of a model that was trained on texts ending with EOS (`pairwise` does).
APPENDS_EOS = "reward_appends_eos"


def positive_label(id2label: Mapping[Any, Any], place: str = "the classifier") -> int:
    """Find the positive label's column by its name.

    The rule, in this order: the one label named positive or pos (any case); of two labels, the one
    that is not named negative or neg; of LABEL_0 and LABEL_1 (names that were never chosen),
    LABEL_1, as in every data set whose classes are 0 and 1.

    Args:
        id2label: Column to name, from a model's config.
        place: What the message calls the classifier.

    Raises:
        RewardError: The names do not tell.
    """
    names = {int(column): str(name).strip().lower() for column, name in id2label.items()}
    named = [column for column, name in names.items() if name in _POSITIVE]
    if not named and len(names) == 2:
        negative = [column for column, name in names.items() if name in _NEGATIVE]
        if len(negative) == 1:
            named = [column for column in names if column not in negative]
        elif sorted(names.values()) == ["label_0", "label_1"]:
            named = [column for column, name in names.items() if name == "label_1"]
    if len(named) == 1:
        return named[0]
    shown = ", ".join(
        f"{column}: {id2label[key]}" for column, key in zip(names, id2label, strict=True)
    )
    raise RewardError(
        f"{place}: its labels ({shown}) do not tell which one is positive; name that one "
        "'positive' in id2label of its config.json"
    )


class SequenceClassifier:
    """Scores prompt + completion with a classifier and the classifier's own tokenizer.

    One label: its scalar output. Two labels: the logit margin of the positive one, found by name
    (`positive_label`). More: the same log-odds, positive against all others together. In nats; not
    rescaled.

    The text is the prompt and the completion joined as they are, without special tokens of the
    policy: the classifier reads text as it was trained to. Texts above ``max_length`` tokens lose
    their beginning, so that what is scored, the completion, stays.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        batch_size: int = 64,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        name: str = "the classifier",
    ) -> None:
        """Move ``model`` to ``device`` in evaluation mode.

        Args:
            model: A sequence classifier; its weights stay as they are.
            tokenizer: Its tokenizer. Without a pad token, EOS pads.
            max_length: In tokens; never more than the model has positions for.
            batch_size: Texts scored at once, sorted by length.
            dtype: ``torch.bfloat16`` computes under autocast, None in the weights' own dtype.
            device: None is where the model is.
            name: What messages call it.

        Raises:
            RewardError: The labels do not tell which one is positive, or nothing can pad.
        """
        self.__name__ = name
        self.column = None
        if model.config.num_labels != 1:
            self.column = positive_label(model.config.id2label or {}, name)
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise RewardError(
                    f"{name}: its tokenizer has neither pad nor EOS token; set pad_token"
                )
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # decoders find the last token by it
            model.config.pad_token_id = tokenizer.pad_token_id
        self.model = model.eval().to(device or model.device)  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        self.max_length = _length_limit(model, tokenizer, max_length)
        self.batch_size = batch_size
        self.dtype = dtype
        self.ending = str(tokenizer.eos_token) if getattr(model.config, APPENDS_EOS, False) else ""

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        """Return one score for each completion."""
        texts = [prompt + end for prompt, end in zip(prompts, completions, strict=True)]
        return self.score(texts)

    @torch.no_grad()
    def score(self, texts: list[str]) -> list[float]:
        """Return one score for each text."""
        encoded = self._encode(texts)
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]["input_ids"]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            values = self._forward([encoded[row] for row in rows])
            for row, value in zip(rows, values, strict=True):
                scores[row] = value
        return scores

    def _encode(self, texts: list[str]) -> list[dict[str, list[int]]]:
        side = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = "left"
        try:
            encoded = self.tokenizer(
                [text + self.ending for text in texts], truncation=True, max_length=self.max_length
            )
        finally:
            self.tokenizer.truncation_side = side
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        rows = [{name: encoded[name][i] for name in names} for i in range(len(texts))]
        for row in rows:
            if not row["input_ids"]:  # an empty text, and a tokenizer that frames nothing
                for name in names:
                    row[name] = [self.tokenizer.pad_token_id if name == "input_ids" else 0]
                row["attention_mask"] = [1]
        return rows

    def _forward(self, rows: list[dict[str, list[int]]]) -> list[float]:
        """Scores of one batch; ``(B, labels)`` logits become B numbers."""
        batch = self.tokenizer.pad(rows, padding_side="right", return_tensors="pt")
        device = self.model.device
        mixed = torch.autocast(device.type, self.dtype) if self.dtype else nullcontext()
        with mixed:
            logits = self.model(**batch.to(device)).logits
        logits = logits.float()
        if self.column is None:
            return logits.reshape(-1).tolist()
        others = torch.cat([logits[:, : self.column], logits[:, self.column + 1 :]], dim=1)
        return (logits[:, self.column] - others.logsumexp(1)).tolist()


def _length_limit(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, asked: int | None
) -> int:
    """The longest input in tokens: as asked, but within the model and its tokenizer."""
    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    # RoBERTa's positions start behind the pad token's, so it has fewer than it says.
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= (model.config.pad_token_id or 0) + 1
    return int(min(asked or math.inf, positions, tokenizer.model_max_length, 2**20))


def load_classifier(
    source: str | Path,
    *,
    base_model: Path | None = None,
    share_with: nn.Module | None = None,
    **options: Any,
) -> SequenceClassifier:
    """Load a folder or hub id as a `SequenceClassifier`; ``options`` are its keyword arguments.

    Args:
        source: A checkpoint, or a folder that `save_adapter_classifier` wrote.
        base_model: What such a folder's adapters belong to; None is what the folder says.
        share_with: A model whose frozen weights are used where the classifier's equal them.

    Raises:
        RewardError: There is no such model, or it has no trained classification head.
    """
    label = options.get("name", f"reward {source}")
    options = {**options, "name": label}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
        if (Path(source) / ADAPTER_CONFIG).is_file():
            model, missing = load_adapter_classifier(Path(source), base_model), set()
            if model.get_base_model().dtype == torch.bfloat16:  # adapters stay float32
                options["dtype"] = torch.bfloat16
        else:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(source), output_loading_info=True
            )
            missing = info["missing_keys"]
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RewardError(
            f"{label}: no sequence-classification model can be loaded from it ({reason}); "
            "give a folder with config.json, weights and tokenizer, a hub id, or file.py:function"
        ) from error
    # transformers fills what a checkpoint lacks with random numbers, and only warns.
    if missing:
        raise RewardError(
            f"{label}: is no trained classifier (it has no weights for {sorted(missing)[0]}); give "
            "a sequence-classification checkpoint"
        )
    if share_with is not None:
        share_weights(model, share_with)
    return SequenceClassifier(model, tokenizer, **options)
