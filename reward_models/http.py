"""A service that scores over HTTP: a JSON object out, a list of numbers back.

    POST <url>    {"prompts": ["…", "…"], "completions": ["…", "…"]}
    200           {"scores": [0.3, -1.2]}, or "rewards" for "scores", or the bare list

One call here is one request. Batches, several at once, time-outs and further tries are
`RewardCall`'s, so a request that was answered is not made again because another one failed.
"""

from __future__ import annotations

import email.utils
import inspect
import ipaddress
import json
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2

from reward_models.calling import RewardCall, to_stderr
from reward_models.interface import ChatPrompt, RewardError, without_secrets

CONCURRENCY = 4
"""Requests under way at once, where nothing else is asked for."""

_KEYS = ("scores", "rewards")
_FORMS = 'answer {"scores": […]} with one number for each completion'
# Statuses that another request may not get: the rest of 4xx is a mistake in what is asked.
_PASSING = {408, 425, 429}
# Of those, the ones that a text may be the reason of.
_OF_TEXTS = {400, 413, 422}
_SILENCE = 300.0  # seconds without a byte, after which nobody is there
_CONNECT = 30.0
_LONGEST = 64 * 2**20  # bytes of an answer
_LONGEST_WAIT, _LONGEST_ASKED = 60.0, 600.0  # seconds between tries: ours, and a Retry-After's
_SHOWN = 160  # characters of an answer in a message
_HEADER = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)"
)
# A generator of its own: training draws from the shared one.
_JITTER = random.Random()


class ServiceError(ConnectionError):
    """The service is there, but has no answer now; the same request may have one later.

    Attributes:
        retry_after: Seconds that it asks to be left alone, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedRequest(ValueError):
    """The service does not take these texts."""


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
        self.url, self.header_env = _parsed(url), header_env
        self.__name__ = f"reward {without_secrets(url)}"
        self.columns = tuple(columns)
        # What a caller that goes by signatures is to give.
        names = ("prompts", "completions", *self.columns)
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        self._header = None if header_env is None else self._read_header(header_env)
        self._local = _is_loopback(self.url.host)
        if self._header and self.url.scheme == "http" and not self._local:
            warn(f"{self.__name__}: {header_env} is sent unencrypted; use https")
        self._clients: dict[int, httpx2.AsyncClient] = {}
        self._tls = self._trusted() if self.url.scheme == "https" else False

    async def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[Any]:
        """What the service makes of the completions, as it stands in its JSON.

        Raises:
            ConnectionError, TimeoutError: The same request may be answered later.
            RefusedRequest: The texts are not taken.
            RewardError: Anything else: who asks must change something.
        """
        body = self._body(prompts, completions, columns)
        headers = dict([self._header] if self._header else []) | {
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        try:
            async with self._client().stream(
                "POST", self.url, content=body, headers=headers
            ) as response:
                content = await self._content(response)
        except httpx2.TimeoutException as error:
            limit = _CONNECT if isinstance(error, httpx2.ConnectTimeout) else _SILENCE
            raise TimeoutError(f"nothing was heard for {limit:g} s") from error
        except httpx2.HTTPError as error:
            failure = self._unreached(error)
            # What caused it would say that it may pass.
            raise failure from (None if isinstance(failure, RewardError) else error)
        return self._scores(response, content)

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

    def _client(self) -> httpx2.AsyncClient:
        """This process's connections. They all belong to the one loop that rewards wait in."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = httpx2.AsyncClient(
                verify=self._tls,
                trust_env=not self._local,  # a proxy would look for the service on its own machine
                timeout=httpx2.Timeout(_SILENCE, connect=_CONNECT, pool=None),
                follow_redirects=False,  # the header is for this address alone
                limits=httpx2.Limits(max_connections=None),
            )
        return self._clients[process]

    async def _content(self, response: httpx2.Response) -> bytes:
        """The body, which must end before it fills the memory."""
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > _LONGEST:
                raise RewardError(
                    f"{self.__name__}: its answer is longer than {_LONGEST // 2**20} MiB; {_FORMS}"
                )
        return bytes(content)

    def _scores(self, response: httpx2.Response, content: bytes) -> list[Any]:
        if not response.is_success:
            raise self._refusal(response, content)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise ServiceError(f"an answer that is no JSON{self._quoted(content)}") from None
        found = answer
        if isinstance(answer, dict):
            keys = [key for key in _KEYS if key in answer]
            found = answer[keys[0]] if len(keys) == 1 else None
        if not isinstance(found, list):
            wrong = RewardError(
                f"{self.__name__}: cannot tell the scores in its answer{self._quoted(content)}; "
                f"{_FORMS}"
            )
            wrong.returned = answer
            raise wrong
        return found

    def _refusal(self, response: httpx2.Response, content: bytes) -> Exception:
        """The error for a status that is no success."""
        status = response.status_code
        said = f"{status} {response.reason_phrase}".strip() + self._quoted(content)
        if status in _PASSING or status >= 500:
            return ServiceError(said, _seconds(response.headers.get("Retry-After")))
        if status in _OF_TEXTS:
            return RefusedRequest(said)
        mend = "see that the address is right, and takes POST"
        if status < 400:
            place = without_secrets(response.headers.get("Location", "") or "somewhere else")
            mend = f"it points to {place}: name that address, if you trust it"
        elif status in (401, 403, 407):
            mend = f"see that {self.header_env} holds the header that it wants"
            if self.header_env is None:
                mend = "name the environment variable that holds the header it wants in header_env"
        return RewardError(f"{self.__name__}: answered {said}; {mend}")

    def _unreached(self, error: httpx2.HTTPError) -> Exception:
        """The error for a request without a whole answer."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return RewardError(
                f"{self.__name__}: its certificate is not trusted ({reason}); name the file of its "
                "authority in SSL_CERT_FILE"
            )
        if isinstance(error, httpx2.ConnectError):
            return ConnectionError(f"no connection ({reason})")
        return ConnectionError(f"the answer broke off ({reason})")

    def _quoted(self, content: bytes) -> str:
        """The beginning of an answer, in brackets, on one line, without our header's value."""
        text = " ".join(content[: 4 * _SHOWN + 4096].decode("utf-8", "replace").split())
        if self._header is not None:
            for secret in {self._header[1], self._header[1].rpartition(" ")[2]}:
                text = text.replace(secret, "…")
        text = "".join(c if c.isprintable() else "�" for c in text)
        return f" ({text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''})" if text else ""

    def _read_header(self, variable: str) -> tuple[str, str]:
        line = os.environ.get(variable)
        if line is None:
            raise RewardError(
                f"{self.__name__}: there is no environment variable {variable}, which header_env "
                f"names; set it: export {variable}='Authorization: Bearer …'"
            )
        match = _HEADER.fullmatch(line.strip())
        if match is None:
            raise RewardError(
                f"{self.__name__}: the environment variable {variable} holds no header; write its "
                "name, a colon and its value, as in 'Authorization: Bearer …'"
            )
        return match[1], match[2]

    def _trusted(self) -> ssl.SSLContext:
        try:
            return httpx2.create_ssl_context()
        except (OSError, ssl.SSLError) as error:
            raise RewardError(
                f"{self.__name__}: the certificates that SSL_CERT_FILE or SSL_CERT_DIR names "
                f"cannot be read ({error.strerror or error}); mend it"
            ) from None


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


