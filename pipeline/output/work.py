"""Whether a stage that did not end left anything worth keeping."""

from __future__ import annotations

from pathlib import Path

# Written before or beside the work: the record, the trackers' and the journal's files.
_TRACES = ("stage.json", "wandb.json", "metrics", "tensorboard", "rollouts")


def holds_work(folder: Path) -> bool:
    """True when a stage's ``folder`` holds more than traces: a checkpoint, pairs, a model, …"""
    for child in folder.iterdir():
        if child.name.startswith((".", *_TRACES)):
            continue
        if child.name != "checkpoints" or _any_checkpoint(child):
            return True
    return False


def _any_checkpoint(folder: Path) -> bool:
    """True when there is one in ``folder`` or, as the reward stage has them, in a part's."""
    return any(path.is_dir() for path in folder.rglob("checkpoint-*"))
