"""The picture of convergence: distance to the optimum along training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.certify.methods import Method
from pipeline.certify.study import MOST_DISTANCE, Result
from pipeline.report.plotting import PALETTE, WIDTH, styled

_COLOURS = ("#0b67b8", "#cf5a00", "#00876a", "#9b3fa8", "#b8860b", "#c2185b", "#2f3b4a")
_MARKERS = "osD^vPX"
_LEAST = 3e-3


@styled
def convergence(methods: Sequence[Method], results: Sequence[Result]) -> Figure:
    """Total variation to π*, and to the method's own optimum where that is another: medians over
    the seeds, bands from least to greatest."""
    others = [method for method in methods if method.optimum is not None]
    count = 2 if others else 1
    figure = Figure(figsize=(WIDTH * 1.35, 3.0 * count + 0.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(count, 1, sharex=True))
    looks = {  # where colours come round again the line is dashed
        m.name: {
            "color": _COLOURS[i % 7],
            "marker": _MARKERS[i % 7],
            "linestyle": "-" if i < 7 else "--",
        }
        for i, m in enumerate(methods)
    }
    _draw(axes[0], methods, results, "distance", looks)
    axes[0].set_title("Distance to π*, exact")
    if others:
        _draw(axes[1], others, results, "own_distance", looks)
        axes[1].set_title("Distance to the method's own optimum, exact")
    axes[-1].set_xlabel("share of the training")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw(
    axes: Axes,
    methods: Sequence[Method],
    results: Sequence[Result],
    key: str,
    looks: dict[str, Any],
) -> None:
    for method in methods:
        curves = [result["curve"] for result in results if result["method"] == method.name]
        x = [point["progress"] for point in curves[0]]
        y = np.array([[point[key] for point in curve] for curve in curves])
        axes.plot(
            x, np.median(y, axis=0), label=method.title, markevery=5, markersize=4.5,
            **looks[method.name],
        )  # fmt: skip
        axes.fill_between(
            x, y.min(axis=0), y.max(axis=0), color=looks[method.name]["color"], alpha=0.12, lw=0
        )
    axes.axhline(MOST_DISTANCE, color=PALETTE["soft"], linewidth=1.0, linestyle="--")
    axes.annotate(
        f"{MOST_DISTANCE}: what passes", (0.01, MOST_DISTANCE), xycoords=("axes fraction", "data"),
        xytext=(0, -3), textcoords="offset points", va="top", fontsize=8, color=PALETTE["soft"],
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(_LEAST, 1.0)
    axes.set_xlim(0, 1)
    axes.set_ylabel("total variation")