def pause(number: int, error: Exception) -> float:
    """Seconds to wait before try ``number`` + 1: 1, 2, 4, … up to 60, each up to half as long
    again by chance, so that those who failed together do not come back together; and at least as
    long as the service asks for (Retry-After), up to ten minutes."""
    ours = min(2.0 ** min(number - 1, 10), _LONGEST_WAIT) * _JITTER.uniform(1.0, 1.5)
    return max(ours, min(getattr(error, "retry_after", None) or 0.0, _LONGEST_ASKED))


def known(spec: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` of a config for `http_reward`, where they are such.

    Raises:
        RewardError: The address is none, or holds a password; or an argument is not known, or not
            of its kind.
    """
    name = f"reward {without_secrets(spec)}"
    _parsed(spec)
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


def _parsed(url: str) -> httpx2.URL:
    name = f"reward {without_secrets(url)}"
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise RewardError(f"{name}: is no address; write http://host:port/path") from None
    if parsed.userinfo:
        raise RewardError(
            f"{name}: the address holds a user or a password, which would be kept with every "
            "result; put them into an environment variable as a header, and name it in header_env"
        )
    if parsed.query or parsed.fragment:
        raise RewardError(
            f"{name}: the address has a query, which is kept with every result and may hold a "
            "key; send a key as a header (header_env), and anything else by a function of your own"
        )
    if not parsed.host:
        raise RewardError(f"{name}: names no host; write http://host:port/path")
    return parsed


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(retry_after: str | None) -> float | None:
    """Seconds from now of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.strip().isascii() and retry_after.strip().isdecimal():
        return float(retry_after[:9])
    try:
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
