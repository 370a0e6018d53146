"""Sampling completions, and the token layout that everything after sampling works on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from pipeline.errors import UserError
from pipeline.models import autocast, base_of
from pipeline.records import Prompt
from pipeline.terminal import progress

_BLOCK = 128  # vocabulary entries that are summed up at once when a token is drawn


@dataclass(frozen=True)
class Completion:
    """One episode: a prompt and what a policy made of it.

    Attributes:
        prompt: the prompt as text, as rewards see it.
        prompt_ids: its tokens.
        completion_ids: the sampled tokens, the EOS included when there is one.
        text: the completion as text, without EOS, so that ``prompt + text`` reads on.
        ended: whether the completion ended by EOS rather than by the length limit.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    ended: bool


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, prompt_ids: Sequence[int]
) -> str:
    """A prompt as a reward reads it: the text itself, or a conversation as the chat template
    writes it, without special tokens."""
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.decode(list(prompt_ids), skip_special_tokens=True))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Tokens of a prompt, ready to be continued: chat template for messages, no EOS for text."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])  # type: ignore[arg-type]
        while ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
    else:
        if tokenizer.chat_template is None:
            raise UserError(
                "prompts are conversations but the tokenizer has no chat template; "
                "use plain-text prompts or a model with a chat template"
            )
        encoded: Any = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = list(encoded["input_ids"])
    if not ids:
        raise UserError(f"the prompt {prompt!r} has no tokens; remove it")
    return tuple(ids)


def longest_prompt(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest prompt, as judged by the 64 with the most characters."""
    longest = sorted(prompts, key=lambda prompt: len(str(prompt)), reverse=True)[:64]
    return max(len(encode_prompt(tokenizer, prompt)) for prompt in longest)


def cut_at_eos(tokens: Sequence[int], eos: set[int]) -> tuple[tuple[int, ...], bool]:
    """The tokens up to and including the first EOS, and whether there was one."""
    for position, token in enumerate(tokens):
        if token in eos:
            return tuple(tokens[: position + 1]), True
    return tuple(tokens), False


def _decode(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> str:
    """The completion's text as it follows the prompt (some tokenizers drop a leading space)."""
    before: str = tokenizer.decode(list(prompt_ids), skip_special_tokens=True)  # type: ignore
    whole: str = tokenizer.decode(  # type: ignore[assignment]
        list(prompt_ids) + list(completion_ids), skip_special_tokens=True
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(list(completion_ids), skip_special_tokens=True)  # type: ignore


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int,
    seed: int,
    draws: Tensor | None = None,
    label: str | None = None,
) -> list[Completion]:
    """Sample from the model's own distribution: no top-k, no top-p.

    Args:
        prompts: P prompts. samples_per_prompt: m.
        max_new_tokens: longest completion, EOS included.
        temperature: divides the logits.
        batch_size: completions generated at once; prompts of like length share a batch.
        seed: makes the result a function of the arguments; torch's global state is left alone.
        draws: ``(P·m, max_new_tokens)`` numbers in [0, 1) that choose the tokens instead of the
            seed's; then no row's completion depends on which others it is sampled with.
        label: shows a progress bar under this name.

    Returns:
        P·m completions, prompt i's at i·m … i·m + m − 1.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    rows = [i for i in range(len(prompts)) for _ in range(samples_per_prompt)]
    order = sorted(range(len(rows)), key=lambda r: (len(encoded[rows[r]]), r))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    eos: Any = base_of(model).generation_config.eos_token_id  # type: ignore[union-attr]
    stop = set(eos) if isinstance(eos, list) else {eos}
    found: dict[int, Completion] = {}
    was_training = model.training
    model.eval()
    devices = [base_of(model).device] if base_of(model).device.type != "cpu" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for batch in progress(batches, label, len(batches)) if label else batches:
                prompt_ids = [encoded[rows[r]] for r in batch]
                sampler = Sampler(temperature, None if draws is None else draws[batch])
                tokens = _generate(model, tokenizer, prompt_ids, max_new_tokens, sampler)
                for r, ids, generated in zip(batch, prompt_ids, tokens, strict=True):
                    kept, ended = cut_at_eos(generated, stop)  # type: ignore[arg-type]
                    text = _decode(tokenizer, ids, kept)
                    prompt = prompt_text(tokenizer, prompts[rows[r]], ids)
                    found[r] = Completion(prompt, ids, kept, text, ended)
    finally:
        model.train(was_training)
    return [found[r] for r in range(len(rows))]


class Sampler(LogitsProcessor):
    """Draws each row's token by inverting its cumulative distribution (:func:`invert`).

    ``torch.multinomial``, which ``generate`` samples with, draws one random number for every
    entry of the vocabulary: a quarter of the time of generating on a processor. This draws one a
    row, and leaves the drawn token as the only choice.
    """

    def __init__(self, temperature: float, draws: Tensor | None = None) -> None:
        """``temperature`` divides the logits; ``draws`` as for :func:`sample`, one row each."""
        self.temperature = temperature
        self.draws = draws
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(B, V)`` logits, which are overwritten, to scores with one finite entry a row."""
        if self.draws is None:
            draw = torch.rand(len(scores), 1, device=scores.device)
        else:
            draw = self.draws[:, self.step, None].to(scores.device)
        self.step += 1
        # generate() hands over a copy of its own: overwriting it saves passes over the memory.
        logits = scores.float()
        if self.temperature != 1.0:
            logits = logits.div_(self.temperature)
        weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
        token = invert(weights, draw)
        return scores.fill_(-torch.inf).scatter_(-1, token, 0.0)


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
    found = torch.searchsorted(running, torch.minimum(goal, below_total), right=True)
    return found.clamp(max=running.shape[-1] - 1)


@contextmanager
def _dense_head_input(head: nn.Module) -> Iterator[None]:
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


@torch.no_grad()
def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    sampler: Sampler,
) -> list[list[int]]:
    """Generated tokens of each prompt, EOS and padding still on."""
    device = base_of(model).device
    width = max(map(len, prompt_ids))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompt_ids], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids], device=device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # the choice is made by Sampler
        eos_token_id=base_of(model).generation_config.eos_token_id,  # type: ignore[union-attr]
        pad_token_id=pad,
        use_cache=True,
    )
    choose = LogitsProcessorList([sampler])
    head: Any = base_of(model).get_output_embeddings()
    with autocast(model), _dense_head_input(head):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=choose
        )
    return output[:, width:].tolist()
