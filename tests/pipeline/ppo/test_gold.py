"""The judge while PPO trains: what it is asked, what is kept, and when it ends a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import load_experiment
from pipeline.errors import UserError
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.upkeep.gold import GoldWatch
from pipeline.ppo.upkeep.sharing import whole_evaluation
from pipeline.ppo.upkeep.state import gold_has_fallen
from tests.pipeline.ppo.test_resume import Stop, assert_same_weights
from tests.pipeline.ppo.test_trainer import PROMPTS, Recorder, make_trainer

EVALUATED: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 4,
    "eval_on_start": True,
    "save_strategy": "steps",
    "save_steps": 4,
    "total_episodes": 80,
}


class Judge:
    """Marks each call ``drop`` lower than the one before, with a little noise a prompt."""

    def __init__(self, drop: float) -> None:
        self.drop, self.calls = drop, 0
        self.asked: list[list[str]] = []

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        self.asked.append(prompts)
        self.calls += 1
        noise = np.random.default_rng(self.calls).normal(size=len(prompts))
        return (noise * 0.01 - self.drop * self.calls).tolist()


def judged(folder: Path, judge: Judge, **settings: Any) -> tuple[PPOTrainer, Recorder]:
    trainer, recorder = make_trainer(folder, gold=judge, **(EVALUATED | settings))
    return trainer, recorder


def test_the_judge_scores_the_evaluation_prompts_and_no_others(tmp_path: Path) -> None:
    judge = Judge(drop=-0.1)
    trainer, recorder = judged(tmp_path, judge, total_episodes=32)
    trainer.train()
    rows = [log for log in recorder.logs if "eval_gold" in log]
    assert len(rows) == len(judge.asked) == 3  # before training, and after each of two rollouts
    assert all(prompts == PROMPTS[:8] for prompts in judge.asked)
    marks = np.random.default_rng(2).normal(size=8) * 0.01 + 0.2
    assert rows[1]["eval_gold"] == pytest.approx(marks.mean(), abs=1e-6)
    assert rows[1]["eval_gold_se"] == pytest.approx(marks.std(ddof=1) / 8**0.5, abs=1e-6)
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [row["step"] for row in kept] == [0, 4, 8]
    assert kept[2]["gold"] == pytest.approx(
        (np.random.default_rng(3).normal(size=8) * 0.01 + 0.3).tolist(), abs=1e-6
    )
    assert np.mean(kept[2]["kl"]) == pytest.approx(rows[2]["eval_kl"])


def test_training_is_the_same_with_and_without_the_judge(tmp_path: Path) -> None:
    plain, _ = make_trainer(tmp_path / "plain", total_episodes=32)
    plain.train()
    audited, _ = judged(tmp_path / "audited", Judge(drop=1.0), total_episodes=32)
    audited.train()  # gold falls, and nobody asked for a stop
    assert_same_weights(plain, audited)


def test_gold_stop_ends_the_run_and_a_resumed_one_does_not_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.stages.training import resume

    trainer, _ = judged(tmp_path, Judge(drop=1.0), gold_stop=True)
    trainer.train()
    assert trainer.state.global_step == 4
    assert "gold is 1" in capsys.readouterr().err
    assert gold_has_fallen(tmp_path / "checkpoint-4")
    judge = Judge(drop=1.0)
    again, _ = judged(tmp_path, judge, gold_stop=True)
    resume(again)  # as the stage does
    assert again.state.global_step == 4 and judge.calls == 0
    assert_same_weights(trainer, again)
    ungated, _ = judged(tmp_path, Judge(drop=1.0))
    resume(ungated)
    assert ungated.state.global_step == 20


def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    """The best evaluation is in the checkpoint; the one that a resumed run begins with is none."""

    class Falling(Judge):
        """Rises to step 8, and falls for good after it; told by the number of evaluations."""

        def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
            self.drop = -1.0 if self.calls < 3 else 0.0
            return super().__call__(prompts, completions)

    whole, _ = judged(tmp_path / "whole", Falling(0), gold_stop=True)
    whole.train()
    part, _ = judged(tmp_path / "part", Falling(0), gold_stop=True)
    part.add_callback(Stop())
    part.train()
    judge = Falling(0)
    judge.calls = 1  # it begins with one more, of step 4 as it was
    again, _ = judged(tmp_path / "part", judge, gold_stop=True)
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    assert whole.state.global_step == again.state.global_step == 12
    assert vars(whole.gold_watch) == vars(again.gold_watch)
    assert_same_weights(whole, again)
    read = [(tmp_path / name / "evaluations.jsonl").read_text() for name in ("whole", "part")]
    assert read[0] == read[1]


def test_the_best_checkpoint_by_gold_can_be_the_result(tmp_path: Path) -> None:
    settings = {"load_best_model_at_end": True, "metric_for_best_model": "gold"}
    trainer, _ = judged(tmp_path, Judge(drop=1.0), gold_stop=True, eval_on_start=False, **settings)
    trainer.train()
    assert trainer.state.global_step == 8
    assert str(trainer.state.best_model_checkpoint).endswith("checkpoint-4")
    best, _ = judged(tmp_path, Judge(drop=1.0))
    best._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    assert_same_weights(trainer, best)


def test_the_watch_sees_a_fall_and_is_quiet_on_noise() -> None:
    """A hundred runs of 20 evaluations without any trend, 64 prompts: 5 % may be ended at most."""
    alarms = 0
    for seed in range(100):
        rng, watch = np.random.default_rng(seed), GoldWatch()
        prompt = rng.normal(size=64)  # what all evaluations share
        fallen = False
        for step in range(20):
            watch.look(step, (prompt + rng.normal(size=64)).tolist(), 20)
            fallen |= watch.fallen
        alarms += fallen
    assert alarms <= 5
    rng, watch = np.random.default_rng(0), GoldWatch()
    prompt = rng.normal(size=64)
    for step, mean in enumerate((0.0, 0.5, 1.0, 0.9, 0.2)):
        watch.look(step, (prompt + mean + 0.5 * rng.normal(size=64)).tolist(), 5)
        assert watch.fallen == (step == 4)
    assert watch.step == 2
    watch.look(5, (prompt + 2).tolist(), 5)
    assert not watch.fallen and watch.step == 5


def test_gold_stop_is_refused_where_it_could_not_work(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ValueError, match="eval_strategy must be steps or epoch with gold_stop"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gold_stop=True)
    with pytest.raises(UserError, match="gold_stop: there is no judge"):
        make_trainer(tmp_path, **EVALUATED, gold_stop=True)
    with pytest.raises(UserError, match=r"ppo\.eval_strategy: expected steps or epoch"):
        load_experiment(tiny, ["ppo.gold_stop=true"])
    own = ["reward.source=module:function", "ppo.gold_stop=true", "ppo.eval_strategy=steps"]
    with pytest.raises(UserError, match=r"ppo\.gold_stop=true: true has no judge"):
        load_experiment(tiny, own)


def test_every_processs_part_of_an_evaluation_goes_back_in_its_place() -> None:
    """Five prompts over two processes; the second repeats the first, which does not count."""
    parts = torch.tensor([[0.0, 2.0, 4.0], [1.0, 3.0, 0.0]])
    assert whole_evaluation(parts, 5).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
