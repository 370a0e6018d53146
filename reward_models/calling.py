"""Calling a reward: one check for every caller, so that a mistake is one line, not a ruined run.

A NaN among the rewards would silently turn every weight of the policy into NaN, and a list of the
wrong length would give completions each other's scores. A service that is away for a moment is
asked again, and one that hangs does not hang the run.
"""

from __future__ import annotations

import json
import math
import numbers
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models import waiting
from reward_models.arguments import bound
from reward_models.interface import RewardError
from reward_models.waiting import answer

_SHOWN = 40  # characters of a completion in a message
_UNANSWERED = "; see that what it calls answers"

# What Python raises for a mistake in the code or for a text that the code cannot take: the same
# call will raise it again. Errors of input and output, and those of libraries, may pass.
_LASTING = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_LASTING_OF_FILES = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def to_stderr(line: str) -> None:
    """Print a warning."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RewardCall:
    """A reward function and how it is called; itself a `RewardFunction` that keeps the interface.

    A returned tuple, generator, NumPy array or tensor (any device, ``(N,)`` or ``(N, 1)``) is
    accepted and becomes a list of floats. Parameters get what their names say (`bound`), and what
    an ``async def`` returns is awaited.

    A call that gave no answer in time, or that raised what :func:`may_pass` says may pass, is made
    again with the same texts after 1, 2, 4, … seconds, so a run that waited ends where an
    undisturbed one does. A mistake in the function or a wrong result would be the same again.

    ``dataclasses.replace`` gives the same reward with other settings.

    Args:
        function: Takes prompts and completions, gives one number for each completion.
        label: What messages call it.
        timeout: Seconds that one call may take; None is for ever. With one the function is called
            in a thread, which is left behind when it hangs.
        retries: Further calls after one that failed.
        batch_size: Completions in one call, so that little is asked again; None is all.
        warn: Takes a line for each call that is made again.
        raises: The kind of `RewardError` that a call raises.
        one_line: Errors whose message is one line already, which is passed on as it is.

    Raises:
        RewardError: Now, when ``function`` cannot take the two arguments. Later, when the calls
            fail, or return anything but one finite number for each completion; the message names
            the function and the index of the offending completion.
    """

    function: Callable[..., Any]
    label: str
    timeout: float | None = None
    retries: int = 0
    batch_size: int | None = None
    warn: Callable[[str], None] = to_stderr
    raises: type[RewardError] = RewardError
    one_line: tuple[type[Exception], ...] = (RewardError,)

    def __post_init__(self) -> None:
        bound(self.function, self.label, [], [])  # whether it can be called at all

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One finite score for each completion."""
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
        size = self.batch_size or len(completions) or 1
        scores: list[float] = []
        for first in range(0, len(completions), size):
            part = slice(first, first + size)
            scores += self._batch(prompts[part], completions[part], first)
        return scores

    def _batch(self, prompts: list[str], completions: list[str], first: int) -> list[float]:
        """One finite score for each of the completions, which begin at index ``first`` of all."""
        result = self._answer(prompts, completions, first)
        try:
            return _scores(self.label, result, completions, first)
        except RewardError as error:
            wrong = self.raises(str(error))
            wrong.returned = result
            raise wrong from None

    def _answer(self, prompts: list[str], completions: list[str], first: int) -> Any:
        """What the function returned, at the last try if not before."""
        tries, number = self.retries + 1, 0
        while True:
            number += 1
            try:
                return self._once(prompts, completions)
            except Exception as error:  # whatever the function raises is its author's to mend
                failure = error
            if not may_pass(failure, self.one_line):
                if isinstance(failure, self.raises):
                    raise failure
                raise self.raises(self._mistake(failure, prompts, completions, first)) from failure
            if number == tries:
                break
            wait = 2.0 ** (number - 1)
            reason = self._reason(failure)
            self.warn(f"{self.label}: {reason}; try {number + 1} of {tries} in {wait:g} s")
            time.sleep(wait)
        failed = "raised" if tries == 1 else f"failed {tries} times, at last with"
        message = f"{self.label}: {failed} {self._reason(failure)}{_UNANSWERED}"
        if tries == 1 and isinstance(failure, self.one_line):
            message = str(failure)
        raise self.raises(message) from failure

    def _once(self, prompts: list[str], completions: list[str]) -> Any:
        """One call, with copies of the lists."""
        given = bound(self.function, self.label, prompts, completions)
        return answer(lambda: self.function(*given.args, **given.kwargs), self.timeout)

    def _reason(self, error: Exception) -> str:
        """What went wrong, in one line that ends without advice."""
        if isinstance(error, self.one_line):
            return str(error).removesuffix(_UNANSWERED)
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {first}{_place(error)}"

    def _mistake(
        self, error: Exception, prompts: list[str], completions: list[str], first: int
    ) -> str:
        """The message about a call that raised what will not pass: where, and at which text."""
        if isinstance(error, self.one_line):
            return str(error)
        index = self._culprit(prompts, completions)
        if index is None:
            where = f"on {len(completions)} completions together, though not on fewer"
        else:
            where = f"on {_shown(index, completions, first)}"
        return (
            f"{self.label}: raised {self._reason(error)} {where}; mend the function so that it "
            "scores every text"
        )

    def _culprit(self, prompts: list[str], completions: list[str]) -> int | None:
        """The index of one completion that alone makes the call raise, by halving; None if none."""

        def fails(start: int, stop: int) -> bool:
            try:
                self._once(prompts[start:stop], completions[start:stop])
            except Exception:
                return True
            return False

        start, stop = 0, len(completions)
        while stop - start > 1:
            middle = (start + stop) // 2
            if fails(start, middle):
                stop = middle
            elif fails(middle, stop):
                start = middle
            else:
                return None
        return start


