"""A PPO run that was stopped goes on as if it had not been, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from pipeline.ppo import PPOTrainer
from tests.pipeline.ppo.test_trainer import Recorder, make_trainer, weights

SECTIONS = [{"trainable_layers": 2}, {"trainable_layers": None, "use_peft": True}]


class Stop(TrainerCallback):
    """Ends training with the first checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


def assert_same_weights(first: PPOTrainer, second: PPOTrainer) -> None:
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name


def run_whole_and_in_parts(
    folder: Path, save_steps: int, **settings: Any
) -> tuple[list[PPOTrainer], list[Recorder]]:
    """One run without a stop; one that ends with its first checkpoint; what goes on from there."""
    settings |= {"save_strategy": "steps", "save_steps": save_steps}
    whole, whole_log = make_trainer(folder / "whole", **settings)
    whole.train()
    part, part_log = make_trainer(folder / "part", **settings)
    part.add_callback(Stop())
    part.train()
    assert part.state.global_step == save_steps
    again, again_log = make_trainer(folder / "part", **settings)
    again.train(resume_from_checkpoint=str(folder / "part" / f"checkpoint-{save_steps}"))
    assert_same_weights(whole, again)
    return [whole, part, again], [whole_log, part_log, again_log]


@pytest.mark.parametrize("section", SECTIONS)
def test_resume_equals_the_uninterrupted_run(tmp_path: Path, section: dict[str, Any]) -> None:
    """Over an epoch's end (48 prompts are 3 rollouts), with an adaptive β and running scales."""
    (whole, _, again), (whole_log, _, again_log) = run_whole_and_in_parts(
        tmp_path,
        save_steps=16,
        section=section,
        total_episodes=96,
        kl_target=0.01,
        kl_horizon=100,
        normalize_rewards=True,
    )
    assert again.kl_control.coefficient == whole.kl_control.coefficient != 0.1
    assert vars(again.score_deviation) == vars(whole.score_deviation)
    last = [log for log in whole_log.logs if "objective/scores" in log][-1]
    assert last["objective/scores"] == again_log.logs[-2]["objective/scores"]


@pytest.mark.parametrize("section", SECTIONS)
def test_resume_brings_back_the_prefixes_fit(tmp_path: Path, section: dict[str, Any]) -> None:
    (whole, part, again), _ = run_whole_and_in_parts(
        tmp_path,
        save_steps=8,
        section=section,
        total_episodes=64,
        critic="prefix",
        kl_estimator="exact",
        kl_target=0.01,
        kl_horizon=100,
        lam=0.9,
        whiten_rewards=True,
    )
    assert torch.equal(again.prefix_critic.sums, whole.prefix_critic.sums)
    assert not torch.equal(again.prefix_critic.sums, part.prefix_critic.sums)


def test_a_run_that_is_to_stop_as_it_logs_ends_with_its_rollout(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, total_episodes=48, logging_steps=1)

    class Impatient(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                control.should_training_stop = True

    trainer.add_callback(Impatient())
    trainer.train()
    assert trainer.state.global_step == 8


def test_nothing_is_saved_or_ended_within_a_rollout(tmp_path: Path) -> None:
    """A checkpoint there could not resume: what the user asks for waits for the rollout's end."""
    whole, _ = make_trainer(tmp_path / "whole", total_episodes=48)
    whole.train()
    part, _ = make_trainer(tmp_path / "part", total_episodes=48)

    class Impatient(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:  # the second step of the second rollout
                control.should_save = control.should_training_stop = True

    part.add_callback(Impatient())
    part.train()
    assert part.state.global_step == 8
    assert [path.name for path in (tmp_path / "part").glob("checkpoint-*")] == ["checkpoint-8"]
    again, _ = make_trainer(tmp_path / "part", total_episodes=48)
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-8"))
    assert_same_weights(whole, again)
