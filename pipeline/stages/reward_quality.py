"""How good proxy and judge are on texts that they were not trained on, against people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.config import TRAINED_HERE, Experiment
from pipeline.data.records import RatedText
from pipeline.data.splits import ExperimentData
from pipeline.output.console import say
from pipeline.stages.heldout import prompts_and_endings
from pipeline.stages.reward_sources import PARTS, judge_is_proxy, reward_of, spec_of
from reward_models import RewardCall, measure
from reward_models.sentiment import SequenceClassifier

# A reward without labels to measure it is tried on this many texts before hours are spent on it.
_TRIED = 64


def measure_rewards(experiment: Experiment, data: ExperimentData) -> dict[str, Any]:
    """Score the held-out texts with both and compare them with people and with each other."""
    rated = data.classifier_test
    texts = [text.text for text in rated] or data.heldout[:_TRIED]
    prompts, endings = prompts_and_endings(texts, experiment)
    rewards = {part: reward_of(experiment, part) for part in PARTS}
    scores = {
        part: reward(prompts, endings) for part, reward in rewards.items() if _applies(part, reward)
    }
    metrics: dict[str, Any] = {
        "texts": len(texts),
        "judge_is_proxy": judge_is_proxy(experiment),
        "proxy_gold_correlation": None,
    }
    if len(scores) == len(PARTS):
        both = measure.correlation(scores["proxy"], scores["gold"])
        metrics["proxy_gold_correlation"] = both
    for part in PARTS:
        spec = spec_of(experiment, part)
        metrics[part] = {"source": spec}
        if part not in scores:
            continue
        metrics[part] |= _spread(scores[part])
        if spec != TRAINED_HERE and isinstance(rewards[part].function, SequenceClassifier):
            metrics[part]["described"] = rewards[part].function.describe()
        if rated:
            metrics[part] |= _against_people(experiment, rated, scores[part], spec == TRAINED_HERE)
    if rated:
        section = experiment.data
        metrics["one_rater"] = measure.human_agreement(
            [text.ratings for text in rated], section.positive_above, section.neutral_margin
        )
    return metrics


def _applies(part: str, reward: RewardCall) -> bool:
    """False, and told, for one that asks for more than a text: of those here no more is known."""
    needed = ", ".join(sorted(reward.needed_columns()))
    if needed:
        say(f"reward {part} · asks for {needed}, so it is not measured on the held-out texts")
    return not needed


def _spread(scores: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(scores)), "std": float(np.std(scores))}


def _against_people(
    experiment: Experiment, rated: list[RatedText], scores: list[float], is_margin: bool
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
    shown: list[tuple[str, str, Callable[[float], str]]] = [
        ("accuracy", "accuracy on held-out texts", lambda v: f"{v:.1%}"),
        ("correlation", "correlation with the human mean", lambda v: f"{v:.2f}"),
        ("ece", "calibration error", lambda v: f"{v:.3f}"),
        ("mean", "mean reward", lambda v: f"{v:.2f}"),
        ("std", "spread", lambda v: f"{v:.2f}"),
    ]
    for part in PARTS:
        numbers = metrics[part]
        if "described" in numbers:
            say(f"reward {part} · {numbers['described']}")
        parts = [
            f"{word} {show(numbers[k])}" for k, word, show in shown if numbers.get(k) is not None
        ]
        if parts:
            say(f"reward {part} · " + ", ".join(parts))
    if metrics.get("one_rater"):
        ceiling = metrics["one_rater"]["accuracy"]
        say(f"reward · one person against the mean of the others: accuracy {ceiling:.1%}")
    if metrics["judge_is_proxy"]:
        say("reward · no judge of its own (reward.gold is null): the proxy judges itself")
