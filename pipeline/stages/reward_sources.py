"""From the config to a reward function: the proxy, which is optimised, and the gold judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipeline.config import (
    OVER_SFT,
    PAIRWISE,
    TRAINED_LENGTH,
    Experiment,
    ModelSection,
    RewardPart,
    RewardSection,
    is_trained_here,
)
from pipeline.errors import FailedReward, UserError
from pipeline.lm.hardware import best_device, compute_dtype
from pipeline.output.console import say
from pipeline.stages.encoders import sft_model
from pipeline.stages.reward_scale import Part, scale_of
from reward_models import RewardCall, RewardError, RewardFunction, checked, combined, load_reward
from reward_models.interface import without_secrets

PARTS: tuple[Part, Part] = ("proxy", "gold")


def proxy_reward(experiment: Experiment, policy: nn.Module | None = None) -> RewardFunction:
    """The reward that is optimised. Loading it, or calling it, raises UserError on a mistake.

    Args:
        policy: the reward uses this model's frozen weights where its own equal them.
    """
    return reward_of(experiment, "proxy", policy)


def gold_reward(experiment: Experiment) -> RewardFunction:
    """The judge, against which nothing is optimised; UserError as for `proxy_reward`.

    It is the proxy itself where nothing is trained here and ``reward.gold`` is null.
    """
    return reward_of(experiment, "gold")


def judge_is_proxy(experiment: Experiment) -> bool:
    """True where no judge of its own is trained or named: then nothing tells hacking apart."""
    gold, proxy = (list(sources_of(experiment, part).values()) for part in ("gold", "proxy"))
    return gold == proxy and trained_source(experiment, "proxy") is None


def key_of(experiment: Experiment, part: Part) -> Literal["source", "gold"]:
    """The key of the reward section that names a part."""
    return "gold" if part == "gold" and experiment.reward.gold is not None else "source"


def sources_of(experiment: Experiment, part: Part) -> dict[str, RewardPart]:
    """A part's sources by their places in the config: ``reward.source``, or ``reward.source[0]``
    and so on in a list."""
    section, key = experiment.reward, key_of(experiment, part)
    sources = section.parts(key)
    if isinstance(getattr(section, key), str):
        return {f"reward.{key}": sources[0]}
    return {f"reward.{key}[{index}]": source for index, source in enumerate(sources)}


def trained_source(experiment: Experiment, part: Part) -> str | None:
    """What the reward stage trains of a part, ``sentiment`` or ``pairwise``; None for nothing."""
    names = (source.source for source in sources_of(experiment, part).values())
    return next(filter(is_trained_here, names), None)


def folders_of(experiment: Experiment, part: Part) -> list[Path]:
    """Where what is trained for a part lies: ``reward/proxy``, or a folder a member.

    The judge is always one.
    """
    members, folder = experiment.reward.members, experiment.stage_dir("reward") / part
    if part == "gold" or members == 1:
        return [folder]
    return [folder.with_name(f"{part}-{number}") for number in range(members)]


def is_trained(folder: Path) -> bool:
    # The folder appears at once and whole, when training has ended.
    return (folder / "config.json").is_file()


def reward_of(experiment: Experiment, part: Part, policy: nn.Module | None = None) -> RewardCall:
    """A part's reward: its one source, or what its sources make together."""
    section, key = experiment.reward, key_of(experiment, part)
    loaded = {
        place: source_reward(experiment, part, place, source, policy)
        for place, source in sources_of(experiment, part).items()
    }
    label = f"reward.{key}"
    if label in loaded:
        reward = loaded[label]
    else:
        together = [
            combined.Part(
                source.called(),
                loaded[place],
                source.weight,
                scale_of(experiment, part, place, source),
            )
            for place, source in sources_of(experiment, part).items()
        ]
        made = _together(experiment, together) if key == "source" else combined.combined(together)
        reward = replace(checked(made), label=label)
    return replace(reward.limited(section.timeout, section.retries), raises=FailedReward)


def source_reward(
    experiment: Experiment,
    part: Part,
    place: str,
    source: RewardPart,
    policy: nn.Module | None = None,
) -> RewardCall:
    """The reward of one source, neither scaled nor weighed; ``place`` is the config's.

    An ensemble's is that of its members together.
    """
    if not is_trained_here(source.source):
        return _loaded(experiment, place, source, source.source, None, policy)
    folders = folders_of(experiment, part)
    for folder in folders:
        if not is_trained(folder):
            raise UserError(
                f"{folder}: there is no {part} reward; run `rlhf reward` with this config"
            )
    # Of this run, wherever its folder was moved or copied to.
    base = sft_model(experiment) if experiment.reward.encoder == OVER_SFT else None
    members = [
        combined.Part(
            folder.name, _loaded(experiment, place, source, str(folder.absolute()), base, policy)
        )
        for folder in folders
    ]
    if len(members) == 1:
        return members[0].reward
    return replace(checked(_together(experiment, members)), label=f"{place}: {source.source}")


def _together(experiment: Experiment, parts: list[combined.Part]) -> combined.Combined:
    """The proxy's parts, or the members of its ensemble, combined as ``reward.combine`` says."""
    section = experiment.reward
    penalty = 1.0 if section.uncertainty_penalty is None else section.uncertainty_penalty
    return combined.combined(parts, section.combine, penalty)


def _loaded(
    experiment: Experiment,
    place: str,
    source: RewardPart,
    spec: str,
    base: Path | None,
    policy: nn.Module | None,
) -> RewardCall:
    """A source by its ``spec``: its name, or the folder that it was trained to.

    Args:
        base: what the folder's adapters are over, where they are.
    """
    section, trained = experiment.reward, is_trained_here(source.source)
    mixed = has_bfloat16(experiment)
    if base is None:  # else the base's dtype decides
        mixed = bool(experiment.trainer_args("reward").get("bf16", mixed))
    try:
        reward = load_reward(
            spec,
            max_length=max_length(experiment)
            if trained
            else source.max_length or section.max_length,
            positive_labels=source.positive_labels,
            label_weights=source.label_weights,
            format=_format(experiment, source),
            arguments=_arguments(section, source),
            warn=warn,
            dtype=torch.bfloat16 if mixed else None,
            device=best_device(),
            base_model=base,
            share_with=policy,
        )
    except RewardError as error:
        raise UserError(f"{place}: {str(error).removeprefix('reward ')}") from error
    if source.kind() == "service":  # in a list too, so that one request alone is made again
        reward = replace(reward, timeout=section.timeout, retries=section.retries)
    return replace(reward, label=f"{place}: {without_secrets(source.source)}", raises=FailedReward)


def _arguments(section: RewardSection, source: RewardPart) -> dict[str, Any] | None:
    """A source's arguments; a service's may stand in the section, for all of them."""
    if source.kind() != "service":
        return source.arguments
    shared = {"header_env": section.header_env, "concurrency": section.concurrency}
    given = {key: value for key, value in shared.items() if value is not None}
    return given | (source.arguments or {})


def _format(experiment: Experiment, source: RewardPart) -> Any:
    """How a source reads; None is as its config and its tokenizer say."""
    if not is_trained_here(source.source):
        return source.format
    own_pairs = experiment.data.preferences_name is not None
    return None if source.source == PAIRWISE and own_pairs else "text"


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
