"""The experiment file: one typed tree, checked whole before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment, load_experiment
    from pipeline.config.rewards import PAIRWISE, TRAINED_HERE, RewardPart, is_trained_here
    from pipeline.config.sections import (
        OVER_SFT,
        TRAINED_LENGTH,
        CompareSection,
        DataSection,
        ModelSection,
        RewardSection,
        TrackingSection,
    )
    from pipeline.config.sweeps import SweepSection

__all__ = [
    "OVER_SFT",
    "PAIRWISE",
    "TRAINED_HERE",
    "TRAINED_LENGTH",
    "CompareSection",
    "DataSection",
    "Experiment",
    "ModelSection",
    "RewardPart",
    "RewardSection",
    "SweepSection",
    "TrackingSection",
    "is_trained_here",
    "load_experiment",
]


def __getattr__(name: str) -> Any:
    """Import the tree when it is asked for: ``rlhf --help`` reads `stages` alone, and at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.config import experiment, rewards, sections, sweeps

    home = next(
        module for module in (experiment, sections, rewards, sweeps) if hasattr(module, name)
    )
    return getattr(home, name)
