"""A vLLM server over HTTP: what it is asked is asked again while what fails may pass."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from common.addresses import without_secrets
from common.service import RefusedRequest, Service, ServiceError, ServiceMistake, pause
from pipeline.errors import UserError
from pipeline.output.console import say
from reward_models.waiting import answer

T = TypeVar("T")
_AT_ONCE = 256  # requests under way; vLLM makes its batches of them
_SAID = 300  # characters of the server's own words in a message


class Gone(ConnectionError):
    """The server is there, but not the weights that it was given: it has started anew."""


class NoSuchPath(ValueError):
    """The server has no such address: it was started without what is asked of it."""


class Server:
    """Asks a vLLM server.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, url: str, *, header_env: str | None, timeout: float, retries: int) -> None:
        """Look at the address and the header; nothing is asked yet.

        Args:
            url: where ``vllm serve`` listens. header_env: environment variable with a header.
            timeout: seconds for a request. retries: further tries of one that may be answered
                later, after 1, 2, 4, … up to 60 seconds.

        Raises:
            UserError: the address or the header is none.
        """
        self.name, self._retries, self._timeout = f"server {without_secrets(url)}", retries, timeout
        try:
            self._service = Service(
                url, self.name, warn=lambda line: say(f"warning: {line}"), header_env=header_env,
                header_setting="server_header_env", silence=timeout,
            )  # fmt: skip
        except ServiceMistake as error:
            raise UserError(str(error)) from None

    def get(self, path: str) -> Any:
        """The JSON at ``path``; as :meth:`post`."""
        return self._again([None], path, _as_it_is, _nothing)[0]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What it answers to ``body``, or None to nothing.

        Raises:
            NoSuchPath: it has no such address.
            UserError: it takes no such thing, or has not answered at any try.
        """
        return self._again([body], path, _as_it_is, _nothing)[0]

    def post_all(
        self,
        path: str,
        bodies: Sequence[dict[str, Any]],
        read: Callable[[int, Any], T],
        mend: Callable[[Exception], None],
    ) -> list[T]:
        """What ``read(i, answer)`` makes of the answer to each body, all asked side by side.

        Args:
            read: may raise ConnectionError for an answer that is to be asked for again.
            mend: called with what failed before anything is asked again.

        Raises:
            NoSuchPath, UserError: as :meth:`post`.
        """
        return self._again(bodies, path, read, mend)

    def once(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """One try.

        Raises:
            ConnectionError, TimeoutError, RefusedRequest, ServiceMistake: as :class:`Service`.
        """
        found = answer(lambda: self._all([body], path), None)[0]
        if isinstance(found, BaseException):
            raise found
        return found

    def patiently(self, call: Callable[[], T]) -> T:
        """``call()``, made again while it fails by what may pass.

        Raises:
            UserError: it has failed at every try.
        """
        number = 0
        while True:
            number += 1
            try:
                return call()
            except (ConnectionError, TimeoutError) as error:
                failure = error
            self._wait(number, failure)

    def _again(
        self,
        bodies: Sequence[dict[str, Any] | None],
        path: str,
        read: Callable[[int, Any], T],
        mend: Callable[[Exception], None],
    ) -> list[T]:
        got: dict[int, T] = {}
        number = 0
        while True:
            number += 1
            failure = self._round(bodies, path, read, got)
            if failure is None:
                return [got[row] for row in range(len(bodies))]
            while failure is not None:  # until something is mended, or there are no more tries
                self._wait(number, failure)
                try:
                    mend(failure)
                    failure = None
                except (ConnectionError, TimeoutError) as error:
                    failure, number = error, number + 1

    def _round(
        self,
        bodies: Sequence[dict[str, Any] | None],
        path: str,
        read: Callable[[int, Any], T],
        got: dict[int, T],
    ) -> Exception | None:
        """Ask for all that is not in ``got``, and put it there; one of what may pass, if any."""
        left = [row for row in range(len(bodies)) if row not in got]
        asked = [bodies[row] for row in left]
        failure: Exception | None = None
        for row, found in zip(left, answer(lambda: self._all(asked, path), None), strict=True):
            try:
                if isinstance(found, BaseException):
                    raise found
                got[row] = read(row, found)
            except (ConnectionError, TimeoutError) as error:
                failure = error
            except (RefusedRequest, ServiceMistake) as error:
                if getattr(error, "status", 400) != 404 or "does not exist" not in said(error):
                    raise self._lasting(error, path) from None
                failure = Gone(said(error))
        return failure

    def _wait(self, number: int, failure: Exception) -> None:
        """Before try ``number`` + 1, if there is to be one."""
        if number > self._retries:
            raise UserError(
                f"{self.name}: no answer in {number} tries, at last {_line(failure)}; see that vLLM"
                " runs there (server_timeout, server_retries), and start the run again: it goes on"
                " from its last checkpoint"
            )
        wait = pause(number, failure)
        say(
            f"warning: {self.name}: {_line(failure)}; try {number + 1} of {self._retries + 1} in"
            f" {wait:.0f} s"
        )
        time.sleep(wait)

    async def _all(self, bodies: Sequence[dict[str, Any] | None], path: str) -> list[Any]:
        """Answers, or in their place what was raised."""
        free = asyncio.Semaphore(_AT_ONCE)

        async def ask(body: dict[str, Any] | None) -> Any:
            async with free:
                sent = None if body is None else json.dumps(body, allow_nan=False).encode()
                try:
                    async with asyncio.timeout(self._timeout):
                        content = await self._service.ask(sent, path)
                except TimeoutError as error:
                    raise TimeoutError(str(error) or f"no answer in {self._timeout:g} s") from None
            if not content:
                return None
            try:
                return json.loads(content)
            except (ValueError, RecursionError):
                said = content[:_SAID].decode("utf-8", "replace").strip()
                if said.startswith("Success"):
                    return said
                raise ServiceError(f"an answer that is no JSON ({_line(said)})") from None

        return await asyncio.gather(*map(ask, bodies), return_exceptions=True)

    def _lasting(self, error: RefusedRequest | ServiceMistake, path: str) -> Exception:
        """What a refusal is that another try would get again."""
        if isinstance(error, ServiceMistake):
            if error.status == 404 and not said(error):
                return NoSuchPath(path)
            if error.status != 404:
                return UserError(str(error))
        return UserError(f"{self.name}: {path} is refused: {said(error) or _line(error)}")


def said(error: Exception) -> str:
    """What vLLM itself says of a request that it refuses, on one line; empty where it does not."""
    try:
        words = json.loads(getattr(error, "content", b""))["error"]
        return _line(words["message"] if isinstance(words, dict) else words)
    except (ValueError, KeyError, TypeError):
        return ""


def _line(words: object) -> str:
    text = " ".join(str(words).split()) or type(words).__name__
    return text if len(text) <= _SAID else f"{text[:_SAID]}…"


def _as_it_is(row: int, found: Any) -> Any:
    return found


def _nothing(failure: Exception) -> None:
    """There is nothing to mend."""
