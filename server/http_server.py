"""HTTP/1.1 by waitress, for one WSGI app. This is the only module that knows waitress.

It subclasses four of waitress' classes and reads attributes that waitress does not document. Therefore, `waitress==`
is pinned exactly. Read the source of the new version before you move the pin.
"""

import functools
import ipaddress
import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import waitress.channel
import waitress.parser
import waitress.server
import waitress.task
import waitress.utilities
from waitress import wasyncore

from server import clock, process
from server.log import log

THREADS = 4
CONNECTIONS = 1000
DRAIN_SECONDS = 20  # how long a stop waits for requests in progress
LAST_LINES_SECONDS = 0.2  # how long a second signal, which ends the server at once, leaves to the log

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
    """How many bytes a request may have: request line and headers together, and the body. How long a body may take."""

    header_bytes: int
    body_bytes: int
    body_seconds: int


ARRIVAL = "backup.arrival"  # the name of an Arrival in the WSGI environment


@dataclass(frozen=True)
class Arrival:
    """When the head of a request had arrived, and how its body came.

    `at` is a time of `clock.now()`, and `started` one of `clock.monotonic()`. `body_fault` is None if the body is
    complete. Otherwise it is 400 (its framing is broken), 408 (it took too long) or 413 (it is far too long), and the
    connection ends with the answer. `repeated` has the headers that occur on more than one line, in lowercase.
    """

    at: int
    started: int
    is_chunked: bool
    body_fault: int | None
    repeated: Set[str]


# RFC 3986 section 3.2.2. As in RFC 9110 section 7.2, a port may follow, and there is no userinfo.
HOST = re.compile(
    r"(?:\[(?:(?P<ipv6>[0-9A-Fa-f:.]+)|v[0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+)\]"
    r"|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?",
    re.ASCII,
)
ABSOLUTE_FORM = re.compile("^https?://([^/?#]*)", re.IGNORECASE)  # RFC 9112 section 3.2.2


def is_host(text: str) -> bool:
    """Return whether a text is a host, which may be empty, with or without a port."""
    if not (host := HOST.fullmatch(text)):
        return False
    try:
        return host["ipv6"] is None or bool(ipaddress.IPv6Address(host["ipv6"]))
    except ValueError:
        return False


class RequestParser(waitress.parser.HTTPRequestParser):
    """waitress' parser, with more of the checks that RFC 9112 requires. No request is left without an answer."""

    arrived_at = arrived = 0  # when the head had arrived, by clock.now() and by clock.monotonic()
    body_fault: int | None = None  # see Arrival
    repeated: Set[str] = frozenset()

    def received(self, data: bytes) -> int:
        is_body = self.body_rcv is not None
        if self.chunked and is_body:
            self.body_bytes_received = len(self.body_rcv)  # waitress counts the framing of the chunks, too
        try:
            consumed: int = super().received(data)
            # waitress sets no limit on a chunk's line and the trailer, and collects them in memory.
            unread = getattr(self.body_rcv, "control_line", b"") + getattr(self.body_rcv, "trailer", b"")
            if len(unread) >= self.adj.max_request_header_size:
                raise ValueError("a chunk's line or the trailer is too long")
        except ValueError:  # such as a Content-Length of 5,000 digits
            self.error = waitress.utilities.BadRequest("")
            self.completed = True
            consumed = len(data)
        if self.error:
            self.expect_continue = False  # the error is the answer
            if is_body:
                self.end_body(self.error.code)
        return consumed

    def end_body(self, fault: int) -> None:
        """Give the request to the app without the rest of its body. The app answers by the head, or by the fault."""
        self.body_fault, self.error = fault, None
        self.completed, self.expect_continue = True, False
        self.headers["CONNECTION"] = "close"  # nobody knows where the next request begins
        if self.chunked:
            self.headers["CONTENT_LENGTH"] = str(len(self.body_rcv))

    def is_late(self, seconds: int) -> bool:
        """Return whether the body is still incomplete so many seconds after the head had arrived."""
        is_waiting = self.headers_finished and not self.completed
        return is_waiting and clock.monotonic() - self.arrived > seconds * 1000

    def parse_header(self, header_plus: bytes) -> None:
        self.arrived_at, self.arrived = clock.now(), clock.monotonic()
        # Methods are case-sensitive (RFC 9110 section 9.1), so one with lowercase letters is a method that no path has.
        # waitress calls it malformed. Replace it with another method that no path has.
        header_plus = re.sub(rb"^(?=\S*[a-z])[\w!#$%&'*+.^`|~-]+ ", b"OTHER ", header_plus)
        # A higher minor version is no reason to refuse a request (RFC 9110 section 2.5).
        header_plus = re.sub(rb"^([^\r\n]* HTTP/1\.)[2-9](?=[ \t]*\r\n)", rb"\g<1>1", header_plus)
        super().parse_header(header_plus)
        # Look at each character once: a pattern that tries again at each space takes seconds for 16 kB of spaces.
        lines = [line.partition(b":") for line in header_plus.lower().split(b"\r\n")[1:]]
        names = Counter(name.decode("latin-1") for name, _, _ in lines)
        self.repeated = frozenset(name for name, count in names.items() if count > 1)
        options = [option.strip(" \t") for option in self.headers.get("CONNECTION", "").lower().split(",")]
        if "close" in options:
            self.headers["CONNECTION"] = "close"  # waitress compares the whole value (RFC 9110 section 7.6.1)
        if self.version not in ("1.0", "1.1"):
            raise waitress.parser.ParsingError("unknown version")
        if not re.fullmatch(r"[!-~]+", self.request_uri):
            raise waitress.parser.ParsingError("the target is not ASCII")  # RFC 3986 section 2
        absolute = ABSOLUTE_FORM.match(self.request_uri)
        if absolute and (absolute[1].startswith(":") or not absolute[1] or not is_host(absolute[1])):
            raise waitress.parser.ParsingError("no valid authority")  # RFC 9110 section 4.2.1: nor an empty host
        # Two lines of Host are joined by a comma and a space, which no host has (RFC 9112 section 3.2).
        if (self.version == "1.1" and "HOST" not in self.headers) or not is_host(self.headers.get("HOST", "")):
            raise waitress.parser.ParsingError("not exactly one valid Host")
        codings = [value.strip(b" \t") for name, _, value in lines if name == b"transfer-encoding"]
        is_faulty = self.version == "1.0" or "CONTENT_LENGTH" in self.headers or codings[1:] or not self.chunked
        if codings and (is_faulty or codings[0] != b"chunked"):
            raise waitress.parser.ParsingError("faulty framing")  # RFC 9112 section 6.1
        if self.expect_continue:
            # Refuse at once a client that waits for permission to send. Without a body, there is nothing to wait for.
            self.expect_continue = self.chunked or self.content_length > 0
            if self.content_length > self.adj.max_request_body_size // 2:
                self.error = waitress.utilities.RequestEntityTooLarge("")
                self.completed = True


