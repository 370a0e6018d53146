"""A model's own head, whatever it is made of, and models that have no way to be scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import UserError
from pipeline.lm.route import OwnHead, hidden_states, lm_head
from pipeline.lm.scoring import token_logps
from tests.pipeline.families.tiny import tiny_config, tiny_model

TOKENS = torch.arange(3, 15)[None]


def configured(kind: str, **values: Any) -> Any:
    """A tiny model of ``kind`` with other values in its config."""
    config = tiny_config(kind)
    for name, value in values.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 3.0}),
        ("gemma2", {"final_logit_softcapping": 0.1}),
        ("gemma3_text", {"final_logit_softcapping": 0.1}),
        ("modernbert-decoder", {}),
        ("minicpm3", {}),
    ],
)
def test_scaled_and_capped_logits_are_the_models_own(kind: str, values: dict[str, Any]) -> None:
    model = configured(kind, **values)
    head = lm_head(model)
    assert isinstance(head, OwnHead)
    with torch.no_grad():
        states = hidden_states(model, TOKENS)[0]
        whole = model(input_ids=TOKENS, use_cache=False).logits[0]
    assert torch.allclose(head(states), whole, atol=1e-6)
    targets = TOKENS[0, 1:]
    expected = whole[:-1].log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    logps = token_logps(states[:-1], head, targets, 1.0, 4)
    assert torch.allclose(logps, expected, atol=1e-6)


def test_a_plain_head_is_its_matrix() -> None:
    model = tiny_model("llama")
    assert lm_head(model) is model.get_output_embeddings()


def test_a_cap_that_small_states_do_not_show_is_noticed() -> None:
    model = configured("gemma2", final_logit_softcapping=30.0)
    assert isinstance(lm_head(model), OwnHead)


def test_the_gradient_goes_through_the_own_head() -> None:
    model = configured("gemma2", final_logit_softcapping=0.1)
    states = hidden_states(model, TOKENS)[0, :-1].detach().requires_grad_()
    targets = TOKENS[0, 1:]
    (ours,) = torch.autograd.grad(
        token_logps(states, lm_head(model), targets, 1.0, 4).sum(), states
    )
    raw = model.lm_head(states).float()
    capped = torch.tanh(raw / 0.1) * 0.1
    plain = capped.log_softmax(-1).gather(-1, targets[:, None]).sum()
    (expected,) = torch.autograd.grad(plain, states)
    assert torch.allclose(ours, expected, atol=1e-6)


def test_logits_of_other_states_are_refused_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        lm_head(tiny_model("prophetnet"))
    assert str(caught.value).startswith("model.model_name_or_path: ProphetNetForCausalLM")
    assert "\n" not in str(caught.value)
