"""Stage 5: the methods side by side, measured alike and against the optimum.

compare/results.json       every policy's metrics, and the frontier; results.csv: a row a policy
compare/details.json       how far the estimate of the optimum can be trusted
compare/samples.jsonl      for every evaluation prompt, what each policy made of it
compare/samples_all.jsonl  an answer a line: several of each policy
compare/examples.json      answers that stand out by their numbers
compare/measured/          a policy's samples and scores each; a killed comparison goes on from them
compare/measured_from.json the fingerprint of the stage that made each policy that was measured
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.files import read_json, write_json, write_text
from pipeline.compare import examples, kept_reference, methods, training
from pipeline.compare.alike import other_tokens, same_encoding
from pipeline.compare.evaluate import Evaluation, evaluate_policy
from pipeline.compare.fluency import judge
from pipeline.compare.methods import Method
from pipeline.compare.results import compare
from pipeline.compare.spreadsheet import csv_text
from pipeline.compare.telling import show
from pipeline.config import Experiment
from pipeline.config.choices import left_out
from pipeline.data.records import Prompt
from pipeline.data.splits import ExperimentData, load_data
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.hardware import policy_dtype
from pipeline.lm.kept import kept_samples
from pipeline.lm.models import load_checkpoint
from pipeline.output.console import is_main_process, say
from pipeline.output.metrics_file import read_metrics
from pipeline.output.policies import is_policy, policy_folder
from pipeline.report import figures
from pipeline.stages import elsewhere, tracking
from pipeline.stages.heldout import whole_texts
from pipeline.stages.reward_sources import gold_reward, judge_is_proxy, proxy_reward

Policy = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A model and its tokenizer."""


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
    results, details = compare(experiment, evaluations, judge_is_proxy(experiment))
    shown, section = methods.shown(results), experiment.compare
    answers = examples.answered(shown, evaluations, section.best_of_n)
    rows = examples.first_rows(answers)
    write_text(folder / "samples.jsonl", _lines(rows))
    every = examples.all_rows(answers, section.samples_per_prompt)
    write_text(folder / "samples_all.jsonl", _lines(every))
    write_json(folder / "examples.json", examples.examples(shown, answers))
    same, of_machine = training.apart(results)
    write_json(folder / "details.json", {**details, "training": of_machine})
    write_text(folder / "results.csv", csv_text(results))
    write_json(folder / "results.json", same)
    texts = [{"prompt": row["prompt"], **row["completions"]} for row in rows]
    tracking.log_samples(experiment, "compare", 0, texts)
    trained = [method.name for method in shown if method.kind == "trained"]
    history = {name: read_metrics(experiment.stage_dir(name) / "metrics.jsonl") for name in trained}
    tracking.log_comparison(results, lambda: figures.reward_kl(results, details, history))
    show(results, details)


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


# --- Measuring ----------------------------------------------------------------------------------


def measure(experiment: Experiment) -> dict[str, Evaluation]:
    """What each policy makes of the evaluation prompts, by its name, π_ref first.

    Sampling depends on nothing but the seed, the policy and the prompts, so a policy measured
    before an interruption is read back instead; and all policies share their random numbers, which
    takes luck out of the differences between them.
    """
    folders, reference = _trained(experiment), methods.reference()
    for stage, why in left_out(experiment).items():
        folders = {method: folder for method, folder in folders.items() if method.stage != stage}
        say(f"compare: {stage} is left out ({why})")
    made = _made_from(experiment)
    finished = [m for m in folders if made is None or m.stage in made]
    there = {m for m in finished if is_policy(folders[m])}
    if reference not in there:
        raise UserError(
            f"{folders[reference]}: there is no {reference.title} model to compare with; run"
            f" `rlhf {reference.stage}` with this config first"
        )
    for method, folder in folders.items():
        if method not in there:
            why = "is not there" if method in finished else "is not of a finished run"
            say(f"compare: {folder} {why}, so {method.name} is left out")
    named = methods.named(experiment)
    present = [m for m in named if m in there or m.kind == "checkpoint"]
    if made is not None:
        _forget_former(experiment, {m: made[m.stage] for m in present if m.stage is not None})
    missing = [method for method in present if not _work(experiment, method).is_file()]
    if reference in missing and kept_reference.fetch(experiment, _reference_files(experiment)):
        missing.remove(reference)
    if missing:
        _measure_missing(experiment, missing)
    return {m.name: Evaluation(**read_json(_work(experiment, m))) for m in present}


