"""What is refused before any work because its probabilities would not be the model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.check import check_policy
from pipeline.lm.models import prepare
from tests.pipeline.families.tiny import tiny_model


def checked(model: Any) -> None:
    check_policy(prepare(model, toy_tokenizer()), toy_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2", "mixtral", "mamba", "phimoe"])
def test_what_computes_as_scored_is_taken(kind: str, dtype: torch.dtype) -> None:
    checked(tiny_model(kind).to(dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("roberta", "see those after them"),
        ("bart", "what it samples after padding"),
        ("rwkv", "what it samples after padding"),
    ],
)
def test_what_does_not_is_refused_in_one_line(kind: str, reason: str, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        checked(tiny_model(kind).to(dtype))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_processor_that_rounds_by_shape_is_no_fault_of_the_model() -> None:
    # As with tiles (AMX): products of many tokens take another kernel than those of few.
    model = tiny_model("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    width = model.config.hidden_size
    noise = torch.randn(64, width, generator=torch.Generator().manual_seed(0)) / 16

    def off(module: Any, _: Any, output: Any) -> Any:
        rows, length, _ = output.shape
        return output + noise[:length].to(output.dtype) * (rows * length >= 16)

    model.model.norm.register_forward_hook(off)
    checked(model)


def test_what_only_longer_texts_change_is() -> None:
    with pytest.raises(UserError, match="tokens after a text change its probabilities"):
        model = tiny_model("llama").to(torch.bfloat16)  # type: ignore[arg-type]
        model.lm_head.register_forward_hook(
            lambda module, _, output: output * (1.5 if output.shape[-2] == 16 else 1.0)
        )
        checked(model)


def test_noise_in_training_mode_is_refused() -> None:
    model = prepare(toy_language_model(0), toy_tokenizer())
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, _, output: output + module.training * 0.1 * torch.randn_like(output)
    )
    with pytest.raises(UserError, match="in training mode"):
        check_policy(model, toy_tokenizer())
    check_policy(model, toy_tokenizer(), trained=False)  # sampled and scored only


def test_the_model_and_torchs_random_state_are_left_as_they_were() -> None:
    model = prepare(toy_language_model(0), toy_tokenizer()).train()
    before = torch.random.get_rng_state()
    check_policy(model, toy_tokenizer())
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
