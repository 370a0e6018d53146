"""From the config to a reward function: the proxy, which is optimised, and the gold judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.config import OVER_SFT, TRAINED_HERE, TRAINED_LENGTH, Experiment, ModelSection
from pipeline.errors import FailedReward, UserError
from pipeline.lm.hardware import best_device, compute_dtype
from pipeline.output.console import say
from pipeline.stages.encoders import sft_model
from reward_models import RewardCall, RewardError, RewardFunction, load_reward

Part = Literal["proxy", "gold"]
PARTS: tuple[Part, Part] = ("proxy", "gold")


def proxy_reward(experiment: Experiment, policy: nn.Module | None = None) -> RewardFunction:
    """The reward that is optimised. Loading it, or calling it, raises UserError on a mistake.

    Args:
        policy: the reward uses this model's frozen weights where its own equal them.
    """
    return reward_of(experiment, "proxy", policy)


def gold_reward(experiment: Experiment) -> RewardFunction:
    """The judge, against which nothing is optimised; UserError as for `proxy_reward`.

    It is the proxy itself where ``reward.source`` is not ``sentiment`` and ``reward.gold`` is null.
    """
    return reward_of(experiment, "gold")


def judge_is_proxy(experiment: Experiment) -> bool:
    """True where no judge of its own is trained or named: then nothing tells hacking apart."""
    return spec_of(experiment, "gold") == spec_of(experiment, "proxy") != TRAINED_HERE


def spec_of(experiment: Experiment, part: Part) -> str:
    """What the config names for a part."""
    section = experiment.reward
    return section.source if part == "proxy" or section.gold is None else section.gold


def folder_of(experiment: Experiment, part: Part) -> Path:
    return experiment.stage_dir("reward") / part


def is_trained(experiment: Experiment, part: Part) -> bool:
    # The folder appears at once and whole, when training has ended.
    return (folder_of(experiment, part) / "config.json").is_file()


def reward_of(experiment: Experiment, part: Part, policy: nn.Module | None = None) -> RewardCall:
    spec, section = spec_of(experiment, part), experiment.reward
    trained, gold = spec == TRAINED_HERE, part == "gold" and section.gold is not None
    key = "reward.gold" if gold else "reward.source"
    base = None
    if trained:
        folder = folder_of(experiment, part)
        if not is_trained(experiment, part):
            raise UserError(
                f"{folder}: there is no {part} reward; run `rlhf reward` with this config"
            )
        spec = str(folder.absolute())
        # Of this run, wherever its folder was moved or copied to.
        base = sft_model(experiment) if section.encoder == OVER_SFT else None
    mixed = has_bfloat16(experiment)
    if base is None:  # else the base's dtype decides
        mixed = bool(experiment.trainer_args("reward").get("bf16", mixed))
    try:
        reward = load_reward(
            spec,
            max_length=max_length(experiment) if trained else section.max_length,
            positive_labels=section.gold_positive_labels if gold else section.positive_labels,
            format="text" if trained else section.gold_format if gold else section.format,
            warn=warn,
            dtype=torch.bfloat16 if mixed else None,
            device=best_device(),
            base_model=base,
            share_with=policy,
        )
    except RewardError as error:
        raise UserError(f"{key}: {str(error).removeprefix('reward ')}") from error
    return replace(
        reward,
        label=f"{key}: {spec}",
        timeout=section.timeout,
        retries=section.retries,
        raises=FailedReward,
    )


def max_length(experiment: Experiment) -> int:
    """Tokens that a classifier trained here reads."""
    return experiment.reward.max_length or TRAINED_LENGTH


def warn(line: str) -> None:
    say(f"warning: {line}")


def has_bfloat16(experiment: Experiment) -> bool:
    """True where the hardware computes in bfloat16; never for the toy, which tests compare."""
    if experiment.reward.encoder == "toy":
        return False
    own = experiment.reward.encoder == OVER_SFT
    return compute_dtype(experiment.model if own else ModelSection()) == torch.bfloat16
