"""Which of a classifier's labels are the good ones: by their names where these leave no doubt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from reward_models.interface import RewardError

_SIDES = {
    1: {"positive", "pos", "good", "great", "excellent"},
    0: {"neutral", "neu", "mixed", "average"},
    -1: {"negative", "neg", "bad", "poor", "terrible", "awful"},
}
_STRONG = {
    "very", "extremely", "highly", "strongly", "strong", "mostly", "overwhelmingly",
    "great", "excellent", "terrible", "awful",
}  # fmt: skip
_WEAK = {"moderately", "somewhat", "slightly", "mildly", "weakly", "weak"}
_DEGREES = (_STRONG | _WEAK) - {word for words in _SIDES.values() for word in words}
_STARS = re.compile(r"(\d+)[ _-]*(?:stars?|★|⭐)|(★+|⭐+)")


def find_positive(
    id2label: Mapping[Any, Any],
    place: str = "the classifier",
    names: Sequence[str] | None = None,
    independent: bool = False,
) -> list[int]:
    """Find the columns of the labels on the positive side.

    The rule, in this order: those called ``names``; positive, pos or good ones, of any degree (very
    positive), where each of the others is a negative or neutral one; of a negative and a neutral
    label alone, the neutral one; of stars, those above the middle. Names that were never chosen
    (LABEL_1) tell nothing: it may be spam or poison that a classifier was trained to find.

    Args:
        id2label: Column to name, from a model's config.
        place: What the message calls the classifier.
        names: Labels that are known to be positive, in any case.
        independent: The outputs are no classes of which one is right, but scores or probabilities
            side by side, of which only one can be the reward.

    Raises:
        RewardError: The names do not tell; some of ``names`` are none of the labels, or all; or a
            label that is as good as one of ``names`` is not among them.
    """
    labels = {int(column): _plain(name) for column, name in id2label.items()}
    if names is not None:
        found = _named(id2label, labels, place, names, independent)
        if independent and len(found) > 1:
            raise RewardError(
                f"{place}: its outputs ({_shown(id2label)}) are independent of each other; name "
                "one in positive_labels, or weigh them in label_weights"
            )
        return found
    rules = (_by_side,) if independent else (_by_side, _by_stars)
    for rule in rules:
        found = rule(labels)
        if found and not (independent and len(found) > 1):
            return found
    raise RewardError(
        f"{place}: its labels ({_shown(id2label)}) do not tell which are positive; set "
        "positive_labels to those that are, or label_weights to a number for each"
    )


def weighted(
    id2label: Mapping[Any, Any],
    place: str,
    weights: Mapping[str, float],
    independent: bool = False,
) -> dict[int, float]:
    """Find the columns of labels with weights, for the expected value Σ P(label)·weight.

    Args:
        id2label: Column to name, from a model's config.
        place: What the message calls the classifier.
        weights: By label, in any case.
        independent: As in `find_positive`. Those that are not named then count nothing; of classes,
            each must be.

    Raises:
        RewardError: A name is none of the labels, a class has no weight, or all weigh the same.
    """
    labels = {int(column): _plain(name) for column, name in id2label.items()}
    key = "label_weights"
    by_name = {_plain(name): float(weight) for name, weight in weights.items()}
    _refuse_unknown(id2label, labels, place, list(weights), key)
    found = {column: by_name[name] for column, name in labels.items() if name in by_name}
    missing = [name for name in id2label.values() if _plain(name) not in by_name]
    if missing and not independent:
        raise RewardError(
            f"{place}: {key} has no weight for {str(missing[0])!r}; its labels are "
            f"{_shown(id2label)}: give each a number"
        )
    if not any(found.values()) or (not independent and len(set(found.values())) == 1):
        raise RewardError(f"{place}: {key} weighs all labels alike, so all texts score alike")
    return found


def _plain(name: Any) -> str:
    """A label in small letters, VeryPositive as two words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name).strip()).lower()


def _named(
    id2label: Mapping[Any, Any],
    labels: dict[int, str],
    place: str,
    names: Sequence[str],
    independent: bool,
) -> list[int]:
    wanted = [_plain(name) for name in names]
    key = "positive_labels"
    _refuse_unknown(id2label, labels, place, names, key)
    found = [column for column, name in labels.items() if name in wanted]
    if not 0 < len(found) < len(labels):
        raise RewardError(
            f"{place}: {key} names {'all' if found else 'none'} of its labels "
            f"({_shown(id2label)}); name those that are better than the others"
        )
    beyond = None if independent else _beyond(labels, found)
    if beyond is not None:
        raise RewardError(
            f"{place}: {key} leaves out {_at(id2label, beyond)!r}, which would count against "
            f"{_at(id2label, found[0])!r}; name it too, or give every label a number in "
            "label_weights"
        )
    return found


def _refuse_unknown(
    id2label: Mapping[Any, Any],
    labels: dict[int, str],
    place: str,
    names: Sequence[str],
    key: str,
) -> None:
    for name in names:
        if _plain(name) not in labels.values():
            raise RewardError(
                f"{place}: {key} names {name!r}, but its labels are {_shown(id2label)}; mend the "
                "name"
            )


def _at(id2label: Mapping[Any, Any], column: int) -> str:
    return next(str(name) for key, name in id2label.items() if int(key) == column)


def _beyond(labels: dict[int, str], named: list[int]) -> int | None:
    """The column of a grade that is more of what is ``named``, and is not: of Positive, say, the
    one that is Very Positive. None where the names hold no such grades."""
    stars = {column: _stars(name) for column, name in labels.items()}
    if None not in stars.values():
        order = sorted(labels, key=lambda column: stars[column] or 0)
        ends = (set(order[: len(named)]), set(order[-len(named) :]))
        return None if set(named) in ends else next(c for c in reversed(order) if c not in named)
    for column in named:
        side, degree = _side(labels[column]), _degree(labels[column])
        for other, name in labels.items():
            if other not in named and side and _side(name) == side and _degree(name) > degree:
                return other
    return None


def _words(label: str) -> list[str]:
    label = re.sub(r"\s*\([^()]*\)$", "", label)  # an explanation behind it
    return re.split(r"[\s_\-]+", label)


def _degree(label: str) -> int:
    """1 for a strong word, −1 for a weak one, else 0."""
    words = set(_words(label))
    return bool(words & _STRONG) - bool(words & _WEAK)


def _side(label: str) -> int | None:
    """1, 0 or −1 for a positive, neutral or negative label; None for what is no such word."""
    words = [word for word in _words(label) if word not in _DEGREES]
    if len(words) != 1:
        return None
    return next((side for side, known in _SIDES.items() if words[0] in known), None)


def _by_side(labels: dict[int, str]) -> list[int]:
    sides = {column: _side(name) for column, name in labels.items()}
    if None in sides.values():
        return []
    best = max(side for side in sides.values() if side is not None)
    found = [column for column, side in sides.items() if side == best]
    return found if best >= 0 and len(found) < len(labels) else []


def _stars(label: str) -> int | None:
    found = _STARS.fullmatch(label)
    return None if found is None else int(found[1]) if found[1] else len(found[2])


def _by_stars(labels: dict[int, str]) -> list[int]:
    stars = {column: _stars(name) for column, name in labels.items()}
    counts = [count for count in stars.values() if count is not None]
    if len(counts) < max(2, len(labels)) or len(set(counts)) < len(counts):
        return []
    middle = (min(counts) + max(counts)) / 2
    return [column for column, count in stars.items() if count is not None and count > middle]


def _shown(labels: Mapping[Any, Any]) -> str:
    return ", ".join(f"{column}: {name}" for column, name in labels.items())
