"""Says before a run where its plan is above what the machine has free: a line, never a refusal."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from pipeline.config import Experiment
from pipeline.lm.hardware import best_device
from pipeline.output.console import is_main_process, say
from pipeline.plan.devices import CUDA_CONTEXT, GIB, Machine, here, machine
from pipeline.plan.needs import needs_of

_READ = 50e6  # bytes of data files that are read once more for it, at most


def warn(experiment: Experiment, stages: Sequence[str]) -> None:
    """Tell the stage of ``stages`` that needs most, if that is more than there is.

    An estimate must not end a run, nor hold it up: what cannot be planned is passed over.
    """
    if not is_main_process() or not stages:
        return
    try:
        of, split = _machine(), _splits()
        with torch.random.fork_rng(devices=[]):
            needs = needs_of(experiment, of, stages, split, _READ)
    except Exception:  # what is wrong the stages will say, each in its own words
        return
    over = [need for need in needs if need.peak.total > of.room]
    if not over:
        return
    worst = max(over, key=lambda need: need.peak.total)
    say(
        f"warning: {worst.stage}: about {worst.peak.total / GIB:.1f} GiB while"
        f" {worst.peak.name}, and {of.room / GIB:.1f} GiB are free here; `rlhf plan --config …`"
        " says what to change"
    )


def _machine() -> Machine:
    """This machine with what is free on it now, for each of the processes."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    made = machine(None, count)
    if made.device.is_processor:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(count)))
        return Machine(made.device, count, made.room * count / max(1, local), here=True)
    free, _ = torch.cuda.mem_get_info(best_device())
    return Machine(here(), count, free + CUDA_CONTEXT, here=True)


def _splits() -> bool:
    """Whether the launcher splits the weights over the processes."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
