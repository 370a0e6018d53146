"""Learning curves and sweeps as pictures, from arrays.

Every function returns a matplotlib `Figure` of one width, in colours that colour-blind readers can
tell apart and with text that stays readable at a phone's 360 pixels. There is no pyplot and no
global state. Pictures of grids are in `classic_rl.pictures.grid_plots`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

INK, SOFT, LINE, PAPER = "#1b2430", "#5c6878", "#d9dee5", "#fefefe"
BLUE, ORANGE, GREEN, GREY, PURPLE = "#0b67b8", "#cf5a00", "#00876a", "#7a8594", "#8a4a9e"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, GREY)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # and by shape, for print
WIDTH = 4.3  # inches
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
# Negative is orange, zero is white, positive is blue, in every picture.
VALUES = LinearSegmentedColormap.from_list(
    "values", ["#a84300", "#e58a3c", "#fbe3cd", "#ffffff", "#d3e5f5", "#5a9fd6", "#0a559a"]
)
P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in `STYLE`, whatever the process's own settings are."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return drawn


def value_norm(values: np.ndarray) -> Normalize:
    """A colour scale with zero at white: symmetric in colour, each side as long as its values."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    low = min(float(finite.min(initial=0.0)), 0.0)
    high = max(float(finite.max(initial=0.0)), 0.0)
    tiny = 1e-12 + 0.02 * max(high, -low)  # a side without values still needs some length
    return TwoSlopeNorm(0.0, min(low, -tiny), max(high, tiny))


@styled
def curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    level: tuple[float, str] | None = None,
    ylim: tuple[float, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    dots: Sequence[str] = (),
    height: float = 2.9,
) -> Figure:
    """Curves, each with a band from the lowest to the highest seed.

    Args:
        series: name -> (x ``(T,)``, y ``(K, T)`` with one row a seed, or ``(T,)``).
        level: a number to compare with and what it is, drawn as a dashed line.
        dots: the names whose points are shown as dots instead of a line.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for (name, (x, y)), colour, dash in zip(
        series.items(), cycle(SERIES), cycle(DASHES), strict=False
    ):
        y = np.atleast_2d(y)
        line: Any = {"linestyle": dash, "zorder": 3}
        if name in dots:
            line = {"linestyle": "", "marker": "o", "markersize": 5, "fillstyle": "none"}
        axes.plot(x, y.mean(axis=0), color=colour, label=name, **line)
        if len(y) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.18, lw=0)
    if level is not None:
        axes.axhline(level[0], color=INK, linestyle=(0, (2, 2)), linewidth=1.2, label=level[1])
    if ylim is not None:
        axes.set_ylim(*ylim)
    if log_x:
        axes.set_xscale("log")
        axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
        axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _head(figure, axes, title, columns=2)
    return figure


@styled
def bars(
    groups: Mapping[str, np.ndarray], *, title: str, ylabel: str, names: Sequence[str]
) -> Figure:
    """Groups of bars side by side: ``groups[name][i]`` stands over ``names[i]``."""
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(groups)
    for k, (label, heights) in enumerate(groups.items()):
        offset = (k - (len(groups) - 1) / 2) * width
        at = np.arange(len(names)) + offset
        hatch = (None, "///", "...", "xx")[k % 4]
        axes.bar(
            at, heights, width * 0.92, color=SERIES[k % len(SERIES)], label=label,
            hatch=hatch, edgecolor=PAPER, linewidth=0,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(ylabel)
    _head(figure, axes, title, columns=2)
    return figure


@styled
def heat_map(
    table: np.ndarray,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    *,
    title: str,
) -> Figure:
    """A table ``(R, C)`` as colours with its numbers, for sweeps over two settings.

    Args:
        rows, columns: the setting's name and its values as text.
    """
    table = np.asarray(table, dtype=float)
    n_rows, n_columns = table.shape
    figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * n_rows), layout="constrained")
    axes = figure.subplots()
    # Comparing is the point here, so the scale runs from the worst to the best.
    finite = table[np.isfinite(table)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1.0)
    colours = LinearSegmentedColormap.from_list("sweep", ["#ffffff", "#b5d3ee", "#0a559a"])
    axes.imshow(table, cmap=colours, norm=norm, aspect="auto")
    # What is equal up to rounding is equally good: which one rounding favours is no result.
    best = table >= high - 1e-9 * (1.0 + abs(high))
    for index in range(table.size):
        row, column = divmod(index, n_columns)
        dark = norm(table[row, column]) > 0.6
        axes.text(
            column, row, short(table[row, column]), ha="center", va="center", fontsize=9,
            color=PAPER if dark else INK, fontweight="bold" if best[row, column] else "normal",
        )  # fmt: skip
    axes.set_xticks(range(n_columns), columns[1])
    axes.set_yticks(range(n_rows), rows[1])
    axes.set(xlabel=columns[0], ylabel=rows[0])
    axes.grid(visible=False)
    _head(figure, axes, title)
    return figure


def moving_mean(
    ends: np.ndarray, returns: np.ndarray, grid: np.ndarray, window: float
) -> np.ndarray:
    """Mean of the returns whose ends lie in the ``window`` before each point of the grid.

    Args:
        ends: ``(E,)`` rising, where each episode ended. returns: ``(E,)``. grid: ``(G,)``.

    Returns:
        ``(G,)``; where no episode ended the latest return before, NaN before the first.
    """
    sums = np.concatenate([[0.0], np.cumsum(returns, dtype=float)])
    last, first = np.searchsorted(ends, grid, "right"), np.searchsorted(ends, grid - window)
    first = np.minimum(first, last - 1).clip(min=0)  # at least the latest episode
    count = last - first
    return np.where(count > 0, (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)


def short(number: float) -> str:
    """A number in at most five or so characters: two decimals, fewer when it is large."""
    if not np.isfinite(number):
        return "–"
    if number == 0:
        return "0"
    digits = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:.{digits}f}".replace("-", "−")


def _head(figure: Figure, axes: Axes, title: str, columns: int = 1) -> None:
    """The title, and the legend below the picture where there is something to tell apart."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
