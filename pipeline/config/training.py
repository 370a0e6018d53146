"""What does not go together among the settings of the rewards that are trained here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.arguments import shown
from pipeline.config.rewards import PAIRWISE, TRAINED_HERE, is_trained_here

if TYPE_CHECKING:
    from pipeline.config.sections import DataSection, RewardSection

# The embedded kind whose raters are known one by one; the others' were shuffled.
_KNOWN_RATERS = ("toy", "embedded:movie-reviews")
# Keys that only one of the two reads.
_READ_BY = {
    "labels": TRAINED_HERE,
    "calibrate": TRAINED_HERE,
    "comparisons_per_rater": PAIRWISE,
    "margins": PAIRWISE,
    "center_rewards_coefficient": PAIRWISE,
}


def training_problems(reward: RewardSection, data: DataSection) -> Iterator[tuple[str, str]]:
    """Pairs of a dotted key and why its value does not go with the others."""
    named, own = reward.sources(), data.preferences_name is not None
    for key, source in _READ_BY.items():
        default = type(reward).model_fields[key].default
        if getattr(reward, key) != default and source not in named:
            yield (
                f"reward.{key}",
                f"is for {source!r}, which neither reward.source nor reward.gold is; remove it",
            )
    if PAIRWISE in named:
        yield from _comparison_problems(reward, data, own)
    embedded = data.dataset_name == "toy" or data.dataset_name.startswith("embedded:")
    if reward.labels == "soft" and not embedded:
        yield (
            "reward.labels",
            f"soft is the share of a text's raters, and {data.dataset_name} does not hold each "
            "rater's own score: use hard, or mean",
        )
    yield from _member_problems(reward)


def _comparison_problems(
    reward: RewardSection, data: DataSection, own: bool
) -> Iterator[tuple[str, str]]:
    """Where `pairwise` has nothing to learn from, or not what a key asks for."""
    if not own and data.dataset_name not in _KNOWN_RATERS:
        key = "source" if PAIRWISE in [part.source for part in reward.parts("source")] else "gold"
        yield (
            f"reward.{key}",
            f"pairwise learns from comparisons, and nothing in {data.dataset_name} tells which "
            "ratings are one person's: name your own pairs in data.preferences_name, or use "
            f"one of {', '.join(_KNOWN_RATERS)}",
        )
    if own and reward.margins:
        yield (
            "reward.margins",
            "are differences of ratings, which data.preferences_name has none of; remove it",
        )


def _member_problems(reward: RewardSection) -> Iterator[tuple[str, str]]:
    """An ensemble that is none, or that nothing combines."""
    if reward.members == 1:
        if reward.member_texts != "all":
            yield "reward.member_texts", "is for an ensemble: set reward.members above 1"
        return
    if not is_trained_here(reward.source):
        yield (
            "reward.members",
            f"are trained here, and reward.source is {shown(reward.source)}; use "
            f"{TRAINED_HERE!r} or {PAIRWISE!r}, or list the members' folders in reward.source",
        )
    if reward.combine == "sum":
        yield "reward.members", "need reward.combine: mean, min or pessimistic"
