"""A service that scores over HTTP: a JSON object out, a list of numbers back.

    POST <url>    {"prompts": ["…", "…"], "completions": ["…", "…"]}
    200           {"scores": [0.3, -1.2]}, or "rewards" for "scores", or the bare list

One call here is one request. Batches, several at once, time-outs and further tries are
`RewardCall`'s, so a request that was answered is not made again because another one failed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.service import RefusedRequest, Service, ServiceError, ServiceMistake, parsed, pause
from reward_models.calling import RewardCall, to_stderr
from reward_models.interface import ChatPrompt, RewardError, without_secrets

CONCURRENCY = 4
"""Requests under way at once, where nothing else is asked for."""

_KEYS = ("scores", "rewards")
_FORMS = 'answer {"scores": […]} with one number for each completion'
_LONGEST = 64 * 2**20  # bytes of an answer

__all__ = [
    "CONCURRENCY",
    "HttpReward",
    "RefusedRequest",
    "ServiceError",
    "http_reward",
    "known",
    "pause",
]


class HttpReward:
    """A reward function that asks a service; one call is one request.

    A conversation goes out as text in ``prompts``, and as the prompt's messages in ``messages``.
    """

    def __init__(
        self,
        url: str,
        *,
        header_env: str | None = None,
        columns: Sequence[str] = (),
        warn: Callable[[str], None] = to_stderr,
    ) -> None:
        """Look at the settings; nothing is asked of the service yet.

        Args:
            url: Where to POST.
            header_env: Environment variable that holds a header, ``Authorization: Bearer …``, which
                is shown nowhere.
            columns: Further columns that are sent, by name.
            warn: Takes a line, once, where that header would go out unencrypted.

        Raises:
            RewardError: The URL is none or holds a password, or the variable holds no header.
        """
        self.__name__ = f"reward {without_secrets(url)}"
        try:
            self._service = Service(
                url, self.__name__, header_env=header_env, longest=_LONGEST,
                too_long=f"; {_FORMS}", warn=warn,
            )  # fmt: skip
        except ServiceMistake as error:
            raise RewardError(str(error)) from None
        self.columns = tuple(columns)
        # What a caller that goes by signatures is to give.
        names = ("prompts", "completions", *self.columns)
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )

    async def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[Any]:
        """What the service makes of the completions, as it stands in its JSON.

        Raises:
            ConnectionError, TimeoutError: The same request may be answered later.
            RefusedRequest: The texts are not taken.
            RewardError: Anything else: who asks must change something.
        """
        try:
            content = await self._service.ask(self._body(prompts, completions, columns))
        except ServiceMistake as error:
            raise RewardError(str(error)) from None
        return self._scores(content)

    def _body(
        self, prompts: list[str], completions: list[str], columns: Mapping[str, list[Any]]
    ) -> bytes:
        sent: dict[str, Any] = {"prompts": prompts, "completions": completions}
        if any(isinstance(prompt, ChatPrompt) for prompt in prompts):
            sent["messages"] = [getattr(prompt, "messages", []) for prompt in prompts]
        sent |= {name: columns[name] for name in self.columns}
        try:
            # Escapes, so that half a surrogate pair can be sent too.
            return json.dumps(sent, allow_nan=False).encode("ascii")
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"{self.__name__}: a column of {', '.join(self.columns)} cannot be sent as JSON "
                f"({error}); leave it out, or make it text or numbers"
            ) from None

    def _scores(self, content: bytes) -> list[Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise ServiceError(
                f"an answer that is no JSON{self._service.quoted(content)}"
            ) from None
        found = answer
        if isinstance(answer, dict):
            keys = [key for key in _KEYS if key in answer]
            found = answer[keys[0]] if len(keys) == 1 else None
        if not isinstance(found, list):
            wrong = RewardError(
                f"{self.__name__}: cannot tell the scores in its answer"
                f"{self._service.quoted(content)}; {_FORMS}"
            )
            wrong.returned = answer
            raise wrong
        return found


def http_reward(
    url: str,
    *,
    header_env: str | None = None,
    concurrency: int = CONCURRENCY,
    batch_size: int = 64,
    timeout: float | None = None,
    retries: int = 0,
    columns: Sequence[str] = (),
    warn: Callable[[str], None] = to_stderr,
) -> RewardCall:
    """A service as a reward.

    Args:
        url, header_env, columns: As for `HttpReward`.
        concurrency: Requests under way at once.
        batch_size: Completions in a request.
        timeout: Seconds for a request; None is for ever, as long as something is heard every five
            minutes.
        retries: Further tries of a request, see `pause`.
        warn: Takes a line for each that is made again.

    Raises:
        RewardError: As `HttpReward` does.
    """
    function = HttpReward(url, header_env=header_env, columns=columns, warn=warn)
    return RewardCall(
        function,
        function.__name__,
        timeout=timeout,
        retries=retries,
        batch_size=batch_size,
        concurrency=concurrency,
        pause=pause,
        warn=warn,
    )


def known(spec: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` of a config for `http_reward`, where they are such.

    Raises:
        RewardError: The address is none, or holds a password; or an argument is not known, or not
            of its kind.
    """
    name = f"reward {without_secrets(spec)}"
    try:
        parsed(spec, name)
    except ServiceMistake as error:
        raise RewardError(str(error)) from None
    kinds = {"header_env": "a name", "columns": "a list of names"}
    kinds |= {"concurrency": "a whole number above 0", "batch_size": "a whole number above 0"}
    for key, value in arguments.items():
        if key not in kinds:
            raise RewardError(f"{name}: has no argument {key!r}; there are {', '.join(kinds)}")
        if key == "columns":
            right = isinstance(value, list) and all(isinstance(item, str) for item in value)
        elif key == "header_env":
            right = isinstance(value, str) and value != ""
        else:
            right = type(value) is int and value > 0
        if not right:
            raise RewardError(f"{name}: {key} is {str(value)[:40]!r}; expected {kinds[key]}")
    return dict(arguments)
