"""Asking for rewards: bad luck is tried again, a hang ends, and a failure loses nothing."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.output.console import say
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.upkeep.failures import FailedReward, save_rollout
from reward_models import RewardError, RewardFunction, checked, may_pass


def reward_caller(function: RewardFunction, args: PPOConfig) -> RewardFunction:
    """``function`` as the trainer calls it: checked, with ``reward_timeout`` and retries.

    What is tried again is a call that did not answer in time or that raised what
    :func:`reward_models.may_pass` says may pass: a service that is away, say. A mistake in the
    function, or a result of the wrong shape, would be the same the next time. The completions are
    the same in every try, so that a retried run ends where an undisturbed one does.

    Raises:
        RewardError: from the call, after the last try, in one line.
    """
    if not callable(function):
        return checked(function)  # which says what is wrong with it
    name = getattr(function, "__name__", type(function).__name__)

    @functools.wraps(function, updated=())
    def call(*lists: Any, **named: Any) -> Any:
        tries = args.reward_retries + 1
        failure: Exception | None = None
        for number in range(1, tries + 1):
            try:
                return _in_time(functools.partial(function, *lists, **named), args.reward_timeout)
            except UserError as error:  # one line already, from a reward of the pipeline's
                if not may_pass(error.__cause__):
                    raise RewardError(str(error)) from error
                failure = error
            except Exception as error:
                if not may_pass(error):
                    raise
                failure = error
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split()) or 'no message'}"
            if number < tries:
                wait = 2.0 ** (number - 1)
                say(f"warning: reward {name}: {reason}; try {number + 1} of {tries} in {wait:g} s")
                time.sleep(wait)
        times = "once" if tries == 1 else f"{tries} times"
        raise RewardError(
            f"reward {name}: failed {times}, at last with {reason}; see that what it calls answers"
            " (reward_timeout, reward_retries)"
        ) from failure

    call.__name__ = name
    return checked(call)


def _in_time(call: Callable[[], Any], timeout: float | None) -> Any:
    """The result of ``call``; TimeoutError when there is none after ``timeout`` seconds.

    Python cannot end a thread: one that hangs is left behind, and does not keep the process from
    ending. Without a timeout there is no thread.
    """
    if timeout is None:
        return call()
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # raised again where it was asked for
            outcome.append((None, error))

    worker = threading.Thread(target=run, name="reward", daemon=True)
    worker.start()
    worker.join(timeout)
    if not outcome:
        raise TimeoutError(f"no answer in {timeout:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def ask(
    reward: RewardFunction, completions: Sequence[Completion], args: PPOConfig, step: int
) -> list[float]:
    """The score of each completion, from a :func:`reward_caller`.

    Raises:
        FailedReward: there are none; the batch with what the function returned is saved.
    """
    try:
        return reward([c.prompt for c in completions], [c.text for c in completions])
    except RewardError as error:
        columns = {"returned": _returned(error), "raised": repr(error.__cause__)}
        kept = save_rollout(args, step, str(error), completions, columns)
        raise FailedReward(f"{error}; step {step}, {kept}") from error


def _returned(error: BaseException | None) -> Any:
    """What the function returned, from wherever in the chain of errors it is kept."""
    while error is not None:
        found = getattr(error, "returned", None)
        if found is not None:
            return found
        error = error.__cause__
    return None
