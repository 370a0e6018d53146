"""Stage 4a: preference pairs from the policy's own samples, labelled by the proxy reward."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import write_text
from pipeline.config import Experiment
from pipeline.data.splits import load_data
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import load_checkpoint
from pipeline.lm.positions import check_prompts
from pipeline.stages.reward import proxy_reward


def first_wins_probability(first: float, second: float, hard: bool = False) -> float:
    """P(y₁ ≻ y₂): Bradley–Terry's σ(r₁ − r₂), or the step function for hard labels."""
    if hard:
        return 1.0 if first > second else 0.0 if first < second else 0.5
    difference = first - second
    if difference >= 0:
        return 1.0 / (1.0 + math.exp(-difference))
    return math.exp(difference) / (1.0 + math.exp(difference))


def label_pairs(
    completions: Sequence[Completion], rewards: Sequence[float], hard: bool, seed: int
) -> list[dict[str, Any]]:
    """Label completions 2i and 2i + 1, two samples for one prompt, as chosen and rejected.

    Pairs are drawn from π_ref and labelled by sampling Bradley–Terry on the same reward, so DPO's
    optimum at β is PPO's at the same KL coefficient (Rafailov et al. 2023, section 4). Pairs whose
    completions are the same tokens say nothing and are left out.
    """
    rng = random.Random(seed)
    pairs = []
    for i in range(0, len(completions) - 1, 2):
        first, second = completions[i], completions[i + 1]
        wins = rng.random() < first_wins_probability(rewards[i], rewards[i + 1], hard)
        if first.completion_ids == second.completion_ids:
            continue
        order = (i, i + 1) if wins else (i + 1, i)
        chosen, rejected = (completions[j] for j in order)
        pairs.append(
            {
                "prompt": chosen.prompt,
                "chosen": chosen.text,
                "rejected": rejected.text,
                "chosen_reward": rewards[order[0]],
                "rejected_reward": rewards[order[1]],
                "prompt_ids": list(chosen.prompt_ids),
                "chosen_ids": list(chosen.completion_ids),
                "rejected_ids": list(rejected.completion_ids),
            }
        )
    return pairs


def make_pairs(experiment: Experiment) -> list[dict[str, Any]]:
    """Sample π_ref on the training prompts and label pairs; kept in ``dpo/pairs.jsonl``.

    A finished file is read back instead: an interrupted stage goes on with the same pairs.
    """
    path = experiment.stage_dir("dpo") / "pairs.jsonl"
    if path.is_file():
        return read_pairs(path)
    settings = experiment.pairs
    prompts = load_data(experiment).train_prompts
    prompts = prompts[: -(-settings.max_pairs // settings.per_prompt)]
    length = experiment.generation.max_new_tokens
    reward = proxy_reward(experiment)
    model, tokenizer = load_checkpoint(experiment.stage_dir("sft") / "model")
    check_prompts(model, tokenizer, prompts, length, "training")
    completions = sample(
        model,
        tokenizer,
        prompts,
        samples_per_prompt=2 * settings.per_prompt,
        max_new_tokens=length,
        batch_size=experiment.generation.batch_size,
        seed=experiment.seed + 1,
        label="dpo: sampling pairs",
    )
    rewards = reward([c.prompt for c in completions], [c.text for c in completions])
    pairs = label_pairs(completions, rewards, settings.hard_labels, experiment.seed)
    pairs = pairs[: settings.max_pairs]
    write_text(path, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    return pairs


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Pairs as :func:`make_pairs` wrote them."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
