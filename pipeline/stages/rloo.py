"""RLOO from the SFT checkpoint against the proxy reward, on ``trl.RLOOTrainer``."""

from __future__ import annotations

from trl import RLOOConfig

from pipeline.config import Experiment
from pipeline.stages import tracking
from pipeline.stages.on_policy import RLOO, learn


@tracking.tracked("rloo")
def run(experiment: Experiment) -> None:
    """Train on ``data.train_prompts`` against the config's reward and write ``rloo/model``."""
    learn(experiment, "rloo", RLOOConfig, RLOO)
