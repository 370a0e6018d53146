"""Asking a service over HTTP: where it is, what header it wants, and what its refusals mean.

One call is one request. Time-outs and further tries are the caller's, who waits :func:`pause`
between them.
"""

from __future__ import annotations

import email.utils
import ipaddress
import os
import random
import re
import ssl
import time
from collections.abc import Callable

import httpx2

from common.addresses import without_secrets

# Statuses that another request may not get: the rest of 4xx is a mistake in what is asked.
_PASSING = {408, 425, 429}
# Of those, the ones that what was sent may be the reason of.
_OF_CONTENT = {400, 413, 422}
SILENCE = 300.0  # seconds without a byte, after which nobody is there
_CONNECT = 30.0
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
        content: The body of its answer.
    """

    def __init__(
        self, message: str, retry_after: float | None = None, content: bytes = b""
    ) -> None:
        super().__init__(message)
        self.retry_after, self.content = retry_after, content


class RefusedRequest(ValueError):
    """The service does not take what was sent.

    Attributes:
        content: The body of its answer.
    """

    def __init__(self, message: str, content: bytes = b"") -> None:
        super().__init__(message)
        self.content = content


class ServiceMistake(ValueError):
    """The address, its header or its certificate: who asks must change something, which the line
    says.

    Attributes:
        status: Of the answer, where there was one.
        content: Its body.
    """

    def __init__(self, message: str, status: int | None = None, content: bytes = b"") -> None:
        super().__init__(message)
        self.status, self.content = status, content


class Service:
    """An address that is asked with a header from the environment.

    Attributes:
        url: The address.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        warn: Callable[[str], None],
        header_env: str | None = None,
        header_setting: str = "header_env",
        longest: int = 64 * 2**20,
        too_long: str = "",
        silence: float = SILENCE,
    ) -> None:
        """Look at the settings; nothing is asked of the service yet.

        Args:
            url: Where it is. name: What messages call it.
            warn: Takes a line, once, where a header would go out unencrypted.
            header_env: Environment variable that holds a header, ``Authorization: Bearer …``, which
                is shown nowhere. header_setting: What the setting is called that names it.
            longest: Bytes of an answer. too_long: What to say of a longer one.
            silence: Seconds without a byte, after which nobody is there.

        Raises:
            ServiceMistake: The URL is none or holds a password, or the variable holds no header.
        """
        self.name, self.url = name, parsed(url, name, header_setting)
        self._header_env, self._setting = header_env, header_setting
        self._longest, self._too_long, self._silence = longest, too_long, silence
        self._header = None if header_env is None else self._read_header(header_env)
        self._local = _is_loopback(self.url.host)
        if self._header and self.url.scheme == "http" and not self._local:
            warn(f"{name}: {header_env} is sent unencrypted; use https")
        self._clients: dict[int, httpx2.AsyncClient] = {}
        self._tls = self._trusted() if self.url.scheme == "https" else False

    async def ask(self, body: bytes | None = None, path: str = "") -> bytes:
        """What it answers to a POST of JSON, or to a GET where there is no body.

        Args:
            path: What follows the address, its slash included.

        Raises:
            ConnectionError, TimeoutError: The same request may be answered later.
            RefusedRequest: What was sent is not taken.
            ServiceMistake: Anything else.
        """
        headers = dict([self._header] if self._header else []) | {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = self.url.copy_with(path=self.url.path.rstrip("/") + path) if path else self.url
        method = "GET" if body is None else "POST"
        try:
            async with self._client().stream(
                method, url, content=body, headers=headers
            ) as response:
                content = await self._content(response)
        except httpx2.TimeoutException as error:
            limit = _CONNECT if isinstance(error, httpx2.ConnectTimeout) else self._silence
            raise TimeoutError(f"nothing was heard for {limit:g} s") from error
        except httpx2.HTTPError as error:
            failure = self._unreached(error)
            # What caused it would say that it may pass.
            raise failure from (None if isinstance(failure, ServiceMistake) else error)
        if not response.is_success:
            raise self._refusal(response, content)
        return content

    def quoted(self, content: bytes) -> str:
        """The beginning of an answer, in brackets, on one line, without our header's value."""
        text = " ".join(content[: 4 * _SHOWN + 4096].decode("utf-8", "replace").split())
        if self._header is not None:
            for secret in {self._header[1], self._header[1].rpartition(" ")[2]}:
                text = text.replace(secret, "…")
        text = "".join(c if c.isprintable() else "�" for c in text)
        return f" ({text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''})" if text else ""

    def _client(self) -> httpx2.AsyncClient:
        """This process's connections. They all belong to the one loop that answers are awaited
        in."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = httpx2.AsyncClient(
                verify=self._tls,
                trust_env=not self._local,  # a proxy would look for the service on its own machine
                timeout=httpx2.Timeout(self._silence, connect=_CONNECT, pool=None),
                follow_redirects=False,  # the header is for this address alone
                limits=httpx2.Limits(max_connections=None),
            )
        return self._clients[process]

    async def _content(self, response: httpx2.Response) -> bytes:
        """The body, which must end before it fills the memory."""
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > self._longest:
                raise ServiceMistake(
                    f"{self.name}: its answer is longer than {self._longest // 2**20} MiB"
                    f"{self._too_long}"
                )
        return bytes(content)

    def _refusal(self, response: httpx2.Response, content: bytes) -> Exception:
        """The error for a status that is no success."""
        status = response.status_code
        said = f"{status} {response.reason_phrase}".strip() + self.quoted(content)
        if status in _PASSING or status >= 500:
            return ServiceError(said, _seconds(response.headers.get("Retry-After")), content)
        if status in _OF_CONTENT:
            return RefusedRequest(said, content)
        mend = "see that the address is right, and takes POST"
        if status < 400:
            place = without_secrets(response.headers.get("Location", "") or "somewhere else")
            mend = f"it points to {place}: name that address, if you trust it"
        elif status in (401, 403, 407):
            mend = f"see that {self._header_env} holds the header that it wants"
            if self._header_env is None:
                mend = (
                    "name the environment variable that holds the header it wants in "
                    f"{self._setting}"
                )
        return ServiceMistake(f"{self.name}: answered {said}; {mend}", status, content)

    def _unreached(self, error: httpx2.HTTPError) -> Exception:
        """The error for a request without a whole answer."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return ServiceMistake(
                f"{self.name}: its certificate is not trusted ({reason}); name the file of its "
                "authority in SSL_CERT_FILE"
            )
        if isinstance(error, httpx2.ConnectError):
            return ConnectionError(f"no connection ({reason})")
        return ConnectionError(f"the answer broke off ({reason})")

    def _read_header(self, variable: str) -> tuple[str, str]:
        line = os.environ.get(variable)
        if line is None:
            raise ServiceMistake(
                f"{self.name}: there is no environment variable {variable}, which {self._setting} "
                f"names; set it: export {variable}='Authorization: Bearer …'"
            )
        match = _HEADER.fullmatch(line.strip())
        if match is None:
            raise ServiceMistake(
                f"{self.name}: the environment variable {variable} holds no header; write its "
                "name, a colon and its value, as in 'Authorization: Bearer …'"
            )
        return match[1], match[2]

    def _trusted(self) -> ssl.SSLContext:
        try:
            return httpx2.create_ssl_context()
        except (OSError, ssl.SSLError) as error:
            raise ServiceMistake(
                f"{self.name}: the certificates that SSL_CERT_FILE or SSL_CERT_DIR names "
                f"cannot be read ({error.strerror or error}); mend it"
            ) from None


