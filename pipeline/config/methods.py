"""What does not go together among the settings of TRL's methods, and what TRL has not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.stages import find_stage

ON_POLICY = ("rloo", "grpo")
"""TRL's methods that learn from completions of the policy in training."""
# What TRL's configs have where nothing is set.
_GENERATIONS = {"rloo": 2, "grpo": 8}
_BATCH = 8
_COUNTED = (
    *("generation_batch_size", "steps_per_generation", "num_generations"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
)


def missing(method: str) -> Iterator[tuple[str, str]]:
    """A method that the installed TRL has not, as a key and what is wrong there."""
    package = find_stage(method).package
    try:
        there = not package or importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        version = importlib.metadata.version("trl")
        yield (
            "policies",
            f"the method {method} needs {package}, which the installed TRL {version} has not; "
            "leave the policy out, or install a release that has it",
        )


def rollout_problems(
    method: str, arguments: Mapping[str, Any], temperature: float
) -> Iterator[tuple[str, str]]:
    """Pairs of a key and what is wrong there, of RLOO's and GRPO's rollouts.

    Args:
        arguments: the method's section as given.
    """
    if temperature != 1:
        yield (
            "generation.temperature",
            f"{temperature:g} does not go with {method}, which would charge the KL between both "
            "policies at that temperature: its optimum would be another; set 1",
        )
    for key in ("save_steps", "eval_steps"):
        value = arguments.get(key)
        if isinstance(value, float) and 0 < value < 1:
            yield f"{method}.{key}", f"expected a number of steps, at least 1, found {value:g}"
            return
    numbers = {key: value for key, value in arguments.items() if type(value) is int and value > 0}
    if any(arguments.get(key) is not None and key not in numbers for key in _COUNTED):
        return  # of a wrong type, which is told as such
    size, steps = numbers.get("generation_batch_size"), numbers.get("steps_per_generation")
    if size is not None and steps is not None:
        yield f"{method}.generation_batch_size", f"says what {method}.steps_per_generation says"
        return
    group = int(numbers.get("num_generations") or _GENERATIONS[method])
    if group < 2:
        yield f"{method}.num_generations", "expected 2 at least: the others are the baseline"
        return
    batch = int(numbers.get("per_device_train_batch_size") or _BATCH)
    batch *= int(os.environ.get("WORLD_SIZE", "1"))
    if size is None:
        size = batch * int(steps or numbers.get("gradient_accumulation_steps") or 1)
    if size % batch:
        yield (
            f"{method}.generation_batch_size",
            f"{size} is no multiple of {method}.per_device_train_batch_size ({batch})",
        )
    elif size % group:
        yield (
            f"{method}.num_generations",
            f"a rollout has {size} completions (per_device_train_batch_size times "
            f"steps_per_generation), which are no whole groups of {group}",
        )
    elif arguments.get("eval_strategy", "no") not in ("no", False):
        group = int(numbers.get("num_generations_eval") or group)
        size = int(numbers.get("per_device_eval_batch_size") or _BATCH)
        if size * int(os.environ.get("WORLD_SIZE", "1")) % group:
            yield (
                f"{method}.per_device_eval_batch_size",
                f"{size} completions are no whole groups of {group} (num_generations, or"
                " num_generations_eval)",
            )


def updates_per_rollout(method: str, arguments: Mapping[str, Any]) -> int:
    """Optimizer steps from one rollout of `ON_POLICY`; of as many as end together with a step.

    Args:
        arguments: the method's section as given, and sound.
    """
    accumulated = int(arguments.get("gradient_accumulation_steps") or 1)
    passes = int(arguments.get("steps_per_generation") or accumulated)
    size = arguments.get("generation_batch_size")
    if size is not None:
        batch = int(arguments.get("per_device_train_batch_size") or _BATCH)
        passes = int(size) // (batch * int(os.environ.get("WORLD_SIZE", "1")))
    passes *= int(arguments.get("num_iterations") or 1)
    return math.lcm(passes, accumulated) // accumulated


def kto_problems(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of a key and what is wrong there, of KTO's reference point.

    Args:
        arguments: KTO's section as given.
    """
    if arguments.get("loss_type", "kto") != "kto":  # the other loss has none
        return
    if arguments.get("per_device_train_batch_size") == 1:
        yield (
            "kto.per_device_train_batch_size",
            "expected 2 at least: of one completion the reference point would be its own reward",
        )
    if arguments.get("train_sampling_strategy", "sequential") != "sequential":
        yield (
            "kto.train_sampling_strategy",
            "expected sequential: TRL's trainer measures the reference point on neighbours",
        )
