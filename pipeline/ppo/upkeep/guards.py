"""What ends a PPO run before it is ruined: a failed reward, a NaN, KL that runs away.

The rollout that the run stopped at is kept as JSON.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.files import write_json
from pipeline.errors import FailedReward, UserError
from pipeline.lm.generation import Completion
from pipeline.output.checkpoints import MARKER, checkpoints
from pipeline.output.console import is_main_process, say
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.rollout import Rollout
from reward_models import RewardCall, RewardError, checked, may_pass

_ONE_LINE = (RewardError, UserError)
_SHOWN = 2000  # characters of a value that is not a number
_NOTHING_LEARNED = 1e-3  # nats per completion; a copy computes the same to the bit
_CALM = 0.9  # below this share of the limit KL may cross it anew


def reward_call(function: Callable[..., Any], args: PPOConfig) -> RewardCall:
    """``function`` with the run's time-out and retries.

    Raises:
        RewardError: it cannot take prompts and completions.
    """
    call = checked(function)
    return replace(
        call.limited(args.reward_timeout, args.reward_retries),
        # A rollout is one call, but of a service that is asked in requests.
        batch_size=None if call.concurrency is None else call.batch_size,
        warn=_warn,
        raises=FailedReward,
        one_line=_ONE_LINE,
    )


def _warn(line: str) -> None:
    """Say so on any process: each asks for the rewards of its own completions."""
    if is_main_process():
        say(f"warning: {line}")
    else:
        print(f"warning: {line}", file=sys.stderr, flush=True)


class Guards:
    """Looks at every rollout and at every gradient before it is applied."""

    def __init__(self, args: PPOConfig) -> None:
        self.args = args
        self._completions: list[Completion] = []
        self._columns: dict[str, Tensor] = {}
        self._above = False
        self._first = True
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
                raise UserError(self._not_finite(f"the {name} of a completion", step))
        if self._first:
            self._look_at_scale(metrics)
            self._first = False
        if step == 0 and metrics["objective/kl_exact"] > _NOTHING_LEARNED:
            raise UserError(
                f"PPO step 0: KL is {metrics['objective/kl_exact']:.3g} nats per completion before"
                " anything is learned, so the reference is not the policy that training starts"
                " from; please report the model and the settings"
            )
        self._look_at_kl(metrics, step)

    def look_at_gradient(self, norm: Any, step: int) -> None:
        """Between the backward pass and the optimizer's step, so that no weight takes up a NaN.

        Args:
            norm: of the policy's gradient or the value head's; None where it is not known.

        Raises:
            UserError: it is not finite.
        """
        if norm is not None and not math.isfinite(float(norm)):
            raise UserError(self._not_finite(f"the gradient norm ({float(norm):g})", step))

    def _not_finite(self, what: str, step: int) -> str:
        """The error's line; saves the rollout."""
        args = self.args
        kept = _save_rollout(args, step, what, self._completions, self._columns)
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

    def _look_at_scale(self, metrics: dict[str, float]) -> None:
        """Warn where β is no brake on scores of this scale, so that KL will only grow."""
        args, beta = self.args, metrics["objective/kl_coef"]
        limit = args.kl_warning
        if args.normalize_rewards or args.kl_target is not None or beta <= 0 or limit is None:
            return
        spread = min(metrics["objective/scores_std"], args.reward_clip or math.inf)
        optimum = _kl_at_optimum(spread, beta)
        if optimum > limit:
            say(
                f"warning: the scores spread by {spread:.3g}, and at that scale β={beta:g} is no"
                f" brake: the optimum is some {optimum:.3g} nats of KL a completion away; set β"
                f" (kl_coef) to {spread / 3:.2g} or so, or normalize_rewards"
            )

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
        # When the optimum is far away too, nothing but β holds the policy back.
        if _kl_at_optimum(spread, beta) > metrics["objective/kl_exact"]:
            causes.reverse()
        causes.append("a reward that is exploited (read the samples; ask another judge)")
        causes.append(
            f"values that do not learn (explained variance {explained:.2f}; raise"
            " value_learning_rate or value_warmup_rollouts)"
        )
        return "known causes, likeliest first: " + "; ".join(
            f"{number}. {cause}" for number, cause in enumerate(causes, 1)
        )

    @property
    def wants_to_stop(self) -> bool:
        """Whether KL exceeded ``kl_stop``."""
        return self._stop is not None

    def tell_gold(self, step: int, fall: float, best: int) -> None:
        """Say that ``gold_stop`` ends the run, and which weights it leaves.

        Args:
            fall: how far gold is below its best. best: the step of that.
        """
        say(
            f"PPO step {step}: gold is {fall:.3g} below its best, of step {best}, by more than the"
            " interval of the difference; the run ends here (gold_stop), with"
            f" {'the best' if self.args.load_best_model_at_end else 'its last'} weights"
        )

    def end(self, step: int) -> None:
        """Tell why, after all else that is to happen when training ends.

        Raises:
            UserError: KL exceeded ``kl_stop``; a run that ended there is not a finished one.
        """
        if self._stop:
            message, self._stop = self._stop, None
            raise UserError(f"{message}. checkpoint-{step} is saved")


def _kl_at_optimum(spread: float, beta: float) -> float:
    """KL of the optimum at β for normally distributed rewards: variance / 2β²."""
    return spread**2 / (2 * beta**2) if beta > 0 else math.inf


def failed_reward(
    error: RewardError, completions: Sequence[Completion], args: PPOConfig, step: int
) -> FailedReward:
    """``error`` with the step, the settings that may help, and where its batch was saved."""
    columns = {"returned": _returned(error), "raised": repr(error.__cause__)}
    kept = _save_rollout(args, step, str(error), completions, columns)
    mend = " (reward_timeout, reward_retries)" if may_pass(error, _ONE_LINE) else ""
    return FailedReward(f"{error}{mend}; step {step}, {kept}")


def _returned(error: BaseException | None) -> Any:
    """What the function returned, from wherever in the chain of errors it is kept."""
    while error is not None:
        returned = getattr(error, "returned", None)
        if returned is not None:
            return returned
        error = error.__cause__
    return None


def _save_rollout(
    args: PPOConfig,
    step: int,
    reason: str,
    completions: Sequence[Completion],
    columns: dict[str, Any],
) -> str:
    """Write a failed rollout as ``output_dir/failed-rollout-<step>.json`` and say where it is.

    Args:
        step: the optimizer step that the rollout began at.
        columns: further values, a list for each completion or whatever the reward returned.

    Returns:
        A clause for the error message; when the file cannot be written, the one that says so.
    """
    rank = f"-rank{args.process_index}" if args.world_size > 1 else ""
    path = Path(str(args.output_dir)) / f"failed-rollout-{step}{rank}.json"
    content = {
        "step": step,
        "reason": reason,
        "prompts": [c.prompt for c in completions],
        "completions": [c.text for c in completions],
        **{name: _plain(value) for name, value in columns.items()},
    }
    try:
        write_json(path, content)
    except OSError as error:
        return f"the batch could not be saved ({error.strerror})"
    return f"the batch is in {path}"


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity as text, unknown objects by their repr."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return repr(value)[:_SHOWN]
