"""What a run tells while it works: Weights & Biases, a JSONL of every metric, and the terminal.

Use, in a stage::

    tracking.setup(experiment, "ppo")
    trainer = PPOTrainer(args=PPOConfig(report_to=tracking.report_to(experiment), ...),
                         callbacks=tracking.callbacks(experiment, "ppo"), ...)
    tracking.quieten(trainer)
    trainer.train()
    tracking.finish()

Weights & Biases is a guest: without an account it logs offline, and nothing it does can ask a
question, hold a run up or end it. One group is one experiment, one run is one stage; a resumed
stage goes on in its own run. Metric names are TRL's (``objective/kl``, ``policy/clipfrac_avg``).
"""

from __future__ import annotations

import json
import netrc
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations.integration_utils import WandbCallback

from common import files
from common.words import json_able
from pipeline.output.terminal import Terminal, is_main_process, printable, progress, say

if TYPE_CHECKING:
    from pipeline.config import Experiment

__all__ = [
    "callbacks",
    "finish",
    "is_main_process",
    "log_samples",
    "progress",
    "quieten",
    "read_metrics",
    "report_to",
    "setup",
]

# Seconds. An account whose server does not answer must not hold a run up.
ONLINE_TIMEOUT = 20.0
FINISH_TIMEOUT = 60.0

_wandb_failed = False
_warned = False


def setup(experiment: Experiment, stage: str) -> None:
    """Start ``stage``'s run where ``tracking.report_to`` asks for Weights & Biases.

    The run is in the group ``experiment.name``; its files are in ``output_dir/wandb``; its id is
    kept in the stage's folder, so that a resumed stage goes on in the same run. Never raises and
    never asks: on any trouble one warning line is printed and the run goes on untracked.
    """
    global _wandb_failed, _warned
    _wandb_failed, _warned = False, False
    _quiet_environment()
    if not _wants_wandb(experiment) or not is_main_process():
        return
    try:
        _start_wandb(experiment, stage)
    except Exception as error:  # whatever a guest does wrong, the run goes on
        _wandb_failed = True
        _warn(error)


def report_to(experiment: Experiment) -> list[str]:
    """Return what to pass as ``TrainingArguments.report_to``: the configured list, less a W&B
    that could not be started."""
    wanted = list(experiment.tracking.report_to)
    if _wandb_failed:
        wanted = [name for name in wanted if name not in ("wandb", "all")]
    return wanted or ["none"]


def finish() -> None:
    """End the current W&B run; does nothing when there is none. Never raises."""
    if _run() is not None:
        _guarded(sys.modules["wandb"].finish)


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
    columns: list[Any] = list(rows[0])
    cells: list[Any] = [[_cell(row.get(column)) for column in columns] for row in rows[:limit]]
    for line in cells[: min(show, limit)]:
        parts = (printable(cell) for cell in line)
        say(f"  {stage} {step} · " + " │ ".join(parts))
    if _run() is None:
        return

    def send() -> None:
        import wandb

        table = wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        wandb.log({f"{stage}/samples": table, "train/global_step": step})

    _guarded(send)


class GuardedWandbCallback(WandbCallback):
    """The Trainer's own W&B callback, which joins the run that `setup` started; an error in it
    costs a warning line and never the run."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        _guarded(super().on_train_begin, *args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        _guarded(super().on_train_end, *args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        _guarded(super().on_log, *args, **kwargs)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        _guarded(super().on_save, *args, **kwargs)

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.integrations.WandbCallback`."""
        _guarded(super().on_predict, *args, **kwargs)


def _wants_wandb(experiment: Experiment) -> bool:
    return any(name in ("wandb", "all") for name in experiment.tracking.report_to)


def _quiet_environment() -> None:
    # TRL's trainers send telemetry and W&B prints a banner unless they are told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("WANDB_SILENT", "true")


def _start_wandb(experiment: Experiment, stage: str) -> None:
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
    try:
        _init_wandb(wandb, experiment, stage, mode)
    except Exception as error:
        if mode != "online":
            raise
        # An account, but no way to reach it: the offline files can be sent later.
        say(f"warning: Weights & Biases: {_first_line(error)} Logging offline instead.")
        wandb.teardown()
        _init_wandb(wandb, experiment, stage, "offline")


