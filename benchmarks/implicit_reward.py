"""What the trained policies know of the reward: β·log π/π_ref as a reward model.

    make quickstart
    python benchmarks/implicit_reward.py     # 10 minutes on two cores with AVX512-BF16

A policy is a reward model of its own: π* ∝ π_ref·exp(r/β) has log π*/π_ref = r/β + a number of the
prompt (Rafailov et al. 2023, equation 5). Printed are squared correlations within prompts over
samples of π_ref:

1. of each policy's log-ratio with the reward: on validation prompts, and on what DPO's pairs are
   made of. Where DPO's second is far above its first it has learned its pairs by heart.
2. of the policies' log-ratios with each other.
3. of ridge regression on the frozen trunk's states (mean over a text's tokens) with the reward:
   what can be known from the same pairs, by the number of their completions.

Along a straight line from π_ref a policy of squared correlation R² gains √R² of what the frontier
gains at the same KL, as long as both are small.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from gradient_signal import within
from torch import Tensor

from pipeline.config import Experiment, load_experiment
from pipeline.data.splits import load_data
from pipeline.lm.generation import Completion, sample
from pipeline.lm.hardware import autocast, policy_dtype
from pipeline.lm.models import load_checkpoint
from pipeline.lm.paths import path_statistics
from pipeline.lm.scoring import TokenBatch
from pipeline.output import quiet
from pipeline.output.terminal import progress
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig
from pipeline.stages.preferences import PAIRS, read_pairs
from pipeline.stages.reward_sources import proxy_reward
from pipeline.stages.training import load_trainable_sft

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
SAMPLES, FOLDS, ROWS = 16, 8, 64
RIDGES = (300.0, 1000.0, 3000.0, 10000.0)


@torch.no_grad()
def trunk_means(model: ActorCritic, completions: Sequence[Completion], label: str) -> Tensor:
    """``(B, d)`` mean over a text's tokens of the frozen trunk's states, of mean square 1."""
    rows = []
    for start in progress(range(0, len(completions), ROWS), label):
        batch = TokenBatch.collate(completions[start : start + ROWS], 0, torch.device("cpu"))
        length = batch.prompt_lengths + batch.mask.sum(1)
        inside = (torch.arange(batch.sequences.shape[1])[None] < length[:, None])[..., None]
        with autocast(model.policy):
            states = model.trunk(batch.sequences)
        assert states is not None  # the quickstart freezes the lower layers
        states = states.float()
        states = states / states.square().mean(-1, keepdim=True).sqrt()
        rows.append((states * inside).sum(1) / length[:, None])
    return torch.cat(rows)


def learned_from(experiment: Experiment) -> tuple[list[Completion], Tensor]:
    """The completions of DPO's pairs, ``pairs.samples_per_prompt`` of each prompt, and rewards.

    Prompts that drew a completion twice are left out.
    """
    groups: dict[tuple[int, ...], dict[tuple[int, ...], tuple[Completion, float]]] = {}
    for pair in read_pairs(experiment.stage_dir("dpo") / PAIRS):
        prompt_ids = tuple(pair["prompt_ids"])
        for side in ("chosen", "rejected"):
            ids = tuple(pair[f"{side}_ids"])
            completion = Completion(pair["prompt"], prompt_ids, ids, pair[side], True)
            groups.setdefault(prompt_ids, {})[ids] = completion, pair[f"{side}_reward"]
    whole = [g.values() for g in groups.values() if len(g) == experiment.pairs.samples_per_prompt]
    flat = [item for group in whole for item in group]
    return [completion for completion, _ in flat], torch.tensor([reward for _, reward in flat])


def ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """Weights ``(d,)`` of the least squares of centred ``y`` with a penalty."""
    penalty = strength * torch.eye(x.shape[1])
    return torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean()))


def chosen_strength(x: Tensor, y: Tensor, samples: int) -> float:
    """The one of `RIDGES` with the least error on prompts left out of the fit."""
    fold = torch.arange(len(x)) // samples % FOLDS
    errors = []
    for strength in RIDGES:
        error = 0.0
        for number in range(FOLDS):
            out = fold == number
            said = x[out] @ ridge(x[~out], y[~out], strength) + y[~out].mean()
            error += float((said - y[out]).square().sum())
        errors.append(error)
    return RIDGES[errors.index(min(errors))]


def show_knowable(
    train: Tensor, rewards: Tensor, samples: int, test: Tensor, truth: Tensor
) -> None:
    """Print what ridge regression on the trunk's mean states predicts of validation samples.

    Args:
        samples: of a prompt, side by side in ``train``.
    """
    mean, spread = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / spread, (test - mean) / spread
    print("ridge regression on the trunk's states")
    for count in (len(train) // 4, len(train) // 2, len(train)):
        count -= count % samples
        x, y = train[:count], rewards[:count]
        found = within(test @ ridge(x, y, chosen_strength(x, y, samples)), truth, SAMPLES)
        print(f"  from {count:5d} completions  {found:.2f}", flush=True)


def measure(experiment: Experiment) -> None:
    """The three tables."""
    dtype = policy_dtype(experiment.model)
    reference, tokenizer = load_checkpoint(experiment.stage_dir("sft") / "model", dtype)
    held = sample(
        reference,
        tokenizer,
        load_data(experiment).validation_prompts,
        samples_per_prompt=SAMPLES,
        max_new_tokens=experiment.generation.max_new_tokens,
        batch_size=experiment.generation.batch_size,
        seed=experiment.seed + 11,
        label="validation: sampling",
    )
    truth = torch.tensor(proxy_reward(experiment)([c.prompt for c in held], [c.text for c in held]))
    pairs, rewards = learned_from(experiment)
    group = experiment.pairs.samples_per_prompt
    ratios: dict[str, Tensor] = {}
    print("log-ratio with the reward     validation   DPO's pairs")
    for name in experiment.policies:
        policy, _ = load_checkpoint(experiment.stage_dir(name) / "model", dtype)
        both = [
            torch.tensor(
                path_statistics(policy, reference, texts, label=f"{name}: {which}").logratio
            )
            for which, texts in (("validation", held), ("pairs", pairs))
        ]
        ratios[name] = both[0]
        found = within(both[0], truth, SAMPLES), within(both[1], rewards, group)
        print(f"  {name:27s} {found[0]:10.2f} {found[1]:13.2f}", flush=True)
    names = list(ratios)
    for i, name in enumerate(names):
        for other in names[:i]:
            shared = within(ratios[name], ratios[other], SAMPLES)
            print(f"  {other} with {name}: {shared:.2f} on validation")
    settings = PPOConfig(output_dir="unused", use_cpu=True, bf16=dtype == torch.bfloat16)
    model = ActorCritic(load_trainable_sft(experiment)[0], settings, 64)
    known = trunk_means(model, pairs, "pairs: the trunk")
    held_known = trunk_means(model, held, "validation: the trunk")
    show_knowable(known, rewards, group, held_known, truth)


def main() -> None:
    """Sample, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="its folder")
    given = parser.parse_args()
    quiet.before_imports()
    quiet.after_imports()
    measure(load_experiment(CONFIG, [f"output_dir={given.run}", "tracking.report_to=[]"]))


if __name__ == "__main__":
    main()
