"""Which of a reward function's parameters takes what: by their names, whatever their order.

TRL hands ``(completions, **kwargs)`` its columns by keyword, trlX calls ``(samples, prompts,
outputs)``, and one's own function may take either list first. By position such a function would
score prompts as if they were completions, and nobody would see it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from reward_models.interface import RewardError

PROMPTS, COMPLETIONS, WHOLE = "prompts", "completions", "samples"
# Without their plural's s. Names that as often mean something else, such as answers (references in
# many data sets) or texts, are not among them.
_NAMES = {
    PROMPTS: {"prompt", "query", "querie", "question", "instruction", "input"},
    COMPLETIONS: {"completion", "response", "output", "generation", "continuation"},
}
_LETTERS = {"p": PROMPTS, "q": PROMPTS, "x": PROMPTS}
_LETTERS |= {"c": COMPLETIONS, "r": COMPLETIONS, "y": COMPLETIONS}
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_MEND = "it must take (prompts, completions), two lists of text"


def bound(
    function: Callable[..., Any], label: str, prompts: list[str], completions: list[str]
) -> inspect.BoundArguments:
    """The arguments that ``function`` is to be called with, lists of its own.

    A parameter gets the prompts or the completions when its name says so (``prompts``, ``queries``,
    ``inputs``, …; ``completions``, ``responses``, ``outputs``, …), and the two joined when it is
    the first and called ``samples``. One that must be given and whose name is a letter or an
    underscore gets what is left, prompts before completions; ``**kwargs`` gets it by name, and
    ``*args`` alone both in this order. Anything else keeps its default.

    Args:
        label: What messages call the function.

    Raises:
        RewardError: It is no function; there is nothing for a parameter without a default; or it
            would not get the completions.
    """
    if not callable(function):
        raise RewardError(
            f"{label}: is {type(function).__name__}, not a function; name a function that takes "
            "(prompts, completions)"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise RewardError(
            f"{label}: its parameters cannot be read; wrap it in a def; {_MEND}"
        ) from None
    given = {PROMPTS: prompts, COMPLETIONS: completions}
    roles = _roles(signature, label)
    left = {role: list(given[role]) for role in given if role not in roles.values()}
    values: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            values[name] = left
        elif _is_alone(parameter, signature):
            values[name] = tuple(left.values())
        elif roles.get(name) == WHOLE:
            values[name] = [p + c for p, c in zip(prompts, completions, strict=True)]
        elif name in roles:
            values[name] = list(given[roles[name]])
    return inspect.BoundArguments(signature, values)  # type: ignore[arg-type]


def _is_alone(parameter: inspect.Parameter, signature: inspect.Signature) -> bool:
    """True for ``*args`` that is all of the signature: behind others it would have no order."""
    alone = len(signature.parameters) == 1
    return alone and parameter.kind is inspect.Parameter.VAR_POSITIONAL


def _roles(signature: inspect.Signature, label: str) -> dict[str, str]:
    """What each parameter with a name of its own gets."""
    named = [p for p in signature.parameters.values() if p.kind not in _REST]
    roles = _by_name(named)
    nameless = []
    left = [role for role in (PROMPTS, COMPLETIONS) if role not in roles.values()]
    for parameter in named:
        if parameter.default is not parameter.empty or parameter.name in roles:
            continue
        if len(parameter.name.strip("_")) > 1 or not left:
            raise RewardError(
                f"{label}: takes {signature}, and a reward is given prompts and completions, so "
                f"there is nothing for {parameter.name!r}; give it a default, or call it so if it "
                "is one of them"
            )
        nameless.append(parameter.name)
        roles[parameter.name] = left.pop(0)
    open_ended = any(
        p.kind is inspect.Parameter.VAR_KEYWORD or _is_alone(p, signature)
        for p in signature.parameters.values()
    )
    if not {COMPLETIONS, WHOLE} & set(roles.values()) and (nameless or not open_ended):
        raise RewardError(
            f"{label}: takes {signature}, so it would not get the completions; {_MEND}"
        )
    return roles


def _by_name(parameters: list[inspect.Parameter]) -> dict[str, str]:
    """What the parameters get whose names tell; a plain name comes before one that means it."""
    roles: dict[str, str] = {}
    if parameters and parameters[0].name == WHOLE:
        roles[WHOLE] = WHOLE
    bare = {parameter.name: parameter.name.strip("_").lower() for parameter in parameters}
    required = {p.name for p in parameters if p.default is p.empty}
    for tells in (
        lambda name: bare[name] if bare[name] in _NAMES else None,
        lambda name: _meant(bare[name]),
        lambda name: _LETTERS.get(bare[name]) if name in required else None,
    ):
        for name in bare:
            role = tells(name)
            if role is not None and name not in roles and role not in roles.values():
                roles[name] = role
    return roles


def _meant(name: str) -> str | None:
    return next((role for role in _NAMES if name.removesuffix("s") in _NAMES[role]), None)
