"""Sampling: the right distribution, the right end, nothing global disturbed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline import toy
from pipeline.errors import UserError
from pipeline.generation import Sampler, cut_at_eos, encode_prompt, invert, prompt_text, sample
from pipeline.models import prepare

PROMPTS = ["the film about love", "a movie", "this sequel about school is"]


@pytest.fixture(scope="module")
def policy():
    tokenizer = toy.toy_tokenizer()
    return prepare(toy.toy_language_model(0), tokenizer).eval(), tokenizer


def test_sampler_draws_from_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, -torch.inf, 1.0])
    scores = Sampler(temperature=0.5)(torch.empty(0), logits.repeat(40_000, 1))
    found = torch.bincount(scores.argmax(-1), minlength=4) / 40_000
    assert torch.allclose(found, (logits / 0.5).softmax(-1), atol=0.01)
    assert found[2] == 0


def test_a_draw_is_where_the_running_sum_passes_it() -> None:
    """Over several blocks, the last one cut; zeros, also at either end, are never drawn."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(500, 300, generator=generator).double()
    weights[:, :5] = weights[:, 120:140] = weights[:, -7:] = 0.0
    draw = torch.rand(500, 1, generator=generator).double()
    draw[0], draw[1] = 0.0, 1.0 - 2**-53
    total = weights.sum(1, keepdim=True)
    expected = [
        next(i for i, part in enumerate(row.cumsum(0).tolist()) if part > goal)
        for row, goal in zip(weights, (draw * total * (1 - 1e-15)).squeeze(1).tolist(), strict=True)
    ]
    found = invert(weights, draw)
    assert found.squeeze(1).tolist() == expected
    assert (weights.gather(1, found) > 0).all()


def test_a_policy_of_nans_still_writes_tokens() -> None:
    """What is wrong is then told from their log-probabilities, where the rollout is looked at."""
    weights = torch.full((2, 300), torch.nan)
    assert (
        (invert(weights, torch.rand(2, 1)) >= 0) & (invert(weights, torch.ones(2, 1)) < 300)
    ).all()


def test_the_head_is_given_dense_input(policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else torch copies a frozen head's weight for every row of the prompts' last position."""
    model, tokenizer = policy
    head = model.get_output_embeddings()
    plain, seen = head.forward, []

    def forward(states: torch.Tensor) -> torch.Tensor:
        seen.append(states.is_contiguous())
        return plain(states)

    monkeypatch.setattr(head, "forward", forward)
    sample(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=3, seed=0)
    assert len(seen) > 1
    assert all(seen)
    assert not head._forward_pre_hooks


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
