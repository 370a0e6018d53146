"""A comparison without models: stands in for checkpoints, rewards and sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import read_json
from pipeline.compare.evaluate import Evaluation
from pipeline.config import CompareSection, Experiment, RewardSection, TrackingSection
from pipeline.stages import compare

PROMPTS = 40


def experiment(folder: Path, **compare_section: Any) -> Experiment:
    section: dict[str, Any] = {
        "samples_per_prompt": 4,
        "reference_samples": 16,
        "best_of_n": 4,
        "bootstrap": 60,
    }
    return Experiment(
        output_dir=folder,
        reward=RewardSection(source="rules.py:length"),
        compare=CompareSection(**(section | compare_section)),
        tracking=TrackingSection(report_to=[], log_samples=0),
    )


def evaluation(method: str, m: int, shift: float, kl: float) -> Evaluation:
    rng = np.random.default_rng(len(method) + m)
    count = PROMPTS * m
    rewards = rng.normal(shift, 2.0, count)
    return Evaluation(
        prompts=[f"prompt {i}" for i in range(PROMPTS)],
        samples_per_prompt=m,
        texts=[f"{method} text {i} {i % 3}" for i in range(count)],
        lengths=[3 + i % 4 for i in range(count)],
        ended=[i % 5 > 0 for i in range(count)],
        proxy=rewards.tolist(),
        gold=(rewards / 2 + rng.normal(0, 0.5, count)).tolist(),
        kl=(kl * rng.uniform(0.5, 1.5, count)).tolist(),
        nll=40.0 + shift,
        nll_tokens=20,
    )


class Models:
    """Stands in for checkpoints, rewards and sampling; counts what is evaluated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluated: list[str] = []
        self.killed_at: str | None = None
        monkeypatch.setattr(compare, "load_checkpoint", lambda path, *_: (str(path), None))
        monkeypatch.setattr(compare, "proxy_reward", lambda experiment: None)
        monkeypatch.setattr(compare, "gold_reward", lambda experiment: None)
        monkeypatch.setattr(
            compare,
            "load_data",
            lambda experiment: type("Data", (), {"eval_prompts": [], "heldout": []}),
        )
        monkeypatch.setattr(compare, "judge", lambda experiment: None)
        monkeypatch.setattr(compare, "evaluate_policy", self.evaluate)

    def evaluate(self, policy: str, tokenizer: Any, reference: str, *args: Any, **kwargs: Any):
        method = Path(policy).parent.name
        if method == self.killed_at:
            raise KeyboardInterrupt
        assert Path(reference).parent.name == "sft"
        self.evaluated.append(method)
        known = {"sft": (0.0, 0.0), "ppo": (2.0, 0.9), "dpo": (1.5, 1.0)}
        shift, kl = known.get(method, (1.0, 0.5))
        return evaluation(method, kwargs["samples_per_prompt"], shift, kl)


def checkpoints(exp: Experiment, *methods: str) -> Experiment:
    for method in methods:
        folder = exp.stage_dir(method) / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    return exp


def read(exp: Experiment) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    folder = exp.stage_dir("compare")
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return read_json(folder / "results.json"), read_json(folder / "details.json"), rows
