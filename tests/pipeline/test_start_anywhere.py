"""A run starts where its user is: own pairs, own reference, a mended mistake, a longer run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import runner
from pipeline.errors import UserError
from tests.pipeline.test_runner import Fakes, Load, fakes, load, record, refusal

__all__ = ["fakes", "load"]


def test_own_pairs_void_only_what_reads_them(fakes: Fakes, load: Load, tmp_path: Path) -> None:
    runner.run(load(), "run")
    fakes.take()
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}", encoding="utf-8")
    own = f"data.preferences_name={pairs}"
    message = refusal(load(own), "run")
    assert "data.preferences_name = None" in message and "redo dpo, compare" in message
    runner.run(load(own), "run", overwrite=True)
    assert fakes.take() == ["dpo", "compare", "report"]
    pairs.write_text("{ }", encoding="utf-8")
    assert "another content of the file that data.preferences_name" in refusal(load(own), "dpo")
    runner.run(load(own), "ppo")
    assert fakes.take() == []


def test_a_file_counts_wherever_it_lies(fakes: Fakes, load: Load, tmp_path: Path) -> None:
    first, moved, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "b.txt"))
    judge = tmp_path / "judge.py"
    judge.write_text("def f(): ...\ndef g(): ...\n", encoding="utf-8")
    for path in (first, moved, other):
        path.write_text("{}", encoding="utf-8")
    own = f"reward.source={judge}:f"
    runner.run(load(own, f"data.dataset_name={first}"), "run")
    fakes.take()
    first.unlink()
    runner.run(load(own, f"data.dataset_name={moved}"), "run")
    assert fakes.take() == ["report"]
    # The same bytes under another ending, or another function of the same file, are others.
    assert "data.dataset_name = " in refusal(load(own, f"data.dataset_name={other}"), "sft")
    swapped = load(f"reward.source={judge}:g", f"data.dataset_name={moved}")
    assert "reward.source = " in refusal(swapped, "reward")


def test_a_mended_first_try_needs_no_overwrite(
    fakes: Fakes, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.fail["sft"] = UserError("no such column")
    with pytest.raises(UserError, match="no such column"):
        runner.run(load(), "run")
    folder = load().stage_dir("sft")
    (folder / "output").unlink()  # what the fake leaves behind is work
    for trace in ("metrics.jsonl", "wandb.json"):
        (folder / trace).touch()
    (folder / "checkpoints").mkdir()
    runner.run(load("data.text_column=review"), "sft")
    assert fakes.take() == ["sft", "sft"]
    assert "sft: the earlier try left nothing to go on from" in capsys.readouterr().err
    assert not (folder / "metrics.jsonl").exists()
    assert record(load(), "sft")["inputs"]["config"]["data.text_column"] == "review"


@pytest.mark.parametrize("left", ["checkpoints/checkpoint-4", "checkpoints/gold/checkpoint-4"])
def test_work_that_was_left_is_not_thrown_away(fakes: Fakes, load: Load, left: str) -> None:
    fakes.fail["reward"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runner.run(load(), "reward")
    folder = load().stage_dir("reward")
    (folder / "output").unlink()
    (folder / left).mkdir(parents=True)
    assert "reward.learning_rate" in refusal(load("reward.learning_rate=1"), "reward")
    assert (folder / left).is_dir()


def test_own_reference_and_reward_need_no_stage_before(fakes: Fakes, load: Load) -> None:
    start = ("sft.skip=true", "reward.source=mine.py:f")
    runner.run(load(*start), "ppo")
    assert fakes.take() == ["sft", "reward", "ppo"]
    runner.run(load(*start, "sft.learning_rate=1", "data.demonstrations=8"), "sft")
    assert fakes.take() == []  # nothing is trained, so neither is read


def test_what_is_there_is_compared_and_more_is_added(fakes: Fakes, load: Load) -> None:
    for stage in ("sft", "reward"):
        runner.run(load(), stage)
    assert "none of ppo, dpo is finished; run `rlhf ppo` first" in refusal(load(), "compare")
    for stage in ("ppo", "compare", "compare", "report"):
        runner.run(load(), stage)
    assert fakes.take() == ["sft", "reward", "ppo", "compare", "report"]
    assert set(record(load(), "compare")["inputs"]["upstream"]) == {"sft", "reward", "ppo"}
    measured = load().stage_dir("compare") / "measured"
    measured.touch()
    runner.run(load(), "run")
    assert fakes.take() == ["dpo", "compare", "report"]
    assert measured.exists()
    assert set(record(load(), "compare")["inputs"]["upstream"]) == {"sft", "reward", "ppo", "dpo"}


def test_without_a_price_of_kl_there_is_no_dpo(
    fakes: Fakes, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(load("beta=0"), "dpo").startswith("beta: DPO learns nothing at 0")
    runner.run(load("beta=0"), "run")
    assert fakes.take() == ["sft", "reward", "ppo", "compare", "report"]
    assert "dpo: left out (beta: DPO learns nothing at 0" in capsys.readouterr().err
    assert "beta = 0, the config now has 1" in refusal(load(), "run")


CONSTANT = "ppo.lr_scheduler_type=constant"


def test_a_longer_run_goes_on_where_it_takes_the_same_steps(fakes: Fakes, load: Load) -> None:
    for stage in ("sft", "reward", "ppo"):
        runner.run(load(CONSTANT), stage)
    folder = load().stage_dir("ppo")
    (folder / "checkpoints").mkdir()
    before = record(load(), "ppo")["fingerprint"]
    longer = load(CONSTANT, "ppo.total_episodes=256")
    fakes.fail["ppo"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runner.run(longer, "ppo")
    assert (folder / "checkpoints").is_dir()
    runner.run(longer, "ppo")
    assert fakes.take() == ["sft", "reward", "ppo", "ppo", "ppo"]
    assert record(load(), "ppo")["fingerprint"] != before
    assert "256, the config now has 128" in refusal(load(CONSTANT), "ppo")
    runner.run(longer, "compare")
    message = refusal(load(CONSTANT, "ppo.total_episodes=512"), "ppo")
    assert "compare was made from what it is now" in message


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ((), "its learning rates follow from the length"),
        (("ppo.lr_scheduler_type=cosine",), "only ppo.lr_scheduler_type=constant does not"),
        ((CONSTANT, "ppo.warmup_steps=0.1"), "ppo.warmup_steps is a share of the length"),
        ((CONSTANT, "ppo.kl_target=3"), "ppo.kl_target is steered"),
    ],
)
def test_a_longer_run_that_is_another_says_why(
    fakes: Fakes, load: Load, settings: tuple[str, ...], reason: str
) -> None:
    for stage in ("sft", "reward", "ppo"):
        runner.run(load(*settings), stage)
    message = refusal(load(*settings, "ppo.total_episodes=256"), "ppo")
    assert "ppo.total_episodes = 128, the config now has 256" in message and reason in message
    assert fakes.take() == ["sft", "reward", "ppo"]


def test_a_longer_run_from_within_a_rollout_is_another(fakes: Fakes, load: Load) -> None:
    """Its rollouts would begin elsewhere than those of one that had been so long all along."""
    own = ("policies={rloo: null}", "rloo.lr_scheduler_type=constant", "rloo.num_iterations=4")
    whole, within = load(*own, "rloo.max_steps=8"), load(*own, "rloo.max_steps=10")
    runner.run(within, "rloo")
    checkpoints = within.stage_dir("rloo") / "checkpoints"
    for step in (8, 10):
        (checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    message = refusal(load(*own, "rloo.max_steps=16"), "rloo")
    assert "it ended at step 10, within a rollout of 4 steps" in message
    runner.run(whole, "rloo", overwrite=True)
    (checkpoints / "checkpoint-8").mkdir(parents=True)
    runner.run(load(*own, "rloo.max_steps=16"), "rloo")
    assert fakes.take()[-3:] == ["rloo", "rloo", "rloo"]
