"""How much of the possible gain each policy reached, what that cost, and how far the optimum can
be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.compare.methods import Method, shown
from pipeline.compare.wording import percent
from pipeline.report.plotting import PALETTE, WIDTH, figure, label_ends, label_points, mark, styled

Numbers = Mapping[str, Any]
DECADES = 20.0  # costs further apart than this are drawn on a logarithmic axis


@styled
def optimality(results: Numbers) -> Figure | None:
    """How much of the possible gain each policy reaches, with its interval; the best on top."""
    placed = _placed(results)
    if not placed:
        return None
    drawn, axes = figure(0.75 + (0.45 if len(placed) <= 6 else 0.33) * len(placed))
    upwards = sorted(placed.items(), key=lambda item: item[1]["optimality"])
    for at, (method, row) in enumerate(upwards):
        axes.barh(at, row["optimality"], height=0.55, color=method.colour, alpha=0.85)
        ci = row.get("optimality_ci")
        if ci:
            axes.plot(ci, [at, at], color=PALETTE["ink"], lw=1.4)
            axes.plot(ci, [at, at], color=PALETTE["ink"], marker="|", ms=8, lw=0)
    axes.set_yticks(range(len(placed)), [method.title for method, _ in upwards])
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axes.axvline(0, color=PALETTE["soft"], lw=1)
    axes.axvline(1, color=PALETTE["frontier"], lw=1.2, ls="--")
    axes.grid(False, axis="y")
    ends = [row.get("optimality_ci") or (row["optimality"],) * 2 for row in placed.values()]
    lowest, highest = min([0.0, *(low for low, _ in ends)]), max([1.0, *(high for _, high in ends)])
    axes.set_xlim(lowest - (0.03 if lowest < 0 else 0), max(1.08, 1.03 * highest))
    axes.xaxis.set_major_formatter(lambda x, _: percent(x))
    bounds = {row.get("optimality_bound") for m, row in placed.items() if m.kind != "choice"}
    axes.set_xlabel(f"share of the possible gain{', at most' if 'at most' in bounds else ''}")
    return drawn


@styled
def cost(results: Numbers, seconds: Mapping[str, float] | None = None) -> Figure | None:
    """Optimality against the rewards that training asked for, and against its time.

    Args:
        seconds: training times by policy, where the metrics have none.

    Returns:
        None where fewer than two policies have a cost.
    """
    placed, seconds = _placed(results), seconds or {}
    placed = {m: row for m, row in placed.items() if m.kind != "choice"}  # it pays when it answers
    queries = {m: row.get("train_reward_queries") for m, row in placed.items()}
    times = {m: row.get("train_seconds") or seconds.get(m.name) for m, row in placed.items()}
    panels = [
        ("rewards asked for in training", _known(queries), _counts),
        ("time of training", _known(times), _times),
    ]
    panels = [panel for panel in panels if len(panel[1]) > 1]
    if not panels:
        return None
    drawn = Figure(figsize=(WIDTH, 0.2 + 2.6 * len(panels)), layout="constrained")
    column = drawn.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (label, known, ticks) in zip(column, panels, strict=True):
        for method, x in known.items():
            _place(axes, method, x, placed[method])
        axes.yaxis.set_major_formatter(lambda y, _: percent(y))
        axes.set_ylabel("of the possible gain")
        _along(axes, list(known.values()), ticks)
        axes.set_xlabel(label)
        axes.margins(y=0.12)
    for axes, (_, known, _) in zip(column, panels, strict=True):
        where = {m.title: ((x, placed[m]["optimality"]), m.colour) for m, x in known.items()}
        label_points(axes, where, [], [])
    return drawn


@styled
def optimum(details: Numbers, results: Numbers) -> Figure | None:
    """The estimate of the optimum as the number of reference samples doubles."""
    rows = [row for row in details.get("optimum") or [] if row.get("j_star") is not None]
    if len(rows) < 2:
        return None
    drawn, axes = figure(3.0)
    n = [row["n"] for row in rows]
    axes.plot(n, [row["j_star"] for row in rows], color=PALETTE["frontier"], marker="o", ms=4.5)
    ends: dict[str, Any] = {"optimum": ((n[-1], rows[-1]["j_star"]), PALETTE["frontier"])}
    objectives = {
        method: results["methods"][method.name]["objective"]
        for method in shown(results)
        if results["methods"][method.name].get("objective") is not None
    }
    # The best few: names of all twelve would not fit beside each other.
    best = sorted(objectives, key=lambda m: objectives[m], reverse=True)[:5]
    for method, value in objectives.items():
        if method in best or method.kind == "reference":
            axes.axhline(value, color=method.colour, lw=1.4, ls="--")
            ends[method.title] = ((n[-1], value), method.colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(n, [str(value) for value in n])
    axes.minorticks_off()
    axes.set_xlabel("reference samples a prompt, N")
    axes.set_ylabel("objective, reward − β·KL")
    label_ends(axes, ends)
    return drawn


def _placed(results: Numbers) -> dict[Method, Numbers]:
    """The metrics of each policy on the scale, without the reference, which is its zero."""
    rows = results["methods"]
    return {
        method: rows[method.name]
        for method in shown(results)
        if method.kind != "reference" and rows[method.name].get("optimality") is not None
    }


def _known(costs: Mapping[Method, float | None]) -> dict[Method, float]:
    return {method: float(value) for method, value in costs.items() if value is not None}


def _place(axes: Axes, method: Method, x: float, row: Numbers) -> None:
    if row.get("optimality_ci"):
        axes.plot([x, x], row["optimality_ci"], color=method.colour, lw=1.1, alpha=0.5)
    mark(axes, x, row["optimality"], method, 64)


def _along(axes: Axes, costs: list[float], ticks: Callable[[float], list[float]]) -> None:
    """A linear axis from 0, or a logarithmic one where the costs lie far apart."""
    least, most = min((x for x in costs if x > 0), default=0.0), max(costs)
    write = _written if ticks is _counts else _clock
    if least and most / least > DECADES:
        none = min(costs) == 0
        axes.set_xscale("symlog", linthresh=least, linscale=0.5)
        powers = [float(x) for x in 10.0 ** np.arange(np.ceil(np.log10(least)), np.log10(most) + 1)]
        axes.set_xticks([0.0, *powers] if none else powers)
        axes.set_xlim(-0.2 * least if none else 0.7 * least, 1.6 * most)
    else:
        axes.set_xlim(0, 1.25 * most or 1.0)
        axes.set_xticks([x for x in ticks(1.25 * most) if x <= 1.25 * most])
    axes.xaxis.set_major_formatter(lambda x, _: write(x))


def _counts(most: float) -> list[float]:
    """Up to five round numbers from 0."""
    return [float(x) for x in MaxNLocator(4, integer=True).tick_values(0, most)]


STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400)


def _times(most: float) -> list[float]:
    """Up to five times from 0 s that people say."""
    step = next((s for s in STEPS if most / s <= 4.5), 10 ** math.ceil(math.log10(most / 4.5)))
    return [float(x) for x in np.arange(0, most, step)]


def _written(value: float) -> str:
    return f"{value:,.0f}"


def _clock(seconds: float) -> str:
    """A round time, as short as it goes: 30 s, 5 min, 2 h."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s" if seconds else "0"
