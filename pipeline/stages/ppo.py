"""Stage 3: PPO from the SFT checkpoint against the proxy reward."""

from __future__ import annotations

from typing import Any

from pipeline.config import Experiment
from pipeline.data.splits import load_data
from pipeline.ppo.config import PPOConfig, sharded
from pipeline.ppo.trainer import PPOTrainer
from pipeline.ppo.upkeep.state import put
from pipeline.stages import tracking
from pipeline.stages.reward import proxy_reward
from pipeline.stages.training import fit, load_trainable_sft, save_trained, stage_arguments


@tracking.tracked("ppo")
def run(experiment: Experiment) -> None:
    """Train on ``data.train_prompts`` and write ``ppo/model``."""
    data = load_data(experiment)
    generation = experiment.generation
    arguments = stage_arguments(
        experiment,
        "ppo",
        PPOConfig,
        kl_coef=experiment.beta,
        response_length=generation.max_new_tokens,
        temperature=generation.temperature,
        generation_batch_size=generation.batch_size,
        reward_timeout=experiment.reward.timeout,
        reward_retries=experiment.reward.retries,
    )
    model, tokenizer = load_trainable_sft(experiment)
    # Weights that a launcher splits or moves cannot be shared.
    moved = sharded(arguments) or arguments.deepspeed_plugin is not None
    reward = proxy_reward(experiment, None if moved else model)

    def log_samples(step: int, rows: list[dict[str, Any]]) -> None:
        if step % (8 * arguments.steps_per_rollout) == 0:
            tracking.log_samples(experiment, "ppo", step, rows)

    trainer = PPOTrainer(
        model=model,
        reward_function=reward,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=data.train_prompts,
        eval_dataset=data.train_prompts[: experiment.data.eval_prompts],
        log_samples=log_samples,
    )
    trainer.journal.folder = experiment.stage_dir("ppo") / "rollouts"
    fit(trainer, experiment, "ppo")
    policy, weights = trainer.actor_critic.policy, trainer.policy_weights()
    if weights is not None and trainer.is_world_process_zero():
        # The trainer's policy is split over the processes.
        policy, _ = load_trainable_sft(experiment)
        put(weights, policy, "ppo")
    save_trained(trainer, experiment, "ppo", policy)
