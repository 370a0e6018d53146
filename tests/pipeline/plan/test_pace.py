"""Tokens a second from a card's peaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.plan.devices import DEVICES, GIB, Machine
from pipeline.plan.pace import by_peaks
from tests.pipeline.plan.models import folder_of
from tests.pipeline.plan.test_memory import CARD, setting


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("model"), hidden_size=768, num_hidden_layers=8)


def test_learning_takes_six_operations_a_weight_and_eight_recomputed(
    tiny: Path, model: Path
) -> None:
    made = setting(tiny, model, "sft")
    pace = by_peaks(made)
    assert pace is not None and pace.limit == "FLOPs"
    policy = made.policy
    upper = 8 * policy.layer + policy.vocabulary * policy.width
    a_token = 2 * (policy.parameters + upper + policy.trained)
    assert pace.rate == pytest.approx(0.4 * 989e12 / a_token)
    again = by_peaks(setting(tiny, model, "sft", "sft.gradient_checkpointing=true"))
    assert again is not None and 0.7 < again.rate / pace.rate < 0.8


def test_decoding_waits_for_memory(tiny: Path, model: Path) -> None:
    few = ("ppo.per_device_train_batch_size=2", "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=1")
    rule = ("reward.source=rules:repetition", "reward.gold=rules:repetition")
    long = ("generation.max_new_tokens=200", "ppo.total_episodes=64")
    made = setting(tiny, model, "ppo", *few, *rule, *long)
    pace = by_peaks(made)
    assert pace is not None and pace.limit == "decoding" and pace.seconds is not None
    faster = replace(DEVICES["h100"], bandwidth=2 * DEVICES["h100"].bandwidth)
    twice = by_peaks(made.with_(machine=Machine(faster, 1, 70 * GIB, here=False)))
    assert twice is not None and 1.5 < twice.rate / pace.rate <= 2
    assert pace.seconds == pytest.approx(64 * made.lengths.sequence_mean / pace.rate)


def test_a_frozen_trunk_and_more_cards_are_faster(tiny: Path, model: Path) -> None:
    whole = by_peaks(setting(tiny, model, "sft"))
    upper = by_peaks(setting(tiny, model, "sft", "model.trainable_layers=2"))
    assert whole is not None and upper is not None and upper.rate > 1.5 * whole.rate
    eight = by_peaks(setting(tiny, model, "sft", of=CARD.of(8)))
    assert eight is not None and whole.rate < eight.rate <= 8 * whole.rate


def test_what_nobody_knows_has_no_pace(tiny: Path, model: Path) -> None:
    unknown = Machine(replace(CARD.device, flops=0.0), 1, 70 * GIB, here=False)
    assert by_peaks(setting(tiny, model, "sft", of=unknown)) is None
    assert by_peaks(setting(tiny, model, "compare")) is None
