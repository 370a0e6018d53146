"""GRPO from the SFT checkpoint against the proxy reward, on ``trl.GRPOTrainer``.

Unless the config says otherwise, rewards are not divided by their group's deviation, and a
completion's tokens count alike whatever its length (``scale_rewards: none``, ``loss_type:
dr_grpo``; Liu et al. 2025, arXiv 2503.20783). With TRL's defaults β would be in deviations a nat.
"""

from __future__ import annotations

from trl import GRPOConfig

from pipeline.config import Experiment
from pipeline.stages import tracking
from pipeline.stages.on_policy import GRPO, learn


@tracking.tracked("grpo")
def run(experiment: Experiment) -> None:
    """Train on ``data.train_prompts`` against the config's reward and write ``grpo/model``."""
    learn(experiment, "grpo", GRPOConfig, GRPO, scale_rewards="none", loss_type="dr_grpo")
