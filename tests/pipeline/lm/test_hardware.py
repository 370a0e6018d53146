"""What is computed plainly on a processor."""

from __future__ import annotations

import pytest
import torch

from pipeline.data import toy
from pipeline.lm.hardware import use_plain_attention


@pytest.mark.parametrize(
    ("longest", "rows", "implementation"),
    [
        (512, 1, "eager"),
        (513, 1, "sdpa"),
        (512, 16, "sdpa"),  # its weights are 16 · 512² numbers a head, a layer, for the backward
        (362, 16, "eager"),
    ],
)
def test_attention_is_plain_while_its_weights_are_few(
    longest: int, rows: int, implementation: str
) -> None:
    model = toy.toy_language_model(0)
    assert model.config._attn_implementation == "sdpa"
    use_plain_attention(model, torch.device("cpu"), longest, rows)
    assert model.config._attn_implementation == implementation
