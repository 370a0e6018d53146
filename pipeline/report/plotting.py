"""What the pictures share: colours, SVG and PNG, labels that keep out of the way.

The colours are those of `PALETTE` and of the compared policies; `svg` puts CSS variables in their
place, so that one picture serves a light and a dark page. Sizes and style are those of
`classic_rl.pictures.plots`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from classic_rl.pictures.plots import INK, LINE, PAPER, SOFT, STYLE, WIDTH, styled

__all__ = [
    "PALETTE",
    "WIDTH",
    "Picture",
    "figure",
    "label_ends",
    "label_points",
    "mark",
    "png",
    "styled",
    "svg",
    "variables",
]

# Name of the CSS variable → light colour, as in style.css.
PALETTE = {
    "ink": INK,
    "soft": SOFT,
    "line": LINE,
    "paper": PAPER,
    "frontier": "#2f3b4a",
    "accent": "#1a69b5",
    "second": "#bf5600",
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure and its words."""

    name: str
    title: str
    caption: str
    svg: Markup
    png: bytes


def svg(figure: Figure, name: str, own: Mapping[str, str] | None = None) -> str:
    """Return ``figure`` as an inline ``<svg>`` whose colours are the page's CSS variables.

    ``name`` keeps the ids inside apart from those of the page's other pictures. ``own`` are further
    variables and their light colours, such as `variables` of the compared policies.
    """
    out = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    colours = PALETTE | dict(own or {})
    for variable, colour in colours.items():
        text = text.replace(colour, f"var(--{variable})")
    return (
        text.replace('id="', f'id="{name}-')
        .replace('href="#', f'href="#{name}-')
        .replace("url(#", f"url(#{name}-")
    )


def variables(policies: Sequence[Any]) -> dict[str, str]:
    """Return the CSS variable of each policy's colour, by its name: ``c0``, ``c1``, …

    A policy's own name may be anything, ``ink`` too, so that the variables go by place.
    """
    return {policy.name: f"c{place}" for place, policy in enumerate(policies)}


def mark(
    axes: Axes, x: float, y: float, looks: Any, area: float = 80.0, gid: str | None = None
) -> None:
    """Draw a policy's mark with its ``looks.marker`` and ``looks.colour``.

    ``area`` is in points²; a marker that is mostly gaps gets more, to look as large.
    """
    more = {"*": 2.2, "P": 1.3, "X": 1.2, "d": 1.2, "p": 1.2, "h": 1.2}.get(looks.marker, 1.0)
    axes.scatter(
        [x], [y], s=more * area, marker=looks.marker, color=looks.colour, zorder=5, gid=gid,
        edgecolors=PALETTE["paper"], linewidths=1.4, clip_on=False,
    )  # fmt: skip


def png(figure: Figure) -> bytes:
    """Return ``figure`` as a PNG on its light ground."""
    out = io.BytesIO()
    with matplotlib.rc_context(dict(STYLE)):
        figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


def figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure of the common width and ``height`` inches, and its axes."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    return made, made.subplots()


def label_points(
    axes: Axes,
    points: Mapping[str, tuple[tuple[float, float], str]],
    taken: list[Any],
    curve: Sequence[tuple[float, float]],
    gids: Mapping[str, str] | None = None,
) -> None:
    """Write each name near its point, where it covers neither a point, a name nor the curve.

    A name that has to stand off is tied to its point by a thin line. Those with the most
    neighbours choose first. ``taken`` are boxes to keep out of; each name's own is added.

    Args:
        points: name → where, and its colour.
        gids: name → id of the text in the SVG, for a page that hides it.
    """
    axes.figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    where = {text: axes.transData.transform(p) for text, (p, _) in points.items()}
    solid = list(where.values())
    if len(curve) > 1:
        x, y = np.array(curve, dtype=float).T
        fine = np.linspace(x[0], x[-1], 200)
        solid += list(axes.transData.transform(np.column_stack([fine, np.interp(fine, x, y)])))
    marks = np.array(solid)
    frame, scale = axes.get_window_extent(), axes.figure.dpi / 72
    size = 8.0 if len(points) > 6 else 9.5
    order = sorted(where, key=lambda t: _crowd(where[t], marks[: len(where)]))
    for text in order:
        point, colour = points[text]
        note = axes.annotate(
            text, point, xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            color=colour, fontweight="bold", fontsize=size, zorder=6, gid=(gids or {}).get(text),
        )  # fmt: skip
        box = note.get_window_extent()
        offset, place, tied = _best(where[text], box.width, box.height, scale, frame, marks, taken)
        note.set_position((offset[0] / scale, offset[1] / scale))
        if tied:
            axes.annotate(
                "", point, xytext=(offset[0] / scale, offset[1] / scale),
                textcoords="offset points", zorder=4,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6,
                            "shrinkA": box.height / scale / 2, "shrinkB": 5},
                gid=f"{gids[text]}-tie" if gids and text in gids else None,
            )  # fmt: skip
        taken.append(place)


_ANGLES = tuple(math.radians(a) for a in (0, -40, 40, -90, 90, 180, -140, 140, -20, 20, -65, 65))
_RINGS = (9.0, 18.0, 30.0, 44.0)  # points from the mark to the near edge of the name


def _crowd(place: np.ndarray, others: np.ndarray) -> float:
    """The distance to the nearest other mark, in pixels; the smallest chooses first."""
    apart = np.hypot(*(others - place).T)
    apart = apart[apart > 0]
    return float(apart.min()) if apart.size else math.inf


def _best(
    place: np.ndarray,
    width: float,
    height: float,
    scale: float,
    frame: Any,
    marks: np.ndarray,
    taken: Sequence[Any],
) -> tuple[tuple[float, float], Any, bool]:
    """The offset of a name's middle from its mark in pixels, its box, and whether to tie it."""
    found, least = None, math.inf
    for ring in _RINGS:
        for rank, angle in enumerate(_ANGLES):
            dx, dy = math.cos(angle), math.sin(angle)
            reach = ring * scale
            x = dx * reach + (0.5 * width * np.sign(dx) if abs(dx) > 0.4 else 0.0)
            y = dy * reach + 0.5 * height * dy
            left, low = place[0] + x - width / 2, place[1] + y - height / 2
            box = Bbox.from_bounds(left - 2, low - 1, width + 4, height + 2)
            cost = 4.0 * sum(box.overlaps(other) for other in taken)
            inside = (marks[:, 0] > box.x0 - 3) & (marks[:, 0] < box.x1 + 3)
            inside &= (marks[:, 1] > box.y0 - 3) & (marks[:, 1] < box.y1 + 3)
            cost += float(inside.sum())
            cost += 10.0 * (not (frame.contains(*box.p0) and frame.contains(*box.p1)))
            cost += 0.02 * ring + 0.01 * rank
            if cost < least:
                found, least = ((float(x), float(y)), box, ring > _RINGS[0]), cost
    assert found is not None
    return found


def label_ends(axes: Axes, ends: Mapping[str, tuple[tuple[float, float], str]]) -> None:
    """Write names at the right of their lines, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    order = sorted(ends.items(), key=lambda item: item[1][0][1])
    heights: list[float] = []
    for _, (point, _) in order:
        heights.append(max(point[1], heights[-1] + gap if heights else -math.inf))
    top = high
    for at in reversed(range(len(heights))):  # what went over the top is pushed down again
        heights[at] = min(heights[at], top)
        top = heights[at] - gap
    for (text, (_, colour)), height in zip(order, heights, strict=True):
        axes.annotate(
            text, (1.0, height), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", va="center", color=colour, fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip
