"""The verdict's phrases: amounts, lists of names, and which of several equals is the cheapest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.words import clock
from pipeline.compare.wording import beta_text, interval, number, percent
from pipeline.compare.wording import share as written
from pipeline.report.apart import Difference
from pipeline.report.case import Case
from pipeline.report.rules import collapsed

Numbers = Mapping[str, Any]

CLEARLY_CHEAPER = 0.9  # of the other's cost


def joined(names: Sequence[str]) -> str:
    """Return ``A``, ``A and B`` or ``A, B and C``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def amount(row: Numbers) -> str:
    """Return the policy's optimality, or its objective where it has none."""
    if row.get("optimality") is None:
        return number(row.get("objective"))
    return written(row)


def share(row: Numbers) -> str:
    """Return e.g. ``reaches 76 % of the possible gain``."""
    if row.get("optimality") is None:
        return f"has an objective of {amount(row)}"
    return f"reaches {amount(row)} of the possible gain"


def compared(case: Case, names: Sequence[str]) -> str:
    """Return e.g. ``76 % and 70 % of the possible gain``, in the order of ``names``."""
    rows = [case.rows[name] for name in names]
    bare = any(row.get("optimality") is None for row in rows)
    return joined([amount(row) for row in rows]) + (
        " in the objective" if bare else " of the possible gain"
    )


def span(over: Difference) -> str:
    """Return an interval in the unit that it has."""
    if over.points:
        return f"{number(100 * over.low, 0)} to {percent(over.high)}"
    return f"{number(over.low)} to {number(over.high)}"


def keep(case: Case) -> str:
    """Return ``Ship neither, keep SFT`` for two contenders."""
    none = {1: "Do not ship it", 2: "Ship neither"}.get(len(case.states), "Ship none")
    return f"{none}, keep {case.reference.title}"


def beta(case: Case) -> str:
    """Return e.g. ``β = 0.1``."""
    return f"β = {beta_text(case.results['beta'])}"


def faults(case: Case) -> list[str]:
    """Return a clause for those that hack, those that collapsed, and those that have no place."""
    clauses = []
    if who := case.named("hacks"):
        verb = "raises" if len(who) == 1 else "raise"
        clauses.append(
            f"{joined(who)} {verb} the reward but not the judge, which is reward hacking"
        )
    if who := case.named("collapsed"):
        clauses.append(f"{joined(who)} collapsed")
    if who := case.named("unplaced"):
        clauses.append(f"{joined(who)} cannot be placed, as the KL is not known")
    return clauses


def flat(case: Case) -> list[str]:
    """Return a clause for those that are not above the reference for certain."""
    who = case.named("flat", "few")
    verb = "is" if len(who) == 1 else "are"
    by = f"not above {case.reference.title} by more than the noise"
    return [f"{joined(who)} {verb} {by}"] if who else []


def more(case: Case, over: Difference) -> str:
    """Return how many prompts would tell, where the number that there was is known."""
    have = case.results.get("prompts")
    if not have:
        return ""
    need = over.prompts(have)
    many = f"{need:,}" if need < 1_000_000 else "more than a million"
    return f" About {many} prompts would tell, where there were {have:,}."


def unplaced(case: Case, name: str) -> str:
    """Return why a policy has no place in the order."""
    why = (case.rows[name].get("note") or "").removeprefix("no KL").lstrip(": ").rstrip(".")
    because = f": {why}" if why else ""
    return (
        f"{case.titles[name]} has no KL{because}. Its reward and its texts are measured, its"
        " objective and optimality are not."
    )


def notes(case: Case) -> list[str]:
    """Return why policies have no place, and what else the comparison noted of one."""
    lines = []
    for name, state in case.states.items():
        if state == "unplaced":
            lines.append(unplaced(case, name))
        elif note := case.rows[name].get("note"):
            lines.append(f"{case.titles[name]}: {note.rstrip('.')}.")
    return lines


def progress(name: str, case: Case) -> str:
    """Return one sentence on what the policy gained and what that cost."""
    row, base, parts = case.rows[name], case.base, []
    if row.get("gold_positive") is not None and base.get("gold_positive") is not None:
        parts.append(
            f"the judge calls {percent(row['gold_positive'])} of its texts positive, after"
            f" {percent(base['gold_positive'])} for {case.reference.title}"
        )
    if row.get("kl") is not None:
        parts.append(f"it spends {number(row['kl'])} nats of KL a completion")
    if row.get("optimality") is not None:
        ci = interval(row.get("optimality_ci"))
        reached = f"it {share(row)}"
        parts.append(f"{reached} {ci}" if ci else reached)
    if row.get("train_reward_queries") is not None:
        parts.append(f"its training asked for {row['train_reward_queries']:,} rewards")
    return f"{case.titles[name]}: " + ("; ".join(parts) or "no numbers") + "."


