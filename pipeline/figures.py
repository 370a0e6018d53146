"""The report's pictures.

Each function returns a matplotlib Figure, or None where the numbers for it are missing. The
colours are those of `PALETTE`; `svg` puts CSS variables in their place, so that one picture
serves a light and a dark page. Sizes are chosen so that a phone's 360 pixels show readable text.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.verdict import METHODS, NAMES

# Colour-blind safe; every method has its own marker too. Name of the CSS variable → light colour.
PALETTE = {
    "ink": "#1b2430",
    "soft": "#5c6878",
    "line": "#d9dee5",
    "paper": "#fefefe",
    "sft": "#7a8594",
    "ppo": "#0b67b8",
    "dpo": "#cf5a00",
    "best_of_n": "#00876a",
    "frontier": "#2f3b4a",
}
MARKERS = {"sft": "o", "ppo": "D", "dpo": "s", "best_of_n": "^"}
STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": PALETTE["ink"],
    "axes.labelcolor": PALETTE["soft"],
    "axes.edgecolor": PALETTE["line"],
    "axes.facecolor": PALETTE["paper"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.7,
    "xtick.color": PALETTE["soft"],
    "ytick.color": PALETTE["soft"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": PALETTE["ink"],
    "figure.facecolor": PALETTE["paper"],
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
}
WIDTH = 4.9  # inches
Rows = Sequence[Mapping[str, Any]]
Drawing = Callable[..., Figure | None]


def styled(draw: Drawing) -> Drawing:
    """Draw in `STYLE`, whatever the process's own settings are."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure | None:
        with matplotlib.rc_context():
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return drawn


def svg(figure: Figure, name: str) -> str:
    """Return ``figure`` as an inline ``<svg>`` whose colours are the page's CSS variables.

    ``name`` keeps the ids inside apart from those of the page's other pictures.
    """
    out = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for variable, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-').replace(
        "url(#", f"url(#{name}-"
    )


def png(figure: Figure) -> bytes:
    """Return ``figure`` as a PNG on its light ground."""
    out = io.BytesIO()
    with matplotlib.rc_context(dict(STYLE)):
        figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


@styled
def reward_kl(
    results: Mapping[str, Any], details: Mapping[str, Any], ppo: Rows
) -> Figure | None:
    """Mean reward against KL: the optimal frontier, every method, and PPO's way there."""
    methods = _placed(results["methods"], "kl", "reward")
    frontier = sorted(results.get("frontier") or [], key=lambda row: row["kl"])
    if not methods:
        return None
    figure, axes = _figure(WIDTH, 4.0)
    boxes: list[Any] = []
    reference = results["methods"].get("sft", {}).get("reward")
    curve = [(0.0, reference)] if reference is not None and frontier else []
    curve += [(row["kl"], row["reward"]) for row in frontier]
    right = 1.25 * max([x for x, _ in methods.values()] + [0.4])
    _frontier(axes, curve, right)
    # After axis limits are final, so that the line does not stretch them.
    _trajectory(axes, ppo, right)
    for name, (x, y) in methods.items():
        _point(axes, name, x, y)
    axes.set_xlim(-0.04 * right, right)
    _iso_objective(axes, results, details, right)
    cap = details.get("kl_cap")
    if cap and cap < right:
        axes.axvline(cap, color=PALETTE["soft"], lw=1, ls=":")
        axes.annotate(
            "log N", (cap, 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0),
            textcoords="offset points", color=PALETTE["soft"], fontsize=8.5,
        )  # fmt: skip
    axes.set_xlabel("KL from the reference (nats a completion)")
    axes.set_ylabel("mean reward")
    _label(axes, {NAMES[n]: (p, PALETTE[n]) for n, p in methods.items()}, boxes, curve)
    axes.legend(loc="lower right", handlelength=1.6, labelcolor=PALETTE["soft"])
    return figure


