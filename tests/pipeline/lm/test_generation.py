"""Sampling: the right distribution, the right end, nothing global disturbed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.generation import cut_at_eos, encode_prompt, prompt_text, sample
from pipeline.lm.models import prepare

PROMPTS = ["the film about love", "a movie", "this sequel about school is"]


@pytest.fixture(scope="module")
def policy():
    tokenizer = toy.toy_tokenizer()
    return prepare(toy.toy_language_model(0), tokenizer).eval(), tokenizer


def test_eos_ends_a_completion_even_when_it_is_the_pad_token(policy) -> None:
    model, tokenizer = policy
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    completions = sample(model, tokenizer, PROMPTS * 40, max_new_tokens=12, batch_size=50, seed=0)
    ended = [c for c in completions if c.ended]
    assert 5 < len(ended) < len(completions)
    for c in ended:
        assert c.completion_ids.index(tokenizer.eos_token_id) == len(c.completion_ids) - 1
        assert "<eos>" not in c.text
    for c in completions:
        if not c.ended:
            assert len(c.completion_ids) == 12
            assert tokenizer.eos_token_id not in c.completion_ids


def test_cut_at_eos_keeps_the_first_eos_and_drops_the_rest() -> None:
    assert cut_at_eos([5, 6, 0, 0, 0], {0}) == ((5, 6, 0), True)
    assert cut_at_eos([5, 6], {0}) == ((5, 6), False)
    assert cut_at_eos([9, 1], {0, 9}) == ((9,), True)


def test_order_seed_and_global_state(policy) -> None:
    model, tokenizer = policy
    state = torch.random.get_rng_state()
    settings: dict[str, Any] = {"samples_per_prompt": 2, "max_new_tokens": 5, "batch_size": 4}
    first = sample(model, tokenizer, PROMPTS, seed=3, **settings)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == sample(model, tokenizer, PROMPTS, seed=3, **settings)
    assert first != sample(model, tokenizer, PROMPTS, seed=4, **settings)
    assert [c.prompt for c in first] == [p for p in PROMPTS for _ in range(2)]


def test_prompts_of_unlike_length_are_not_disturbed_by_padding(policy) -> None:
    """Left padding must not leak: greedy continuation in a batch equals the one alone."""
    model, tokenizer = policy
    for prompt in PROMPTS:
        settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1e-4, "seed": 0}
        alone = sample(model, tokenizer, [prompt], batch_size=1, **settings)[0]
        among = sample(model, tokenizer, [*PROMPTS, prompt], batch_size=4, **settings)[-1]
        assert alone.completion_ids == among.completion_ids


def test_conversations_use_the_chat_template(policy) -> None:
    _, tokenizer = policy
    messages = [{"role": "user", "content": "the film"}]
    ids = encode_prompt(tokenizer, messages)
    text = tokenizer.decode(list(ids))
    assert text.startswith("<|user|>") and text.endswith("<|assistant|>")
    assert prompt_text(tokenizer, messages, ids) == "the film"
    tokenizer = toy.toy_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(tokenizer, messages)


def test_a_token_without_embedding_is_told() -> None:
    model, tokenizer = prepare(toy.toy_language_model(0), toy.toy_tokenizer()), toy.toy_tokenizer()
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(UserError, match=r"token 131 \('<new>'\), but the model has 131 embeddings"):
        sample(model, tokenizer, ["the <new>"], max_new_tokens=2, batch_size=1, seed=0)