def choice(title: str, row: Numbers) -> list[str]:
    """Return what a choice among the reference's samples is worth, if it is known."""
    if row.get("optimality") is None:
        return []
    least = "about" if row.get("optimality_bound") == "unclear" else "at least"
    return [
        f"{title} needs no training and reaches {least} {percent(row['optimality'])},"
        " but draws N completions for each one it answers with."
    ]


def agreeing(case: Case) -> list[str]:
    """Return what the seeds say of the first two."""
    if case.flips is None:
        return []
    first, second = (case.titles[name] for name in case.ranked[:2])
    how = "all" if case.flips[0] == case.flips[1] else f"{case.flips[0]} of"
    return [f"{first} is above {second} in {how} {case.flips[1]} seeds."]


def how_collapsed(case: Case) -> str:
    """Return in what way the one that collapsed did; empty where there are several."""
    names = [name for name, state in case.states.items() if state == "collapsed"]
    return f": {collapsed(case.rows[names[0]], case.base)}" if len(names) == 1 else ""


# --- Which of several equals ----------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Something that training takes.

    Attributes:
        of: a policy's, None where it is not known.
        one: of the single dearer one: its title and how many times as much it took.
        many: of several dearer ones: the least, and the range of the others.
    """

    of: Callable[[Case, str], float | None]
    one: str
    many: str
    write: Callable[[float], str]


COSTS = (
    Cost(
        lambda case, name: case.rows[name].get("train_reward_queries"),
        "{title} asked for {ratio} times as many rewards",
        "its training asked for {least} rewards, the others' for {span}",
        lambda value: f"{value:,.0f}",
    ),
    Cost(
        lambda case, name: case.rows[name].get("train_seconds") or case.seconds.get(name),
        "{title} took {ratio} times as long to train",
        "it trained in {least}, the others in {span}",
        clock,
    ),
)


def cheapest(case: Case, group: Sequence[str]) -> tuple[str, str]:
    """Return which of several equals to ship, and why.

    Those without cautions before the others; then whatever is clearly cheaper in rewards asked
    for, then in seconds; then the one that moved least.
    """
    pool = [name for name in group if not case.cautions(name)] or list(group)
    marred = [case.titles[name] for name in group if name not in pool]
    if len(pool) == 1:
        verb = "comes" if len(marred) == 1 else "come"
        return pool[0], f"{joined(marred)} {verb} with a caution"
    why: list[str] = []
    for cost in COSTS:
        values = {name: cost.of(case, name) for name in pool}
        known = {name: value for name, value in values.items() if value is not None}
        if len(known) < len(pool):
            continue
        least = min(known.values())
        near = [name for name in pool if CLEARLY_CHEAPER * known[name] <= least]
        if len(near) < len(pool):
            why.append(_dearer(case, cost, least, {n: known[n] for n in pool if n not in near}))
            pool = near
        if len(pool) == 1:
            return pool[0], " and ".join(why)
    near = min(pool, key=lambda name: _kl(case, name))
    far = max(pool, key=lambda name: _kl(case, name))
    kl, other = case.rows[near].get("kl"), case.rows[far].get("kl")
    if kl is None or other is None:
        return near, " and ".join([*why, "it comes first"])
    reason = f"it stays nearer to the reference ({number(kl)} against {number(other)} nats)"
    if len(pool) > 2:
        reason = f"it stays nearest to the reference ({number(kl)} nats, up to {number(other)})"
    return near, " and ".join([*why, reason])


def _kl(case: Case, name: str) -> float:
    value = case.rows[name].get("kl")
    return float("inf") if value is None else float(value)


def _dearer(case: Case, cost: Cost, least: float, others: Mapping[str, float]) -> str:
    if len(others) == 1 and least > 0:
        (name, value), *_ = others.items()
        return cost.one.format(title=case.titles[name], ratio=number(value / least, 1))
    low, high = min(others.values()), max(others.values())
    span_ = cost.write(low) if low == high else f"{cost.write(low)} to {cost.write(high)}"
    return cost.many.format(least=cost.write(least), span=span_)
