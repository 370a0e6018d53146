"""Stage 5: SFT, PPO, DPO and best-of-N side by side, measured alike and against the optimum.

compare/results.json   every method's metrics, and the frontier
compare/details.json   how far the estimate of the optimum can be trusted
compare/samples.jsonl  for every evaluation prompt, what each method made of it
compare/measured/      one method's samples and scores each; a killed comparison goes on from them
"""

from __future__ import annotations

import gc
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.compare import frontier
from pipeline.compare.evaluate import (
    Evaluation,
    Metrics,
    distinct,
    evaluate_policy,
    objective_by_prompt,
    standard_error,
    summarise,
)
from pipeline.compare.frontier import Array
from pipeline.config import Experiment
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.lm.hardware import compute_dtype
from pipeline.lm.models import load_checkpoint
from pipeline.output.files import read_json, write_json, write_text
from pipeline.output.terminal import is_main_process, say
from pipeline.stages import tracking
from pipeline.stages.reward import gold_reward, proxy_reward

# The trained policies, π_ref first; best-of-N is made from π_ref's samples.
POLICIES = ("sft", "ppo", "dpo")
NAMES = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO", "best_of_n": "best-of-{n}"}
BEST_OF_N_KL = "upper bound log n − (n−1)/n, so its objective is a lower bound"


def run(experiment: Experiment) -> None:
    """Measure every policy that is there and write the comparison.

    Raises:
        UserError: there is no SFT model, which everything is measured against.
    """
    if not is_main_process():
        return
    folder = experiment.stage_dir("compare")
    tracking.setup(experiment, "compare")
    try:
        evaluations = measure(experiment)
        results, details = compare(experiment, evaluations)
        rows = samples(evaluations, experiment.compare.best_of_n)
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        write_text(folder / "samples.jsonl", "".join(lines))
        write_json(folder / "details.json", details)
        write_json(folder / "results.json", results)
        shown = [{"prompt": row["prompt"], **row["completions"]} for row in rows]
        tracking.log_samples(experiment, "compare", 0, shown)
    finally:
        tracking.finish()
    print(table(results, details), summary(results, details), sep="\n", flush=True)


# --- Measuring ----------------------------------------------------------------------------------


def measure(experiment: Experiment) -> dict[str, Evaluation]:
    """What each policy on disk makes of the evaluation prompts, by method, π_ref first.

    Sampling depends on nothing but the seed, the policy and the prompts, so a method measured
    before an interruption is read back instead; and PPO and DPO share their random numbers, which
    takes luck out of the difference between them.
    """
    present = [
        method for method in POLICIES if (_model(experiment, method) / "config.json").is_file()
    ]
    if "sft" not in present:
        raise UserError(
            f"{_model(experiment, 'sft')}: there is no SFT model to compare with; run `rlhf sft`"
            " with this config first"
        )
    for method in POLICIES:
        if method not in present:
            say(f"compare: {_model(experiment, method)} is not there, so {method} is left out")
    missing = [method for method in present if not _work(experiment, method).is_file()]
    if missing:
        _measure_missing(experiment, missing)
    return {method: Evaluation(**read_json(_work(experiment, method))) for method in present}


def _measure_missing(experiment: Experiment, methods: list[str]) -> None:
    """Evaluate ``methods`` and keep each as soon as it is there; one policy at a time in memory."""
    data, section = load_data(experiment), experiment.compare
    dtype = compute_dtype(experiment.model)
    proxy = proxy_reward(experiment)
    gold = proxy if _judge_is_proxy(experiment) else gold_reward(experiment)
    reference, tokenizer = load_checkpoint(_model(experiment, "sft"), dtype)
    for method in methods:
        policy = reference
        if method != "sft":
            policy, tokenizer = load_checkpoint(_model(experiment, method), dtype)
        evaluation = evaluate_policy(
            policy,
            tokenizer,
            reference,
            data.eval_prompts,
            data.heldout,
            proxy=proxy,
            gold=gold,
            samples_per_prompt=(
                section.reference_samples if method == "sft" else section.samples_per_prompt
            ),
            max_new_tokens=experiment.generation.max_new_tokens,
            batch_size=experiment.generation.batch_size,
            seed=experiment.seed,
            label=f"compare {method}",
        )
        write_json(_work(experiment, method), evaluation.to_json())
        del policy
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _model(experiment: Experiment, method: str) -> Path:
    return experiment.stage_dir(method) / "model"


