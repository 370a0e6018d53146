"""Samples of π_ref on the training prompts: drawn once by all processes, and by one policy of all.

Policies of an experiment often learn from the same samples. What is drawn for one lies in its
folder beside a digest of all that decided it, and is taken over by another that needs the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from common.files import read_json, write_json, write_text
from pipeline.config import Experiment
from pipeline.config.content import content_hash
from pipeline.data.records import Prompt
from pipeline.data.splits import load_data
from pipeline.lm.generation import Completion, encode_prompt, sample
from pipeline.lm.hardware import best_device
from pipeline.lm.kept import keep_samples, kept_samples
from pipeline.lm.models import load_checkpoint
from pipeline.lm.positions import check_prompts
from pipeline.lm.scored import check_columns, score_completions
from pipeline.output.console import say
from pipeline.stages.cost import cost_of
from pipeline.stages.reward_sources import proxy_reward

SCORED, ABOUT, SAMPLES = "scored.jsonl", "scored.json", "samples.jsonl"
_DECIDE = ("data", "generation", "reward", "seed")
_SEED = 2
"""Added to the experiment's: other samples than those that pairs are made of."""


def made_from(
    experiment: Experiment, sections: Iterable[str], more: dict[str, Any] | None = None
) -> str | None:
    """A digest of all that decides samples; None where the models' records are not there.

    Args:
        sections: of the config, that decide them. more: what else does.
    """
    records = [experiment.stage_dir(name) / "stage.json" for name in ("sft", "reward")]
    if not all(record.is_file() for record in records):
        return None
    named = experiment.data.prompts_name
    made: dict[str, Any] = {
        "models": [read_json(record).get("inputs") for record in records],
        "prompts": named and content_hash(named),
        "config": experiment.model_dump(mode="json", include=set(sections)),
        "data_seed": experiment.data_seed,
        **(more or {}),
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def take_over(
    experiment: Experiment, folder: Path, data: str, about: str, wanted: str | None
) -> None:
    """Copy to ``folder`` what another policy has drawn, if it was made from the same.

    Args:
        data, about: names of the files: what was drawn, and its ``made_from``.
    """
    if wanted is None or (folder / data).exists():
        return
    places = sorted(experiment.output_dir.glob(f"*/{about}"))
    if experiment.shared is not None:  # the trials of a sweep lie side by side
        places += sorted(experiment.output_dir.parent.glob(f"*/*/{about}"))
    for other in places:
        drawn = other.with_name(data)
        if drawn.is_file() and read_json(other).get("made_from") == wanted:
            inside = other.is_relative_to(experiment.output_dir)
            where = other.parent.name if inside else other.parent
            say(f"{folder.name}: takes {data} of {where}, made from the same")
            write_json(folder / about, read_json(other))
            write_text(folder / data, drawn.read_text(encoding="utf-8"))
            return


def processes(experiment: Experiment, stage: str) -> PartialState:
    """The processes of this run, each with a device of its own from now on."""
    given = experiment.trainer_args(stage)
    return PartialState(
        cpu=best_device().type == "cpu",
        backend=given.get("ddp_backend"),
        timeout=timedelta(seconds=given.get("ddp_timeout", 1800)),
    )


def draw(
    experiment: Experiment,
    stage: str,
    prompts: Sequence[Prompt],
    group: int,
    state: PartialState,
    label: str,
    more_seed: int = 1,
) -> list[Completion]:
    """One completion of π_ref for each of ``prompts``, on every process all of them.

    Every process takes whole batches of those that one process would make, with the random numbers
    that it would draw for them, so the result does not depend on how many there are.

    Args:
        prompts: each ``group`` times, one after another. label: what is done, for people.
        more_seed: added to the experiment's seed.
    """
    model, tokenizer = load_checkpoint(
        experiment.stage_dir("sft") / "model", section=experiment.model
    )
    settings, seed = experiment.generation, experiment.seed + more_seed
    check_prompts(model, tokenizer, prompts[::group], settings.max_new_tokens, "training")
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda row: (len(encoded[row]), row))
    size = settings.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    draws = torch.empty(len(prompts), settings.max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        draws[batch] = torch.rand(settings.max_new_tokens, len(batch), generator=generator).T
    mine = [row for batch in batches[state.process_index :: state.num_processes] for row in batch]
    completions = sample(
        model,
        tokenizer,
        [prompts[row] for row in mine],
        max_new_tokens=settings.max_new_tokens,
        batch_size=size,
        seed=seed,
        draws=draws[mine],
        encoded=[encoded[row] for row in mine],
        label=f"{experiment.called(stage)}: {label}" if state.is_main_process else None,
    )
    everyone = gather_object(list(zip(mine, completions, strict=True)))
    return [completion for _, completion in sorted(everyone, key=lambda made: made[0])]


def scored_samples(
    experiment: Experiment, stage: str, n: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """``n`` samples of π_ref for each of P training prompts, scored; kept in ``scored.jsonl``.

    An interrupted stage goes on with the same; another policy's that were made from the same are
    taken over. Every process gets them all.

    Returns:
        rows of ``prompt_ids`` and ``completion_ids``, prompt i's at i·n … i·n + n − 1, and their
        rewards ``(P, n)``.
    """
    folder, state = experiment.stage_dir(stage), processes(experiment, stage)
    path, kept = folder / SCORED, folder / SAMPLES
    digest = made_from(experiment, _DECIDE, {"n": n})
    rows: list[dict[str, Any]] | None = None
    if state.is_main_process:
        take_over(experiment, folder, SCORED, ABOUT, digest)
        if path.is_file() and (folder / ABOUT).is_file():
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
    [made] = broadcast_object_list([rows is not None])
    if not made:
        prompts = load_data(experiment).train_prompts
        asked = [prompt for prompt in prompts for _ in range(n)]
        reward = proxy_reward(experiment) if state.is_main_process else None  # it may not be there
        if reward is not None:
            check_columns(reward, prompts)
        completions = kept_samples(kept, asked) if state.is_main_process else None
        [sampled] = broadcast_object_list([completions is not None])
        if not sampled:
            completions = draw(experiment, stage, asked, n, state, "sampling", _SEED)
        if reward is not None and completions is not None:
            keep_samples(kept, completions)
            rewards = score_completions(reward, completions).total
            rows = [_row(c, score) for c, score in zip(completions, rewards, strict=True)]
            write_json(folder / ABOUT, {"made_from": digest, **cost_of(completions)})
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(path, "".join(lines))
            kept.unlink()
    [rows] = broadcast_object_list([rows or []])
    return rows, np.array([row["reward"] for row in rows]).reshape(-1, n)


def _row(completion: Completion, reward: float) -> dict[str, Any]:
    return {
        "prompt": str(completion.prompt),
        "completion": completion.text,
        "reward": reward,
        "prompt_ids": list(completion.prompt_ids),
        "completion_ids": list(completion.completion_ids),
    }


def samples_cost(experiment: Experiment, stage: str) -> dict[str, int]:
    """What a stage's samples cost, or would have if they were not another policy's too."""
    about = read_json(experiment.stage_dir(stage) / ABOUT)
    return {key: about[key] for key in ("reward_queries", "completions", "tokens")}