@styled
def proxy_gold(results: Mapping[str, Any], samples: Rows, same: bool = False) -> Figure | None:
    """The judge's mark against the reward: single completions, and each method's mean."""
    methods = _placed(results["methods"], "reward", "gold")
    if not methods:
        return None
    figure, axes = _figure(WIDTH, 4.0)
    for name in METHODS:
        pairs = [
            (row["rewards"][name], row["gold"][name])
            for row in samples
            if name in (row.get("rewards") or {}) and name in (row.get("gold") or {})
        ]
        if pairs:
            x, y = np.array(pairs, dtype=float).T
            axes.scatter(x, y, s=11, color=PALETTE[name], alpha=0.28, linewidths=0)
    axes.axhline(0, color=PALETTE["soft"], lw=0.8, ls=":")
    axes.axvline(0, color=PALETTE["soft"], lw=0.8, ls=":")
    for name, (x, y) in methods.items():
        if name != "sft" and "sft" in methods:
            axes.annotate(
                "", (x, y), xytext=methods["sft"],
                arrowprops={"arrowstyle": "-", "color": PALETTE[name], "lw": 1.2, "alpha": 0.7},
            )  # fmt: skip
        _point(axes, name, x, y)
    axes.set_xlabel("reward (what was optimised)")
    axes.set_ylabel("the same reward" if same else "judge (never optimised)")
    _label(axes, {NAMES[n]: (p, PALETTE[n]) for n, p in methods.items()}, [], [])
    return figure


@styled
def optimality(methods: Mapping[str, Any]) -> Figure | None:
    """How much of the possible gain each method reaches, with its interval."""
    shown = [n for n in ("ppo", "dpo", "best_of_n") if (methods.get(n) or {}).get("optimality")]
    if not shown:
        return None
    figure, axes = _figure(WIDTH, 0.75 + 0.45 * len(shown))
    for row, name in enumerate(reversed(shown)):
        value, ci = methods[name]["optimality"], methods[name].get("optimality_ci")
        axes.barh(row, value, height=0.55, color=PALETTE[name], alpha=0.85)
        if ci:
            axes.plot(ci, [row, row], color=PALETTE["ink"], lw=1.4)
            axes.plot(ci, [row, row], color=PALETTE["ink"], marker="|", ms=8, lw=0)
    axes.set_yticks(range(len(shown)), [NAMES[n] for n in reversed(shown)])
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axes.axvline(0, color=PALETTE["soft"], lw=1)
    axes.axvline(1, color=PALETTE["frontier"], lw=1.2, ls="--")
    axes.grid(False, axis="y")
    highest = max([1.0] + [(methods[n].get("optimality_ci") or [0, 0])[1] for n in shown])
    axes.set_xlim(min(0.0, *(methods[n]["optimality"] for n in shown)), max(1.08, 1.03 * highest))
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    axes.set_xlabel("share of the possible gain (SFT = 0 %, optimum = 100 %)")
    return figure


