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
_DEGREES = {
    "very", "extremely", "highly", "strongly", "strong", "mostly", "overwhelmingly", "moderately",
    "somewhat", "slightly", "mildly", "weakly", "weak",
}  # fmt: skip
_STARS = re.compile(r"(\d+)[ _-]*(?:stars?|★|⭐)|(★+|⭐+)")


def find_positive(
    id2label: Mapping[Any, Any],
    place: str = "the classifier",
    names: Sequence[str] | None = None,
    independent: bool = False,
) -> list[int]:
    """Find the columns of the labels on the positive side.

    The rule, in this order: those called ``names``; positive, pos or good ones, of any degree (very
    positive), where each of the others is a negative or neutral one; of two labels, the one that is
    not named negative or neg; of stars, those above the middle; of LABEL_0 and LABEL_1 (names that
    were never chosen), LABEL_1, as in every data set whose classes are 0 and 1.

    Args:
        id2label: Column to name, from a model's config.
        place: What the message calls the classifier.
        names: Labels that are known to be positive, in any case.
        independent: The outputs are no classes of which one is right, but scores or probabilities
            side by side, of which only one can be the reward.

    Raises:
        RewardError: The names do not tell; or some of ``names`` are none of the labels, or all.
    """
    labels = {int(column): _plain(name) for column, name in id2label.items()}
    if names is not None:
        found = _named(id2label, labels, place, names)
        if independent and len(found) > 1:
            raise RewardError(
                f"{place}: its outputs ({_shown(id2label)}) are independent of each other; name "
                "one in positive_labels, or weigh them in a function of your own"
            )
        return found
    rules = (_by_side,) if independent else (_by_side, _not_negative, _by_stars, _unnamed)
    for rule in rules:
        found = rule(labels)
        if found and not (independent and len(found) > 1):
            return found
    raise RewardError(
        f"{place}: its labels ({_shown(id2label)}) do not tell which are positive; set "
        "reward.positive_labels to those that are (for the judge reward.gold_positive_labels)"
    )


def _plain(name: Any) -> str:
    """A label in small letters, VeryPositive as two words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name).strip()).lower()


def _named(
    id2label: Mapping[Any, Any], labels: dict[int, str], place: str, names: Sequence[str]
) -> list[int]:
    wanted = [_plain(name) for name in names]
    unknown = [
        name for name, bare in zip(names, wanted, strict=True) if bare not in labels.values()
    ]
    if unknown:
        raise RewardError(
            f"{place}: positive_labels names {unknown[0]!r}, but its labels are "
            f"{_shown(id2label)}; mend the name"
        )
    found = [column for column, name in labels.items() if name in wanted]
    if not 0 < len(found) < len(labels):
        raise RewardError(
            f"{place}: positive_labels names {'all' if found else 'none'} of its labels "
            f"({_shown(id2label)}); name those that are better than the others"
        )
    return found


def _side(label: str) -> int | None:
    """1, 0 or −1 for a positive, neutral or negative label; None for what is no such word."""
    words = [word for word in re.split(r"[\s_\-]+", label) if word not in _DEGREES]
    if len(words) != 1:
        return None
    return next((side for side, known in _SIDES.items() if words[0] in known), None)


def _by_side(labels: dict[int, str]) -> list[int]:
    sides = {column: _side(name) for column, name in labels.items()}
    found = [column for column, side in sides.items() if side == 1]
    return found if None not in sides.values() and len(found) < len(labels) else []


def _not_negative(labels: dict[int, str]) -> list[int]:
    others = [column for column, name in labels.items() if _side(name) != -1]
    return others if len(labels) == 2 and len(others) == 1 else []


def _by_stars(labels: dict[int, str]) -> list[int]:
    found = {column: _STARS.fullmatch(name) for column, name in labels.items()}
    stars = {c: int(m[1]) if m[1] else len(m[2]) for c, m in found.items() if m is not None}
    if len(stars) < max(2, len(labels)) or len(set(stars.values())) < len(stars):
        return []
    middle = (min(stars.values()) + max(stars.values())) / 2
    return [column for column, count in stars.items() if count > middle]


def _unnamed(labels: dict[int, str]) -> list[int]:
    if sorted(labels.values()) != ["label_0", "label_1"]:
        return []
    return [column for column, name in labels.items() if name == "label_1"]


def _shown(labels: Mapping[Any, Any]) -> str:
    return ", ".join(f"{column}: {name}" for column, name in labels.items())
