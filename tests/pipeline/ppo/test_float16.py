"""float16 with loss scaling, by torch's scaler for processors: the same steps, none of them ruined.

accelerate has float16 on accelerators only, so its scaler is put in place by hand here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.ppo import PPOConfig, PPOTrainer

PROMPTS = ["the film about love", "a movie", "this sequel about school is", "the drama"]


def trainer_of(folder: Path, scale: float | None = None, **settings: Any) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 4,
            "num_mini_batches": 1,
            "num_ppo_epochs": 2,
            "response_length": 8,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "kl_warning": None,
            **settings,
        },  # type: ignore[arg-type]
    )

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text) % 5) for text in completions]

    model = toy_language_model(0)
    trainer = PPOTrainer(model, reward, arguments, toy_tokenizer(), PROMPTS)
    if scale is not None:
        accelerator: Any = trainer.accelerator
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    return trainer


def norms(trainer: PPOTrainer) -> list[tuple[float, float]]:
    """Mean gradient norms of each rollout's steps: the actor's and the critic's."""
    keys = ("policy/grad_norm", "val/grad_norm")
    rows = [row for row in trainer.state.log_history if keys[0] in row]
    assert len(rows) == 2
    return [(row[keys[0]], row[keys[1]]) for row in rows]


@pytest.fixture(autouse=True)
def _own_state() -> Any:
    """accelerate's state is shared by all trainers of a process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=False)


def test_steps_are_those_of_float32_whatever_the_scale(tmp_path: Path) -> None:
    plain = trainer_of(tmp_path / "plain")
    plain.train()
    scaled = trainer_of(tmp_path / "scaled", scale=2.0**12)
    scaled.train()
    assert scaled.accelerator.scaler.get_scale() == 2.0**12  # type: ignore[union-attr]
    for ours, theirs in zip(norms(scaled), norms(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=0.05)
    own, other = (dict(t.actor_critic.named_parameters()) for t in (scaled, plain))
    moved = apart = 0.0
    for name, start in toy_language_model(0).named_parameters():
        theirs = other[f"policy.{name}"].detach()
        moved += float((theirs - start.detach()).norm() ** 2)
        apart += float((own[f"policy.{name}"].detach() - theirs).norm() ** 2)
    assert moved > 0 and apart < 0.1 * moved


def test_a_scale_that_is_too_large_costs_steps_and_ends_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, scale=2.0**24, max_steps=16)
    trainer.train()
    assert trainer.state.global_step == 16
    scale = trainer.accelerator.scaler.get_scale()  # type: ignore[union-attr]
    assert 2.0**10 < scale < 2.0**24
    key = "policy/grad_norm_max"
    kept = [row[key] for row in trainer.state.log_history if key in row]
    assert kept and all(norm < 1e3 for norm in kept)  # of steps that were made
    for name, parameter in trainer.actor_critic.named_parameters():
        assert bool(torch.isfinite(parameter).all()), name


def test_an_update_that_has_ended_early_leaves_the_scaler_something(tmp_path: Path) -> None:
    early = {"target_kl": 1e-9, "num_ppo_epochs": 4, "max_steps": 8, "logging_steps": None}
    trainer = trainer_of(tmp_path, scale=2.0**10, **early)
    trainer.train()
    assert any(row.get("policy/stopped_early") == 1.0 for row in trainer.state.log_history)
    assert trainer.accelerator.scaler.get_scale() == 2.0**10  # type: ignore[union-attr]


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_no_scale_mends_ends_the_run(max_grad_norm: float, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, scale=4.0, max_grad_norm=max_grad_norm, max_steps=20)
    plain = trainer.compute_loss

    def broken(*given: Any, **named: Any) -> Any:
        return plain(*given, **named) * float("nan")

    trainer.compute_loss = broken  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the gradient norm .nan. is not finite"):
        trainer.train()
    assert trainer.state.global_step >= 2  # while the scale could have been why


def test_it_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(ValueError, match="fp16 must be false"):
        PPOConfig(output_dir="unused", fp16=True, use_cpu=True)
