"""Log-probabilities against the plain computation on full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import ModelSection
from pipeline.data import toy
from pipeline.lm import scoring
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import frozen_copy, make_trainable, prepare
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import (
    TokenBatch,
    by_length,
    predicting_states,
    text_nll,
    token_logps,
    token_logps_and_entropy,
    token_logps_and_kl,
)


@pytest.fixture(scope="module")
def policy():
    tokenizer = toy.toy_tokenizer()
    return prepare(toy.toy_language_model(0), tokenizer).eval(), tokenizer


@pytest.fixture(scope="module")
def completions(policy) -> list[Completion]:
    prompts = ["the film about love", "a movie", "this sequel about school is"] * 3
    model, tokenizer = policy
    return sample(model, tokenizer, prompts, max_new_tokens=9, batch_size=9, seed=1)


def plain_logps(model, completion: Completion) -> torch.Tensor:
    """One row, no padding, full logits."""
    ids = torch.tensor([completion.prompt_ids + completion.completion_ids])
    logps = model(ids).logits.log_softmax(-1)[0, len(completion.prompt_ids) - 1 : -1]
    return logps.gather(-1, torch.tensor(completion.completion_ids)[:, None]).squeeze(-1)


@torch.no_grad()
def test_logps_and_entropy_equal_the_full_computation(policy, completions) -> None:
    model, tokenizer = policy
    batch = TokenBatch.collate(completions, tokenizer.pad_token_id, torch.device("cpu"))
    hidden = predicting_states(hidden_states(model, batch.sequences), batch)[batch.mask]
    targets = batch.completion_ids[batch.mask]
    expected = torch.cat([plain_logps(model, c) for c in completions])
    for chunk in (1000, 7):
        logps = token_logps(hidden, lm_head(model), targets, 1.0, chunk)
        again, entropy = token_logps_and_entropy(hidden, lm_head(model), targets, 1.0, chunk)
        assert torch.allclose(logps, expected, atol=1e-5)
        assert torch.allclose(again, expected, atol=1e-5)
        full = lm_head(model)(hidden)
        wanted = torch.distributions.Categorical(logits=full).entropy()
        assert torch.allclose(entropy, wanted, atol=1e-5)


def test_chunked_logps_have_the_same_gradient(policy, completions) -> None:
    model, tokenizer = policy
    batch = TokenBatch.collate(completions, tokenizer.pad_token_id, torch.device("cpu"))
    hidden = predicting_states(hidden_states(model, batch.sequences), batch)[batch.mask].detach()
    gradients = []
    for chunk in (1000, 7):
        states = hidden.clone().requires_grad_(True)
        token_logps(
            states, lm_head(model), batch.completion_ids[batch.mask], 0.7, chunk
        ).sum().backward()
        gradients.append(states.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_exact_kl_and_its_gradient_equal_plain_autograds(
    frozen: bool, dtype: torch.dtype
) -> None:
    """A frozen head's is taken in the forward pass, a trained one's by computing logits again."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator).to(dtype)
    ref_hidden = (hidden.float() + 0.5 * torch.randn(23, 8, generator=generator)).to(dtype)
    targets = torch.randint(50, (23,), generator=generator)
    one, two = torch.randn(2, 23, generator=generator)
    head, ref_head = (torch.nn.Linear(8, 50, bias=False, dtype=dtype) for _ in range(2))
    for part, seed in ((head, 1), (ref_head, 2)):
        torch.nn.init.normal_(part.weight, generator=torch.Generator().manual_seed(seed))
    ref_head.requires_grad_(False)

    def plain(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logps = (head(states).float() / 0.7).log_softmax(-1)
        ref_logps = (ref_head(ref_hidden).float() / 0.7).log_softmax(-1)
        chosen = logps.gather(-1, targets[:, None]).squeeze(-1)
        return chosen, (logps.exp() * (logps - ref_logps)).sum(-1)

    wanted_from = hidden.clone().requires_grad_(True)
    expected = plain(wanted_from)
    head.weight.requires_grad_(not frozen)
    found_from = hidden.clone().requires_grad_(True)
    found = token_logps_and_kl(found_from, ref_hidden, head, ref_head, targets, 0.7, 5)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    (one @ expected[0] + two @ expected[1]).backward()
    kept = None if frozen else head.weight.grad.clone()  # type: ignore[union-attr]
    head.weight.grad = None
    (one @ found[0] + two @ found[1]).backward()
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    assert torch.allclose(found_from.grad, wanted_from.grad, **close)  # type: ignore[arg-type]
    if not frozen:
        assert torch.allclose(head.weight.grad, kept, **close)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_frozen_heads_gradient_equals_autograds(temperature: float) -> None:
    """It is taken in the forward pass, from the chunk's probabilities."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator)
    targets = torch.randint(50, (23,), generator=generator)
    weights = torch.randn(23, generator=generator)
    found = []
    for frozen in (False, True):
        head = torch.nn.Linear(8, 50, bias=False)
        torch.nn.init.trunc_normal_(head.weight, generator=torch.Generator().manual_seed(1))
        head.weight.requires_grad_(not frozen)
        states = hidden.clone().requires_grad_(True)
        logps = token_logps(states, head, targets, temperature, 7)
        (logps * weights).sum().backward()
        found.append((logps.detach(), states.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_a_frozen_heads_gradient_is_as_good_in_bfloat16_for_a_confident_token() -> None:
    """p near 1 rounds to 1 in bfloat16: what is left of 1 − p must be taken before."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(512, 64, generator=generator) / 8).bfloat16().float()
    targets = torch.arange(20)
    hidden = 12.0 * weight[targets] / weight[targets].norm(dim=1, keepdim=True).square()
    hidden = hidden.bfloat16().float()
    exact = hidden.clone().requires_grad_(True)
    logps = (exact @ weight.T).log_softmax(-1).gather(-1, targets[:, None])
    chances = logps.detach().exp()
    assert 0.95 < float(chances.min()) < float(chances.max()) < 0.9999
    logps.sum().backward()
    head = torch.nn.Linear(64, 512, bias=False).bfloat16().requires_grad_(False)
    head.weight.copy_(weight)
    states = hidden.bfloat16().requires_grad_(True)
    token_logps(states, head, targets, 1.0, 7).sum().backward()
    assert states.grad is not None and exact.grad is not None
    error = (states.grad.float() - exact.grad).norm(dim=1) / exact.grad.norm(dim=1)
    assert float(error.max()) < 0.03


@torch.no_grad()
def test_mask_covers_eos_and_nothing_behind_it(policy, completions) -> None:
    _, tokenizer = policy
    batch = TokenBatch.collate(completions, tokenizer.pad_token_id, torch.device("cpu"))
    assert batch.mask.sum(1).tolist() == [len(c.completion_ids) for c in completions]
    index = torch.tensor([4, 1])
    part = batch.rows(index)
    for row, i in enumerate(index.tolist()):
        kept = tuple(part.completion_ids[row][part.mask[row]].tolist())
        assert kept == completions[i].completion_ids


@torch.no_grad()
def test_text_nll_counts_every_token_but_the_first_and_the_eos(policy) -> None:
    model, tokenizer = policy
    text = "the film is dull"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    logps = model(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
    expected = -float(logps.gather(-1, torch.tensor(ids[1:])[:, None]).sum())
    total, count = text_nll(model, tokenizer, [text])
    assert count == len(ids) - 1
    assert total == pytest.approx(expected, rel=1e-5)


def test_frozen_copy_shares_the_trunk_and_stays_behind() -> None:
    model = prepare(toy.toy_language_model(0), toy.toy_tokenizer())
    make_trainable(model, ModelSection(model_name_or_path="toy", trainable_layers=1))
    reference: Any = frozen_copy(model)
    ours, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    for name, parameter in ours.items():
        assert (theirs[name] is parameter) is not parameter.requires_grad
        assert not (parameter.requires_grad and theirs[name].requires_grad)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.add_(1.0)
    assert not torch.equal(
        reference.model.layers[3].mlp.up_proj.weight, model.model.layers[3].mlp.up_proj.weight
    )


def test_batches_of_long_rows_hold_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(by_length([3, 1, 2, 9, 4], 2, None)) == [[1, 2], [0, 4], [3]]
    monkeypatch.setattr(scoring, "AT_ONCE", 12)
    assert list(by_length([6, 20, 2, 2, 2, 2, 6], 4, None)) == [[2, 3, 4, 5], [0, 6], [1]]
