"""Runs stages: each once for the same inputs, resumed when interrupted, nothing overwritten.

What a stage was made from is written to its stage.json before it starts; comparing that with the
config at hand decides whether the stage is skipped, resumed, started, or refused.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from common.files import write_json
from common.words import clock
from pipeline.config import Experiment
from pipeline.config.choices import left_out
from pipeline.config.hub import pushes
from pipeline.config.stages import find_stage
from pipeline.errors import LostProcess, UserError
from pipeline.launched import part_of_run
from pipeline.output import quiet
from pipeline.output.console import is_main_process, say, wait_for_every_rank
from pipeline.output.memory import peak_memory
from pipeline.output.versions import warn_untested
from pipeline.planning import Step, plan, read_record
from pipeline.provenance import downstream, origin

StageFunction = Callable[[Experiment], None]

REPORT = "pipeline.stages.report"
AHEAD = "pipeline.stages.ahead"
BUDGET = "pipeline.stages.budget"
MEMORY = "pipeline.plan.warning"
CARDS = "pipeline.cards.writing"
PUSHING = "pipeline.sharing.pushing"
# What flock answers where there are no locks (some network mounts).
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def stage_function(stage: str) -> StageFunction:
    """Import a fixed stage, a method or the report, and return its ``run``."""
    module = REPORT if stage == "report" else find_stage(stage).module
    return importlib.import_module(module).run


def check_ahead(experiment: Experiment, stages: Sequence[str]) -> None:
    """UserError where the person's own data or checkpoints cannot be what ``stages`` read."""
    data = experiment.data
    named = [data.dataset_name, data.prompts_name, data.preferences_name]
    named += [policy.preferences_name for policy in experiment.policies.values()]
    elsewhere = "compare" in stages and experiment.compare.policies
    if elsewhere or (stages and any(name and not _of_the_project(name) for name in named)):
        importlib.import_module(AHEAD).check(experiment, stages)


def _of_the_project(name: str) -> bool:
    return name == "toy" or name.startswith("embedded:")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; UserError when it cannot be written or another holds it.

    The system frees the lock when its process dies. The holder's number stands in a file beside
    it, as Windows lets nobody else read a locked file.
    """
    held, holder = filelock.FileLock(folder / ".lock", fallback_to_soft=False), folder / ".lock.pid"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(blocking=False)
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
    except filelock.Timeout:
        raise UserError(
            f"output_dir {folder}: process {_read_holder(holder)} is working in it; wait for it to"
            " end, or set another output_dir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # there is nothing to hold: go on without
            raise UserError(
                f"output_dir {folder}: cannot be written ({error.strerror}); set another output_dir"
            ) from None
    try:
        yield
    finally:
        if held.is_locked:
            with suppress(OSError):
                holder.unlink()
        held.release()


def _read_holder(path: Path) -> str:
    """The number of the process in the file; "unknown" where it has not written it yet."""
    try:
        return path.read_text(encoding="utf-8").strip() or "unknown"
    except OSError:
        return "unknown"


def _remove(experiment: Experiment, stage: str) -> None:
    """Remove a stage's output and everything made from it."""
    for name in [stage, *downstream(experiment, stage)]:
        folder = experiment.stage_dir(name)
        if (folder / "stage.json").is_file():
            say(f"{name}: removing {folder}")
            shutil.rmtree(folder)
    shutil.rmtree(experiment.stage_dir("report"), ignore_errors=True)


