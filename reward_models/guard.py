"""A guard around any reward function: a mistake in it is one line, not a ruined run.

A NaN among the rewards would silently turn every weight of the policy into NaN, and a list of the
wrong length would give completions each other's scores.
"""

from __future__ import annotations

import inspect
import json
import math
import numbers
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from reward_models.interface import RewardError, RewardFunction

_SHOWN = 40  # characters of a completion in a message

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


def checked(function: Callable[..., Any], name: str | None = None) -> RewardFunction:
    """Return ``function`` as a reward that keeps the interface or raises `RewardError`.

    A returned tuple, generator, NumPy array or tensor (any device, ``(N,)`` or ``(N, 1)``) is
    accepted and becomes a list of floats. A function that takes ``completions`` by keyword, as
    TRL's reward functions do (``def reward(completions, **kwargs)``), is called that way.

    Args:
        function: Takes prompts and completions, gives one number for each completion.
        name: What messages call it; the function's own name when None.

    Raises:
        RewardError: Now, when ``function`` cannot take the two arguments. Later, when a call
            raises, or returns anything but one finite number for each completion; the message
            names the function and the index of the offending completion.
    """
    label = f"reward {name or getattr(function, '__name__', type(function).__name__)}"
    call = _adapt(function, label)

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
        if not completions:
            return []
        try:
            result = call(prompts, completions)
        except RewardError:
            raise
        except Exception as error:  # whatever the function raises is its author's to mend
            raise RewardError(_raised(label, call, prompts, completions, error)) from error
        try:
            return _scores(label, result, completions)
        except RewardError as error:
            error.returned = result
            raise

    reward.__name__ = reward.__qualname__ = label.removeprefix("reward ")
    return reward


def may_pass(error: BaseException | None) -> bool:
    """True when the same call may succeed a moment later: no connection, no answer in time, an
    answer that is not JSON, an error of a client library's own."""
    while isinstance(error, RewardError):
        error = error.__cause__
    if isinstance(error, json.JSONDecodeError):
        return True
    if isinstance(error, OSError):  # some libraries' are a ValueError as well
        return not isinstance(error, _LASTING_OF_FILES)
    return isinstance(error, Exception) and not isinstance(error, _LASTING)


def _adapt(function: Callable[..., Any], label: str) -> Callable[[list[str], list[str]], Any]:
    """The function, called by keyword where it has a name for the completions, else by position."""
    if not callable(function):
        raise RewardError(
            f"{label}: is {type(function).__name__}, not a function; name a function that takes "
            "(prompts, completions)"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-ins have none
        return lambda prompts, completions: function(list(prompts), list(completions))
    if "completions" in signature.parameters and _binds(signature, prompts=[], completions=[]):
        return lambda prompts, completions: function(
            prompts=list(prompts), completions=list(completions)
        )
    if _binds(signature, [], []):
        return lambda prompts, completions: function(list(prompts), list(completions))
    raise RewardError(
        f"{label}: takes {signature}; it must take (prompts, completions), two lists of text"
    )


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _raised(
    label: str,
    call: Callable[[list[str], list[str]], Any],
    prompts: list[str],
    completions: list[str],
    error: Exception,
) -> str:
    """The message about a call that raised: where in the code, and at which completion."""
    first = (str(error).strip() or "no message").splitlines()[0]
    what = f"{type(error).__name__}: {first}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        what += f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
    if may_pass(error):  # nothing to do with a completion, so no use in calling again
        return f"{label}: raised {what}; see that what it calls answers"
    index = _culprit(call, prompts, completions)
    if index is None:
        where = f"on {len(completions)} completions together, though not on fewer"
    else:
        where = f"on {_shown(index, completions)}"
    return f"{label}: raised {what} {where}; mend the function so that it scores every text"


def _culprit(
    call: Callable[[list[str], list[str]], Any], prompts: list[str], completions: list[str]
) -> int | None:
    """The index of one completion that alone makes the call raise, by halving; None if none."""

    def fails(start: int, stop: int) -> bool:
        try:
            call(prompts[start:stop], completions[start:stop])
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


def _scores(label: str, result: Any, completions: list[str]) -> list[float]:
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
            f"{min(len(values), len(completions))})"
        )
    scores = []
    for index, value in enumerate(values):
        number = _as_number(value)
        if number is None or not math.isfinite(number):
            found = repr(value) if number is None else str(number)
            raise RewardError(
                f"{label}: scored {_shown(index, completions)} as {found[:60]}; return a finite "
                "number"
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


def _shown(index: int, completions: list[str]) -> str:
    """A completion in a message: its index and its first characters, on one line."""
    text = completions[index]
    return f"completion {index} ({text[:_SHOWN] + ('…' if len(text) > _SHOWN else '')!r})"
