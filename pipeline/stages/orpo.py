"""ORPO (Hong et al. 2024, arXiv 2403.07691): SFT on the chosen, and a loss on the odds ratio."""

from __future__ import annotations

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from pipeline.config import Experiment
from pipeline.stages import tracking
from pipeline.stages.reference_free import TokenPairs, learn


class Trainer(TokenPairs, ORPOTrainer):
    """TRL's, on tokens."""


@tracking.tracked("orpo")
def run(experiment: Experiment) -> None:
    """Train on preference pairs and write ``orpo/model``."""
    learn(experiment, "orpo", ORPOConfig, Trainer)
