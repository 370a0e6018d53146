"""The arithmetic of the comparison: from what each policy made to results.json and details.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from common.words import json_able
from pipeline.compare import best_of_n, frontier
from pipeline.compare.evaluate import Evaluation, Metrics, objective_by_prompt, summarise
from pipeline.compare.frontier import Array
from pipeline.compare.methods import Method, named, reference, to_json
from pipeline.config import Experiment


def compare(
    experiment: Experiment, evaluations: dict[str, Evaluation], judge_is_proxy: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of results.json and of details.json.

    Args:
        judge_is_proxy: whether the judge is the reward itself.
    """
    section, beta = experiment.compare, experiment.beta
    base_samples = evaluations[reference().name]
    rewards = base_samples.grid(base_samples.proxy)
    # At β = 0 more reward is always better, so there is none.
    best = frontier.optimum(rewards, beta) if beta > 0 else None
    text_samples = min(section.samples_per_prompt, section.reference_samples)
    metrics: dict[str, Metrics] = {}
    objectives: dict[str, Array] = {}
    measured = [m for m in named(experiment) if m.name in evaluations or m.kind == "choice"]
    for name in (method.name for method in measured):
        if name in evaluations:
            metrics[name] = summarise(evaluations[name], beta, text_samples)
            objectives[name] = objective_by_prompt(evaluations[name], beta)
        else:
            metrics[name], objectives[name] = best_of_n.measure(
                base_samples, section.best_of_n, beta, text_samples
            )
    base = objectives[reference().name]
    room = None if best is None else best - base
    bootstrap = (section.bootstrap, experiment.seed)
    lowest_beta = min(section.frontier_betas)
    for name, row in metrics.items():
        row |= _share(objectives[name] - base, room, *bootstrap)
        row["kl_efficiency"] = frontier.kl_efficiency(
            rewards, row["reward"], row["kl"], lowest_beta
        )
    # β itself belongs on the curve: it is the point that PPO and DPO aim at.
    curve = frontier.frontier(rewards, [*section.frontier_betas, *([beta] if beta > 0 else [])])
    results = {
        "beta": beta,
        "policies": to_json(measured),
        "methods": metrics,
        "frontier": [asdict(point) for point in curve],
        "prompts": len(base_samples.prompts),
        "samples_per_prompt": section.samples_per_prompt,
        "reference_samples": section.reference_samples,
    }
    details = {
        **_optimum(rewards, best, beta, *bootstrap),
        "best_of_n": section.best_of_n,
        "best_of_n_kl": best_of_n.KL_NOTE,
        "judge_is_proxy": judge_is_proxy,
        "differences": _differences(measured, objectives, room, *bootstrap),
    }
    return json_able(results), json_able(details)


def _share(gain: Array, room: Array | None, resamples: int, seed: int) -> dict[str, Any]:
    """The share of the possible gain, and its interval; None each where there is no optimum."""
    if room is None:
        return {"optimality": None, "optimality_ci": None}
    interval = frontier.ratio_interval(gain, room, resamples, seed)
    return {"optimality": frontier.ratio(gain, room), "optimality_ci": interval}


def _optimum(
    rewards: Array, best: Array | None, beta: float, resamples: int, seed: int
) -> dict[str, Any]:
    """The two ends of the scale of optimality, and how far the upper one can be trusted."""
    ends: dict[str, Any] = {"objective_ref": float(rewards.mean()), "j_star": None}
    ends |= {"j_star_ci": None, "optimum": [], "kl_cap": frontier.kl_cap(rewards.shape[1])}
    if best is not None:
        ends["j_star"] = float(best.mean())
        ends["j_star_ci"] = frontier.mean_interval(best, resamples, seed)
        ends["optimum"] = [asdict(row) for row in frontier.doubling(rewards, beta)]
    return ends


def _differences(
    measured: Sequence[Method],
    objectives: Mapping[str, Array],
    room: Array | None,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Of every two policies the first's objective and optimality less the second's.

    Paired by prompt, so they are sharper than two intervals are.
    """
    policies = [m.name for m in measured if m.kind in ("trained", "checkpoint")]
    made = []
    for first, second in combinations(policies, 2):
        gain = objectives[first] - objectives[second]
        row: dict[str, Any] = {"first": first, "second": second, "objective": float(gain.mean())}
        row["objective_ci"] = frontier.mean_interval(gain, resamples, seed)
        made.append(row | _share(gain, room, resamples, seed))
    return made


def samples(
    methods: Sequence[Method], evaluations: dict[str, Evaluation], n: int
) -> list[dict[str, Any]]:
    """The rows of samples.jsonl: a prompt and each method's answer to it, not cherry-picked.

    The first sample of each policy; for best-of-n the best by proxy of π_ref's first n.
    """
    base = evaluations[reference().name]
    rewards = base.grid(base.proxy)
    rows = []
    for i, prompt in enumerate(base.prompts):
        picked: dict[str, tuple[Evaluation, int]] = {}
        for method in methods:
            if method.kind == "choice":
                best = best_of_n.pick(rewards[i], 0, n)
                picked[method.name] = (base, i * base.samples_per_prompt + best)
            elif method.name in evaluations:
                evaluation = evaluations[method.name]
                picked[method.name] = (evaluation, i * evaluation.samples_per_prompt)
        rows.append(
            {
                "prompt": prompt,
                "completions": {name: e.texts[at] for name, (e, at) in picked.items()},
                "rewards": {name: e.proxy[at] for name, (e, at) in picked.items()},
                "gold": {name: e.gold[at] for name, (e, at) in picked.items()},
            }
        )
    return rows
