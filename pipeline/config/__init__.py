"""The experiment file: one typed tree, checked whole before any work."""

from pipeline.config.experiment import (
    OVER_SFT,
    STAGES,
    TRAINED,
    CompareSection,
    DataSection,
    Experiment,
    ModelSection,
    RewardSection,
    TrackingSection,
    load_experiment,
)

__all__ = [
    "OVER_SFT",
    "STAGES",
    "TRAINED",
    "CompareSection",
    "DataSection",
    "Experiment",
    "ModelSection",
    "RewardSection",
    "TrackingSection",
    "load_experiment",
]
