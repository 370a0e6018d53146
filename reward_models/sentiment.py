"""A sequence-classification checkpoint as a reward: its scalar, or the log-odds of its good labels.

Which labels are good is `labels`' to find, how the texts are read `reading`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.adapters import ADAPTER_CONFIG, load_adapter_classifier, share_weights
from reward_models.calibration import TEMPERATURE
from reward_models.calling import to_stderr
from reward_models.interface import RewardError
from reward_models.labels import find_positive, weighted
from reward_models.reading import APPENDS_EOS, Format, Reader, Row, length_limit, usual_format

_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
_INDEPENDENT = ("multi_label_classification", "regression")
# How far padding may move a score, as a share of it: in float32, and in what computes coarser.
_ROUNDING, _COARSE = 1e-3, 0.05


class SequenceClassifier:
    """Scores prompt + completion with a classifier and the classifier's own tokenizer.

    One label: its scalar output. More: the log-odds of the positive ones together against all
    others, by name (`find_positive`); of two labels that is the logit margin. In nats, and not
    rescaled. With a weight a label: their expected value, Σ P(label)·weight. Of outputs that are
    independent of each other (``problem_type`` regression or
    multi_label_classification) the positive one, as it is.

    A text above ``max_length`` tokens loses its beginning, so that what is scored, the completion,
    stays; that it does is said.
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
        positive_labels: Sequence[str] | None = None,
        label_weights: Mapping[str, float] | None = None,
        format: Format | None = None,
        warn: Callable[[str], None] = to_stderr,
    ) -> None:
        """Move ``model`` to ``device`` in evaluation mode, and try it.

        Args:
            model: A sequence classifier; its weights stay as they are.
            tokenizer: Its tokenizer. Without a pad token, EOS pads.
            max_length: In tokens; None, and any more, is what model and tokenizer can take.
            batch_size: Texts scored at once, sorted by length.
            dtype: ``torch.bfloat16`` computes under autocast, None in the weights' own dtype.
            device: None is where the model is.
            name: What messages call it.
            positive_labels: Those that are positive, where their names do not tell.
            label_weights: A number for every label, or of independent outputs for some.
            format: How it reads a prompt and a completion; None is `usual_format`.
            warn: Takes a line about texts that are cut.

        Raises:
            RewardError: The labels do not tell which are positive, nothing can pad, the format is
                none that the tokenizer has, or the model cannot score a text.
        """
        self.__name__ = name
        self.model = model.eval().to(device or model.device)  # type: ignore[arg-type]
        self.weights = self._weights(label_weights, positive_labels)
        self.columns = list(self.weights or ()) or self._columns(positive_labels)
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise RewardError(
                    f"{name}: its tokenizer has neither pad nor EOS token; set pad_token"
                )
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.max_length = length_limit(model, tokenizer, max_length)
        self.batch_size = batch_size
        self.dtype = dtype
        ending = str(tokenizer.eos_token) if getattr(model.config, APPENDS_EOS, False) else ""
        self.format = format or usual_format(model, tokenizer)
        self.read = Reader(tokenizer, self.format, self.max_length, ending, name, warn)
        self._pad = model.config.pad_token_id
        self._pads = True
        self._try()

    def _weights(
        self, weights: Mapping[str, float] | None, names: Sequence[str] | None
    ) -> dict[int, float] | None:
        """The labels' weights by column; None where none are given."""
        config, name = self.model.config, self.__name__
        if weights is None:
            return None
        if names is not None:
            raise RewardError(f"{name}: has positive_labels and label_weights; set one of them")
        if config.num_labels == 1:
            raise RewardError(f"{name}: has one output, which is the reward; remove label_weights")
        independent = config.problem_type in _INDEPENDENT
        return weighted(config.id2label or {}, name, weights, independent)

    def _columns(self, names: Sequence[str] | None) -> list[int] | None:
        """The positive labels' columns; None where the one output is the reward."""
        config, name = self.model.config, self.__name__
        if config.num_labels == 1:
            if names is not None:
                raise RewardError(
                    f"{name}: has one output, which is the reward; remove positive_labels"
                )
            return None
        independent = config.problem_type in _INDEPENDENT
        return find_positive(config.id2label or {}, name, names, independent)

    @property
    def gives_log_odds(self) -> bool:
        """True where a score is the log-odds of the positive labels against all others, or a single
        output that was calibrated to be log-odds."""
        config = self.model.config
        if self.columns is None:
            return getattr(config, TEMPERATURE, None) is not None
        return self.weights is None and config.problem_type not in _INDEPENDENT

    def describe(self) -> str:
        """How it reads and what it scores, in a line."""
        words = {"text": "one text", "pair": "a pair of texts", "chat": "a chat in its template"}
        scores, labels = "the one output", cast("dict[int, str]", self.model.config.id2label)
        if self.columns is not None:
            named = ", ".join(str(labels[column]) for column in self.columns)
            independent = self.model.config.problem_type in _INDEPENDENT
            scores = f"the output {named}" if independent else f"the log-odds of {named}"
        if self.weights is not None:
            terms = (f"{weight:g}·{labels[c]}" for c, weight in self.weights.items())
            scores = f"the expected value of {' + '.join(terms)}"
        return f"reads {words[self.format]} of up to {self.max_length} tokens, gives {scores}"

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        """Return one score for each completion."""
        return self._scores(self.read(prompts, completions))

    def score(self, texts: list[str]) -> list[float]:
        """Return one score for each text."""
        return self([""] * len(texts), texts)

    @torch.no_grad()
    def _scores(self, rows: list[Row]) -> list[float]:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        # Texts of one length need no padding.
        by_length = groupby(order, lambda i: 0 if self._pads else len(rows[i]["input_ids"]))
        scores = [0.0] * len(rows)
        for group in (list(group) for _, group in by_length):
            for start in range(0, len(group), self.batch_size):
                part = group[start : start + self.batch_size]
                values = self._forward([rows[i] for i in part])
                for i, value in zip(part, values, strict=True):
                    scores[i] = value
        return scores

    def _forward(self, rows: list[Row]) -> list[float]:
        """Scores of one batch; ``(B, labels)`` logits become B numbers."""
        device = self.model.device
        mixed = torch.autocast(device.type, self.dtype) if self.dtype else nullcontext()
        with mixed:
            logits = self.model(**{k: v.to(device) for k, v in self._padded(rows).items()}).logits
        logits = logits.float()
        if self.columns is None:
            return logits.reshape(-1).tolist()
        if self.weights is not None:
            return self._expected(logits)
        if self.model.config.problem_type in _INDEPENDENT:
            return logits[:, self.columns[0]].tolist()
        others = [column for column in range(logits.shape[1]) if column not in self.columns]
        return (logits[:, self.columns].logsumexp(1) - logits[:, others].logsumexp(1)).tolist()

    def _expected(self, logits: Tensor) -> list[float]:
        """``(B, labels)`` logits to Σ P(label)·weight, B numbers; of a regression Σ output·weight.

        Of labels that are independent of each other each has a probability of its own.
        """
        assert self.weights is not None
        kind = self.model.config.problem_type
        outputs = logits if kind == "regression" else logits.softmax(1)
        if kind == "multi_label_classification":
            outputs = logits.sigmoid()
        weights = torch.tensor(list(self.weights.values()), device=logits.device)
        return (outputs[:, list(self.weights)] @ weights).tolist()

    def _padded(self, rows: list[Row]) -> dict[str, Tensor]:
        """A batch of rows, padded on the right.

        Decoders find a text's last token by the pad token of their config. One that names none gets
        a token that is in no text here: EOS, say, would be taken for padding at a text's end.
        """
        pad = self._pad
        if pad is None:
            used = {token for row in rows for token in row["input_ids"]}
            pad = next(token for token in range(len(used) + 1) if token not in used)
            config: Any = self.model.config
            config.pad_token_id = config.get_text_config().pad_token_id = pad
        fill = {"input_ids": pad, "token_type_ids": self.tokenizer.pad_token_type_id}
        width = max(len(row["input_ids"]) for row in rows)
        return {
            name: torch.tensor(
                [row[name] + [fill.get(name, 0)] * (width - len(row[name])) for row in rows]
            )
            for name in rows[0]
        }

    def _try(self) -> None:
        """Score a text alone and beside a longer one; where that differs, do without padding."""
        short, long = self.read(["The film", "The film that we saw"], [" is good", " is good" * 4])
        try:
            alone, together = self._scores([short])[0], self._scores([short, long])[0]
        except Exception as error:  # whatever a foreign model may raise
            reason = (str(error).strip() or "no message").splitlines()[0]
            raise RewardError(
                f"{self.__name__}: cannot score a text ({type(error).__name__}: {reason}); give "
                "another checkpoint"
            ) from error
        coarse = self.dtype is not None or self.model.dtype != torch.float32
        allowed = (_COARSE if coarse else _ROUNDING) * max(1.0, abs(alone))
        self._pads = abs(alone - together) <= allowed


def _refuse_another_task(config: PretrainedConfig, label: str) -> None:
    """RewardError for a checkpoint whose head is for something else, or has code of its own.

    The weights of a token classifier's head, for one, fit a sequence classifier's. A language
    model has none that fit, unless it was made a reward model and kept its name.
    """
    for name in config.architectures or []:
        if re.search(r"For(?!SequenceClassification|CausalLM)[A-Z]\w*$", name):
            raise RewardError(
                f"{label}: is a {name}, not trained to score a text; give a sequence-classification"
                " checkpoint"
            )
    if "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {}):
        raise RewardError(
            f"{label}: scores by Python code of its own, which is not run; call it in a function of"
            " your own (file.py:function)"
        )


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
            _refuse_another_task(AutoConfig.from_pretrained(str(source)), label)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(source), output_loading_info=True
            )
            missing = info["missing_keys"]
    except RewardError:
        raise
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
