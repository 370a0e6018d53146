"""The report's pictures: each a matplotlib Figure, or None where the numbers for it are missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.compare.methods import PPO, SFT, Method, present
from pipeline.report.plotting import PALETTE, WIDTH, figure, label_ends, label_points, styled

Rows = Sequence[Mapping[str, Any]]
Point = tuple[float, float]


@styled
def reward_kl(results: Mapping[str, Any], details: Mapping[str, Any], ppo: Rows) -> Figure | None:
    """Mean reward against KL: the optimal frontier, every method, and PPO's way there."""
    placed = _placed(results["methods"], "kl", "reward")
    frontier = sorted(results.get("frontier") or [], key=lambda row: row["kl"])
    if not placed:
        return None
    drawn, axes = figure(3.7)
    boxes: list[Any] = []
    reference = results["methods"].get(SFT.name, {}).get("reward")
    curve = [(0.0, reference)] if reference is not None and frontier else []
    curve += [(row["kl"], row["reward"]) for row in frontier]
    right = 1.25 * max([x for x, _ in placed.values()] + [0.4])
    ceiling = _frontier(axes, curve, right)
    trained = _trajectory(axes, ppo, right)
    lowest = min([y for _, y in placed.values()] + trained)
    highest = max([y for _, y in placed.values()] + trained + ceiling)
    spread = highest - lowest or 1.0
    axes.set_ylim(lowest - 0.06 * spread, highest + 0.02 * spread)
    for method, (x, y) in placed.items():
        _point(axes, method, x, y)
        if method.stage is None:  # its KL is an upper bound: it lies here or further left
            axes.annotate(
                "", (max(0.0, x - 0.09 * right), y), xytext=(x, y),
                arrowprops={"arrowstyle": "->", "color": method.colour, "lw": 1.2},
            )  # fmt: skip
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
    label_points(axes, {m.title: (p, m.colour) for m, p in placed.items()}, boxes, curve)
    axes.legend(loc="lower right", handlelength=1.6, labelcolor=PALETTE["soft"])
    return drawn


@styled
def proxy_gold(results: Mapping[str, Any], samples: Rows, same: bool = False) -> Figure | None:
    """The judge's mark against the reward: single completions, and each method's mean."""
    placed = _placed(results["methods"], "reward", "gold")
    if not placed:
        return None
    drawn, axes = figure(3.7)
    for method in present(results["methods"]):
        pairs = [
            (row["rewards"][method.name], row["gold"][method.name])
            for row in samples
            if method.name in (row.get("rewards") or {}) and method.name in (row.get("gold") or {})
        ]
        if pairs:
            x, y = np.array(pairs, dtype=float).T
            axes.scatter(x, y, s=11, color=method.colour, alpha=0.28, linewidths=0)
    axes.axhline(0, color=PALETTE["soft"], lw=0.8, ls=":")
    axes.axvline(0, color=PALETTE["soft"], lw=0.8, ls=":")
    for method, (x, y) in placed.items():
        if not method.reference and SFT in placed:
            axes.annotate(
                "", (x, y), xytext=placed[SFT],
                arrowprops={"arrowstyle": "-", "color": method.colour, "lw": 1.2, "alpha": 0.7},
            )  # fmt: skip
        _point(axes, method, x, y)
    axes.set_xlabel("reward (what was optimised)")
    axes.set_ylabel("the same reward" if same else "judge (never optimised)")
    label_points(axes, {m.title: (p, m.colour) for m, p in placed.items()}, [], [])
    return drawn


@styled
def optimality(methods: Mapping[str, Any]) -> Figure | None:
    """How much of the possible gain each method reaches, with its interval."""
    shown = {
        method: methods[method.name]
        for method in present(methods)
        if not method.reference and methods[method.name].get("optimality") is not None
    }
    if not shown:
        return None
    drawn, axes = figure(0.75 + 0.45 * len(shown))
    upwards = list(reversed(shown.items()))
    for at, (method, row) in enumerate(upwards):
        axes.barh(at, row["optimality"], height=0.55, color=method.colour, alpha=0.85)
        ci = row.get("optimality_ci")
        if ci:
            axes.plot(ci, [at, at], color=PALETTE["ink"], lw=1.4)
            axes.plot(ci, [at, at], color=PALETTE["ink"], marker="|", ms=8, lw=0)
    axes.set_yticks(range(len(shown)), [method.title for method, _ in upwards])
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axes.axvline(0, color=PALETTE["soft"], lw=1)
    axes.axvline(1, color=PALETTE["frontier"], lw=1.2, ls="--")
    axes.grid(False, axis="y")
    highest = max([1.0] + [(row.get("optimality_ci") or [0, 0])[1] for row in shown.values()])
    lowest = min([0.0] + [row["optimality"] for row in shown.values()])
    axes.set_xlim(lowest, max(1.08, 1.03 * highest))
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    axes.set_xlabel("share of the possible gain")
    return drawn


