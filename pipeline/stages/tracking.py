"""What a run tells while it works: trackers, a JSONL of every metric, and the terminal.

Use, in a stage::

    @tracking.tracked("ppo")
    def run(experiment):
        trainer = PPOTrainer(args=PPOConfig(report_to=tracking.report_to(experiment), ...),
                             callbacks=tracking.callbacks(experiment, "ppo"), ...)
        tracking.quieten(trainer)
        trainer.train()

One group is one experiment, one run is one stage; a resumed stage goes on in its own run, and one
that fails is shown as failed. Metric names are TRL's (``objective/kl``, ``policy/clipfrac_avg``).
The Trainer's callbacks send the curves; settings, samples and the comparison come from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations.integration_utils import (
    WandbCallback,
    get_available_reporting_integrations,
    is_tensorboard_available,
    rewrite_logs,
)

from common import files
from common.trackers import MLflow, SwanLab, Trackio
from common.tracking import Backend, Source, TensorBoard, Tracker, WeightsAndBiases, run_id
from common.words import flatten, json_able
from pipeline.errors import UserError
from pipeline.output.console import is_main_process, say
from pipeline.output.metrics_file import MetricsFile
from pipeline.output.terminal import Terminal, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.config import Experiment

Stage = Callable[["Experiment"], None]
STEP = "train/global_step"  # as the Trainer's W&B callback calls it

# Of the stage that runs now, by their names in `tracking.report_to`.
_trackers: dict[str, Tracker] = {}
# Those whose curves come from here too, and what messages call them.
_OWN_CURVES = {"trackio": "trackio", "mlflow": "MLflow", "swanlab": "SwanLab"}
_told: set[str] = set()


def tracked(stage: str) -> Callable[[Stage], Stage]:
    """Decorate a stage's ``run``: its trackers start before it and end with it, however it ends."""

    def decorate(run: Stage) -> Stage:
        @wraps(run)
        def tracked_run(experiment: Experiment) -> None:
            setup(experiment, stage)
            try:
                run(experiment)
            except BaseException:
                finish(failed=True)
                raise
            finish()

        return tracked_run

    return decorate


def setup(experiment: Experiment, stage: str, keep: Path | None = None) -> None:
    """Start ``stage``'s run with each tracker that ``tracking.report_to`` asks for.

    W&B's files are in ``output_dir/wandb``, its run's id is kept in the stage's folder, so that a
    resumed stage goes on in the same run. TensorBoard's settings, samples and comparison are in
    ``<stage>/tensorboard``, its curves where the Trainer puts them (``<stage>/checkpoints``);
    ``tensorboard --logdir output_dir`` shows all. trackio, MLflow and SwanLab are in
    `common.trackers`. Never asks: on any trouble one warning line is printed and the run goes on
    untracked. ``keep`` is another folder than the stage's for that.

    Raises:
        UserError: a tracker that is asked for is not installed.
    """
    # TRL's trainers send telemetry and W&B prints a banner unless they are told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("WANDB_SILENT", "true")
    finish()
    if not is_main_process():
        return
    config = experiment.model_dump(mode="json")
    asked, keep = _asked(experiment), keep or experiment.stage_dir(stage)
    if "wandb" in asked:
        start = partial(_weights_and_biases, experiment, stage, config, keep)
        _trackers["wandb"] = Tracker("Weights & Biases", start, say)
    if "tensorboard" in asked:
        folder, called = keep / "tensorboard", experiment.called(stage)
        start = partial(TensorBoard, folder, f"{called}/config", flatten(config), resume=True)
        _trackers["tensorboard"] = Tracker("TensorBoard", start, say)
    for name in (name for name in _OWN_CURVES if name in asked):
        start = partial(_backend, name, experiment, stage, config, keep)
        _trackers[name] = Tracker(_OWN_CURVES[name], start, say)
    others = sorted({*asked} - {*_trackers, "none"} - _told)
    if others:
        _told.update(others)
        say(
            f"tracking.report_to: {', '.join(others)} gets the Trainer's curves alone; samples and"
            " the comparison go to wandb, tensorboard, trackio, mlflow and swanlab"
        )


