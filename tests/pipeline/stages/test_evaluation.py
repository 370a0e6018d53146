"""Every training stage is evaluated on what it does not train on, and keeps its best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline import runner
from pipeline.config import Experiment, load_experiment
from pipeline.output.metrics_file import read_metrics
from pipeline.report import figures

EVERY = {"sft": 4, "ppo": 4, "dpo": 2}
SETTINGS = [
    "ppo.metric_for_best_model=kl",
    "ppo.greater_is_better=true",
    "dpo.metric_for_best_model=rewards/margins",
    "dpo.greater_is_better=false",
    "dpo.save_steps=2",
    "sft.metric_for_best_model=loss",
    "sft.greater_is_better=true",
    "sft.save_steps=4",
    "sft.save_total_limit=1",
    *(
        f"{stage}.{setting}"
        for stage, steps in EVERY.items()
        for setting in (
            "eval_strategy=steps",
            f"eval_steps={steps}",
            "load_best_model_at_end=true",
        )
    ),
]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The trained stages of configs/tiny.yaml, evaluated all the way."""
    folder = tmp_path_factory.mktemp("evaluated")
    rules = folder / "rules.py"
    rules.write_text(
        "def length(prompts, completions):\n    return [len(c) for c in completions]\n"
        "def words(prompts, completions):\n    return [len(c.split()) for c in completions]\n"
    )
    experiment = load_experiment(
        tiny,
        [
            *SETTINGS,
            f"output_dir={folder / 'run'}",
            f"reward.source={rules}:length",
            f"reward.gold={rules}:words",
        ],
    )
    for stage in ("sft", "reward", "ppo", "dpo"):
        runner.run(experiment, stage)
    return experiment


def rows(experiment: Experiment, stage: str, key: str) -> dict[int, float]:
    lines = (experiment.stage_dir(stage) / "metrics.jsonl").read_text(encoding="utf-8")
    read: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
    return {row["step"]: row[key] for row in read if key in row}


BEST = [("sft", "loss", max), ("ppo", "kl", max), ("dpo", "rewards/margins", min)]


@pytest.mark.parametrize(("stage", "metric", "best"), BEST)
def test_the_best_by_the_heldout_part_is_kept(
    trained: Experiment, stage: str, metric: str, best: Any
) -> None:
    values = rows(trained, stage, f"eval_{metric}")
    steps = sorted(values)
    assert len(steps) >= 4 and steps[0] == EVERY[stage]
    assert all(math.isfinite(value) for value in values.values())
    chosen = best(values, key=values.get)
    folder = trained.stage_dir(stage)
    kept = load_file(folder / "checkpoints" / f"checkpoint-{chosen}" / "model.safetensors")
    model = load_file(folder / "model" / "model.safetensors")
    assert all(bool((kept[name] == model[name]).all()) for name in model)
    if stage == "sft":  # its loss is the largest at first: the best is not the last
        assert chosen == steps[0]


def test_the_judge_scores_what_ppo_is_evaluated_on(trained: Experiment) -> None:
    gold, errors = (rows(trained, "ppo", key) for key in ("eval_gold", "eval_gold_se"))
    lines = (trained.stage_dir("ppo") / "evaluations.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [row["step"] for row in kept] == list(gold) == list(errors)
    for row in kept:
        assert sum(row["gold"]) / len(row["gold"]) == pytest.approx(gold[row["step"]])
        assert all(0 <= words <= 8 and words == int(words) for words in row["gold"])
    assert figures.gold_kl(read_metrics(trained.stage_dir("ppo") / "metrics.jsonl")) is not None


def test_a_reference_that_is_fine_tuned_already(tiny: Path, trained: Experiment) -> None:
    """Its weights are the reference's, and no stage before it is asked for."""
    mine, output = trained.stage_dir("sft") / "model", trained.output_dir.parent / "skipped"
    experiment = load_experiment(
        tiny,
        [
            f"output_dir={output}",
            "sft.skip=true",
            f"model.model_name_or_path={mine}",
            f"reward.source={trained.reward.source}",
            "beta=0",
        ],
    )
    runner.run(experiment, "ppo")
    taken = load_file(output / "sft" / "model" / "model.safetensors")
    given = load_file(mine / "model.safetensors")
    assert taken.keys() == given.keys()
    assert all(bool((taken[name] == given[name]).all()) for name in given)
    assert rows(experiment, "ppo", "objective/kl_coef").popitem()[1] == 0
    runner.run(experiment, "compare")
    runner.run(experiment, "report")
    assert (output / "report" / "index.html").is_file()