@styled
def optimum(details: Mapping[str, Any], methods: Mapping[str, Any]) -> Figure | None:
    """The estimate of the optimum as the number of reference samples doubles."""
    rows = [row for row in details.get("optimum") or [] if row.get("j_star") is not None]
    if len(rows) < 2:
        return None
    drawn, axes = figure(3.0)
    n = [row["n"] for row in rows]
    axes.plot(n, [row["j_star"] for row in rows], color=PALETTE["frontier"], marker="o", ms=4.5)
    ends: dict[str, Any] = {"optimum": ((n[-1], rows[-1]["j_star"]), PALETTE["frontier"])}
    for method in present(methods):
        value = methods[method.name].get("objective")
        if value is not None:
            axes.axhline(value, color=method.colour, lw=1.4, ls="--")
            ends[method.title] = ((n[-1], value), method.colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(n, [str(value) for value in n])
    axes.minorticks_off()
    axes.set_xlabel("reference samples a prompt, N")
    axes.set_ylabel("objective, reward − β·KL")
    label_ends(axes, ends)
    return drawn


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


@styled
def curves(rows: Rows, panels: Mapping[str, str], colour: str) -> Figure | None:
    """Training curves under each other over the optimizer step.

    ``panels`` maps a title to a metric's name; a panel without numbers is left out.
    """
    series = {title: _series(rows, name) for title, name in panels.items()}
    logged = {title: points for title, points in series.items() if points}
    if not logged:
        return None
    height = 0.55 + 1.15 * len(logged)
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    column = drawn.subplots(len(logged), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, points) in zip(column, logged.items(), strict=True):
        axes.set_title(title, fontsize=9.5, pad=3)
        few = "o" if len(points) < 3 else None
        axes.plot(*zip(*points, strict=True), color=colour, marker=few)
        axes.margins(y=0.15)
        axes.locator_params(axis="y", nbins=4)
    column[-1].set_xlabel("optimizer step")
    return drawn


def _placed(methods: Mapping[str, Any], x: str, y: str) -> dict[Method, Point]:
    """Where each method lies, for those that have both numbers."""
    rows = {method: methods[method.name] for method in present(methods)}
    return {
        method: (float(row[x]), float(row[y]))
        for method, row in rows.items()
        if row.get(x) is not None and row.get(y) is not None
    }


def _point(axes: Axes, method: Method, x: float, y: float) -> None:
    axes.scatter(
        [x], [y], s=80, marker=method.marker, color=method.colour, zorder=5,
        edgecolors=PALETTE["paper"], linewidths=1.4,
    )  # fmt: skip


def _frontier(axes: Axes, curve: Sequence[Point], right: float) -> list[float]:
    """Draw the frontier, shade what no policy can reach; return how high the picture should go."""
    if len(curve) < 2:
        return []
    x, y = np.array(curve, dtype=float).T
    axes.plot(x, y, color=PALETTE["frontier"], lw=2, label="optimal frontier", zorder=3)
    # Only as far as the samples tell: beyond the last point nothing is known.
    end = min(right, float(x[-1]))
    top = float(np.interp(end, x, y))
    ceiling = top + 0.12 * (top - float(y[0]))
    inside = x < end
    axes.fill_between(
        np.append(x[inside], end), np.append(y[inside], top), ceiling + abs(ceiling),
        color=PALETTE["frontier"], alpha=0.07, linewidth=0,
    )  # fmt: skip
    return [ceiling]


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


def _trajectory(axes: Axes, rows: Rows, right: float) -> list[float]:
    """PPO's own measurements while it trained, faint at first, and their running mean.

    Returns the running mean's rewards.
    """
    points: list[Point] = []
    for row in rows:
        kl, score = row.get("objective/kl_exact"), row.get("objective/scores")
        if kl is not None and score is not None:
            points.append((kl, score))
    if len(points) < 2:
        return []
    x, y = np.array(points, dtype=float).T
    width = max(1, len(x) // 8)
    smooth = [
        np.convolve(np.pad(v, (width - 1, 0), mode="edge"), np.full(width, 1 / width), "valid")
        for v in (x, y)
    ]
    inside = x <= right
    faint: Any = np.linspace(0.2, 0.7, len(x))[inside]
    axes.plot(
        *smooth, color=PPO.colour, lw=1.3, alpha=0.6, zorder=2, label=f"{PPO.title} while training"
    )
    axes.scatter(x[inside], y[inside], s=9, color=PPO.colour, alpha=faint, linewidths=0, zorder=2)
    return [float(value) for value in smooth[1]]


def _series(rows: Rows, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
