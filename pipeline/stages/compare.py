"""Stage 5: the methods side by side, measured alike and against the optimum.

compare/results.json   every method's metrics, and the frontier
compare/details.json   how far the estimate of the optimum can be trusted
compare/samples.jsonl  for every evaluation prompt, what each method made of it
compare/measured/      one method's samples and scores each; a killed comparison goes on from them
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from common.files import read_json, write_json, write_text
from common.words import json_able
from pipeline.compare import best_of_n, columns, frontier, methods
from pipeline.compare.evaluate import (
    Evaluation,
    Metrics,
    evaluate_policy,
    objective_by_prompt,
    summarise,
)
from pipeline.compare.frontier import Array
from pipeline.compare.methods import BEST_OF_N, DPO, PPO, Method
from pipeline.compare.wording import number, signed
from pipeline.config import Experiment
from pipeline.config.choices import left_out
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.lm.hardware import policy_dtype
from pipeline.lm.models import load_checkpoint
from pipeline.output.console import is_main_process, say
from pipeline.output.metrics_file import read_metrics
from pipeline.report import figures
from pipeline.stages import tracking
from pipeline.stages.heldout import whole_texts
from pipeline.stages.reward_sources import gold_reward, judge_is_proxy, proxy_reward


@tracking.tracked("compare")
def run(experiment: Experiment) -> None:
    """Measure every policy that is there and write the comparison.

    Raises:
        UserError: there is no SFT model, which everything is measured against.
    """
    if not is_main_process():
        return
    folder = experiment.stage_dir("compare")
    evaluations = measure(experiment)
    results, details = compare(experiment, evaluations)
    rows = samples(evaluations, experiment.compare.best_of_n)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(folder / "samples.jsonl", "".join(lines))
    write_json(folder / "details.json", details)
    write_json(folder / "results.json", results)
    texts = [{"prompt": row["prompt"], **row["completions"]} for row in rows]
    tracking.log_samples(experiment, "compare", 0, texts)
    history = read_metrics(experiment.stage_dir("ppo") / "metrics.jsonl")
    tracking.log_comparison(results, lambda: figures.reward_kl(results, details, history))
    show(results, details)


# --- Measuring ----------------------------------------------------------------------------------


def measure(experiment: Experiment) -> dict[str, Evaluation]:
    """What each policy on disk makes of the evaluation prompts, by method, π_ref first.

    Sampling depends on nothing but the seed, the policy and the prompts, so a method measured
    before an interruption is read back instead; and PPO and DPO share their random numbers, which
    takes luck out of the difference between them.
    """
    folders, reference = _checkpoints(experiment), methods.reference()
    for stage, why in left_out(experiment).items():
        folders = {method: folder for method, folder in folders.items() if method.stage != stage}
        say(f"compare: {stage} is left out ({why})")
    present = [m for m, folder in folders.items() if (folder / "config.json").is_file()]
    if reference not in present:
        raise UserError(
            f"{folders[reference]}: there is no {reference.title} model to compare with; run"
            f" `rlhf {reference.stage}` with this config first"
        )
    for method, folder in folders.items():
        if method not in present:
            say(f"compare: {folder} is not there, so {method.name} is left out")
    missing = [method for method in present if not _work(experiment, method).is_file()]
    if missing:
        _measure_missing(experiment, missing)
    return {m.name: Evaluation(**read_json(_work(experiment, m))) for m in present}


def _measure_missing(experiment: Experiment, missing: list[Method]) -> None:
    """Evaluate ``missing`` and keep each as soon as it is there; one policy at a time in memory."""
    data, section = load_data(experiment), experiment.compare
    folders = _checkpoints(experiment)
    dtype = policy_dtype(experiment.model)
    proxy = proxy_reward(experiment)
    gold = proxy if judge_is_proxy(experiment) else gold_reward(experiment)
    reference, tokenizer = load_checkpoint(folders[methods.reference()], dtype)
    for method in missing:
        policy = reference
        if not method.reference:
            policy, tokenizer = load_checkpoint(folders[method], dtype)
        evaluation = evaluate_policy(
            policy,
            tokenizer,
            reference,
            data.eval_prompts,
            whole_texts(data.heldout, tokenizer),
            proxy=proxy,
            gold=gold,
            samples_per_prompt=(
                section.reference_samples if method.reference else section.samples_per_prompt
            ),
            max_new_tokens=experiment.generation.max_new_tokens,
            batch_size=experiment.generation.batch_size,
            seed=experiment.seed,
            label=f"compare {method.name}",
            kept=_samples(experiment, method),
        )
        write_json(_work(experiment, method), evaluation.to_json())
        _samples(experiment, method).unlink(missing_ok=True)
        del policy
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _samples(experiment: Experiment, method: Method) -> Path:
    return _work(experiment, method).with_suffix(".samples.jsonl")


def _checkpoints(experiment: Experiment) -> dict[Method, Path]:
    """Where the checkpoint of each method that has one is, or would be."""
    return {
        method: experiment.stage_dir(method.stage) / "model"
        for method in methods.METHODS
        if method.stage is not None
    }


def _work(experiment: Experiment, method: Method) -> Path:
    return experiment.stage_dir("compare") / "measured" / f"{method.name}.json"


# --- Comparing: arithmetic on the evaluations -----------------------------------------------------


def compare(
    experiment: Experiment, evaluations: dict[str, Evaluation]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of results.json and of details.json."""
    section, beta = experiment.compare, experiment.beta
    reference = evaluations[methods.reference().name]
    rewards = reference.grid(reference.proxy)
    # At β = 0 more reward is always better, so there is none.
    best = frontier.optimum(rewards, beta) if beta > 0 else None
    text_samples = min(section.samples_per_prompt, section.reference_samples)
    metrics: dict[str, Metrics] = {}
    objectives: dict[str, Array] = {}
    for name in (m.name for m in methods.METHODS if m.name in evaluations or m.stage is None):
        if name in evaluations:
            metrics[name] = summarise(evaluations[name], beta, text_samples)
            objectives[name] = objective_by_prompt(evaluations[name], beta)
        else:
            metrics[name], objectives[name] = best_of_n.measure(
                reference, section.best_of_n, beta, text_samples
            )
    base = objectives[methods.reference().name]
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
        "methods": metrics,
        "frontier": [asdict(point) for point in curve],
        "prompts": len(reference.prompts),
        "samples_per_prompt": section.samples_per_prompt,
        "reference_samples": section.reference_samples,
    }
    details = {
        **_optimum(rewards, best, beta, *bootstrap),
        "best_of_n": section.best_of_n,
        "best_of_n_kl": best_of_n.KL_NOTE,
        "judge_is_proxy": judge_is_proxy(experiment),
        "ppo_minus_dpo": _difference(objectives, room, *bootstrap),
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


def _difference(
    objectives: dict[str, Array], room: Array | None, resamples: int, seed: int
) -> dict[str, Any] | None:
    """PPO's optimality less DPO's. Paired by prompt, so it is sharper than two intervals are."""
    if not {PPO.name, DPO.name} <= objectives.keys():
        return None
    return _share(objectives[PPO.name] - objectives[DPO.name], room, resamples, seed)


def samples(evaluations: dict[str, Evaluation], n: int) -> list[dict[str, Any]]:
    """The rows of samples.jsonl: a prompt and each method's answer to it, not cherry-picked.

    The first sample of each policy; for best-of-n the best by proxy of π_ref's first n.
    """
    base = evaluations[methods.reference().name]
    rewards = base.grid(base.proxy)
    rows = []
    for i, prompt in enumerate(base.prompts):
        picked: dict[str, tuple[Evaluation, int]] = {}
        for method in methods.METHODS:
            if method.stage is None:
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


# --- Telling ------------------------------------------------------------------------------------

# Characters in a line where the output is no terminal: more than the table needs.
WIDE = 240


def show(results: dict[str, Any], details: dict[str, Any]) -> None:
    """Print the table and the summary on stdout; without colours and folds where it is a file."""
    terminal = sys.stdout.isatty()
    console = Console(
        force_terminal=terminal, width=None if terminal else WIDE, markup=False, highlight=False
    )
    console.print(table(results))
    print(summary(results, details), flush=True)


def table(results: dict[str, Any]) -> Table:
    """The report's numbers with a method a column, which a narrow terminal has room for."""
    measured = methods.present(results["methods"])
    rows = [results["methods"][method.name] for method in measured]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column("", no_wrap=True)
    for method in measured:
        drawn.add_column(method.title, justify="right")
    for column in columns.shown(rows):
        cells = (f"{column.value(row)} {column.range(row)}".rstrip() for row in rows)
        drawn.add_row(column.heading, *cells)
    return drawn


def summary(results: dict[str, Any], details: dict[str, Any]) -> str:
    """One line: the scale that optimality is measured on, and PPO against DPO on it."""
    line = (
        f"β = {results['beta']:g}: the objective is {number(details['objective_ref'])} for"
        f" {methods.reference().title}"
    )
    if details["j_star"] is None:
        line += ", and as KL costs nothing there is no best"
    else:
        line += f" and {number(details['j_star'])} at best"
    difference = details["ppo_minus_dpo"]
    if difference and difference["optimality"] is not None:
        points = [difference["optimality"], *(difference["optimality_ci"] or ())]
        points = [signed(100 * value, 0) for value in points]
        line += f"; optimality {PPO.title} − {DPO.title}: {points[0]} points"
        line += f" [{points[1]} to {points[2]}]" if len(points) > 1 else ""
    return f"{line}; {BEST_OF_N.title} with N = {details['best_of_n']}"
