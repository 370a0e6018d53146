"""PPO against completion length and model size: tokens a second, peak memory, padding.

    OMP_NUM_THREADS=1 python benchmarks/scale.py                      # lengths and sizes, minutes
    OMP_NUM_THREADS=1 python benchmarks/scale.py --given              # without sampling
    OMP_NUM_THREADS=1 python benchmarks/scale.py --padding            # rows, tokens, packing
    python benchmarks/scale.py --device cuda --models 0.5B 1.5B --rows 64 --trained all

**Lengths.** One rollout of `--rows` completions, all of the full length, of every model and length,
in a process of its own: milliseconds a token of sampling, scoring and updating; how they grow from
the shortest length on, beside how the floating-point operations a token grow
(`ppo_operations.py`: dense layers are the same for every token, attention grows with the length);
peak memory, and what each token beyond those of the shortest adds to it.
Models are Llamas of random weights, or `embedded`, SmolLM2-135M. The last third of the layers is
trained unless `--trained` says all, or LoRA.

*Share* is operations a second over those of a large matrix product on the same device. With one
thread of a processor seconds are those that it worked, so that other work costs caches only.

**Padding.** The same completions, of two sets of lengths, learned from in microbatches of a fixed
number of rows, of tokens, and packed: what share of the places in a batch is padding, and tokens a
second of scoring and of the update. Lengths are those of people's reviews, and geometric ones with
a mean of 64 that are cut at 256.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ppo_operations
import torch
from ppo_operations import ModelShape, PhaseWork, measured_matmul_throughput, phase_work
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback

from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.lm.models import base_of, load_base, make_trainable, prepare
from pipeline.output import quiet
from pipeline.output.memory import peak_memory
from pipeline.output.terminal import progress
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.engines import Request
from pipeline.ppo.measure import Measure, padding_share
from pipeline.ppo.rollout import Rollout, schedule
from pipeline.ppo.upkeep import performance

HERE = Path(__file__).resolve()
# Layers, width, inner width, heads, heads of keys and values; the last two are Qwen2.5's.
SIZES = {
    "2M": (4, 128, 384, 4, 2),
    "20M": (8, 384, 1024, 6, 2),
    "135M": (30, 576, 1536, 9, 3),
    "0.5B": (24, 896, 4864, 14, 2),
    "1.5B": (28, 1536, 8960, 12, 2),
}
PHASES = ("generate", "score", "update")
PROMPT = "The film is about a man who"
WAYS: dict[str, dict[str, Any]] = {
    "rows as they come": {},
    "rows by length": {},
    "tokens": {"microbatch_tokens": 0},
    "packed": {"microbatch_tokens": 0, "packing": True},
}


def policy(name: str, trained: str) -> tuple[Any, Any]:
    """A model with the weights to train requiring gradients, and its tokenizer."""
    section: dict[str, Any] = {"trainable_layers": None, "use_peft": trained == "lora"}
    if name == "embedded":
        if trained == "upper":
            section["trainable_layers"] = 10
        choice = ModelSection(**section)
        model, tokenizer = load_base(choice, 0)
        return make_trainable(model, choice, 0), tokenizer
    layers, width, inner, heads, kv_heads = SIZES[name]
    if trained == "upper":
        section["trainable_layers"] = -(-layers // 3)
    tokenizer = AutoTokenizer.from_pretrained(embedded.base_model())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=8192, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    return make_trainable(prepare(model, tokenizer), ModelSection(**section)), tokenizer


class Rows(TrainerCallback):
    """Takes the logged metrics of each rollout."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "time/generate" in logs:
            self.rows.append({phase: logs[f"time/{phase}"] for phase in PHASES})


