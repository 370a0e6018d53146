"""Rewards that are rules: no model, and exactly what they say. In a config they are ``rules:name``.

A rule is made by a function of `KNOWN` from its arguments, which are checked against that
function's signature. It reads the completions, without their prompts, unless it says otherwise.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from reward_models.interface import RULES, RewardError, RewardFunction

"""What the name of a rule begins with where a reward may be something else."""
# Scripts without blanks between words, in which a word has no boundary to look for.
_NO_BLANKS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_STARTS, _ENDS = re.compile(rf"[^\W{_NO_BLANKS}]"), re.compile(rf".*[^\W{_NO_BLANKS}]", re.DOTALL)


def length(
    shortest: int = 0,
    longest: int | None = None,
    unit: Literal["words", "characters", "tokens"] = "words",
    slope: float = 1.0,
) -> RewardFunction:
    """Zero for completions of ``shortest`` to ``longest`` units, ``−slope`` a unit outside.

    Args:
        longest: None is without end.
        unit: ``words`` are what blanks divide; ``tokens`` are the policy's, the EOS included.
    """
    if not 0 <= shortest <= (shortest if longest is None else longest):
        raise ValueError(f"0 <= shortest <= longest is needed, found {shortest} and {longest}")
    if shortest == 0 and longest is None:
        raise ValueError("every length is allowed; give shortest or longest")

    def score(units: int) -> float:
        beyond = 0 if longest is None else units - longest
        return -slope * max(shortest - units, beyond, 0)

    def by_tokens(completions: list[str], completion_ids: list[Sequence[int]]) -> list[float]:
        return [score(len(ids)) for ids in completion_ids]

    if unit == "tokens":
        return by_tokens
    return _each(lambda text: score(len(text.split()) if unit == "words" else len(text)))


def repetition(n: int = 3) -> RewardFunction:
    """Minus the share of a completion's word ``n``-grams that it has had before, −1 to 0."""
    if n < 1:
        raise ValueError(f"n must be at least 1, found {n}")

    def score(text: str) -> float:
        words = text.casefold().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return -(1 - len(set(grams)) / len(grams)) if grams else 0.0

    return _each(score)


def ended() -> RewardFunction:
    """1 for completions that ended by EOS, 0 for those that the length limit cut."""

    def score(completions: list[str], ended: list[bool]) -> list[float]:
        return [float(by_eos) for by_eos in ended]

    return score


def banned(words: list[str] | None = None, patterns: list[str] | None = None) -> RewardFunction:
    """Minus how often a completion has one of ``words`` or matches one of ``patterns``.

    Args:
        words: Words or phrases as a whole, in any case: ``art`` is not in ``start``.
        patterns: Regular expressions of Python's `re`, where case counts.
    """
    expressions = _expressions(words, patterns)
    return _each(lambda text: -float(sum(len(e.findall(text)) for e in expressions)))


def contains(words: list[str] | None = None, patterns: list[str] | None = None) -> RewardFunction:
    """The share of ``words`` and ``patterns`` (as in `banned`) that a completion has, 0 to 1."""
    expressions = _expressions(words, patterns)
    return _each(lambda text: sum(bool(e.search(text)) for e in expressions) / len(expressions))


def vader(read: Literal["text", "completion"] = "text") -> RewardFunction:
    """VADER's compound score of English sentiment by lexicon, −1 to 1 (Hutto & Gilbert 2014).

    Args:
        read: The completion alone, or the whole ``text`` that begins with the prompt, as the
            classifiers do.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ValueError(
            "needs the package vaderSentiment, which is not installed: pip install vaderSentiment"
        ) from None
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        texts = completions
        if read == "text":
            texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]

    return score


KNOWN: dict[str, Callable[..., RewardFunction]] = {
    made.__name__: made for made in (length, repetition, ended, banned, contains, vader)
}


def rule(spec: str, arguments: Mapping[str, Any]) -> RewardFunction:
    """The rule that ``spec``, ``rules:name``, names.

    Raises:
        RewardError: There is no such rule, or it does not take these arguments.
    """
    label, name = f"reward {spec}", spec.removeprefix(RULES)
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean {RULES}{near[0]}?" if near else f"there are {', '.join(KNOWN)}"
        raise RewardError(
            f"{label}: there is no such rule; {hint} (a function in your own rules.py is "
            "rules.py:function)"
        )
    _check(label, KNOWN[name], arguments)
    try:
        made = KNOWN[name](**arguments)
    except ValueError as error:
        raise RewardError(f"{label}: {error}") from None
    made.__name__ = name
    return made


def _check(label: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """RewardError unless ``make`` takes the arguments, each of its type."""
    hints = typing.get_type_hints(make)
    parameters = inspect.signature(make).parameters
    takes = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
    for name, value in arguments.items():
        if name not in parameters:
            raise RewardError(f"{label}: has no argument {name!r}; {takes}")
        adapter = TypeAdapter(hints[name], config=ConfigDict(strict=True, allow_inf_nan=False))
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]
            raise RewardError(
                f"{label}: argument {name} is {value!r:.60}; {_asked(problem['msg'])}"
            ) from None


def _asked(message: str) -> str:
    """pydantic's message in the words of our own: what was expected."""
    words = {"Input should be": "expected", "a valid integer": "a whole number"}
    words |= {"a valid string": "text", "a valid ": "a "}
    for theirs, ours in words.items():
        message = message.replace(theirs, ours)
    return message


def _expressions(words: list[str] | None, patterns: list[str] | None) -> list[re.Pattern[str]]:
    made = []
    for word in words or []:
        if not word.strip():
            raise ValueError("words holds an empty one; remove it")
        before = r"(?<!\w)" if _STARTS.match(word) else ""
        after = r"(?!\w)" if _ENDS.fullmatch(word) else ""
        made.append(re.compile(before + re.escape(word) + after, re.IGNORECASE))
    for pattern in patterns or []:
        try:
            made.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{pattern!r:.60} is no regular expression ({error})") from None
        found = made[-1].search("\0")
        if found is not None and not found.group():
            raise ValueError(f"{pattern!r:.60} matches every text, if with nothing; mend it")
    if not made:
        raise ValueError("needs words or patterns; give it one")
    return made


def _each(score: Callable[[str], float]) -> RewardFunction:
    """A reward that looks at one completion at a time, and not at its prompt."""

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(score(completion)) for completion in completions]

    return reward
