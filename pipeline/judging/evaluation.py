"""From scores and human ratings to the account of each reward, in numbers that JSON holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.records import RatedText
from pipeline.judging import PEOPLE, measures
from pipeline.judging.measures import Estimate, difference, estimate
from pipeline.judging.raters import Comparisons, compare, one_rater, panels_of
from pipeline.judging.texts import quarters
from reward_models import measure

Scores = Mapping[str, Sequence[float]]

FEW = 100
"""With fewer texts intervals are wide enough to be said."""
WORST = 6
"""Worst-judged texts shown in each direction."""


@dataclass(frozen=True)
class Scale:
    """How ratings become labels: positive is above ``threshold``, decided at ``margin`` from it."""

    threshold: float
    margin: float

    def decided(self, texts: Sequence[RatedText]) -> list[int]:
        """Places of the texts whose mean rating takes a side."""
        return [
            place
            for place, text in enumerate(texts)
            if abs(text.rating - self.threshold) >= self.margin and text.rating != self.threshold
        ]


def against_people(
    texts: Sequence[RatedText], scores: Sequence[float], scale: Scale, log_odds: bool
) -> dict[str, Any]:
    """One reward on some texts: agreement with the mean rating, and with its side.

    Correlations are over all texts; ``auc``, ``accuracy`` and calibration over the decided ones.
    None stands where a number is not defined: a constant score, texts of one side only, or scores
    that are no log-odds, in which no number says "positive".
    """
    ratings = [text.rating for text in texts]
    decided = scale.decided(texts)
    margins = [scores[place] for place in decided]
    positive = [ratings[place] > scale.threshold for place in decided]
    both = 0 < sum(positive) < len(positive)
    found: dict[str, Any] = {
        "texts": len(texts),
        "decided": len(decided),
        "spearman": _json(estimate(measures.spearman(scores, ratings), len(texts))),
        "pearson": _json(estimate(measures.pearson(scores, ratings), len(texts))),
        "auc": _json(estimate(measures.auc(margins, positive), len(decided)) if both else None),
        "accuracy": None,
        "ece": None,
    }
    if log_odds and both:
        found["accuracy"] = _json(estimate(measures.accuracy(margins, positive), len(decided)))
        error = measures.calibration_error(margins, positive)
        found["ece"] = _json(estimate(error, len(decided)))
        found["ece_by_chance"] = measures.calibration_error_by_chance(margins)
        found["bins"] = measure.calibration(margins, positive)["bins"]
    return found


def people(texts: Sequence[RatedText], scale: Scale) -> dict[str, Any] | None:
    """What one person reaches on the same texts; None where the raters are not known.

    ``units`` are what its intervals draw: as many as ``texts`` where no batches are known.
    """
    alone = one_rater(texts, scale.threshold, scale.margin)
    if alone is None:
        return None
    rated = [text for text in texts if len(text.ratings) > 1]
    return {
        "texts": len(rated),
        "units": len(set(panels_of(rated))),
        "raters": float(np.mean([len(text.ratings) for text in rated])),
        **{name: _json(value) for name, value in alone.items()},
    }


def pairwise(scores: Scores, comparisons: Comparisons | None) -> dict[str, Any] | None:
    """How often each reward sides with a held-out rater, beside how often another rater does.

    ``gap`` is a reward less the other rater, over the same draws of texts.
    """
    if comparisons is None:
        return None
    ceiling = comparisons.share(comparisons.another)
    found: dict[str, Any] = {
        "same_people": comparisons.same_people,
        "pairs": len(comparisons.first),
        "units": comparisons.units,
        "another_rater": _json(estimate(ceiling, comparisons.units)),
        "mean_of_others": _json(estimate(comparisons.share(comparisons.others), comparisons.units)),
        "rewards": {},
    }
    if comparisons.same_people:
        found["judgements"] = int(comparisons.judgements.sum())
    for name, values in scores.items():
        own = comparisons.agreement(values)
        found["rewards"][name] = {
            "agreement": _json(estimate(own, comparisons.units)),
            "gap": _json(estimate(difference(own, ceiling), comparisons.units)),
        }
    return found


def by_length(
    texts: Sequence[RatedText],
    lengths: Sequence[int],
    scores: Scores,
    scale: Scale,
    log_odds: Mapping[str, bool],
) -> list[dict[str, Any]]:
    """Each quarter of the texts by length, judged by itself."""
    rows = []
    for least, most, places in quarters(lengths):
        inside = [texts[place] for place in places]
        rows.append(
            {
                "from": least,
                "to": most,
                "texts": len(inside),
                "one_person": people(inside, scale),
                "rewards": {
                    name: against_people(
                        inside, [values[place] for place in places], scale, log_odds[name]
                    )
                    for name, values in scores.items()
                },
            }
        )
    return rows


def agreement(texts: Sequence[RatedText], scores: Scores) -> dict[str, Any]:
    """Spearman's correlation of every reward with every other and with the mean rating."""
    columns = {**scores, PEOPLE: [text.rating for text in texts]}
    ones = np.ones((1, len(texts)))
    matrix = [
        [_finite(measures.spearman(first, second)(ones)[0]) for second in columns.values()]
        for first in columns.values()
    ]
    return {"names": list(columns), "spearman": matrix}


