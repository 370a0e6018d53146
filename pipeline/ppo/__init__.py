"""PPO with a KL penalty for language models, on ``transformers.Trainer``."""

from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
