"""Reward against KL while learning: our PPO and TRL 1.12's on the quickstart task.

    make quickstart
    python -m venv peer && peer/bin/pip install torch==2.13.0 trl==1.12.0 "transformers<6" peft
    python benchmarks/ppo_quality.py --peer peer/bin/python       # three quarters of an hour

Both start from the quickstart's SFT model, train LoRA adapters on the same prompts with the same
hyperparameters and are paid by the same trained sentiment classifier (which TRL's own reward
interface cannot hold, as it has another tokenizer: the peer's `get_reward` is given one that
decodes first). The critics are each side's own: TRL's is a model with LoRA adapters at the policy's
learning rate, ours a head at ten times that (its default). Both compute bfloat16 products over
float32 weights. The seeds take turns; a run that is in the output file is not made again (remove
the file where the code has changed).

Each rollout gives a point: its mean score, and its mean log-ratio to the reference in nats a
completion (k1, which both log; unbiased). Printed: the reward at each KL, interpolated in each
seed's curve after a moving mean over rollouts, mean and least to greatest over the seeds, and the
worst difference beside the larger of both sides' spreads and TRL's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from common.files import read_json, write_json
from pipeline.config import load_experiment
from pipeline.output import quiet
from pipeline.output.terminal import progress
from pipeline.provenance import content_hash

HERE = Path(__file__).resolve()
CONFIG = HERE.parents[1] / "configs" / "quickstart.yaml"
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
COMMON = {
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "gamma": 1.0,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "temperature": 1.0,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
}
SIDES = ("ours", "TRL")
SMOOTH = 4  # rollouts in the moving mean


class Rollouts(TrainerCallback):
    """Takes each rollout's score and KL."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "objective/scores" in logs:
            self.rows.append({name: logs[name] for name in ("objective/kl", "objective/scores")})


def train_ours(settings: dict[str, Any]) -> list[dict[str, float]]:
    """One run of our trainer; its rollouts' scores and KL."""
    from pipeline.data.splits import load_data
    from pipeline.ppo import PPOConfig, PPOTrainer
    from pipeline.stages.reward_sources import proxy_reward
    from pipeline.stages.training import load_trainable_sft

    quiet.after_imports()
    changes = ["model.use_peft=true", "model.trainable_layers=null", "model.policy_modules=null"]
    changes += [f"seed={settings['seed']}"]
    experiment = load_experiment(CONFIG, [f"output_dir={settings['run']}", *changes])
    model, tokenizer = load_trainable_sft(experiment)
    rollouts = Rollouts()
    trainer = PPOTrainer(
        model=model,
        reward_function=proxy_reward(experiment),
        args=PPOConfig(
            **COMMON,  # type: ignore[arg-type]
            output_dir=settings["work"] + "/ours",
            use_cpu=True,
            bf16=True,
            disable_tqdm=True,
            save_strategy="no",
            seed=settings["seed"],
            per_device_train_batch_size=settings["batch"] // 2,
            total_episodes=settings["batch"] * settings["rollouts"],
            response_length=settings["length"],
            kl_coef=settings["beta"],
        ),
        processing_class=tokenizer,
        train_dataset=load_data(experiment).train_prompts,
        callbacks=[rollouts],
    )
    trainer.train()
    return rollouts.rows


