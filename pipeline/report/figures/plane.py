"""Reward against KL: every policy, the optimal frontier, and the ways that training took.

`plane` places `Spot`s; a page of another command may use it by itself, inside a `styled` function.
Marks, names, paths and joining lines have ids (``mark-<key>``, ``name-<key>``, ``path-<key>``,
``line-<key>-<key>…``), by which the report's page hides them. The comparison's own pictures are in
`pipeline.report.figures.reward`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.plotting import PALETTE, figure, label_points, mark

Rows = Sequence[Mapping[str, Any]]
Point = tuple[float, float]
Ends = tuple[float, float]


@dataclass(frozen=True)
class Spot:
    """A policy's place.

    Attributes:
        key: tells its ids in the SVG from the others'. label: its name in the picture.
        kl, reward: where it lies. kl_ends, reward_ends: ends of its whiskers.
        bound: its KL is an upper bound, so that it lies there or further left.
        line: spots with the same line are joined, in the order of their KL.
        small: a lesser mark without a name.
    """

    key: str
    label: str
    kl: float
    reward: float
    marker: str
    colour: str
    kl_ends: Ends | None = None
    reward_ends: Ends | None = None
    bound: bool = False
    line: str | None = None
    small: bool = False


def plane(
    spots: Sequence[Spot],
    frontier: Rows,
    *,
    start: float | None = None,
    beta: float | None = None,
    best: float | None = None,
    cap: float | None = None,
    paths: Mapping[str, Sequence[Point]] | None = None,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw ``spots`` under the frontier.

    Args:
        frontier: points of results.json's ``frontier``: beta, kl, reward; where they are there,
            ``reward_ci`` (a band), ``kl_2`` and ``reward_2`` (a second estimate), ``trusted``, and
            ``floor_kl`` and ``floor_reward``, which are drawn where it is not.
        start: the reference's reward, at KL 0, where the frontier begins.
        beta, best: β and J*, for the line of equal objective and the star. cap: log N.
        paths: a key's (KL, reward) while it trained. colours: of paths, by key.
    """
    drawn, axes = figure(3.7 if len(spots) <= 6 else 4.6)
    trained = {key: _smooth(points) for key, points in (paths or {}).items()}
    right = 1.25 * max([s.kl for s in spots] + [0.4])
    curve, ceiling = _frontier(axes, frontier, start, right)
    for key, points in (paths or {}).items():
        _path(axes, points, trained[key], right, (colours or {}).get(key, PALETTE["soft"]), key)
    if paths:
        axes.plot([], [], color=PALETTE["soft"], lw=1.3, alpha=0.6, label="while training")
    _lines(axes, spots)
    for spot in spots:
        _mark(axes, spot, right)
    heights = [s.reward for s in spots] + [y for p in trained.values() for x, y in p if x <= right]
    heights += [end for s in spots if s.reward_ends for end in s.reward_ends]
    low, high = min(heights), max(heights + ceiling)
    spread = high - low or 1.0
    axes.set_ylim(low - 0.06 * spread, high + 0.02 * spread)
    axes.set_xlim(-0.04 * right, right)
    if beta is not None:
        _equal_objective(axes, frontier, beta, best, right)
    if cap and cap < right:
        _cap(axes, cap)
    axes.set_xlabel("KL from the reference (nats a completion)")
    axes.set_ylabel("mean reward")
    large = [s for s in spots if not s.small]
    labels = {s.label: ((s.kl, s.reward), s.colour) for s in large}
    gids = {s.label: f"name-{s.key}" for s in large}
    boxes: list[Any] = []
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(
            loc="lower right", handlelength=1.6, labelcolor=PALETTE["soft"], fontsize=8.5
        )
        drawn.draw_without_rendering()
        boxes.append(legend.get_window_extent())
    label_points(axes, labels, boxes, curve, gids)
    return drawn


