"""What follows from a config for the stages: which have work to do, which have no use."""

from __future__ import annotations

from pipeline.config.experiment import Experiment


def trains(experiment: Experiment, stage: str) -> bool:
    """False for a stage that, as configured, only copies or measures what is there."""
    if stage == "sft":
        return not experiment.sft.skip
    return stage != "reward" or experiment.reward.trains_here()


def ppo_evaluates(experiment: Experiment) -> bool:
    """True where PPO is evaluated on the validation prompts while it trains."""
    given = experiment.trainer_args("ppo")
    return given.get("eval_strategy", "no") != "no" or bool(given.get("eval_on_start"))


def left_out(experiment: Experiment) -> dict[str, str]:
    """The stages that this config has no use for, and why."""
    if experiment.beta > 0:
        return {}
    return {"dpo": "beta: DPO learns nothing at 0, where no preference tells; set it above 0"}