def run_ours(settings: dict[str, Any]) -> list[dict[str, float]]:
    """:func:`train_ours` in a process of its own."""
    path = Path(settings["work"]) / "ours.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, str(HERE), "--worker", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ours: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_peer(settings: dict[str, Any], peer: str) -> list[dict[str, float]]:
    """One run of TRL's trainer in its own environment."""
    path = Path(settings["work"]) / "peer.json"
    arguments = COMMON | {
        "output_dir": settings["work"] + "/peer",
        "seed": settings["seed"],
        "kl_coef": settings["beta"],
        "per_device_train_batch_size": settings["batch"],
        "gradient_accumulation_steps": 1,
        "total_episodes": settings["batch"] * settings["rollouts"],
        "response_length": settings["length"],
        "local_rollout_forward_batch_size": settings["batch"],
        "stop_token": "eos",
    }
    path.write_text(json.dumps(settings | {"arguments": arguments}), encoding="utf-8")
    root = str(HERE.parents[1])
    environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": root}
    command = [peer, str(HERE.with_name("trl_ppo_peer.py")), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"TRL: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["rollouts"]


def shared_settings(arguments: argparse.Namespace, work: str) -> dict[str, Any]:
    """What both sides are given."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from pipeline.data.splits import load_data

    experiment = load_experiment(CONFIG, [f"output_dir={arguments.run}"])
    model = experiment.stage_dir("sft") / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(2)
    critic = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, dtype=torch.float32
    )
    torch.nn.init.zeros_(critic.score.weight)  # as our value head begins
    critic.config.pad_token_id = tokenizer.unk_token_id
    critic.save_pretrained(f"{work}/critic")
    return {
        "run": str(arguments.run),
        "work": work,
        "threads": torch.get_num_threads(),
        "model": str(model),
        "critic": f"{work}/critic",
        "reward": f"{work}/critic",
        "text_reward": str((experiment.stage_dir("reward") / "proxy").absolute()),
        "dtype": "float32",
        "autocast": True,
        "lora_critic": True,
        "pad_token": tokenizer.unk_token,
        "prompts": [tokenizer(p)["input_ids"] for p in load_data(experiment).train_prompts],
        "lora": LORA,
        "batch": arguments.batch,
        "rollouts": arguments.rollouts,
        "length": experiment.generation.max_new_tokens,
        "beta": experiment.beta,
    }


def digest(settings: dict[str, Any]) -> str:
    """Everything but the seed and the code that decides a run."""
    files = [content_hash(settings[name]) for name in ("model", "text_reward")]
    given = {k: v for k, v in settings.items() if k not in ("work", "run", "critic", "reward")}
    parts = json.dumps([files, given, COMMON], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def curve(rows: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """KL (ascending) and reward of a run, both after a moving mean over `SMOOTH` rollouts."""
    kernel = np.full(SMOOTH, 1 / SMOOTH)
    columns = [[row[name] for row in rows] for name in ("objective/kl", "objective/scores")]
    kl, reward = (np.convolve(column, kernel, mode="valid") for column in columns)
    order = np.argsort(kl)
    return kl[order], reward[order]


def _print_curves(curves: dict[str, list[tuple[Any, Any]]], low: float, high: float) -> None:
    print(f"\nKL that every run passed: {low:.2f} to {high:.2f} nats\n")
    print("| KL | ours | TRL | difference | TRL's spread | ours' spread |\n" + "|---" * 6 + "|")
    rows = []
    for kl in np.linspace(low, high, 6):
        at = {side: [float(np.interp(kl, *c)) for c in cs] for side, cs in curves.items()}
        spread = {side: max(values) - min(values) for side, values in at.items()}
        difference = statistics.mean(at["ours"]) - statistics.mean(at["TRL"])
        rows.append((difference, spread["TRL"], spread["ours"]))
        cells = [
            f"{statistics.mean(at[side]):.2f} ({min(at[side]):.2f} to {max(at[side]):.2f})"
            for side in ("ours", "TRL")
        ]
        spreads = f"{spread['TRL']:.2f} | {spread['ours']:.2f}"
        print(f"| {kl:.2f} | {cells[0]} | {cells[1]} | {difference:+.2f} | {spreads} |")
    below, theirs, own = min(rows)
    print(f"lowest difference {below:+.2f}, where TRL's seeds spread {theirs:.2f}, ours {own:.2f}")


def compare(found: dict[str, list[list[dict[str, float]]]]) -> None:
    """Print reward at each KL that every run reached, and where each run ended."""
    curves = {side: [curve(rows) for rows in runs] for side, runs in found.items()}
    everyone = [c for side in curves.values() for c in side]
    low, high = max(kl[0] for kl, _ in everyone), min(kl[-1] for kl, _ in everyone)
    if low >= high:
        print(f"\nno KL that every run passed: one begins at {low:.2f}, one ends at {high:.2f}")
    else:
        _print_curves(curves, low, high)
    for side, runs in found.items():
        ends = [statistics.mean(r["objective/scores"] for r in rows[-SMOOTH:]) for rows in runs]
        kls = [statistics.mean(r["objective/kl"] for r in rows[-SMOOTH:]) for rows in runs]
        print(f"{side}: last rollouts' reward {', '.join(f'{e:.2f}' for e in ends)}"
              f" at KL {', '.join(f'{k:.2f}' for k in kls)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", help="the Python of an environment with trl 1.12.0")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a finished run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64, help="completions a rollout")
    parser.add_argument("--output", type=Path, default=Path("ppo_quality.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(train_ours(json.loads(Path(arguments.worker).read_text()))))
        return
    quiet.before_imports()
    quiet.after_imports()
    if not arguments.peer:
        parser.error("--peer: name the Python of an environment with trl 1.12.0")
    if not (arguments.run / "reward" / "proxy").is_dir():
        parser.error(f"--run: {arguments.run} has no finished reward stage; run `make quickstart`")
    print(f"{os.cpu_count()} cores; torch {torch.__version__}; {vars(arguments)}")
    found: dict[str, list[list[dict[str, float]]]] = {side: [] for side in SIDES}
    done = read_json(arguments.output) if arguments.output.is_file() else {}
    turns = [(seed, side) for seed in arguments.seeds for side in SIDES]
    with tempfile.TemporaryDirectory() as work:
        settings = shared_settings(arguments, work)
        same = digest(settings)
        for seed, side in progress(turns, "runs", len(turns)):
            name = f"{side}, seed {seed}, {same}"
            if name not in done:
                settings["seed"] = seed
                ours = side == "ours"
                done[name] = run_ours(settings) if ours else run_peer(settings, arguments.peer)
                write_json(arguments.output, done)
            rows = [(round(r["objective/kl"], 2), round(r["objective/scores"], 2))
                    for r in done[name]]  # fmt: skip
            print(f"{name}: (KL, reward) {rows}", flush=True)
            found[side].append(done[name])
    compare(found)


if __name__ == "__main__":
    main()
