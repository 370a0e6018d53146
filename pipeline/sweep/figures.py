"""The sweep's pictures: reward against KL over β, and the share of the possible gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.figures import Spot, plane
from pipeline.report.plotting import PALETTE, figure, styled
from pipeline.sweep.trials import labelled

Comparisons = Sequence[Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]


def policies(comparisons: Comparisons) -> dict[str, Mapping[str, Any]]:
    """Every policy's record (title, marker, colour, kind) by name, in order."""
    return {look["name"]: look for found in comparisons for look in found["policies"]}


@styled
def reward_kl(comparisons: Comparisons, rows: Rows) -> Figure | None:
    """Mean reward against KL: a curve a policy over β, its seeds as small marks.

    Args:
        comparisons: of sweep.json, one a β, of one pool. rows: of sweep.json.
    """
    looks = policies(comparisons)
    spots = [spot for name, look in looks.items() for spot in _spots(comparisons, name, look)]
    if not spots:
        return None
    frontier = {point["beta"]: point for c in comparisons for point in c["frontier"]}
    found = comparisons[0]
    reference = next((p["name"] for p in found["policies"] if p["kind"] == "reference"), None)
    start = found["methods"][reference]["reward"] if reference else None
    drawn = plane(spots, sorted(frontier.values(), key=lambda p: p["kl"]), start=start)
    axes = drawn.axes[0]
    for name, look in looks.items():
        _seeds(axes, rows, name, look)
    _optima(axes, comparisons)
    return drawn


def _spots(comparisons: Comparisons, name: str, look: Mapping[str, Any]) -> list[Spot]:
    """A policy at each β; the one of the least β, which is furthest out, bears its name."""
    if look["kind"] == "reference":
        return []
    having = sorted((c for c in comparisons if name in c["methods"]), key=lambda c: c["beta"])
    placed = [(c["beta"], c["methods"][name]) for c in having]
    placed = [(beta, row) for beta, row in placed if row.get("kl") is not None]
    if look["kind"] == "choice":
        placed = placed[:1]  # it is the same at each
    return [
        Spot(
            key=f"{name}-{beta:g}",
            label=look["title"],
            kl=row["kl"],
            reward=row["reward"],
            marker=look["marker"],
            colour=look["colour"],
            kl_ends=_ends(row.get("kl_ci")),
            reward_ends=_ends(row.get("reward_ci")),
            bound=look["kind"] == "choice",
            line=name,
            small=number > 0,
        )
        for number, (beta, row) in enumerate(placed)
    ]


def _ends(interval: Any) -> tuple[float, float] | None:
    return (interval[0], interval[1]) if interval else None


def _seeds(axes: Axes, rows: Rows, name: str, look: Mapping[str, Any]) -> None:
    """Single trials, small."""
    mine = [row for row in rows if row["trial"] and labelled(row["policy"], row["over"]) == name]
    places = [(row["metrics"].get("kl"), row["metrics"].get("reward")) for row in mine]
    places = [place for place in places if None not in place]
    if len(places) > 1:
        x, y = np.array(places, dtype=float).T
        axes.plot(x, y, look["marker"], color=look["colour"], ms=3, alpha=0.45, lw=0, zorder=2)


def _optima(axes: Axes, comparisons: Comparisons) -> None:
    """A star where the optimum of each β is; an open one, where that is not to be trusted, at a
    place with the objective that it has at least."""
    _, right = axes.get_xlim()
    for c in comparisons:
        at = next((p for p in c["frontier"] if p["beta"] == c["beta"]), {})
        known = at.get("trusted") is not False
        names = ("kl", "reward") if known else ("floor_kl", "floor_reward")
        x, y = (at.get(name) for name in names)
        if x is None or y is None or x > right:
            continue
        axes.scatter(
            [x], [y], s=90, marker="*", zorder=3, linewidths=0 if known else 1.2,
            facecolors=PALETTE["frontier"] if known else "none", edgecolors=PALETTE["frontier"],
        )  # fmt: skip
        axes.annotate(
            f"β = {c['beta']:g}", (x, y), xytext=(-4, 5),
            textcoords="offset points", ha="right", color=PALETTE["soft"], fontsize=8.5,
        )  # fmt: skip


@styled
def optimality(comparisons: Comparisons) -> Figure | None:
    """The share of the possible gain over β, a line a policy, with intervals over seeds."""
    return _shares(comparisons, lambda c, row: c["beta"], "β (reward units a nat)")


@styled
def queries(comparisons: Comparisons) -> Figure | None:
    """The share of the possible gain against what training asked of the reward."""
    return _shares(
        comparisons, lambda c, row: row.get("train_reward_queries"), "reward queries of a trial"
    )


def _shares(comparisons: Comparisons, place: Any, words: str) -> Figure | None:
    looks = policies(comparisons)
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for c in comparisons:
        for name, row in c["methods"].items():
            at = place(c, row)
            if looks[name]["kind"] != "reference" and at and row.get("optimality") is not None:
                lines.setdefault(name, []).append((at, row))
    if len({at for line in lines.values() for at, _ in line}) < 2:
        return None
    drawn, axes = figure(3.7)
    for number, (name, line) in enumerate(lines.items()):
        look = looks[name]
        line.sort(key=lambda point: point[0])
        # Side by side, so that intervals at one place can be told apart.
        shift = 1 + 0.02 * (number - (len(lines) - 1) / 2)
        x = [at * shift for at, _ in line]
        y = [row["optimality"] for _, row in line]
        axes.plot(x, y, color=look["colour"], marker=look["marker"], ms=6, label=look["title"])
        for at, (_, row) in zip(x, line, strict=True):
            if row.get("optimality_ci"):
                axes.plot([at, at], row["optimality_ci"], color=look["colour"], lw=1, alpha=0.8)
    axes.axhline(0, color=PALETTE["soft"], lw=1)
    axes.axhline(1, color=PALETTE["frontier"], lw=1.2, ls="--")
    axes.set_xscale("log")
    ticks = sorted({at for line in lines.values() for at, _ in line})
    axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    axes.set_xlabel(words)
    bounds = {row.get("optimality_bound") for line in lines.values() for _, row in line}
    axes.set_ylabel(f"share of the possible gain{', at most' if 'at most' in bounds else ''}")
    axes.legend(loc="best", fontsize=8.5, ncols=2)
    return drawn
