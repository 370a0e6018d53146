"""What the first update promises in bfloat16, and which weights are trained in what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ModelSection
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.models import make_trainable
from pipeline.lm.route import lm_head, make_head_float32
from pipeline.ppo import PPOConfig, PPOTrainer

PROMPTS = ["the film about love", "a movie", "this sequel about school is", "the drama"]
ADAPTERS = {"use_peft": True, "lora_r": 4}
MODES = [{}, {"trainable_layers": 2}, ADAPTERS, {"trainable_layers": 2, **ADAPTERS}]


def trainer_of(model: Any, folder: Path, **settings: Any) -> PPOTrainer:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text) % 5) for text in completions]

    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": 1,
        "response_length": 10,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }
    return PPOTrainer(model, reward, PPOConfig(**arguments), toy_tokenizer(), PROMPTS)


@pytest.mark.parametrize("float32_logits", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=["all", "upper", "lora", "upper-lora"])
def test_kl_is_0_and_the_ratio_1_before_anything_is_learned(
    mode: dict[str, Any], float32_logits: bool, tmp_path: Path
) -> None:
    model = toy_language_model(0).to(torch.bfloat16)  # type: ignore[arg-type]
    trained = make_trainable(model, ModelSection(**mode))
    trainer = trainer_of(trained, tmp_path, bf16=True, float32_logits=float32_logits)
    trainer.train()
    first = next(row for row in trainer.state.log_history if "objective/kl_exact" in row)
    assert first["objective/kl_exact"] == 0
    assert first["objective/kl"] == 0
    assert first["policy/approxkl_avg"] < 1e-10
    assert first["policy/clipfrac_avg"] == 0


def test_a_bfloat16_model_is_trained_in_float32_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = toy_language_model(0).to(torch.bfloat16)  # type: ignore[arg-type]
    trainer = trainer_of(model, tmp_path)
    assert "made float32" in capsys.readouterr().err
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer.train()
    moved = total = 0
    for name, parameter in trainer.actor_critic.policy.named_parameters():
        assert parameter.dtype == torch.float32
        moved += int((parameter != before[name]).sum())
        total += parameter.numel()
    assert moved > 0.98 * total  # in bfloat16 most steps of 1e-5 round to nothing


def test_a_reference_that_is_not_the_policy_ends_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(toy_language_model(0), tmp_path)
    with torch.no_grad():
        next(trainer.actor_critic._reference[0].parameters()).add_(0.5)
    with pytest.raises(UserError, match="before anything is learned"):
        trainer.train()


def test_the_head_in_float32_rounds_nothing() -> None:
    model = toy_language_model(0).to(torch.bfloat16)  # type: ignore[arg-type]
    states = torch.randn(5, model.config.hidden_size, dtype=torch.bfloat16)
    exact = states.float() @ model.lm_head.weight.float().T
    assert not torch.allclose(lm_head(model)(states).float(), exact, atol=1e-6)
    make_head_float32(model)
    assert torch.allclose(lm_head(model)(states), exact, atol=1e-6)


def test_a_head_with_adapters_is_not_made_float32(tmp_path: Path) -> None:
    section = ModelSection(use_peft=True, lora_target_modules=["lm_head"])
    model = make_trainable(toy_language_model(0), section)
    with pytest.raises(UserError, match="float32_logits"):
        trainer_of(model, tmp_path, float32_logits=True)
