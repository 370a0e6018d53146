"""What `reward.source` and `reward.gold` name: one source, or a list of parts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pipeline.bounds import Count
from pipeline.config.arguments import shown
from pipeline.config.base import Name, Section, Unsaid
from reward_models import RewardError
from reward_models.loading import READS, kind_of
from reward_models.rules import rule

if TYPE_CHECKING:
    from pipeline.config.sections import RewardSection

TRAINED_HERE = "sentiment"
"""What a source is called where the pipeline trains it as a classifier of rated texts."""
PAIRWISE = "pairwise"
"""What it is called where the pipeline trains it on comparisons (Bradley–Terry)."""

Weight = Annotated[float, Field(allow_inf_nan=False)]


def is_trained_here(source: Any) -> bool:
    """True for the name of a source that the reward stage trains."""
    return source in (TRAINED_HERE, PAIRWISE)


class RewardPart(Section):
    """One of the sources that a reward is made of."""

    source: Name
    """In any of the forms of `reward.source`."""
    weight: Weight = Field(default=1.0, exclude_if=lambda weight: weight == 1)
    """Factor in the sum, after clipping and normalising; 0 only logs the part."""
    name: Unsaid[Name] = None
    """What metrics call it (`rewards/<name>/mean`); null is the end of the source's name."""
    clip: Unsaid[Annotated[float, Field(gt=0)] | Annotated[list[Weight], Field(min_length=2)]] = (
        None
    )
    """Scores are cut to ±this, or to [lowest, highest], in the source's own unit."""
    normalize: Unsaid[Literal["reference"]] = None
    """`reference`: shifted and scaled to mean 0 and standard deviation 1 on π_ref's samples
    (Ziegler et al. 2019, 2.2), after clipping. By a running deviation: `ppo.normalize_rewards`."""
    max_length: Unsaid[Count] = None
    """As `reward.max_length`, for this checkpoint."""
    format: Unsaid[Literal["text", "pair", "chat"]] = None
    """As `reward.format`, for this checkpoint or function."""
    positive_labels: Unsaid[Annotated[list[str], Field(min_length=1)]] = None
    """Labels of this checkpoint that are good: its score is their log-odds against the others."""
    label_weights: Unsaid[Annotated[dict[Name, Weight], Field(min_length=1)]] = None
    """A number for each label instead: the score is their expected value Σ P(label)·weight, such
    as the stars, `{1 star: 1, 2 stars: 2, …}`."""
    arguments: Unsaid[dict[Name, Any]] = None
    """Of a rule: `{shortest: 5, longest: 20}`; of a service: `{columns: [answer], header_env: …,
    concurrency: …, batch_size: …}`."""

    def called(self) -> str:
        """Its name in metrics."""
        if self.name is not None:
            return self.name
        place = re.sub(r"^\w+://", "", self.source).rstrip("/")
        return re.split(r"[/\\:]", place)[-1] or place

    def kind(self) -> str:
        """`trained` here, `checkpoint`, `rules` or `function`."""
        return "trained" if is_trained_here(self.source) else kind_of(self.source)

    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest score that it may give, before normalising."""
        if self.clip is None:
            return None
        low, high = self.clip if isinstance(self.clip, list) else (-self.clip, self.clip)
        return low, high


PARTS = "parts"
"""What pydantic's errors call the branch of `OneOrParts` that is a list."""
OneOrParts = Annotated[
    Annotated[Name, Tag("one")] | Annotated[list[RewardPart], Field(min_length=1), Tag(PARTS)],
    Discriminator(lambda value: PARTS if isinstance(value, list) else "one"),
]


