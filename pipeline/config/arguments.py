"""Checks the stage sections' trainer arguments against the dataclass that will receive them.

Nothing is constructed here: a constructed `TrainingArguments` chooses devices and starts process
groups, which is the stage's business. Only field names, types and a few ranges are looked at.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.bounds import AboveZero, Count, NotNegative, out_of_bounds
from pipeline.config.evaluation import problems
from pipeline.config.former import today
from pipeline.config.hub import NOT_HERE
from pipeline.config.stages import Stage

# Arguments that the pipeline sets itself, and what to set instead.
_OWNED = {
    "output_dir": "the top-level output_dir",
    "seed": "the top-level seed",
    "data_seed": "the top-level seed",
    "resume_from_checkpoint": "nothing: an interrupted stage resumes when it is run again",
    "report_to": "tracking.report_to",
    "run_name": "name",
    "project": "tracking.project",
    "hub_token": "the environment variable HF_TOKEN, which is never written to disk",
    **NOT_HERE,
    "do_train": "nothing: a stage trains",
    "do_eval": "eval_strategy",
    "do_predict": "nothing: a stage trains",
    "local_rank": "nothing: --accelerate does",
    "deepspeed": "nothing: FSDP2 splits the weights; --accelerate configs/accelerate/fsdp2.yaml",
    "model_init_kwargs": "the model section",
    "trust_remote_code": "model.trust_remote_code",
    "dataset_text_field": "data.text_column",
}
# Bounds that the libraries do not check, or only when a stage starts, hours into an experiment.
# PPOConfig's own are in the types of its fields.
_BOUNDS: dict[str, Any] = {"label_smoothing": Annotated[float, Ge(0), Lt(0.5)]}
_BOUNDS |= dict.fromkeys(
    ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    + ("save_total_limit", "max_length", "num_iterations", "steps_per_generation")
    + ("generation_batch_size", "num_generations", "num_generations_eval"),
    Count,
)
_BOUNDS |= dict.fromkeys(
    ("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm")
    + ("desirable_weight", "undesirable_weight"),
    NotNegative,
)
_BOUNDS |= dict.fromkeys(
    ("num_train_epochs", "logging_steps", "save_steps", "eval_steps", "adam_epsilon"), AboveZero
)


class ArgumentProblem(Exception):
    """One wrong argument: ``key`` (dotted, without the section) and what is wrong with it."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


def target(stage: Stage) -> Any:
    """The dataclass that receives a stage section's arguments. Imports torch (seconds)."""
    module, _, name = (stage.arguments or "").partition(":")
    return getattr(importlib.import_module(module), name)


def describe(hint: Any) -> str:
    """What a type hint allows, in words that fit a YAML file."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words |= {dict: "a mapping", list: "a list", types.NoneType: "null", Any: "anything"}
    words |= {Path: "a path"}
    if hint in words:
        return words[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin is typing.Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if origin in (list, tuple, set):
        return f"a list ({describe(arguments[0])} each)"
    if origin is dict:
        return "a mapping"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "a mapping"
    return getattr(hint, "__name__", str(hint))


def shown(value: Any) -> str:
    """A value as an error message shows it: short and on one line."""
    text = (
        "null"
        if value is None
        else str(value).lower()
        if value is True or value is False
        else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_key(section: str, key: str, valid: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """The complaint about an unknown key of a section, with the nearest valid one.

    ``section`` is "" at the top level; ``elsewhere`` maps a bare key to the dotted key of the
    section that has it.
    """
    instead = today(section, key)
    if instead is not None:
        return f"unknown key; it is an older release's: set {instead}"
    prefix = f"{section}." if section else ""
    names = sorted(valid)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if key in elsewhere:
        hint = f"did you mean {elsewhere[key]}?"
    elif near:
        hint = f"did you mean {prefix}{near[0]}?"
    elif len(names) <= 20:
        hint = f"expected one of {', '.join(names)}"
    else:
        hint = f"the nearest keys are {', '.join(difflib.get_close_matches(key, names, 3, 0.0))}"
    return f"unknown key; {hint}"


def _enum_in(hint: Any) -> type[enum.Enum] | None:
    """The Enum of `SchedulerType | str`: such a field takes the enum's values, not any text."""
    for part in (hint, *typing.get_args(hint)):
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return part
    return None


def fits(value: Any, hint: Any) -> bool:
    """True when ``value`` has the hinted type; nothing is converted."""
    adapter = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _takes_list(hint: Any) -> bool:
    """True for a hint that is a list, or has one in a union or under bounds."""
    if typing.get_origin(hint) is list:
        return True
    nested = (typing.Union, types.UnionType, typing.Annotated)
    return typing.get_origin(hint) in nested and any(map(_takes_list, typing.get_args(hint)))


