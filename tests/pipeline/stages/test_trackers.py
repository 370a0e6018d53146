"""trackio, MLflow and SwanLab: each for real where it is installed, without network or account."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.integrations import integration_utils

from common.tracking import Tracker
from pipeline.stages import tracking
from tests.pipeline.stages.tracked import experiment, no_account

__all__ = ["no_account"]  # a fixture of every test here
NAMES = ("trackio", "mlflow", "swanlab")

# A stage that trains, is killed, goes on, and logs samples, the comparison and its report. Each
# library keeps what it was imported with, so each runs in a process of its own.
STAGE = """
    import json, socket, sys
    from pathlib import Path

    def nobody(*_, **__):
        raise OSError("no network in this test")

    class Local(socket.socket):
        def connect(self, address):
            if self.family != socket.AF_UNIX:
                nobody()
            return super().connect(address)

    socket.socket, socket.getaddrinfo = Local, nobody

    from types import SimpleNamespace
    from matplotlib.figure import Figure
    from pipeline.stages import tracking
    from tests.pipeline.stages.test_tracking import trainer
    from tests.pipeline.stages.tracked import experiment

    name, folder = sys.argv[1], Path(sys.argv[2])
    exp = experiment(folder, (name,))
    exp.stages = lambda: [SimpleNamespace(name="sft", method="")]
    exp.compare = SimpleNamespace(policies={})
    for steps in (2, 4):  # the second time a resumed stage
        tracking.setup(exp, "sft")
        assert tracking._trackers[name].backend is not None
        made = trainer(exp, steps=steps, save=True)
        made.train(resume_from_checkpoint=steps == 4)
        rows = [{"prompt": "a|b", "completion": "c", "score": 0.5}]
        tracking.log_samples(exp, "sft", steps, rows, show=0)
        tracking.finish(failed=steps == 2)
    tracking.setup(exp, "compare")
    results = {"methods": {"ppo": {"reward": 1.5, "note": "x"}, "dpo": {"reward": 1.25}}}
    def draw():
        figure = Figure()
        figure.subplots().plot([0, 1], [1, 0])
        return figure
    tracking.log_comparison(results, draw)
    tracking.finish()
    (folder / "sft" / "stage.json").write_text(json.dumps({"fingerprint": "print-sft"}))
    (folder / "results.json").write_text("{}")
    tracking.log_report(exp, [folder / "results.json"], ["Ship PPO."])
"""


def staged(name: str, folder: Path, root: Path) -> str:
    """Run `STAGE` and return what it printed on stderr."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STAGE), name, str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "TRACKIO_DIR": str(folder / "database"), "PYTHONPATH": str(root)},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "warning" not in ran.stderr
    assert not ran.stdout.strip(), ran.stdout  # stdout is the stage's own
    return ran.stderr


@pytest.mark.slow
def test_trackio_has_curves_samples_comparison_and_report(tmp_path: Path, root: Path) -> None:
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    staged("trackio", tmp_path, root)
    run = json.loads((tmp_path / "sft" / "trackio.json").read_text())["id"]
    read = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ_TRACKIO), f"small-sft-{run}"],
        capture_output=True, text=True, cwd=root,
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "database")},
    )  # fmt: skip
    assert read.returncode == 0, read.stderr[-3000:]
    found = json.loads(read.stdout.splitlines()[-1])
    assert len(found["runs"]) == 3, found["runs"]  # the resumed stage is one run
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4]
    assert found["samples"][0]["_value"][0] == {
        "prompt": "a|b", "completion": "c", "score": 0.5,
    }  # fmt: skip
    assert found["config"]["name"] == "small"
    assert found["artifact"] and trackio.__version__


