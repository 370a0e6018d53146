"""What is kept for inspection when a run has to stop: the rollout that it stopped at."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.output.files import write_json
from pipeline.ppo.config import PPOConfig
from reward_models import RewardError

_SHOWN = 2000  # characters of a value that is no number


class FailedReward(RewardError, UserError):
    """The reward function gave no usable scores; the message says where the batch is."""


def save_rollout(
    args: PPOConfig,
    step: int,
    reason: str,
    completions: Sequence[Completion],
    columns: dict[str, Any],
) -> str:
    """Write a failed rollout as ``output_dir/failed-rollout-<step>.json`` and say where it is.

    Args:
        step: the optimizer step that the rollout began at.
        columns: further values, a list for each completion or whatever the reward returned.

    Returns:
        A clause for the error message; when the file cannot be written, the one that says so.
    """
    rank = f"-rank{args.process_index}" if args.world_size > 1 else ""
    path = Path(str(args.output_dir)) / f"failed-rollout-{step}{rank}.json"
    content = {
        "step": step,
        "reason": reason,
        "prompts": [c.prompt for c in completions],
        "completions": [c.text for c in completions],
        **{name: plain(value) for name, value in columns.items()},
    }
    try:
        write_json(path, content)
    except OSError as error:
        return f"the batch could not be saved ({error.strerror})"
    return f"the batch is in {path}"


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity as text, unknown objects by their repr."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return repr(value)[:_SHOWN]