class AppTask(waitress.task.WSGITask):
    """Answers a request by the app. It tells the app how the request arrived."""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        request = self.request
        environ[ARRIVAL] = Arrival(
            request.arrived_at, request.arrived, request.chunked, request.body_fault, request.repeated
        )
        return environ

    def set_close_on_finish(self) -> None:
        # waitress closes the connection if an answer has no Content-Length. A 204 and a 304 never have one, and end
        # with their head (RFC 9112 section 6.3).
        is_to_close = self.version == "1.0" or self.request.headers.get("CONNECTION", "").lower() == "close"
        if self.has_body or is_to_close:
            super().set_close_on_finish()


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
    task_class = AppTask
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

    def end_late_body(self, seconds: int) -> None:
        """Answer a request whose body is still incomplete so many seconds after its head had arrived."""
        with self.requests_lock:
            request: Any = self.request
            if request and request.headers_finished:
                self.last_activity = time.time()  # waitress would close it without an answer after 120 s of silence
            if request and request.is_late(seconds):
                request.end_body(408)
                self.requests.append(request)
                self.request = None
                if len(self.requests) == 1:  # as in waitress' `received`
                    self.server.add_task(self)


class WaitressLog(logging.Handler):
    """Logs where waitress logged something, but not its message, which may repeat what was sent."""

    def emit(self, record: logging.LogRecord) -> None:
        log(event="http_server", level=record.levelname, at=f"{record.module}:{record.lineno}")
        if record.exc_info and record.exc_info[1]:
            log.error(record.exc_info[1])


class HttpServer:
    """Serves an app on an address until SIGTERM, SIGINT or SIGHUP."""

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
        self._body_seconds = limits.body_seconds

    @property
    def url(self) -> str:
        """The URL of the server, with the port that it really has."""
        host = self._waitress.effective_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._waitress.effective_port}"

    def run(self, **serving: Any) -> None:
        """Log that the server serves, with `serving` as further members. Serve until a signal, then stop.

        Finish requests in progress before stopping. A second signal ends the process without that.
        """
        stopping = threading.Event()

        def stop() -> None:
            stopping.set()
            self._waitress.pull_trigger()

        process.stop_once(stop, functools.partial(log.finish, LAST_LINES_SECONDS))
        log(event="serving", url=self.url, **serving)
        next_look = 0.0
        while not stopping.is_set():
            wasyncore.poll2(1, self._waitress._map)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + 1
                self._end_late_bodies()
        log(event="stopping")
        self._drain()

    def _end_late_bodies(self) -> None:
        # In a function of its own: `run` would keep the last channel, with its body, long after its connection.
        for channel in list(self._waitress.active_channels.values()):
            channel.end_late_body(self._body_seconds)

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
