"""The sections of the methods that are TRL's, or SFT on chosen samples; PPO's and DPO's are in
`pipeline.config.sections`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.bounds import Count
from pipeline.config.base import TrainerSection


class KTOSection(TrainerSection):
    """Fields of trl.KTOConfig."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """As dpo.eval_share."""


class RLOOSection(TrainerSection):
    """Fields of trl.RLOOConfig."""


class GRPOSection(TrainerSection):
    """Fields of trl.GRPOConfig; `scale_rewards` is `none` and `loss_type` `dr_grpo` unless set."""


class RejectionSection(TrainerSection):
    """Fields of trl.SFTConfig."""

    n: Annotated[int, Field(ge=2)] = 8
    """Samples of π_ref for each training prompt, of which the best is learnt."""


class ReweightedSection(TrainerSection):
    """Fields of trl.SFTConfig."""

    n: Annotated[int, Field(ge=2)] = 8
    """Samples of π_ref for each training prompt."""
    draws: Count = 4
    """What is learnt for each prompt: so many of them, drawn by exp(r/β), some several times."""


class ORPOSection(TrainerSection):
    """Fields of trl's ORPOConfig; `beta` is the weight of the odds ratio, and not the top one."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """As dpo.eval_share."""


class CPOSection(TrainerSection):
    """Fields of trl's CPOConfig; `beta` is the slope of its loss, and not the top-level one."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """As dpo.eval_share."""


class SimPOSection(TrainerSection):
    """Fields of trl's CPOConfig but `loss_type`; `beta` (2 unless set) is the slope of its loss,
    and `simpo_gamma` (1 unless set) its margin."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """As dpo.eval_share."""