READ_TRACKIO = """
    import json, sys
    from trackio.sqlite_storage import SQLiteStorage as storage
    import trackio.utils as utils

    runs = storage.get_runs("rlhf")
    logs = storage.get_logs("rlhf", sys.argv[1])
    found = {
        "runs": sorted(runs),
        "loss": [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row],
        "samples": [row["sft/samples"] for row in logs if "sft/samples" in row],
        "config": storage.get_run_config("rlhf", sys.argv[1]),
        "artifact": [str(p.name) for p in utils.ARTIFACTS_DIR.rglob("*") if p.is_file()],
    }
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_mlflow_has_curves_samples_comparison_and_report(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    staged("mlflow", tmp_path, root)
    from mlflow import MlflowClient  # type: ignore[import-not-found]

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    known = client.get_experiment_by_name("rlhf")
    assert known is not None
    runs = {run.info.run_name: run for run in client.search_runs([known.experiment_id])}
    assert set(runs) == {"small-sft", "small-compare", "small-report"}
    sft, compare = runs["small-sft"].info.run_id, runs["small-compare"].info.run_id
    assert runs["small-sft"].info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(sft, "train/loss")] == [1, 2, 3, 4]
    assert client.get_run(sft).data.params["name"] == "small"
    samples = json.loads(Path(client.download_artifacts(sft, "sft/samples.json")).read_text())
    assert samples["columns"][0] == "step" and [row[0] for row in samples["data"]] == [2, 4]
    assert client.get_run(compare).data.metrics["compare/ppo/reward"] == 1.5
    assert {f.path for f in client.list_artifacts(compare, "compare")} == {
        "compare/methods.json", "compare/reward_kl-0.png",
    }  # fmt: skip
    report = runs["small-report"].info.run_id
    assert {f.path for f in client.list_artifacts(report, "comparison")} == {
        "comparison/results.json", "comparison/made-from.json",
    }  # fmt: skip


@pytest.mark.slow
def test_swanlab_has_curves_samples_comparison_and_report(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("swanlab", reason="SwanLab is not installed")
    for name in ("SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))  # no key of the one who tests
    staged("swanlab", tmp_path, root)
    kept = b"".join(p.read_bytes() for p in (tmp_path / "swanlab").rglob("*") if p.is_file())
    for word in (b"train/loss", b"sft/samples", b"compare/ppo/reward", b"reward_kl", b"print-sft"):
        assert word in kept, word
    run = json.loads((tmp_path / "sft" / "swanlab.json").read_text())["id"]
    assert [p for p in (tmp_path / "swanlab").iterdir() if run in p.name]


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_does_not_begin_a_run_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    backend = SimpleNamespace(log=lambda step, metrics: logged.append((step, metrics)))
    monkeypatch.setattr(tracking, "get_available_reporting_integrations", lambda: [*NAMES])
    exp = experiment(tmp_path, (name,))
    tracker = Tracker(name, lambda: backend, lambda line: pytest.fail(line))  # type: ignore
    monkeypatch.setitem(tracking._trackers, name, tracker)
    assert tracking.report_to(exp) == ["none"]
    (curves,) = (c for c in tracking.callbacks(exp, "sft") if isinstance(c, tracking.Curves))
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=7)
    curves.on_log(None, state, None, {"loss": 0.5, "eval_kl": 1.0, "note": "x"})
    assert logged == [(7, {"train/loss": 0.5, "eval/kl": 1.0})]


@pytest.mark.parametrize("name", NAMES)
def test_trouble_costs_one_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is full")

    monkeypatch.setattr(tracking, "get_available_reporting_integrations", lambda: [*NAMES])
    monkeypatch.setattr(tracking, "_backend", broken)
    exp = experiment(tmp_path, (name,))
    tracking.setup(exp, "sft")
    tracking.log_samples(exp, "sft", 1, [{"prompt": "a"}], show=0)
    tracking.log_comparison({"methods": {"ppo": {"reward": 1.0}}}, lambda: None)
    tracking.finish()
    lines = capsys.readouterr().err.strip().splitlines()
    title = tracking._OWN_CURVES[name]
    assert lines == [f"warning: {title}: the disk is full. Going on without it."]


def test_a_tracker_without_samples_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed: Callable[[], list[str]] = lambda: ["comet_ml"]  # noqa: E731
    monkeypatch.setattr(tracking, "get_available_reporting_integrations", installed)
    monkeypatch.setattr(tracking, "_told", set())
    exp = experiment(tmp_path, ("comet_ml",))
    for stage in ("sft", "ppo"):
        tracking.setup(exp, stage)
    assert capsys.readouterr().err.count("comet_ml gets the Trainer's curves alone") == 1
    assert tracking.report_to(exp) == ["comet_ml"]


def test_their_names_are_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = integration_utils.INTEGRATION_TO_CALLBACK
    assert set(NAMES) <= set(known) and socket.AF_UNIX
