"""Tracking: the report is logged with what it was made from, and can never end a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import tracking as common_tracking
from pipeline.stages import tracking
from tests.pipeline.stages.tracked import experiment, no_account

__all__ = ["no_account"]  # a fixture of every test here


def staged(folder: Path, report_to: tuple[str, ...]) -> Any:
    """An experiment whose PPO and SFT are finished, and a checkpoint from elsewhere."""
    exp = experiment(folder, report_to)
    exp.stages = lambda: [
        SimpleNamespace(name="sft", method=""),
        SimpleNamespace(name="ppo", method="ppo"),
        SimpleNamespace(name="dpo", method="dpo"),
    ]
    exp.compare = SimpleNamespace(policies={"theirs": "some/where"})
    for name in ("sft", "ppo"):
        (folder / name).mkdir()
        record = {"fingerprint": f"print-{name}", "finished": "2026-01-02T03:04:05+00:00"}
        (folder / name / "stage.json").write_text(json.dumps(record))
    (folder / "results.json").write_text("{}")
    return exp


def test_the_report_is_logged_with_what_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    logged: list[Any] = []
    plain = wandb.Run.log_artifact

    def log_artifact(run: Any, artifact: Any, **more: Any) -> Any:
        logged.append(artifact)
        return plain(run, artifact, **more)

    monkeypatch.setattr(wandb.Run, "log_artifact", log_artifact)
    exp = staged(tmp_path, ("wandb",))
    tracking.log_report(exp, [tmp_path / "results.json"], ["Ship PPO.", "Read this."])
    (artifact,) = (a for a in logged if a.type == "comparison")  # W&B logs tables as artifacts
    assert (artifact.name.split(":")[0], artifact.type) == ("small-report", "comparison")
    assert artifact.metadata["verdict"] == "Ship PPO."
    made_from = artifact.metadata["made_from"]
    assert {name: source["fingerprint"] for name, source in made_from.items()} == {
        "small-sft": "print-sft", "small-ppo": "print-ppo", "small-theirs": None,
    }  # fmt: skip
    assert "results.json" in artifact.manifest.entries
    # Another report goes on in the same run.
    first = (tmp_path / "compare" / "report" / "wandb.json").read_text()
    tracking.log_report(exp, [tmp_path / "results.json"], ["Ship PPO."])
    assert (tmp_path / "compare" / "report" / "wandb.json").read_text() == first


def test_with_an_account_the_sources_are_the_artifacts_lineage(tmp_path: Path) -> None:
    class Run:
        offline = False

        def __init__(self) -> None:
            self.used: list[Any] = []
            self.logged: list[Any] = []

        def use_artifact(self, artifact: Any) -> None:
            self.used.append(artifact)

        def log_artifact(self, artifact: Any) -> None:
            self.logged.append(artifact)

    import wandb

    backend = object.__new__(common_tracking.WeightsAndBiases)
    backend.run, backend._wandb = Run(), wandb
    source = common_tracking.Source("a b-ppo", "policy", {"fingerprint": "1f"})
    made = common_tracking.Source("a b-report", "comparison", {})
    backend.artifact(made, [], [source])
    (used,), (logged,) = backend.run.used, backend.run.logged
    assert (used.name.split(":")[0], used.type) == ("a-b-ppo", "policy")
    assert used.metadata == {"fingerprint": "1f"} and "source.json" in used.manifest.entries
    assert logged.metadata["made_from"] == {"a b-ppo": {"fingerprint": "1f"}}


def test_a_server_that_does_not_answer_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(common_tracking, "ONLINE_TIMEOUT", 0.05)
    said: list[str] = []

    class Silent:
        offline = False

        def use_artifact(self, artifact: Any) -> None:
            time.sleep(1)

        def finish(self, exit_code: int) -> None:
            """Nothing to end."""

    import wandb

    backend = object.__new__(common_tracking.WeightsAndBiases)
    backend.run, backend._wandb = Silent(), wandb
    tracker = common_tracking.Tracker("Weights & Biases", lambda: backend, said.append)
    source = common_tracking.Source("ppo", "policy", {})
    tracker.artifact(source, [], [source])
    assert said == ["warning: Weights & Biases: no answer in 0.05 s. Going on without it."]


def test_tensorboard_names_the_files_and_their_sources(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exp = staged(tmp_path, ("tensorboard",))
    tracking.log_report(exp, [tmp_path / "results.json"], ["Ship PPO.", "Read this."])
    events = EventAccumulator(str(tmp_path / "compare" / "report" / "tensorboard"))
    events.Reload()
    texts = {
        tag: b"".join(events.Tensors(tag)[0].tensor_proto.string_val).decode()
        for tag in events.Tags()["tensors"]
    }
    assert "| Ship PPO. |" in texts["report/verdict/text_summary"]
    assert "| made from small-ppo | print-ppo |" in texts["comparison/files/text_summary"]


def test_without_trackers_the_report_is_logged_nowhere(tmp_path: Path) -> None:
    tracking.log_report(staged(tmp_path, ()), [tmp_path / "results.json"], ["Ship PPO."])
    assert not (tmp_path / "compare").exists()
