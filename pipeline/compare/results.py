"""The arithmetic of the comparison: from what each policy made to results.json and details.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from common.words import json_able
from pipeline.compare import best_of_n, fluency, rows
from pipeline.compare.evaluate import Evaluation, Metrics
from pipeline.compare.gains import Bootstrap, Slopes
from pipeline.compare.intervals import Array
from pipeline.compare.methods import Method, named, reference, to_json
from pipeline.compare.yardstick import Yardstick, helpers
from pipeline.config import Experiment


def compare(
    experiment: Experiment, evaluations: dict[str, Evaluation], judge_is_proxy: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of results.json and of details.json.

    Args:
        judge_is_proxy: whether the judge is the reward itself.
    """
    section, beta = experiment.compare, experiment.beta
    scale = _scale(experiment, evaluations)
    measured = [
        replace(m, note=evaluations[m.name].note) if m.name in evaluations else m
        for m in named(experiment)
        if m.name in evaluations or m.kind == "choice"
    ]
    metrics: dict[str, Metrics] = {}
    objectives: dict[str, Array] = {}  # of those with KL
    for method in measured:
        if method.name in evaluations:
            folder = None if method.stage is None else experiment.stage_dir(method.stage)
            row, objective = rows.of_policy(evaluations[method.name], scale, folder)
        else:
            row, objective = rows.of_best_of_n(scale)
        metrics[method.name] = row if method.note is None else row | {"note": method.note}
        if objective is not None:
            objectives[method.name] = objective
    results = {
        "beta": beta,
        "policies": to_json(measured),
        "methods": metrics,
        "frontier": scale.yardstick.frontier(),
        "prompts": len(scale.sft.prompts),
        "samples_per_prompt": section.samples_per_prompt,
        "reference_samples": section.reference_samples,
    }
    details = {
        **scale.yardstick.details(),
        "best_of_n": section.best_of_n,
        "best_of_n_kl": best_of_n.KL_NOTE,
        "judge_is_proxy": judge_is_proxy,
        "fluency_model": _fluency_model(experiment, evaluations),
        "differences": _differences(measured, objectives, scale),
    }
    return json_able(results), json_able(details)


def _scale(experiment: Experiment, evaluations: Mapping[str, Evaluation]) -> rows.Scale:
    section, sft = experiment.compare, evaluations[reference().name]
    rewards = sft.grid(sft.proxy)
    return rows.Scale(
        sft=sft,
        beta=experiment.beta,
        yardstick=Yardstick.of(
            rewards,
            experiment.beta,
            section.frontier_betas,
            helpers(evaluations, reference().name),
        ),
        best_of_n=section.best_of_n,
        text_samples=min(section.samples_per_prompt, section.reference_samples),
        bootstrap=Bootstrap(section.bootstrap, experiment.seed),
        reward_slopes=Slopes.of((e, e.proxy) for e in evaluations.values()),
        gold_slopes=Slopes.of((e, e.gold) for e in evaluations.values()),
    )


def _fluency_model(experiment: Experiment, evaluations: Mapping[str, Evaluation]) -> str | None:
    """What judged the fluency of any policy; None where nothing did."""
    judged = any(evaluation.fluency_nll is not None for evaluation in evaluations.values())
    return fluency.named(experiment) if judged else None


def _differences(
    measured: Sequence[Method], objectives: Mapping[str, Array], scale: rows.Scale
) -> list[dict[str, Any]]:
    """Of every two policies the first's objective and optimality less the second's.

    Paired by prompt, so they are sharper than two intervals are. A policy without KL has neither.
    """
    policies = [m.name for m in measured if m.kind in ("trained", "checkpoint")]
    made = []
    for first, second in combinations([n for n in policies if n in objectives], 2):
        gained = objectives[first] - objectives[second]
        row: dict[str, Any] = {"first": first, "second": second, "objective": float(gained.mean())}
        row["objective_ci"] = scale.bootstrap.mean(gained)
        made.append(row | scale.optimality(gained))
    return made
