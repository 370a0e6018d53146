"""The page of an account: one HTML file without scripts or outside resources.

What texts and names say goes through the template's escaping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.compare.wording import number, percent, signed
from pipeline.judging.pictures import SERIES
from pipeline.report.inspection import visible
from pipeline.report.plotting import Picture
from pipeline.report.templating import template

Account = Mapping[str, Any]


def render(account: Account, drawn: Mapping[str, Picture]) -> str:
    """The page as HTML, with the pictures that were drawn of the account."""
    names = list(account["rewards"])
    return template(
        "judging.html",
        visible=visible,
        share=share,
        bare=bare,
        between=between,
        points=points,
        points_between=points_between,
    ).render(
        a=account,
        names=names,
        headline=headline(account),
        pictures=drawn,
        colours={name: f"var(--s{index % len(SERIES)})" for index, name in enumerate(names)},
        totals=totals(account),
        failures={probe["probe"]: failures(probe) for probe in account["probes"]},
    )


def headline(account: Account) -> str:
    """The account in a sentence."""
    pairwise = account["pairwise"]
    if pairwise is not None and pairwise["another_rater"] is not None:
        parts = [
            f"{name} {percent(row['agreement']['value'])}"
            for name, row in pairwise["rewards"].items()
        ]
        other = percent(pairwise["another_rater"]["value"])
        return (
            "Of two texts a person prefers the one that scores higher: "
            f"{', '.join(parts)} of the time. Another person agrees {other} of the time."
        )
    told = {name: row["auc"] for name, row in account["rewards"].items() if row["auc"]}
    if told:
        parts = [f"{name} {percent(value['value'])}" for name, value in told.items()]
        return f"A good text scores above a bad one: {', '.join(parts)} of the time."
    return "These texts cannot tell good rewards from bad ones."


def lines(account: Account) -> list[str]:
    """A line a reward, for the terminal."""
    found, total = [], totals(account)
    for name, row in account["rewards"].items():
        parts = []
        if row["accuracy"]:
            parts.append(f"accuracy {plain(row['accuracy'], percents=True)}")
        if row["auc"]:
            parts.append(f"AUC {plain(row['auc'])}")
        parts.append(f"Spearman {plain(row['spearman'])}")
        if row["ece"]:
            parts.append(f"calibration error {plain(row['ece'])}")
        pairwise = account["pairwise"]
        if pairwise is not None:
            agreement = pairwise["rewards"][name]["agreement"]
            parts.append(f"sides with a rater {plain(agreement, percents=True)}")
        passed, pairs = total[name]
        parts.append(f"probes {passed} of {pairs}")
        found.append(f"{name} · " + " · ".join(parts))
    if account["pairwise"] is not None:
        another = plain(account["pairwise"]["another_rater"], percents=True)
        found.append(f"one person · sides with another rater {another}")
    return found


def totals(account: Account) -> dict[str, tuple[int, int]]:
    """Probe pairs that each reward passes, of how many."""
    return {
        name: (
            sum(probe["rewards"][name]["passed"] for probe in account["probes"]),
            sum(probe["pairs"] for probe in account["probes"]),
        )
        for name in account["rewards"]
    }


def failures(probe: Account) -> list[dict[str, Any]]:
    """The pairs that some reward fails, each with those rewards and their two scores."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, result in probe["rewards"].items():
        for failure in result["failures"]:
            key = failure["prompt"], failure["better"], failure["worse"]
            pair = dict(zip(("prompt", "better", "worse"), key, strict=True))
            row = found.setdefault(key, {**pair, "by": []})
            row["by"].append((name, failure["score_better"], failure["score_worse"]))
    return list(found.values())


def share(value: Mapping[str, Any]) -> str:
    """A share in percent, without its interval."""
    return percent(value["value"])


def bare(value: Mapping[str, Any], digits: int = 2) -> str:
    """A number without its interval."""
    return number(value["value"], digits)


def plain(value: Mapping[str, Any] | None, digits: int = 2, percents: bool = False) -> str:
    """A number with its interval, on one line."""
    if value is None:
        return "–"
    main = share(value) if percents else bare(value, digits)
    interval = between(value, digits, percents)
    return f"{main} {interval}" if interval else main


def between(value: Mapping[str, Any], digits: int = 2, percents: bool = False) -> str:
    """The interval, or nothing where there is none."""
    if not value["interval"]:
        return ""
    low, high = value["interval"]
    if percents:
        return f"[{number(100 * low, 0)} to {percent(high)}]"
    return f"[{number(low, digits)} to {number(high, digits)}]"


def points(value: Mapping[str, Any]) -> str:
    """A difference of shares in percentage points."""
    return signed(100 * value["value"], 1)


def points_between(value: Mapping[str, Any]) -> str:
    """The interval of such a difference."""
    low, high = (signed(100 * bound, 1) for bound in value["interval"])
    return f"[{low} to {high}]"
