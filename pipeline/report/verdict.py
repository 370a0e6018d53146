"""The report's words: which policy to ship, computed from the numbers and nothing else.

`HEADLINES` is a table of rules; the first that applies to the case gives the headline. What is
wrong with single policies is in `pipeline.report.rules`, what can be told apart in
`pipeline.report.apart`, who is fit to ship in `pipeline.report.case`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compare.methods import shown
from pipeline.report.case import FEWEST, Case, Seeds, build
from pipeline.report.phrases import (
    agreeing,
    amount,
    beta,
    cheapest,
    choice,
    compared,
    faults,
    flat,
    how_collapsed,
    joined,
    keep,
    more,
    notes,
    progress,
    share,
    span,
)
from pipeline.report.rules import general

Numbers = Mapping[str, Any]

AGREEING = 0.8  # share of the seeds that a difference beyond the noise needs


@dataclass(frozen=True)
class Verdict:
    """What to ship and why.

    Attributes:
        ship: the policy's name, or None where none should be.
        level: the best cannot be told apart from the next.
        headline: one sentence or two.
        reasons: what the headline rests on, a sentence each.
        cautions: what a reader must know before shipping, a sentence each; may be empty.
        outcome: name of the rule that gave the headline, see `HEADLINES`.
        order: the policies that may be shipped, the best first.
    """

    ship: str | None
    level: bool
    headline: str
    reasons: list[str]
    cautions: list[str]
    outcome: str = ""
    order: tuple[str, ...] = ()


def judge(
    results: Numbers,
    details: Numbers | None = None,
    seconds: Mapping[str, float] | None = None,
    seeds: Seeds | None = None,
) -> Verdict:
    """Return the verdict on the content of compare/results.json and, if any, details.json.

    Args:
        seconds: training times by policy, where the metrics have none; used only between equals.
        seeds: of a sweep: each policy's optimality by seed, where the differences in ``details``
            do not count them (``agree`` of ``seeds``). The intervals in ``results`` should then be
            those over seeds; a sweep's pooled comparison is its results and its details in one.
    """
    details = details or {}
    policies = shown(results)
    case = build(results, details, policies, seconds or {}, seeds or {})
    outcome, (ship, headline) = next(
        (name, words(case)) for name, applies, words in HEADLINES if applies(case)
    )
    if ship and case.cautions(ship):
        headline += " Read the caution first."
    measured = [m for m in policies if m.kind in ("trained", "checkpoint")]
    lines = [line for m in measured for line in case.cautions(m.name)]
    lines += notes(case)
    reasons = [progress(m.name, case) for m in measured]
    reasons += [
        line for m in policies if m.kind == "choice" for line in choice(m.title, case.rows[m.name])
    ]
    reasons += agreeing(case)
    return Verdict(
        ship=ship,
        level=len(case.top) > 1,
        headline=headline,
        reasons=reasons,
        cautions=lines + general(results, details),
        outcome=outcome,
        order=tuple(case.ranked),
    )


# --- Headlines ------------------------------------------------------------------------------------

Words = tuple[str | None, str]


def _nothing_words(case: Case) -> Words:
    return None, f"Nothing was compared with {case.reference.title} {case.at}."


def _hacking_words(case: Case) -> Words:
    who = case.named("hacks")
    verb = "raises" if len(who) == 1 else "raise"
    return None, f"{keep(case)}: {joined(who)} {verb} the reward but not the judge ({beta(case)})."


def _collapse_words(case: Case) -> Words:
    who = joined(case.named("collapsed"))
    return None, f"{keep(case)}: {who} collapsed ({beta(case)}){how_collapsed(case)}."


def _none_for_certain_words(case: Case) -> Words:
    """Nobody is above the reference for certain, and somebody may well be."""
    few = [name for name, state in case.states.items() if state == "few"]
    best = max(few, key=case.score)
    over = case.above[best]
    assert over is not None
    unsure = f"its interval ({span(over)}) reaches from nothing to much.{more(case, over)}"
    if not over.known:
        have = case.results.get("prompts", FEWEST)
        unsure = f"there is no interval to tell it from {case.reference.title}."
        if have < FEWEST:
            few = "one prompt tells" if have == 1 else f"{have} prompts tell"
            unsure = f"{few} too little; {FEWEST} are the least, and 30 the least to trust J*."
    headline = (
        f"Too few samples to tell {case.at}: {case.titles[best]} {share(case.rows[best])}, but"
        f" {unsure} Until then keep {case.reference.title}."
    )
    return None, headline + "".join(f" {clause}." for clause in faults(case))


def _nobody_words(case: Case) -> Words:
    wrong = faults(case)
    if not wrong:
        return None, f"{keep(case)}: {case.at} no policy is above it by more than the noise."
    return None, f"{keep(case)}: {', and '.join(wrong + flat(case))} ({beta(case)})."


def _only_words(case: Case) -> Words:
    ship = case.ranked[0]
    headline = f"Ship {case.titles[ship]} {case.at}: it {share(case.rows[ship])}"
    return ship, "; ".join([headline, *faults(case), *flat(case)]) + "."


def _seeds_words(case: Case) -> Words:
    """The order of the first two is another one from seed to seed."""
    assert case.flips is not None
    first, second = case.ranked[:2]
    wins, seeds = case.flips
    ship, why = cheapest(case, [first, second])
    return ship, (
        f"Seeds disagree {case.at}: {case.titles[first]} is above {case.titles[second]} in"
        f" {wins} of {seeds} seeds, and in {seeds - wins} the ranking flips; over all seeds they"
        f" reach {compared(case, [first, second])}. Neither is the better one for certain."
        f" Ship {case.titles[ship]}: {why}."
    )


def _not_apart_words(case: Case) -> Words:
    """The best two are not told apart, and the interval of their difference is wide."""
    assert case.next is not None
    ship, why = cheapest(case, list(case.top))
    return ship, (
        f"Too few samples to tell {joined([case.titles[n] for n in case.top])} apart {case.at}:"
        f" {compared(case, case.top)}, and {case.next.words()}."
        f"{more(case, case.next)} Until then ship {case.titles[ship]}: {why}."
    )


def _tie_words(case: Case) -> Words:
    ship, why = cheapest(case, list(case.top))
    words = "there are no intervals to tell them apart" if case.next is None else case.next.words()
    return ship, (
        f"{joined([case.titles[n] for n in case.top])} are level {case.at}:"
        f" {compared(case, case.top)}, and {words}. Ship {case.titles[ship]}: {why}."
    )


def _clear_words(case: Case) -> Words:
    first, second, *others = case.ranked
    assert case.next is not None
    rest = [f"{case.titles[n]} {amount(case.rows[n])}" for n in others]
    behind = f" Behind them: {', '.join(rest)}." if rest else ""
    return first, (
        f"Ship {case.titles[first]} {case.at}: it {share(case.rows[first])},"
        f" {case.titles[second]} {amount(case.rows[second])}, and {case.next.words()}.{behind}"
    )


def _nobody(case: Case) -> bool:
    return not case.ranked


def _none_for_certain(case: Case) -> bool:
    return _nobody(case) and "few" in case.states.values()


def _all(state: str) -> Callable[[Case], bool]:
    return lambda case: _nobody(case) and set(case.states.values()) == {state}


def _disagree(case: Case) -> bool:
    """Of few seeds one that flips is enough: an interval over three seeds is too narrow."""
    if case.flips is None or case.flips[0] == case.flips[1]:
        return False
    clear = case.next is not None and not case.next.level
    return not (clear and case.flips[0] >= AGREEING * case.flips[1])


def _tied(case: Case) -> bool:
    return len(case.top) > 1


def _wide(case: Case) -> bool:
    return _tied(case) and case.next is not None and case.next.wide


Rule = tuple[str, Callable[[Case], bool], Callable[[Case], Words]]
HEADLINES: Sequence[Rule] = (
    ("nothing", lambda case: not case.states, _nothing_words),
    ("hacking", _all("hacks"), _hacking_words),
    ("collapse", _all("collapsed"), _collapse_words),
    ("too few", _none_for_certain, _none_for_certain_words),
    ("nobody", _nobody, _nobody_words),
    ("only one", lambda case: len(case.ranked) == 1, _only_words),
    ("seeds disagree", _disagree, _seeds_words),
    ("too few", _wide, _not_apart_words),
    ("tie", _tied, _tie_words),
    ("clear", lambda case: True, _clear_words),
)  # fmt: skip
"""Outcome, whether it applies, and what to ship with the words for it; the first that applies."""
