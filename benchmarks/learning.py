"""How well PPO and DPO learn the quickstart's task: variants × seeds, on prompts kept apart.

    python benchmarks/learning.py --variants all --seeds 0 1 2          # choose: validation prompts
    python benchmarks/learning.py --variants ppo dpo --seeds 5 6 7 8 9 --prompts test      # report
    python benchmarks/learning.py --variants dpo dpo-two --seeds 0 1 2 --prompts heldout   # surer
    python benchmarks/learning.py --table                               # what was measured so far

The quickstart's SFT model and rewards are trained once, in `--folder`; every trial trains one
method from them with its own seed, on the same data. Choices are made on validation prompts, which
nothing is trained on; the test prompts, the comparison's, are for the report, with other seeds. An
optimality from 64 prompts has a standard error of about 0.06: `--prompts heldout` measures on those
of all held-out texts, four times as many, the validation prompts among them.

A trial is measured at the end of training and where its weights are drawn towards the reference's
by α (linear interpolation, arXiv 2406.16768), which gives a reward–KL curve; the reward at 0.5, 1
and 2 nats is read from it by straight lines through KL's square root, in which the gain is nearly
linear; what is gained by each root of a nat is printed too. Optimality is the share of the possible
gain of E[r] − β·KL that the end of training has, as in the report. A trial that is in the folder is
not made again; remove it where the code has changed. Printed are means over the seeds, and least to
greatest.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.files import read_json, write_json
from pipeline import runner
from pipeline.compare import frontier
from pipeline.compare.evaluate import evaluate_policy, summarise
from pipeline.config import Experiment, load_experiment
from pipeline.data.splits import load_data
from pipeline.lm.hardware import policy_dtype
from pipeline.lm.models import load_checkpoint
from pipeline.output import quiet
from pipeline.output.metrics_file import read_metrics
from pipeline.stages import dpo, ppo, reweighted
from pipeline.stages.heldout import whole_texts
from pipeline.stages.reward_sources import gold_reward, proxy_reward

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
ALPHAS = (0.5,)  # beside the end of training, 1
NATS = (0.5, 1.0, 2.0)
STAGES = {"ppo": ppo.run, "dpo": dpo.run, "reweighted": reweighted.run}


@dataclass(frozen=True)
class Variant:
    """A method and what is set otherwise than in the quickstart."""

    stage: str
    settings: tuple[str, ...]
    why: str


# Weights in the place of adapters, of the upper ten layers: all, or the two kinds of most signal.
_WEIGHTS = ("model.use_peft=false", "model.trainable_layers=10")
_MODULES = (*_WEIGHTS, "model.policy_modules=[v_proj,o_proj]")
_PPO_ALL, _DPO_ALL = ((*_WEIGHTS, f"{stage}.learning_rate=1e-4") for stage in ("ppo", "dpo"))
_PPO_MODULES, _DPO_MODULES = (
    (*_MODULES, f"{stage}.learning_rate=3e-4") for stage in ("ppo", "dpo")
)
_PPO_WITHOUT = (
    *_PPO_ALL,
    "ppo.kl_estimator=k1",
    "ppo.critic=head",
    "ppo.prefix_every=1",
    "ppo.lam=0.95",
    "ppo.warmup_steps=0",
)
# An ε far above the gradient's size makes of Adam plain descent with momentum (SGD against Adam
# in RL: arXiv 2602.07729); the rates are those at which the first steps have the same length.
_PPO_DESCENT = (*_MODULES, "ppo.adam_epsilon=1e-3", "ppo.learning_rate=1.5e-3")
_DPO_DESCENT = (*_MODULES, "dpo.adam_epsilon=3e-3", "dpo.learning_rate=1.6e-3")
# The shipped adapters again, after what takes them away.
_LORA = ("model.use_peft=true", "model.trainable_layers=20", "model.policy_modules=null")
# As many completions, and as many of them a step, of more prompts or fewer.
_TWO = ("pairs.samples_per_prompt=2", "pairs.max_pairs=1536")
_FOUR = ("pairs.samples_per_prompt=4", "pairs.max_pairs=4608")
_SIXTEEN = ("pairs.samples_per_prompt=16", "pairs.max_pairs=23040")
_DPO_PLAIN = (*_DPO_ALL, "pairs.labels=sampled", "dpo.num_train_epochs=1")
_DPO_WITHOUT = (*_TWO, *_DPO_PLAIN)
_DISTILLED = (
    "reweighted.n=48",  # 49,152 queries: 16 times DPO's, 4 times PPO's with its prefixes
    "reweighted.num_train_epochs=2",
    "reweighted.per_device_train_batch_size=16",
    "reweighted.learning_rate=1e-3",
    "reweighted.lr_scheduler_type=cosine",
    "reweighted.warmup_steps=0.1",
)
VARIANTS = {
    "ppo": Variant("ppo", (), "as shipped"),
    # Each of what is shipped taken away, and all of it.
    "ppo-k1": Variant("ppo", ("ppo.kl_estimator=k1",), "the sampled KL"),
    "ppo-head": Variant("ppo", ("ppo.critic=head", "ppo.prefix_every=1"), "a trained critic"),
    "ppo-modules": Variant("ppo", _PPO_MODULES, "weights of v_proj and o_proj, upper ten layers"),
    "ppo-all": Variant("ppo", _PPO_ALL, "all weights of the upper ten layers"),
    "ppo-lam0.95": Variant("ppo", ("ppo.lam=0.95",), "λ = 0.95"),
    "ppo-cold": Variant("ppo", ("ppo.warmup_steps=0",), "no warm-up"),
    "ppo-none": Variant("ppo", _PPO_WITHOUT, "none of these five"),
    # Each alone.
    "ppo-only-exact": Variant("ppo", (*_PPO_WITHOUT, "ppo.kl_estimator=exact"), "the exact KL"),
    "ppo-only-prefix": Variant(
        "ppo", (*_PPO_WITHOUT, "ppo.critic=prefix", "ppo.prefix_every=2"), "the reward of prefixes"
    ),
    "ppo-only-modules": Variant("ppo", (*_PPO_WITHOUT, *_PPO_MODULES), "v_proj and o_proj"),
    "ppo-only-lora": Variant("ppo", (*_PPO_WITHOUT, *_LORA, "ppo.learning_rate=1e-3"), "LoRA"),
    "ppo-only-lam0.9": Variant("ppo", (*_PPO_WITHOUT, "ppo.lam=0.9"), "λ = 0.9"),
    "ppo-only-warm": Variant("ppo", (*_PPO_WITHOUT, "ppo.warmup_steps=0.1"), "warm-up"),
    "ppo-former": Variant(
        "ppo", (*_PPO_WITHOUT, "ppo.total_episodes=2560"), "none, and 2,560 episodes"
    ),
    "ppo-lam1": Variant("ppo", ("ppo.lam=1",), "λ = 1"),
    "ppo-lam0.8": Variant("ppo", ("ppo.lam=0.8",), "λ = 0.8"),
    "ppo-lora": Variant("ppo", (*_LORA, "ppo.learning_rate=1e-3"), "shipped, over any --settings"),
    "ppo-slow": Variant("ppo", ("ppo.learning_rate=5e-4",), "half the learning rate"),
    "ppo-fast": Variant("ppo", ("ppo.learning_rate=2e-3",), "twice the learning rate"),
    "ppo-ten": Variant("ppo", ("model.trainable_layers=10",), "LoRA on the upper ten layers"),
    "ppo-deepest": Variant("ppo", ("model.trainable_layers=null",), "LoRA on all 30 layers"),
    "ppo-rank1": Variant("ppo", ("model.lora_r=1", "model.lora_alpha=2"), "LoRA of rank 1"),
    "ppo-rank16": Variant("ppo", ("model.lora_r=16", "model.lora_alpha=32"), "LoRA of rank 16"),
    "ppo-descent": Variant("ppo", _PPO_DESCENT, "v_proj and o_proj by descent, for Adam"),
    "ppo-long": Variant("ppo", ("ppo.total_episodes=2560",), "2,560 episodes"),
    "dpo": Variant("dpo", (), "as shipped"),
    "dpo-sampled": Variant("dpo", ("pairs.labels=sampled",), "labels drawn"),
    "dpo-once": Variant("dpo", ("dpo.num_train_epochs=1",), "one epoch"),
    "dpo-modules": Variant("dpo", _DPO_MODULES, "weights of v_proj and o_proj, upper ten layers"),
    "dpo-all": Variant("dpo", _DPO_ALL, "all weights of the upper ten layers"),
    "dpo-four": Variant("dpo", _FOUR, "four samples of twice the prompts"),
    "dpo-two": Variant("dpo", _TWO, "two samples of four times the prompts"),
    "dpo-sixteen": Variant("dpo", _SIXTEEN, "sixteen samples of half the prompts"),
    "dpo-none": Variant("dpo", _DPO_WITHOUT, "none of these four"),
    # Around pairs of two samples, which were shipped before.
    "dpo-two-sampled": Variant("dpo", (*_TWO, "pairs.labels=sampled"), "two, labels drawn"),
    "dpo-two-once": Variant("dpo", (*_TWO, "dpo.num_train_epochs=1"), "two, one epoch"),
    "dpo-two-all": Variant("dpo", (*_TWO, *_DPO_ALL), "two, all weights of the upper ten layers"),
    "dpo-two-deep": Variant("dpo", (*_TWO, "model.trainable_layers=20"), "two, upper 20 layers"),
    "dpo-only-eight": Variant("dpo", _DPO_PLAIN, "eight samples of a prompt"),
    "dpo-only-soft": Variant("dpo", (*_DPO_WITHOUT, "pairs.labels=soft"), "soft labels"),
    "dpo-only-twice": Variant("dpo", (*_DPO_WITHOUT, "dpo.num_train_epochs=2"), "two epochs"),
    "dpo-only-modules": Variant("dpo", (*_DPO_WITHOUT, *_DPO_MODULES), "v_proj and o_proj"),
    "dpo-only-lora": Variant("dpo", (*_DPO_WITHOUT, *_LORA, "dpo.learning_rate=1e-3"), "LoRA"),
    "dpo-lora": Variant("dpo", (*_LORA, "dpo.learning_rate=1e-3"), "shipped, over any --settings"),
    "dpo-rate": Variant(
        "dpo", ("dpo.num_train_epochs=1", "dpo.learning_rate=2e-3"), "one epoch, twice the rate"
    ),
    "dpo-slow": Variant("dpo", ("dpo.learning_rate=5e-4",), "half the learning rate"),
    "dpo-fast": Variant("dpo", ("dpo.learning_rate=2e-3",), "twice the learning rate"),
    "dpo-ten": Variant("dpo", ("model.trainable_layers=10",), "LoRA on the upper ten layers"),
    "dpo-deepest": Variant("dpo", ("model.trainable_layers=null",), "LoRA on all 30 layers"),
    "dpo-descent": Variant("dpo", _DPO_DESCENT, "v_proj and o_proj by descent, for Adam"),
    "dpo-rebel": Variant("dpo", ("dpo.loss_type=rebel",), "regression on the reward difference"),
    # What bounds them: reward queries, steps from the same queries, capacity.
    "ppo-queries": Variant("ppo", ("ppo.total_episodes=6144",), "four times the queries"),
    "ppo-steps": Variant("ppo", ("ppo.num_ppo_epochs=4",), "twice the steps"),
    "dpo-double": Variant("dpo", ("pairs.max_pairs=21504",), "twice the queries"),
    "dpo-fresh": Variant(
        "dpo",
        ("pairs.max_pairs=21504", "dpo.num_train_epochs=1"),
        "twice the queries, as many steps",
    ),
    "dpo-queries": Variant("dpo", ("pairs.max_pairs=43008",), "four times the queries"),
    "dpo-steps": Variant("dpo", ("dpo.num_train_epochs=4",), "twice the steps"),
    "distilled": Variant("reweighted", _DISTILLED, "SFT on 4,096 draws of the optimum"),
    "distilled-all": Variant(
        "reweighted", (*_DISTILLED, *_WEIGHTS, "reweighted.learning_rate=1e-4"), "… all weights"
    ),
}


def base(folder: Path, settings: Sequence[str]) -> Experiment:
    """The experiment whose SFT model and rewards all trials share, trained if they are not."""
    own = [f"output_dir={folder / 'base'}", "tracking.report_to=[]"]
    experiment = load_experiment(CONFIG, [*settings, *own])
    runner.run(experiment, "reward")
    runner.run(experiment, "sft")
    return experiment


def trial(folder: Path, name: str, seed: int, settings: Sequence[str]) -> Experiment:
    """The experiment of one variant and seed, over the shared model and rewards."""
    place = folder / f"{name}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    for stage in ("sft", "reward"):
        if not (place / stage).exists():
            (place / stage).symlink_to((folder / "base" / stage).resolve())
    own = [f"output_dir={place}", f"seed={seed}", "data.seed=0", "tracking.report_to=[]"]
    return load_experiment(CONFIG, [*settings, *VARIANTS[name].settings, *own])


def interpolate(model: PreTrainedModel, ends: list[dict[str, torch.Tensor]], alpha: float) -> None:
    """Set the weights of ``model`` to reference + α (trained − reference)."""
    reference, trained = ends
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start, end = reference[name].float(), trained[name].float()
            parameter.copy_(start + alpha * (end - start))


class Meter:
    """Measures policies on one set of prompts."""

    def __init__(
        self, experiment: Experiment, prompts: str, samples: int, dtype: torch.dtype
    ) -> None:
        section = experiment.data
        if prompts == "heldout":
            section = section.model_copy(update={"validation_prompts": section.heldout})
        data = load_data(experiment.model_copy(update={"data": section}))
        self.prompts = data.eval_prompts if prompts == "test" else data.validation_prompts
        self.samples, self.experiment = samples, experiment
        self.dtype = dtype
        path = experiment.stage_dir("sft") / "model"
        self.reference, self.tokenizer = load_checkpoint(path, self.dtype)
        self.proxy, self.gold = proxy_reward(experiment), gold_reward(experiment)
        self.texts = whole_texts(data.heldout, self.tokenizer)
        self.folder = experiment.output_dir / f"measured-{prompts}"
        self.folder.mkdir(exist_ok=True)
        kept = self.folder / "reference.json"
        if not kept.is_file():
            number = experiment.compare.reference_samples
            write_json(kept, self._measure(self.reference, self.tokenizer, number, "reference")[1])
        self.rewards = np.asarray(read_json(kept)["rewards"])

    def _measure(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        samples: int,
        label: str,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        kept = self.folder / f"{label}.samples.jsonl"
        evaluation = evaluate_policy(
            policy,
            tokenizer,
            self.reference,
            self.prompts,
            self.texts,
            proxy=self.proxy,
            gold=self.gold,
            samples_per_prompt=samples,
            max_new_tokens=self.experiment.generation.max_new_tokens,
            batch_size=self.experiment.generation.batch_size,
            seed=self.experiment.seed,
            label=label,
            kept=kept,
        )
        kept.unlink()
        metrics = summarise(evaluation, self.experiment.beta, samples)
        return metrics, {**metrics, "rewards": evaluation.grid(evaluation.proxy).tolist()}

    def curve(self, folder: Path, label: str) -> list[dict[str, Any]]:
        """The policy's metrics at its end and on the way back to the reference."""
        policy, tokenizer = load_checkpoint(folder, self.dtype)
        ends = [
            {n: p.detach().clone() for n, p in m.named_parameters()}
            for m in (self.reference, policy)
        ]
        rows = []
        for alpha in (1.0, *ALPHAS):
            interpolate(policy, ends, alpha)
            metrics, _ = self._measure(policy, tokenizer, self.samples, f"{label} α={alpha:g}")
            rows.append({"alpha": alpha, **metrics})
        del policy, ends
        gc.collect()
        return rows

    def summary(self, rows: list[dict[str, Any]]) -> dict[str, float | None]:
        """Optimality and the reward at :data:`NATS`, of one trial's curve."""
        beta, end = self.experiment.beta, rows[0]
        start = float(self.rewards.mean())
        best = float(frontier.optimum(self.rewards, beta).by_prompt.mean())
        roots = [0.0, *(row["kl"] ** 0.5 for row in reversed(rows))]
        rewards = [start, *(row["reward"] for row in reversed(rows))]
        at = {  # None where the end of training has less KL
            f"at {nats:g} nats": float(np.interp(nats**0.5, roots, rewards))
            if nats <= end["kl"]
            else None
            for nats in NATS
        }
        keys = ("reward", "kl", "gold_positive", "perplexity", "ended")
        share = (end["objective"] - start) / (best - start)
        speed = {"gain per √KL": (end["reward"] - start) / end["kl"] ** 0.5}
        return {"optimality": share, **at, **speed, **{key: end[key] for key in keys}}


