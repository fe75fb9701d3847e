"""HTTP/1.1 by waitress, for one WSGI app. This is the only module that knows waitress.

It subclasses three of waitress' classes and reads attributes that waitress does not document. Therefore, `waitress==`
is pinned exactly. Read the source of the new version before you move the pin.
"""

import functools
import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import waitress.channel
import waitress.parser
import waitress.server
import waitress.task
import waitress.utilities
from waitress import wasyncore

from server.log import log

THREADS = 4
CONNECTIONS = 1000
DRAIN_SECONDS = 20  # how long a stop waits for requests in progress

WsgiApp = Callable[..., Any]


@dataclass(frozen=True)
class Refusal:
    """The answer to a request that cannot be read. The app never sees such a request."""

    status: str  # with its phrase: "400 Bad Request"
    headers: list[tuple[str, str]]
    body: bytes


Refuse = Callable[[int, str | None], Refusal]  # gets waitress' status (400, 413, 431, 500, 501) and the Origin header


@dataclass(frozen=True)
class RequestLimits:
    """How many bytes a request may have: request line and headers together, and the body."""

    header_bytes: int
    body_bytes: int


class RequestParser(waitress.parser.HTTPRequestParser):
    """waitress' parser, with more of the checks that RFC 9112 requires. No request is left without an answer."""

    def received(self, data: bytes) -> int:
        try:
            consumed: int = super().received(data)
            # waitress sets no limit on a chunk's line and the trailer, and collects them in memory.
            unread = getattr(self.body_rcv, "control_line", b"") + getattr(self.body_rcv, "trailer", b"")
            if len(unread) >= self.adj.max_request_header_size:
                raise ValueError("a chunk's line or the trailer is too long")
            return consumed
        except ValueError:  # such as a Content-Length of 5,000 digits
            self.error = waitress.utilities.BadRequest("")
            self.completed = True
            return len(data)
        finally:
            if self.error:
                self.expect_continue = False  # the error is the answer

    def parse_header(self, header_plus: bytes) -> None:
        # Methods are case-sensitive (RFC 9110 section 9.1), so one with lowercase letters is a method that no path has.
        # waitress calls it malformed. Replace it with another method that no path has.
        super().parse_header(re.sub(rb"^(?=\S*[a-z])[\w!#$%&'*+.^`|~-]+ ", b"OTHER ", header_plus))
        if self.version not in ("1.0", "1.1"):
            raise waitress.parser.ParsingError("unknown version")
        if not re.fullmatch(r"[!-~]+", self.request_uri):
            raise waitress.parser.ParsingError("the target is not ASCII")  # RFC 3986 section 2
        if self.version == "1.1" and ("HOST" not in self.headers or "," in self.headers["HOST"]):
            raise waitress.parser.ParsingError("not exactly one Host")  # RFC 9112 section 3.2
        codings = re.findall(rb"(?im)^transfer-encoding:[ \t]*(.*?)[ \t]*\r?$", header_plus)
        is_faulty = self.version == "1.0" or "CONTENT_LENGTH" in self.headers or codings[1:] or not self.chunked
        if codings and (is_faulty or codings[0].lower() != b"chunked"):
            raise waitress.parser.ParsingError("faulty framing")  # RFC 9112 section 6.1
        if self.expect_continue:
            # Refuse at once a client that waits for permission to send. Without a body, there is nothing to wait for.
            self.expect_continue = self.chunked or self.content_length > 0
            if self.content_length > self.adj.max_request_body_size // 2:
                self.error = waitress.utilities.RequestEntityTooLarge("")
                self.completed = True


class RefusalTask(waitress.task.ErrorTask):
    """Sends the app's refusal to a request that waitress could not read, and closes the connection."""

    def execute(self) -> None:
        refusal = self.channel.refuse(self.request.error.code, self.request.headers.get("ORIGIN"))
        self.status, self.content_length = refusal.status, len(refusal.body)
        self.response_headers.extend(refusal.headers)
        self.set_close_on_finish()
        self.write(b"" if getattr(self.request, "command", "") == "HEAD" else refusal.body)


