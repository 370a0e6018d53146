"""What every reward is: a function of prompts and completions, and one kind of error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.addresses import is_url as is_url
from common.addresses import without_secrets as without_secrets

RewardFunction = Callable[..., list[float]]
"""``reward(prompts, completions, **columns)`` gives one finite number for each completion, higher
is better.

All lists have the same length; texts are plain, without special tokens. A conversation arrives as
text, the way the policy's chat template writes it: a `ChatPrompt`. The columns are the data set's
other ones, ``completion_ids`` (the policy's token ids, EOS included) and ``ended`` (by EOS rather
than by the length limit); each caller gives those that it has.
"""


@dataclass(frozen=True)
class Scores:
    """What a reward says of N completions.

    Attributes:
        total: ``(N,)``: what is optimised.
        tokens: Dense rewards: of each completion one number a completion token, EOS included. A
            row sums to its total. None where the reward is for the whole completion.
        parts: Of a reward made of several: a source's name to its own scores, before weight and
            scaling; None where it does not apply. Empty for a single source.
    """

    total: list[float]
    tokens: list[list[float]] | None = None
    parts: dict[str, list[float | None]] = field(default_factory=dict)


RULES = "rules:"
"""How the name of a reward that is a rule begins."""


class ChatPrompt(str):
    """A conversation as text that also knows its messages, for rewards with a chat template.

    Attributes:
        messages: ``role`` and ``content`` each.
    """

    messages: list[dict[str, Any]]

    def __new__(cls, text: str, messages: Sequence[Mapping[str, Any]] = ()) -> ChatPrompt:
        """``messages`` has a default for copying and unpickling, which set it afterwards."""
        made = super().__new__(cls, text)
        made.messages = [dict(message) for message in messages]
        return made


def messages_of(prompt: str) -> list[dict[str, Any]]:
    """A prompt's messages, each a copy; of a plain text, one of the user's."""
    asked = prompt.messages if isinstance(prompt, ChatPrompt) else []
    return [dict(message) for message in asked] or [{"role": "user", "content": str(prompt)}]


def answer_of(completion: str) -> list[dict[str, Any]]:
    """A completion as the assistant's message."""
    return [{"role": "assistant", "content": completion}]


class RewardError(ValueError):
    """A reward that cannot be loaded or that misbehaves; one line that names it and the mend.

    This package stands alone, so it has an error of its own; the pipeline turns it into its
    ``UserError``.

    Attributes:
        returned: What the reward returned, where that was the mistake.
        exhausted: Whether it was asked again already, as often as it was to be.
    """

    returned: Any = None
    exhausted: bool = False
