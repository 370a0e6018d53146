"""The page's pictures; see `pipeline.report.plotting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.overoptimise.fits import Fit
from pipeline.overoptimise.grid import HOWS
from pipeline.report.plotting import PALETTE, figure, styled

TITLES = {
    "single": "single proxy",
    "mean": "ensemble mean",
    "minimum": "ensemble minimum",
    "uncertainty": "uncertainty penalty",
}
COLOURS = {"single": "#cf5a00", "mean": "#0b67b8", "minimum": "#8a4a9e", "uncertainty": "#00876a"}
"""Also the names of the page's CSS variables, which have another colour on a dark page."""
DARK = {"single": "#f2954a", "mean": "#5aaef2", "minimum": "#c79ad6", "uncertainty": "#3fc09d"}
_MARKERS = ("o", "s", "^", "D", "v")
UNIT = "standard deviations over π_ref"

Described = Mapping[str, Any]


def column(points: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One number of every point; of intervals ``(K, 2)``."""
    return np.array([point[name] for point in points], dtype=float)


@styled
def best_of_n(hows: Mapping[str, Described], top: float) -> Figure:
    """Gain in proxy (dashed) and gold (solid) against √KL, for each way to combine proxies.

    Args:
        top: the highest gain of all pictures, which share their scale.
    """
    drawn, axes = figure(3.5)
    for how in HOWS:
        curve, colour = hows[how]["curves"][0], COLOURS[how]
        points = curve["points"]
        d = column(points, "root_kl")
        axes.plot(d, column(points, "proxy"), color=colour, lw=1.2, ls="--", alpha=0.8)
        low, high = column(points, "gold_ci").T
        axes.fill_between(d, low, high, color=colour, alpha=0.10, linewidth=0)
        axes.plot(d, column(points, "gold"), color=colour, label=TITLES[how])
        _turn(axes, curve, colour)
    _finish(axes, top)
    return drawn


@styled
def ppo(described: Described, how: str, top: float) -> Figure:
    """A PPO run for each β: what its evaluations measured, and the laws fitted to all of them."""
    drawn, axes = figure(3.5)
    colour, furthest = COLOURS[how], 0.0
    for i, (beta, curve) in enumerate(zip(described["betas"], described["curves"], strict=True)):
        points, marker = curve["points"], _MARKERS[i % len(_MARKERS)]
        d, gold = column(points, "root_kl"), column(points, "gold")
        furthest = max(furthest, float(d.max()))
        axes.plot(
            d, column(points, "proxy"), color=colour, marker=marker, ms=5, lw=0, mfc="none",
            alpha=0.8,
        )  # fmt: skip
        error = np.abs(column(points, "gold_ci").T - gold)
        axes.errorbar(
            d, gold, error, color=colour, marker=marker, ms=5, lw=0, elinewidth=0.8, alpha=0.9,
            label=f"PPO, β = {beta:g}",
        )  # fmt: skip
        _turn(axes, curve, colour)
    line = np.linspace(0, furthest, 200)
    for name, style in (("proxy", "--"), ("gold", "-")):
        fitted = described["fits"][name]
        if fitted is not None:
            law = Fit("rl", fitted["alpha"], fitted["beta"])
            axes.plot(line, law(line), color=colour, ls=style, lw=1.4)
    _finish(axes, top)
    return drawn


@styled
def gaps(best: Mapping[str, Mapping[str, Described]]) -> Figure:
    """Proxy less gold at the largest n, for each size and way to combine, with its interval."""
    drawn, axes = figure(0.9 + 0.75 * len(best))
    sizes = list(best)
    for row, size in enumerate(sizes):
        for i, how in enumerate(HOWS):
            last = best[size][how]["curves"][0]["points"][-1]
            at = row + 0.17 * (i - 1.5)
            if last["gap_ci"]:
                axes.plot(last["gap_ci"], [at, at], color=COLOURS[how], lw=1.6)
            label = TITLES[how] if row == 0 else None
            axes.plot(last["gap"], at, color=COLOURS[how], marker="o", ms=5, lw=0, label=label)
    axes.set_yticks(range(len(sizes)), [f"{size} ratings" for size in sizes])
    axes.invert_yaxis()
    axes.axvline(0, color=PALETTE["soft"], lw=1)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"gap, proxy − gold ({UNIT})")
    axes.figure.legend(loc="outside upper left", ncols=2, handlelength=1.0)
    return drawn


def _turn(axes: Axes, curve: Mapping[str, Any], colour: str) -> None:
    """Mark where gold is highest, if it turned down after it."""
    if curve["turn"] is None:
        return
    point = curve["points"][curve["turn"]]
    axes.annotate(
        "turns down", (point["root_kl"], point["gold"]), xytext=(0, 16),
        textcoords="offset points", ha="center", color=colour, fontsize=8.5,
        arrowprops={"arrowstyle": "-|>", "color": colour},
    )  # fmt: skip


def _finish(axes: Axes, top: float) -> None:
    axes.axhline(0, color=PALETTE["soft"], lw=0.8)
    axes.set_xlim(left=0)
    axes.set_ylim(top=1.06 * top)
    axes.set_xlabel("√KL(π‖π_ref), KL in nats a completion")
    axes.set_ylabel("gain (st. dev. over π_ref)")
    axes.legend(loc="upper left", handlelength=1.6)
