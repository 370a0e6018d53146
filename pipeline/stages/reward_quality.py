"""How good proxy and judge are on texts that they were not trained on, against people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline.config import TRAINED_HERE, Experiment, RewardPart, is_trained_here
from pipeline.data.comparisons import Comparison, Comparisons, pair_ceiling
from pipeline.data.records import Prompt, RatedText
from pipeline.data.splits import ExperimentData
from pipeline.output.console import say
from pipeline.stages.heldout import columns_of, prompts_and_endings
from pipeline.stages.reward_sources import (
    PARTS,
    Part,
    judge_is_proxy,
    key_of,
    reward_of,
    sources_of,
    trained_source,
)
from reward_models import RewardCall, measure
from reward_models.arguments import ENDED, IDS
from reward_models.combined import Combined
from reward_models.interface import ChatPrompt
from reward_models.pairwise import pair_accuracy
from reward_models.sentiment import SequenceClassifier

# A reward without labels to measure it is tried on this many texts before hours are spent on it.
_TRIED = 64


def measure_rewards(
    experiment: Experiment, data: ExperimentData, comparisons: Comparisons | None = None
) -> dict[str, Any]:
    """Score the held-out texts with both and compare them with people and with each other.

    Args:
        comparisons: Whose test part both are tried on too.
    """
    rated = data.classifier_test
    texts = [text.text for text in rated] or data.heldout[:_TRIED]
    prompts, endings = prompts_and_endings(texts, experiment)
    asked = prompts, endings, columns_of(experiment, endings)
    rewards = {part: reward_of(experiment, part) for part in PARTS}
    scores = {part: _scores(part, reward, *asked) for part, reward in rewards.items()}
    metrics: dict[str, Any] = {
        "texts": len(texts),
        "judge_is_proxy": judge_is_proxy(experiment),
        "proxy_gold_correlation": None,
    }
    proxy, gold = (scores[part].get(part) for part in PARTS)
    if proxy and gold:
        metrics["proxy_gold_correlation"] = measure.correlation(proxy, gold)  # type: ignore[arg-type]
    for part in PARTS:
        sources = list(sources_of(experiment, part).values())
        made = rewards[part].function
        if not isinstance(made, Combined):
            metrics[part] = _measured(experiment, rated, scores[part].get(part), sources[0], made)
            continue
        metrics[part] = {"source": experiment.reward.shown(key_of(experiment, part))}
        metrics[part] |= _measured(experiment, rated, scores[part].get(part), None, made)
        metrics[part]["parts"] = {
            of.name: _measured(
                experiment, rated, scores[part].get(of.name), source, of.reward.function
            )
            for of, source in zip(made.parts, _each(made, sources), strict=True)
        }
    if comparisons is not None:
        for part in filter(partial(trained_source, experiment), PARTS):
            trained = _trained(experiment, part, rewards[part])
            metrics[part]["pairs"] = _pairs(trained, comparisons.test)
        metrics["one_rater_pairs"] = pair_ceiling(comparisons.test)
    if rated:
        section = experiment.data
        metrics["one_rater"] = measure.human_agreement(
            [text.ratings for text in rated], section.positive_above, section.neutral_margin
        )
    return metrics


def _each(function: Combined, sources: list[RewardPart]) -> list[RewardPart]:
    """The source of every part; the members of an ensemble share theirs."""
    return sources * len(function.parts) if len(sources) == 1 else sources


def _trained(experiment: Experiment, part: Part, reward: RewardCall) -> RewardCall:
    """The one of a part's sources that is trained here, alone; all members of an ensemble."""
    sources = list(sources_of(experiment, part).values())
    if len(sources) == 1 or not isinstance(reward.function, Combined):
        return reward
    pairs = zip(reward.function.parts, sources, strict=True)
    return next(of.reward for of, source in pairs if is_trained_here(source.source))


def _pairs(reward: RewardCall, test: list[Comparison]) -> dict[str, float]:
    """How often the chosen answer of a held-out comparison scores higher."""
    pairs = [{"prompt": shown(c.prompt), **_texts(c)} for c in test]
    return {"pairs": len(pairs), "accuracy": pair_accuracy(reward, pairs)}


def _texts(comparison: Comparison) -> dict[str, str]:
    """Both answers as texts."""
    both = {"chosen": comparison.chosen, "rejected": comparison.rejected}
    return {name: a if isinstance(a, str) else a[-1]["content"] for name, a in both.items()}


def shown(prompt: Prompt) -> str:
    """A prompt as rewards take it."""
    if isinstance(prompt, str):
        return prompt
    return ChatPrompt("\n".join(message["content"] for message in prompt), prompt)


