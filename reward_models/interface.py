"""What every reward is: a function of prompts and completions, and one kind of error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

RewardFunction = Callable[[list[str], list[str]], list[float]]
"""``reward(prompts, completions)`` gives one finite number for each completion, higher is better.

Both lists have the same length; texts are plain, without special tokens. A conversation arrives as
text, the way the policy's chat template writes it: a `ChatPrompt`.
"""


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


class RewardError(ValueError):
    """A reward that cannot be loaded or that misbehaves; one line that names it and the mend.

    This package stands alone, so it has an error of its own; the pipeline turns it into its
    ``UserError``.

    Attributes:
        returned: What the reward returned, where that was the mistake.
    """

    returned: Any = None
