"""The PPO trainer's one callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.output.checkpoints import CompleteMarker

if TYPE_CHECKING:
    from pipeline.ppo.upkeep.base import BaseTrainer


class Hooks(CompleteMarker):
    """Calls the trainer back; marks checkpoints; moves stops and saves to a rollout's end."""

    HELD = ("should_evaluate", "should_save", "should_training_stop")

    def __init__(self, trainer: BaseTrainer) -> None:
        super().__init__()
        self._trainer = trainer
        self._held: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the journals where the run goes on."""
        super().on_train_begin(args, state, control)
        self._held.clear()
        if state.is_world_process_zero:
            self._trainer.journal.begin(state.global_step)
            self._trainer.evaluations.begin(state.global_step)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Order the prompts."""
        self._trainer.choose_epoch()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a minibatch."""
        self._trainer.begin_minibatch()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Decide what the optimizer is to apply."""
        self._trainer.gate_gradients()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beyond ``kl_stop``, or without a next rollout: save, and end the run."""
        super().on_step_end(args, state, control)
        self._trainer.performance.stop()
        due = state.global_step % args.steps_per_rollout == 0
        failed = due and self._trainer.failed_ahead()
        if self._trainer.guards.wants_to_stop or failed:
            control.should_save = control.should_training_stop = True

    def hold(self, args: Any, state: Any, control: Any) -> None:
        """Put off to the end of the rollout what would not resume from within it.

        The trainer calls it when every callback has had its say on the step.
        """
        self._held.update(flag for flag in self.HELD if getattr(control, flag))
        due = state.global_step % args.steps_per_rollout == 0
        for flag in self._held:
            setattr(control, flag, due)
        if due:
            self._held.clear()
