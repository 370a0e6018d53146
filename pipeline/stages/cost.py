"""What a policy's training asked for: reward queries, completions and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from common.files import read_json, write_json
from pipeline.config import Experiment
from pipeline.lm.generation import Completion
from pipeline.output.console import is_main_process

COST = "cost.json"


def write_cost(
    experiment: Experiment, stage: str, *, reward_queries: int, completions: int, tokens: int
) -> None:
    """Write ``<stage>/cost.json``, on one process.

    What counts is what this policy would cost if it were made alone: of pairs or samples that
    another policy had drawn before, the whole price. Comparing policies costs no policy anything.

    Args:
        reward_queries: completions that the reward scored. completions: those that were sampled.
        tokens: of the sampled completions, EOS included, prompts not.
    """
    if is_main_process():
        made = {"reward_queries": reward_queries, "completions": completions, "tokens": tokens}
        write_json(experiment.stage_dir(stage) / COST, made)


def cost_of(completions: Sequence[Completion]) -> dict[str, int]:
    """What completions cost that were each scored once, as :func:`write_cost` takes it."""
    count = len(completions)
    tokens = sum(len(completion.completion_ids) for completion in completions)
    return {"reward_queries": count, "completions": count, "tokens": tokens}


def read_cost(folder: Path) -> dict[str, Any] | None:
    """What :func:`write_cost` wrote to a policy's folder; None where there is nothing of it."""
    path = folder / COST
    return read_json(path) if path.is_file() else None


class Spent(TrainerCallback, ExportableState):
    """What a run has asked for so far, all processes together.

    It is in the run's checkpoints, so that a resumed run goes on counting where they were made.
    """

    def __init__(self) -> None:
        self.reward_queries = self.completions = self.tokens = 0

    def state(self) -> dict[str, Any]:
        """See `transformers.trainer_callback.ExportableState`."""
        return {"args": {}, "attributes": dict(vars(self))}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on from what the checkpoint says, where there is one."""
        kept = state.stateful_callbacks.get(type(self).__name__, {})
        if state.global_step > 0:
            vars(self).update(kept.get("attributes", {}))


def count(trainer: Trainer, *, sampled: Sequence[Completion] = (), scored: int = 0) -> None:
    """Add what this process has just sampled and had scored; every process must call it."""
    tokens = sum(len(completion.completion_ids) for completion in sampled)
    spent = _callback(trainer)
    for queries, completions, length in gather_object([(scored, len(sampled), tokens)]):
        spent.reward_queries += queries
        spent.completions += completions
        spent.tokens += length


def spent_by(trainer: Trainer) -> dict[str, int]:
    """What a trainer with a :class:`Spent` has asked for, as :func:`write_cost` takes it.

    Where a run had ended before, only its state is loaded: then what that says.
    """
    counted = dict(vars(_callback(trainer)))
    states: Any = trainer.state.stateful_callbacks
    before: dict[str, int] = states.get(Spent.__name__, {}).get("attributes", {})
    return {name: max(value, before.get(name, 0)) for name, value in counted.items()}


def _callback(trainer: Trainer) -> Spent:
    """The counter; where callbacks' states are restored, a checkpoint puts another in its place."""
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Spent))
