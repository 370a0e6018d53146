"""Texts in parts of whole groups of near-duplicates, whether they are stored or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from pipeline.config import DataSection
from pipeline.data.leakage import (
    Groups,
    in_halves,
    linked_groups,
    near_groups,
    sides_of,
    take_groups,
    tell_unsearched,
)
from pipeline.data.records import RatedText
from pipeline.data.stored import Stored, taken

T = TypeVar("T")


def behind(items: Sequence[T], count: int) -> Sequence[T]:
    """The items behind the first ``count``, and then those."""
    return taken(items, [*range(count, len(items)), *range(min(count, len(items)))])


def parts(
    texts: Sequence[RatedText], near: Groups | None, wanted: int, above: float
) -> tuple[Sequence[RatedText], ...]:
    """Texts to test on, the others, and two halves of these, of whole groups each."""
    if near is None:  # each text is a group of its own: the same, without a look at them
        test, training = texts[:wanted], texts[wanted:]
        return test, training, training[0::2], training[1::2]
    groups = linked_groups(texts, near)
    sides = sides_of(texts, groups, above)
    test, training = take_groups(texts, groups, sides, wanted)
    return test, training, *in_halves(training, groups, sides)


def groups_of(texts: Sequence[RatedText], section: DataSection) -> Groups | None:
    """For each text its group of near-duplicates; None where each is one of its own.

    The toy's sentences are all of one grammar.
    """
    if section.dataset_name == "toy":
        return {text.text: index for index, text in enumerate(texts)}
    if isinstance(texts, Stored):
        tell_unsearched(section.dataset_name)
        return None
    return near_groups(texts, section.dataset_name)


def without_near(
    texts: Sequence[RatedText], held: Iterable[RatedText], near: Groups | None
) -> Sequence[RatedText]:
    """The texts that are no near-duplicates of any that is held out."""
    if near is None:
        return texts
    out = {near[text.text] for text in held}
    return [text for text in texts if near[text.text] not in out]
