"""How fast this machine runs a model: its layers and head timed on a few texts, in seconds.

Operations alone would not tell: what else is done for each layer and token (normalisation,
attention, the vocabulary's softmax, Python) takes a tenth of the time on a processor whose matrix
products are slow, and half or more where they are fast.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.lm.generation import sample_tokens
from pipeline.lm.hardware import compute_dtype, use_plain_attention
from pipeline.lm.models import (
    EMBEDDED_MODEL,
    base_of,
    decoder_layers,
    make_trainable,
    prepare,
)
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import logits_chunk, token_logps

_DEPTH = 3  # layers of the model that is timed
_LENGTH = 24  # tokens of each of its texts
_MOST_POSITIONS = 768
_PRODUCTS = 3e9  # multiply-adds of a layer's timing, at most
_LEAST_TIME = 0.15  # seconds that each timing takes, at least
_DECODED = 6
_MOST = 2**30  # bytes that the timing takes, and at most a quarter of what memory is free


@dataclass(frozen=True)
class Speed:
    """What one position (a token of a text) of the model costs here, in seconds.

    Attributes:
        layers: decoder layers of the whole model.
        trained_layers: of them, those with trained weights; the upper ones.
        forward: one layer, without gradient.
        training: one layer whose weights are trained, forward and backward.
        head: the logits and the log-probability.
        head_training: the same and its gradient.
        drawing: one token of one completion through one layer, with the cache.
        drawing_head: its logits, and drawing it.
        step: the optimizer's step on the whole model.
    """

    layers: int
    trained_layers: int
    forward: float
    training: float
    head: float
    head_training: float
    drawing: float
    drawing_head: float
    step: float


def measure(section: ModelSection, tokenizer: PreTrainedTokenizerBase, rows: int) -> Speed | None:
    """Time the model's parts; ``None`` where that would not be quick, or take a gigabyte.

    Args:
        rows: completions drawn at once.
    """
    name = section.model_name_or_path
    source = str(embedded.base_model()) if name == EMBEDDED_MODEL else name
    arguments = {"revision": section.model_revision} if section.model_revision else {}
    config = AutoConfig.from_pretrained(
        source, trust_remote_code=section.trust_remote_code, **arguments
    )
    layers = config.get_text_config().num_hidden_layers
    dtype = compute_dtype(section)
    empty, few = _empty(config, section), _few(section)
    if _bytes(empty, few, dtype) > min(_MOST, psutil.virtual_memory().available // 4):
        return None
    weights = sum(p.numel() for p in decoder_layers(empty).parameters()) // _DEPTH
    count = max(_LENGTH, min(_MOST_POSITIONS, int(_PRODUCTS / weights)) // _LENGTH * _LENGTH)
    drawn = max(1, min(rows, count // 4))

    def made(depth: int) -> PreTrainedModel:
        model = _few_layers(config, depth, dtype, section)
        prepare(model, tokenizer)
        use_plain_attention(model, torch.device("cpu"), _LENGTH)
        return model.eval()

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        one_layer = _drawing(made(1), tokenizer, drawn)  # gone before the next one is made
        deep = made(_DEPTH)
        more_layers = _drawing(deep, tokenizer, drawn)
        drawing = max(more_layers - one_layer, 0.0) / (_DEPTH - 1)
        forward = _forward(deep, count) / (_DEPTH * count)
        head = _head(deep, count // 2, training=False) / (count // 2)
        policy = make_trainable(deep, few)
        training = _training(policy, count) / (_DEPTH * count)
        head_training = _head(deep, count // 2, training=True) / (count // 2)
    upper = min(section.trainable_layers or layers, layers)
    return Speed(
        layers, upper, forward, training, head, head_training, drawing,
        drawing_head=max(one_layer - drawing, 0.0),
        step=_step_of_layers(policy, deep, upper),
    )  # fmt: skip


def classifier(model: nn.Module, rows: int, length: int, mixed: bool) -> tuple[float, float, float]:
    """Seconds for a position through a whole classifier, forward and with its gradient, and for a
    step of its optimizer.

    Args:
        rows: texts at once. length: tokens of each. mixed: compute in bfloat16.
    """
    tokens = torch.arange(rows * length).view(rows, length) % 60 + 2

    def work(training: bool) -> None:
        with torch.set_grad_enabled(training):
            logits = model(input_ids=tokens).logits
            if training:
                logits.float().sum().backward()

    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        seconds = [_seconds(lambda training=training: work(training)) for training in (False, True)]
    trained = [p for p in model.parameters() if p.grad is not None]
    return seconds[0] / tokens.numel(), seconds[1] / tokens.numel(), _step(trained)


def _few(section: ModelSection) -> ModelSection:
    """What is trained of the model that is timed."""
    trained = section.trainable_layers
    less = {"trainable_layers": min(trained, _DEPTH) if trained else None}
    return section.model_copy(update=less)


def _few_layers(
    config: Any, depth: int, dtype: torch.dtype, section: ModelSection
) -> PreTrainedModel:
    """The architecture with ``depth`` layers of random weights."""
    config = copy.deepcopy(config)
    config.get_text_config().num_hidden_layers = depth
    return AutoModelForCausalLM.from_config(
        config, dtype=dtype, trust_remote_code=section.trust_remote_code
    )


def _empty(config: Any, section: ModelSection) -> PreTrainedModel:
    """The model that is timed, without its weights."""
    with torch.device("meta"):
        return _few_layers(config, _DEPTH, torch.float32, section)


def _bytes(empty: PreTrainedModel, section: ModelSection, dtype: torch.dtype) -> int:
    """About what the timing takes: weights, trained ones in float32 with gradients, Adam's two
    moments of the layers' own, and two chunks of logits."""
    sizes = {id(p): p.numel() for p in empty.parameters()}
    layers = sum(p.numel() for p in decoder_layers(empty).parameters())
    share = (section.trainable_layers or _DEPTH) / _DEPTH
    learned = 0 if section.use_peft else int(share * layers)
    whole = not section.use_peft and section.trainable_layers is None
    trained = sum(sizes.values()) if whole else learned
    chunk = logits_chunk(torch.device("cpu")) * empty.config.get_text_config().vocab_size
    frozen = (sum(sizes.values()) - trained) * dtype.itemsize
    return frozen + trained * 8 + learned * 8 + 2 * chunk * 4


