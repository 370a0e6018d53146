"""Whether a stage may go on under another number of processes, and which batches are the same.

Several processes share a batch: `per_device_train_batch_size` × `gradient_accumulation_steps` × the
number of processes is what one optimizer step learns from (and, for PPO, a minibatch of the
rollout). As long as that product stays, so does the mathematics, and the two settings only say how
it is divided: a stage made with 8 × 1 is the same as one made with 4 × 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline import launched
from pipeline.config.arguments import target
from pipeline.config.stages import Stage
from pipeline.errors import UserError

ROWS, ACCUMULATED = "per_device_train_batch_size", "gradient_accumulation_steps"
_PER_PROCESS = {
    **dict.fromkeys(("grpo", "rloo"), "its rollouts are drawn and normalised in each process"),
    "kto": "its estimate of the KL is of each process's own rows",
    **dict.fromkeys(("orpo", "cpo", "simpo"), "its loss is a mean over each process's own tokens"),
}
"""Methods whose loss depends on how a batch is divided, and why."""
_LIKE_LENGTHS = "group_by_length"
_BY_PAIR = ("sigmoid", "rebel", "hinge", "ipo", "robust", "exo_pair")
"""DPO's losses that are a mean over pairs."""


def processes(stage: Stage) -> int:
    """How many processes this command would train ``stage`` in."""
    return 1 if stage.alone else launched.processes()


def whole_batch(stage: Stage, arguments: Mapping[str, Any], count: int) -> int:
    """Rows of one optimizer step over ``count`` processes; of pairs, pairs."""
    rows, accumulated = _divided(stage, arguments)
    return rows * accumulated * count


def same_batch(
    stage: Stage, before: Mapping[str, Any], earlier: int | None, now: Mapping[str, Any]
) -> bool:
    """Whether another division made the same batches, of a stage whose other settings are equal.

    Args:
        before: the section's arguments then. earlier: the processes then, None where unknown.
        now: the arguments now, of `processes(stage)`.
    """
    if earlier is None or stage.arguments is None or why_not(stage, now) is not None:
        return False
    if not _as_often(before, now, stage):
        return False
    return whole_batch(stage, before, earlier) == whole_batch(stage, now, processes(stage))


def check_resumed(
    stage: Stage, before: Mapping[str, Any], earlier: int | None, now: Mapping[str, Any]
) -> None:
    """UserError where a stage that was begun would go on with other batches than it began with."""
    count = processes(stage)
    if earlier is None or stage.arguments is None or earlier == count:
        return
    section = stage.section
    reason = why_not(stage, now)
    if reason is not None:
        raise UserError(
            f"{stage.name}: was begun by {_counted(earlier)} and cannot go on with {count}, as"
            f" {reason}; start {earlier}, or set another output_dir"
        )
    rows, accumulated = _divided(stage, before)
    batch, here = rows * accumulated * earlier, whole_batch(stage, now, count)
    often = _as_often(before, now, stage)
    if batch == here and often:
        return
    was = (
        f"{stage.name}: was begun by {_counted(earlier)} with batches of {batch} ({rows} rows ×"
        f" {accumulated} accumulated × {earlier}), and would go on with {here}"
    )
    if not often:
        was = f"{was}, accumulated otherwise, which draws other texts of like length"
    in_parts = count * (accumulated if _grouped(before) else 1)
    if batch % in_parts:
        raise UserError(
            f"{was}; {count} cannot share {batch} evenly, so start"
            f" {_fitting(batch // (in_parts // count), count)}"
        )
    share = batch // count
    kept = accumulated if share % accumulated == 0 else 1
    mend = f"{section}.{ROWS}={share // kept} {section}.{ACCUMULATED}={kept}"
    raise UserError(f"{was}; for {_counted(count)} set {mend}")


def why_not(stage: Stage, arguments: Mapping[str, Any]) -> str | None:
    """Why another division of its batches is another training; None where it is not."""
    if stage.section != "sft" and _grouped(arguments):
        return "train_sampling_strategy=group_by_length makes batches of each process's rows"
    if stage.section == "dpo":
        given = arguments.get("loss_type", "sigmoid")
        names = [given] if isinstance(given, str) else list(given)
        other = [name for name in names if name not in _BY_PAIR]
        return f"dpo.loss_type: {other[0]} is no mean over pairs" if other else None
    return _PER_PROCESS.get(stage.section)


def _grouped(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("train_sampling_strategy") == _LIKE_LENGTHS


def _as_often(before: Mapping[str, Any], now: Mapping[str, Any], stage: Stage) -> bool:
    """Whether as many batches make a step as before, where each is of texts of like length."""
    return not _grouped(now) or _divided(stage, before)[1] == _divided(stage, now)[1]


def _divided(stage: Stage, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Rows at once and how often they are accumulated, by default where it is not said."""
    default: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(target(stage))}
    rows, accumulated = (int(arguments.get(n) or default[n]) for n in (ROWS, ACCUMULATED))
    return rows, accumulated


def _counted(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _fitting(batch: int, count: int) -> int:
    """The largest number of processes up to ``count`` that a batch goes evenly on."""
    return next(n for n in range(min(batch, count), 0, -1) if batch % n == 0)
