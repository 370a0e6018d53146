"""The loop in which tokens are drawn: ``generate``'s own, but for how a token is chosen and when a
row is done with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_BLOCK = 128  # vocabulary entries that are summed up at once when a token is drawn
_LEAVE = 8  # rows leave the batch as soon as one in so many is done: leaving copies the cache
_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)  # layers of a cache that rows can leave
_LOOK = 16  # tokens between two looks at who is done, where a look makes an accelerator wait


class Decoder:
    """Samples each row's tokens with one random number a token; rows that ended leave the batch.

    A decoding loop for ``generate(custom_generate=…)``, which prepares cache and masks. Its own
    loop draws, with ``torch.multinomial``, a random number for every entry of the vocabulary, a
    quarter of the time on a processor, and keeps ended rows until the longest has ended.

    Args:
        temperature: divides the logits.
        draws: ``(B, max_new_tokens)`` numbers in [0, 1), one for each token; else torch's
            generator gives them. They go to the model's device once, as the loop begins.
    """

    def __init__(self, temperature: float, draws: Tensor | None = None) -> None:
        self.temperature = temperature
        self.draws = draws

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **inputs: Any,
    ) -> Tensor:
        """``(B, L)`` prompts to ``(B, T)`` tokens without them, padded after their end.

        ``logits_processor`` goes unused: tokens come from the model's own distribution.
        """
        rows, width = input_ids.shape
        config: Any = generation_config
        length = int(stopping_criteria.max_length) - width  # type: ignore[arg-type]
        tokens = torch.full((rows, length), int(config.pad_token_id), device=input_ids.device)
        place = torch.arange(rows, device=input_ids.device)  # in `tokens`, of the batch's rows
        done = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        look = 1 if input_ids.device.type == "cpu" else _LOOK
        if self.draws is not None:  # at once: a copy a token would make an accelerator wait
            self.draws = self.draws.to(input_ids.device)
        for step in range(length):
            given = model.prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=1 if step else None,
                is_first_iteration=step == 0,
                **inputs,
            )
            output = model(**given, return_dict=True)
            inputs = model._update_model_kwargs_for_generation(output, inputs)
            chosen = self.choose(output.logits[:, -1], rows, step, place)
            del output  # a prompt's logits, where the model gives them all
            tokens[place, step] = torch.where(done, tokens[place, step], chosen)
            done = done | torch.isin(chosen, config._eos_token_tensor)
            input_ids = torch.cat([input_ids, chosen[:, None]], dim=1)
            if (step + 1) % look:
                continue
            ended = int(done.sum())
            if ended == len(done):
                break
            if ended * _LEAVE >= len(done) and _may_leave(inputs):
                stay = (~done).nonzero().squeeze(1)
                place, done, input_ids = place[stay], done[stay], input_ids[stay]
                _select(inputs, stay)
        return tokens

    def choose(self, logits: Tensor, rows: int, step: int, place: Tensor) -> Tensor:
        """One token for each row of ``(B, V)`` logits."""
        if self.draws is None:  # for all rows, also those that left: a row's numbers are its own
            draw = torch.rand(rows, 1, device=logits.device)
        else:
            draw = self.draws[:, step, None]
        weights = logits.to(torch.float32, copy=True)
        if self.temperature != 1.0:
            weights.div_(self.temperature)
        weights.sub_(weights.amax(-1, keepdim=True)).exp_()
        return invert(weights, draw[place]).squeeze(1)


def _may_leave(inputs: dict[str, Any]) -> bool:
    """Whether every input with a row for each of the batch's is one that :func:`_select` knows.

    Caches with a state beside keys and values, as recurrent layers have, keep all their rows.
    """
    known = {"past_key_values", "attention_mask", "position_ids"}
    others = any(isinstance(inputs[key], Tensor) for key in inputs.keys() - known)
    positions = inputs.get("position_ids")
    flat = positions is None or positions.ndim == 2  # some have a dimension in front
    cache = inputs.get("past_key_values")
    plain = type(cache) is DynamicCache and all(type(x) in _PLAIN for x in cache.layers)
    return flat and plain and not others


def _select(inputs: dict[str, Any], rows: Tensor) -> None:
    """Keep only ``rows`` of the cache and of the masks."""
    inputs["past_key_values"].batch_select_indices(rows)
    for key in ("attention_mask", "position_ids"):
        if inputs.get(key) is not None:
            inputs[key] = inputs[key][rows]


def invert(weights: Tensor, draw: Tensor) -> Tensor:
    """The index in each row at which the running sum of ``weights`` passes ``draw`` of the total.

    The sum runs over blocks' totals first and then within one block, as a running sum over a whole
    vocabulary is several times slower than a total.

    Args:
        weights: ``(B, V)``, not negative, each row's total positive. draw: ``(B, 1)`` in [0, 1).

    Returns:
        ``(B, 1)`` indices; never one whose weight is 0.
    """
    size = weights.shape[-1]
    gap = -size % _BLOCK
    blocks = (F.pad(weights, (0, gap)) if gap else weights).unflatten(-1, (-1, _BLOCK))
    totals = blocks.sum(-1).cumsum(-1)
    goal = draw * totals[:, -1:]
    block = _first_above(totals, goal)
    before = torch.where(block > 0, totals.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK)).squeeze(1).cumsum(-1)
    # Where a weight is NaN there is no such index; the log-probabilities will tell.
    return (block * _BLOCK + _first_above(inside, goal - before)).clamp(max=size - 1)


def _first_above(running: Tensor, goal: Tensor) -> Tensor:
    """First index of each row whose running sum is above ``goal``, which rounding may leave
    beyond the total."""
    below_total = torch.nextafter(running[:, -1:], torch.zeros_like(goal))
    index = torch.searchsorted(running, torch.minimum(goal, below_total), right=True)
    return index.clamp(max=running.shape[-1] - 1)


@contextmanager
def dense_head_input(head: nn.Module) -> Iterator[None]:
    """Give the LM head its input without gaps in memory.

    ``generate`` hands the head the last position of every row, a view with gaps. For a frozen head
    torch then multiplies row by row and copies the head's weight for each of them: with 64 rows
    and a vocabulary of 49,152 that is 3.6 GB and nine tenths of the time of 20 tokens.
    """
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