def worst_judged(
    texts: Sequence[RatedText], scores: Sequence[float], count: int = WORST
) -> dict[str, list[dict[str, Any]]]:
    """The texts whose place among the scores is furthest from their place among the ratings.

    Places run from 0 (worst text) to 1, so that scores of any scale can be compared with people.
    """
    given = measures.quantile_ranks(scores)
    due = measures.quantile_ranks([text.rating for text in texts])
    order = np.argsort(given - due, kind="stable")

    def row(place: int) -> dict[str, Any]:
        text = texts[place]
        return {
            "text": text.text,
            "rating": text.rating,
            "ratings": list(text.ratings),
            "score": scores[place],
            "place_by_score": float(given[place]),
            "place_by_people": float(due[place]),
        }

    low = [row(int(place)) for place in order[:count] if given[place] < due[place]]
    high = [row(int(place)) for place in order[::-1][:count] if given[place] > due[place]]
    return {"too_high": high, "too_low": low}


def held_out_account(
    texts: Sequence[RatedText], scores: Scores, scale: Scale, log_odds: Mapping[str, bool]
) -> dict[str, Any]:
    """Everything that is told of the held-out texts but the lengths."""
    return {
        "one_person": people(texts, scale),
        "rewards": {
            name: against_people(texts, values, scale, log_odds[name])
            for name, values in scores.items()
        },
        "pairwise": pairwise(scores, compare(texts)),
        "agreement": agreement(texts, scores),
        "worst": {name: worst_judged(texts, values) for name, values in scores.items()},
    }


def cautions(
    account: Mapping[str, Any], scores: Scores, log_odds: Mapping[str, bool], unseen: Sequence[str]
) -> list[str]:
    """What must be known before the numbers are believed, a sentence each."""
    lines = []
    texts = next(iter(account["rewards"].values()))["texts"]
    if texts < FEW:
        lines.append(f"Only {texts} held-out texts: see how wide the intervals are.")
    unknown = [name for name in scores if name not in unseen]
    if unknown:
        lines.append(
            f"What {_listed(unknown)} learnt from is not compared with the judged texts: if they"
            " were among it, its numbers are too good."
        )
    other = [name for name in scores if not log_odds[name]]
    if other:
        lines.append(
            f"The scores of {_listed(other)} are no log-odds, so none of them means “positive”:"
            " accuracy and calibration are not told, and AUC and the correlations judge the order."
        )
    for name, values in scores.items():
        if len(set(values)) == 1:
            lines.append(
                f"{name} gives every held-out text the same score: correlations are not defined."
            )
    if not any(row["auc"] for row in account["rewards"].values()):
        lines.append(
            "All decided texts are on one side of data.positive_above: there is nothing to tell"
            " apart, so accuracy, AUC and calibration are not told."
        )
    if account["one_person"] is None:
        lines.append("The data holds no single raters' scores, so what people reach is not known.")
    elif account["pairwise"] and not account["pairwise"]["same_people"]:
        lines.append(
            "The data does not tell which texts the same person rated: two texts are compared by"
            " two people's scores, whose scales differ, so people agree less than they would."
        )
    return lines


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _json(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else value.to_json()


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
