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

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.config import PAIRWISE, TRAINED_HERE, DataSection, Experiment
from pipeline.data import embedded
from pipeline.data.columns import Columns
from pipeline.data.demonstrations import are_demonstrations, read_demonstrations
from pipeline.data.leakage import (
    Groups,
    in_halves,
    linked_groups,
    near_groups,
    sides_of,
    take_groups,
)
from pipeline.data.prompts import own_prompts, read_prompts
from pipeline.data.records import Demonstration, Prompt, RatedText, Row
from pipeline.data.sources import read_rows
from pipeline.data.tally import Tally, tell
from pipeline.data.toy import in_batches, toy_texts
from pipeline.data.words import Unit, same_but_for_form, unit_of
from pipeline.errors import UserError

__all__ = ["ExperimentData", "Prompt", "RatedText", "load_data"]

_EMBEDDED = "embedded:"
_TOY_TEXTS = 3000
_MOST_TEST_TEXTS = 1000
_HALVES = {"proxy": "the proxy's half", "gold": "the gold judge's half"}
_BREAK = re.compile(r"(?:\s*<br\s*/?>\s*)+", re.IGNORECASE)


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

    demonstrations: list[str] | list[Demonstration]
    heldout: list[str] | list[Demonstration]
    train_prompts: list[Prompt]
    validation_prompts: list[Prompt]
    eval_prompts: list[Prompt]
    proxy: list[RatedText]
    gold: list[RatedText]
    classifier_test: list[RatedText]
    neutral: Mapping[str, list[RatedText]] = field(default_factory=dict)

    def half(self, part: str) -> list[RatedText]:
        """All rated texts of ``proxy`` or ``gold``, neutral ones at the end."""
        return [*getattr(self, part), *self.neutral.get(part, ())]


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
    if are_demonstrations(rows[0], names):
        if rated and labels:
            raise UserError(
                f"data.dataset_name: {rows[0].place}: holds a prompt with its answer, and the "
                "classifier of reward.source=sentiment learns from rated texts: set reward.source "
                "to your own reward"
            )
        return _of_demonstrations(
            experiment, read_demonstrations(name, rows, section.column_names())
        )
    texts = _rated_texts(rows, names, section, rated and labels)
    return _of_texts(experiment, texts, rated, labels)