def pause(number: int, error: Exception) -> float:
    """Seconds to wait before try ``number`` + 1: 1, 2, 4, … up to 60, each up to half as long
    again by chance, so that those who failed together do not come back together; and at least as
    long as the service asks for (Retry-After), up to ten minutes."""
    ours = min(2.0 ** min(number - 1, 10), _LONGEST_WAIT) * _JITTER.uniform(1.0, 1.5)
    return max(ours, min(getattr(error, "retry_after", None) or 0.0, _LONGEST_ASKED))


def parsed(url: str, name: str, header_setting: str = "header_env") -> httpx2.URL:
    """The address, where it is one that may be kept with every result.

    Raises:
        ServiceMistake: It is none, or holds a password or a query.
    """
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise ServiceMistake(f"{name}: is no address; write http://host:port/path") from None
    if address.scheme not in ("http", "https"):
        raise ServiceMistake(f"{name}: is no address of HTTP; write http://host:port/path")
    if address.port is not None and not 0 < address.port < 2**16:
        raise ServiceMistake(
            f"{name}: there is no port {address.port}; write http://host:port/path"
        )
    if address.userinfo:
        raise ServiceMistake(
            f"{name}: the address holds a user or a password, which would be kept with every "
            "result; put them into an environment variable as a header, and name it in "
            f"{header_setting}"
        )
    if address.query or address.fragment:
        raise ServiceMistake(
            f"{name}: the address has a query, which is kept with every result and may hold a "
            f"key; send a key as a header ({header_setting}), and anything else by a function of "
            "your own"
        )
    if not address.host:
        raise ServiceMistake(f"{name}: names no host; write http://host:port/path")
    return address


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