def _scores(
    part: str,
    reward: RewardCall,
    prompts: list[str],
    endings: list[str],
    columns: dict[str, list[Any]],
) -> dict[str, list[float | None]]:
    """What is said of the texts: the total under the part's name, and that of each source.

    A source that asks for more than a text has is left out, and with it the total.
    """
    made = reward.function
    if not isinstance(made, Combined):
        if not _applies(part, reward):
            return {}
        return {part: list(reward(prompts, endings, **columns))}
    there = {of.name: _applies(f"{part} {of.name}", of.reward) for of in made.parts}
    if all(there.values()):
        scores = reward.scores(prompts, endings, **columns)
        return {part: list(scores.total), **scores.parts}
    return {
        of.name: of.reward.partial_scores(prompts, endings, **columns)[0]
        for of in made.parts
        if there[of.name]
    }


def _applies(name: str, reward: RewardCall) -> bool:
    """False, and told, for one that asks for more than a text: of those here no more is known."""
    needed = ", ".join(sorted(reward.needed_columns() - {IDS, ENDED}))
    if needed:
        say(f"reward {name} · asks for {needed}, so it is not measured on the held-out texts")
    return not needed


def _measured(
    experiment: Experiment,
    rated: Sequence[RatedText],
    scores: Sequence[float | None] | None,
    source: RewardPart | None,
    function: Callable[..., Any],
) -> dict[str, Any]:
    """One source, its scores neither scaled nor weighed, on the texts that it applies to.

    ``source`` is None for what several make together.
    """
    result: dict[str, Any] = {} if source is None else {"source": source.source}
    section, trained = experiment.reward, source is not None and is_trained_here(source.source)
    nats = source is not None and source.source == TRAINED_HERE
    nats = nats and (section.labels != "mean" or section.calibrate)
    if not trained and isinstance(function, SequenceClassifier):
        result["described"] = function.describe()
    there = [score for score in scores or [] if score is not None]
    if not there or scores is None:
        return result
    if len(there) < len(scores):
        result["applies"] = len(there)
    result |= _spread(there)
    if rated:
        texts = [t for t, score in zip(rated, scores, strict=True) if score is not None]
        result |= _against_people(experiment, texts, there, is_margin=nats)
    return result


def _spread(scores: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(scores)), "std": float(np.std(scores))}


def _against_people(
    experiment: Experiment, rated: Sequence[RatedText], scores: list[float], is_margin: bool
) -> dict[str, Any]:
    """Agreement with the human ratings.

    The correlation is over all held-out texts, neutral ones included; the rest over the decided
    ones. Accuracy and calibration need scores that are logit margins (``is_margin``).
    """
    limit = experiment.data.positive_above
    far = experiment.data.neutral_margin
    ratings = [text.rating for text in rated]
    decided = [
        (s, r > limit) for s, r in zip(scores, ratings, strict=True) if abs(r - limit) >= far
    ]
    margins, positive = [score for score, _ in decided], [label for _, label in decided]
    result: dict[str, Any] = {"correlation": measure.correlation(scores, ratings)}
    if not 0 < sum(positive) < len(positive):
        return result  # all held-out texts on one side: nothing to tell apart
    result |= {"decided_texts": len(decided), "auc": measure.auc(margins, positive)}
    if is_margin:
        result |= {"accuracy": measure.accuracy(margins, positive)}
        result |= measure.calibration(margins, positive)
    return result


def tell(metrics: dict[str, Any]) -> None:
    """Print the key numbers, a line a part."""
    same = metrics["judge_is_proxy"]
    shown: list[tuple[str, str, Callable[[Any], str]]] = [
        ("accuracy", "accuracy on held-out texts", lambda v: f"{v:.1%}"),
        ("correlation", "correlation with the human mean", lambda v: f"{v:.2f}"),
        ("ece", "calibration error", lambda v: f"{v:.3f}"),
        ("pairs", "accuracy on held-out pairs", lambda v: f"{v['accuracy']:.1%}"),
        ("mean", "mean reward", lambda v: f"{v:.2f}"),
        ("std", "spread", lambda v: f"{v:.2f}"),
    ]
    rows = []
    for part in PARTS:
        rows.append((part, metrics[part]))
        named = metrics[part].get("parts", {}) if part == "proxy" or not same else {}
        rows += [(f"{part} {name}", numbers) for name, numbers in named.items()]
    for name, numbers in rows:
        if "described" in numbers:
            say(f"reward {name} · {numbers['described']}")
        marks = [
            f"{word} {show(numbers[k])}" for k, word, show in shown if numbers.get(k) is not None
        ]
        if marks:
            say(f"reward {name} · " + ", ".join(marks))
    if metrics.get("one_rater"):
        ceiling = metrics["one_rater"]["accuracy"]
        say(f"reward · one person against the mean of the others: accuracy {ceiling:.1%}")
    if metrics.get("one_rater_pairs"):
        ceiling = metrics["one_rater_pairs"]["one_other"]
        say(f"reward · one person against another on these pairs: {ceiling:.1%}")
    if same:
        say("reward · no judge of its own (reward.gold is null): the proxy judges itself")
