"""PPO for language models against TRL 1.12's `trl.experimental.ppo`: completions a second, memory.

    python -m venv peer && peer/bin/pip install torch==2.13.0 trl==1.12.0 "transformers<6" peft
    OMP_NUM_THREADS=1 python benchmarks/ppo_throughput.py --peer peer/bin/python  # half an hour

Both train LoRA adapters (r = 16, every linear layer) on SmolLM2-135M with the same prompts, batch,
completion length, epochs, minibatches, learning rate and coefficients, and are paid by the same
sequence classifier (SmolLM2's weights, random head), since TRL's reward must share the policy's
tokenizer. Sides:

    ours              as `rlhf` runs it: bfloat16 products where the processor has them
    ours, float32     precision forced to the peer's
    TRL               as it comes: float32, and its critic, a second model, is trained whole
    TRL, LoRA critic  the critic trains adapters too, as nearly our work as TRL can be given
    TRL, bfloat16     the same with all its models loaded in bfloat16, as its script offers

Our critic is a head on the policy's own states. Threads and allocator are set alike for both.

Every run is a process of its own, the sides take turns, the first rollout of each is warm-up and
not counted; medians over the repetitions are shown. *Floor* is the time that the floating-point
operations a phase needs (`ppo_operations.py`) take at the machine's measured matrix throughput.
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
from ppo_operations import ModelShape, PhaseWork, measured_matmul_throughput, phase_work
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.lm.models import base_of, load_base, make_trainable
from pipeline.output import quiet
from pipeline.output.memory import peak_memory
from pipeline.output.terminal import progress
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.rollout import Rollout

HERE = Path(__file__).resolve()
SIDES = {
    "ours": ("ours", "default", True),
    "ours, float32": ("ours", "float32", True),
    "TRL": ("peer", "float32", False),
    "TRL, LoRA critic": ("peer", "float32", True),
    "TRL, bfloat16": ("peer", "bfloat16", True),
}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
PHASES = ("generate", "reward", "score", "reference", "value", "update")


def settings_for(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What both sides are given: model, prompts, reward and critic, and every PPO setting."""
    quiet.before_imports()
    base = embedded.base_model()
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, seed in (("reward", 1), ("critic", 2)):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=torch.float32
        )
        model.config.pad_token_id = tokenizer.unk_token_id
        model.save_pretrained(folder / name)
    texts = [t.text for t in embedded.ratings() if len(t.text.split()) >= 8]
    prompts = [" ".join(text.split()[:4]) for text in texts[: 8 * arguments.batch]]
    return {
        "threads": torch.get_num_threads(),
        "model": str(base),
        "reward": str(folder / "reward"),
        "critic": str(folder / "critic"),
        "pad_token": tokenizer.unk_token,
        "prompts": [tokenizer(prompt)["input_ids"] for prompt in prompts],
        "texts": prompts,
        "lora": LORA,
        "epochs": arguments.epochs,
        "minibatches": arguments.minibatches,
        "batch": arguments.batch,
        "episodes": arguments.batch * (1 + arguments.rollouts),
        "length": arguments.length,
        "work": str(folder),
    }


COMMON = {
    "learning_rate": 1e-4,
    "kl_coef": 0.05,
    "gamma": 1.0,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "temperature": 1.0,
    "max_grad_norm": 1.0,
}


def peer_settings(settings: dict[str, Any], precision: str, lora_critic: bool) -> dict[str, Any]:
    """The settings in TRL's words: its rollout is `per_device_train_batch_size`."""
    return settings | {
        "dtype": precision,
        "lora_critic": lora_critic,
        "arguments": COMMON
        | {
            "output_dir": settings["work"] + "/peer",
            "per_device_train_batch_size": settings["batch"],
            "gradient_accumulation_steps": 1,
            "num_ppo_epochs": settings["epochs"],
            "num_mini_batches": settings["minibatches"],
            "total_episodes": settings["episodes"],
            "response_length": settings["length"],
            "local_rollout_forward_batch_size": settings["batch"],
            "stop_token": "eos",
        },
    }


