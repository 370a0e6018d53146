"""Trials that nobody ran: numbers drawn from a known distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sweep.results import Measured
from pipeline.sweep.trials import Trial

PROMPTS, SAMPLES = 12, 16
LOOKS = {
    "sft": {"title": "SFT", "kind": "reference", "marker": "o"},
    "ppo": {"title": "PPO", "kind": "trained", "marker": "D"},
    "dpo": {"title": "DPO", "kind": "trained", "marker": "s"},
    "best_of_n": {"title": "Best-of-N", "kind": "choice", "marker": "^"},
}

RECORDS = {
    name: {
        "name": name,
        "stage": None,
        "colour": "#112233",
        "dark": "#445566",
        "beta": None,
        "seed": None,
        **look,
    }
    for name, look in LOOKS.items()
}


def trial(policy: str, seed: int, beta: float = 0.5, **more: Any) -> Trial:
    name = f"{policy}-b{beta:g}-s{seed}"
    values: dict[str, Any] = {
        "name": name,
        "folder": Path(name),
        "policy": policy,
        "method": policy,
        "beta": beta,
        "betas": (beta,),
        "seed": seed,
        "over": {},
        "shared": Path("shared"),
        "pool": ("shared",),
        "tree": {},
        "experiment": None,
    }
    return Trial(**(values | more))


def measured(one: Trial, gain: float, noise: float = 0.1) -> Measured:
    """A policy whose reward is ``gain`` above the reference's, at a KL of 0.2."""
    rng = np.random.default_rng(one.seed)
    reference = rng.normal(0, 1, (PROMPTS, SAMPLES))
    difference = rng.normal(gain, noise, PROMPTS)
    reward, kl = reference.mean(axis=1) + difference, np.full(PROMPTS, 0.2)
    row = {"reward": float(reward.mean()), "reward_se": 0.1, "kl": 0.2, "gold": 0.3}
    row |= {"train_reward_queries": 100 + one.seed, "optimality": 0.1, "objective": 0.2}
    looks = [RECORDS[name] for name in ("sft", one.policy, "best_of_n")]
    methods = {"sft": {"reward": float(reference.mean()), "kl": 0.0}, one.policy: row}
    methods["best_of_n"] = {"reward": 1.0, "kl": 0.7}
    return Measured(
        results={"policies": looks, "methods": methods, "samples_per_prompt": 4},
        details={"best_of_n": 4, "judge_is_proxy": False},
        prompts=tuple(map(str, range(PROMPTS))),
        reward=reward,
        kl=kl,
        reference=reference,
        measure_seconds=5.0,
    )
