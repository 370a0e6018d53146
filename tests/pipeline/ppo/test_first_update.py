"""The quickstart's first update: from it the KL grows that buys no reward, if it is too large."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import runner
from pipeline.config import load_experiment
from pipeline.output.metrics_file import read_metrics

REWARD = "def score(prompts, completions):\n    return [4.0 * ('e' in c) for c in completions]\n"


@pytest.mark.long  # the real model, two minutes of a slow machine: when the settings change
@pytest.mark.assets
def test_the_first_update_is_small(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    config = root / "configs" / "quickstart.yaml"
    shipped = load_experiment(config).trainer_args("ppo")
    rollout = 2 * shipped["per_device_train_batch_size"]
    steps = shipped["num_ppo_epochs"] * shipped["num_mini_batches"]
    planned = shipped["total_episodes"] // rollout * steps
    # One rollout, with the warm-up of the whole run.
    one = [f"ppo.total_episodes={rollout}", f"ppo.warmup_steps={0.1 * planned:.0f}"]
    smaller = ["generation.max_new_tokens=8", "sft.skip=true", "tracking.report_to=[]"]
    source = f"reward.source={tmp_path / 'mine.py'}:score"
    experiment = load_experiment(config, [f"output_dir={tmp_path}", source, *one, *smaller])
    runner.run(experiment, "ppo")
    rows = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    first = next(row for row in rows if "loss" in row)  # an evaluation may come before it
    assert shipped["warmup_steps"] == 0.1
    assert 0 < first["policy/approxkl_max"] <= 0.02
    assert 1 < first["val/ratio_max"] <= 3