class Measured(PPOTrainer):
    """Counts the operations that each rollout needs."""

    work: PhaseWork

    def on_rollout(self, rollout: Rollout) -> dict[str, float]:
        self.work = phase_work(ModelShape.of(self.actor_critic), rollout.batch, self.args)
        return super().on_rollout(rollout)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One case in this process: seconds a phase of the last rollout, tokens, memory, share."""
    quiet.before_imports()
    quiet.after_imports()
    if case["device"] == "cpu" and torch.get_num_threads() == 1:
        performance.time = ppo_operations.time = SimpleNamespace(perf_counter=time.process_time)
    model, tokenizer = policy(case["model"], case["trained"])
    lengths: list[int] | None = case.get("lengths")
    count = len(lengths) if lengths else case["rows"]

    def given(request: Request) -> list[list[int]]:
        generator = random.Random(request.seed)
        return [[generator.randrange(100, 40000) for _ in range(n)] for n in lengths or ()]

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [len(text) / 1000 for text in completions]

    rows = Rows()
    at_once = case.get("at_once", count)
    settings: dict[str, Any] = {
        "output_dir": case["folder"],
        "use_cpu": case["device"] == "cpu",
        "bf16": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": count // at_once,
        "num_mini_batches": 1,
        "num_ppo_epochs": 1,
        "total_episodes": count * case["rollouts"],
        "response_length": case["length"],
        "log_completions": 0,
        "learning_rate": 1e-6,
        **case["settings"],
    }
    args = PPOConfig(**settings)
    trainer = Measured(
        model=model,
        reward_function=reward,
        args=args,
        processing_class=tokenizer,
        train_dataset=[PROMPT] * count,
        sampler=given if lengths else None,
        callbacks=[rows],
    )
    rate = measured_matmul_throughput(args.device, torch.bfloat16)
    if not lengths:  # a token that is hardly drawn, so that every completion is as long as can be
        base_of(model).generation_config.eos_token_id = len(tokenizer) - 1
    trainer.train()
    on_gpu = args.device.type == "cuda"
    work = trainer.work
    return {
        "seconds": rows.rows[-1],
        "operations": {
            "generate": work.generate, "score": work.scoring, "update": work.update
        },
        "tokens": sum(lengths) if lengths else count * case["length"],
        "peak": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_memory(),
        "rate": rate,
    }  # fmt: skip


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """:func:`run` in a process of its own; SystemExit with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE), "--worker", json.dumps(case | {"folder": folder})]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{case}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


HEADINGS = (
    "model", "tokens", "ms a token: sample", "score", "update",
    "× the shortest (operations): sample", "score", "update",
    "share: sample", "score", "update", "peak GiB", "KiB a token beyond the shortest",
)  # fmt: skip


def heading(cells: Sequence[str]) -> None:
    """Print a table's first two lines."""
    print("\n| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|")


def lengths_table(arguments: argparse.Namespace) -> None:
    """Print what a token takes, and a token adds, at every length."""
    heading(HEADINGS)
    cases = [(model, length) for model in arguments.models for length in arguments.lengths]
    first: dict[str, Any] = {}
    for model, length in progress(cases, "benchmark", len(cases)):
        case = {
            "model": model, "length": length, "rows": arguments.rows, "device": arguments.device,
            "trained": arguments.trained, "settings": {}, "rollouts": 1 if length > 256 else 2,
            "lengths": [length] * arguments.rows if arguments.given else None,
        }  # fmt: skip
        found = measure(case)
        each = {p: found["seconds"][p] / found["tokens"] for p in PHASES}
        needed = {p: found["operations"][p] / found["tokens"] for p in PHASES}
        if length == arguments.lengths[0]:
            first = found | {"each": each, "needed": needed}
        cells = [model, str(length)]
        for column in (
            [f"{1000 * each[p]:.2f}" for p in PHASES],
            [
                f"{each[p] / first['each'][p]:.2f} ({needed[p] / first['needed'][p]:.2f})"
                for p in PHASES
            ],
            [f"{needed[p] / each[p] / found['rate']:.0%}" for p in PHASES],
        ):
            cells += ["–", *column[1:]] if arguments.given else column
        tokens = found["tokens"] - first["tokens"]
        added = f"{(found['peak'] - first['peak']) * 2**20 / tokens:.0f}" if tokens else "–"
        print("| " + " | ".join([*cells, f"{found['peak']:.2f}", added]) + " |", flush=True)


