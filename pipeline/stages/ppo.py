"""Stage 3: PPO from the SFT checkpoint against the proxy reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config import Experiment
from pipeline.data.splits import load_data
from pipeline.data.validation import validation_prompts
from pipeline.lm.generation import Completion
from pipeline.output.metrics_file import read_metrics
from pipeline.ppo.config import PPOConfig, sharded
from pipeline.ppo.engines.choice import remove_sent
from pipeline.ppo.trainer import PPOTrainer
from pipeline.ppo.value_head import FOLDER, save_value_head
from pipeline.report import figures
from pipeline.stages import tracking
from pipeline.stages.cost import Spent, count, spent_by, write_cost
from pipeline.stages.reward_sources import gold_reward, judge_is_proxy, proxy_reward
from pipeline.stages.training import (
    evaluates,
    fit,
    load_trainable_sft,
    save_trained,
    stage_arguments,
)
from reward_models import RewardCall, RewardFunction, Scores

EVALUATIONS = "evaluations.jsonl"
# With these the Trainer would look for a loss, which PPO's evaluations do not have.
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")


def _best_by(experiment: Experiment) -> str | None:
    """What the best checkpoint is chosen by where the config does not say."""
    given = experiment.trainer_args("ppo")
    chooses = given.get("load_best_model_at_end") or given.get("save_strategy") == "best"
    return "objective" if chooses or given.get("lr_scheduler_type") in _BY_METRIC else None


class _Counted(PPOTrainer):
    """The trainer, which counts what it asks for; its judge costs the policy nothing."""

    def _made(self, *given: Any) -> list[Completion]:
        completions = super()._made(*given)
        count(self, sampled=completions)
        return completions

    def _reward(self, completions: Sequence[Completion], judge: RewardCall | None = None) -> Scores:
        said = super()._reward(completions, judge)
        count(self, scored=0 if judge else len(completions))
        return said


@tracking.tracked("ppo")
def run(experiment: Experiment) -> None:
    """Train on ``data.train_prompts`` against the config's reward and write ``ppo/model``."""
    step = train(experiment)
    history = experiment.stage_dir("ppo") / "metrics.jsonl"
    tracking.log_picture("ppo/gold_kl", lambda: figures.gold_kl(read_metrics(history)), step)


def train(
    experiment: Experiment,
    reward: RewardFunction | None = None,
    gold: RewardFunction | None = None,
) -> int:
    """What :func:`run` does, with trackers started or without.

    What it is evaluated on, where it is, and the best is chosen by, are
    ``data.validation_prompts``. There the judge scores too.

    Args:
        reward: optimised instead of the config's. gold: judges instead of the config's.

    Returns:
        the optimizer steps that were taken.
    """
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
        metric_for_best_model=_best_by(experiment),
    )
    held, prompts = None, data.train_prompts
    if evaluates(arguments):
        held, prompts = validation_prompts(experiment, data)
    model, tokenizer = load_trainable_sft(experiment)
    # Weights that FSDP splits cannot be shared.
    reward = reward or proxy_reward(experiment, None if sharded(arguments) else model)
    if gold is None and held and not judge_is_proxy(experiment):
        gold = gold_reward(experiment)

    def log_samples(step: int, rows: list[dict[str, Any]]) -> None:
        if step % (8 * arguments.steps_per_rollout) == 0:
            tracking.log_samples(experiment, "ppo", step, rows)

    trainer = _Counted(
        model=model,
        reward_function=reward,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=prompts,
        eval_dataset=held,
        gold_function=gold,
        callbacks=[Spent()],
        log_samples=log_samples,
    )
    trainer.journal.folder = experiment.stage_dir("ppo") / "rollouts"
    trainer.evaluations.path = experiment.stage_dir("ppo") / EVALUATIONS
    fit(trainer, experiment, "ppo")
    save_trained(trainer, experiment, "ppo", trainer.actor_critic.policy)
    remove_sent(arguments)
    if experiment.ppo.save_value_head and trainer.is_world_process_zero():
        prefix = trainer.prefix_critic if arguments.critic == "prefix" else None
        head = trainer.actor_critic.value_head
        save_value_head(head, experiment.stage_dir("ppo") / FOLDER, prefix)
    write_cost(experiment, "ppo", **spent_by(trainer))
    return trainer.state.global_step