def _made_from(experiment: Experiment) -> dict[str, str] | None:
    """The fingerprints of the stages that are compared; None where no record says which."""
    record = experiment.stage_dir("compare") / "stage.json"
    return read_json(record)["inputs"]["upstream"] if record.is_file() else None


def _forget_former(experiment: Experiment, made: dict[Method, str]) -> None:
    """Remove what was measured of former policies under these names, and note what these are."""
    path = experiment.stage_dir("compare") / "measured_from.json"
    known: dict[str, str] | None = read_json(path) if path.is_file() else None
    for method, fingerprint in made.items():
        if known is not None and known.get(method.name) != fingerprint:
            for former in (_work(experiment, method), _samples(experiment, method)):
                former.unlink(missing_ok=True)
    write_json(path, (known or {}) | {m.name: fingerprint for m, fingerprint in made.items()})


def _measure_missing(experiment: Experiment, missing: list[Method]) -> None:
    """Evaluate ``missing`` and keep each as soon as it is there; one policy at a time in memory."""
    data, section = load_data(experiment), experiment.compare
    proxy = proxy_reward(experiment)
    gold = proxy if judge_is_proxy(experiment) else gold_reward(experiment)
    folder = _trained(experiment)[methods.reference()]
    reference = load_checkpoint(folder, policy_dtype(experiment.model), experiment.model)
    fluency = judge(experiment)
    for method in missing:
        policy, tokenizer, texts, whys = _loaded(experiment, method, reference, data)
        evaluation = evaluate_policy(
            policy,
            tokenizer,
            reference[0] if whys["why_no_kl"] is None else None,
            data.eval_prompts,
            texts,
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
            written=() if method.reference else _written(experiment, data.eval_prompts),
            fluency=fluency,
            **whys,
        )
        if evaluation.note:
            say(f"compare: {method.name}: {evaluation.note}")
        write_json(_work(experiment, method), evaluation.to_json())
        if method.reference:
            kept_reference.keep(experiment, _reference_files(experiment))
        else:
            _samples(experiment, method).unlink(missing_ok=True)
        del policy
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _loaded(
    experiment: Experiment, method: Method, reference: Policy, data: ExperimentData
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str], dict[str, str | None]]:
    """A policy and its tokenizer, the texts for its perplexity, and why it lacks which number."""
    whys: dict[str, str | None] = {"why_no_kl": None, "why_no_perplexity": None}
    if method.kind != "checkpoint":
        dtype, folder = policy_dtype(experiment.model), _trained(experiment)[method]
        policy = reference if method.reference else load_checkpoint(folder, dtype, experiment.model)
        return *policy, whole_texts(data.heldout, policy[1]), whys
    policy, tokenizer = elsewhere.load(experiment, method.name)
    texts = whole_texts(data.heldout, tokenizer)
    whys["why_no_kl"] = other_tokens(policy, tokenizer, *reference, data.eval_prompts)
    ref_texts = whole_texts(data.heldout, reference[1])
    if not same_encoding(tokenizer, texts, reference[1], ref_texts):
        texts, whys["why_no_perplexity"] = [], "its tokens of the held-out texts are others"
    return policy, tokenizer, texts, whys


def _written(experiment: Experiment, prompts: Sequence[Prompt]) -> list[Completion]:
    """π_ref's first samples to each prompt, which every policy is asked about; none where they
    were not kept, as before policies were."""
    section = experiment.compare
    every, some = section.reference_samples, section.reverse_kl_samples
    rows = [prompt for prompt in prompts for _ in range(every)]
    kept = kept_samples(_samples(experiment, methods.reference()), rows) or []
    return [completion for i, completion in enumerate(kept) if i % every < some]


def _samples(experiment: Experiment, method: Method) -> Path:
    return _work(experiment, method).with_suffix(".samples.jsonl")


def _reference_files(experiment: Experiment) -> list[Path]:
    """π_ref's samples, and what was measured on them."""
    return [place(experiment, methods.reference()) for place in (_samples, _work)]


def _trained(experiment: Experiment) -> dict[Method, Path]:
    """Where the checkpoint of each method that a stage trains is, or would be."""
    return {
        method: policy_folder(experiment.stage_dir(method.stage))
        for method in methods.named(experiment)
        if method.stage is not None
    }


def _work(experiment: Experiment, method: Method) -> Path:
    if method.kind == "checkpoint":
        return elsewhere.measured_file(experiment, method.name)
    return experiment.stage_dir("compare") / "measured" / f"{method.name}.json"
