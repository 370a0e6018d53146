"""The rated texts that rewards are judged on: held-out ones, by length, and of other domains."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import TRAINED_HERE, Experiment
from pipeline.data import embedded
from pipeline.data.records import RatedText
from pipeline.data.splits import load_data
from pipeline.data.words import same_but_for_form, unit_of
from pipeline.errors import UserError
from pipeline.stages.heldout import prompts_and_endings

_EMBEDDED = "embedded:"
DOMAINS = ("movie-reviews", "product-reviews", "editorials", "tweets")
_QUARTERS = 4
_FEWEST = 8  # texts in a quarter: fewer are not divided


@dataclass(frozen=True)
class Domain:
    """Rated texts of one kind, each as the prompt and the completion that a reward is asked."""

    name: str
    texts: Sequence[RatedText]
    prompts: list[str]
    completions: list[str]


def held_out(experiment: Experiment) -> Domain:
    """Rated texts that neither proxy nor gold was trained on.

    Raises:
        UserError: The data set has no ratings, or none that divide it.
    """
    texts = load_data(experiment).classifier_test
    if not texts:  # nothing here learns from ratings: divided all the same, as for a classifier
        section = experiment.reward.model_copy(update={"source": TRAINED_HERE})
        texts = load_data(experiment.model_copy(update={"reward": section})).classifier_test
    if not texts:
        raise UserError(
            f"data.dataset_name: {experiment.data.dataset_name} is too small to hold out a tenth of"
            " its rated texts; rewards are judged on those: give at least 10 texts"
        )
    return _domain(experiment, _name(experiment.data.dataset_name), texts)


def other_domains(experiment: Experiment, most: int) -> list[Domain]:
    """The other embedded ratings, of the same lengths; none where the data set is another.

    Args:
        most: Texts of each, drawn by the data's seed.
    """
    name = experiment.data.dataset_name
    if not name.startswith(_EMBEDDED):
        return []
    own = {same_but_for_form(text.text) for text in embedded.ratings(_name(name))}
    found = []
    for kind in DOMAINS:
        if kind == _name(name):
            continue
        texts = _of_length(experiment, embedded.ratings(kind), own)
        if len(texts) > most:
            texts = random.Random(experiment.data_seed).sample(texts, most)
        found.append(_domain(experiment, kind, texts))
    return found


def quarters(lengths: Sequence[int]) -> list[tuple[int, int, list[int]]]:
    """Least and most words, and the places, of the texts of each quarter by length.

    Texts of one length stay together, so quarters may be uneven, and fewer than four.
    """
    if len(lengths) < _QUARTERS * _FEWEST:
        return []
    edges = np.quantile(lengths, [share / _QUARTERS for share in range(1, _QUARTERS)])
    which = np.searchsorted(np.unique(edges), lengths, side="left")
    found = []
    for group in np.unique(which):
        places = [int(place) for place in np.flatnonzero(which == group)]
        inside = [lengths[place] for place in places]
        found.append((min(inside), max(inside), places))
    return found


def words_of(experiment: Experiment, texts: Sequence[RatedText]) -> list[int]:
    """Length of each text in the experiment's unit."""
    unit = unit_of(experiment)
    return [unit.count(text.text) for text in texts]


def _name(dataset: str) -> str:
    return dataset.removeprefix(_EMBEDDED)


def _of_length(
    experiment: Experiment, texts: Sequence[RatedText], left_out: set[str]
) -> list[RatedText]:
    """Texts as long as the experiment's own, each once and none of ``left_out``."""
    section, unit = experiment.data, unit_of(experiment)
    fewest, seen, kept = max(section.min_words, section.prompt_words + 1), set(left_out), []
    for text in texts:
        key = same_but_for_form(text.text)
        if key not in seen and fewest <= unit.count(text.text) <= section.max_words:
            seen.add(key)
            kept.append(text)
    return kept


def _domain(experiment: Experiment, name: str, texts: Sequence[RatedText]) -> Domain:
    prompts, completions = prompts_and_endings([text.text for text in texts], experiment)
    return Domain(name, texts, prompts, completions)
