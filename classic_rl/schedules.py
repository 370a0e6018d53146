"""Numbers that change while training: step sizes and exploration rates.

A schedule is a function of the number of steps taken so far. Wherever one is accepted a plain
float is too, and stays constant.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from classic_rl.errors import ProblemError


class Schedule(ABC):
    """A value for every step, always between `start` and `end`."""

    start: float
    end: float

    @abstractmethod
    def __call__(self, step: float) -> float:
        """The value after ``step`` steps."""

    def over(self, first: int, count: int) -> np.ndarray:
        """The values after ``first``, ``first + 1``, ... steps: ``(count,)``, bit for bit those
        of single calls."""
        return np.array([self(step) for step in range(first, first + count)])


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step."""

    start: float

    @property
    def end(self) -> float:  # type: ignore[override]
        return self.start

    def __call__(self, step: float) -> float:
        return self.start

    def over(self, first: int, count: int) -> np.ndarray:
        return np.full(count, self.start)


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in a straight line over ``steps`` steps, then ``end``."""

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        if not self.steps > 0:
            raise ProblemError(f"Linear: steps {self.steps} must be above 0")

    def __call__(self, step: float) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)

    def over(self, first: int, count: int) -> np.ndarray:
        fraction = np.minimum(np.arange(first, first + count) / self.steps, 1.0)
        return self.start + (self.end - self.start) * fraction


@dataclass(frozen=True)
class Exponential(Schedule):
    """From ``start`` towards ``end``; the distance shrinks by a factor e every ``decay`` steps."""

    start: float
    end: float
    decay: float

    def __post_init__(self) -> None:
        if not self.decay > 0:
            raise ProblemError(f"Exponential: decay {self.decay} must be above 0")

    def __call__(self, step: float) -> float:
        return self.end + (self.start - self.end) * math.exp(-step / self.decay)


def as_schedule(value: float | Schedule) -> Schedule:
    """The schedule itself, or a constant one."""
    return value if isinstance(value, Schedule) else Constant(float(value))


def checked(
    name: str, value: float | Schedule, low: float, high: float, *, low_open: bool = False
) -> Schedule:
    """``value`` as a schedule whose ends lie in [low, high].

    With ``low_open`` the start must be above ``low``; the end may still decay to it.

    Raises:
        ProblemError: naming the value outside the interval.
    """
    schedule = as_schedule(value)
    ends = [(schedule.start, low_open), (schedule.end, low_open and isinstance(schedule, Constant))]
    for number, is_open in ends:
        if not low <= number <= high or (is_open and number == low):
            bracket = "(" if low_open else "["
            raise ProblemError(f"{name}: {number} is outside {bracket}{low:g}, {high:g}]")
    return schedule