def free_memory() -> None:
    """Give a finished stage's memory back, so that stages do not add up."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc keeps freed memory until told
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _run_step(experiment: Experiment, step: Step) -> None:
    """Run one stage and keep its record."""
    stage, path = step.stage, experiment.stage_dir(step.stage) / "stage.json"
    main = is_main_process()
    if main and step.action == "replace":
        _remove(experiment, stage)
    if main and step.action == "anew":
        say(f"{stage}: the earlier try left nothing to go on from")
        shutil.rmtree(experiment.stage_dir(stage))
    goes_on = step.action in ("resume", "extend")
    before = (read_record(experiment, stage) or {}) if goes_on else {}
    record: dict[str, Any] = {
        "stage": stage,
        "status": "started",
        "fingerprint": step.fingerprint,
        "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": before.get("seconds", 0.0),
        "seed": experiment.of(stage).seed,
        **origin(),
        "config": experiment.of(stage).model_dump(mode="json"),
        "inputs": step.inputs,
    }
    if main:
        write_json(path, record)
    say(f"{stage}: {'resuming' if goes_on else 'starting'}")
    start = time.monotonic()
    earlier = record["seconds"]
    try:
        function = stage_function(experiment.stage(stage).section)
        quiet.after_imports()
        function(experiment.of(stage))
        record["status"] = "finished"
        record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    finally:
        record["seconds"] = round(earlier + time.monotonic() - start, 3)
        record["peak_memory_gib"] = round(peak_memory(), 3)
        record["accelerator"] = origin()["accelerator"]
        if main:
            try:
                write_json(path, record)
            except OSError:
                # When the stage failed, its own exception says more (a full disk, say).
                if record["status"] == "finished":
                    raise
    if main:
        importlib.import_module(CARDS).write_cards(experiment, [stage])
    say(f"{stage}: finished in {clock(record['seconds'])}, peak memory {peak_memory():.1f} GiB")
    wait_for_every_rank()


# What libraries make of a full disk. The last three are torch.save's, which tells no cause: its
# writer could write no more, at the start, in the middle or at the end of a file.
_DISK_WORDS = (
    "No space left on device",
    "PytorchStreamWriter failed",
    "iostream error",
    ". unexpected pos ",
)


def _disk_is_full(error: BaseException | None) -> bool:
    """True when a full disk is the error or the cause of it, however a library wraps it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _DISK_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _process_is_lost(error: BaseException) -> bool:
    """True when a collective failed because another process is gone or silent (gloo, NCCL)."""
    lost = (
        "ncclRemoteError",
        "closed by peer",
        "reset by peer",
        "Broken pipe",
        "Timed out waiting",
        "timed out after",
    )
    text = str(error)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and isinstance(error, RuntimeError) and any(words in text for words in lost)


