"""Reward against KL of one comparison, and of several: the seeds and β of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.compare.methods import Method, shown
from pipeline.report.figures.plane import Ends, Point, Rows, Spot, plane
from pipeline.report.plotting import styled

# What training logged of KL and reward, the first pair that is there: PPO's own; TRL's trainers';
# at evaluations. TRL logs the mean KL of a token; times the mean length it is a completion's.
PATHS = (
    (("objective/kl_exact",), "objective/scores"),
    (("kl", "completions/mean_length"), "rewards/proxy/mean"),
    (("eval_kl",), "eval_scores"),
)


@styled
def reward_kl(
    results: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
    histories: Mapping[str, Rows] | None = None,
) -> Figure | None:
    """Draw one comparison: the optimal frontier, every policy, and the on-policy ones' way there.

    Args:
        results, details: content of compare/results.json and compare/details.json.
        histories: metrics.jsonl by policy.

    Returns:
        None where no policy has both numbers.
    """
    details, histories = details or {}, histories or {}
    policies = shown(results)
    spots = _spots(results, policies)
    if not spots:
        return None
    reference = next((m for m in policies if m.kind == "reference"), None)
    start = results["methods"][reference.name].get("reward") if reference else None
    names = {m.name: str(place) for place, m in enumerate(policies)}
    paths = {names[n]: path(rows) for n, rows in histories.items() if n in names}
    return plane(
        spots,
        results.get("frontier") or [],
        start=start,
        beta=results["beta"],
        best=details.get("j_star"),
        cap=details.get("kl_cap"),
        paths={key: points for key, points in paths.items() if points},
        colours={str(place): m.colour for place, m in enumerate(policies)},
    )


@styled
def reward_kl_over(trials: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw several comparisons, such as the seeds and β of a sweep, as one picture.

    A policy at one β is one mark, the mean over seeds, with whiskers from the lowest seed to the
    highest; a policy's β are joined. The frontier is the mean over seeds.

    Args:
        trials: content of results.json, one a trial.

    Returns:
        None where no policy has both numbers.
    """
    found: dict[tuple[str, float], list[Point]] = {}
    looks: dict[str, Method] = {}
    for results in trials:
        for method in shown(results):
            row = results["methods"][method.name]
            if row.get("kl") is None or row.get("reward") is None:
                continue
            beta = method.beta if method.beta is not None else results["beta"]
            beta = 0.0 if method.kind == "reference" else beta
            looks.setdefault(method.name, method)
            found.setdefault((method.name, beta), []).append((row["kl"], row["reward"]))
    if not found:
        return None
    places = {name: str(place) for place, name in enumerate(looks)}
    spots, named = [], set()
    for (name, beta), points in sorted(found.items(), key=lambda item: -item[0][1]):
        method, (x, y) = looks[name], np.array(points, dtype=float).T
        many = len(points) > 1
        spots.append(
            Spot(
                key=places[name] if name not in named else f"{places[name]}-{beta:g}",
                label=method.title,
                kl=float(x.mean()),
                reward=float(y.mean()),
                marker=method.marker,
                colour=method.colour,
                kl_ends=(float(x.min()), float(x.max())) if many else None,
                reward_ends=(float(y.min()), float(y.max())) if many else None,
                bound=method.kind == "choice",
                line=name,
                small=name in named,
            )
        )
        named.add(name)
    start = next((s.reward for s in spots if looks[s.line or ""].kind == "reference"), None)
    return plane(spots, mean_frontier(trials), start=start)


def mean_frontier(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over ``trials`` of the frontier's points that all of them have."""
    each = [{row["beta"]: row for row in trial.get("frontier") or []} for trial in trials]
    if not each:
        return []
    betas = sorted(set.intersection(*(set(rows) for rows in each)))
    return [
        {
            "beta": beta,
            "kl": float(np.mean([rows[beta]["kl"] for rows in each])),
            "reward": float(np.mean([rows[beta]["reward"] for rows in each])),
            "trusted": all(rows[beta].get("trusted") is not False for rows in each),
            **_mean_floor([rows[beta] for rows in each]),
        }
        for beta in betas
    ]


def _mean_floor(rows: Rows) -> dict[str, float]:
    """The mean of the floor's points at one β, which is one of a floor; none where one has none."""
    return {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("floor_kl", "floor_reward")
        if all(row.get(key) is not None for row in rows)
    }


def path(rows: Rows) -> list[Point]:
    """Return a policy's (KL in nats a completion, reward) while it trained; empty where it logged
    no pair of them."""
    for kl, reward in PATHS:
        points = [
            (math.prod(float(row[name]) for name in kl), float(row[reward]))
            for row in rows
            if None not in [row.get(name) for name in (*kl, reward)]
        ]
        if len(points) > 1:
            return points
    return []


def _spots(results: Mapping[str, Any], policies: Sequence[Method]) -> list[Spot]:
    """Every policy that has both numbers; those of one method at several β make a line."""
    several: dict[str, set[float | None]] = {}
    for method in policies:
        if _by_beta(method):
            several.setdefault(method.method, set()).add(method.beta)
    spots = []
    for place, method in enumerate(policies):
        row = results["methods"][method.name]
        if row.get("kl") is None or row.get("reward") is None:
            continue
        kl, reward = float(row["kl"]), float(row["reward"])
        joined = _by_beta(method) and len(several[method.method]) > 1
        spots.append(
            Spot(
                key=str(place),
                label=method.title,
                kl=kl,
                reward=reward,
                marker=method.marker,
                colour=method.colour,
                kl_ends=_ends(kl, row.get("kl_se")),
                reward_ends=_ends(reward, row.get("reward_se")),
                bound=method.kind == "choice",
                line=method.method if joined else None,
            )
        )
    return spots


def _by_beta(method: Method) -> bool:
    """True for a policy that may differ from others of its method by β alone, going by its name:
    ``dpo``, ``dpo-low``; ``ipo``, which DPO trains too, is something else."""
    rest = method.name.removeprefix(method.method)
    named = method.name.startswith(method.method) and not rest[:1].isalpha()
    return method.kind == "trained" and bool(method.method) and named


def _ends(value: float, error: float | None) -> Ends | None:
    return (value - 1.96 * error, value + 1.96 * error) if error else None
