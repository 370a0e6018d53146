"""Decides what is to be done about each stage, before any work.

What a stage was made from is in its stage.json; comparing that with the config at hand decides
whether it is skipped, resumed, started, made longer, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from common.files import read_json
from pipeline.config import Experiment
from pipeline.config.choices import left_out
from pipeline.config.policies import own_key
from pipeline.errors import UserError
from pipeline.longer import only_longer, why_not
from pipeline.output.work import holds_work
from pipeline.provenance import (
    ELSEWHERE,
    UNSET,
    Difference,
    Record,
    differences,
    downstream,
    fingerprint,
    record_print,
    stage_inputs,
    trainer_settings,
    upstream,
)
from pipeline.worlds import ACCUMULATED, ROWS, check_resumed

Action = Literal["start", "resume", "skip", "replace", "anew", "extend"]


@dataclass(frozen=True)
class Step:
    """What is to be done about a stage, decided before any work."""

    stage: str
    action: Action
    inputs: dict[str, Any]
    fingerprint: str


def read_record(experiment: Experiment, stage: str) -> dict[str, Any] | None:
    """A stage's stage.json; None when the stage was never started."""
    folder = experiment.stage_dir(stage)
    path = folder / "stage.json"
    try:
        record = read_json(path)
        if not isinstance(record["inputs"], dict) or record["status"] not in (
            "started",
            "finished",
        ):
            raise KeyError
    except FileNotFoundError:
        # Temporary files of an interrupted atomic write begin with a dot.
        if folder.is_dir() and any(not child.name.startswith(".") for child in folder.iterdir()):
            raise UserError(
                f"{folder}: holds files but no stage.json, so no stage made it; set another"
                " output_dir"
            ) from None
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise UserError(
            f"{path}: not a stage record; remove {folder} or set another output_dir"
        ) from None
    return record


def _refusal(
    experiment: Experiment, stage: str, found: list[Difference], hint: str = ""
) -> UserError:
    """The error about outputs that another config made."""
    first = found[0]
    if stage in experiment.policies and first.part in ("config", "content"):
        key = own_key(stage, experiment.policies[stage], first.key)
        first = replace(first, key=key)
    if experiment.shares(stage):
        return UserError(
            f"{experiment.stage_dir(stage)}: was made with {first}; set another shared, or"
            " shared=null for one of its own"
        )
    return UserError(
        f"{experiment.stage_dir(stage)}: was made with {first};{hint}"
        " set another output_dir, or add --overwrite to remove and redo "
        + ", ".join([stage, *downstream(experiment, stage)])
    )


def _closure(experiment: Experiment, stages: Sequence[str]) -> set[str]:
    """``stages`` and all that they are made from."""
    reached = set(stages)
    for stage, needs in reversed(upstream(experiment).items()):
        if stage in reached:
            reached.update(needs)
    return reached


def plan(experiment: Experiment, stages: Sequence[str], overwrite: bool = False) -> list[Step]:
    """Decide what to do about each of ``stages``; UserError when outputs in place differ.

    ``overwrite`` replaces what differs, and a stage that was asked for alone in any case. A stage
    that they need and that is not finished is done before them.
    """
    out = left_out(experiment)
    if len(stages) == 1 and stages[0] in out:
        raise UserError(out[stages[0]])
    stages = [stage for stage in stages if stage not in out]
    records = {stage: read_record(experiment, stage) for stage in _closure(experiment, stages)}
    finished = {s for s, record in records.items() if record and record["status"] == "finished"}
    there = finished.union(stages)
    needs = upstream(experiment, there)
    stages = _with_needed(experiment, stages, needs, finished)
    _check_shared(experiment, stages, finished, overwrite)
    inputs = stage_inputs(experiment, records, there)
    replaced: set[str] = set()
    steps: list[Step] = []
    for stage in stages:
        record = records.get(stage)
        found = differences(experiment, stage, record, inputs[stage]) if record else []
        action: Action
        if record is None:
            action = "start"
        elif experiment.shares(stage) and found:
            raise _refusal(experiment, stage, found)
        elif stage in replaced or (overwrite and (found or len(stages) == 1)):
            action = "replace"
            replaced.update(downstream(experiment, stage))
        elif found:
            if record["status"] == "started":
                _check_division(experiment, stage, record, found)
            action = _despite(experiment, stage, record, found)
        else:
            action = "skip" if record["status"] == "finished" else "resume"
        if record is not None and action in ("resume", "extend"):
            _check_division(experiment, stage, record)
        kept = record_print(record) if record and not found else fingerprint(inputs[stage])
        steps.append(Step(stage, action, inputs[stage], kept))
    _check_needs(experiment, stages, needs, records, inputs)
    return steps


