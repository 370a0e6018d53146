"""Compiled layers, Liger's kernels, gradient checkpointing: the same numbers every way."""

from __future__ import annotations

import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from pipeline.config import ModelSection
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm import compiling
from pipeline.lm.checkpointing import SpareFrozenLayers
from pipeline.lm.models import base_of, decoder_layers, make_trainable
from pipeline.ppo import PPOConfig, PPOTrainer

PROMPTS = ["the film about love", "a movie", "this sequel about school is", "the drama"]
PART = ModelSection(model_name_or_path="toy", trainable_layers=2)
LORA = ModelSection(model_name_or_path="toy", use_peft=True, lora_r=4)


def reward(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text) % 5) for text in completions]


def trainer_of(folder: Path, section: ModelSection = PART, **settings: Any) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 4,
            "num_mini_batches": 1,
            "num_ppo_epochs": 2,
            "response_length": 8,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "kl_warning": None,
            **settings,
        },  # type: ignore[arg-type]
    )
    model = make_trainable(toy_language_model(0), section)
    return PPOTrainer(model, reward, arguments, toy_tokenizer(), PROMPTS)


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainer.actor_critic.named_parameters()}


# --- torch.compile --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    """Over the kept trunk, which is a way past the model's own forward pass."""
    plain = trainer_of(tmp_path / "plain")
    plain.train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = trainer_of(tmp_path / "compiled", torch_compile_backend="eager")
    assert not compiled.args.torch_compile  # or accelerate would wrap the whole once more
    at_start = torch._dynamo.utils.counters["frames"]["ok"]
    compiled.train()
    assert 0 < at_start < torch._dynamo.utils.counters["frames"]["ok"]  # the training pass too
    assert compiled.actor_critic.has_trunk
    ours, theirs = weights(compiled), weights(plain)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=2e-5), name


def test_what_compiles_nothing_or_fails_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler\nhere")

    torch._dynamo.reset()
    with pytest.raises(UserError, match="cannot be compiled by .* here") as caught:
        trainer_of(tmp_path, torch_compile_backend=broken)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    with pytest.raises(UserError, match="nothing of LlamaForCausalLM can be compiled"):
        trainer_of(tmp_path, torch_compile_backend="eager")


# --- Liger ----------------------------------------------------------------------------------------


def test_liger_is_refused_where_it_is_not(tmp_path: Path) -> None:
    if compiling.importlib.util.find_spec("liger_kernel") is not None:
        pytest.skip("liger-kernel is installed")
    with pytest.raises(UserError, match="ppo.use_liger_kernel: needs the package liger-kernel"):
        trainer_of(tmp_path, use_liger_kernel=True)


def test_liger_is_put_into_the_model_itself_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels need a GPU: the call is checked, and that what it changes is held to the rest."""
    calls: list[dict[str, Any]] = []

    def apply(model: Any, **settings: Any) -> None:
        assert isinstance(model, LlamaForCausalLM)
        calls.append(settings)

    package = types.ModuleType("liger_kernel.transformers")
    package._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr(compiling, "check_liger", lambda *_: None)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    chosen = {"rope": False, "cross_entropy": True}
    trainer = trainer_of(tmp_path, LORA, use_liger_kernel=True, liger_kernel_config=chosen)
    assert not trainer.args.use_liger_kernel
    wanted = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert calls == [wanted]


# --- Gradient checkpointing -----------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False], ids=["trunk kept", "trunk run again"])
def test_only_trained_layers_are_run_again(cache: bool, tmp_path: Path) -> None:
    def run(checkpointing: bool) -> tuple[Counter[int], dict[str, torch.Tensor]]:
        trainer = trainer_of(
            tmp_path / f"{checkpointing}",
            cache_trunk=cache,
            gradient_checkpointing=checkpointing,
        )
        calls: Counter[int] = Counter()
        learning, losing = trainer.training_step, trainer.compute_loss
        layers = decoder_layers(base_of(trainer.actor_critic.policy))

        def lose(*given: Any, **named: Any) -> Any:
            inside.append(True)  # until the backward pass is done
            return losing(*given, **named)

        def step(*given: Any, **named: Any) -> Any:
            loss = learning(*given, **named)
            inside.clear()
            return loss

        def noting(number: int) -> Any:
            def note(*_: Any) -> None:
                if inside:
                    calls[number] += 1

            return note

        inside: list[bool] = []
        trainer.training_step = step  # type: ignore[method-assign]
        trainer.compute_loss = lose  # type: ignore[method-assign]
        for number, layer in enumerate(layers):
            norm: Any = layer.input_layernorm  # a module within: run again with its layer
            norm.register_forward_hook(noting(number))
        trainer.train()
        return calls, weights(trainer)

    plain, expected = run(False)
    again, found = run(True)
    assert all(again[layer] == 2 * plain[layer] > 0 for layer in (2, 3))
    assert all(again[layer] == plain[layer] for layer in (0, 1))
    assert cache == (plain[0] == 0)
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, atol=1e-6), name


def test_other_trainers_spare_frozen_layers_too() -> None:
    model = make_trainable(toy_language_model(0), PART)
    model.activation_checkpointing_enable()  # type: ignore[operator]
    SpareFrozenLayers().on_train_begin(None, None, None, model=model)
    layers = decoder_layers(base_of(model))
    assert [layer.gradient_checkpointing for layer in layers] == [False, False, True, True]
