"""What the judge says beside the reward, and how well both are calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.compare.methods import shown
from pipeline.report.plotting import PALETTE, figure, label_ends, label_points, mark, styled

Rows = Sequence[Mapping[str, Any]]
DOTS = 600  # single completions in all: more are one blot


@styled
def proxy_gold(results: Mapping[str, Any], samples: Rows, same: bool = False) -> Figure | None:
    """The judge's mark against the reward: single completions, and each policy's mean.

    Args:
        samples: rows of samples.jsonl. same: the judge is the reward.
    """
    rows = results["methods"]
    placed = {
        method: (float(rows[method.name]["reward"]), float(rows[method.name]["gold"]))
        for method in shown(results)
        if rows[method.name].get("reward") is not None and rows[method.name].get("gold") is not None
    }
    if not placed:
        return None
    drawn, axes = figure(3.7 if len(placed) <= 6 else 4.6)
    alpha, dots = (0.28 if len(placed) <= 6 else 0.15), list(placed.values())
    for method in placed:
        pairs = [
            (row["rewards"][method.name], row["gold"][method.name])
            for row in samples[: max(1, DOTS // len(placed))]
            if method.name in (row.get("rewards") or {}) and method.name in (row.get("gold") or {})
        ]
        if pairs:
            x, y = np.array(pairs, dtype=float).T
            dots += [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
            axes.scatter(x, y, s=11, color=method.colour, alpha=alpha, linewidths=0)
    _within(axes, np.array(dots), np.array(list(placed.values())))
    axes.axhline(0, color=PALETTE["soft"], lw=0.8, ls=":")
    axes.axvline(0, color=PALETTE["soft"], lw=0.8, ls=":")
    start = next((place for method, place in placed.items() if method.kind == "reference"), None)
    for method, (x, y) in placed.items():
        if method.kind != "reference" and start is not None:
            axes.annotate(
                "", (x, y), xytext=start,
                arrowprops={"arrowstyle": "-", "color": method.colour, "lw": 1.2, "alpha": 0.7},
            )  # fmt: skip
        mark(axes, x, y, method)
    axes.set_xlabel("reward (what was optimised)")
    axes.set_ylabel("the same reward" if same else "judge (never optimised)")
    label_points(axes, {m.title: (p, m.colour) for m, p in placed.items()}, [], [])
    return drawn


def _within(axes: Axes, dots: np.ndarray, means: np.ndarray) -> None:
    """Show the means and all but the outermost single completions."""
    for column, limit in ((0, axes.set_xlim), (1, axes.set_ylim)):
        low, high = np.percentile(dots[:, column], [2, 98])
        low, high = min(low, means[:, column].min()), max(high, means[:, column].max())
        spare = 0.08 * (high - low) or 1.0
        limit(float(low - spare), float(high + spare))


@styled
def calibration(reward: Mapping[str, Any]) -> Figure | None:
    """The share of positive texts against the classifiers' probability of it."""
    measured = {name: (reward.get(name) or {}).get("bins") or [] for name in ("proxy", "gold")}
    if not any(measured.values()):
        return None
    drawn, axes = figure(3.4)
    looks = {"proxy": ("accent", "reward (proxy)"), "gold": ("second", "judge (gold)")}
    axes.plot([0, 1], [0, 1], color=PALETTE["soft"], lw=1.2, ls="--", label="perfect")
    largest = max(b["texts"] for bins in measured.values() for b in bins)
    for name, bins in measured.items():
        if bins:
            colour, label = PALETTE[looks[name][0]], looks[name][1]
            x, y = [b["predicted"] for b in bins], [b["positive"] for b in bins]
            axes.plot(x, y, color=colour, lw=1.4, label=label)
            sizes = [12 + 110 * b["texts"] / largest for b in bins]
            axes.scatter(x, y, s=sizes, color=colour, alpha=0.75, linewidths=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes.set_xlabel("probability of positive, as the classifier says")
    axes.set_ylabel("share positive, as people say")
    axes.legend(loc="best", handlelength=1.6)
    return drawn


@styled
def gold_kl(rows: Rows) -> Figure | None:
    """Reward and judge over √KL, as PPO's evaluations measured them; None from fewer than two."""
    names = ("eval_kl", "eval_scores", "eval_gold", "eval_gold_se")
    found = [[row.get(name) for name in names] for row in rows if row.get("eval_gold") is not None]
    points = [row for row in found if None not in row[:3]]
    if len(points) < 2:
        return None
    drawn, axes = figure(3.2)
    kl, reward, gold, error = np.array(points, dtype=float).T
    root = np.sqrt(np.maximum(kl, 0.0))
    axes.plot(root, reward, color=PALETTE["accent"], ls="--", marker="o", ms=4, mfc="none")
    axes.plot(root, gold, color=PALETTE["second"], marker="o", ms=4)
    low, high = gold - 1.96 * np.nan_to_num(error), gold + 1.96 * np.nan_to_num(error)
    axes.vlines(root, low, high, color=PALETTE["second"], lw=1, alpha=0.7)
    axes.set_xlabel("√KL from the reference, KL in nats a completion")
    axes.set_ylabel("mean score")
    label_ends(
        axes,
        {
            "reward": ((root[-1], reward[-1]), PALETTE["accent"]),
            "judge": ((root[-1], gold[-1]), PALETTE["second"]),
        },
    )
    return drawn