def _work(experiment: Experiment, method: str) -> Path:
    return experiment.stage_dir("compare") / "measured" / f"{method}.json"


def _judge_is_proxy(experiment: Experiment) -> bool:
    section = experiment.reward
    return section.source != "sentiment" and section.gold in (None, section.source)


# --- Comparing: arithmetic on the evaluations -----------------------------------------------------


def compare(
    experiment: Experiment, evaluations: dict[str, Evaluation]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of results.json and of details.json."""
    section, beta = experiment.compare, experiment.beta
    reference = evaluations["sft"]
    rewards = reference.grid(reference.proxy)
    best = frontier.optimum(rewards, beta)
    text_samples = min(section.samples_per_prompt, section.reference_samples)
    metrics = {name: summarise(e, beta, text_samples) for name, e in evaluations.items()}
    objectives = {name: objective_by_prompt(e, beta) for name, e in evaluations.items()}
    metrics["best_of_n"], objectives["best_of_n"] = best_of_n(
        reference, section.best_of_n, beta, text_samples
    )
    base = objectives["sft"]
    room = best - base
    bootstrap = (section.bootstrap, experiment.seed)
    lowest_beta = min(section.frontier_betas)
    for name, row in metrics.items():
        gain = objectives[name] - base
        row["optimality"] = frontier.ratio(gain, room)
        row["optimality_ci"] = frontier.ratio_interval(gain, room, *bootstrap)
        row["kl_efficiency"] = frontier.kl_efficiency(
            rewards, row["reward"], row["kl"], lowest_beta
        )
    # β itself belongs on the curve: it is the point that PPO and DPO aim at.
    curve = frontier.frontier(rewards, [*section.frontier_betas, beta])
    results = {
        "beta": beta,
        "methods": metrics,
        "frontier": [asdict(point) for point in curve],
        "prompts": len(reference.prompts),
        "samples_per_prompt": section.samples_per_prompt,
        "reference_samples": section.reference_samples,
    }
    details = {
        **_optimum(rewards, best, beta, *bootstrap),
        "best_of_n": section.best_of_n,
        "best_of_n_kl": BEST_OF_N_KL,
        "judge_is_proxy": _judge_is_proxy(experiment),
        "ppo_minus_dpo": _difference(objectives, room, *bootstrap),
    }
    return _finite(results), _finite(details)


def _optimum(rewards: Array, best: Array, beta: float, resamples: int, seed: int) -> dict[str, Any]:
    """The two ends of the scale of optimality, and how far the upper one can be trusted."""
    return {
        "objective_ref": float(rewards.mean()),
        "j_star": float(best.mean()),
        "j_star_ci": frontier.mean_interval(best, resamples, seed),
        "optimum": [asdict(row) for row in frontier.doubling(rewards, beta)],
        "kl_cap": frontier.kl_cap(rewards.shape[1]),
    }


def _difference(
    objectives: dict[str, Array], room: Array, resamples: int, seed: int
) -> dict[str, Any] | None:
    """PPO's optimality less DPO's. Paired by prompt, so it is sharper than two intervals are."""
    if not {"ppo", "dpo"} <= objectives.keys():
        return None
    gain = objectives["ppo"] - objectives["dpo"]
    interval = frontier.ratio_interval(gain, room, resamples, seed)
    return {"optimality": frontier.ratio(gain, room), "optimality_ci": interval}


def best_of_n(
    reference: Evaluation, n: int, beta: float, text_samples: int
) -> tuple[Metrics, Array]:
    """Metrics of taking the best of ``n`` π_ref samples by proxy, and its objective a prompt.

    Each is the expectation over all draws of n from the N samples there are. It is no policy with
    next-token probabilities: perplexity is None, and its KL is an upper bound, so that the
    objective and all that follows from it are lower bounds. Distinct-n is taken over the best of
    disjoint blocks of n samples, and None where there are fewer blocks than ``text_samples``.
    """
    rewards = reference.grid(reference.proxy)
    weights = frontier.best_of_n_weights(rewards, n)

    def expected(values: Any) -> Array:
        return (weights * reference.grid(values)).sum(axis=1)

    positive = expected([float(score > 0) for score in reference.gold])
    reward, gold = expected(reference.proxy), expected(reference.gold)
    kl = frontier.best_of_n_kl(n)
    blocks = rewards.shape[1] // n
    texts = [
        reference.texts[prompt * rewards.shape[1] + _best(row, block * n, n)]
        for prompt, row in enumerate(rewards)
        for block in range(min(blocks, text_samples))
    ]
    comparable = blocks >= text_samples
    metrics = {
        "reward": float(reward.mean()),
        "reward_se": standard_error(reward[:, None]),
        "proxy_positive": float(expected([float(score > 0) for score in reference.proxy]).mean()),
        "gold": float(gold.mean()),
        "gold_se": standard_error(gold[:, None]),
        "gold_positive": float(positive.mean()),
        "gold_positive_se": standard_error(positive[:, None]),
        "kl": kl,
        "kl_se": None,
        "objective": float((reward - beta * kl).mean()),
        "perplexity": None,
        "distinct_1": distinct(texts, 1) if comparable else None,
        "distinct_2": distinct(texts, 2) if comparable else None,
        "length": float(expected(reference.lengths).mean()),
        "ended": float(expected(reference.ended).mean()),
        "samples": len(reference.texts),
    }
    return metrics, reward - beta * kl


def _best(rewards: Array, start: int, n: int) -> int:
    """Index of the first of the highest of ``rewards[start : start + n]``."""
    return start + int(np.argmax(rewards[start : start + n]))


def samples(evaluations: dict[str, Evaluation], n: int) -> list[dict[str, Any]]:
    """The rows of samples.jsonl: a prompt and each method's answer to it, not cherry-picked.

    The first sample of SFT, PPO and DPO; for best-of-n the best by proxy of π_ref's first n.
    """
    rewards = evaluations["sft"].grid(evaluations["sft"].proxy)
    rows = []
    for i, prompt in enumerate(evaluations["sft"].prompts):
        picked = {name: (e, i * e.samples_per_prompt) for name, e in evaluations.items()}
        first = picked["sft"][1]
        picked["best_of_n"] = (evaluations["sft"], first + _best(rewards[i], 0, n))
        rows.append(
            {
                "prompt": prompt,
                "completions": {name: e.texts[at] for name, (e, at) in picked.items()},
                "rewards": {name: e.proxy[at] for name, (e, at) in picked.items()},
                "gold": {name: e.gold[at] for name, (e, at) in picked.items()},
            }
        )
    return rows


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- Telling ------------------------------------------------------------------------------------

_COLUMNS = (
    ("reward", "reward", "{:.2f}"),
    ("gold", "gold", "{:.2f}"),
    ("gold > 0", "gold_positive", "{:.0%}"),
    ("KL", "kl", "{:.2f}"),
    ("J", "objective", "{:.2f}"),
    ("optimality", "optimality", "{:.2f}"),
    ("95 % interval", "optimality_ci", ""),
    ("perplexity", "perplexity", "{:.1f}"),
    ("distinct-2", "distinct_2", "{:.2f}"),
    ("length", "length", "{:.1f}"),
    ("ended", "ended", "{:.0%}"),
)


def table(results: dict[str, Any], details: dict[str, Any]) -> str:
    """The methods' metrics as lines of text, a method a line."""
    lines = [["", *(title for title, _, _ in _COLUMNS)]]
    for name, row in results["methods"].items():
        cells = [_cell(row[key], form) for _, key, form in _COLUMNS]
        lines.append([NAMES[name].format(n=details["best_of_n"]), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "–"
    return form.format(value) if form else f"[{value[0]:.2f}, {value[1]:.2f}]"


def summary(results: dict[str, Any], details: dict[str, Any]) -> str:
    """One line: the scale that optimality is measured on, and PPO against DPO on it."""
    line = (
        f"β = {results['beta']:g}: J is {details['objective_ref']:.2f} for SFT and"
        f" {details['j_star']:.2f} at best"
    )
    difference = details["ppo_minus_dpo"]
    if difference and difference["optimality"] is not None:
        low, high = difference["optimality_ci"]
        line += f"; optimality PPO − DPO {difference['optimality']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return line