def _init_wandb(wandb: Any, experiment: Experiment, stage: str, mode: str) -> None:
    folder = Path(experiment.output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    wandb.init(
        project=experiment.tracking.project,
        group=experiment.name,
        job_type=stage,
        name=f"{experiment.name}-{stage}",
        id=_run_id(experiment.stage_dir(stage)),
        resume="allow",
        reinit="finish_previous",
        mode=mode,
        dir=str(folder),
        config={"experiment": experiment.model_dump(mode="json")},
        settings=wandb.Settings(
            silent=True,
            console="off",  # do not stand between the program and its own output
            disable_git=True,  # the stage's own record has the commit
            init_timeout=ONLINE_TIMEOUT,
            login_timeout=ONLINE_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            # Sampling the machine every few seconds takes a core from training where cores are few.
            x_disable_stats=mode == "offline",
        ),
    )
    # As the Trainer's callback does, so that samples logged outside a Trainer share its axis.
    wandb.define_metric("train/global_step")
    wandb.define_metric("*", step_metric="train/global_step", step_sync=True)


def _has_account(wandb: Any) -> bool:
    """True when W&B would find credentials without asking: a variable, or a line in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    custom = os.environ.get("WANDB_BASE_URL")
    urls = [custom] if custom else [wandb.Settings().base_url, "https://api.wandb.ai"]
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        try:
            found = netrc.netrc(os.path.expanduser(name))
        except (OSError, netrc.NetrcParseError):
            continue
        if any(urlsplit(url).netloc in found.hosts for url in urls):
            return True
    return False


def _run_id(stage_dir: Path) -> str:
    path = stage_dir / "wandb.json"
    if path.is_file():
        return str(files.read_json(path)["id"])
    run_id = secrets.token_hex(4)
    files.write_json(path, {"id": run_id})
    return run_id


def _run() -> Any:
    """The current W&B run, or None; does not import wandb to find out."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _guarded(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        call(*args, **kwargs)
    except Exception as error:  # whatever a guest does wrong, the run goes on
        _warn(error)


def _warn(error: Exception) -> None:
    global _warned
    if not _warned:  # one line a stage, not one a step
        _warned = True
        say(f"warning: Weights & Biases: {_first_line(error)} Going on without it.")


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if text.endswith(".") else text + "."


def callbacks(experiment: Experiment, stage: str, part: str | None = None) -> list[TrainerCallback]:
    """Return the callbacks every trainer gets: the JSONL of its metrics, and the terminal.

    ``part`` tells apart several trainers of one stage (the reward stage's ``proxy`` and
    ``gold``): their metrics go to ``metrics-<part>.jsonl``.
    """
    name = f"metrics-{part}.jsonl" if part else "metrics.jsonl"
    label = f"{stage} {part}" if part else stage
    return [MetricsFile(experiment.stage_dir(stage) / name), Terminal(label)]


def quieten(trainer: Any) -> None:
    """Take the Trainer's own progress bar and printer away, and guard its W&B callback."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(WandbCallback) is not None and not _wandb_failed:
        trainer.add_callback(GuardedWandbCallback())


class MetricsFile(TrainerCallback):
    """Appends every log event to ``path``: ``{"step", "epoch", "time", metric: number, ...}``.

    ``time`` is in seconds since 1970. A metric that is not finite is written as null. When a run
    resumes, the lines after the step it resumes from are dropped, so the steps in the file are
    those of an uninterrupted run. Only the first rank writes.
    """

    def __init__(self, path: Path) -> None:
        """``path`` is made, with its folder, when training begins."""
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to ``state.global_step``, which is 0 unless the run resumes."""
        if not state.is_world_process_zero:
            return
        kept = []
        for row in read_metrics(self.path) if state.global_step > 0 else []:
            # The closing summary of a run that had ended is written again at its new end.
            if row["step"] <= state.global_step and "train_runtime" not in row:
                kept.append(json.dumps(row, ensure_ascii=False) + "\n")
        files.write_text(self.path, "".join(kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append one line."""
        if not state.is_world_process_zero or not logs:
            return
        metrics = {name: json_able(value) for name, value in logs.items() if name != "total_flos"}
        row = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3)}
        line = json.dumps(row | metrics, ensure_ascii=False, allow_nan=False, default=str)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read what `MetricsFile` wrote; a missing file is empty, a line cut off by a kill is left
    out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _cell(value: Any) -> Any:
    value = json_able(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
