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

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.lm.generation import sample_tokens
from pipeline.lm.hardware import compute_dtype, use_plain_attention
from pipeline.lm.models import EMBEDDED_MODEL, decoder_layers, make_trainable, prepare
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import logits_chunk, token_logps

_DEPTH = 3  # layers of the model that is timed
_LENGTH = 24  # tokens of each of its texts
_MOST_POSITIONS = 768
_PRODUCTS = 3e9  # multiply-adds of a layer's timing, at most
_LEAST_TIME = 0.15  # seconds that each timing takes, at least
_DECODED = 6
_LARGEST = 400_000_000  # weights of the model that is timed; above, it takes too long to make


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
    """Time the model's parts; ``None`` where it is too large for that to be quick.

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
    shallow, deep = (_few_layers(config, depth, dtype, section) for depth in (1, _DEPTH))
    if shallow is None or deep is None:
        return None
    for model in (shallow, deep):
        prepare(model, tokenizer)
        use_plain_attention(model, torch.device("cpu"), _LENGTH)
        model.eval()
    weights = sum(p.numel() for p in decoder_layers(deep).parameters()) // _DEPTH
    count = max(_LENGTH, min(_MOST_POSITIONS, int(_PRODUCTS / weights)) // _LENGTH * _LENGTH)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        forward = _forward(deep, count) / (_DEPTH * count)
        drawing, drawing_head = _drawing((shallow, deep), tokenizer, max(1, min(rows, count // 4)))
        head = _head(deep, count // 2, training=False) / (count // 2)
        trained = section.trainable_layers
        few = {"trainable_layers": min(trained, _DEPTH) if trained else None}
        policy = make_trainable(deep, section.model_copy(update=few))
        training = _training(policy, count) / (_DEPTH * count)
        head_training = _head(deep, count // 2, training=True) / (count // 2)
    upper = min(trained or layers, layers)
    step = _step(policy) / _DEPTH * upper
    return Speed(layers, upper, forward, training, head, head_training, drawing, drawing_head, step)


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
    return seconds[0] / tokens.numel(), seconds[1] / tokens.numel(), _step(model)


def _few_layers(
    config: Any, depth: int, dtype: torch.dtype, section: ModelSection
) -> PreTrainedModel | None:
    """The architecture with ``depth`` layers of random weights."""
    config = copy.deepcopy(config)
    config.get_text_config().num_hidden_layers = depth
    arguments = {"trust_remote_code": section.trust_remote_code}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, **arguments)
    if sum(p.numel() for p in empty.parameters()) > _LARGEST:
        return None
    return AutoModelForCausalLM.from_config(config, dtype=dtype, **arguments)


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


def _texts(count: int) -> torch.Tensor:
    """``(count / length, length)`` tokens."""
    return (torch.arange(count) % 60 + 2).view(-1, _LENGTH)


@torch.no_grad()
def _forward(model: PreTrainedModel, count: int) -> float:
    tokens = _texts(count)
    return _seconds(lambda: hidden_states(model, tokens))


def _training(policy: nn.Module, count: int) -> float:
    tokens = _texts(count)

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


def _drawing(
    models: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, rows: int
) -> tuple[float, float]:
    """Seconds for a token of a row: of one layer, and of all that is not layers."""
    encoded = [(2, 3, 4, 5)] * rows
    shallow, deeper = (
        _seconds(
            lambda model=model: sample_tokens(
                model,
                tokenizer,
                encoded,
                max_new_tokens=_DECODED,
                temperature=1.0,
                batch_size=rows,
                seed=0,
            )
        )
        / (rows * _DECODED)
        for model in models
    )
    layer = max(deeper - shallow, 0.0) / (_DEPTH - 1)
    return layer, max(shallow - layer, 0.0)


def _step(model: nn.Module) -> float:
    """An optimizer step on the trained weights, whose gradients are there, clipping included."""
    trained = [p for p in model.parameters() if p.grad is not None]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)

    def work() -> None:
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return _seconds(work)
