"""CPO (Xu et al. 2024, arXiv 2401.08417): DPO's loss without a reference, and SFT on the chosen."""

from __future__ import annotations

from trl.experimental.cpo import CPOConfig, CPOTrainer

from pipeline.config import Experiment
from pipeline.stages import tracking
from pipeline.stages.reference_free import TokenPairs, learn


class Trainer(TokenPairs, CPOTrainer):
    """TRL's, on tokens."""


@tracking.tracked("cpo")
def run(experiment: Experiment) -> None:
    """Train on preference pairs and write ``cpo/model``."""
    learn(experiment, "cpo", CPOConfig, Trainer)
