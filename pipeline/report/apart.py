"""Whether two policies, or a policy and π_ref, can be told apart; and what it would take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.compare.wording import number
from pipeline.report.rules import gain

Numbers = Mapping[str, Any]

WIDE = 0.15  # half an interval, as a share of the possible gain: wider than this tells too little
LEAST = 0.05  # the smallest difference that is worth more prompts


@dataclass(frozen=True)
class Difference:
    """How far one number is above another, with its 95 % interval.

    Attributes:
        middle, low, high: in ``unit``. paired: made prompt by prompt, which is the sharper way.
        scale: what counts as all of it: 1 for optimality, the best policy's gain for an objective.
        points: the unit is a share of the possible gain, else that of the objective.
        known: there is an interval; else both ends are the middle, which tells nothing for certain.
    """

    middle: float
    low: float
    high: float
    paired: bool
    points: bool
    scale: float = 1.0
    known: bool = True

    @property
    def level(self) -> bool:
        """True where the difference may be nothing."""
        return self.low <= 0 <= self.high

    @property
    def wide(self) -> bool:
        """True where it may as well be much: the interval tells too little."""
        return self.level and (self.high - self.low) / 2 > WIDE * self.scale

    def words(self) -> str:
        """Return e.g. ``the difference is 2 to 10 points``."""
        if not self.paired:
            return "their intervals overlap" if self.level else "their intervals do not overlap"
        if self.points:
            span = f"{number(100 * self.low, 0)} to {number(100 * self.high, 0)} points"
        else:
            span = f"{number(self.low)} to {number(self.high)} in the objective"
        if self.level:
            return f"the difference ({span}) may be nothing"
        return f"the difference is {span}"

    def prompts(self, have: int) -> int:
        """Return about how many prompts would tell the two apart, where ``have`` did not.

        An interval shrinks as 1/√prompts, so a half-width h resolves a difference d with
        have·(h/d)² of them; d is the one that was seen, or `LEAST` where that is smaller.
        """
        half = (self.high - self.low) / 2
        target = max(abs(self.middle), LEAST * self.scale)
        return _rounded(have * (half / target) ** 2)


def between(
    first: str, second: str, rows: Mapping[str, Numbers], details: Numbers, scale: float
) -> Difference | None:
    """Return ``first`` less ``second``; None where there are no intervals to compare.

    ``details["differences"]`` has them paired by prompt (``ppo_minus_dpo`` in older files); where
    there is none, the two intervals are compared, which tells fewer apart.
    """
    a, b = rows[first], rows[second]
    pair, turn = paired(first, second, details)
    middle = gain(a, b, "optimality")
    if pair.get("optimality_ci") and middle is not None:
        return _made(middle, pair["optimality_ci"], turn, points=True)
    if pair.get("objective_ci"):
        middle = gain(a, b, "objective")
        given = turn * (pair.get("objective") or 0.0)
        middle = given if middle is None else middle
        return _made(middle, pair["objective_ci"], turn, points=False, scale=scale)
    if a.get("optimality_ci") and b.get("optimality_ci") and middle is not None:
        (low_a, high_a), (low_b, high_b) = a["optimality_ci"], b["optimality_ci"]
        return Difference(middle, low_a - high_b, high_a - low_b, paired=False, points=True)
    middle, error = gain(a, b, "objective"), _error(a, b)
    if middle is None or error is None:
        return None
    reach = 1.96 * error
    return Difference(middle, middle - reach, middle + reach, False, points=False, scale=scale)


def above(row: Numbers, base: Numbers) -> Difference | None:
    """Return how far a policy is above the reference; None where it cannot be placed."""
    share, ends = row.get("optimality"), row.get("optimality_ci")
    if share is not None:
        low, high = ends or (share, share)
        return Difference(share, low, high, paired=True, points=True, known=bool(ends))
    middle = gain(row, base, "objective")
    if middle is None:
        return None
    scale = abs(middle) or 1.0
    if row.get("objective_gain_ci"):
        return Difference(middle, *row["objective_gain_ci"], paired=True, points=False, scale=scale)
    error = _error(row, base)
    low, high = (middle + sign * 1.96 * (error or 0.0) for sign in (-1, 1))
    return Difference(middle, low, high, False, False, scale, known=error is not None)


def paired(first: str, second: str, details: Numbers) -> tuple[Numbers, int]:
    """Return the measured difference of two policies, and −1 where it is the other way round."""
    pairs = list(details.get("differences") or [])
    if details.get("ppo_minus_dpo"):
        pairs.append({"first": "ppo", "second": "dpo", **details["ppo_minus_dpo"]})
    for pair in pairs:
        if (pair["first"], pair["second"]) == (first, second):
            return pair, 1
        if (pair["first"], pair["second"]) == (second, first):
            return pair, -1
    return {}, 1


def _made(middle: float, ci: Any, turn: int, points: bool, scale: float = 1.0) -> Difference:
    low, high = sorted(turn * end for end in ci)
    return Difference(middle, low, high, paired=True, points=points, scale=scale)


def _error(a: Numbers, b: Numbers) -> float | None:
    """Standard error of a difference of objectives, as if the two were independent."""
    errors = [row.get("objective_se", row.get("reward_se")) for row in (a, b)]
    if None in errors:
        return None
    return math.hypot(*(float(e or 0.0) for e in errors))


def _rounded(value: float) -> int:
    """``value`` rounded up to one or two figures that can be said: 300, 1,200."""
    if value < 10:
        return max(1, math.ceil(value))
    unit = 10 ** (math.floor(math.log10(value)) - 1)
    return int(math.ceil(value / unit) * unit)
