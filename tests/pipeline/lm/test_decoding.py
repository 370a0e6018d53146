"""The decoding loop: the right distribution, and rows that come and go without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pipeline.data import toy
from pipeline.lm import decoding
from pipeline.lm.decoding import invert
from pipeline.lm.generation import cut_at_eos, sample
from pipeline.lm.models import prepare

PROMPTS = ["the film about love", "a movie", "this sequel about school is"]


@pytest.fixture(scope="module")
def policy():
    tokenizer = toy.toy_tokenizer()
    return prepare(toy.toy_language_model(0), tokenizer).eval(), tokenizer


def test_tokens_are_drawn_from_the_softmax(policy, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = policy
    logits = torch.full((tokenizer.vocab_size,), -torch.inf)
    logits[[5, 6, 8]] = torch.tensor([2.0, 0.0, 1.0])
    head = model.get_output_embeddings()
    monkeypatch.setattr(head, "forward", lambda states: logits.expand(*states.shape[:-1], -1))
    settings: dict[str, Any] = {"max_new_tokens": 1, "batch_size": 20_000, "seed": 0}
    drawn = sample(model, tokenizer, ["a movie"] * 20_000, temperature=0.5, **settings)
    found = torch.bincount(torch.tensor([c.completion_ids[0] for c in drawn]), minlength=9) / 20_000
    assert torch.allclose(found, (logits[:9] / 0.5).softmax(-1), atol=0.015)
    assert found.count_nonzero() == 3


@pytest.mark.parametrize("with_draws", [True, False])
def test_rows_that_ended_leave_and_disturb_no_other(
    policy, monkeypatch: pytest.MonkeyPatch, with_draws: bool
) -> None:
    model, tokenizer = policy
    draws = torch.rand(30, 60, generator=torch.Generator().manual_seed(1)) if with_draws else None
    settings: dict[str, Any] = {"max_new_tokens": 60, "batch_size": 30, "seed": 0, "draws": draws}
    embeddings = model.get_input_embeddings()
    plain, rows = embeddings.forward, []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        rows.append(len(ids))
        return plain(ids)

    monkeypatch.setattr(embeddings, "forward", forward)
    found = sample(model, tokenizer, PROMPTS * 10, **settings)
    ended = [sum(c.ended and len(c.completion_ids) <= step for c in found) for step in range(60)]
    assert rows == sorted(rows, reverse=True) and rows[0] == 30 and rows[-1] < 25
    for step, (left, done) in enumerate(zip(rows, ended, strict=False)):
        assert 30 - done <= left <= (30 - done) * 8 / 7 + 1, step

    monkeypatch.setattr(decoding, "_may_leave", lambda inputs: False)
    rows.clear()
    assert found == sample(model, tokenizer, PROMPTS * 10, **settings)
    assert set(rows) == {30}


TINY: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
RECURRENT: dict[str, Any] = {
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_n_groups": 1,
}  # fmt: skip
FAMILIES = {
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen3": TINY,
    "gemma3_text": {**TINY, "sliding_window": 6, "layer_types": ["sliding_attention"] * 2},
    "falcon_h1": {**TINY, **RECURRENT},  # recurrent beside attention
    "mamba": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True])
def test_every_family_writes_what_it_writes_when_nobody_leaves(
    family: str, adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ways to end, prompts of unlike length, caches with windows and with states."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **FAMILIES[family])
    ).eval()
    model.generation_config = GenerationConfig(eos_token_id=[1, 7], pad_token_id=0)
    if adapters:
        targets = {"gpt2": "c_attn", "mamba": "x_proj"}.get(family, "q_proj")
        lora = LoraConfig(init_lora_weights=False, target_modules=[targets])
        model = get_peft_model(model, lora)
    mask = torch.ones(24, 6, dtype=torch.long)
    mask[1::4, 0] = mask[2::4, :2] = 0
    ids, draws = torch.randint(3, 40, (24, 6)) * mask, torch.rand(24, 24)
    config = GenerationConfig(
        max_new_tokens=24, do_sample=False, eos_token_id=[1, 7], pad_token_id=0
    )

    def write() -> list[tuple[tuple[int, ...], bool]]:
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            custom_generate=decoding.Decoder(1.0, draws),
        )
        return [cut_at_eos(row, {1, 7}) for row in found.tolist()]

    found = write()
    assert sum(ended for _, ended in found) > 6
    monkeypatch.setattr(decoding, "_may_leave", lambda inputs: False)
    assert found == write()


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