def _backend(
    name: str, experiment: Experiment, stage: str, config: dict[str, Any], keep: Path
) -> Backend:
    """Start a run of trackio, MLflow or SwanLab, or go on in the one that ``keep`` knows."""
    project, group = experiment.tracking.project, experiment.name
    called, folder = f"{group}-{experiment.called(stage)}", experiment.output_dir / name
    if name == "trackio":  # whose runs go by their names, which another experiment's may be too
        run = f"{called}-{run_id(keep / 'trackio.json')}"
        return Trackio(project, run, group, config)
    if name == "mlflow":
        return MLflow(folder, project, called, group, config, keep / "mlflow.json")
    return SwanLab(folder, project, called, group, config, run_id(keep / "swanlab.json"))


def _weights_and_biases(
    experiment: Experiment, stage: str, config: dict[str, Any], keep: Path
) -> WeightsAndBiases:
    run = {
        "project": experiment.tracking.project,
        "group": experiment.name,
        "job_type": stage,
        "name": f"{experiment.name}-{experiment.called(stage)}",
        "id": run_id(keep / "wandb.json"),
    }
    settings = {"experiment": config}
    folder = experiment.output_dir
    return WeightsAndBiases(folder, settings, run, axis=STEP, shared=True, say=say)


def _asked(experiment: Experiment) -> list[str]:
    """The trackers that the config names; "all" is every one that is installed."""
    names, installed = list(experiment.tracking.report_to), get_available_reporting_integrations()
    if "all" in names:
        return installed
    # Of these two a run can do without, with a warning.
    missing = set(names) - {*installed, "none", "wandb", "tensorboard"}
    if missing:
        raise UserError(
            f"tracking.report_to: {min(missing)!r} is not installed, or is no tracker;"
            f" installed are {', '.join(sorted(installed)) or 'none'}"
        )
    return names


def report_to(experiment: Experiment) -> list[str]:
    """Return what to pass as ``TrainingArguments.report_to``: what the config asks for, less those
    whose curves `Curves` sends, a W&B that could not be started and a TensorBoard that is not
    installed."""
    names = [name for name in _asked(experiment) if name not in _OWN_CURVES]
    if "wandb" in _trackers and _trackers["wandb"].backend is None:
        names = [name for name in names if name != "wandb"]
    if not is_tensorboard_available():
        names = [name for name in names if name != "tensorboard"]
    return names or ["none"]


def finish(failed: bool = False) -> None:
    """End the current runs; does nothing when there are none. Never raises."""
    for tracker in _trackers.values():
        tracker.finish(failed)
    _trackers.clear()


def log_samples(
    experiment: Experiment, stage: str, step: int, rows: Sequence[dict[str, Any]], show: int = 3
) -> None:
    """Print the first ``show`` of ``rows`` and log ``tracking.log_samples`` of them as a table.

    ``rows`` are dictionaries with the same keys (e.g. prompt, completion, score); ``step`` is the
    optimizer step they were drawn at. Does nothing on other ranks than the first.
    """
    limit = experiment.tracking.log_samples
    if not rows or limit <= 0 or not is_main_process():
        return
    for row in rows[: min(show, limit)]:
        cells = (printable(json_able(row.get(column))) for column in rows[0])
        say(f"  {experiment.called(stage)} {step} · " + " │ ".join(cells))
    for tracker in _trackers.values():
        tracker.table(f"{stage}/samples", rows[:limit], step)


def log_comparison(results: dict[str, Any], draw: Callable[[], Figure | None]) -> None:
    """Log the comparison: a table of all methods, their numbers, and the picture that ``draw``
    makes where a tracker takes it."""
    methods: dict[str, dict[str, Any]] = results["methods"]
    numbers = {
        f"compare/{name}/{key}": float(value)
        for name, row in methods.items()
        for key, value in row.items()
        if isinstance(value, int | float)
    }
    # A table has the columns of its first row: not every policy has a note.
    every = dict.fromkeys(key for row in methods.values() for key in row)
    rows = [{"method": n, **every, **row} for n, row in methods.items()]
    for tracker in _trackers.values():
        tracker.table("compare/methods", rows, 0)
        tracker.log(0, numbers)
    log_picture("compare/reward_kl", draw, 0)