def _mark(axes: Axes, spot: Spot, right: float) -> None:
    for along, ends in (("x", spot.kl_ends), ("y", spot.reward_ends)):
        if ends:
            x = ends if along == "x" else (spot.kl, spot.kl)
            y = ends if along == "y" else (spot.reward, spot.reward)
            axes.plot(
                x,
                y,
                color=spot.colour,
                lw=1.0,
                alpha=0.45,
                zorder=3,
                gid=f"mark-{spot.key}-{along}",
            )
    mark(axes, spot.kl, spot.reward, spot, 28 if spot.small else 80, f"mark-{spot.key}")
    if spot.bound:
        note = axes.annotate(
            "", (max(0.0, spot.kl - 0.09 * right), spot.reward), xytext=(spot.kl, spot.reward),
            arrowprops={"arrowstyle": "->", "color": spot.colour, "lw": 1.2},
        )  # fmt: skip
        if note.arrow_patch is not None:
            note.arrow_patch.set_gid(f"mark-{spot.key}-bound")


def _lines(axes: Axes, spots: Sequence[Spot]) -> None:
    """Join the spots of one line, so that a method's β are read as one curve."""
    lines: dict[str, list[Spot]] = {}
    for spot in spots:
        if spot.line:
            lines.setdefault(spot.line, []).append(spot)
    for joined in lines.values():
        joined = sorted(joined, key=lambda s: s.kl)
        if len(joined) > 1:
            axes.plot(
                [s.kl for s in joined], [s.reward for s in joined], color=joined[0].colour, lw=1.2,
                alpha=0.6, zorder=3, gid=f"line-{'-'.join(s.key for s in joined)}",
            )  # fmt: skip


def _frontier(
    axes: Axes, rows: Rows, start: float | None, right: float
) -> tuple[list[Point], list[float]]:
    """Draw the frontier as far as it can be trusted, and shade what no policy can reach.

    Returns:
        the drawn curve, and how high the picture should go.
    """
    rows = sorted(rows, key=lambda row: row["kl"])
    known = [row for row in rows if row.get("trusted") is not False]
    curve: list[Point] = [(0.0, start)] if start is not None and rows else []
    curve += [(row["kl"], row["reward"]) for row in known]
    low = _below(rows, curve[-1:], right)
    if len(curve) < 2:
        return _floor(axes, low, right)
    x, y = np.array(curve, dtype=float).T
    axes.plot(x, y, color=PALETTE["frontier"], lw=2, label="optimal frontier", zorder=3)
    band = [(r["kl"], *r["reward_ci"]) for r in known if r.get("reward_ci")]
    if len(band) > 1:
        axes.fill_between(*np.array(band).T, color=PALETTE["frontier"], alpha=0.18, linewidth=0)
    both = [r for r in known if r.get("kl_2") is not None and r.get("reward_2") is not None]
    second = [(r["kl_2"], r["reward_2"]) for r in both]
    if len(second) > 1:
        axes.plot(
            *np.array(second).T, color=PALETTE["frontier"], lw=1.2, ls=(0, (4, 2)), zorder=3,
            label="second estimate",
        )  # fmt: skip
    # Only as far as the samples tell: beyond the last point nothing is known.
    end = min(right, float(x[-1]))
    top = float(np.interp(end, x, y))
    ceiling = top + 0.12 * (top - float(y[0]))
    inside = x < end
    axes.fill_between(
        np.append(x[inside], end), np.append(y[inside], top), ceiling + abs(ceiling),
        color=PALETTE["frontier"], alpha=0.07, linewidth=0,
    )  # fmt: skip
    if low:
        dotted, heights = _floor(axes, low, right)
        return curve + dotted[1:], [ceiling, *heights]
    if len(known) < len(rows) and float(x[-1]) < right:
        axes.plot([x[-1]], [y[-1]], marker="|", ms=12, mew=2, color=PALETTE["frontier"], lw=0)
        room = float(x[-1]) > 0.4 * right  # on the left of the end, else on its right
        axes.annotate(
            "not known beyond", (x[-1], band[-1][1] if band and room else y[-1]),
            xytext=(-2 if room else 5, -5), textcoords="offset points",
            ha="right" if room else "left", va="top", color=PALETTE["soft"], fontsize=8.5,
        )  # fmt: skip
    return curve, [ceiling]


