"""Tracking: what is written, what is joined, and that Weights & Biases can never end a run."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.integrations.integration_utils import WandbCallback

from common import tracking as common_tracking
from pipeline.config import Experiment, TrackingSection
from pipeline.errors import UserError
from pipeline.output import terminal
from pipeline.output.metrics_file import MetricsFile, read_metrics
from pipeline.stages import tracking
from tests.pipeline.stages.tracked import experiment, no_account

__all__ = ["no_account"]  # a fixture of every test here


class Line(torch.nn.Module):
    """y = w·x, for a Trainer that takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.w * x - labels) ** 2).mean()}


def trainer(exp: Any, steps: int = 4, save: bool = False) -> Trainer:
    """A Trainer over `Line` with the callbacks of stage ``sft``."""
    args = TrainingArguments(
        output_dir=str(exp.output_dir / "sft" / "checkpoints"),
        max_steps=steps,
        logging_steps=1,
        save_strategy="steps" if save else "no",
        save_steps=2,
        report_to=tracking.report_to(exp),
        use_cpu=True,
        per_device_train_batch_size=2,
    )
    rows: Any = [{"x": torch.tensor(float(i)), "labels": torch.tensor(2.0 * i)} for i in range(16)]
    made = Trainer(
        Line(),
        args,
        train_dataset=rows,
        callbacks=tracking.callbacks(exp, "sft"),
    )
    tracking.quieten(made)
    return made


def test_offline_run_is_joined_by_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # asking would fail
    exp = experiment(tmp_path)
    tracking.setup(exp, "sft")
    import wandb

    run = wandb.run
    assert run is not None
    assert (run.project, run.group, run.job_type, run.name) == ("rlhf", "small", "sft", "small-sft")
    assert run.settings.mode == "offline"
    assert Path(run.dir).is_relative_to(tmp_path)

    made = trainer(exp)
    assert any(
        isinstance(c, tracking.GuardedWandbCallback) for c in made.callback_handler.callbacks
    )
    made.train()
    assert wandb.run is run, "the Trainer must not start a run of its own"
    assert dict(run.summary)["train/loss"] == pytest.approx(296, rel=1e-3)
    tracking.log_samples(exp, "sft", 4, [{"prompt": "a", "score": 1.0}, {"prompt": "b"}])
    tracking.finish()
    assert wandb.run is None
    tables = list(tmp_path.glob("wandb/offline-run-*/files/media/table/**/*.table.json"))
    assert [json.loads(t.read_text())["data"] for t in tables] == [[["a", 1.0], ["b", None]]]
    assert "warning" not in capfd.readouterr().err.lower()


def test_a_resumed_stage_goes_on_in_its_own_run(tmp_path: Path) -> None:
    ids = []
    for stage in ("sft", "ppo", "sft"):
        tracking.setup(experiment(tmp_path), stage)
        ids.append(sys.modules["wandb"].run.id)
    tracking.finish()
    assert ids[0] == ids[2] != ids[1]


def test_nothing_is_started_when_nothing_is_asked_for(tmp_path: Path) -> None:
    exp = experiment(tmp_path, report_to=())
    tracking.setup(exp, "sft")
    assert tracking.report_to(exp) == ["none"]
    assert not (tmp_path / "wandb").exists()
    assert not any(isinstance(c, WandbCallback) for c in trainer(exp).callback_handler.callbacks)


def test_a_wandb_that_cannot_start_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk is full\nand more")

    exp = experiment(tmp_path, report_to=("wandb", "tensorboard"))
    monkeypatch.setattr(common_tracking, "_start", broken)
    tracking.setup(exp, "sft")
    assert tracking.report_to(exp) == ["tensorboard"]
    exp.tracking.report_to = ["wandb"]
    assert trainer(exp).train().global_step == 4
    err = capfd.readouterr().err
    assert err.count("warning: Weights & Biases: disk is full.") == 1
    assert "and more" not in err


def test_a_wandb_that_breaks_midway_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    exp = experiment(tmp_path)
    tracking.setup(exp, "sft")
    import wandb

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("socket closed")

    monkeypatch.setattr(wandb, "log", broken)
    made = trainer(exp)
    assert made.train().global_step == 4
    tracking.log_samples(exp, "sft", 4, [{"prompt": "a"}])
    tracking.finish()
    assert capfd.readouterr().err.count("socket closed") == 1


