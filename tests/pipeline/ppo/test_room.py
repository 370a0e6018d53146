"""What a rollout keeps for its update gives way where there is no room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.ppo.upkeep import room
from tests.pipeline.ppo.test_trainer import make_trainer, weights

ROWS, LONGEST, RESPONSE, WIDTH = 16, 10, 6, 32


def test_without_room_all_is_computed_again_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {"total_episodes": 32, "kl_estimator": "exact", "adam_epsilon": 1e-4}
    kept, _ = make_trainer(tmp_path / "kept", **common)
    longest = kept.actor_critic._split and LONGEST
    needed = ROWS * (LONGEST + RESPONSE) * WIDTH * 4
    assert longest and room.bytes_kept(kept.actor_critic, kept.args, LONGEST) == needed
    kept.train()
    assert not capsys.readouterr().err.count("computed again")
    monkeypatch.setattr(room.make_room, "__defaults__", (lambda *_: 4.0 * 1000,))
    trainer, _ = make_trainer(tmp_path / "none", **common)
    assert "it is computed again in every pass" in capsys.readouterr().err
    assert not trainer.actor_critic.has_trunk
    rollout: Any = trainer._collect(trainer.train_dataset[:16])[0]  # type: ignore[index]
    assert rollout.trunk is None and rollout.ref_states is None and rollout.kl_price > 0
    trainer.pending = []
    trainer.train()
    expected = weights(kept)
    for name, value in weights(trainer).items():
        assert torch.allclose(value, expected[name], atol=2e-5), name


def test_a_device_without_room_leaves_it_to_the_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, _ = make_trainer(tmp_path)
    model, args = trainer.actor_critic, trainer.args
    args.__dict__["_setup_devices"] = torch.device("cuda", 0)
    assert args.device.type == "cuda"

    def free(device: torch.device, processes: int) -> float:
        return {"cuda": 1e3, "cpu": 1e9}[device.type]

    assert room.make_room(model, args, LONGEST, float, free) == (True, torch.device("cpu"))
    assert "it lies in the host's memory" in capsys.readouterr().err
    assert model.has_trunk