class Channel(waitress.channel.HTTPChannel):
    """A connection. The classes above read and refuse its requests."""

    parser_class = RequestParser
    error_task_class = RefusalTask

    def __init__(self, refuse: Refuse, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.refuse = refuse
        self.requests_lock = threading.RLock()  # `received` below holds it while waitress' `received` takes it again

    def received(self, data: bytes) -> bool:
        # A thread waits until a client has read its answers (waitress' outbuf_high_watermark, 16 MiB). So if a client
        # sends requests ahead, answer the first two and close the connection (RFC 9112 section 9.3.2).
        with self.requests_lock:
            is_open: bool = super().received(data)
            for request in self.requests[2:]:
                request.close()
            if self.requests[2:]:
                del self.requests[2:]
                self.requests[1].headers["CONNECTION"] = "close"
                self.request = None
        return is_open


class WaitressLog(logging.Handler):
    """Logs where waitress logged something, but not its message, which may repeat what was sent."""

    def emit(self, record: logging.LogRecord) -> None:
        log(event="http_server", level=record.levelname, at=f"{record.module}:{record.lineno}")
        if record.exc_info and record.exc_info[1]:
            log.error(record.exc_info[1])


class HttpServer:
    """Serves an app on an address until SIGINT or SIGTERM."""

    def __init__(self, app: WsgiApp, host: str, port: int, limits: RequestLimits, refuse: Refuse) -> None:
        """Bind the address. Port 0 picks a free port. Raise OSError or UnicodeError if the address cannot be bound.

        `refuse` returns the answer to a request that never reaches the app.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        logging.getLogger("waitress").addHandler(WaitressLog())
        logging.getLogger("waitress").propagate = False
        logging.getLogger("waitress.queue").setLevel(logging.CRITICAL)  # it warns about every request that has to wait
        self._waitress = waitress.server.create_server(
            app,
            map={},
            sockets=[listener],
            threads=THREADS,
            ident="",
            recv_bytes=16_384,  # waitress copies what it has received once for each chunk in it
            inbuf_overflow=65_536,  # a larger body waits on disk, not in memory, until it is complete
            asyncore_use_poll=True,
            connection_limit=CONNECTIONS,
            max_request_header_size=limits.header_bytes + 1,
            # Read a body of up to twice the limit to its end, so that its sender sees the 413 and not a reset.
            max_request_body_size=2 * limits.body_bytes + 1,
            clear_untrusted_proxy_headers=False,  # the server reads no such header
        )
        self._waitress.channel_class = functools.partial(Channel, refuse)

    @property
    def url(self) -> str:
        """The URL of the server, with the port that it really has."""
        host = self._waitress.effective_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._waitress.effective_port}"

    def run(self, **serving: Any) -> None:
        """Log that the server serves, with `serving` as further members. Serve until a signal, then stop.

        Finish requests in progress before stopping.
        """
        stopping = threading.Event()

        def stop(*_: Any) -> None:
            stopping.set()
            self._waitress.pull_trigger()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        log(event="serving", url=self.url, **serving)
        while not stopping.is_set():
            wasyncore.poll2(1, self._waitress._map)
        log(event="stopping")
        self._drain()

    def _drain(self) -> None:
        """Stop listening, and answer what has arrived. Wait for that at most DRAIN_SECONDS."""
        wasyncore.poll2(0, self._waitress._map)  # accept what has arrived already
        wasyncore.dispatcher.close(self._waitress)
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._waitress.active_channels and time.monotonic() < deadline:
            for channel in list(self._waitress.active_channels.values()):
                if not (channel.requests or channel.request or channel.total_outbufs_len):
                    channel.will_close = True
            wasyncore.poll2(0.1, self._waitress._map)
        self._waitress.task_dispatcher.shutdown()
        for thread in threading.enumerate():  # a thread that ends releases its connection to the store
            if thread.name.startswith("waitress-"):
                thread.join(5)
