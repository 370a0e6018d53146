"""What training left beside a policy: what it cost, and how the pairs it learnt from fared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import read_json
from pipeline.compare.evaluate import Metrics

# Of a stage's record, of cost.json and of preference.json: a metric's name to the key there.
_STAGE = {"train_seconds": "seconds", "train_memory_gib": "peak_memory_gib"}
_COST = {
    "train_reward_queries": "reward_queries",
    "train_completions": "completions",
    "train_tokens": "tokens",
}
_PREFERENCE = {
    "implicit_accuracy": "accuracy",
    "implicit_margin": "margin",
    "chosen_logp_start": "chosen_logp_start",
    "chosen_logp_end": "chosen_logp_end",
    "rejected_logp_start": "rejected_logp_start",
    "rejected_logp_end": "rejected_logp_end",
    "preference_pairs": "pairs",
    "preference_held_out": "held_out",
}


def records(folder: Path | None) -> Metrics:
    """The metrics from a policy's folder; None each where nothing was recorded.

    Args:
        folder: of the stage that trained it; None where no stage did.
    """
    row = _chosen(folder, "stage.json", _STAGE) | _chosen(folder, "cost.json", _COST)
    row |= _chosen(folder, "preference.json", _PREFERENCE)
    for answer in ("chosen", "rejected"):
        start, end = row[f"{answer}_logp_start"], row[f"{answer}_logp_end"]
        row[f"{answer}_logp_change"] = None if start is None or end is None else end - start
    return row


def per_answer(n: int) -> Metrics:
    """What one answer asks for once training is over: of the best of ``n`` n of both; 1 is any
    policy, which needs one completion and no reward."""
    return {"answer_completions": n, "answer_reward_queries": n if n > 1 else 0}


def apart(results: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Metrics]]:
    """``results`` without seconds and memory, and these by policy.

    They differ from run to run and by machine. results.json is the same to the bit for the same
    experiment, interrupted or not; so they stand in details.json, under ``training``.
    """
    methods: Mapping[str, Metrics] = results["methods"]
    kept = {
        name: {key: value for key, value in row.items() if key not in _STAGE}
        for name, row in methods.items()
    }
    taken = {name: {key: row.get(key) for key in _STAGE} for name, row in methods.items()}
    return {**results, "methods": kept}, taken


def together(results: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`apart` parted, read from the two files; one without it is as it is."""
    found = details.get("training") or {}
    methods = {name: {**row, **found.get(name, {})} for name, row in results["methods"].items()}
    return {**results, "methods": methods}


def _chosen(folder: Path | None, name: str, keys: dict[str, str]) -> Metrics:
    path = None if folder is None else folder / name
    found: dict[str, Any] = read_json(path) if path is not None and path.is_file() else {}
    return {metric: found.get(key) for metric, key in keys.items()}
