"""What follows from a config for the stages: which have work to do, which have no use."""

from __future__ import annotations

from pipeline.config.experiment import Experiment
from pipeline.config.methods import ON_POLICY


def trains(experiment: Experiment, stage: str) -> bool:
    """False for a stage that, as configured, only copies or measures what is there."""
    if stage == "sft":
        return not experiment.sft.skip
    return stage != "reward" or experiment.reward.trains_here()


def ppo_evaluates(experiment: Experiment) -> bool:
    """True where PPO, RLOO or GRPO is evaluated on the validation prompts while it trains."""
    for name, method in experiment.methods().items():
        given = experiment.of(name).trainer_args(method)
        evaluates = given.get("eval_strategy", "no") != "no" or bool(given.get("eval_on_start"))
        if method in ("ppo", *ON_POLICY) and evaluates:
            return True
    return False


def on_own_pairs(experiment: Experiment) -> dict[str, Experiment]:
    """The policies that learn from pairs of the user's, by name, each in its view."""
    views = {name: experiment.of(name) for name in experiment.methods()}
    return {
        name: view
        for name, view in views.items()
        if view.stage(name).from_pairs and view.data.preferences_name is not None
    }


def left_out(experiment: Experiment) -> dict[str, str]:
    """The stages that this config has no use for, and why."""
    out: dict[str, str] = {}
    for stage in experiment.stages():
        if stage.at_zero and experiment.of(stage.name).beta == 0:
            out[stage.name] = f"beta: {stage.at_zero}; set it above 0"
    return out
