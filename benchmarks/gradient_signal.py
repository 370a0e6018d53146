"""Where the signal is on the quickstart's task: in which gradients, and how far the judge agrees.

    make quickstart
    python benchmarks/gradient_signal.py     # 15 minutes on two cores with AVX512-BF16

Two things are measured on samples of the SFT model, the reference π_ref:

1. The signal of the policy gradient at π_ref. Four independent sets of completions give four
   gradients g_i; the mean of g_i·P g_j over i ≠ j, divided by the mean of g_i·P g_i, is the share
   of a gradient's square that is signal: 0 is noise alone, 1 none. P is 1 (gradient descent) or
   Adam's 1/√E[g²]. By what the return is compared with: the mean score, the mean of the prompt's
   other completions, or the fitted reward of prefixes with GAE's λ; and by the modules that train.
2. How far proxy and gold agree within a prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from classic_rl.advantages import completion_gae
from pipeline.config import Experiment, load_experiment
from pipeline.data.splits import load_data
from pipeline.lm.generation import Completion, sample
from pipeline.lm.hardware import autocast
from pipeline.lm.scoring import TokenBatch
from pipeline.output import quiet
from pipeline.output.terminal import progress
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig
from pipeline.stages.reward_sources import gold_reward, proxy_reward
from pipeline.stages.training import load_trainable_sft
from reward_models import RewardFunction

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
SETS, A_PROMPT, ROWS = 4, 4, 64
LAMBDAS = (0.95, 0.9, 0.8, 0.5)
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Flat = dict[str, Tensor]


def prefix_scores(
    reward: RewardFunction, completions: Sequence[Completion], batch: TokenBatch, decode: object
) -> Tensor:
    """``(B, T)`` rewards of each completion's first t tokens, zero off the mask."""
    prompts = [c.prompt for c in completions for _ in c.completion_ids]
    texts = [
        decode(list(c.completion_ids[:t]), skip_special_tokens=True)  # type: ignore[operator]
        for c in completions
        for t in range(len(c.completion_ids))
    ]
    scores = torch.zeros(batch.mask.shape)
    scores[batch.mask] = torch.tensor(reward(prompts, texts))
    return scores


