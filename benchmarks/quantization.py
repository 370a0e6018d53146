"""QLoRA beside LoRA: PPO of the embedded 135M model over weights in 16, 8 and 4 bits.

    OMP_NUM_THREADS=1 python benchmarks/quantization.py             # some minutes
    python benchmarks/quantization.py --rollouts 40 --seeds 0 1 2

Every side trains LoRA adapters (r = 16, every linear layer) with the same prompts, random numbers,
reward (the lexicon of `rules:vader`), batch and learning rate, in a process of its own. Shown are:

    weights      MiB of the policy's frozen weights, and of those that are trained with it
    peak         GiB of the process, its libraries included
    CPU, draw    processor seconds of a rollout with its update, and of drawing its tokens
    reward, KL   on held-out prompts after training, sampled with the same random numbers
    merged       largest difference of a token's log-probability, in nats, between the trained
                 policy and the plain model that it is merged into, both computed in float32
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.lm.models import base_of, load_base, make_trainable
from pipeline.lm.saving import merged
from pipeline.output import quiet
from pipeline.output.memory import peak_memory
from pipeline.ppo import PPOConfig, PPOTrainer
from reward_models import load_reward

SIDES: dict[str, Any] = {"LoRA, bfloat16": None, "4 bits (NF4)": "4bit", "8 bits": "8bit"}
ROWS, TOKENS, WORDS, HELD = 16, 12, 4, 32


def train(kind: Any, rollouts: int, seed: int) -> dict[str, Any]:
    """One side: what it held, took and learnt."""
    section = ModelSection(dtype="bfloat16", use_peft=True, quantization=kind)
    model, tokenizer = load_base(section)
    policy = make_trainable(model, section, seed)
    texts = [" ".join(r.text.split()[:WORDS]) for r in embedded.ratings()]
    arguments = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=ROWS,
        num_mini_batches=1,
        num_ppo_epochs=2,
        total_episodes=rollouts * ROWS,
        response_length=TOKENS,
        learning_rate=1e-3,
        kl_coef=0.02,
        save_strategy="no",
        seed=seed,
        bf16=True,
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        log_completions=0,
    )
    trainer = PPOTrainer(
        policy,
        load_reward("rules:vader"),
        arguments,
        tokenizer,
        texts[HELD : HELD + 4 * ROWS * rollouts],
        texts[:HELD],
    )
    before = trainer.evaluate()
    drawing, loop = [0.0], trainer._loop

    def timed(request: Any) -> list[list[int]]:
        begin = time.process_time()
        tokens = loop(request)
        drawing[0] += time.process_time() - begin
        return tokens

    trainer._loop = timed  # type: ignore[method-assign]
    begin = time.process_time()
    trainer.train()
    seconds = time.process_time() - begin, drawing[0]
    after = trainer.evaluate()
    sizes = [
        sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad == trained)
        for trained in (False, True)
    ]
    return {
        "mib": [size / 2**20 for size in sizes],
        "peak": peak_memory(),
        "seconds": [each / rollouts for each in seconds],
        "before": before["eval_scores"],
        "after": after["eval_scores"],
        "kl": after["eval_kl"],
        "merged": merging(policy),
    }


@torch.no_grad()
def merging(policy: Any) -> float:
    """How far the merged model is from the trained one, in nats."""
    tokens = torch.arange(100, 148, device=base_of(policy).device).view(2, 24)

    def logps(model: Any) -> torch.Tensor:
        return model.eval()(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)

    for module in policy.modules():  # compute as the merged model does
        if getattr(module, "compute_dtype", None) is not None:
            module.compute_dtype = torch.float32
            module.weight.quant_state.dtype = torch.float32
    for parameter in policy.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    own = logps(policy)
    return float((own - logps(merged(policy, torch.float32, "merged"))).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        quiet.before_imports()
        made = train(SIDES[arguments.side], arguments.rollouts, arguments.seeds[0])
        print(f"\n{json.dumps(made)}")
        return
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    work = f"{arguments.rollouts} rollouts of {ROWS} × {TOKENS} tokens"
    print(f"{machine}, torch {torch.__version__}; {work}")
    head = ("", "weights, MiB", "peak, GiB", "CPU, s", "draw, s", "reward", "KL")
    print("| " + " | ".join((*head, "merged, nats")) + " |\n|" + " --- |" * (len(head) + 1))
    for side in SIDES:
        found = []
        for seed in arguments.seeds:
            command = [sys.executable, str(Path(__file__).resolve()), "--side", side]
            command += ["--rollouts", str(arguments.rollouts), "--seeds", str(seed)]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode != 0:
                raise SystemExit(ran.stderr[-2000:])
            found.append(json.loads(ran.stdout.strip().splitlines()[-1]))
        first = found[0]
        learnt = ", ".join(f"{r['before']:.2f} → {r['after']:.2f}" for r in found)
        cells = [
            side,
            f"{first['mib'][0]:.0f} + {first['mib'][1]:.0f}",
            f"{max(r['peak'] for r in found):.2f}",
            *(f"{statistics.median(s):.1f}" for s in zip(*(r["seconds"] for r in found))),  # noqa: B905
            learnt,
            ", ".join(f"{r['kl']:.2f}" for r in found),
            f"{max(r['merged'] for r in found):.1g}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
