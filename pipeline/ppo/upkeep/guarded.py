"""A Trainer that stays up: what does not fit is halved, and no NaN reaches a weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from pipeline.output.checkpoints import CompleteMarker
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.upkeep.guards import Guards
from pipeline.ppo.upkeep.memory import Memory
from pipeline.ppo.upkeep.metrics import UpdateMetrics


class GuardedTrainer(Trainer):
    """What the PPO trainer stands on: guards between the Trainer's own steps.

    A subclass's ``_prepare_inputs`` gives ``{"microbatch": Microbatch}``, and lets one pass.
    """

    args: PPOConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory = Memory(self.args.world_size)
        self.guards = Guards(self.args)
        self._update_metrics = UpdateMetrics()
        for callback in (CompleteMarker(), self.guards, _Beginning(self)):
            self.add_callback(callback)

    def begin_minibatch(self) -> None:
        """Note what is gone back to when a microbatch of this minibatch does not fit."""
        self.memory.begin_minibatch()
        self._metrics_before = self._update_metrics.copy()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """The Trainer's, of the microbatch or of as many parts as memory asks for."""
        step = super().training_step
        microbatch: Any = self._prepare_inputs(inputs)["microbatch"]
        return self.memory.learn(
            microbatch,
            lambda part: step(model, {"microbatch": part}, num_items_in_batch),
            self._restart_minibatch,
        )

    def _restart_minibatch(self) -> None:
        self._update_metrics = self._metrics_before.copy()
        model: Any = self.model
        model.zero_grad(set_to_none=True)

    def check_gradient(self, norm: Any) -> None:
        """UserError unless ``norm`` (None where it is not known) is finite."""
        self.guards.look_at_gradient(norm, self.state.global_step)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self.check_gradient(norm)
        return norm


class _Beginning(TrainerCallback):
    """Tells the trainer when a minibatch begins, for which the Trainer has a callback only."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.begin_minibatch()