def _below(rows: Rows, end: Sequence[Point], right: float) -> list[Point]:
    """What the frontier is at least, from the ``end`` of what is trusted to beyond the picture.

    A concave curve that is above two points is above the chord between them.
    """
    line = list(end)
    for row in sorted(rows, key=lambda row: -row["beta"]):
        x, y = _low(row)
        if row.get("trusted") is not False or x is None or y is None or not line:
            continue
        if x > line[-1][0] and y > line[-1][1] and line[-1][0] < right:
            line.append((x, y))
    return line if len(line) > 1 else []


def _floor(axes: Axes, line: Sequence[Point], right: float) -> tuple[list[Point], list[float]]:
    """Draw `_below`, without a band, for its distance from the truth is not known.

    Returns:
        as `_frontier`; only what is inside the picture.
    """
    if not line:
        return [], []
    x, y = np.array(line, dtype=float).T
    axes.plot(
        x, y, color=PALETTE["frontier"], lw=1.6, ls=(0, (1, 2)), alpha=0.75, zorder=3,
        label="at least this (too few samples to say more)",
    )  # fmt: skip
    end = min(right, float(x[-1]))
    inside = [point for point in line if point[0] < end] + [(end, float(np.interp(end, x, y)))]
    return inside, [height for _, height in inside]


def _low(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("floor_kl"), row.get("floor_reward")


def _equal_objective(
    axes: Axes, frontier: Rows, beta: float, best: float | None, right: float
) -> None:
    """The line reward − β·KL = J*, which touches the frontier where the optimum is."""
    touching = [row for row in frontier if math.isclose(row["beta"], beta)]
    if touching and touching[0].get("trusted") is False:
        x, y = _low(touching[0])
        if x is not None and x <= right:
            words = f"optimum at β = {beta:g}: worth this or more"
            axes.scatter(
                [x], [y], s=90, marker="*", zorder=4, facecolors="none", linewidths=1.2,
                edgecolors=PALETTE["frontier"], label=words,
            )  # fmt: skip
        return
    if touching:
        best = touching[0]["reward"] - beta * touching[0]["kl"]
        axes.scatter(
            [touching[0]["kl"]], [touching[0]["reward"]], s=90, marker="*", zorder=4,
            color=PALETTE["frontier"], linewidths=0, label=f"optimum at β = {beta:g}",
        )  # fmt: skip
    if best is None:
        return
    low, high = axes.get_ylim()
    axes.plot(
        [0, right], [best, best + beta * right], color=PALETTE["soft"], lw=1, ls="--", zorder=2,
        label="equal objective",
    )  # fmt: skip
    axes.set_ylim(low, high)


def _cap(axes: Axes, cap: float) -> None:
    axes.axvline(cap, color=PALETTE["soft"], lw=1, ls=":")
    axes.annotate(
        "log N", (cap, 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0),
        textcoords="offset points", color=PALETTE["soft"], fontsize=8.5,
    )  # fmt: skip


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The running mean over an eighth of the points."""
    width = max(1, len(points) // 8)
    columns = [
        np.convolve(np.pad(v, (width - 1, 0), mode="edge"), np.full(width, 1 / width), "valid")
        for v in np.array(points, dtype=float).T
    ]
    return [(float(x), float(y)) for x, y in zip(*columns, strict=True)]


def _path(
    axes: Axes,
    points: Sequence[Point],
    smooth: Sequence[Point],
    right: float,
    colour: str,
    key: str,
) -> None:
    """A policy's own measurements while it trained, faint at first, and their running mean."""
    x, y = np.array(points, dtype=float).T
    inside = x <= right
    faint: Any = np.linspace(0.15, 0.55, len(x))[inside]
    axes.plot(
        *np.array(smooth).T, color=colour, lw=1.3, alpha=0.6, zorder=2, gid=f"path-{key}",
    )  # fmt: skip
    axes.scatter(
        x[inside], y[inside], s=9, color=colour, alpha=faint, linewidths=0, zorder=2,
        gid=f"path-{key}-points",
    )  # fmt: skip
