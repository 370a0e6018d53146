"""The rewards that are judged, the experiment's own and further ones, and their scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from common.words import clock
from common.yamlfile import parse_override
from pipeline.config import PAIRWISE, Experiment, RewardPart, is_trained_here
from pipeline.errors import UserError
from pipeline.output.console import say
from pipeline.output.terminal import progress
from pipeline.planning import in_place
from pipeline.stages.reward_scale import Part
from pipeline.stages.reward_sources import (
    PARTS,
    judge_is_proxy,
    reward_of,
    source_reward,
)
from reward_models import RewardCall
from reward_models.arguments import ENDED, IDS
from reward_models.rules import RULES
from reward_models.sentiment import SequenceClassifier

_AT_ONCE = 256
_TRIED = 32  # texts that each reward is timed on
_LONG = 60.0  # seconds from which on the expected time is said


@dataclass(frozen=True)
class Judge:
    """A reward with its name on the page.

    Attributes:
        source: What the config or the command line names.
        log_odds: Its scores are log P(good) − log P(not good), so that 0 divides the two and
            probabilities can be checked. Of other scores only the order means something.
        unseen: It did not learn from the held-out texts: this experiment trained it on others, or
            it is a rule.
    """

    name: str
    source: str
    reward: RewardCall
    log_odds: bool
    unseen: bool

    @property
    def described(self) -> str | None:
        """How a classifier reads and what it gives, in a line."""
        function = self.reward.function
        return function.describe() if isinstance(function, SequenceClassifier) else None


def own_judges(experiment: Experiment, more: bool) -> list[Judge]:
    """The proxy and, where it is another reward, the gold judge.

    Args:
        more: Other rewards are judged too, so that one that is not trained yet may be left out.

    Raises:
        UserError: One is not trained yet and there are no others, cannot be loaded, or was made
            with another config.
    """
    alone, found = judge_is_proxy(experiment), []
    parts = PARTS[:1] if alone else PARTS
    trained = [part for part in parts if _trained_here(experiment, part)]
    there = not trained or _is_finished(experiment)
    for part in parts:
        if more and not there and part in trained:
            say(f"evaluate-reward: {part} is not trained yet (`rlhf reward`), left out")
            continue
        reward = reward_of(experiment, part)
        if _more_than_texts(reward):
            say(f"evaluate-reward: {part} asks for {_more_than_texts(reward)}, left out")
            continue
        source = ", ".join(_sources(experiment, part))
        unseen = all(did_not_see(experiment, source) for source in _sources(experiment, part))
        found.append(_judge(part, source, reward, unseen=unseen))
    if alone:
        say("evaluate-reward: no judge of its own (reward.gold is null): the proxy alone")
    return found


def _sources(experiment: Experiment, part: Part) -> list[str]:
    """What the config names for a part."""
    judge = part == "gold" and experiment.reward.gold is not None
    return [source.source for source in experiment.reward.parts("gold" if judge else "source")]


def did_not_see(experiment: Experiment, source: str) -> bool:
    """Whether a source surely did not learn from the held-out texts.

    What is trained on the user's own pairs may have: they are not compared with these texts.
    """
    if source == PAIRWISE and experiment.data.preferences_name is not None:
        return False
    return is_trained_here(source) or source.startswith(RULES)


def _trained_here(experiment: Experiment, part: Part) -> bool:
    return any(map(is_trained_here, _sources(experiment, part)))


def _is_finished(experiment: Experiment) -> bool:
    """Whether the reward stage is; UserError where it was made with another config, so that the
    texts that this one holds out may be among those that its rewards were trained on."""
    try:
        return in_place(experiment, "reward").action == "skip"
    except UserError as error:
        raise UserError(f"{error}: only that tells which texts it did not see") from None


def further_judges(experiment: Experiment, named: Mapping[str, str]) -> list[Judge]:
    """The rewards that the command line names; UserError where one cannot be loaded."""
    section, found = experiment.reward, []
    for name, source in named.items():
        part = _part(name, source)
        reward = source_reward(experiment, "proxy", f"--reward {name}", part)
        if _more_than_texts(reward):
            raise UserError(
                f"--reward {name}: asks for {_more_than_texts(reward)}, and all that is known here"
                " are rated texts; name one that judges those"
            )
        reward = replace(reward, timeout=section.timeout, retries=section.retries)
        unseen = did_not_see(experiment, part.source)
        found.append(_judge(name, part.source, reward, unseen=unseen))
    return found


def _more_than_texts(reward: RewardCall) -> str:
    """The columns that a reward cannot do without, beside the texts and what follows from them."""
    return ", ".join(sorted(reward.needed_columns() - {IDS, ENDED}))


def _part(name: str, source: str) -> RewardPart:
    """A source by its name, or a mapping as in a list of `reward.source`."""
    given: Any = {"source": source}
    if source.startswith("{"):
        _, given = parse_override(f"{name}={source}", UserError)
    try:
        part = RewardPart.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "source"
        raise UserError(
            f"--reward {name}: {key}: {first['msg']}; give what a part of reward.source takes"
        ) from None
    combining = sorted(part.model_fields_set & {"weight", "name", "clip", "normalize"})
    if combining:
        raise UserError(f"--reward {name}: {combining[0]} combines several rewards; remove it")
    if is_trained_here(part.source):
        raise UserError(
            f"--reward {name}: {part.source} is what this experiment trains, judged as its proxy"
            " and gold; name another, or the folder of one"
        )
    return part


def _judge(name: str, source: str, reward: RewardCall, *, unseen: bool) -> Judge:
    return Judge(name, source, reward, _gives_log_odds(reward), unseen)


def _gives_log_odds(reward: RewardCall) -> bool:
    return getattr(reward.function, "gives_log_odds", False) is True


def score(
    judges: Sequence[Judge],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, list[float]]:
    """Every judge's scores, with a bar; says first what it will take where that is long.

    Args:
        columns: What a reward may ask for beside the texts: a list of as many.

    Raises:
        UserError: A reward fails, or gives anything but a finite number for each text.
    """

    def ask(judge: Judge, places: Sequence[int]) -> list[float]:
        asked = {name: [column[place] for place in places] for name, column in columns.items()}
        return judge.reward(
            [prompts[place] for place in places],
            [completions[place] for place in places],
            **asked,
        )

    count = len(completions)
    by_length = sorted(range(count), key=lambda place: -len(completions[place]))
    tried = by_length[:: max(1, count // _TRIED)][:_TRIED]
    start = time.monotonic()
    for judge in judges:
        ask(judge, tried)
    seconds = (time.monotonic() - start) / max(1, len(tried)) * count
    if seconds > _LONG:
        say(
            f"evaluate-reward: about {clock(seconds)} for {count:,} texts and {len(judges)} "
            "reward(s) on this machine; fewer texts: --most 200"
        )
    steps = [
        (judge, range(start, min(start + _AT_ONCE, count)))
        for judge in judges
        for start in range(0, count, _AT_ONCE)
    ]
    scores: dict[str, list[float]] = {judge.name: [] for judge in judges}
    for judge, places in progress(steps, "evaluate-reward scoring"):
        scores[judge.name] += ask(judge, places)
    return scores
