"""PPO with a KL penalty for language models, on ``transformers.Trainer``.

Read `trainer` (a rollout in ``_collect``, the loss in ``compute_loss``), then `rollout`,
`actor_critic`, `prefix` and `control`; `config` explains every setting. `drawing` and `engines`
make the completions, `recording` scores and pays them, and `upkeep` keeps a run up.
"""

from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
