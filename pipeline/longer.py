"""Whether a longer run can go on from the checkpoints of a shorter one.

It can where it would have taken the same steps: where nothing in a step depends on how many there
will be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.methods import ON_POLICY, updates_per_rollout
from pipeline.config.stages import Stage
from pipeline.provenance import Difference

_SAME_AT_ANY_LENGTH = ("constant", "constant_with_warmup")


def only_longer(stage: Stage, found: Sequence[Difference]) -> bool:
    """True when all that differs is that ``stage`` is to train longer."""
    keys = [f"{stage.section}.{name}" for name in stage.lengths]
    return all(
        difference.key in keys
        and isinstance(difference.before, int | float)
        and isinstance(difference.now, int | float)
        and difference.now > difference.before > 0
        for difference in found
    )


def why_not(section: str, arguments: Mapping[str, Any], folder: Path) -> str | None:
    """Why a longer run of these trainer arguments is another run from its first step; or None.

    Args:
        section: whose arguments they are. folder: of the shorter run's checkpoints.
    """
    if arguments.get("lr_scheduler_type") not in _SAME_AT_ANY_LENGTH:
        return (
            "its learning rates follow from the length"
            f" (only {section}.lr_scheduler_type=constant does not)"
        )
    if 0 < arguments.get("warmup_steps", 0) < 1:
        return f"{section}.warmup_steps is a share of the length"
    if arguments.get("kl_target") is not None:
        return f"{section}.kl_target is steered to within the length"
    if section in ON_POLICY:
        last, every = _last_step(folder), updates_per_rollout(section, arguments)
        if last % every:  # whose policy would go on with a rollout that is gone
            return f"it ended at step {last}, within a rollout of {every} steps"
    return None


def _last_step(folder: Path) -> int:
    """The step of the last of the checkpoints in ``folder``; 0 where there is none."""
    numbers = [path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)
