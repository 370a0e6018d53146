"""A reward of the user's that fails in the middle, from the command line."""

from __future__ import annotations

import json
import shutil

from pipeline.output.metrics_file import read_metrics

ROLLOUTS = 4
REWARD = """
from pathlib import Path

def score(prompts, completions):
    saved = Path({run!r}, "ppo", "checkpoints", "checkpoint-8", "complete.json")
    if saved.exists() and not Path({mended!r}).exists():
        {fault}
    return [0.1 * text.count("o") for text in completions]
"""


def test_a_failing_reward_is_one_line_and_the_same_command_goes_on(make_run, tmp_path) -> None:  # noqa: ANN001
    run = make_run("run", ROLLOUTS)
    shutil.rmtree(run.folder / "reward")
    script, mended = tmp_path / "mine.py", tmp_path / "mended"
    fault = "return [None for text in completions]"
    script.write_text(REWARD.format(run=str(run.folder), mended=str(mended), fault=fault))
    run.words.append(f"reward.source={script}:score")
    words = ["reward", *run.command()[1:]]
    assert run.nursery.wait(run.nursery.start(run.log, "rlhf", *words)) == 0, run.text()
    code, text = run.finish()
    assert code == 2, text
    assert "Traceback" not in text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    kept = run.checkpoints / "failed-rollout-8.json"
    assert "reward.source" in error and "mine.py:score" in error and str(kept) in error
    batch = json.loads(kept.read_text(encoding="utf-8"))
    assert len(batch["prompts"]) == len(batch["completions"]) == 32
    assert batch["returned"] == [None] * 32
    assert run.steps() == [4, 8]
    mended.touch()
    code, text = run.finish()
    assert code == 0, text
    rows = [row for row in read_metrics(run.folder / "ppo" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12, 16]