def log_report(experiment: Experiment, made: Sequence[Path], verdict: Sequence[str]) -> None:
    """Log the report as a run of its own: its verdict, its files, and what they were made from.

    Does nothing where no tracker is asked for; whatever goes wrong costs a warning line.

    Args:
        made: files that are there. verdict: its sentences.
    """
    if not is_main_process() or not _asked(experiment):
        return
    setup(experiment, "report", keep=experiment.stage_dir("compare") / "report")
    artifact = Source(f"{experiment.name}-report", "comparison", {"verdict": verdict[0]})
    for tracker in _trackers.values():
        tracker.table("report/verdict", [{"verdict": line} for line in verdict], 0)
        tracker.artifact(artifact, made, sources(experiment))
    finish()


def sources(experiment: Experiment) -> list[Source]:
    """Return what the comparison was made from: every stage's output, by its fingerprint."""
    found = []
    for stage in experiment.stages():
        folder = experiment.stage_dir(stage.name)
        record: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # a record that cannot be read has no fingerprint
            record = files.read_json(folder / "stage.json")
        if record:
            kind = "policy" if stage.method or stage.name == "sft" else stage.name
            metadata = {
                "folder": str(folder),
                "fingerprint": record.get("fingerprint"),
                "method": stage.method or None,
                "finished": record.get("finished"),
            }
            found.append(Source(f"{experiment.name}-{stage.name}", kind, metadata))
    for name, place in experiment.compare.policies.items():
        metadata = {"folder": str(place), "fingerprint": None}
        found.append(Source(f"{experiment.name}-{name}", "policy", metadata))
    return found


def log_picture(name: str, draw: Callable[[], Figure | None], step: int) -> None:
    """Log the picture that ``draw`` makes, if it makes one, where a tracker takes it."""
    for tracker in _trackers.values():
        tracker.picture(name, draw, step)


class GuardedWandbCallback(WandbCallback):
    """The Trainer's own W&B callback, which joins the run that `setup` started; an error in it
    costs a warning line and never the run."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._guard = tracker.guard

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        self._guard(super().on_train_begin, *args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        self._guard(super().on_train_end, *args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        self._guard(super().on_log, *args, **kwargs)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        self._guard(super().on_save, *args, **kwargs)

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        self._guard(super().on_predict, *args, **kwargs)


class Curves(TrainerCallback):
    """Sends the Trainer's curves to the run that `setup` started, under the Trainer's own names.

    In the place of the Trainer's callbacks for these trackers, which begin a run of their own, end
    it before the last samples are logged, and of trackio and MLflow lose the step or the run where
    one is resumed.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Send what is a number."""
        if state.is_world_process_zero:
            numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
            self._tracker.log(state.global_step, rewrite_logs(numbers))


def callbacks(experiment: Experiment, stage: str, part: str | None = None) -> list[TrainerCallback]:
    """Return the callbacks every trainer gets: the JSONL of its metrics, the terminal, and the
    curves of trackers that get them from here.

    ``part`` tells apart several trainers of one stage (the reward stage's ``proxy`` and
    ``gold``): their metrics go to ``metrics-<part>.jsonl``.
    """
    name = f"metrics-{part}.jsonl" if part else "metrics.jsonl"
    label = f"{experiment.called(stage)} {part}" if part else experiment.called(stage)
    made: list[TrainerCallback] = [MetricsFile(experiment.stage_dir(stage) / name), Terminal(label)]
    own = (_trackers[name] for name in _OWN_CURVES if name in _trackers)
    return [*made, *(Curves(tracker) for tracker in own)]


def quieten(trainer: Any) -> None:
    """Take the Trainer's own progress bar and printer away, and guard its W&B callback."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(WandbCallback) is not None and "wandb" in _trackers:
        trainer.add_callback(GuardedWandbCallback(_trackers["wandb"]))