def test_an_account_is_seen_without_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    assert not common_tracking.has_account(wandb)
    path = tmp_path / "netrc"
    path.write_text("machine api.wandb.ai\n  login user\n  password x\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert common_tracking.has_account(wandb)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not common_tracking.has_account(wandb)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert common_tracking.has_account(wandb)


def test_an_unreachable_server_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens on discard
    monkeypatch.setattr(common_tracking, "ONLINE_TIMEOUT", 2.0)
    exp = experiment(tmp_path)
    tracking.setup(exp, "sft")
    import wandb

    assert wandb.run is not None and wandb.run.settings.mode == "offline"
    assert tracking.report_to(exp) == ["wandb"]
    tracking.finish()
    assert "Logging offline instead." in capfd.readouterr().err


def test_the_process_ends_and_leaves_no_service_behind(tmp_path: Path) -> None:
    script = f"""
        import sys; from types import SimpleNamespace as N; from pathlib import Path
        from pipeline.stages import tracking
        folder = Path({str(tmp_path)!r})
        tracking.setup(N(name="n", output_dir=folder, stage_dir=lambda s: folder / s, called=str,
            tracking=N(report_to=["wandb"], project="p", log_samples=1),
            model_dump=lambda mode: {{}}), "sft")
        import wandb; assert wandb.run is not None
        sys.exit(3)  # without finish()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    # The pipes above close only when every child that holds them has gone.


def test_metrics_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    exp = experiment(tmp_path, report_to=())
    path = tmp_path / "sft" / "metrics.jsonl"
    trainer(exp, save=True).train()
    whole = read_metrics(path)
    assert [row["step"] for row in whole] == [1, 2, 3, 4, 4]
    assert {"step", "epoch", "time", "loss"} <= set(whole[0])

    # A kill in the middle of writing step 4, after the checkpoint of step 2.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])
    made = trainer(exp, save=True)
    made.train(resume_from_checkpoint=str(tmp_path / "sft" / "checkpoints" / "checkpoint-2"))
    again = read_metrics(path)
    assert [row["step"] for row in again] == [1, 2, 3, 4, 4]
    assert [row.get("loss") for row in again] == [row.get("loss") for row in whole]

    # Resumed at its very end: the closing summary waits to be written again.
    state = SimpleNamespace(is_world_process_zero=True, global_step=4)
    MetricsFile(path).on_train_begin(None, state, None)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]

    # Started afresh: nothing of the old run is left.
    trainer(exp, steps=1).train()
    assert [row["step"] for row in read_metrics(path)] == [1, 1]


def test_metrics_hold_no_nan_and_take_tensors(tmp_path: Path) -> None:
    target = MetricsFile(tmp_path / "sft" / "metrics.jsonl")
    state = SimpleNamespace(is_world_process_zero=True, global_step=3, epoch=0.5)
    logs = {"loss": float("nan"), "score": torch.tensor(1.5), "many": torch.tensor([1, 2])}
    target.on_log(None, state, None, logs=logs)
    (row,) = read_metrics(target.path)
    assert (row["loss"], row["score"], row["many"], row["step"]) == (None, 1.5, [1, 2], 3)
    state.is_world_process_zero = False
    target.on_log(None, state, None, logs=logs)
    assert len(read_metrics(target.path)) == 1


def test_parts_of_a_stage_have_their_own_files(tmp_path: Path) -> None:
    exp = experiment(tmp_path)
    names = [tracking.callbacks(exp, "reward", part)[0] for part in ("proxy", "gold")]
    assert [c.path.name for c in names if isinstance(c, MetricsFile)] == [
        "metrics-proxy.jsonl",
        "metrics-gold.jsonl",
    ]


def test_the_trainer_prints_through_ours_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = trainer(experiment(tmp_path, report_to=()))
    kinds = [type(c) for c in made.callback_handler.callbacks]
    assert ProgressCallback not in kinds and PrinterCallback not in kinds
    made.train()
    out = capfd.readouterr()
    assert out.out == ""
    lines = [line for line in out.err.splitlines() if line.startswith("sft ")]
    assert len(lines) == 4 and "{" not in out.err
    assert lines[1].startswith("sft 2/4, 0:0") and " left · loss " in lines[1]


def test_key_numbers_of_ppo() -> None:
    logs = {"objective/kl_exact": 0.7213, "objective/scores": 1.84, "policy/clipfrac_avg": 0.0}
    logs |= {"objective/kl": 0.65, "lr": 0.1}  # the sampled KL is not the KL
    assert terminal.key_numbers(logs) == "score 1.84  kl 0.721  clipfrac 0"
    assert terminal.key_numbers({"train_runtime": 3.0}) == ""
    assert terminal.key_numbers({"loss": float("nan")}) == "loss nan"


def test_progress_tells_time_left_where_lines_cannot_be_redrawn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    seen = []
    for item in terminal.progress(range(4), "sampling"):
        seen.append(item)
        now[0] += 20.0
    assert seen == [0, 1, 2, 3]
    lines = capfd.readouterr().err.splitlines()
    assert lines[:3] == [
        "sampling 1/4, 1:00 left", "sampling 2/4, 0:40 left", "sampling 3/4, 0:20 left",
    ]  # fmt: skip
    assert lines[-1] == "sampling 4 done in 1:20"
    monkeypatch.setenv("RANK", "1")
    list(terminal.progress(range(2), "sampling"))
    assert capfd.readouterr().err == ""


def test_printed_samples_hold_no_control_codes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a\x1b[2Jb\nc", "score": 1.23456}] * 6
    tracking.log_samples(experiment(tmp_path, report_to=()), "ppo", 7, rows)
    err = capfd.readouterr().err
    assert err.splitlines() == ["  ppo 7 · a [2Jb c │ 1.23"] * 3


def exit_codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What W&B's runs are finished with, as they are."""
    import wandb

    codes: list[int] = []
    plain = wandb.Run.finish

    def finish(run: Any, exit_code: int | None = None, **more: Any) -> None:
        codes.append(exit_code or 0)
        plain(run, exit_code=exit_code, **more)

    monkeypatch.setattr(wandb.Run, "finish", finish)
    return codes


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_a_stage_that_fails_is_shown_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    codes = exit_codes(monkeypatch)

    @tracking.tracked("sft")
    def run(experiment: Any) -> None:
        if error is not None:
            raise error

    if error is None:
        run(experiment(tmp_path))
    else:
        with pytest.raises(error):
            run(experiment(tmp_path))
    assert codes == [0 if error is None else 1]


def test_settings_samples_and_the_comparison_reach_tensorboard(tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exp = experiment(tmp_path, report_to=("tensorboard",))
    tracking.setup(exp, "compare")
    tracking.log_samples(exp, "compare", 7, [{"prompt": "a|b", "score": 1.0}])
    figure = Figure()
    figure.subplots().plot([0, 1])
    methods: dict[str, dict[str, Any]]
    methods = {"sft": {"reward": 0.5, "kl": None}, "ppo": {"reward": 2.0, "kl": float("nan")}}
    methods["ppo"]["note"] = "far"
    tracking.log_comparison({"methods": methods}, lambda: figure)
    tracking.finish()
    events = EventAccumulator(str(tmp_path / "compare" / "tensorboard"))
    events.Reload()
    assert {"compare/ppo/reward", "compare/sft/reward"} == set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("compare/ppo/reward")] == [2.0]
    assert events.Tags()["images"] == ["compare/reward_kl"]
    texts = {
        tag: b"".join(events.Tensors(tag)[0].tensor_proto.string_val).decode()
        for tag in events.Tags()["tensors"]
    }
    assert "| name | small |" in texts["compare/config/text_summary"]
    assert "| a\\|b | 1.0 |" in texts["compare/samples/text_summary"]
    assert "| sft | 0.5 |  |  |" in texts["compare/methods/text_summary"]
    assert "| ppo | 2.0 |  | far |" in texts["compare/methods/text_summary"]


def test_the_comparison_reaches_weights_and_biases(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    exp = experiment(tmp_path)
    tracking.setup(exp, "compare")
    run = sys.modules["wandb"].run
    tracking.log_comparison({"methods": {"ppo": {"reward": 2.0}}}, Figure)
    summary = dict(run.summary)
    tracking.finish()
    assert summary["compare/ppo/reward"] == 2.0
    assert {"compare/methods", "compare/reward_kl"} <= set(summary)
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png"))


def test_a_picture_that_cannot_be_drawn_costs_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def draw() -> None:
        raise ValueError("no font")

    tracking.setup(experiment(tmp_path, report_to=("tensorboard",)), "compare")
    tracking.log_comparison({"methods": {"ppo": {"reward": 2.0}}}, draw)
    tracking.finish()
    line = "warning: TensorBoard: no font. Going on without it.\n"
    assert capfd.readouterr().err == line


def test_trackers_that_are_not_installed_are_not_asked_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = experiment(tmp_path, report_to=("tensorboard",))
    assert tracking.report_to(exp) == ["tensorboard"]
    monkeypatch.setattr(tracking, "is_tensorboard_available", lambda: False)
    assert tracking.report_to(exp) == ["none"]
    exp.tracking.report_to = ["all"]
    assert "all" not in tracking.report_to(exp) and "wandb" in tracking.report_to(exp)


def test_a_broken_id_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "wandb.json"
    path.write_text("{")
    new = common_tracking.run_id(path)
    assert common_tracking.run_id(path) == new != common_tracking.run_id(path, resume=False)


def test_a_tracker_that_is_not_installed_is_told(tmp_path: Path) -> None:
    section = TrackingSection(report_to=["wandb", "nosuchtracker"])
    asked = Experiment(output_dir=tmp_path, tracking=section)
    with pytest.raises(UserError, match="tracking.report_to: 'nosuchtracker' is not installed"):
        tracking.setup(asked, "sft")
