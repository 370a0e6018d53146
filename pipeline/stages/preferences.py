"""Stage 4a: preference pairs from the policy's own samples, labelled by the proxy reward."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from common.files import read_json, write_json, write_text
from pipeline.config import Experiment
from pipeline.data.splits import load_data
from pipeline.lm.generation import Completion
from pipeline.lm.kept import keep_samples, kept_samples
from pipeline.lm.scored import check_columns, score_completions
from pipeline.stages.cost import cost_of
from pipeline.stages.reward_sources import proxy_reward
from pipeline.stages.samples import draw, made_from, processes, take_over

PAIRS, ABOUT, SAMPLES = "pairs.jsonl", "pairs.json", "samples.jsonl"
_DECIDE = ("data", "generation", "pairs", "reward", "seed")
"""Sections that decide pairs, beside the models."""


def first_wins_probability(first: float, second: float, hard: bool = False) -> float:
    """P(y₁ ≻ y₂): Bradley–Terry's σ(r₁ − r₂), or the step function for hard labels."""
    if hard:
        return 1.0 if first > second else 0.0 if first < second else 0.5
    difference = first - second
    if difference >= 0:
        return 1.0 / (1.0 + math.exp(-difference))
    return math.exp(difference) / (1.0 + math.exp(difference))


def label_pairs(
    completions: Sequence[Completion],
    rewards: Sequence[float],
    labels: str,
    seed: int,
    group: int = 2,
) -> list[dict[str, Any]]:
    """Label all pairs of each ``group`` of samples for one prompt as chosen and rejected.

    Pairs are drawn from π_ref and labelled by Bradley–Terry on the same reward, so DPO's optimum at
    β is PPO's at the same KL coefficient (Rafailov et al. 2023, section 4). Pairs whose completions
    are the same tokens say nothing and are left out.

    Args:
        completions: m of a group after another. labels: as ``pairs.labels``. With ``soft`` ones the
            chosen is the one with the higher reward.

    Returns:
        both completions and rewards of every pair, and the ``probability`` that the chosen one
        wins, by its label's rule.
    """
    rng = random.Random(seed)
    pairs = []
    starts = range(0, len(completions) - group + 1, group)
    for i, j in (pair for start in starts for pair in combinations(range(start, start + group), 2)):
        first = first_wins_probability(rewards[i], rewards[j], labels == "hard")
        wins = rng.random() < first if labels != "soft" else first >= 0.5
        if completions[i].completion_ids == completions[j].completion_ids:
            continue
        order = (i, j) if wins else (j, i)
        chosen, rejected = (completions[k] for k in order)
        pairs.append(
            {
                "prompt": chosen.prompt,
                "chosen": chosen.text,
                "rejected": rejected.text,
                "chosen_reward": rewards[order[0]],
                "rejected_reward": rewards[order[1]],
                "probability": first if wins else 1.0 - first,
                "prompt_ids": list(chosen.prompt_ids),
                "chosen_ids": list(chosen.completion_ids),
                "rejected_ids": list(rejected.completion_ids),
            }
        )
    return pairs


def make_pairs(experiment: Experiment, stage: str = "dpo") -> list[dict[str, Any]]:
    """Sample π_ref on the training prompts and label pairs; kept in ``<stage>/pairs.jsonl``.

    A finished file is read back instead: an interrupted stage goes on with the same pairs. So are
    the samples, which are kept until they are labelled, and the pairs that another policy of this
    experiment has drawn by the same settings. Several processes share the sampling and get the
    pairs that one would make; the first one labels and writes them.

    What they cost is in ``<stage>/pairs.json``, see :func:`pairs_cost`.
    """
    folder, settings = experiment.stage_dir(stage), experiment.pairs
    state = processes(experiment, stage)
    path, kept = folder / PAIRS, folder / SAMPLES
    pairs: list[dict[str, Any]] | None = None
    if state.is_main_process:
        take_over(experiment, folder, PAIRS, ABOUT, made_from(experiment, _DECIDE))
        if path.is_file() and (folder / ABOUT).is_file():
            pairs = read_pairs(path)
    [made] = broadcast_object_list([pairs is not None])
    if not made:
        samples = settings.samples_per_prompt
        wanted = -(-settings.max_pairs // (settings.per_prompt * settings.of_group))
        prompts = load_data(experiment).train_prompts[:wanted]
        rows = [prompt for prompt in prompts for _ in range(samples * settings.per_prompt)]
        # Before any sampling: it may not be there.
        reward = proxy_reward(experiment) if state.is_main_process else None
        if reward is not None:
            check_columns(reward, prompts)
        completions = kept_samples(kept, rows) if state.is_main_process else None
        [sampled] = broadcast_object_list([completions is not None])
        if not sampled:
            group = samples * settings.per_prompt
            completions = draw(experiment, stage, rows, group, state, "sampling pairs")
        if reward is not None and completions is not None:
            keep_samples(kept, completions)
            rewards = score_completions(reward, completions).total
            pairs = label_pairs(completions, rewards, settings.labels, experiment.seed, samples)
            pairs = pairs[: settings.max_pairs]
            lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
            about = {"made_from": made_from(experiment, _DECIDE), **cost_of(completions)}
            write_json(folder / ABOUT, about)
            write_text(path, "".join(lines))
            kept.unlink()
    [pairs] = broadcast_object_list([pairs or []])
    return pairs


def pairs_cost(experiment: Experiment, stage: str) -> dict[str, int]:
    """What a stage's pairs cost, or would have if they were not another policy's too."""
    about = read_json(experiment.stage_dir(stage) / ABOUT)
    return {key: about[key] for key in ("reward_queries", "completions", "tokens")}


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Pairs as :func:`make_pairs` wrote them."""
    lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other line breaks
    return [json.loads(line) for line in lines if line]
