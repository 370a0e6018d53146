"""The certificate with other attention and with quantised weights under LoRA: PPO reaches π*."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.certify.methods import METHODS
from pipeline.certify.problem import Problem
from pipeline.certify.study import certify, passes
from pipeline.config import ModelSection
from pipeline.lm.hardware import choose_attention
from pipeline.lm.models import load_pretrained, make_trainable, prepare
from pipeline.lm.quantization import is_quantized, quantization_config

BETA = 0.6
FASTER = {"learning_rate": 2e-3, "num_ppo_epochs": 8, "adam_beta1": 0.8}


def reached(patch: pytest.MonkeyPatch, change: Callable[[Problem, Any], nn.Module]) -> bool:
    """Whether short PPO on seed 6 ends at π* where ``change`` makes π_ref."""
    plain = Problem.model
    patch.setattr(Problem, "model", lambda problem: change(problem, plain(problem)))
    method = METHODS["ppo"]
    method = replace(method, settings=method.settings | FASTER)
    result = certify(method, 6, BETA, effort=0.4)
    assert result["curve"][0]["optimality"] == pytest.approx(0.0, abs=1e-6)
    return passes(result)


@pytest.mark.slow
@pytest.mark.long
def test_with_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(_: Problem, model: Any) -> nn.Module:
        model.set_attn_implementation("sdpa")
        choose_attention(model, "sdpa")
        return model

    assert reached(monkeypatch, fused)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_with_quantised_weights(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's layers stand the other way round than nn.Linear's, too."""
    pytest.importorskip("bitsandbytes", reason="the extra `quantization`")
    section = ModelSection(
        quantization=kind,
        use_peft=True,
        lora_r=32,
        lora_alpha=64,
        # Without the head LoRA ends at optimality 0.88, quantised or not: too small logits.
        lora_target_modules=["c_attn", "c_proj", "c_fc", "lm_head"],
        dtype="float32",
    )

    def quantised(problem: Problem, model: Any) -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            problem.tokenizer.save_pretrained(folder)
            more = {"quantization_config": quantization_config(section)}
            made, _ = load_pretrained(folder, torch.float32, more=more)
        assert is_quantized(made)
        return make_trainable(prepare(made, problem.tokenizer), section)

    assert reached(monkeypatch, quantised)