@styled
def optimum(details: Mapping[str, Any], methods: Mapping[str, Any]) -> Figure | None:
    """The estimate of the optimum as the number of reference samples doubles."""
    rows = [row for row in details.get("optimum") or [] if row.get("j_star") is not None]
    if len(rows) < 2:
        return None
    figure, axes = _figure(WIDTH, 3.2)
    n = [row["n"] for row in rows]
    axes.plot(n, [row["j_star"] for row in rows], color=PALETTE["frontier"], marker="o", ms=4.5)
    ends: dict[str, Any] = {"optimum": ((n[-1], rows[-1]["j_star"]), PALETTE["frontier"])}
    for name in METHODS:
        value = (methods.get(name) or {}).get("objective")
        if value is not None:
            axes.axhline(value, color=PALETTE[name], lw=1.4, ls="--")
            ends[NAMES[name]] = ((n[-1], value), PALETTE[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks(n, [str(value) for value in n])
    axes.minorticks_off()
    axes.set_xlabel("reference samples a prompt, N")
    axes.set_ylabel("objective, reward − β·KL")
    _end_labels(axes, ends)
    return figure


@styled
def calibration(reward: Mapping[str, Any]) -> Figure | None:
    """How often the classifiers are right, against how sure they are."""
    curves = {
        name: [b for b in (reward.get(name) or {}).get("calibration") or [] if b.get("count", 1)]
        for name in ("proxy", "gold")
    }
    if not any(curves.values()):
        return None
    figure, axes = _figure(WIDTH, 3.6)
    looks = {"proxy": ("ppo", "reward (proxy)"), "gold": ("best_of_n", "judge (gold)")}
    everything = [b for bins in curves.values() for b in bins]
    low = min([0.5] + [b["confidence"] for b in everything] + [b["accuracy"] for b in everything])
    low = math.floor(low * 10) / 10
    axes.plot([low, 1], [low, 1], color=PALETTE["soft"], lw=1.2, ls="--", label="perfect")
    largest = max(b.get("count", 1) for b in everything)
    for name, bins in curves.items():
        if bins:
            colour, label = PALETTE[looks[name][0]], looks[name][1]
            x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
            axes.plot(x, y, color=colour, label=label)
            sizes = [12 + 90 * b.get("count", 1) / largest for b in bins]
            axes.scatter(x, y, s=sizes, color=colour, alpha=0.75, linewidths=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes.set_xlabel("confidence")
    axes.set_ylabel("right, on held-out texts")
    axes.legend(loc="upper left", handlelength=1.6)
    return figure


@styled
def curves(
    rows: Rows, panels: Mapping[str, Sequence[str]], colour: str, eval_colour: str = "soft"
) -> Figure | None:
    """Training curves under each other over the optimizer step.

    ``panels`` maps a title to the metric names to look for, the first one found being drawn; an
    ``eval_`` metric of the same name is drawn beside it.
    """
    found = []
    for title, names in panels.items():
        series = next((s for s in (_series(rows, name) for name in names) if s), None)
        held = next((s for s in (_series(rows, f"eval_{name}") for name in names) if s), None)
        if series or held:
            found.append((title, series, held))
    if not found:
        return None
    height = 0.55 + 1.15 * len(found)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    column = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, series, held) in zip(column, found, strict=True):
        axes.set_title(title, fontsize=9.5, pad=3)
        if series:
            few = "o" if len(series) < 3 else None
            axes.plot(*zip(*series, strict=True), color=PALETTE[colour], marker=few)
        if held:
            axes.plot(
                *zip(*held, strict=True), color=PALETTE[eval_colour], marker="o", ms=3.5, lw=1.2,
                ls="--", label="held out",
            )  # fmt: skip
            axes.legend(loc="best", fontsize=8.5)
        axes.margins(y=0.15)
        axes.locator_params(axis="y", nbins=4)
    column[-1].set_xlabel("optimizer step")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _placed(methods: Mapping[str, Any], x: str, y: str) -> dict[str, tuple[float, float]]:
    """Where each method lies, for those that have both numbers."""
    return {
        name: (float(methods[name][x]), float(methods[name][y]))
        for name in METHODS
        if name in methods and methods[name].get(x) is not None
        and methods[name].get(y) is not None
    }  # fmt: skip


def _point(axes: Axes, name: str, x: float, y: float) -> None:
    axes.scatter(
        [x], [y], s=62, marker=MARKERS[name], color=PALETTE[name], zorder=5,
        edgecolors=PALETTE["paper"], linewidths=1.4,
    )  # fmt: skip


def _frontier(axes: Axes, curve: Sequence[tuple[float, float]], right: float) -> None:
    if len(curve) < 2:
        return
    x, y = np.array(curve, dtype=float).T
    axes.plot(x, y, color=PALETTE["frontier"], lw=2, label="optimal frontier", zorder=3)
    top = float(np.interp(right, x, y))
    # The unreachable side of the frontier, shaded as far as the axes will go.
    ceiling = top + 0.12 * max(top - y[0], 1e-9)
    inside = x <= right
    axes.fill_between(
        np.append(x[inside], right), np.append(y[inside], top), ceiling,
        color=PALETTE["frontier"], alpha=0.07, linewidth=0,
    )  # fmt: skip
    axes.set_ylim(top=ceiling)


def _iso_objective(
    axes: Axes, results: Mapping[str, Any], details: Mapping[str, Any], right: float
) -> None:
    """The line reward − β·KL = J*, which touches the frontier where the optimum is."""
    beta, best = results["beta"], details.get("j_star")
    touching = [row for row in results.get("frontier") or [] if math.isclose(row["beta"], beta)]
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


def _trajectory(axes: Axes, rows: Rows, right: float) -> None:
    """PPO's own measurements while it trained, faint at first."""
    points = [
        (row["objective/kl"], row["objective/scores"])
        for row in rows
        if row.get("objective/kl") is not None and row.get("objective/scores") is not None
    ]
    points = [(x, y) for x, y in points if x <= right]
    if len(points) < 2:
        return
    x, y = np.array(points, dtype=float).T
    axes.plot(x, y, color=PALETTE["ppo"], lw=0.8, alpha=0.35, zorder=2)
    axes.scatter(
        x, y, s=9, color=PALETTE["ppo"], alpha=np.linspace(0.2, 0.7, len(x)), linewidths=0,
        zorder=2, label="PPO while training",
    )  # fmt: skip


def _label(
    axes: Axes,
    points: Mapping[str, tuple[tuple[float, float], str]],
    taken: list[Any],
    curve: Sequence[tuple[float, float]],
) -> None:
    """Write each name beside its point, where it covers neither a point, a name nor the curve."""
    figure = axes.figure
    figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
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


def _end_labels(axes: Axes, ends: Mapping[str, tuple[tuple[float, float], str]]) -> None:
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


def _series(rows: Rows, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