def _check_division(
    experiment: Experiment, stage: str, record: Record, found: Sequence[Difference] = ()
) -> None:
    """UserError where what was begun would go on with other batches, by another division of them.

    Args:
        found: how the stage differs: of more than the division, that is told elsewhere.
    """
    row, before = experiment.stage(stage), None
    keys = {f"{row.section}.{name}" for name in (ROWS, ACCUMULATED)}
    if all(difference.key in keys for difference in found) and holds_work(
        experiment.stage_dir(stage)
    ):
        before = trainer_settings(record, row)
    if before is not None:
        now = experiment.of(stage).trainer_args(row.section)
        check_resumed(row, before, record.get("processes"), now)


def _check_shared(
    experiment: Experiment, stages: Sequence[str], finished: set[str], overwrite: bool
) -> None:
    """UserError where one of ``stages`` is another experiment's and would be run."""
    for stage in stages:
        if experiment.shares(stage) and (stage not in finished or (overwrite and len(stages) == 1)):
            why = "is another experiment's" if stage in finished else "is not finished"
            raise UserError(
                f"{experiment.stage_dir(stage)}: {why}, and what `shared` names is only read; run"
                f" `rlhf {stage}` with the config that it is made with, or set shared=null"
            )


def in_place(experiment: Experiment, stage: str) -> Step:
    """What `plan` says of a stage whose output is read and not made here.

    Raises:
        UserError: It was made with another config.
    """
    try:
        [step] = [step for step in plan(experiment, [stage]) if step.stage == stage]
    except UserError as error:
        why = str(error).partition(";")[0]
        raise UserError(f"{why}; give the config that it was made with") from None
    return step


def _with_needed(
    experiment: Experiment,
    stages: Sequence[str],
    needs: dict[str, tuple[str, ...]],
    finished: set[str],
) -> list[str]:
    """``stages`` and, in order, the unfinished ones they need."""
    wanted, names = set(stages), [stage.name for stage in experiment.stages()]
    for stage in reversed(names):
        if stage in wanted:
            wanted.update(set(needs[stage]) - finished)
    return [stage for stage in names if stage in wanted]


def _despite(experiment: Experiment, stage: str, record: Record, found: list[Difference]) -> Action:
    """What to do about a stage in place that differs by ``found``; UserError for nothing."""
    folder = experiment.stage_dir(stage)
    if record["status"] == "started" and not holds_work(folder):
        return "anew"
    # Other policies to compare: those measured stay measured.
    others = all(
        f.key.startswith(ELSEWHERE) or (f.part == "upstream" and UNSET in (f.before, f.now))
        for f in found
    )
    if others and stage == "compare":
        return "resume"
    row, view = experiment.stage(stage), experiment.of(stage)
    if not only_longer(row, found):
        raise _refusal(experiment, stage, found)
    reason = why_not(row.section, view.trainer_args(row.section), folder / "checkpoints")
    later = [s for s in downstream(experiment, stage) if experiment.stage_dir(s).exists()]
    if reason is None and later:
        reason = f"{', '.join(later)} was made from what it is now; remove that"
    if reason is not None:
        raise _refusal(experiment, stage, found, f" it cannot go on to the longer run: {reason};")
    return "extend"


def _check_needs(
    experiment: Experiment,
    stages: Sequence[str],
    needs: dict[str, tuple[str, ...]],
    records: dict[str, Record | None],
    inputs: dict[str, dict[str, Any]],
) -> None:
    """UserError unless what ``stages`` build on and do not hold is the same."""
    needed = {need for stage in stages for need in needs[stage]}.difference(stages)
    for need in (stage.name for stage in experiment.stages() if stage.name in needed):
        record = records[need]
        found = differences(experiment, need, record, inputs[need]) if record else []
        if found:
            raise _refusal(experiment, need, found)
    for stage in stages:
        takes = experiment.stage(stage).takes
        enough = stage == "compare" and experiment.compare.policies
        if takes and not enough and not set(needs[stage]).intersection(takes):
            raise UserError(
                f"{stage}: none of {', '.join(takes)} is finished; run `rlhf {takes[0]}` first,"
                " or `rlhf run` for all stages"
            )
