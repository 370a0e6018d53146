"""What the pictures share: colours, SVG and PNG, labels that keep out of the way.

The colours are those of `PALETTE` and of the compared methods; `svg` puts CSS variables in their
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

from classic_rl.pictures.plots import INK, LINE, PAPER, SOFT, STYLE, WIDTH, styled
from pipeline.compare import methods

__all__ = [
    "PALETTE",
    "WIDTH",
    "Picture",
    "figure",
    "label_ends",
    "label_points",
    "png",
    "styled",
    "svg",
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
    variables and their light colours; without it they are the compared methods'.
    """
    out = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    if own is None:
        own = {method.name: method.colour for method in methods.METHODS}
    colours = PALETTE | dict(own)
    for variable, colour in colours.items():
        text = text.replace(colour, f"var(--{variable})")
    return (
        text.replace('id="', f'id="{name}-')
        .replace('href="#', f'href="#{name}-')
        .replace("url(#", f"url(#{name}-")
    )


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
) -> None:
    """Write each name beside its point, where it covers neither a point, a name nor the curve."""
    axes.figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    solid = [axes.transData.transform(p) for p, _ in points.values()]
    if len(curve) > 1:
        x, y = np.array(curve, dtype=float).T
        fine = np.linspace(x[0], x[-1], 200)
        solid += list(axes.transData.transform(np.column_stack([fine, np.interp(fine, x, y)])))
    frame = axes.get_window_extent()
    for text, (point, colour) in points.items():
        best, least = None, math.inf
        for dx, dy, ha, va in _DIRECTIONS:
            note = axes.annotate(
                text, point, xytext=(dx, dy), textcoords="offset points", ha=ha, va=va,
                color=colour, fontweight="bold", zorder=6,
            )  # fmt: skip
            box = note.get_window_extent().padded(2)
            cost = 3.0 * sum(box.overlaps(other) for other in taken)
            cost += sum(box.contains(*p) for p in solid)
            cost += 10.0 * (not (frame.contains(*box.p0) and frame.contains(*box.p1)))
            if cost < least:
                if best is not None:
                    best.remove()
                best, least, chosen = note, cost, box
            else:
                note.remove()
        taken.append(chosen)  # pyright: ignore[reportPossiblyUnboundVariable]


_DIRECTIONS = (
    (8, 0, "left", "center"),
    (7, -6, "left", "top"),
    (7, 6, "left", "bottom"),
    (0, -9, "center", "top"),
    (0, 9, "center", "bottom"),
    (-8, 0, "right", "center"),
    (-7, -6, "right", "top"),
    (-7, 6, "right", "bottom"),
)  # fmt: skip


def label_ends(axes: Axes, ends: Mapping[str, tuple[tuple[float, float], str]]) -> None:
    """Write names at the right of their lines, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    last = -math.inf
    for text, (point, colour) in sorted(ends.items(), key=lambda item: item[1][0][1]):
        last = max(point[1], last + gap)
        axes.annotate(
            text, (1.0, last), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", va="center", color=colour, fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip
