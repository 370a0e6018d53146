"""Microbatches by tokens: how rows are cut, and that nothing but rounding changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from pipeline.ppo import PPOConfig
from pipeline.ppo.advice import advice
from pipeline.ppo.measure import Measure, padding_share
from pipeline.ppo.rollout import Microbatch, schedule
from tests.pipeline.ppo.test_parts import settings
from tests.pipeline.ppo.test_trainer import make_trainer, weights

TOKENS = 40  # three or four rows of the toy's prompts and 6 tokens


@given(
    some.lists(some.integers(2, 60), min_size=1, max_size=40),
    some.integers(1, 200),
    some.integers(1, 45),
    some.booleans(),
)
def test_parts_hold_every_row_once_and_no_more_than_the_limit(
    lengths: list[int], limit: int, count: int, packed: bool
) -> None:
    lengths.sort()
    measure = Measure(tokens=True, packed=packed)
    sizes = measure.cut(lengths, limit, count)
    assert sum(sizes) == len(lengths) and min(sizes) >= 1
    assert len(sizes) >= min(count, len(lengths))
    ends = torch.tensor(sizes).cumsum(0).tolist()
    for rows, end in zip(sizes, ends, strict=True):
        part = lengths[end - rows : end]
        assert rows == 1 or measure.size(part) <= limit
        assert measure.size(part) == (sum(part) if packed else rows * max(part))
    # The next row would not have fitted: as few parts as that order allows.
    if count == 1:
        for rows, end in zip(sizes[:-1], ends[:-1], strict=True):
            assert measure.size(lengths[end - rows : end + 1]) > limit


def test_by_completions_parts_are_those_of_a_fixed_number() -> None:
    assert Measure().cut([3, 5, 9, 9, 12], 2) == [2, 2, 1]
    assert Measure().size([3, 5]) == 2 and Measure().smallest([3, 5]) == 1


def test_padding_is_what_the_parts_hold_beyond_their_rows() -> None:
    assert padding_share([2, 4, 10, 10], [2, 2]) == pytest.approx(2 / 28)
    assert padding_share([10, 2, 4, 10], [2, 2]) == pytest.approx(14 / 40)
    assert padding_share([10, 2, 4, 10], [2, 2], packed=True) == 0.0


def of_two(**arguments: Any) -> PPOConfig:
    """The settings of one of two processes."""
    args = settings(**arguments)
    args.__dict__["distributed_state"] = SimpleNamespace(num_processes=2)
    assert args.world_size == 2
    return args


@pytest.mark.parametrize("tokens", [16, 1000])
def test_every_process_has_as_many_parts_and_a_step_of_the_trainer_has_one(tokens: int) -> None:
    lengths = torch.tensor([3, 3, 3, 3, 3, 3, 3, 90] * 2)
    args = of_two(
        microbatch_tokens=tokens, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        num_mini_batches=2,
    )  # fmt: skip
    for ours, theirs in zip(*(schedule(lengths, args, 0, rank) for rank in (0, 1)), strict=True):
        assert len(ours) == len(theirs) >= 2
        rows = torch.cat(ours + theirs)
        assert len(rows) == len(rows.unique()) == 8


COMMON: dict[str, Any] = {
    "total_episodes": 32, "adam_epsilon": 1e-4, "kl_estimator": "exact", "num_ppo_epochs": 1,
    "cut_off": "bootstrap",
}  # fmt: skip
SECTIONS: dict[str, dict[str, Any]] = {
    "upper layers": {"trainable_layers": 2},
    "LoRA": {"trainable_layers": None, "use_peft": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The weights and the log of a run by rows, by its section's name."""

    @cache
    def run(name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        folder = tmp_path_factory.mktemp("plain")
        trainer, log = make_trainer(folder, section=SECTIONS[name], **COMMON)
        trainer.train()
        return weights(trainer), log.logs

    return run


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ("upper layers", {"microbatch_tokens": TOKENS, "per_device_train_batch_size": 2,
                          "gradient_accumulation_steps": 4}),
        ("upper layers", {"packing": True}),
        ("LoRA", {"microbatch_tokens": 1}),  # every row alone
        ("LoRA", {"microbatch_tokens": TOKENS, "packing": True}),
    ],
    ids=["tokens, accumulated", "packed", "rows alone", "tokens, packed"],
)  # fmt: skip
def test_the_same_weights_and_metrics(
    tmp_path: Path,
    section: str,
    arguments: dict[str, Any],
    plain: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two rollouts of 16: gradients differ by rounding, and Adam's first steps by little more."""
    expected, expected_logs = plain(section)
    trainer, log = make_trainer(tmp_path, section=SECTIONS[section], **(COMMON | arguments))
    forward, seen = trainer.actor_critic.forward, []

    def counted(batch: Any, *rest: Any) -> Any:
        lengths = batch.prompt_lengths + batch.mask.sum(1)
        seen.append((len(lengths), int(lengths.sum()), batch.sequences.numel()))
        return forward(batch, *rest)

    monkeypatch.setattr(trainer.actor_critic, "forward", counted)
    trainer.train()
    assert sum(rows for rows, *_ in seen) == 32
    if "microbatch_tokens" in arguments:
        held = 1 if "packing" in arguments else 2
        assert all(row[held] <= arguments["microbatch_tokens"] or row[0] == 1 for row in seen)
        assert len(seen) > 4
    for name, value in weights(trainer).items():
        assert torch.allclose(value, expected[name], atol=2e-5), name
    padding = 1 - sum(row[1] for row in seen) / sum(row[2] for row in seen)
    logged = [row["perf/padding"] for row in log.logs if "perf/padding" in row]
    if "packing" in arguments or arguments.get("microbatch_tokens") == 1:
        assert logged == [0.0, 0.0]
    else:
        assert 0 < padding < 0.2 and min(logged) <= padding <= max(logged)
    for ours, theirs in zip(log.logs, expected_logs, strict=True):
        for name in ("policy/approxkl_avg", "val/ratio", "objective/scores", "objective/kl_exact"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


def test_an_update_that_does_not_fit_is_halved_by_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {"total_episodes": 16, "adam_epsilon": 1e-4}
    plain, _ = make_trainer(tmp_path / "plain", **common)
    plain.train()
    trainer, _ = make_trainer(tmp_path / "small", microbatch_tokens=160, **common)
    forward, room = trainer.actor_critic.forward, 50

    def limited(batch: Any, *rest: Any) -> Any:
        if batch.sequences.numel() > room and len(batch.mask) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(batch, *rest)

    monkeypatch.setattr(trainer.actor_critic, "forward", limited)
    trainer.train()
    assert "tokens at once; on with" in capsys.readouterr().err
    assert 0 < trainer.memory.limits["learning from"] <= room
    expected = weights(plain)
    for name, value in weights(trainer).items():
        assert torch.allclose(value, expected[name], atol=2e-5), name


def test_parts_know_their_rows(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, microbatch_tokens=TOKENS, total_episodes=16)
    made: list[Microbatch] = trainer._collect(trainer.train_dataset[:16])  # type: ignore[index]
    assert len(made) == 4  # a step of the Trainer each
    for each in made:
        assert sum(each.sizes) == len(each.batch.mask) == 8 and len(each.sizes) > 1


def test_a_prefix_critic_of_long_completions_is_warned_of() -> None:
    (line,) = advice(settings(critic="prefix", response_length=4096))
    assert "4096 times" in line and "prefix_every: 32" in line
    assert not list(advice(settings(critic="prefix", response_length=4096, prefix_every=32)))