def sets_of_lengths(rows: int) -> dict[str, list[int]]:
    """Completion lengths: people's reviews, and geometric ones."""
    tokenizer = AutoTokenizer.from_pretrained(embedded.base_model())
    texts = [rated.text for rated in embedded.ratings()]
    generator = random.Random(0)
    reviews = [len(tokenizer(text)["input_ids"]) + 1 for text in generator.sample(texts, rows)]
    geometric = [min(256, 1 + int(generator.expovariate(1 / 64))) for _ in range(rows)]
    return {"reviews": [min(n, 256) for n in reviews], "geometric": geometric}


def shares(lengths: list[int], at_once: int, tokens: int) -> dict[str, float]:
    """The share of padding by every way of cutting."""
    whole = sorted(lengths)
    ways = {
        "rows as they come": padding_share(lengths, Measure().cut(lengths, at_once)),
        "rows by length": padding_share(whole, Measure().cut(whole, at_once)),
        "tokens": padding_share(whole, Measure(True).cut(whole, tokens)),
    }
    return ways | {"packed": padding_share(whole, Measure(True, True).cut(whole, tokens), True)}


def padding_table(arguments: argparse.Namespace) -> None:
    """Print padding and speed by rows, by tokens and packed."""
    rows, at_once = 64, 16
    prompt = len(AutoTokenizer.from_pretrained(embedded.base_model())(PROMPT)["input_ids"])
    heading(("lengths", "at once", "padding", "passes", "tokens/s: score", "update", "peak GiB"))
    for name, drawn in sets_of_lengths(rows).items():
        whole = [prompt + n for n in drawn]
        budget = max(max(whole), round(at_once * sum(whole) / len(whole)))
        padding = shares(whole, at_once, budget)
        for way, settings in WAYS.items():
            chosen = {k: budget if k == "microbatch_tokens" else v for k, v in settings.items()}
            args = PPOConfig(
                output_dir="unused", use_cpu=True, bf16=False, per_device_train_batch_size=at_once,
                gradient_accumulation_steps=rows // at_once, num_mini_batches=1, num_ppo_epochs=1,
                microbatch_tokens=chosen.get("microbatch_tokens"), packing="packing" in chosen,
            )  # fmt: skip
            (plan,) = schedule(torch.tensor(whole), args, 0)
            label = f"{at_once} rows" if "microbatch_tokens" not in chosen else f"{budget} tokens"
            cells = [f"{name}, mean {sum(drawn) / rows:.0f}", f"{way} ({label})"]
            cells += [f"{padding[way]:.0%}", str(len(plan))]
            if way == "rows as they come":  # how many do it; not here
                print("| " + " | ".join([*cells, "–", "–", "–"]) + " |")
                continue
            case = {
                "model": arguments.models[-1], "length": 256, "device": arguments.device,
                "trained": arguments.trained, "settings": chosen, "rollouts": 1, "rows": rows,
                "lengths": drawn, "at_once": at_once,
            }  # fmt: skip
            found = measure(case)
            speed = [f"{found['tokens'] / found['seconds'][p]:.0f}" for p in ("score", "update")]
            print("| " + " | ".join([*cells, *speed, f"{found['peak']:.2f}"]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument(
        "--models", nargs="+", choices=[*SIZES, "embedded"], default=["2M", "20M", "embedded"]
    )
    parser.add_argument("--rows", type=int, default=2, help="completions of a rollout")
    parser.add_argument("--trained", choices=("upper", "all", "lora"), default="upper")
    parser.add_argument(
        "--given", action="store_true", help="score and learn from random tokens, sample none"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--padding", action="store_true", help="the table of padding instead")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run(json.loads(arguments.worker))))
        return
    cores, threads = os.cpu_count(), torch.get_num_threads()
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor()
    machine = where or platform.machine()
    print(f"{machine}, {cores} cores, {threads} threads; torch {torch.__version__}")
    (padding_table if arguments.padding else lengths_table)(arguments)


if __name__ == "__main__":
    main()
