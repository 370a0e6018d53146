"""Held-out demonstrations as the texts that rewards and perplexity are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.config import Experiment
from pipeline.data.records import Demonstration
from pipeline.data.tokenizer import load_tokenizer
from pipeline.data.words import unit_of
from pipeline.lm.generation import encode_prompt, prompt_text
from reward_models.arguments import ENDED, IDS


def whole_texts(
    items: Sequence[str | Demonstration], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Each as one text; a conversation as the chat template writes it, without BOS."""
    return [item if isinstance(item, str) else _written(item, tokenizer) for item in items]


def _written(item: Demonstration, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(item.prompt, str):
        return item.prompt + str(item.completion)
    messages = [*item.prompt, *item.completion]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))  # type: ignore[arg-type]
    return text.removeprefix(str(tokenizer.bos_token or "")).rstrip()


def prompts_and_endings(
    items: Sequence[str | Demonstration], experiment: Experiment
) -> tuple[list[str], list[str]]:
    """What a reward is asked about each: the prompt, and what follows it.

    A text's prompt is its first words, as in training; a conversation's is what the chat template
    writes, without special tokens.
    """
    if not items:
        return [], []
    if isinstance(items[0], str):
        unit, texts = unit_of(experiment), [item for item in items if isinstance(item, str)]
        prompts = [unit.first(text, experiment.data.prompt_words) for text in texts]
        return prompts, [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    tokenizer = load_tokenizer(experiment.model)
    shown, endings = [], []
    for item in items:
        assert isinstance(item, Demonstration)
        shown.append(prompt_text(tokenizer, item.prompt, encode_prompt(tokenizer, item.prompt)))
        answer = item.completion
        endings.append(answer if isinstance(answer, str) else answer[-1]["content"])
    return shown, endings


def columns_of(experiment: Experiment, endings: Sequence[str]) -> dict[str, list[Any]]:
    """What rewards may ask for beside the texts: these are whole, so each ends by EOS."""
    tokenizer = load_tokenizer(experiment.model)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: Any = tokenizer(list(endings), add_special_tokens=False, verbose=False)["input_ids"]
    return {IDS: [[*row, *eos] for row in ids], ENDED: [True] * len(endings)}