def with_parts(value: Any) -> Any:
    """A list's items as mappings where they are bare names, and a bare mapping as a list."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return [{"source": item} if isinstance(item, str) else item for item in value]
    return value


# What a key is for that not every source reads, see `READS`.
_IS_FOR = {
    "max_length": "a checkpoint",
    "format": "a checkpoint or a function",
    "positive_labels": "a checkpoint",
    "label_weights": "a checkpoint",
    "arguments": "a rule or a service",
}


def reward_problems(reward: RewardSection) -> Iterator[tuple[str, str]]:
    """Pairs of a dotted key and why nothing reads it, or why it does not go with another."""
    for key, prefix in (("source", ""), ("gold", "gold_")):
        named, place = getattr(reward, key), f"reward.{key}"
        for name in ("format", "positive_labels"):
            if getattr(reward, prefix + name) is None:
                continue
            if isinstance(named, list):
                yield f"reward.{prefix}{name}", f"{place} is a list; set {name} in a part of it"
            elif named is None or is_trained_here(named) or name not in READS[kind_of(named)]:
                yield (
                    f"reward.{prefix}{name}",
                    f"is for {_IS_FOR[name]}, and {place} is {shown(named)}; remove it",
                )
        if isinstance(named, list):
            yield from _part_problems(place, named, reward.combine if key == "source" else "sum")
        elif named is not None and not is_trained_here(named):
            yield from _rule_problems(place, named, {})
    yield from _service_problems(reward)
    several = reward.members > 1 or (isinstance(reward.source, list) and reward.source[1:])
    if reward.combine != "sum" and not several:
        yield "reward.combine", f"{reward.combine} is of several parts, and reward.source is one"
    if reward.uncertainty_penalty is not None and reward.combine != "pessimistic":
        yield (
            "reward.uncertainty_penalty",
            f"is for reward.combine=pessimistic, and it is {reward.combine}; remove it",
        )


def _part_problems(key: str, parts: Sequence[RewardPart], how: str) -> Iterator[tuple[str, str]]:
    """Pairs of a dotted key and what is wrong with it, of the parts that ``key`` lists.

    Args:
        how: As `reward.combine`.
    """
    trained = [index for index, part in enumerate(parts) if is_trained_here(part.source)]
    if len(trained) > 1:
        yield (
            f"{key}[{trained[1]}].source",
            f"{key}[{trained[0]}] is {shown(parts[trained[0]].source)} already; remove one of them",
        )
    names: dict[str, str] = {}
    for index, part in enumerate(parts):
        place = f"{key}[{index}]"
        yield from _keys_problems(place, part)
        if part.weight != 1 and how != "sum":
            yield (
                f"{place}.weight",
                f"only a sum has weights, and reward.combine is {how}; remove it",
            )
        called = part.called()
        if "/" in called:
            yield f"{place}.name", f"{shown(called)} must not hold a slash; choose another"
        if called in names:
            yield (
                f"{place}.name",
                f"{names[called]} is called {shown(called)} too; give each a name of its own",
            )
        names[called] = place


def _keys_problems(place: str, part: RewardPart) -> Iterator[tuple[str, str]]:
    """Keys of one part that its source does not read, or that have no meaning."""
    for name, what in _IS_FOR.items():
        if getattr(part, name) is not None and name not in READS.get(part.kind(), ()):
            yield (
                f"{place}.{name}",
                f"is for {what}, and {place}.source is {shown(part.source)}; remove it",
            )
    if part.positive_labels is not None and part.label_weights is not None:
        yield f"{place}.label_weights", "does not go with positive_labels; set one of them"
    if isinstance(part.clip, list) and not (len(part.clip) == 2 and part.clip[0] < part.clip[1]):
        yield f"{place}.clip", f"expected [lowest, highest], found {shown(part.clip)}"
    if isinstance(part.clip, float) and not math.isfinite(part.clip):
        yield f"{place}.clip", "expected a finite number; null does not clip"
    yield from _rule_problems(place, part.source, part.arguments or {})


def _rule_problems(place: str, source: str, arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a rule or a service has against its name and arguments."""
    kind = kind_of(source)
    try:
        if kind == "rules":
            rule(source, arguments)
        elif kind == "service":
            from reward_models.http import known

            known(source, arguments)
    except RewardError as error:
        yield place, str(error).removeprefix("reward ")


def _service_problems(reward: RewardSection) -> Iterator[tuple[str, str]]:
    """Settings for a service where there is none."""
    named = [*reward.parts("source"), *([] if reward.gold is None else reward.parts("gold"))]
    for key in ("header_env", "concurrency"):
        if getattr(reward, key) is not None and not any(p.kind() == "service" for p in named):
            yield (
                f"reward.{key}",
                "is for a service, and none of reward.source and reward.gold is http://… or"
                " https://…; remove it",
            )
