"""Calling a reward: one check for every caller, so that a mistake is one line, not a ruined run.

A service that is away for a moment is asked again, and one that hangs does not hang the run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.places import raised_at
from reward_models import arguments
from reward_models.arguments import COMPLETIONS, IDS, PROMPTS, bound
from reward_models.interface import RewardError, Scores
from reward_models.returned import Asked, Cell, Parts, numbers_and_tokens, read
from reward_models.waiting import answer, in_order

Given = Mapping[str, list[Any]]
"""``prompts``, ``completions`` and the columns, lists of one length."""
_OURS = Path(__file__).parent
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


def doubled(number: int, error: Exception) -> float:
    """1, 2, 4, … seconds."""
    return 2.0 ** (number - 1)


@dataclass(frozen=True)
class RewardCall:
    """A reward function and how it is called; itself a `RewardFunction` that keeps the interface.

    A returned tuple, generator, NumPy array or tensor (any device, ``(N,)`` or ``(N, 1)``) is
    accepted and becomes a list of floats. So do N lists of a number a token, `Scores`, and None for
    what the reward does not apply to. Parameters get what their names say (`bound`), and what an
    ``async def`` returns is awaited.

    A call that gave no answer in time, or that raised what :func:`may_pass` says may pass, is made
    again with the same texts after 1, 2, 4, … seconds (``pause``), so a run that waited ends where
    an undisturbed one does. A mistake in the function or a wrong result would be the same again;
    and what the function, a reward itself, has asked again already is not asked again from here.

    ``dataclasses.replace`` gives the same reward with other settings.

    Args:
        function: Takes prompts, completions and what columns it names, gives one number for each
            completion, or for each one a token. One with methods ``check_columns(columns)`` and
            ``needed_columns()`` (a reward made of rewards, say) is asked by them.
        label: What messages call it.
        timeout: Seconds that one call may take; None is for ever. With one the function is called
            in a thread, which is left behind when it hangs.
        retries: Further calls after one that failed.
        batch_size: Completions in one call, so that little is asked again; None is all.
        concurrency: Batches under way at once, of a service that every caller asks in batches.
            None is one after another, and a caller may make one batch of all.
        pause: Seconds to wait after a number of failed tries, the last of which raised this.
        messages: Whether it is given prompts and completions as lists of messages, as TRL gives
            conversations, rather than as texts; None: if its annotations say so.
        warn: Takes a line for each call that is made again.
        raises: The kind of `RewardError` that a call raises.
        one_line: Errors whose message is one line already, which is passed on as it is.

    Raises:
        RewardError: Now, when ``function`` cannot take prompts and completions. Later, when there
            is no column for one of its parameters, the calls fail, or return anything but finite
            numbers for each completion; the message names the function and the parameter or the
            index of the offending completion.
    """

    function: Callable[..., Any]
    label: str
    timeout: float | None = None
    retries: int = 0
    batch_size: int | None = None
    concurrency: int | None = None
    pause: Callable[[int, Exception], float] = doubled
    messages: bool | None = None
    warn: Callable[[str], None] = to_stderr
    raises: type[RewardError] = RewardError
    one_line: tuple[type[Exception], ...] = (RewardError,)

    def __post_init__(self) -> None:
        self.needed_columns()  # whether it can be called at all
        if self.messages is None:
            object.__setattr__(self, "messages", arguments.asks_for_messages(self.function))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """One finite score for each completion, as `scores` has them in ``total``."""
        return self.scores(prompts, completions, **columns).total

    def scores(self, prompts: list[str], completions: list[str], **columns: Any) -> Scores:
        """What the reward says of the completions: something of each.

        Args:
            prompts, completions: N each.
            columns: Lists of N: the data set's other columns, ``completion_ids`` and ``ended``.

        Raises:
            RewardError: As the class says; or the reward does not apply to a completion.
        """
        numbers, tokens, parts = self._ask(prompts, completions, columns)
        total: list[float] = []
        for index, number in enumerate(numbers):
            if number is None:
                asked = Asked(self.label, completions)
                error = RewardError(
                    f"{self.label}: scored {asked.shown(index)} as None, so no reward applies to "
                    "it; return a number, or add a reward that scores it"
                )
                raise self._wrong(error, numbers)
            total.append(number)
        return Scores(total, tokens, parts)

    def partial_scores(
        self, prompts: list[str], completions: list[str], **columns: Any
    ) -> tuple[list[float | None], list[list[float]] | None]:
        """For rewards made of several: a total for each completion, None where it does not apply;
        and of a dense reward one number for each token, an empty list where it does not apply."""
        numbers, tokens, _ = self._ask(prompts, completions, columns)
        return numbers, tokens

    def limited(self, timeout: float | None, retries: int) -> RewardCall:
        """The same reward with a time-out and retries; those of one made of several are its parts',
        which are asked one after the other."""
        limited = getattr(self.function, "limited", None)
        if limited is None:
            return replace(self, timeout=timeout, retries=retries)
        return replace(self, function=limited(timeout, retries), timeout=None, retries=0)

    def needed_columns(self) -> frozenset[str]:
        """The names without which the function cannot be called, beside prompts and completions."""
        own: frozenset[str] = arguments.needed_columns(self.function, self.label)
        asked = getattr(self.function, "needed_columns", None)
        return own | frozenset(asked()) if asked else own

    def check_columns(self, columns: Collection[str]) -> None:
        """See, before any work, that the function can be called where a data set has ``columns``.

        Raises:
            RewardError: It asks for one that is not there, or one is called like what every reward
                is given (``prompts``, ``completions``, ``completion_ids``, ``ended``).
        """
        asked = getattr(self.function, "check_columns", None)
        try:
            if asked:
                asked(columns)
            else:
                arguments.check_columns(self.function, self.label, columns)
        except RewardError as error:
            raise self.raises(str(error)) from None

    def _ask(
        self, prompts: list[str], completions: list[str], columns: Mapping[str, Any]
    ) -> tuple[list[float | None], list[list[float]] | None, Parts]:
        given = {PROMPTS: prompts, COMPLETIONS: completions, **columns}
        for name, values in given.items():
            if len(values) != len(completions):
                raise ValueError(f"{len(values)} {name} but {len(completions)} completions")
        given = {name: list(values) for name, values in given.items()}
        size = self.batch_size or len(completions) or 1
        # Requests that fail side by side say the same.
        asked = self if self.concurrency is None else replace(self, warn=_once_each(self.warn))
        starts = range(0, len(completions), size)
        calls = [partial(asked._batch, _part(given, f, f + size), f) for f in starts]
        cells: list[Cell] = []
        parts: Parts = {}
        for first, (some, of_some) in enumerate(in_order(calls, self.concurrency or 1)):
            if first and of_some.keys() != parts.keys():
                raise self.raises(f"{self.label}: has other parts in one call than in the next")
            cells += some
            parts = {name: parts.get(name, []) + scores for name, scores in of_some.items()}
        try:
            return (
                *numbers_and_tokens(Asked(self.label, completions), cells, given.get(IDS)),
                parts,
            )
        except RewardError as error:
            raise self._wrong(error, cells) from None

    def _batch(self, given: Given, first: int) -> tuple[list[Cell], Parts]:
        """What the completions got, which begin at index ``first`` of all."""
        result = self._answer(given, first)
        try:
            return read(Asked(self.label, given[COMPLETIONS], first), result)
        except RewardError as error:
            raise self._wrong(error, result) from None

    def _wrong(self, error: RewardError, result: Any) -> RewardError:
        wrong = self.raises(str(error))
        wrong.returned = result
        return wrong

    def _answer(self, given: Given, first: int) -> Any:
        """What the function returned, at the last try if not before."""
        tries, number = self.retries + 1, 0
        while True:
            number += 1
            try:
                return self._once(given)
            except Exception as error:  # whatever the function raises is its author's to mend
                failure = error
            if getattr(failure, "exhausted", False) or not may_pass(failure, self.one_line):
                if isinstance(failure, self.raises):
                    raise failure
                raise self.raises(self._mistake(failure, given, first)) from failure
            if number == tries:
                break
            wait = self.pause(number, failure)
            reason = self._reason(failure)
            self.warn(f"{self.label}: {reason}; try {number + 1} of {tries} in {wait:.0f} s")
            time.sleep(wait)
        failed = "raised" if tries == 1 else f"failed {tries} times, at last with"
        message = f"{self.label}: {failed} {self._reason(failure)}{_UNANSWERED}"
        if tries == 1 and isinstance(failure, self.one_line):
            message = str(failure)
        error = self.raises(message)
        error.exhausted = tries > 1
        raise error from failure

    def _once(self, given: Given) -> Any:
        """One call, with copies of the lists."""
        positional, named = bound(self.function, self.label, given, bool(self.messages))
        return answer(lambda: self.function(*positional, **named), self.timeout)

    def _reason(self, error: Exception) -> str:
        """What went wrong, in one line that ends without advice."""
        if isinstance(error, self.one_line):
            return str(error).removesuffix(_UNANSWERED)
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {first}{_place(error)}"

    def _mistake(self, error: Exception, given: Given, first: int) -> str:
        """The message about a call that raised what will not pass: where, and at which text."""
        if isinstance(error, self.one_line):
            return str(error)
        completions = given[COMPLETIONS]
        index = self._culprit(given)
        if index is None:
            where = f"on {len(completions)} completions together, though not on fewer"
        else:
            where = f"on {Asked(self.label, completions, first).shown(index)}"
        mend = "mend the function so that it scores every text"
        if isinstance(error, TypeError) and "string indices" in str(error) and not self.messages:
            mend += "; if it is one for messages, as TRL's are on conversations, say format: chat"
        return f"{self.label}: raised {self._reason(error)} {where}; {mend}"

    def _culprit(self, given: Given) -> int | None:
        """The index of one completion that alone makes the call raise, by halving; None if none."""

        def fails(start: int, stop: int) -> bool:
            try:
                self._once(_part(given, start, stop))
            except Exception:
                return True
            return False

        start, stop = 0, len(given[COMPLETIONS])
        while stop - start > 1:
            middle = (start + stop) // 2
            if fails(start, middle):
                stop = middle
            elif fails(middle, stop):
                start = middle
            else:
                return None
        return start


def _part(given: Given, start: int, stop: int) -> Given:
    return {name: values[start:stop] for name, values in given.items()}


def _name(function: Callable[..., Any]) -> str:
    """A function's own name, under ``functools.partial`` too."""
    while not hasattr(function, "__name__") and hasattr(function, "func"):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def checked(
    function: Callable[..., Any], name: str | None = None, *, messages: bool | None = None
) -> RewardCall:
    """Return ``function`` as a `RewardCall`; one that is a `RewardCall` already keeps its name.

    Args:
        name: What messages call it; the function's own name when None.
        messages: As for `RewardCall`.

    Raises:
        RewardError: ``function`` cannot take prompts and completions.
    """
    if isinstance(function, RewardCall):
        return function if messages is None else replace(function, messages=messages)
    return RewardCall(function, f"reward {name or _name(function)}", messages=messages)


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
    place = raised_at(error)
    if place is None or place[0].parent == _OURS:  # our own time-out, or what a service answered
        return ""
    return f" ({place[0].name}, line {place[1]})"


def _once_each(warn: Callable[[str], None]) -> Callable[[str], None]:
    """``warn`` that says no line twice."""
    told: set[str] = set()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            warn(line)

    return tell
