"""Requests as bytes on a socket, for requests that no HTTP library would send. These answers are checked, too."""

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from clients.python.backup_client import authorization, sign
from contract_tests.suite.outcomes import not_run
from contract_tests.target import network
from contract_tests.target.exchanges import Exchange, headers_of
from contract_tests.target.observer import Server

TIMEOUT = 30  # seconds
HOST = b"Host: backup.example\r\n"  # a placeholder for the target's own


@dataclass
class Answer:
    """An answer: its status, its headers (whose names ignore case) and its body."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


def host(target: Server) -> bytes:
    """Return the header line that names the target (RFC 9110 section 7.2)."""
    return f"Host: {urlsplit(target.base_url).netloc}\r\n".encode("ascii")


@contextmanager
def connected(target: Server) -> Iterator[socket.socket]:
    """Open a connection to the target, with TLS if its URL is https."""
    with network.connect(target.base_url, TIMEOUT) as connection:
        yield connection


def send_all(connection: socket.socket, data: bytes) -> None:
    """Send bytes. A server may answer and close before it has read them all, so do not fail then.

    `receive` reads the answer, and fails if there is none (RFC 9112 section 9.5).
    """
    with suppress(OSError):
        connection.sendall(data)


def receive(
    target: Server, connection: socket.socket, method: str = "GET", path: str = "", sent: bytes = b""
) -> Answer:
    """Read the target's next answer on a connection, skip interim answers, and check it against the spec."""
    answer = None
    try:
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        answer = Answer(response.status, response.headers, response.read())
    except (OSError, http.client.HTTPException) as error:
        if target.observer.edge_may_answer:
            target.observer.answered_by_the_edge(type(error).__name__)
        raise
    finally:
        parts = None if answer is None else (answer.status, headers_of(answer.headers.items()), answer.body)
        request = sent or f"{method} {path}\r\n\r\n(sent in parts)".encode("latin-1")
        exchange = Exchange("the target", method, (), b"", parts, request)
        target.observer.record(exchange)
    target.observer.check(method, path, answer.status, answer.headers, answer.body, exchange)
    return answer


def send(target: Server, request: bytes, *, is_exact: bool = False) -> Answer:
    """Send a request, given as bytes, on a new connection. Unless `is_exact`, replace HOST by the target's host."""
    method, target_form, *_ = [*request.lstrip().partition(b"\r\n")[0].decode("latin-1").split(" "), ""]
    path = re.sub("^https?://[^/]*", "", target_form, flags=re.IGNORECASE)  # RFC 9112 section 3.2.2
    target.observer.skip_without_answerer(method, path)
    request = request if is_exact else request.replace(HOST, host(target), 1)
    with connected(target) as connection:
        send_all(connection, request)
        return receive(target, connection, method, path, request)


def expect(
    target: Server,
    head: bytes,
    body: bytes,
    method: str,
    path: str,
    meanwhile: Callable[[], Any] = lambda: None,
) -> tuple[bool, Answer]:
    """Send a head that expects 100-continue, and if the server asks for it, the body. Before that, call `meanwhile`.

    Return whether the server asked for the body, and the answer.
    """
    if urlsplit(target.base_url).scheme == "https":
        not_run("needs a target without TLS, because it looks at the first bytes of an answer")
    target.observer.skip_without_answerer(method, path)
    with connected(target) as connection:
        connection.sendall(head.replace(HOST, host(target)))
        asked = connection.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) == b"HTTP/1.1 100"
        if asked:
            meanwhile()
            send_all(connection, body)
        return asked, receive(target, connection, method, path, head)


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    headers: tuple[str, ...] = (),
    version: str = "HTTP/1.1",
) -> bytes:
    """Return a request as bytes, with Host, these header lines, and Content-Length if there is a body."""
    lines = [f"{method} {path} {version}", HOST.decode().strip(), *headers]
    if body is not None and not any(line.lower().startswith("transfer-encoding") for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def signed(
    target: Server, credentials: tuple[str, str], method: str, path: str, body: bytes = b"", **change: Any
) -> tuple[str, ...]:
    """Return the header lines that sign a request. `change` replaces arguments of `sign`."""
    options: dict[str, Any] = {"secret": target.secret, "keyid": target.keyid, "created": int(target.now())} | change
    headers = sign(method, path, body, authorization(*credentials), **options)
    return tuple(f"{name}: {value}" for name, value in headers.items())
