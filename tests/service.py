"""A reward service on loopback that misbehaves as it is told."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Reply:
    """What the service does with a request.

    Attributes:
        body: JSON, or bytes as they are. seconds: before anything is sent.
        drop: hang up without a word, or (``"middle"``) half-way through the body.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    drop: bool | str = False


def lengths(body: dict[str, Any]) -> list[float]:
    """A reward that is a function of the text alone."""
    return [float(len(text)) for text in body["completions"]]


def honest(number: int, body: dict[str, Any]) -> Reply:
    return Reply({"scores": lengths(body)})


class Service:
    """A server in threads of its own; ``answer(number, body)`` says what it does.

    Attributes:
        requests: The bodies in the order of their arrival. headers: theirs.
        most: The most requests that were under way at once.
    """

    def __init__(
        self,
        answer: Callable[[int, dict[str, Any]], Reply] = honest,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        certificate: Path | None = None,
    ) -> None:
        self.answer, self.host = answer, host
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = type("Server", (ThreadingHTTPServer,), {"address_family": family})
        self._server = kind((host, port), self._handler())
        self.port = self._server.server_address[1]
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}/score"

    def close(self) -> None:
        """Nobody listens at the port any longer, and open connections are cut."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service._lock:
                    number = len(service.requests)
                    service.requests.append(body)
                    service.headers.append(dict(self.headers))
                    service._now += 1
                    service.most = max(service.most, service._now)
                try:
                    self._send(service.answer(number, body))
                finally:
                    with service._lock:
                        service._now -= 1

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.seconds)
                self.close_connection = True
                if reply.drop is True:
                    return
                content = reply.body
                if not isinstance(content, bytes):
                    content = json.dumps(content).encode()
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                sent = content[: len(content) // 2] if reply.drop else content
                try:
                    self.wfile.write(sent)
                except OSError:  # the other side has gone
                    return

            def log_message(self, *_: object) -> None:
                pass

        return Handler
