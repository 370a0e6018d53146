"""Batches of like length: every row once, little padding, no order in the batches' lengths."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerState

from pipeline import runner
from pipeline.config import load_experiment
from pipeline.stages import sft
from pipeline.stages.batches import LikeLengths, epoch_of
from pipeline.stages.offline import GroupSampler

LENGTHS = [random.Random(0).randint(8, 40) for _ in range(1003)]


def batches(sampler: LikeLengths, size: int) -> list[list[int]]:
    order = list(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize(("count", "size"), [(1003, 16), (64, 16), (5, 8), (1, 1)])
def test_every_row_once(count: int, size: int) -> None:
    sampler = LikeLengths(LENGTHS[:count], size, seed=3)
    assert len(sampler) == count and sorted(sampler) == list(range(count))
    assert list(sampler) == list(sampler) == list(LikeLengths(LENGTHS[:count], size, seed=3))


def test_little_padding_and_no_order_of_lengths() -> None:
    made = batches(LikeLengths(LENGTHS, 16, seed=0), 16)
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in made)
    assert sum(LENGTHS) / padded > 0.95
    assert len(made[-1]) == 1003 % 16
    means = [sum(LENGTHS[row] for row in batch) / len(batch) for batch in made[:-1]]
    half = len(means) // 2
    early, late = sum(means[:half]) / half, sum(means[half:]) / (len(means) - half)
    spread = (sum((mean - 24) ** 2 for mean in means) / len(means)) ** 0.5
    assert abs(early - late) < spread  # from long to short it would be about 1.7 spreads


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = iter([0, 1, 0])
    sampler = LikeLengths(LENGTHS, 16, 0, lambda: next(epochs))
    first = list(sampler)
    assert list(sampler) != first != list(LikeLengths(LENGTHS, 16, seed=1))
    assert list(sampler) == first


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_that_skips_gives_the_epoch_that_the_run_is_in(processes: int) -> None:
    """Of several processes it does not pass the epoch on to the sampler."""

    class Run:
        state = TrainerState(epoch=1.25)

    def loader(make: Any, epoch: Callable[[], int]) -> Any:
        plain = DataLoader(list(range(32)), batch_size=4, sampler=make(epoch))  # type: ignore
        return prepare_data_loader(
            plain, num_processes=processes, process_index=0, put_on_device=False
        )

    run: Any = Run()
    for make in (
        lambda epoch: LikeLengths([3] * 32, 4, 0, epoch),
        lambda epoch: GroupSampler(list(range(32)), 0, epoch),
    ):
        whole = [batch.tolist() for batch in loader(make, lambda: 1)]
        resumed: Any = skip_first_batches(loader(make, epoch_of(run)), 2)
        resumed.set_epoch(1)
        assert [batch.tolist() for batch in resumed] == whole[2:]
        assert whole != [batch.tolist() for batch in loader(make, lambda: 0)]


@pytest.mark.parametrize(("rows", "processes"), [(16, 1), (8, 2), (4, 4)])
def test_processes_share_the_batches_of_one(rows: int, processes: int) -> None:
    arguments = {"train_sampling_strategy": "group_by_length", "train_batch_size": rows}
    args = SimpleNamespace(world_size=processes, seed=3, data_seed=None, **arguments)
    trainer: Any = SimpleNamespace(args=args, state=TrainerState(epoch=0.0))
    trainer.train_dataset = Dataset.from_list([{"input_ids": [0] * n} for n in LENGTHS])
    sampler = sft._Trainer._get_train_sampler(trainer)
    assert list(sampler) == list(LikeLengths(LENGTHS, 16, seed=3))


def test_a_run_that_was_ended_goes_on_with_the_same_batches(tiny: Path, tmp_path: Path) -> None:
    """From a checkpoint in the second epoch, whose order is another."""
    settings = ["sft.train_sampling_strategy=group_by_length", "sft.num_train_epochs=2"]
    settings += ["sft.save_steps=20", "sft.logging_steps=2"]  # 16 steps an epoch
    runner.run(load_experiment(tiny, [*settings, f"output_dir={tmp_path / 'whole'}"]), "sft")
    parts = load_experiment(tiny, [*settings, f"output_dir={tmp_path / 'parts'}"])
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    folder = tmp_path / "parts" / "sft"
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint-32")
    record = json.loads((folder / "stage.json").read_text("utf-8"))
    (folder / "stage.json").write_text(json.dumps({**record, "status": "started"}), "utf-8")
    runner.run(parts, "sft")
    losses = [
        [json.loads(line).get("loss") for line in path.read_text("utf-8").splitlines()]
        for path in (tmp_path / part / "sft" / "metrics.jsonl" for part in ("whole", "parts"))
    ]
    assert len(losses[0]) == 17 and losses[0] == losses[1]
    weights = [
        (tmp_path / part / "sft/model/model.safetensors").read_bytes()
        for part in ("whole", "parts")
    ]
    assert weights[0] == weights[1]
