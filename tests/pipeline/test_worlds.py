"""Which runs go on under another number of processes, and which are refused with the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Experiment, load_experiment, stages
from pipeline.errors import UserError
from pipeline.launched import told
from pipeline.planning import plan
from pipeline.provenance import origin, stage_inputs
from pipeline.worlds import check_resumed, processes, same_batch, whole_batch

GROUPED = {"train_sampling_strategy": "group_by_length"}
ROWS, ACCUMULATED = "per_device_train_batch_size", "gradient_accumulation_steps"


def stage(name: str) -> stages.Stage:
    return stages.find_stage(name)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many processes this one is of."""
    return lambda count: monkeypatch.setenv("WORLD_SIZE", str(count))


@pytest.mark.parametrize(
    ("name", "before", "earlier", "now", "count", "same"),
    [
        ("ppo", {ROWS: 8}, 2, {ROWS: 16}, 1, True),
        ("ppo", {ROWS: 8}, 2, {ROWS: 4, ACCUMULATED: 2}, 2, True),
        ("ppo", {}, 2, {ROWS: 32}, 1, True),  # 16 is PPO's default
        ("sft", {}, 1, {ROWS: 4}, 2, True),  # 8 is SFT's
        ("ppo", {ROWS: 8}, 2, {ROWS: 8}, 1, False),
        ("ppo", {ROWS: 8}, None, {ROWS: 8}, 1, False),  # a record that does not say
        ("dpo", {ROWS: 8}, 2, {ROWS: 16, "loss_type": ["sigmoid"]}, 1, True),
        ("dpo", {ROWS: 8}, 2, {ROWS: 16, "loss_type": ["sft"]}, 1, False),
        ("kto", {ROWS: 8}, 2, {ROWS: 16}, 1, False),
        ("grpo", {ROWS: 8}, 2, {ROWS: 16}, 1, False),
        ("sft", {ROWS: 8, **GROUPED}, 2, {ROWS: 16, **GROUPED}, 1, True),
        ("sft", {ROWS: 8, **GROUPED}, 2, {ROWS: 8, ACCUMULATED: 2, **GROUPED}, 1, False),
        ("dpo", {ROWS: 8, **GROUPED}, 2, {ROWS: 16, **GROUPED}, 1, False),
    ],
)
def test_the_same_batches(
    name: str, before: Any, earlier: int | None, now: Any, count: int, same: bool, world: Any
) -> None:
    world(count)
    assert same_batch(stage(name), before, earlier, now) == same


@pytest.mark.parametrize(
    ("name", "before", "earlier", "count", "expected"),
    [
        ("ppo", {ROWS: 8}, 2, 1, "set ppo.per_device_train_batch_size=16 ppo.gradient_acc"),
        ("ppo", {ROWS: 4, ACCUMULATED: 4}, 2, 4, "size=2 ppo.gradient_accumulation_steps=4"),
        ("sft", {ROWS: 4}, 2, 8, "sft.per_device_train_batch_size=1"),
        ("ppo", {ROWS: 4}, 2, 3, "3 cannot share 8 evenly, so start 2"),
        (
            "sft",
            {ROWS: 4, ACCUMULATED: 2, **GROUPED},
            2,
            8,
            "size=1 sft.gradient_accumulation_steps=2",
        ),
        ("sft", {ROWS: 2, ACCUMULATED: 2, **GROUPED}, 2, 8, "8 cannot share 8 evenly, so start 4"),
        ("grpo", {}, 2, 4, "its rollouts are drawn and normalised in each process; start 2"),
    ],
)
def test_other_batches_are_refused_with_the_numbers(
    name: str, before: Any, earlier: int, count: int, expected: str, world: Any
) -> None:
    world(count)
    with pytest.raises(UserError) as refused:
        check_resumed(stage(name), before, earlier, before)
    assert expected in str(refused.value)
    assert whole_batch(stage(name), before, earlier) != whole_batch(stage(name), before, count)


def test_what_runs_in_one_process_is_not_divided(world: Any) -> None:
    world(4)
    assert processes(stage("reward")) == processes(stage("compare")) == 1
    assert processes(stage("ppo")) == 4
    check_resumed(stage("reward"), {ROWS: 8}, 1, {ROWS: 8})


def begun(experiment: Experiment, name: str, status: str, count: int) -> None:
    """Leave a stage in place, as ``count`` processes did it."""
    folder = experiment.stage_dir(name)
    (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    inputs = stage_inputs(experiment, {s.name: record(experiment, s.name) for s in stages.STAGES})
    written = {"stage": name, "status": status, **origin(), "processes": count}
    written |= {"config": experiment.model_dump(mode="json"), "inputs": inputs[name]}
    (folder / "stage.json").write_text(json.dumps(written))


def record(experiment: Experiment, name: str) -> Any:
    path = experiment.stage_dir(name) / "stage.json"
    return json.loads(path.read_text()) if path.is_file() else None


def test_plans_under_another_number_of_processes(
    tiny: Path, tmp_path: Path, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that four processes made stays what it is; the comparison made from it as well."""

    def experiment(*settings: str) -> Experiment:
        return load_experiment(tiny, [f"output_dir={tmp_path}", *settings])

    def actions(*settings: str) -> dict[str, str]:
        names = ["sft", "reward", "ppo", "dpo", "compare"]
        return {step.stage: step.action for step in plan(experiment(*settings), names)}

    four = "ppo.per_device_train_batch_size=4"
    for name in ("sft", "reward", "dpo"):
        begun(experiment(four), name, "finished", 1)
    begun(experiment(four), "ppo", "finished", 4)
    begun(experiment(four), "compare", "finished", 1)
    done = dict.fromkeys(["sft", "reward", "ppo", "dpo", "compare"], "skip")
    assert actions(four) == done  # by one process, which is to train nothing
    assert actions("ppo.per_device_train_batch_size=16") == done
    with pytest.raises(UserError, match="was made with ppo.per_device_train_batch_size = 4"):
        actions("ppo.per_device_train_batch_size=8")
    world(2)
    assert actions("ppo.per_device_train_batch_size=8")["ppo"] == "skip"

    monkeypatch.delenv("WORLD_SIZE")  # a stage alone, which the launcher of two starts
    with pytest.raises(UserError, match="was made with ppo.per_device_train_batch_size = 4"):
        actions("ppo.per_device_train_batch_size=8")
    for name, value in told("run", 2).items():
        monkeypatch.setenv(name, value)
    assert actions("ppo.per_device_train_batch_size=8") == done
    world(2)

    path = tmp_path / "ppo" / "stage.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "started"'))
    assert actions("ppo.per_device_train_batch_size=8")["ppo"] == "resume"
    for other in (four, "ppo.per_device_train_batch_size=16"):
        with pytest.raises(UserError, match=r"for 2 processes set ppo\S+=8 ppo\S+=1"):
            actions(other)
