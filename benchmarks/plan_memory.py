"""Holds `rlhf plan` to what stages really take: predicted and measured peak memory, side by side.

    python benchmarks/plan_memory.py                  # all cases, on the embedded model
    python benchmarks/plan_memory.py --only lora      # those with the word in their name

Each case is a stage of the embedded 135M model in a process of its own, for a few steps: what it
took at most (stage.json's peak_memory_gib) beside the largest phase of its plan.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.files import read_json  # noqa: E402

CONFIG = ROOT / "configs" / "quickstart.yaml"
# Few steps of everything; the reward is a rule, so that the stage's own memory is what is seen.
SHORT = (
    "reward.source=rules:repetition", "reward.gold=rules:repetition", "sft.max_steps=3",
    "ppo.total_episodes=null", "ppo.max_steps=4", "ppo.eval_strategy=no",
    "ppo.eval_on_start=false", "ppo.critic=head", "ppo.prefix_every=1", "dpo.max_steps=3",
    "pairs.max_pairs=64", "pairs.labels=sampled", "tracking.report_to=[]",
)  # fmt: skip
UPPER = ("model.trainable_layers=10", "model.policy_modules=null")
FULL = ("model.trainable_layers=null", "model.policy_modules=null")
LORA = (*FULL, "model.use_peft=true")
MODULES = ("model.trainable_layers=10", "model.policy_modules=[v_proj, o_proj]")


@dataclass(frozen=True)
class Case:
    """A stage with its settings; cases of the same model share the reference."""

    name: str
    stage: str
    model: tuple[str, ...]
    more: tuple[str, ...] = ()

    @property
    def settings(self) -> list[str]:
        """All that differs from the quickstart."""
        skip = () if self.stage == "sft" else ("sft.skip=true",)
        return [*SHORT, *skip, *self.model, *self.more]


PLAIN = ("ppo.kl_estimator=k1",)
CASES = (
    Case("SFT, all weights", "sft", FULL),
    Case("SFT, all weights, 64 rows", "sft", FULL, ("sft.per_device_train_batch_size=64",)),
    Case("SFT, upper 10 layers", "sft", UPPER),
    Case("SFT, LoRA", "sft", LORA),
    Case("PPO, upper 10 layers", "ppo", UPPER, PLAIN),
    Case("PPO, all weights", "ppo", FULL, PLAIN),
    Case("PPO, LoRA", "ppo", LORA, PLAIN),
    Case("PPO, v_proj and o_proj, exact KL", "ppo", MODULES),
    Case("DPO, upper 10 layers", "dpo", UPPER),
)


def measured(case: Case, folder: Path) -> tuple[float, float]:
    """GiB that the stage took at most, and seconds of its process."""
    if case.stage != "sft":
        _rlhf("reward", case, folder)
    start = time.monotonic()
    _rlhf(case.stage, case, folder)
    return read_json(folder / case.stage / "stage.json")[
        "peak_memory_gib"
    ], time.monotonic() - start


def _rlhf(stage: str, case: Case, folder: Path) -> None:
    command = [sys.executable, "-m", "pipeline", stage, "--config", str(CONFIG), *case.settings]
    ran = subprocess.run(
        [*command, f"output_dir={folder}"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    if ran.returncode:
        raise SystemExit(f"{case.name}: {ran.stderr[-2000:]}")


def predicted(case: Case) -> tuple[float, str]:
    """GiB of the largest phase of the stage's plan, and its name."""
    from pipeline.config import load_experiment
    from pipeline.plan.devices import GIB, machine
    from pipeline.plan.needs import needs_of

    experiment = load_experiment(CONFIG, case.settings)
    need = next(n for n in needs_of(experiment, machine("cpu")) if n.stage == case.stage)
    return need.peak.total / GIB, need.peak.name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases with one of these words in their name")
    words = parser.parse_args().only.lower().split(",")
    chosen = [case for case in CASES if any(word.strip() in case.name.lower() for word in words)]
    print("| stage | predicted, GiB | at | measured, GiB | predicted is off by |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(chosen):
            plan, at = predicted(case)
            took, seconds = measured(case, Path(folder) / str(number))
            worst = max(worst, abs(plan / took - 1))
            print(
                f"| {case.name} | {plan:.2f} | {at} | {took:.2f} | {plan / took - 1:+.0%} |",
                flush=True,
            )
            print(f"{seconds:.0f} s", file=sys.stderr)
    print(f"\nlargest error: {worst:.0%}")


if __name__ == "__main__":
    main()
