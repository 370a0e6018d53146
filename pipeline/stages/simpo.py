"""SimPO (Meng et al. 2024, arXiv 2405.14734): the mean log-probability of a token as the reward.

The loss is −log σ(β(log π(y_w)/|y_w| − log π(y_l)/|y_l|) − γ), without a reference; it is CPO's
trainer in TRL.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trl.experimental.cpo import CPOConfig

from pipeline.config import Experiment
from pipeline.stages import tracking
from pipeline.stages.cpo import Trainer
from pipeline.stages.reference_free import learn


@dataclass
class SimPOConfig(CPOConfig):
    """CPO's settings with SimPO's loss, and the paper's β and γ/β = ½ (its section 4.1)."""

    loss_type: str = field(default="simpo", metadata={"help": "simpo"})
    cpo_alpha: float = field(default=0.0, metadata={"help": "Weight of SFT on the chosen."})
    beta: float = field(default=2.0, metadata={"help": "Slope of the loss; 2 to 10 in the paper."})
    simpo_gamma: float = field(default=1.0, metadata={"help": "γ: the margin of the rewards."})


@tracking.tracked("simpo")
def run(experiment: Experiment) -> None:
    """Train on preference pairs and write ``simpo/model``."""
    learn(experiment, "simpo", SimPOConfig, Trainer)
