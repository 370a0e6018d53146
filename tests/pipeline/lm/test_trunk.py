"""A decoder in two halves: every layer keeps its number, also beyond the sliding window."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import ModelSection
from pipeline.data import toy
from pipeline.lm.models import decoder_layers, make_trainable, prepare
from pipeline.lm.route import hidden_states
from pipeline.lm.trunk import SplitDecoder, lowest_trained_layer
from tests.pipeline.families.tiny import POSITIONS, WINDOW, tiny_model

LONG = 4 * WINDOW
TOKENS = (torch.arange(LONG) % 50 + 5)[None]


def test_split_decoder_equals_the_whole_and_shares_weights() -> None:
    model = prepare(toy.toy_language_model(0), toy.toy_tokenizer())
    make_trainable(model, ModelSection(model_name_or_path="toy", trainable_layers=2))
    assert lowest_trained_layer(model) == 2
    split = SplitDecoder.build(model, 2)
    assert split is not None
    tokens = torch.arange(3, 12)[None]
    hidden = split.upper(split.lower(tokens))
    assert torch.allclose(hidden, hidden_states(model, tokens), atol=1e-6)
    hidden.sum().backward()
    layers = model.model.layers
    assert layers[3].mlp.up_proj.weight.grad is not None
    assert layers[1].mlp.up_proj.weight.grad is None
    assert SplitDecoder.build(model, 0) is None


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize(
    "kind", ["cohere2", "gemma2", "gemma3_text", "gpt_oss", "ministral", "olmo3", "smollm3"]
)
def test_layers_of_two_kinds_keep_their_kind(kind: str, cut: int) -> None:
    model = tiny_model(kind)
    assert LONG <= POSITIONS
    split = SplitDecoder.build(model, cut, LONG)
    assert split is not None
    with torch.no_grad():
        whole, halves = hidden_states(model, TOKENS), split.upper(split.lower(TOKENS))
    assert torch.equal(whole, halves)


def test_layers_counted_anew_are_noticed_beyond_the_window_only() -> None:
    """The check at the run's own length is what finds it: eight tokens do not."""
    model: Any = tiny_model("gpt_oss")
    layers = decoder_layers(model)
    split = SplitDecoder.build(model, 1, LONG)
    assert split is not None
    upper: Any = split._upper
    upper._modules["layers"] = torch.nn.ModuleList(layers[1:])  # sliding and full are swapped
    assert split._equals(model, 8)
    assert not split._equals(model, LONG)


def test_a_model_of_text_and_images_has_layers_to_train() -> None:
    model = tiny_model("gemma3")
    make_trainable(model, ModelSection(trainable_layers=2))
    assert lowest_trained_layer(model) == 2
    assert SplitDecoder.build(model, 2, LONG) is not None