def _seconds(work: Callable[[], Any]) -> float:
    """The mean time of a call, after one that prepares."""
    work()
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        spent = time.perf_counter() - start
        if spent > _LEAST_TIME:
            return spent / calls


def _texts(model: nn.Module, count: int) -> torch.Tensor:
    """``(count / length, length)`` tokens that the model has embeddings for."""
    known = base_of(model).config.get_text_config().vocab_size
    return ((torch.arange(count) % 60 + 2) % known).view(-1, _LENGTH)


@torch.no_grad()
def _forward(model: PreTrainedModel, count: int) -> float:
    tokens = _texts(model, count)
    return _seconds(lambda: hidden_states(model, tokens))


def _training(policy: nn.Module, count: int) -> float:
    tokens = _texts(policy, count)

    def work() -> None:
        hidden_states(policy, tokens).float().sum().backward()

    return _seconds(work)


def _head(model: PreTrainedModel, count: int, training: bool) -> float:
    size = model.config.get_text_config().hidden_size
    states = torch.randn(count, size, dtype=model.dtype, requires_grad=training)
    targets, chunk = torch.zeros(count, dtype=torch.long), logits_chunk(states.device)

    def work() -> None:
        with torch.set_grad_enabled(training):
            logps = token_logps(states, lm_head(model), targets, 1.0, chunk)
            if training:
                logps.sum().backward()

    return _seconds(work)


def _drawing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int) -> float:
    """Seconds for a token of a row, through the layers there are and the head."""
    known = base_of(model).config.get_text_config().vocab_size
    encoded = [tuple(token % known for token in (2, 3, 4, 5))] * rows

    def work() -> None:
        sample_tokens(
            model, tokenizer, encoded, max_new_tokens=_DECODED, temperature=1.0, batch_size=rows,
            seed=0,
        )  # fmt: skip

    return _seconds(work) / (rows * _DECODED)


def _step_of_layers(policy: nn.Module, deep: PreTrainedModel, upper: int) -> float:
    """An optimizer step on ``upper`` layers and on whatever else is trained, by their weights.

    It is timed on the layers alone: Adam's moments of an embedding would take most of the memory.
    """
    inside = {id(p) for p in decoder_layers(deep).parameters()}
    trained = [p for p in policy.parameters() if p.grad is not None]
    layers = [p for p in trained if id(p) in inside]
    weights = sum(p.numel() for p in layers)
    others = sum(p.numel() for p in trained) - weights
    in_time = min(upper, _DEPTH)
    return _step(layers) * (upper / in_time + others / weights)


def _step(trained: list[nn.Parameter]) -> float:
    """An optimizer step on ``trained``, whose gradients are there, clipping included."""
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)

    def work() -> None:
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return _seconds(work)