def learn(experiment: Experiment, name: str) -> dict[str, Any]:
    """Train one trial, unless it is there, and return its seconds and first update."""
    stage = VARIANTS[name].stage
    done = experiment.output_dir / "trained.json"
    if not done.is_file():
        start = time.monotonic()
        STAGES[stage](experiment)
        seconds = time.monotonic() - start
        rows = read_metrics(experiment.stage_dir(stage) / "metrics.jsonl")
        first = next(row for row in rows if "loss" in row)  # an evaluation may come before it
        write_json(done, {"seconds": seconds, "first": first, "why": VARIANTS[name].why})
    return read_json(done)


def show(folder: Path, prompts: str) -> None:
    """Print the table of all trials measured on ``prompts``."""
    rows: dict[str, list[dict[str, float | None]]] = {}
    for path in sorted(folder.glob(f"*/result-{prompts}.json")):
        rows.setdefault(path.parent.name.rpartition("-")[0], []).append(read_json(path))
    print(f"\n{prompts} prompts")
    for name in (name for name in VARIANTS if name in rows):
        print(f"{name:12s} {len(rows[name])} seeds · {VARIANTS[name].why}")
        for key in rows[name][0]:
            values = np.array([row[key] for row in rows[name]], dtype=float)
            known = values[np.isfinite(values)]
            text = "not reached"
            if len(known):
                text = f"{known.mean():.2f} ({known.min():.2f} to {known.max():.2f})"
                text += f" in {len(known)}" if len(known) < len(values) else ""
            print(f"    {key:14s} {text}")


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--variants", nargs="+", default=["ppo", "dpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--prompts", choices=("validation", "heldout", "test"), default="validation"
    )
    parser.add_argument(
        "--settings", nargs="+", default=[], help="set in all trials and in what they share"
    )
    parser.add_argument("--samples", type=int, default=4, help="completions a prompt (4)")
    parser.add_argument("--table", action="store_true", help="print what is there, train nothing")
    given = parser.parse_args()
    names = list(VARIANTS) if given.variants == ["all"] else given.variants
    if unknown := set(names) - VARIANTS.keys():
        parser.error(f"--variants: {', '.join(sorted(unknown))}: known are {', '.join(VARIANTS)}")
    quiet.before_imports()
    quiet.after_imports()
    if not given.table:
        shared = base(given.folder, given.settings)
        meters: dict[torch.dtype, Meter] = {}  # merged adapters are measured in float32
        for seed in given.seeds:
            for name in names:
                place = given.folder / f"{name}-{seed}"
                result = place / f"result-{given.prompts}.json"
                if result.is_file():
                    continue
                experiment = trial(given.folder, name, seed, given.settings)
                trained, stage = learn(experiment, name), VARIANTS[name].stage
                dtype = policy_dtype(experiment.model)
                if dtype not in meters:
                    meters[dtype] = Meter(shared, given.prompts, given.samples, dtype)
                meter = meters[dtype]
                rows = meter.curve(place / stage / "model", f"{name}-{seed}")
                seconds = {"seconds": trained["seconds"]}
                write_json(place / f"curve-{given.prompts}.json", rows)
                write_json(result, {**meter.summary(rows), **seconds})
                show(given.folder, given.prompts)
    show(given.folder, given.prompts)


if __name__ == "__main__":
    main()
