"""Checks what a stage section says about evaluation while training, before anything runs.

transformers looks up ``metric_for_best_model`` when the first evaluation has ended, and refuses
intervals that do not go together when the stage starts: hours into an experiment.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.stages import Stage

_PREFIX = "eval_"


def problems(
    stage: Stage, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Pairs of a key of the section and what is wrong with it.

    Args:
        given: the section's arguments. defaults: of the dataclass that receives them, by field.
    """
    values = {**defaults, **given}
    metric = given.get("metric_for_best_model")
    if metric is not None:
        name = str(metric).removeprefix(_PREFIX)
        if name not in stage.metrics:
            yield "metric_for_best_model", _unknown(stage, name)
        elif stage.metrics[name] is None and given.get("greater_is_better") is None:
            yield (
                "metric_for_best_model",
                f"more of {name!r} is neither better nor worse as such; set"
                f" {stage.name}.greater_is_better to true or false",
            )
    evaluates = values["eval_strategy"] not in ("no", None)
    if values["load_best_model_at_end"] or values["save_strategy"] == "best":
        key = "load_best_model_at_end" if values["load_best_model_at_end"] else "save_strategy"
        if not evaluates:
            yield key, f"needs evaluations to choose by: set {stage.name}.eval_strategy=steps too"
        elif values["save_strategy"] not in (values["eval_strategy"], "best"):
            yield (
                key,
                f"needs {stage.name}.save_strategy ({values['save_strategy']}) and"
                f" {stage.name}.eval_strategy ({values['eval_strategy']}) to be the same",
            )
        elif values["save_strategy"] == "steps":
            yield from _intervals(stage, given)


def _intervals(stage: Stage, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every saved step must be evaluated; as far as the section itself gives the two intervals."""
    save, evaluate = given.get("save_steps"), given.get("eval_steps")
    if save is None or evaluate is None or min(save, evaluate) < 1:
        return
    if stage.name == "ppo":  # both are moved up to whole rollouts
        rollout = given.get("num_ppo_epochs", 4) * given.get("num_mini_batches", 4)
        save, evaluate = (-(-int(steps) // rollout) for steps in (save, evaluate))
    if save % evaluate:
        yield (
            "save_steps",
            f"with load_best_model_at_end it must be a multiple of {stage.name}.eval_steps"
            f" ({given['eval_steps']}), found {given['save_steps']}",
        )


def _unknown(stage: Stage, name: str) -> str:
    names = list(stage.metrics)
    last = name.rpartition("/")[2]  # as it is logged: objective/scores
    near = [last] if last in names else difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"expected one of {', '.join(names)}, found {name!r}{hint}"
