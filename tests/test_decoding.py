"""The decoding loop: the right distribution, and rows that come and go without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline import decoding, toy
from pipeline.decoding import invert
from pipeline.generation import sample
from pipeline.models import prepare

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
