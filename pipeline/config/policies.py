"""The policies of an experiment: a name for each, its method and what is its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from pipeline.config.base import Name, Section, TrainerSection, Unsaid
from pipeline.config.losses import loss_names
from pipeline.config.stages import METHODS, NO_METHODS, STAGES, find_stage

# What a policy's folder, command or row in the comparison would be taken for.
_TAKEN = {
    *(stage.name for stage in STAGES),
    *("report", "run", "data", "best_of_n", "overoptimise", "certify", "label", "inspect"),
    *("evaluate-reward", "play", "plan", "push", "sweep", "trials", "shared", "wandb", "pairs"),
    "checkpoints",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class PolicySection(TrainerSection):
    """One policy. Further keys are settings of its method, over those of the method's section."""

    method: Unsaid[Name] = None
    """How it is trained; null is the method of the policy's own name."""
    beta: Unsaid[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = None
    """Its KL coefficient, where it is not the top-level one, at which it is measured all the same.
    """
    seed: Unsaid[Annotated[int, Field(ge=0, lt=2**32)]] = None
    """Of its training, where it is not the top-level one. The data stay divided as they are."""
    preferences_name: Unsaid[Name] = None
    """Preference pairs of its own, in the place of data.preferences_name."""
    policy_modules: Unsaid[Annotated[list[Name], Field(min_length=1)]] = None
    """In the place of model.policy_modules."""
    pairs: dict[Name, Any] = Field(default={}, exclude_if=lambda pairs: not pairs)
    """Settings of the pairs that are drawn for it, over those of the section `pairs`."""

    def settings(self) -> dict[str, Any]:
        """Its own settings of its method, as the config gives them."""
        return dict(self.model_extra or {})


Policies = dict[Name, PolicySection]


def written_out(tree: Any) -> Any:
    """``policies`` as a mapping of sections, from a list of names, `name: method` or `name:`."""
    if isinstance(tree, list) and all(isinstance(name, str) for name in tree):
        tree = dict.fromkeys(tree)
    if not isinstance(tree, dict):
        return tree
    short = {name: {"method": value} for name, value in tree.items() if isinstance(value, str)}
    return tree | {name: {} for name, value in tree.items() if value is None} | short


def method_of(name: str, policy: PolicySection) -> str:
    """The name of a policy's method."""
    return policy.method or name


def name_problems(policies: Mapping[str, PolicySection]) -> Iterator[tuple[str, str]]:
    """Pairs of a key and what is wrong with a policy's name or method."""
    if not policies:
        yield "policies", "must not be empty: name one at least, as `ppo:`"
    known = [method.name for method in METHODS]
    lower: dict[str, str] = {}
    for name, policy in policies.items():
        key = f"policies.{name}"
        problem = name_problem(name)
        if problem:
            yield key, problem
        if name.lower() in lower:  # folders of both would be one where case does not count
            yield key, f"differs from {lower[name.lower()]!r} in case alone; choose another name"
        lower[name.lower()] = name
        method = method_of(name, policy)
        if method not in known:
            if method in NO_METHODS:
                yield f"{key}.method", f"{method} is no method here: {NO_METHODS[method]}"
                continue
            near = difflib.get_close_matches(method, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            expected = f"expected one of {', '.join(known)}"
            if policy.method is None:
                yield f"{key}.method", f"is missing, and {name!r} is no method: {expected}{hint}"
            else:
                yield f"{key}.method", f"{expected}, found {method!r}{hint}"


def unread_problems(name: str, policy: PolicySection, use_peft: bool) -> Iterator[tuple[str, str]]:
    """Pairs of a key and what is wrong with a setting of a policy's that nothing would read."""
    key, stage = f"policies.{name}", find_stage(method_of(name, policy))
    if policy.beta is not None and stage.arguments == "trl:SFTConfig" and "beta" not in stage.reads:
        yield f"{key}.beta", f"{stage.title} ends at the same policy whatever β is; remove it"
    for part in ("preferences_name", "pairs"):
        if getattr(policy, part) and not stage.from_pairs:
            yield f"{key}.{part}", f"{stage.title} learns from no pairs; remove it"
    if policy.preferences_name is not None and policy.pairs:
        yield (
            f"{key}.pairs",
            f"is of pairs that are drawn, and {key}.preferences_name has this policy's; remove it",
        )
    if policy.policy_modules is not None and use_peft:
        yield (
            f"{key}.policy_modules",
            "does not go with model.use_peft, whose modules are model.lora_target_modules;"
            " remove it",
        )


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a policy or a checkpoint; None where nothing is."""
    if not _NAME.fullmatch(name):
        return "a name is up to 64 letters, digits and . _ + -, and begins with a letter or a digit"
    if name.lower() in _TAKEN:
        return f"{name!r} is the name of something else here; choose another"
    return None


def own_key(name: str, policy: PolicySection, key: str) -> str:
    """Where a dotted key of a policy's view stands in the file: with the policy, or above."""
    method = method_of(name, policy)
    section, _, rest = key.partition(".")
    prefix = f"policies.{name}"
    if section == method and rest.partition(".")[0] in policy.settings():
        return f"{prefix}.{rest}"
    if key == f"{method}.beta" and policy.beta is not None:  # of a method without a reference
        return f"{prefix}.beta"
    if section == "pairs" and rest in policy.pairs:
        return f"{prefix}.{key}"
    if key == "beta" and policy.beta is not None:
        return f"{prefix}.beta"
    if key == "seed" and policy.seed is not None:
        return f"{prefix}.seed"
    if key == "data.preferences_name" and policy.preferences_name is not None:
        return f"{prefix}.preferences_name"
    if key == "model.policy_modules" and policy.policy_modules is not None:
        return f"{prefix}.policy_modules"
    return key


def over(section: Section, settings: Mapping[str, Any]) -> Any:
    """A section with some keys set otherwise, checked anew.

    Raises:
        pydantic.ValidationError: a value is none of the section's.
    """
    before = dict(section)
    if "labels" in settings:  # of pairs: the older key would contradict it
        before.pop("hard_labels", None)
    return type(section).model_validate({**before, **settings})


def aims_at_beta(method: str, arguments: Mapping[str, Any]) -> bool:
    """Whether another β is another aim of a method with these arguments.

    PPO that is steered to a KL has β for its controller's start; DPO's loss ``sft`` has none.
    """
    if method == "ppo" and arguments.get("kl_target") is not None:
        return False
    return reads_beta(method) and not (method == "dpo" and loss_names(arguments) == ["sft"])


def reads_beta(method: str) -> bool:
    """Whether a method pays for KL by β; others have no reference."""
    return "beta" in find_stage(method).reads