def run(experiment: Experiment, command: str, overwrite: bool = False) -> None:
    """Run one stage, `report`, or `run` (all of them in order), under the experiment's lock.

    A stage whose finished output for the same inputs is there is skipped. Raises UserError for
    what the user can mend; whatever else a stage raises comes through.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and overwrite:
        raise UserError("--overwrite: not with several processes; remove the outputs first")
    start = time.monotonic()
    with lock(experiment.output_dir) if is_main_process() else nullcontext():
        steps, hub = _checked(experiment, command, overwrite)
        if several:
            _check_alone(experiment, command, steps)
        try:
            if command == "run":
                _tell_expected(experiment, steps)
            _warn_of_memory(experiment, steps)
            for step in steps:
                if step.action == "skip":
                    say(f"{step.stage}: finished already, skipped")
                    continue
                _run_step(experiment, step)
                if not several:  # the others would wait, and their libraries lose patience
                    _push(experiment, hub, [step.stage])
                free_memory()
            if steps and is_main_process():  # of older runs too
                importlib.import_module(CARDS).write_cards(experiment, [s.stage for s in steps])
            if command in ("run", "report") and is_main_process():
                stage_function("report")(experiment)
            failed = _push(experiment, hub)
        except Exception as error:
            if _disk_is_full(error):
                raise UserError(
                    f"output_dir {experiment.output_dir}: the disk is full; free some space, then"
                    " run the same command to resume"
                ) from error
            if _process_is_lost(error):
                raise LostProcess(
                    f"output_dir {experiment.output_dir}: another process of this run ended or no"
                    " longer answers; run the same command to resume"
                ) from error
            raise
    if command in ("run", "report"):
        say(f"report: {experiment.stage_dir('report') / 'index.html'}")
    if command == "run":
        say(f"all stages done in {clock(time.monotonic() - start)}, peak {peak_memory():.1f} GiB")
    if failed:
        raise importlib.import_module(PUSHING).told(failed)


def ready(experiment: Experiment, command: str, overwrite: bool = False) -> list[Step]:
    """What `run` would do, after its checks, for another process to do; removes what is replaced.

    Raises:
        UserError: as `run` before any work.
    """
    with lock(experiment.output_dir):
        steps, _ = _checked(experiment, command, overwrite)
        for step in steps:
            if step.action == "replace":
                _remove(experiment, step.stage)
    return steps


def _checked(
    experiment: Experiment, command: str, overwrite: bool
) -> tuple[list[Step], Sequence[Any]]:
    """The plan of a command and its places on the hub, once everything that can be known to fail
    has been looked at."""
    steps = plan(experiment, _asked(experiment, command), overwrite)
    warn_untested()
    hub = _checked_hub(experiment, command, steps)
    if command == "report":
        _need_comparison(experiment)
    check_ahead(experiment, [step.stage for step in steps if step.action != "skip"])
    for stage, why in left_out(experiment).items() if command == "run" else ():
        say(f"{stage}: left out ({why})")
    _tell_needed(experiment, command, steps)
    return steps, hub


def _check_alone(experiment: Experiment, command: str, steps: Sequence[Step]) -> None:
    """UserError for what runs in one process, where a launcher has started several."""
    if command in ("run", "report"):
        mend = f"start `rlhf {command}{' --accelerate FILE' if command == 'run' else ''}` alone"
        raise UserError(f"{command}: not by several processes; {mend}")
    for step in steps:
        if step.action != "skip" and experiment.stage(step.stage).alone:
            raise UserError(
                f"{step.stage}: runs in one process; run `rlhf {step.stage}` first, or start"
                f" `rlhf {command} --accelerate FILE` alone"
            )


def _asked(experiment: Experiment, command: str) -> tuple[str, ...]:
    """The stages that a command is about; UserError where there is no such stage."""
    names = tuple(stage.name for stage in experiment.stages())
    if command not in (*names, "run", "report"):
        raise UserError(f"{command}: no policy of this config; it has {', '.join(names[2:-1])}")
    return names if command == "run" else () if command == "report" else (command,)


def _tell_needed(experiment: Experiment, command: str, steps: Sequence[Step]) -> None:
    """Say which stages run because another builds on them, and how to do without SFT."""
    needed = [step.stage for step in steps if command not in ("run", step.stage)]
    if not needed:
        return
    skip = " (sft.skip=true takes the model as it is)" if "sft" in needed else ""
    skip = "" if experiment.sft.skip else skip
    say(f"{command}: builds on {' and '.join(needed)}, not finished yet: done first{skip}")


def _tell_expected(experiment: Experiment, steps: Sequence[Step]) -> None:
    """Say about how long the stages with work to do will take."""
    before: dict[str, float] = {}
    for step in (step for step in steps if step.action != "skip"):
        goes_on = step.action in ("resume", "extend")
        record = (read_record(experiment, step.stage) or {}) if goes_on else {}
        before[step.stage] = record.get("seconds", 0.0)
    # For the toy it says nothing, and its imports would take seconds.
    if before and experiment.model.model_name_or_path != "toy":
        importlib.import_module(BUDGET).tell(experiment, before)
        free_memory()


def _warn_of_memory(experiment: Experiment, steps: Sequence[Step]) -> None:
    """Say where a stage with work to do will need more memory than is free."""
    stages = [step.stage for step in steps if step.action != "skip"]
    # For the toy it says nothing, and its imports would take seconds.
    if stages and experiment.model.model_name_or_path != "toy":
        importlib.import_module(MEMORY).warn(experiment, stages)
        free_memory()


def _checked_hub(experiment: Experiment, command: str, steps: Sequence[Step]) -> Sequence[Any]:
    """Where the output of this command goes on the hub; UserError where it cannot.

    Nowhere where it is part of a run that a launcher divides: that has asked, and pushes at its
    end. A hub that does not answer for a minute would end it in the middle.
    """
    if not pushes(experiment) or not is_main_process() or part_of_run():
        return ()
    stages = [step.stage for step in steps]
    return importlib.import_module(PUSHING).check_command(experiment, command, stages)


def _push(
    experiment: Experiment, places: Sequence[Any], stages: Sequence[str] | None = None
) -> list[str]:
    """Push what is finished, of ``stages`` or all; what could not be is returned."""
    return importlib.import_module(PUSHING).push(experiment, places, stages) if places else []


def _need_comparison(experiment: Experiment) -> None:
    """UserError unless there is a finished comparison to report on."""
    record = read_record(experiment, "compare")
    if record is None or record["status"] != "finished":
        raise UserError(
            f"{experiment.stage_dir('compare')}: not finished, so there is nothing to report; run"
            " `rlhf run` first"
        )
