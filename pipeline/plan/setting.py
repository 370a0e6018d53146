"""What the plan of a stage is made from: its view of the experiment, the model, the machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch

from pipeline.config import Experiment, ModelSection
from pipeline.config.arguments import target
from pipeline.config.stages import find_stage
from pipeline.lm.hardware import compute_dtype, use_plain_attention
from pipeline.plan.activations import Kept, kept
from pipeline.plan.devices import Machine
from pipeline.plan.lengths import Lengths
from pipeline.plan.sizes import Policy, policy_of

# What the pipeline gives the trainers where the config is silent.
_OURS: dict[str, dict[str, Any]] = {
    name: {"gradient_checkpointing": False}
    for name in ("sft", "dpo", "kto", "rloo", "grpo", "rejection", "reweighted", "orpo", "cpo")
    + ("simpo",)
}


@dataclass(frozen=True)
class Setting:
    """A stage of an experiment on a machine.

    Attributes:
        experiment: the stage's view. section: the method's, or the fixed stage's.
        split: whether FSDP2 splits the weights over the processes.
    """

    experiment: Experiment
    section: str
    config: Any
    machine: Machine
    lengths: Lengths
    split: bool = False

    def argument(self, key: str) -> Any:
        """A trainer's argument: as configured, as the pipeline sets it, or its default."""
        given = self.experiment.trainer_args(self.section)
        if key in given:
            return given[key]
        if key in _OURS.get(self.section, {}):
            return _OURS[self.section][key]
        for field in dataclasses.fields(target(find_stage(self.section))):
            if field.name == key:
                made = field.default_factory is not dataclasses.MISSING
                return field.default_factory() if made else field.default  # type: ignore[misc]
        return None

    @property
    def model(self) -> ModelSection:
        """The model's section."""
        return self.experiment.model

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of matrix products: this machine's choice, or bfloat16 on a card that is planned for."""
        section = self.model
        here = self.machine.here or self.machine.device.is_processor
        if section.dtype is not None or section.model_name_or_path == "toy" or here:
            return compute_dtype(section)
        return torch.bfloat16

    @property
    def modules(self) -> list[str] | None:
        """`model.policy_modules` for the methods that keep to them."""
        return None if self.section == "sft" else self.model.policy_modules

    @cached_property
    def policy(self) -> Policy:
        """The model as this stage trains it."""
        return policy_of(self.config, self.model, self.dtype, self.modules)

    @property
    def rows(self) -> int:
        """`per_device_train_batch_size`."""
        return int(self.argument("per_device_train_batch_size"))

    @property
    def accumulates(self) -> bool:
        """Whether gradients of former microbatches lie beside the next one's activations."""
        return int(self.argument("gradient_accumulation_steps") or 1) > 1

    def attention(self, length: int, rows: int) -> str | None:
        """The implementation, by the name whose memory is its: fused ones keep what sdpa does."""
        asked = self.model.attn_implementation
        if asked is not None:
            return "eager" if asked == "eager" else "sdpa"
        if self.section not in ("ppo", "dpo") or not self.machine.device.is_processor:
            return None
        return "eager" if _computed_plainly(length, rows) else None

    def kept(self, rows: int, length: int) -> Kept:
        """What learning from so many sequences keeps for the backward pass."""
        return kept(
            self.config,
            self.model,
            self.policy,
            rows,
            length,
            dtype=self.dtype,
            modules=self.modules,
            attention=self.attention(length, rows),
            split=self.split,
        )

    def with_(self, **changes: Any) -> Setting:
        """The same with other attributes."""
        return replace(self, **changes)


def _computed_plainly(length: int, rows: int) -> bool:
    """What `use_plain_attention` would decide on a processor, asked of itself."""
    chosen: list[str] = []
    model: Any = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation="sdpa"), set_attn_implementation=chosen.append
    )
    use_plain_attention(model, torch.device("cpu"), length, rows)
    return bool(chosen)
