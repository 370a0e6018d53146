"""Prompts, demonstrations, rated texts and preference pairs: from a data set to the splits.

all texts ── cleaned, 8–30 words, duplicates removed, shuffled by the seed
  ├─ eval prompts     first words of texts that nothing trains on
  ├─ held-out texts   for perplexity; their first words are the validation prompts
  ├─ classifier test  a tenth, about 1,000 at most
  └─ training texts   ├─ demonstrations (SFT) and training prompts (PPO, DPO)
                      └─ two disjoint halves: the proxy's and the gold judge's

Near-duplicates of what is held out are trained on by nothing. Near-duplicates, and texts that the
same people rated, are together in the test, in the proxy's half or in the gold judge's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PAIRWISE, TRAINED_HERE, DataSection, Experiment
from pipeline.data import embedded
from pipeline.data.columns import Columns
from pipeline.data.demonstrations import are_demonstrations, read_demonstrations
from pipeline.data.large import LargeRows, keep
from pipeline.data.leakage import MOST_SEARCHED
from pipeline.data.parts import behind, groups_of, parts, without_near
from pipeline.data.prompts import own_prompts, read_prompts
from pipeline.data.records import Demonstration, Prompt, RatedText, number_of
from pipeline.data.sources import read_rows
from pipeline.data.stored import Kept, Stored, column, joined, mapped, shuffled, taken
from pipeline.data.texts import Suitable, TextsAgain, rated_text
from pipeline.data.toy import in_batches, toy_texts
from pipeline.data.words import Unit, unit_of
from pipeline.errors import UserError

__all__ = ["ExperimentData", "Prompt", "RatedText", "load_data"]

_EMBEDDED = "embedded:"
_TOY_TEXTS = 3000
_MOST_TEST_TEXTS = 1000
_HALVES = {"proxy": "the proxy's half", "gold": "the gold judge's half"}
_NUMBERS = {"rating": "d", "characters": "q"}  # that stored texts have


@dataclass(frozen=True)
class ExperimentData:
    """Everything the stages learn from and are measured on.

    Attributes:
        demonstrations: For SFT: texts, or prompts with their answers.
        heldout: The same for perplexity; in no training split.
        train_prompts: Prompts for PPO and for preference pairs.
        validation_prompts: What PPO is evaluated on and chooses its best by, all different, from
            ``heldout``; of own prompts what training leaves over. There may be fewer than asked
            for, or none.
        eval_prompts: Prompts for the comparison, all different, from texts in no other split.
            No prompt is in two of the three.
        proxy: Rated texts for the reward's classifier, neutral ones left out; empty when no
            classifier is trained.
        gold: The same for the judge; disjoint from ``proxy``.
        classifier_test: Rated texts for measuring both, neutral ones included. No text of one of
            the three is a near-duplicate of one of another, or rated by the same people.
        neutral: What ``proxy`` and ``gold`` leave out of their halves, by their names.
    """

    demonstrations: Sequence[str] | Sequence[Demonstration]
    heldout: Sequence[str] | Sequence[Demonstration]
    train_prompts: Sequence[Prompt]
    validation_prompts: Sequence[Prompt]
    eval_prompts: Sequence[Prompt]
    proxy: Sequence[RatedText]
    gold: Sequence[RatedText]
    classifier_test: Sequence[RatedText]
    neutral: Mapping[str, Sequence[RatedText]] = field(default_factory=dict)

    def half(self, part: str) -> Sequence[RatedText]:
        """All rated texts of ``proxy`` or ``gold``, neutral ones at the end."""
        return joined(getattr(self, part), self.neutral.get(part, ()))


def load_data(experiment: Experiment, labels: bool = True) -> ExperimentData:
    """Read the experiment's data set and divide it; same config and seed, same splits.

    Args:
        labels: Read the ratings too. SFT learns from texts that have none.

    Raises:
        UserError: The data cannot be read, a row lacks a column or has one of another type, or
            there are too few texts for the splits that the config asks for.
    """
    section = experiment.data
    own_pairs = section.preferences_name is not None
    learnt = {TRAINED_HERE} if own_pairs else {TRAINED_HERE, PAIRWISE}
    rated = bool(learnt.intersection(experiment.reward.sources()))
    name = section.dataset_name
    if name == "toy" or name.startswith(_EMBEDDED):
        made = toy_texts(_TOY_TEXTS, seed=0) if name == "toy" else None
        if made and PAIRWISE in experiment.reward.sources():
            made = in_batches(made)
        texts = made or embedded.ratings(name.removeprefix(_EMBEDDED))
        return _of_texts(experiment, texts, rated)
    rows = read_rows(
        name,
        key="data.dataset_name",
        split=section.train_split,
        config=section.dataset_config,
        column=section.text_column,
    )
    names = Columns(section.column_names())
    first = rows.first() if isinstance(rows, LargeRows) else rows[0]
    assert first is not None  # there is one, or it would have been told
    if are_demonstrations(first, names):
        if rated and labels:
            raise UserError(
                f"data.dataset_name: {first.place}: holds a prompt with its answer, and the "
                "classifier of reward.source=sentiment learns from rated texts: set reward.source "
                "to your own reward"
            )
        return _of_demonstrations(
            experiment, read_demonstrations(name, rows, section.column_names())
        )
    if isinstance(rows, LargeRows):
        return _of_large(experiment, rows, rated, labels)
    asked = rows if rated and labels else None
    texts = [rated_text(row, names, section, asked) for row in rows]
    return _of_texts(experiment, texts, rated, labels)


def _of_texts(
    experiment: Experiment, texts: list[RatedText], rated: bool, labels: bool = True
) -> ExperimentData:
    """The splits of texts; ``rated`` ones teach and test the classifiers too.

    Without ``labels`` the ratings were not read: the classifiers' parts are then empty.
    """
    suitable = Suitable(experiment.data, unit_of(experiment))
    kept = [made for text in texts if (made := suitable.of(text)) is not None]
    return _divided(experiment, kept, suitable.tell(), rated, labels)


def _of_large(experiment: Experiment, rows: LargeRows, rated: bool, labels: bool) -> ExperimentData:
    """:func:`_of_texts` of rows of which the suitable ones are not held in memory."""
    section, unit = experiment.data, unit_of(experiment)
    make = TextsAgain(section, unit, rated and labels)

    def read(kept: Kept[RatedText]) -> None:
        suitable = Suitable(section, unit)
        for row in rows:
            text = suitable.of(make.text(row, rows))
            if text is not None:
                kept.add(text, row, rating=text.rating, characters=len(text.text))
        kept.about = suitable.tell()

    counted = make.settings(unit.identity)
    texts: Sequence[RatedText] = keep(rows, counted, make, read, _NUMBERS)
    assert isinstance(texts, Stored)
    there = texts.about
    if texts.column("characters").sum() <= MOST_SEARCHED:  # little of a large file is suitable
        texts = list(texts)
    return _divided(experiment, texts, there, rated, labels)


def _divided(
    experiment: Experiment,
    texts: Sequence[RatedText],
    there: str,
    rated: bool,
    labels: bool,
) -> ExperimentData:
    """The splits of suitable texts, which are ``there``, in words."""
    section, unit = experiment.data, unit_of(experiment)
    texts = taken(texts, shuffled(len(texts), experiment.data_seed))
    own = _own_prompts(experiment)
    near = groups_of(texts, section)

    evaluation, rest = ([], texts) if own else _take_evaluation(texts, section, unit)
    wanted = min(_MOST_TEST_TEXTS, len(texts) // 10) if rated else 0
    asked = None if own else len(evaluation)
    _check_enough(there, len(texts), asked, wanted, section)
    rest = without_near(rest, evaluation, near)
    heldout, rest = rest[: section.heldout], rest[section.heldout :]
    rest = without_near(rest, heldout, near)
    test, training, *halves = parts(rest, near, wanted, section.positive_above)
    left = len(evaluation) + len(heldout) + len(test) + len(training)
    if left < len(texts):
        there += " that are no near-duplicates of held-out ones"
    _check_enough(there, left, asked, len(test), section)
    demonstrations = training[: section.demonstrations]
    if own:
        train_prompts, validation_prompts, eval_prompts = own
    else:
        begin = _Beginning(unit, section.prompt_words)
        eval_prompts = [begin(text) for text in evaluation]
        # Fresh texts first: a prompt from a demonstration is one whose answer SFT has seen.
        others = behind(training, section.demonstrations)
        train_prompts = _training_prompts(mapped(others, begin), eval_prompts, section)
        beginnings = (begin(text) for text in heldout)
        validation_prompts = _validation_prompts(
            beginnings, chain(train_prompts, eval_prompts), section
        )
    learnt = zip(_HALVES, halves, strict=True) if rated and labels else ()
    halves_of = {part: (half, _decided_places(half, section)) for part, half in learnt}
    sides = {
        part: _decided(half, taken(half, places), section, _HALVES[part])
        for part, (half, places) in halves_of.items()
    }
    return ExperimentData(
        demonstrations=mapped(demonstrations, attrgetter("text")),
        heldout=[text.text for text in heldout],
        train_prompts=train_prompts,
        validation_prompts=validation_prompts,
        eval_prompts=list(eval_prompts),
        proxy=sides.get("proxy", []),
        gold=sides.get("gold", []),
        classifier_test=list(test) if labels else [],
        neutral={
            part: taken(half, np.setdiff1d(np.arange(len(half)), places))
            for part, (half, places) in halves_of.items()
        },
    )


class _Beginning:
    """Makes prompts of texts; an object, so that it can be sent to other processes."""

    def __init__(self, unit: Unit, count: int) -> None:
        self._unit, self._count = unit, count

    def __call__(self, text: RatedText) -> Prompt:
        return self._unit.first(text.text, self._count)


def _of_demonstrations(experiment: Experiment, made: Sequence[Demonstration]) -> ExperimentData:
    """The splits of prompts with answers; no classifier learns from them."""
    section = experiment.data
    made = taken(made, shuffled(len(made), experiment.data_seed))
    own = _own_prompts(experiment)
    evaluation: list[Demonstration] = []
    if not own:
        evaluation, made = _different(made, section)
    count, asked = len(evaluation) + len(made), None if own else len(evaluation)
    _check_enough("demonstrations", count, asked, 0, section)
    heldout, training = made[: section.heldout], made[section.heldout :]
    demonstrations = training[: section.demonstrations]
    if own:
        train_prompts, validation_prompts, eval_prompts = own
    else:
        eval_prompts = [item.prompt for item in evaluation]
        prompts = mapped(behind(training, section.demonstrations), attrgetter("prompt"))
        train_prompts = _training_prompts(prompts, eval_prompts, section)
        validation_prompts = _validation_prompts(
            (item.prompt for item in heldout), chain(train_prompts, eval_prompts), section
        )
    prompts_of = train_prompts, validation_prompts, list(eval_prompts)
    return ExperimentData(demonstrations, list(heldout), *prompts_of, [], [], [])


def _different(
    made: Sequence[Demonstration], section: DataSection
) -> tuple[list[Demonstration], Sequence[Demonstration]]:
    """The first demonstrations whose prompts are all different, and those with other prompts."""
    found: dict[str, Demonstration] = {}
    for item in made:
        if len(found) == section.eval_prompts:
            break
        found.setdefault(str(item.prompt), item)
    if len(found) < section.eval_prompts:
        raise _too_few(f"{len(found)} different prompts", "eval_prompts", section)
    if isinstance(made, Stored):
        others = ~np.isin(made.column("prompt"), [number_of(i.prompt) for i in found.values()])
        return list(found.values()), made.take(np.flatnonzero(others))
    return list(found.values()), [item for item in made if str(item.prompt) not in found]


def _take_evaluation(
    texts: Sequence[RatedText], section: DataSection, unit: Unit
) -> tuple[Sequence[RatedText], Sequence[RatedText]]:
    """The first texts whose prompts are all different, and the other texts."""
    found: dict[str, int] = {}
    for place, text in enumerate(texts):
        if len(found) == section.eval_prompts:
            break
        found.setdefault(unit.first(text.text, section.prompt_words), place)
    if len(found) < section.eval_prompts:
        raise _too_few(f"{len(found)} different prompts", "eval_prompts", section)
    places = list(found.values())
    return taken(texts, places), taken(texts, np.setdiff1d(np.arange(len(texts)), places))


def _check_enough(
    there: str, count: int, evaluation: int | None, tested: int, section: DataSection
) -> None:
    """UserError unless the ``count`` that is ``there`` (in words) is enough for every split."""
    parts = {"demonstrations": section.demonstrations, "heldout": section.heldout}
    if evaluation is not None:
        parts["eval_prompts"] = evaluation
    needed = sum(parts.values()) + tested
    if count >= needed:
        return
    largest = max(parts, key=lambda part: parts[part])
    asked = " + ".join(f"{number} {part}" for part, number in parts.items())
    asked += f" + {tested} to test the classifier" if tested else ""
    raise UserError(
        f"data.{largest}: {section.dataset_name} has {count} different {there}, but {needed} are "
        f"asked for ({asked}): lower data.{largest}"
    )


def _too_few(there: str, key: str, section: DataSection) -> UserError:
    return UserError(
        f"data.{key}: {section.prompts_name or section.dataset_name} gives {there}, but "
        f"{getattr(section, key)} are asked for: lower data.{key}"
    )


def _training_prompts(
    prompts: Sequence[Prompt], evaluation: Iterable[Prompt], section: DataSection
) -> Sequence[Prompt]:
    """The first prompts. They may repeat, as in life, but none is an evaluation prompt."""
    kept_out = set(map(str, evaluation))
    usable = (place for place, prompt in enumerate(prompts) if str(prompt) not in kept_out)
    places = list(islice(usable, section.train_prompts))
    if len(places) < section.train_prompts:
        raise _too_few(f"{len(places)} prompts for training", "train_prompts", section)
    return taken(prompts, places)


def _validation_prompts(
    heldout: Iterable[Prompt], used: Iterable[Prompt], section: DataSection
) -> list[Prompt]:
    """The first different prompts of held-out texts that are not ``used`` otherwise."""
    kept_out = set(map(number_of, used))
    different = {str(p): p for p in heldout if number_of(p) not in kept_out}
    return list(different.values())[: section.validation_prompts]


def _own_prompts(
    experiment: Experiment,
) -> tuple[Sequence[Prompt], list[Prompt], list[Prompt]] | None:
    """The user's prompts, all different, for training, validation and evaluation; None without any.

    Validation has those that training leaves over, if any.
    """
    section = experiment.data
    if not section.prompts_name:
        return None
    different = read_prompts(section.prompts_name, section.column_names(), section.train_split)
    evaluation, training = own_prompts(different, experiment.data_seed, section.eval_prompts)
    if len(training) < section.train_prompts:
        there = f"{len(different)} different prompts, {len(training)} without the evaluation's"
        raise _too_few(there, "train_prompts", section)
    left = training[section.train_prompts :]
    validation = list(left[: section.validation_prompts])
    return training[: section.train_prompts], validation, list(evaluation)


def _decided_places(texts: Sequence[RatedText], section: DataSection) -> NDArray[np.int64]:
    """Of the texts whose label is clearly on one side."""
    ratings = column(texts, "rating", attrgetter("rating"))
    return np.flatnonzero(abs(ratings - section.positive_above) >= section.neutral_margin)


def _decided(
    texts: Sequence[RatedText], decided: Sequence[RatedText], section: DataSection, part: str
) -> Sequence[RatedText]:
    """The ``decided`` of the texts; both sides must be there."""
    limit = section.positive_above
    positive = int((column(decided, "rating", attrgetter("rating")) > limit).sum())
    if 0 < positive < len(decided):
        return decided
    missing = "negative" if positive else "positive"
    ratings = sorted(set(column(texts, "rating", attrgetter("rating")).tolist()))
    low, high = (ratings[0], ratings[-1]) if ratings else (0.0, 0.0)
    mend = "change them"
    if not low < limit < high and low < high:
        classes = "classes" if len(ratings) == 2 else "labels from"
        joined = " and " if len(ratings) == 2 else " to "
        mend = f"set data.positive_above={(low + high) / 2:g} for {classes} {low:g}{joined}{high:g}"
    raise UserError(
        f"data.label_column: {part} of {section.dataset_name} has no {missing} text at "
        f"data.positive_above={limit:g} and data.neutral_margin={section.neutral_margin:g}: {mend}"
    )
