"""What ends a PPO run before it is ruined: numbers that are no numbers, and KL running away."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.output.checkpoints import MARKER, checkpoints
from pipeline.output.console import say
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.rollout import Rollout
from pipeline.ppo.upkeep.failures import save_rollout

_CALM = 0.9  # below this share of the limit KL may cross it anew


class Guards(TrainerCallback):
    """Looks at every rollout and at every gradient before it is applied."""

    def __init__(self, args: PPOConfig) -> None:
        self.args = args
        self._completions: list[Completion] = []
        self._columns: dict[str, Tensor] = {}
        self._above = False
        self._stop: str | None = None

    def look_at_rollout(self, rollout: Rollout, metrics: dict[str, float], step: int) -> None:
        """Before anything is learned from it.

        Raises:
            UserError: a log-probability, value, KL or advantage is not finite.
        """
        old = rollout.old
        self._completions = rollout.completions
        self._columns = {
            "scores": rollout.scores,
            "log-probability": old.logps.sum(1),
            "reference log-probability": old.ref_logps.sum(1),
            "KL": old.exact_kl.sum(1),
            "largest value": old.values.abs().amax(1),
            "largest advantage": rollout.advantages.abs().amax(1),
        }
        for name, column in self._columns.items():
            if not bool(torch.isfinite(column).all()):
                raise UserError(self._no_number(f"the {name} of a completion", step))
        self._look_at_kl(metrics, step)

    def look_at_gradient(self, norm: Any, step: int) -> None:
        """Between the backward pass and the optimizer's step, so that no weight takes up a NaN.

        Args:
            norm: of the policy's gradient or the value head's; None where it is not known.

        Raises:
            UserError: it is not finite.
        """
        if norm is not None and not math.isfinite(float(norm)):
            raise UserError(self._no_number(f"the gradient norm ({float(norm):g})", step))

    def _no_number(self, what: str, step: int) -> str:
        """The error's line; saves the rollout."""
        args = self.args
        kept = save_rollout(args, step, what, self._completions, self._columns)
        score, advantage = (
            float(self._columns[name].abs().max()) for name in ("scores", "largest advantage")
        )
        marked = [c.name for c in checkpoints(Path(str(args.output_dir))) if (c / MARKER).is_file()]
        last = f"{marked[-1]} is the last good checkpoint" if marked else "there is no checkpoint"
        return (
            f"PPO step {step}: {what} is not finite, and was not applied. Usual causes, likeliest"
            f" first: a learning_rate too high ({args.learning_rate:g}); rewards without bound"
            f" (largest score {score:.3g}, advantage {advantage:.3g}; set reward_clip or"
            f" normalize_rewards); weights that are broken already. {kept}; {last}"
        )

    # -- KL ------------------------------------------------------------------------------------

    def _look_at_kl(self, metrics: dict[str, float], step: int) -> None:
        args, kl = self.args, metrics["objective/kl_exact"]
        warn, stop = args.kl_warning, args.kl_stop
        if stop is not None and kl > stop:
            self._stop = (
                f"PPO step {step}: KL is {kl:.4g} nats per completion, above kl_stop={stop:g}; "
                f"{self._kl_causes(metrics)}"
            )
        elif warn is not None and kl > warn and not self._above:
            say(
                f"warning: PPO step {step}: KL is {kl:.4g} nats per completion, above"
                f" kl_warning={warn:g}; {self._kl_causes(metrics)}"
            )
        if warn is not None:
            self._above = kl > (_CALM * warn if self._above else warn)

    def _kl_causes(self, metrics: dict[str, float]) -> str:
        """The known causes in order, with this run's numbers."""
        args, beta = self.args, metrics["objective/kl_coef"]
        spread, explained = metrics["objective/scores_std"], metrics["val/explained_variance"]
        step = (
            f"too much learning per rollout (lower learning_rate={args.learning_rate:g} or"
            f" num_ppo_epochs={args.num_ppo_epochs}, or set target_kl)"
        )
        price = f"β={beta:g} too small for scores that spread by {spread:.3g} (raise kl_coef)"
        causes = [step, price]
        # The optimum for normally distributed rewards has KL = variance / 2β²: when that is far
        # away too, nothing but β holds the policy back.
        optimum = spread**2 / (2 * beta**2) if beta > 0 else math.inf
        if optimum > metrics["objective/kl_exact"]:
            causes.reverse()
        causes.append("a reward that is exploited (read the samples; ask another judge)")
        causes.append(
            f"values that do not learn (explained variance {explained:.2f}; raise"
            " value_learning_rate or value_warmup_rollouts)"
        )
        return "known causes, likeliest first: " + "; ".join(
            f"{number}. {cause}" for number, cause in enumerate(causes, 1)
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Beyond ``kl_stop``: save and end with the rollout, where a run can resume exactly."""
        if self._stop and state.global_step % self.args.steps_per_rollout == 0:
            control.should_save = control.should_training_stop = True

    def end(self, state: TrainerState) -> None:
        """Tell why, after all else that is to happen when training ends.

        Raises:
            UserError: KL exceeded ``kl_stop``; a run that ended there is not a finished one.
        """
        if self._stop:
            message, self._stop = self._stop, None
            raise UserError(f"{message}. checkpoint-{state.global_step} is saved")