class Rollouts(TrainerCallback):
    """Takes each rollout's logged metrics."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.works: list[PhaseWork] = []
        self.rate = 0.0
        self.since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "time/generate" in logs:
            phases = {name: logs.get(f"time/{name}", 0.0) for name in PHASES}
            now, work = time.perf_counter(), self.works[-1]
            needed = {"generate": work.generate, "score": work.scoring, "update": work.update}
            shares = {name: needed[name] / phases[name] / self.rate for name in needed}
            row = {"seconds": now - self.since, "phases": phases, "mfu": shares}
            share = work.total / sum(phases.values()) / self.rate
            self.rows.append(row | {"all": share, "length": logs["val/length"]})
            self.since = time.perf_counter()


class MeasuredTrainer(PPOTrainer):
    """Counts the operations that each rollout needs."""

    def __init__(self, rollouts: Rollouts, **arguments: Any) -> None:
        super().__init__(**arguments, callbacks=[rollouts])
        self.rollouts = rollouts
        self.shape = ModelShape.of(self.actor_critic)
        dtype = next(self.actor_critic.policy.parameters()).dtype
        self.rollouts.rate = measured_matmul_throughput(
            self.args.device, torch.bfloat16 if self.args.bf16 else dtype
        )

    def on_rollout(self, rollout: Rollout) -> dict[str, float]:
        """As ever; also counts."""
        self.rollouts.works.append(phase_work(self.shape, rollout.batch, self.args))
        return super().on_rollout(rollout)


def train_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """One run of our trainer; the same shape of result as the peer's."""
    quiet.before_imports()
    quiet.after_imports()
    torch.set_num_threads(settings["threads"])
    section = ModelSection(
        use_peft=True,
        dtype=None if settings["dtype"] == "default" else settings["dtype"],
        lora_r=LORA["r"],
        lora_alpha=LORA["lora_alpha"],
        lora_target_modules=LORA["target_modules"],
    )
    model, tokenizer = load_base(section, 0)
    policy = make_trainable(model, section, 0)
    dtype = base_of(policy).get_input_embeddings().weight.dtype
    judge = AutoModelForSequenceClassification.from_pretrained(settings["reward"], dtype=dtype)
    texts = AutoTokenizer.from_pretrained(settings["model"])
    texts.pad_token = settings["pad_token"]

    @torch.no_grad()
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        rows = [p + c for p, c in zip(prompts, completions, strict=True)]
        batch = texts(rows, return_tensors="pt", padding=True)
        return judge(**batch).logits.squeeze(-1).float().tolist()

    rollouts = Rollouts()
    trainer = MeasuredTrainer(
        rollouts,
        model=policy,
        reward_function=reward,
        args=PPOConfig(
            **COMMON,  # type: ignore[arg-type]
            output_dir=settings["work"] + "/ours",
            use_cpu=True,
            bf16=dtype == torch.bfloat16,
            disable_tqdm=True,
            save_strategy="no",
            per_device_train_batch_size=settings["batch"] // settings["minibatches"],
            num_mini_batches=settings["minibatches"],
            num_ppo_epochs=settings["epochs"],
            total_episodes=settings["episodes"],
            response_length=settings["length"],
        ),
        processing_class=tokenizer,
        train_dataset=settings["texts"],
    )
    trainer.train()
    return {"rollouts": rollouts.rows, "peak_gib": peak_memory()}


def run_side(side: str, settings: dict[str, Any], peer: str) -> dict[str, Any]:
    """Train in a process of its own and return its result; SystemExit with its last words."""
    who, precision, lora_critic = SIDES[side]
    path = Path(settings["work"]) / "settings.json"
    if who == "peer":
        path.write_text(
            json.dumps(peer_settings(settings, precision, lora_critic)), encoding="utf-8"
        )
        command = [peer, str(HERE.with_name("trl_ppo_peer.py")), str(path)]
    else:
        path.write_text(json.dumps(settings | {"dtype": precision}), encoding="utf-8")
        command = [sys.executable, str(HERE), "--worker", str(path)]
    # What `quiet.before_imports` asks of the allocator, for the peer too.
    memory = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    environment = os.environ | memory | {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(found: dict[str, list[dict[str, Any]]], batch: int) -> None:
    """Print medians over the repetitions."""

    def seconds(result: dict[str, Any]) -> float:
        return statistics.median(row["seconds"] for row in result["rollouts"][1:])

    print("\n| side | completions/s | of TRL's | peak GiB | of TRL's |\n" + "|---" * 5 + "|")
    speed = {s: statistics.median(batch / seconds(r) for r in rs) for s, rs in found.items()}
    peak = {s: statistics.median(r["peak_gib"] for r in rs) for s, rs in found.items()}
    for side in found:
        than = "TRL" if "TRL" in found else side
        ratio, memory = speed[side] / speed[than], peak[side] / peak[than]
        cells = f"{speed[side]:.2f} | {ratio:.1f}× | {peak[side]:.2f} | {memory:.2f}×"
        print(f"| {side} | {cells} |")
    print("\nSeconds a rollout by phase (ours: score holds reference and value; in brackets: times")
    print("the floor).\n\n| side | " + " | ".join(PHASES) + " | all |")
    print("|---" * (len(PHASES) + 2) + "|")
    for side, results in found.items():
        rows = [row for result in results for row in result["rollouts"][1:]]
        cells = []
        for name in PHASES:
            took = statistics.median(row["phases"].get(name, 0.0) for row in rows)
            share = statistics.median(row.get("mfu", {}).get(name, 0.0) for row in rows)
            times = f" ({1 / share:.1f}×)" if share else ""
            cells.append(f"{took:.2f}{times}" if took else "–")
        share = statistics.median(row.get("all", 0.0) for row in rows)
        times = f" ({1 / share:.1f}×)" if share else ""
        cells.append(f"{statistics.median(row['seconds'] for row in rows):.2f}{times}")
        print(f"| {side} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", help="the Python of an environment with trl 1.12.0")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=1, help="counted rollouts a run")
    parser.add_argument("--batch", type=int, default=16, help="completions a rollout")
    parser.add_argument("--length", type=int, default=20, help="tokens a completion")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        settings = json.loads(Path(arguments.worker).read_text(encoding="utf-8"))
        print(json.dumps(train_ours(settings)))
        return
    if any(SIDES[side][0] == "peer" for side in arguments.sides) and not arguments.peer:
        parser.error("--peer: name the Python of an environment with trl 1.12.0")
    cores = os.cpu_count()
    print(f"{platform.processor() or platform.machine()}, {cores} cores; torch {torch.__version__}")
    print(f"{vars(arguments)}")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in arguments.sides}
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder), arguments)
        turns = [(n, side) for n in range(arguments.repeats) for side in arguments.sides]
        for n, side in progress(turns, "benchmark", len(turns)):
            found[side].append(run_side(side, settings, arguments.peer))
            row = found[side][-1]
            took = statistics.median(r["seconds"] for r in row["rollouts"][1:])
            print(f"{n} {side}: {took:.1f} s a rollout, {row['peak_gib']:.2f} GiB", flush=True)
    table(found, arguments.batch)


if __name__ == "__main__":
    main()
