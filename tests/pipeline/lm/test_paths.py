"""KL, log-ratios and likelihoods of whole completions against the plain computation."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pipeline.data import toy
from pipeline.lm import paths
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import decoder_layers, prepare
from pipeline.lm.paths import completion_kl, completion_nll, path_statistics, shared_layers


@pytest.fixture(scope="module")
def policy():
    tokenizer = toy.toy_tokenizer()
    return prepare(toy.toy_language_model(0), tokenizer).eval(), tokenizer


@pytest.fixture(scope="module")
def other() -> PreTrainedModel:
    return prepare(toy.toy_language_model(1), toy.toy_tokenizer()).eval()


@pytest.fixture(scope="module")
def completions(policy) -> list[Completion]:
    prompts = ["the film about love", "a movie", "this sequel about school is"] * 3
    model, tokenizer = policy
    return sample(model, tokenizer, prompts, max_new_tokens=9, batch_size=9, seed=1)


@pytest.fixture
def upper(policy) -> PreTrainedModel:
    """The policy with another topmost layer."""
    model = copy.deepcopy(policy[0])
    with torch.no_grad():
        for parameter in decoder_layers(model)[-1].parameters():
            parameter.mul_(2.0)
    return model


def plain_logps(model, completion: Completion) -> torch.Tensor:
    """Next-token log-probabilities of one row, ``(T, V)``: no padding, full logits."""
    ids = torch.tensor([completion.prompt_ids + completion.completion_ids])
    return model(ids).logits.log_softmax(-1)[0, len(completion.prompt_ids) - 1 : -1]


def chosen(model, completion: Completion) -> float:
    tokens = torch.tensor(completion.completion_ids)[:, None]
    return float(plain_logps(model, completion).gather(-1, tokens).sum())


@torch.no_grad()
def test_kl_equals_the_hand_computed_sum_along_the_path(policy, other, completions) -> None:
    model, _ = policy
    found = completion_kl(model, other, completions, batch_size=4)
    for completion, kl in zip(completions, found, strict=True):
        p, q = plain_logps(model, completion), plain_logps(other, completion)
        assert kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
    assert completion_kl(model, copy.deepcopy(model), completions) == [0.0] * len(completions)


@torch.no_grad()
def test_path_kl_and_log_ratio_agree_in_the_mean(policy) -> None:
    """Both estimate KL(π‖π_ref); the path-wise sum with the smaller spread."""
    model, tokenizer = policy
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    drawn = sample(model, tokenizer, ["a movie"] * 600, max_new_tokens=6, batch_size=600, seed=2)
    path = torch.tensor(completion_kl(model, other, drawn))
    ratios = torch.tensor([chosen(model, c) - chosen(other, c) for c in drawn])
    standard_error = float(ratios.std()) / 600**0.5
    assert float(path.mean()) == pytest.approx(float(ratios.mean()), abs=4 * standard_error)
    assert path.std() < 0.5 * ratios.std()


@torch.no_grad()
def test_the_log_ratio_is_that_of_the_sampled_tokens(policy, other, completions) -> None:
    model, _ = policy
    found = path_statistics(model, other, completions, batch_size=4)
    for completion, ratio in zip(completions, found.logratio, strict=True):
        wanted = chosen(model, completion) - chosen(other, completion)
        assert ratio == pytest.approx(wanted, abs=1e-4)
    assert path_statistics(model, other, []).kl == []


@torch.no_grad()
def test_the_likelihood_of_a_completion_given_its_prompt(policy, completions) -> None:
    model, _ = policy
    empty = Completion("a movie", completions[0].prompt_ids, (), "", True)
    found = completion_nll(model, [empty, *completions], batch_size=4)
    assert found[0] == 0.0
    assert found[1:] == pytest.approx([-chosen(model, c) for c in completions], abs=1e-4)


def test_equal_lower_layers_are_found(policy, other, upper) -> None:
    model, _ = policy
    layers = len(decoder_layers(model))
    assert layers > 1
    assert shared_layers(model, upper) == layers - 1
    assert shared_layers(model, model) == 0  # one model: nothing to compare
    assert shared_layers(model, other) == 0
    embeddings = copy.deepcopy(upper)
    with torch.no_grad():
        embeddings.get_input_embeddings().weight[3, 0] += 1.0
    assert shared_layers(model, embeddings) == 0
    narrower = copy.deepcopy(upper)
    decoder_layers(narrower)[-1].bfloat16()
    assert shared_layers(model, narrower) == 0
    scaled = copy.deepcopy(upper)
    scaled.config.rms_norm_eps = 0.5
    assert shared_layers(model, scaled) == 0


def test_shared_layers_change_no_bit(
    policy, upper, completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = policy
    assert len(paths.Pair(model, upper, 16)._halves) == 2
    together = path_statistics(model, upper, completions, batch_size=4)
    monkeypatch.setattr(paths, "shared_layers", lambda *_: 0)
    assert len(paths.Pair(model, upper, 16)._halves) == 0
    assert path_statistics(model, upper, completions, batch_size=4) == together
    assert max(together.kl) > 0.01