def checked(function: Callable[..., Any], name: str | None = None) -> RewardCall:
    """Return ``function`` as a `RewardCall`; one that is a `RewardCall` already as it is.

    Args:
        name: What messages call it; the function's own name when None.

    Raises:
        RewardError: ``function`` cannot take the two arguments.
    """
    if isinstance(function, RewardCall):
        return function
    return RewardCall(
        function, f"reward {name or getattr(function, '__name__', type(function).__name__)}"
    )


def may_pass(
    error: BaseException | None, one_line: tuple[type[Exception], ...] = (RewardError,)
) -> bool:
    """True when the same call may succeed a moment later: no connection, no answer in time, an
    answer that is not JSON, an error of a client library's own.

    Args:
        one_line: Errors that tell of another, their cause, which decides.
    """
    while isinstance(error, one_line):
        error = error.__cause__
    if isinstance(error, json.JSONDecodeError):
        return True
    if isinstance(error, OSError):  # some libraries' are a ValueError as well
        return not isinstance(error, _LASTING_OF_FILES)
    return isinstance(error, Exception) and not isinstance(error, _LASTING)


def _place(error: BaseException) -> str:
    """The reward's file and line that raised ``error``, in brackets; empty where there is none."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename == waiting.__file__:  # our own time-out
        return ""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"


def _scores(label: str, result: Any, completions: list[str], first: int) -> list[float]:
    """The result as a list of finite floats, one for each completion."""
    values = _as_list(result)
    if values is None:
        raise RewardError(
            f"{label}: returned {type(result).__name__}; return a list with one number for each "
            "completion"
        )
    if len(values) != len(completions):
        raise RewardError(
            f"{label}: returned {len(values)} scores for {len(completions)} completions; return "
            f"one number for each completion (the first without its own is completion "
            f"{first + min(len(values), len(completions))})"
        )
    scores = []
    for index, value in enumerate(values):
        number = _as_number(value)
        if number is None or not math.isfinite(number):
            shown = repr(value) if number is None else str(number)
            raise RewardError(
                f"{label}: scored {_shown(index, completions, first)} as {shown[:60]}; return a "
                "finite number"
            )
        scores.append(number)
    return scores


def _as_list(result: Any) -> list[Any] | None:
    """The elements of a list, tuple, generator, array or tensor; None for anything else."""
    if hasattr(result, "detach"):  # a tensor: perhaps on a GPU, perhaps with a gradient
        result = result.detach().cpu().tolist()
    elif hasattr(result, "tolist"):  # an array
        result = result.tolist()
    if isinstance(result, str | bytes | dict | set) or not isinstance(result, Iterable):
        return None
    return list(result)


def _as_number(value: Any) -> float | None:
    """A number, a one-element array or a row of one column, as a float; None for anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(index: int, completions: list[str], first: int) -> str:
    """A completion in a message: its index among all and its first characters, on one line."""
    text = completions[index]
    return f"completion {first + index} ({text[:_SHOWN] + ('…' if len(text) > _SHOWN else '')!r})"
