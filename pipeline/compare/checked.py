"""Holding a policy from elsewhere against what will be asked of it, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.words import first_line
from pipeline.compare.checkpoints import LOADING, relabelled
from pipeline.data.records import Prompt
from pipeline.errors import UserError
from pipeline.lm.check import check_policy
from pipeline.lm.generation import encode_prompt
from pipeline.lm.hardware import autocast
from pipeline.lm.positions import check_prompts


def check_loaded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    place: str,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    max_new_tokens: int,
) -> None:
    """Make sure that a loaded policy can do all that is asked of it, before anything is sampled.

    Args:
        prompts: those that it will continue. texts: those that its perplexity is measured on.
        max_new_tokens: longest completion.

    Raises:
        UserError: its weights hold NaN; the tokenizer is not the model's; a prompt does not fit; or
            it does not sample what it scores (`pipeline.lm.check.check_policy`).
    """
    size = model.config.get_text_config().vocab_size
    tokens = torch.arange(1, 9, device=model.device)[None] % size
    try:
        with torch.no_grad(), autocast(model):
            logits = model(input_ids=tokens, use_cache=False).logits
        if not bool(torch.isfinite(logits).all()):
            raise UserError("gives NaN or infinite logits: its weights are damaged")
        _check_tokens(tokenizer, size, prompts, texts)
        longest = check_prompts(model, tokenizer, prompts, max_new_tokens, "evaluation")
        check_policy(model, tokenizer, longest + max_new_tokens, trained=False)
    except UserError as error:
        raise relabelled(error, place) from error
    except LOADING as error:
        raise UserError(f"{place}: fails on plain tokens ({first_line(error)})") from error


def _check_tokens(
    tokenizer: PreTrainedTokenizerBase, size: int, prompts: Sequence[Prompt], texts: Sequence[str]
) -> None:
    """Refuse a tokenizer that gives tokens which the model has no embedding for, or none at all."""
    for row, prompt in enumerate(prompts):
        ids: Any = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else None
        ids = encode_prompt(tokenizer, prompt) if ids is None else ids
        if not str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip():
            raise UserError(
                f"its tokenizer makes no text tokens of evaluation prompt {row}; give the tokenizer"
                " that the model was trained with"
            )
        _check_ids(tokenizer, size, ids)
    for text in texts:
        _check_ids(tokenizer, size, tokenizer(text, verbose=False)["input_ids"])  # type: ignore
    _check_ids(tokenizer, size, [int(str(tokenizer.eos_token_id))])


def _check_ids(tokenizer: PreTrainedTokenizerBase, size: int, ids: Sequence[int]) -> None:
    highest = max(ids, default=0)
    if highest >= size:
        raise UserError(
            f"its tokenizer gives token {highest} ({tokenizer.decode([highest])!r}), but the model"
            f" has {size} embeddings; give the tokenizer that it was trained with"
        )
