"""A comparison as the verdict reads it: who contends, who is fit to ship, who is level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.compare.methods import Method
from pipeline.compare.wording import beta_text
from pipeline.report.apart import Difference, above, between, paired
from pipeline.report.rules import cautions, collapsed, gain, hacks

Numbers = Mapping[str, Any]
Seeds = Mapping[str, Mapping[int, float]]

# Prompts. A bootstrap of fewer has 0 outside its interval too often: of 4 that are noise all are
# on one side in 1 of 8.
FEWEST = 6


@dataclass(frozen=True)
class Case:
    """The numbers as the rules read them.

    Attributes:
        base: the reference's metrics. titles: of every policy, by name.
        states: of each contender: ``fit``, ``hacks``, ``collapsed``, ``unplaced`` (no objective,
            as its KL was not measured), ``few`` (its interval holds nothing and much, or it is
            above and has none to rely on, as from a few prompts), ``flat``.
        ranked: the fit ones, the best first. top: the first and all that are level with it.
        next: the difference of the first and the second.
        flips: where seeds disagree: seeds in which the first is above the second, and all seeds.
    """

    results: Numbers
    details: Numbers
    rows: Mapping[str, Numbers]
    titles: Mapping[str, str]
    reference: Method
    base: Numbers
    states: Mapping[str, str]
    seconds: Mapping[str, float]
    ranked: Sequence[str] = ()
    top: Sequence[str] = ()
    next: Difference | None = None
    flips: tuple[int, int] | None = None
    above: Mapping[str, Difference | None] = field(default_factory=dict)

    @property
    def at(self) -> str:
        """Return e.g. ``at β = 0.1``."""
        return f"at β = {beta_text(self.results['beta'])}"

    def score(self, name: str) -> float:
        """Return what policies are ordered by: optimality, or the objective where it is missing."""
        row = self.rows[name]
        value = row.get("optimality")
        value = row.get("objective") if value is None else value
        return float("-inf") if value is None else float(value)

    def named(self, *states: str) -> list[str]:
        """Return the titles of the contenders in one of ``states``."""
        return [self.titles[n] for n, state in self.states.items() if state in states]

    def cautions(self, name: str) -> list[str]:
        """Return what is wrong with a policy."""
        return cautions(self.titles[name], self.rows[name], self.base, self.reference.title)


def build(
    results: Numbers,
    details: Numbers,
    policies: Sequence[Method],
    seconds: Mapping[str, float],
    seeds: Seeds,
) -> Case:
    rows: Mapping[str, Numbers] = results["methods"]
    reference = next((m for m in policies if m.kind == "reference"), None)
    if reference is None:  # nothing to gain over: every gain below is then unknown
        reference = Method("", "the reference", "o", "", "", None, kind="reference")
    base = rows.get(reference.name, {})
    contenders = [m.name for m in policies if m.kind in ("trained", "checkpoint")]
    over = {name: above(rows[name], base) for name in contenders}
    if results.get("prompts", FEWEST) < FEWEST and "seeds" not in results:  # of seeds they are t's
        over = {name: d and replace(d, known=False) for name, d in over.items()}
    case = Case(
        results=results,
        details=details,
        rows=rows,
        titles={m.name: m.title for m in policies},
        reference=reference,
        base=base,
        states={name: _state(rows[name], base, over[name]) for name in contenders},
        seconds=seconds,
        above=over,
    )
    fit = [name for name, state in case.states.items() if state == "fit"]
    ranked = sorted(fit, key=case.score, reverse=True)
    if not ranked:
        return case
    first = ranked[0]
    scale = abs(gain(rows[first], base, "objective") or 0.0) or 1.0
    apart = {n: between(first, n, rows, details, scale) for n in ranked[1:]}
    top = [first, *(n for n, d in apart.items() if d is None or d.level)]
    following = apart[ranked[1]] if len(ranked) > 1 else None
    flips = _flips(seeds, details, *ranked[:2]) if len(ranked) > 1 else None
    return replace(case, ranked=ranked, top=top, next=following, flips=flips)


def _state(row: Numbers, base: Numbers, over: Difference | None) -> str:
    if hacks(row, base):
        return "hacks"
    if collapsed(row, base):
        return "collapsed"
    if over is None:
        return "unplaced"
    if not over.known:
        return "few" if over.middle > 0 else "flat"
    if over.low > 0:
        return "fit"
    # Without an optimum nothing says what is wide: a gain of half its own reach is promising.
    promising = over.wide if over.points else 2 * over.middle > over.high - over.middle
    return "few" if over.middle > 0 and promising else "flat"


def _flips(seeds: Seeds, details: Numbers, first: str, second: str) -> tuple[int, int] | None:
    """In how many of how many seeds the first is above the second; None for a single seed.

    From each seed's optimality, or as the differences of a sweep's pooled comparison count it:
    ``agree`` of ``seeds`` have the order of the mean.
    """
    pair, _ = paired(first, second, details)
    if pair.get("agree") is not None and pair.get("seeds", 0) > 1:
        return pair["agree"], pair["seeds"]
    a, b = seeds.get(first) or {}, seeds.get(second) or {}
    both = sorted(a.keys() & b.keys())
    if len(both) < 2:
        return None
    return sum(a[seed] > b[seed] for seed in both), len(both)
