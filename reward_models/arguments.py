"""Which of a reward function's parameters takes what: by their names, whatever their order.

TRL hands ``(completions, **kwargs)`` its columns by keyword, trlX calls ``(samples, prompts,
outputs)``, and one's own function may take either list first. By position such a function would
score prompts as if they were completions, and nobody would see it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from reward_models.interface import RewardError, answer_of, messages_of

PROMPTS, COMPLETIONS = "prompts", "completions"
IDS, ENDED = "completion_ids", "ended"
_WHOLE = "prompts + completions"  # no name of a column
OURS = (PROMPTS, COMPLETIONS, IDS, ENDED)
"""Names that a data set's column cannot have beside ours."""
# Without their plural's s. Names that as often mean something else, such as answers (references in
# many data sets) or texts, are not among them.
_NAMES = {
    PROMPTS: {"prompt", "query", "querie", "question", "instruction", "input"},
    COMPLETIONS: {"completion", "response", "output", "generation", "continuation"},
}
_LETTERS = {"p": PROMPTS, "q": PROMPTS, "x": PROMPTS}
_LETTERS |= {"c": COMPLETIONS, "r": COMPLETIONS, "y": COMPLETIONS}
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What TRL's trainers pass beside the columns, and nobody else has.
_TRAINERS = ("trainer_state", "log_extra", "log_metric", "environments")
_MEND = "it must take (prompts, completions), two lists of text"


def bound(
    function: Callable[..., Any], label: str, given: Mapping[str, list[Any]], messages: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, by position and by name, that ``function`` is to be called with: lists of its
    own.

    A parameter gets the prompts or the completions when its name says so (``prompts``, ``queries``,
    ``inputs``, …; ``completions``, ``responses``, ``outputs``, …), and the two joined when it is
    the first and called ``samples``. Any other name gets the column so called. One that must be
    given and whose name is a letter or an underscore gets what is left, prompts before completions;
    ``**kwargs`` gets all that is left by name, and ``*args`` alone prompts and completions. What
    there is nothing for keeps its default.

    Args:
        label: What messages call the function.
        given: ``prompts``, ``completions`` and the columns, as lists of one length.
        messages: Give prompts and completions as lists of messages rather than as texts.

    Raises:
        RewardError: It is no function; there is nothing for a parameter without a default; one's
            name means two things; or it would not get the completions.
    """
    signature = _signature(function, label)
    columns = [name for name in given if name not in (PROMPTS, COMPLETIONS)]
    sources = _sources(signature, label, columns)
    lists = dict(given)
    if messages:
        lists[PROMPTS] = [messages_of(prompt) for prompt in given[PROMPTS]]
        lists[COMPLETIONS] = [answer_of(completion) for completion in given[COMPLETIONS]]
    if _WHOLE in sources.values():
        pairs = zip(lists[PROMPTS], lists[COMPLETIONS], strict=True)
        lists[_WHOLE] = [prompt + completion for prompt, completion in pairs]
    left = {name: list(lists[name]) for name in given if name not in sources.values()}
    by_name = _takes_names(function, sources)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if _is_alone(parameter, signature):
            positional += [left[PROMPTS], left[COMPLETIONS]]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= left
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY or not (
            by_name or parameter.kind in (inspect.Parameter.KEYWORD_ONLY, *_REST)
        ):
            known = name in sources
            positional.append(list(lists[sources[name]]) if known else parameter.default)
        elif name in sources:
            named[name] = list(lists[sources[name]])
    return positional, named


def check_columns(function: Callable[..., Any], label: str, columns: Collection[str]) -> None:
    """See that ``function`` can be called where a data set has these columns.

    Args:
        columns: The data set's, without ``prompts``, ``completions``, ``completion_ids`` and
            ``ended``, which are not asked of it.

    Raises:
        RewardError: As `bound` does; or a column of the data set is called like one of ours and
            the function would get that name.
    """
    signature = _signature(function, label)
    sources = _sources(signature, label, {*columns, IDS, ENDED})
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for name in OURS:
        if name in columns and (open_ended or name in sources.values()):
            raise RewardError(
                f"{label}: takes {signature}, and {name!r} is both what every reward is given and "
                "a column of the data set; rename the column"
            )


def needed_columns(function: Callable[..., Any], label: str) -> frozenset[str]:
    """The columns without which ``function`` cannot be called."""
    signature = _signature(function, label)
    sources = _sources(signature, label, None)
    return frozenset(sources.values()) - {PROMPTS, COMPLETIONS, _WHOLE}


def asks_for_messages(function: Callable[..., Any]) -> bool:
    """Whether its annotations say so: ``completions: list[list[dict[str, str]]]``, as TRL's own."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    written = (str(p.annotation) for p in parameters if _meant(_bare(p.name)) is not None)
    return any(re.search(r"\b(dict|Dict|Mapping)\b", annotation) for annotation in written)


def _signature(function: Callable[..., Any], label: str) -> inspect.Signature:
    if isinstance(function, type):
        raise RewardError(f"{label}: is a class; make an object of it, whose calls score")
    if not callable(function):
        raise RewardError(
            f"{label}: is {type(function).__name__}, not a function; name a function that takes "
            "(prompts, completions)"
        )
    try:
        outer = inspect.signature(function, follow_wrapped=False)
        # A decorated function shows the parameters of what it wraps: true where it passes all on.
        passes_on = any(p.kind in _REST for p in outer.parameters.values())
        return inspect.signature(function) if passes_on else outer
    except (TypeError, ValueError):
        raise RewardError(
            f"{label}: its parameters cannot be read; wrap it in a def; {_MEND}"
        ) from None


def _takes_names(function: Callable[..., Any], sources: Mapping[str, str]) -> bool:
    """False for a decorated function that shows its parameters and takes ``*args`` only."""
    outer = inspect.signature(function, follow_wrapped=False).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in outer.values())
    return open_ended or all(name in outer for name in sources)


