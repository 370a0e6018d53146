"""Proxy and gold against √KL: from scores of single completions to curves with intervals.

A curve's *gain* is its mean over prompts less π_ref's. Everything is kept a prompt at a time, so
that an interval can resample prompts, the independent draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compare import best_of_n
from pipeline.overoptimise.fits import LEVEL, Fit, Law, fit_with_intervals
from pipeline.ppo.upkeep.gold import GoldWatch

Array = NDArray[np.float64]


def numbers(samples: int) -> list[int]:
    """The n of best-of-n: 1, 2, 4, … and ``samples`` itself."""
    powers = [2**i for i in range(samples.bit_length()) if 2**i < samples]
    return [*powers, samples]


@dataclass(frozen=True)
class Curve:
    """Points of ever more optimisation, π_ref first; all ``(P, K)``, a prompt a row.

    Attributes:
        kl: nats a completion. proxy, gold: in standard deviations over π_ref's samples.
    """

    law: Law
    kl: Array
    proxy: Array
    gold: Array

    def draw(self, rows: NDArray[np.int64] | slice = slice(None)) -> tuple[Array, Array, Array]:
        """√KL and the gains of proxy and gold over the prompts ``rows``: ``(K,)`` each."""
        kl, proxy, gold = (column[rows].mean(axis=0) for column in (self.kl, self.proxy, self.gold))
        return np.sqrt(np.maximum(kl, 0.0)), proxy - proxy[0], gold - gold[0]


def best_of_n_curve(proxy: Array, gold: Array) -> Curve:
    """Best-of-n by ``proxy`` for every n of :func:`numbers`, from one set of samples ``(P, N)``.

    For each n the expectation over all draws of n from the N samples: unbiased, and of far less
    noise than one draw of n each (Nakano et al. 2021, appendix I). KL is log n − (n−1)/n.
    """
    prompts, samples = proxy.shape
    sizes = numbers(samples)
    chances = [best_of_n.weights(proxy, n) for n in sizes]
    best, judged = (
        np.stack([(weight * values).sum(axis=1) for weight in chances], axis=1)
        for values in (proxy, gold)
    )
    kl = np.array([best_of_n.kl_bound(n) for n in sizes])
    return Curve("bon", np.tile(kl, (prompts, 1)), best, judged)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several proxies' own curves at the same n: what one of them is expected to do."""
    columns = ([getattr(c, name) for c in curves] for name in ("kl", "proxy", "gold"))
    return Curve(curves[0].law, *(np.mean(column, axis=0) for column in columns))


def ppo_curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """A PPO run's evaluations, the one before training first.

    Args:
        rows: of its evaluations.jsonl, on the common scale.
    """
    kl, proxy, gold = (
        np.array([row[name] for row in rows], dtype=np.float64).T
        for name in ("kl", "scores", "gold")
    )
    return Curve("rl", kl, proxy, gold)


def turn(curve: Curve) -> int | None:
    """The point where gold is highest, if it has turned down by the last; else None.

    Down is as `ppo.gold_stop` has it: below the highest by more than the interval of the
    difference, paired by prompt, for all pairs of points.
    """
    watch = GoldWatch()
    points = curve.gold.shape[1]
    for point in range(points):
        watch.look(point, curve.gold[:, point].tolist(), points)
    return watch.step if watch.fallen else None


def describe(curves: Sequence[Curve], resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of one curve, or of several runs of one method that share a law.

    Returns:
        ``curves``: for each ``points`` and ``turn``, the index of the point after which gold fell,
        or None. A point has ``kl``, ``root_kl``, ``level``, the proxy's mean itself, and the gains
        ``proxy``, ``gold`` and ``gap``, their difference, with ``_ci`` each. ``fits``: of ``proxy``
        and of ``gold``, through the points of all.
    """
    rng = np.random.default_rng(seed)
    prompts = len(curves[0].gold)
    resampled = [rng.integers(prompts, size=prompts) for _ in range(resamples)]
    draws = [[curve.draw(rows) for curve in curves] for rows in resampled]
    shown = []
    for at, curve in enumerate(curves):
        d, proxy, gold = curve.draw()
        levels = curve.proxy.mean(axis=0)
        spread = [np.array([draw[at][i] for draw in draws]) for i in (1, 2)]
        columns = {
            "proxy": (proxy, spread[0]),
            "gold": (gold, spread[1]),
            "gap": (proxy - gold, spread[0] - spread[1]),
        }
        points = [
            {"kl": float(d[k] ** 2), "root_kl": float(d[k]), "level": float(levels[k])}
            | {name: float(value[k]) for name, (value, _) in columns.items()}
            | {f"{name}_ci": interval(drawn[:, k]) for name, (_, drawn) in columns.items()}
            for k in range(len(d))
        ]
        shown.append({"points": points, "turn": turn(curve)})
    fits: dict[str, Fit | None] = {}
    whole = [curve.draw() for curve in curves]
    for i, name in ((1, "proxy"), (2, "gold")):
        d, gain = _joined(whole, i)
        fits[name] = fit_with_intervals(
            curves[0].law, d, gain, [_joined(draw, i) for draw in draws]
        )
    return {"curves": shown, "fits": {k: f and f.to_json() for k, f in fits.items()}}


def _joined(parts: Sequence[tuple[Array, Array, Array]], column: int) -> tuple[Array, Array]:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[column] for p in parts])


def against(single: Curve, other: Curve, resamples: int, seed: int) -> dict[str, Any]:
    """Two curves at their last points, paired by prompt.

    Returns:
        ``overstated``, what ``other`` claims less gold, both as they are and 0 on average for a
        single reward of π_ref's samples; ``overstated_saved``, that of ``single`` less that of
        ``other``; ``gap_saved``, the same of the gains over π_ref; ``gold_gained``, gold of
        ``other`` less that of ``single``. With ``_ci`` each.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(single.gold), size=(resamples, len(single.gold)))
    over, other_over = (c.proxy[:, -1] - c.gold[:, -1] for c in (single, other))
    start, other_start = (c.proxy[:, 0] - c.gold[:, 0] for c in (single, other))
    gold, other_gold = (c.gold[:, -1] - c.gold[:, 0] for c in (single, other))
    found: dict[str, Any] = {}
    for name, values in (
        ("overstated", other_over),
        ("overstated_saved", over - other_over),
        ("gap_saved", (over - start) - (other_over - other_start)),
        ("gold_gained", other_gold - gold),
    ):
        found[name] = float(values.mean())
        found[f"{name}_ci"] = interval(values[rows].mean(axis=1))
    return found


def interval(values: Array) -> tuple[float, float] | None:
    """The 95 % percentile interval; None without draws."""
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