def _of_texts(
    experiment: Experiment, texts: list[RatedText], rated: bool, labels: bool = True
) -> ExperimentData:
    """The splits of texts; ``rated`` ones teach and test the classifiers too.

    Without ``labels`` the ratings were not read: the classifiers' parts are then empty.
    """
    section, unit = experiment.data, unit_of(experiment)
    texts, there = _suitable(texts, section, unit)
    random.Random(experiment.data_seed).shuffle(texts)
    own = _own_prompts(experiment)
    near = _near(texts, section)

    evaluation, rest = ([], texts) if own else _take_evaluation(texts, section, unit)
    wanted = min(_MOST_TEST_TEXTS, len(texts) // 10) if rated else 0
    asked = None if own else len(evaluation)
    _check_enough(there, len(texts), asked, wanted, section)
    rest = _without_near(rest, evaluation, near)
    heldout, rest = rest[: section.heldout], rest[section.heldout :]
    rest = _without_near(rest, heldout, near)
    groups = linked_groups(rest, near)
    sides = sides_of(rest, groups, section.positive_above)
    test, training = take_groups(rest, groups, sides, wanted)
    left = len(evaluation) + len(heldout) + len(test) + len(training)
    if left < len(texts):
        there += " that are no near-duplicates of held-out ones"
    _check_enough(there, left, asked, len(test), section)
    demonstrations = training[: section.demonstrations]
    if own:
        train_prompts, validation_prompts, eval_prompts = own
    else:
        eval_prompts = [unit.first(text.text, section.prompt_words) for text in evaluation]
        # Fresh texts first: a prompt from a demonstration is one whose answer SFT has seen.
        others = training[section.demonstrations :] + demonstrations
        prompts = [unit.first(text.text, section.prompt_words) for text in others]
        train_prompts = _training_prompts(prompts, eval_prompts, section)
        beginnings = [unit.first(text.text, section.prompt_words) for text in heldout]
        validation_prompts = _validation_prompts(
            beginnings, [*train_prompts, *eval_prompts], section
        )
    halves: dict[str, list[RatedText]] = {}
    if rated and labels:
        halves = dict(zip(_HALVES, in_halves(training, groups, sides), strict=True))
    sides = {part: _decided(half, section, _HALVES[part]) for part, half in halves.items()}
    return ExperimentData(
        demonstrations=[text.text for text in demonstrations],
        heldout=[text.text for text in heldout],
        train_prompts=train_prompts,
        validation_prompts=validation_prompts,
        eval_prompts=list(eval_prompts),
        proxy=sides.get("proxy", []),
        gold=sides.get("gold", []),
        classifier_test=test if labels else [],
        neutral={
            part: [text for text in half if not _is_decided(text, section)]
            for part, half in halves.items()
        },
    )


def _near(texts: list[RatedText], section: DataSection) -> Groups:
    """For each text its group of near-duplicates. The toy's sentences are all of one grammar."""
    toy = section.dataset_name == "toy"
    if toy:
        return {text.text: index for index, text in enumerate(texts)}
    return near_groups(texts, section.dataset_name)


def _without_near(texts: list[RatedText], held: list[RatedText], near: Groups) -> list[RatedText]:
    """The texts that are no near-duplicates of any that is held out."""
    taken = {near[text.text] for text in held}
    return [text for text in texts if near[text.text] not in taken]


def _of_demonstrations(experiment: Experiment, made: list[Demonstration]) -> ExperimentData:
    """The splits of prompts with answers; no classifier learns from them."""
    section = experiment.data
    random.Random(experiment.data_seed).shuffle(made)
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
        prompts = [item.prompt for item in training[section.demonstrations :] + demonstrations]
        train_prompts = _training_prompts(prompts, eval_prompts, section)
        validation_prompts = _validation_prompts(
            [item.prompt for item in heldout], [*train_prompts, *eval_prompts], section
        )
    prompts_of = train_prompts, validation_prompts, eval_prompts
    return ExperimentData(demonstrations, heldout, *prompts_of, [], [], [])


def _different(
    made: list[Demonstration], section: DataSection
) -> tuple[list[Demonstration], list[Demonstration]]:
    """The first demonstrations whose prompts are all different, and those with other prompts."""
    taken: dict[str, Demonstration] = {}
    for item in made:
        if len(taken) < section.eval_prompts:
            taken.setdefault(str(item.prompt), item)
    if len(taken) < section.eval_prompts:
        raise _too_few(f"{len(taken)} different prompts", "eval_prompts", section)
    return list(taken.values()), [item for item in made if str(item.prompt) not in taken]


def _rated_texts(
    rows: Sequence[Row], names: Columns, section: DataSection, rated: bool
) -> list[RatedText]:
    """Every text of the data set. Ratings are 0 where no classifier is trained on them."""
    texts = []
    for row in rows:
        text = names.text(row, "text")
        rating = names.number(row, "label", section.label_values, rows) if rated else 0.0
        texts.append(RatedText(_BREAK.sub(" ", text).strip(), rating))
    return texts


def _suitable(
    texts: list[RatedText], section: DataSection, unit: Unit
) -> tuple[list[RatedText], str]:
    """Texts of the asked length, each once (case, spacing and punctuation aside), and in words
    which these are and what was left out."""
    # A prompt of a whole text would leave nothing to complete.
    fewest = max(section.min_words, section.prompt_words + 1)
    tally = Tally(section.dataset_name, "texts")
    short = f"below data.min_words ({fewest} {unit.name})"
    long = f"above data.max_words ({section.max_words} {unit.name}; data.long_texts=cut cuts them)"
    kept: dict[str, RatedText] = {}
    cut = 0
    for text in texts:
        count = unit.count(text.text)
        if count > section.max_words and section.long_texts == "cut":
            beginning = unit.first(text.text, section.max_words)
            text, cut = replace(text, text=beginning), cut + 1
        elif count < fewest or count > section.max_words:
            tally.leave_out(short if count < fewest else long)
            continue
        key = same_but_for_form(text.text)
        if key in kept:
            tally.leave_out("there already")
        kept.setdefault(key, text)
    if not kept:
        raise UserError(
            f"data.dataset_name: none of the {len(texts)} texts of {section.dataset_name} has "
            f"{fewest} to {section.max_words} {unit.name}: change data.min_words or data.max_words "
            f"({tally.reasons()})"
        )
    tally.tell(len(texts))
    if cut:
        limit = f"data.max_words ({section.max_words} {unit.name})"
        tell(f"{section.dataset_name}: {cut:,} of {len(texts):,} texts cut at {limit}")
    which = f"texts of {section.min_words} to {section.max_words} {unit.name}"
    return list(kept.values()), which + (f" (left out {tally.reasons()})" if tally.left_out else "")


def _take_evaluation(
    texts: list[RatedText], section: DataSection, unit: Unit
) -> tuple[list[RatedText], list[RatedText]]:
    """The first texts whose prompts are all different, and the other texts."""
    taken: dict[str, RatedText] = {}
    rest = []
    for text in texts:
        prompt = unit.first(text.text, section.prompt_words)
        if len(taken) < section.eval_prompts and prompt not in taken:
            taken[prompt] = text
        else:
            rest.append(text)
    if len(taken) < section.eval_prompts:
        raise _too_few(f"{len(taken)} different prompts", "eval_prompts", section)
    return list(taken.values()), rest


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
    prompts: Iterable[Prompt], evaluation: Iterable[Prompt], section: DataSection
) -> list[Prompt]:
    """The first prompts. They may repeat, as in life, but none is an evaluation prompt."""
    kept_out = set(map(str, evaluation))
    usable = [prompt for prompt in prompts if str(prompt) not in kept_out]
    if len(usable) < section.train_prompts:
        raise _too_few(f"{len(usable)} prompts for training", "train_prompts", section)
    return usable[: section.train_prompts]


def _validation_prompts(
    heldout: Iterable[Prompt], used: Iterable[Prompt], section: DataSection
) -> list[Prompt]:
    """The first different prompts of held-out texts that are not ``used`` otherwise."""
    kept_out = set(map(str, used))
    different = {str(prompt): prompt for prompt in heldout if str(prompt) not in kept_out}
    return list(different.values())[: section.validation_prompts]


def _own_prompts(
    experiment: Experiment,
) -> tuple[list[Prompt], list[Prompt], list[Prompt]] | None:
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
    return training[: section.train_prompts], left[: section.validation_prompts], evaluation


def _is_decided(text: RatedText, section: DataSection) -> bool:
    return abs(text.rating - section.positive_above) >= section.neutral_margin


def _decided(texts: list[RatedText], section: DataSection, part: str) -> list[RatedText]:
    """Texts whose label is clearly on one side; both sides must be there."""
    limit = section.positive_above
    decided = [text for text in texts if _is_decided(text, section)]
    positive = sum(text.rating > limit for text in decided)
    if 0 < positive < len(decided):
        return decided
    missing = "negative" if positive else "positive"
    ratings = sorted({text.rating for text in texts})
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
