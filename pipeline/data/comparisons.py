"""Comparisons for a pairwise reward: what one person thought of two texts, or one's own pairs.

The raters of the embedded movie reviews did not compare texts, they rated each. Two texts that the
same person rated are compared all the same: the better rating is chosen. The person's noise stays
in, and what shifts all of a person's ratings falls out; ties say nothing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pipeline.config import Experiment
from pipeline.data.preferences import Pair, read_pairs
from pipeline.data.records import Prompt, RatedText
from pipeline.data.splits import ExperimentData
from pipeline.data.words import same_but_for_form
from pipeline.errors import UserError

# Of own pairs: a share of the prompts, and a number, that are tested on at most.
_TEST_SHARE, _MOST_TEST = 0.1, 500


@dataclass(frozen=True)
class Comparison:
    """One answer preferred to another.

    Attributes:
        prompt: What both answer; empty where whole texts are compared.
        chosen: The better one. rejected: The other.
        group: What must stay together: the batch of raters, or the prompt.
        rater: Who compared, where that is known: the place among the raters of the batch.
        difference: Of the two ratings, in points; None where there are none.
        texts: The two rated texts, chosen first, for what other people thought of them.
    """

    prompt: Prompt
    chosen: Prompt
    rejected: Prompt
    group: Hashable
    rater: int | None = None
    difference: float | None = None
    texts: tuple[RatedText, RatedText] | None = None


@dataclass(frozen=True)
class Comparisons:
    """What the proxy learns from, what the gold judge does, and what both are tested on.

    No two share a rater, a text or a near-duplicate (raters' comparisons), or a prompt (own pairs).
    """

    proxy: list[Comparison]
    gold: list[Comparison]
    test: list[Comparison]


def load_comparisons(experiment: Experiment, data: ExperimentData) -> Comparisons:
    """The user's own pairs where the config names some, else the raters' comparisons.

    Raises:
        UserError: The pairs cannot be read or are too few, or nothing tells who rated what.
    """
    section, seed = experiment.data, experiment.data_seed
    if section.preferences_name is not None:
        names = section.column_names()
        pairs = read_pairs(section.preferences_name, names, section.train_split)
        return divided(pairs, seed, section.preferences_name)
    most = experiment.reward.comparisons_per_rater
    parts = (data.half("proxy"), data.half("gold"), data.classifier_test)
    proxy, gold, test = (of_raters(texts, most, seed) for texts in parts)
    if not (proxy and gold and test):
        raise UserError(
            f"data.dataset_name: {section.dataset_name} does not tell which ratings are one "
            "person's, so there are no comparisons for reward.source=pairwise: name your own pairs "
            "in data.preferences_name"
        )
    return Comparisons(proxy, gold, test)


def of_raters(texts: Sequence[RatedText], most: int, seed: int) -> list[Comparison]:
    """At most ``most`` comparisons of each rater, drawn at random among those that are no ties.

    Within a batch the pairs of texts are drawn for each rater apart, so that most are seen once.
    Texts without a batch give none.
    """
    batches: dict[int, list[RatedText]] = defaultdict(list)
    for text in texts:
        if text.batch is not None:
            batches[text.batch].append(text)
    found = []
    for batch, members in sorted(batches.items()):
        pairs = list(combinations(members, 2))
        for rater in range(len(members[0].ratings)):
            draw = random.Random(f"{seed}/{batch}/{rater}")
            taken = 0
            for one, other in draw.sample(pairs, len(pairs)):
                difference = one.ratings[rater] - other.ratings[rater]
                if difference == 0:
                    continue
                if taken == most:
                    break
                better, worse = (one, other) if difference > 0 else (other, one)
                taken += 1
                found.append(
                    Comparison(
                        *("", better.text, worse.text),
                        *(batch, rater, abs(difference), (better, worse)),
                    )
                )
    return found


def pair_ceiling(comparisons: Sequence[Comparison]) -> dict[str, float] | None:
    """How often a rater's comparison agrees with the other people who rated the same two texts.

    Returns:
        ``one_other``: with one other of them, drawn at random, who may be undecided (half right);
        ``others_mean``: with the sign of the mean of their differences. None where nobody else
        rated them.
    """
    one, mean = [], []
    for comparison in comparisons:
        if comparison.texts is None or comparison.rater is None:
            continue
        better, worse = (np.asarray(text.ratings) for text in comparison.texts)
        others = np.delete(better - worse, comparison.rater)
        if len(others):
            one.append(np.mean((np.sign(others) + 1) / 2))
            mean.append((np.sign(round(others.mean(), 9)) + 1) / 2)
    if not one:
        return None
    return {"one_other": float(np.mean(one)), "others_mean": float(np.mean(mean))}


def divided(pairs: Sequence[Pair], seed: int, name: str) -> Comparisons:
    """Own pairs by their prompts: a tenth, 500 at most, to test on, and two halves.

    Raises:
        UserError: There are fewer than three prompts, so that a part would be empty.
    """
    of_prompt: dict[str, list[Comparison]] = defaultdict(list)
    for pair in pairs:
        text = pair.prompt if isinstance(pair.prompt, str) else str(pair.prompt)
        key = same_but_for_form(text)
        of_prompt[key].append(Comparison(pair.prompt, pair.chosen, pair.rejected, key))
    prompts = list(of_prompt)
    random.Random(seed).shuffle(prompts)
    if len(prompts) < 3:
        raise UserError(
            f"data.preferences_name: {name} has {len(prompts)} different prompts, and "
            "reward.source=pairwise needs three or more: for the proxy, the judge and the test"
        )
    tested = max(1, min(_MOST_TEST, int(len(prompts) * _TEST_SHARE)))
    test, rest = prompts[:tested], prompts[tested:]
    proxy, gold, held = (
        [comparison for prompt in part for comparison in of_prompt[prompt]]
        for part in (rest[0::2], rest[1::2], test)
    )
    return Comparisons(proxy, gold, held)
