"""The numbers of a method that people see, in the order of the comparison's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.compare.wording import interval, number, percent


def _one_digit(value: Any) -> str:
    return number(value, 1)


@dataclass(frozen=True)
class Column:
    """One number of each method.

    Attributes:
        key: its name in results.json. heading: its name in a table.
        help: what it is, and its unit.
        write: a value as text; None is – there.
        interval: key of its 95 % interval, where it has one.
    """

    key: str
    heading: str
    help: str
    write: Callable[[Any], str] = number
    interval: str | None = None

    def value(self, row: Mapping[str, Any]) -> str:
        """Return the number in a method's metrics as text; – where there is none."""
        return self.write(row.get(self.key))

    def range(self, row: Mapping[str, Any]) -> str:
        """Return its interval as text; empty where there is none, or where it is a point."""
        ends = row.get(self.interval) if self.interval else None
        return interval(ends) if ends and ends[0] < ends[1] else ""


COLUMNS = (
    Column(
        "gold_positive", "judge positive", "share of completions the judge calls positive", percent
    ),
    Column("gold", "judge", "the judge's mean mark (logits when it is a classifier)"),
    Column("reward", "reward", "mean of the reward that was optimised, in its own unit"),
    Column("kl", "KL", "distance from the SFT model, nats a completion"),
    Column("objective", "objective", "reward − β·KL, what PPO and DPO both maximise"),
    Column(
        "optimality", "optimality", "share of the possible gain in the objective, and its 95\u00a0%"
        " interval over prompts", percent, "optimality_ci",
    ),
    Column("perplexity", "perplexity", "on held-out human texts; lower remembers more", _one_digit),
    Column("distinct_1", "distinct-1", "different words over all words"),
    Column("distinct_2", "distinct-2", "different word pairs over all pairs; low repeats"),
    Column("length", "length", "tokens a completion", _one_digit),
    Column("ended", "ended", "share of completions that stop by themselves", percent),
)  # fmt: skip


def shown(rows: Iterable[Mapping[str, Any]]) -> list[Column]:
    """Return the columns that any of the methods' ``rows`` has a number for."""
    rows = list(rows)
    return [c for c in COLUMNS if any(row.get(c.key) is not None for row in rows)]