def listed(value: Any, hint: Any) -> Any:
    """``[value]`` where a list is asked for and its one item is given bare, else ``value``."""
    if not isinstance(value, str | int | float) or not _takes_list(hint) or fits(value, hint):
        return value
    return [value] if fits([value], hint) else value


def _check_type(key: str, value: Any, hint: Any) -> None:
    """Raise ArgumentProblem unless ``value`` has the hinted type."""
    choices = _enum_in(hint)
    if choices is not None and isinstance(value, str):
        allowed = [str(member.value) for member in choices]
        if value and value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1)
            hint_text = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentProblem(
                key, f"expected one of {', '.join(allowed)}, found {shown(value)}{hint_text}"
            )
        return
    if not fits(value, hint):
        raise ArgumentProblem(key, f"expected {describe(hint)}, found {shown(value)}")


def _check_bounds(key: str, value: Any, hint: Any) -> None:
    """Raise ArgumentProblem for a number outside the hint's bounds or those known here."""
    if isinstance(value, (int, float)):
        bounds = out_of_bounds(hint, value) or out_of_bounds(_BOUNDS.get(key), value)
        if bounds is not None:
            raise ArgumentProblem(key, f"expected a number {bounds}, found {shown(value)}")


def _check_choice(key: str, value: Any, choices: tuple[str, ...] | None) -> None:
    """Raise ArgumentProblem for a value that is none of ``choices``, where there are some."""
    if choices is None or value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ArgumentProblem(key, f"expected one of {', '.join(choices)}, found {shown(value)}{hint}")


def _check_together(stage: Stage, config_class: Any, arguments: Mapping[str, Any]) -> None:
    """Raise ArgumentProblem where values clash: about evaluation, or by the dataclass's own rules.

    Those are its static method ``clashes(values)``, if it has one, see `PPOConfig`.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    for key, problem in problems(stage, arguments, defaults):
        raise ArgumentProblem(key, problem)
    values = defaults | dict(arguments)
    for key, expected in config_class.clashes(values) if hasattr(config_class, "clashes") else ():
        raise ArgumentProblem(key, f"expected {expected}, found {shown(values[key])}")


def _check_name(
    stage: Stage, key: str, fields: set[str], own: Iterable[str], elsewhere: Mapping[str, str]
) -> None:
    """Raise ArgumentProblem for a key that is none of ``fields``, with the one that was meant."""
    if key in fields:
        return
    owned = _OWNED | dict(stage.owned)
    valid = (fields | set(own)) - owned.keys()
    if today(stage.name, key) is not None:
        raise ArgumentProblem(key, unknown_key(stage.name, key, valid, elsewhere))
    near_owned = difflib.get_close_matches(key, [*valid, *owned], n=1)
    if near_owned and near_owned[0] in owned:
        raise ArgumentProblem(key, f"unknown key; for {near_owned[0]} set {owned[near_owned[0]]}")
    raise ArgumentProblem(key, unknown_key(stage.name, key, valid, elsewhere))


def check_arguments(
    stage: Stage, arguments: Mapping[str, Any], own: Iterable[str], elsewhere: Mapping[str, str]
) -> dict[str, Any]:
    """Check a stage section's pass-through arguments; ArgumentProblem on the first wrong one.

    ``own`` are the section's own keys, ``elsewhere`` as in `unknown_key`.

    Returns:
        the arguments, a list's only item in a list where it was given bare.
    """
    owned = _OWNED | dict(stage.owned)
    for key in arguments:
        if key in owned:
            raise ArgumentProblem(key, f"the pipeline sets this; set {owned[key]}")
    if not arguments:
        return {}
    config_class = target(stage)
    fields = {field.name for field in dataclasses.fields(config_class) if field.init}
    hints = typing.get_type_hints(config_class)
    bounded = typing.get_type_hints(config_class, include_extras=True)
    checked: dict[str, Any] = {}
    for key, given in arguments.items():
        _check_name(stage, key, fields, own, elsewhere)
        value = checked[key] = listed(given, hints[key])
        _check_type(key, value, hints[key])
        _check_bounds(key, value, bounded[key])
        _check_choice(key, value, stage.choices.get(key))
        if key in stage.refused and value not in (None, False, "no"):
            raise ArgumentProblem(key, f"{shown(value)} cannot work here: {stage.refused[key]}")
    _check_together(stage, config_class, checked)
    return checked