def fitted(prefixes: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """V ``(B, T)``: the straight line of the final score on the prefix's, for each position."""
    values = torch.zeros(mask.shape)
    for t in range(mask.shape[1]):
        there = mask[:, t]
        x = torch.stack([prefixes[there, t], torch.ones(int(there.sum()))], 1).double()
        line = torch.linalg.lstsq(x, scores[there, None].double()).solution
        values[there, t] = (x @ line).squeeze(1).float()
    return values


def advantages(scores: Tensor, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Each estimator's weight of every token's log-probability, ``(B, T)``."""
    groups = scores.view(-1, A_PROMPT)
    others = (groups.sum(1, keepdim=True) - groups) / (A_PROMPT - 1)
    ends = torch.zeros(mask.shape)
    ends[torch.arange(len(mask)), mask.sum(1) - 1] = scores
    made = {
        "score − mean": (scores - scores.mean())[:, None].expand(mask.shape),
        "score − prompt's others": (scores - others.flatten())[:, None].expand(mask.shape),
    }
    for lam in LAMBDAS:
        made[f"prefix critic, λ {lam:g}"] = completion_gae(ends, values, mask, 1.0, lam)[0]
    return {name: torch.where(mask, weights, 0.0) for name, weights in made.items()}


def gradients(
    model: ActorCritic, batch: TokenBatch, weights: dict[str, Tensor], label: str
) -> dict[str, list[Tensor]]:
    """The gradient of Σ weight · log π over ``batch``, by estimator, a tensor a parameter."""
    parameters = [p for p in model.policy.parameters() if p.requires_grad]
    total = {name: [torch.zeros_like(p) for p in parameters] for name in weights}
    order = batch.mask.sum(1).argsort().split(ROWS)
    for index in progress(order, label):
        part = batch.rows(index)
        with autocast(model.policy):
            logps = model(part, model.trunk(part.sequences)).logps
        for name, weight in weights.items():
            loss = (weight[index, : logps.shape[1]] * logps).sum() / len(batch.mask)
            made = torch.autograd.grad(loss, parameters, retain_graph=True)
            for kept, gradient in zip(total[name], made, strict=True):
                kept += gradient
    return total


def shares(sets: list[Tensor]) -> tuple[float, float]:
    """The signal's share of a gradient's square in gradient descent's and in Adam's geometry."""
    second = torch.stack([g.square() for g in sets]).mean(0)
    found = []
    for scale in (1.0, 1.0 / (second.sqrt() + 1e-3 * second.mean().sqrt())):
        own = sum(float((g * scale * g).sum()) for g in sets) / len(sets)
        pairs = [float((g * scale * h).sum()) for i, g in enumerate(sets) for h in sets[:i]]
        found.append(sum(pairs) / len(pairs) / own)
    return found[0], found[1]


def show_signal(names: list[str], sets: list[dict[str, list[Tensor]]]) -> None:
    """Print the table by estimator, and by module for the first and a critic's."""
    flat = {e: [torch.cat([g.flatten() for g in s[e]]) for s in sets] for e in sets[0]}
    print("signal's share of the gradient's square      descent   Adam")
    for estimator, found in flat.items():
        _print_shares(estimator, found)
    for estimator in ("score − mean", "prefix critic, λ 0.9"):
        for module in MODULES:
            picked = [i for i, name in enumerate(names) if module in name]
            found = [torch.cat([s[estimator][i].flatten() for i in picked]) for s in sets]
            _print_shares(f"{estimator}: {module}", found)


def _print_shares(label: str, sets: list[Tensor]) -> None:
    descent, adam = shares(sets)
    print(f"  {label:40s}  {descent:7.2f} {adam:7.2f}", flush=True)


def within(first: Tensor, second: Tensor, samples: int) -> float:
    """Squared correlation of two scores of the same completions, within prompts."""
    a, b = (
        x.view(-1, samples) - x.view(-1, samples).mean(1, keepdim=True) for x in (first, second)
    )
    return float((a * b).sum() ** 2 / a.square().sum() / b.square().sum())


def main() -> None:
    """Sample, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="its folder")
    parser.add_argument("--prompts", type=int, default=96, help="in each of four sets (96)")
    given = parser.parse_args()
    quiet.before_imports()
    quiet.after_imports()
    weights = ["model.use_peft=false", "model.trainable_layers=10"]
    settings = [*weights, f"output_dir={given.run}", "tracking.report_to=[]"]
    experiment = load_experiment(CONFIG, settings)
    measure(experiment, given.prompts)


def measure(experiment: Experiment, count: int) -> None:
    """Both, from ``count`` prompts a set."""
    data = load_data(experiment)
    policy, tokenizer = load_trainable_sft(experiment)
    arguments = PPOConfig(output_dir="unused", use_cpu=True, bf16=policy.dtype == torch.bfloat16)
    model = ActorCritic(policy, arguments, 64)
    proxy, gold = proxy_reward(experiment), gold_reward(experiment)

    def draw(prompts: Sequence, samples: int, label: str) -> list[Completion]:
        length, rows = experiment.generation.max_new_tokens, experiment.generation.batch_size
        return sample(
            policy,
            tokenizer,
            prompts,
            samples_per_prompt=samples,
            max_new_tokens=length,
            batch_size=rows,
            seed=experiment.seed + 11,
            label=label,
        )

    sets = []
    for number in range(SETS):
        prompts = data.train_prompts[number * count : (number + 1) * count]
        completions = draw(prompts, A_PROMPT, f"set {number + 1}: sampling")
        batch = TokenBatch.collate(completions, 0, torch.device("cpu"))
        scores = torch.tensor(proxy([c.prompt for c in completions], [c.text for c in completions]))
        prefixes = prefix_scores(proxy, completions, batch, tokenizer.decode)
        weights = advantages(scores, fitted(prefixes, scores, batch.mask), batch.mask)
        sets.append(gradients(model, batch, weights, f"set {number + 1}: gradients"))
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    completions = draw(data.validation_prompts, 8, "validation: sampling")
    asked = [c.prompt for c in completions], [c.text for c in completions]
    scores, judged = torch.tensor(proxy(*asked)), torch.tensor(gold(*asked))
    show_signal(names, sets)
    print(f"squared correlation of proxy and gold within a prompt: {within(scores, judged, 8):.2f}")


if __name__ == "__main__":
    main()