def _is_alone(parameter: inspect.Parameter, signature: inspect.Signature) -> bool:
    """True for ``*args`` that is all of the signature: behind others it would have no order."""
    alone = len(signature.parameters) == 1
    return alone and parameter.kind is inspect.Parameter.VAR_POSITIONAL


def _sources(
    signature: inspect.Signature, label: str, columns: Collection[str] | None
) -> dict[str, str]:
    """What each parameter with a name of its own gets: prompts, completions, both or a column.

    Args:
        columns: Those there are; None: not known yet, so there may be any.
    """
    named = [p for p in signature.parameters.values() if p.kind not in _REST]
    sources = _by_name(named, columns or (), signature, label)
    left = [role for role in (PROMPTS, COMPLETIONS) if role not in sources.values()]
    nameless = []
    for parameter in named:
        name = parameter.name
        if name in sources:
            continue
        if columns is not None and name in columns:
            sources[name] = name
        elif parameter.default is parameter.empty:
            if len(name.strip("_")) <= 1 and left:
                nameless.append(name)
                sources[name] = left.pop(0)
            elif name in _TRAINERS or (columns is not None and name not in columns):
                raise _nothing_for(name, signature, label, columns)
            else:
                sources[name] = name
    open_ended = any(
        p.kind is inspect.Parameter.VAR_KEYWORD or _is_alone(p, signature)
        for p in signature.parameters.values()
    )
    if not {COMPLETIONS, _WHOLE, IDS} & set(sources.values()) and (nameless or not open_ended):
        raise RewardError(
            f"{label}: takes {signature}, so it would not get the completions; {_MEND}"
        )
    return sources


def _nothing_for(
    name: str, signature: inspect.Signature, label: str, columns: Collection[str] | None
) -> RewardError:
    if name in _TRAINERS:
        return RewardError(
            f"{label}: takes {signature}, and {name!r} is what only TRL's trainers have; give it a "
            "default"
        )
    there = ", ".join([PROMPTS, COMPLETIONS, *sorted(str(column) for column in columns or ())])
    return RewardError(
        f"{label}: takes {signature}, and there is nothing for {name!r}; there are {there}: give "
        "it a default, or one of these names"
    )


def _by_name(
    parameters: list[inspect.Parameter],
    columns: Collection[str],
    signature: inspect.Signature,
    label: str,
) -> dict[str, str]:
    """The parameters that get prompts or completions by what they are called.

    A plain name comes before one that means it. Where a column is called like a name that only
    means it, the column is meant if the function calls the completions by their plain name, as
    TRL's do; else nobody can tell.
    """
    roles: dict[str, str] = {}
    bare = {parameter.name: _bare(parameter.name) for parameter in parameters}
    required = {p.name for p in parameters if p.default is p.empty}
    plain = COMPLETIONS in bare.values()
    for tells in (
        lambda name: _WHOLE if name == parameters[0].name == "samples" else None,
        lambda name: bare[name] if bare[name] in _NAMES else None,
        lambda name: _meant(bare[name]),
        lambda name: _LETTERS.get(bare[name]) if name in required else None,
    ):
        for name in bare:
            role = tells(name)
            if role is None or name in roles or role in roles.values():
                continue
            if name in columns and name not in _NAMES:
                if plain:
                    continue
                raise RewardError(
                    f"{label}: takes {signature}, where {name!r} may be what was sampled or the "
                    "data set's column of that name; rename the column, or take (prompts, "
                    "completions) by these names"
                )
            roles[name] = role
    return roles


def _bare(name: str) -> str:
    return name.strip("_").lower()


def _meant(name: str) -> str | None:
    return next((role for role in _NAMES if name.removesuffix("s") in _NAMES[role]), None)
