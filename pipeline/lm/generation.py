"""Sampling completions, and the token layout that everything after sampling works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from pipeline.data.records import Prompt, columns_of
from pipeline.errors import UserError
from pipeline.lm.decoding import Decoder, dense_head_input
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.output.terminal import progress
from reward_models.interface import ChatPrompt


@dataclass(frozen=True)
class Completion:
    """One episode: a prompt and what a policy made of it.

    Attributes:
        prompt: the prompt as text, as rewards see it.
        prompt_ids: its tokens.
        completion_ids: the sampled tokens, the EOS included when there is one.
        text: the completion as text, without EOS, so that ``prompt + text`` reads on.
        ended: whether the completion ended by EOS rather than by the length limit.
        columns: the other columns of the prompt's row, for the reward.
        logps: of each token by the engine that drew it, where that is not the policy's own loop.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    ended: bool
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    logps: tuple[float, ...] | None = field(default=None, compare=False, repr=False)


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, prompt_ids: Sequence[int]
) -> str:
    """A prompt as a reward reads it: the text itself, or a conversation as the chat template
    writes it, without special tokens, and its messages with it (`ChatPrompt`)."""
    if isinstance(prompt, str):
        return str(prompt)
    text = str(tokenizer.decode(list(prompt_ids), skip_special_tokens=True))
    return ChatPrompt(text, prompt)


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


def end_tokens(model: nn.Module) -> set[int]:
    """The tokens that end a completion."""
    eos: Any = base_of(model).generation_config.eos_token_id  # type: ignore[union-attr]
    return set(eos) if isinstance(eos, list) else {eos}


def cut_at_eos(tokens: Sequence[int], eos: set[int]) -> tuple[tuple[int, ...], bool]:
    """The tokens up to and including the first EOS, and whether there was one."""
    for position, token in enumerate(tokens):
        if token in eos:
            return tuple(tokens[: position + 1]), True
    return tuple(tokens), False


def completion_text(
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
    encoded: Sequence[tuple[int, ...]] | None = None,
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
        encoded: the prompts' :func:`encode_prompt`, where it is at hand.
        label: shows a progress bar under this name.

    Returns:
        P·m completions, prompt i's at i·m … i·m + m − 1.
    """
    repeated = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    if encoded is None:
        encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    ids = [each for each in encoded for _ in range(samples_per_prompt)]
    tokens = sample_tokens(
        model, tokenizer, ids, max_new_tokens=max_new_tokens, temperature=temperature,
        batch_size=batch_size, seed=seed, draws=draws, label=label,
    )  # fmt: skip
    return completions_of(tokenizer, repeated, ids, tokens, end_tokens(model))


def sample_tokens(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
    draws: Tensor | None = None,
    label: str | None = None,
) -> list[list[int]]:
    """:func:`sample`'s tokens of B prompts that are tokens already, EOS and padding still on."""
    order = sorted(range(len(encoded)), key=lambda r: (len(encoded[r]), r))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    made: dict[int, list[int]] = {}
    was_training = model.training
    model.eval()
    devices = [base_of(model).device] if base_of(model).device.type != "cpu" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for batch in progress(batches, label, len(batches)) if label else batches:
                prompt_ids = [encoded[r] for r in batch]
                decoder = Decoder(temperature, None if draws is None else draws[batch])
                tokens = generate_tokens(model, tokenizer, prompt_ids, max_new_tokens, decoder)
                made.update(zip(batch, tokens, strict=True))
    finally:
        model.train(was_training)
    return [made[r] for r in range(len(encoded))]


def completions_of(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    encoded: Sequence[tuple[int, ...]],
    tokens: Sequence[Sequence[int]],
    stop: set[int],
    logps: Sequence[Sequence[float]] | None = None,
) -> list[Completion]:
    """What B rows of tokens are after their prompts; each is cut after its first stop token.

    Args:
        encoded: the prompts' tokens. logps: of ``tokens``, by whatever drew them.
    """
    made = []
    for row, (prompt, ids, generated) in enumerate(zip(prompts, encoded, tokens, strict=True)):
        kept, ended = cut_at_eos(generated, stop)
        text = completion_text(tokenizer, ids, kept)
        said = None if logps is None else tuple(logps[row][: len(kept)])
        asked = prompt_text(tokenizer, prompt, ids)
        made.append(Completion(asked, ids, kept, text, ended, columns_of(prompt), said))
    return made


@torch.no_grad()
def generate_tokens(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    decoder: Decoder,
) -> list[list[int]]:
    """Tokens that ``decoder`` draws after each prompt, EOS and padding still on.

    Args:
        prompt_ids: B prompts, which are padded on the left here.

    Returns:
        B lists of at most ``max_new_tokens``.

    Raises:
        UserError: the tokenizer gives a token that the model has no embedding for.
    """
    known = base_of(model).config.get_text_config().vocab_size
    highest = max(map(max, prompt_ids))
    if highest >= known:
        raise UserError(
            f"the tokenizer gives token {highest} ({tokenizer.decode([highest])!r}), but the model"
            f" has {known} embeddings: use the model's own tokenizer, or resize_token_embeddings"
        )
    device = base_of(model).device
    width = max(map(len, prompt_ids))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompt_ids], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids], device=device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # no processors of logits: the decoder makes the choice
        eos_token_id=base_of(model).generation_config.eos_token_id,  # type: ignore[union-attr]
        pad_token_id=pad,
        use_cache=True,
    )
    head: Any = base_of(model).get_output_embeddings()
    with autocast(model), dense_head_input(head):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=decoder
        )
    return output.tolist()
