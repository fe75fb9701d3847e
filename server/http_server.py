"""HTTP/1.1 by waitress, for one WSGI app, within the bounds of `bounds.py`.

A request goes this way:

1. The main thread reads its head. If the head is complete, it asks a lane to run the app, and reads no further.
2. The app answers from the head, or reads the body. If it reads a body that may not be read yet, that run ends there
   without an answer. So the app proves a request by its head, and nobody without an account makes the server keep a
   body. What comes in one piece with the head, some kB, is in memory until the head is judged.
3. If there is room for the body, the main thread reads it. Then the app runs again, in a lane for requests that may
   change something, and answers.
4. The main thread sends what the client has not yet read of the answer. If the connection ends with it, the main
   thread reads and discards what the client is still sending, so that the client sees the answer and no reset.
"""

import contextlib
import functools
import logging
import resource
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import waitress.adjustments
import waitress.buffers
import waitress.channel
import waitress.server
import waitress.task
import waitress.utilities
from waitress import wasyncore

from server import bounds, lanes, process
from server.http_parser import RequestParser
from server.log import log

LOOK_SECONDS = 0.5  # how often to look for what has kept the server waiting too long

WsgiApp = Callable[..., Any]
AddressOf = Callable[[str, Mapping[str, str]], str]


@dataclass(frozen=True)
class Refusal:
    """The answer to a request that cannot be read. The app never sees such a request."""

    status: str  # with its phrase: "400 Bad Request"
    headers: list[tuple[str, str]]
    body: bytes


Refuse = Callable[[int, str | None], Refusal]  # gets a status (400, 413, 431, 500, 501, 503) and the Origin header


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
    complete. Otherwise it is 400 (its framing is broken), 408 (it took too long), 413 (it is too long) or 503 (there is
    no space for it), and the connection ends with the answer. `repeated` has the headers that occur on more than one
    line, in lowercase. `address` is the client's. `has_room` tells whether an answer whose body has so many bytes can
    be kept until the client has read it. `proven` is what the app has noted in the run before, which ended at the body.
    """

    at: int
    started: int
    body_fault: int | None
    repeated: Set[str]
    address: str
    has_room: Callable[[int], bool]
    proven: dict[str, Any]


class BodyWanted(BaseException):
    """Ends a run of the app that reads a body before it may. No `except Exception` of the app catches it.

    `most` is how many bytes the app wants, or -1 for all.
    """

    def __init__(self, most: int) -> None:
        self.most = most


class UnreadBody:
    """A body that may not be read yet."""

    def read(self, most: int = -1) -> bytes:
        raise BodyWanted(most)


class AppTask(waitress.task.WSGITask):
    """Answers a request by the app. It tells the app how the request arrived."""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        request = self.request
        environ[ARRIVAL] = Arrival(
            *(request.arrived_at, request.arrived, request.body_fault, request.repeated, request.address),
            *(self.channel.has_room, request.proven),
        )
        if not request.may_be_read:
            environ["wsgi.input"] = UnreadBody()
        return environ

    def build_response_header(self) -> bytes:
        if self.request.body is not None and not self.request.is_wanted:
            # The body is discarded as it arrives. Do the same if it came with the head, so that the answer does not
            # depend on how fast a body comes.
            self.request.headers["CONNECTION"] = "close"
        head: bytes = super().build_response_header()
        return head

    def set_close_on_finish(self) -> None:
        # waitress closes the connection if an answer has no Content-Length. A 204 and a 304 never have one, and end
        # with their head (RFC 9112 section 6.3).
        is_to_close = self.version == "1.0" or self.request.headers.get("CONNECTION", "").lower() == "close"
        if self.has_body or is_to_close:
            super().set_close_on_finish()


class RefusalTask(waitress.task.ErrorTask):
    """Sends the app's refusal to a request that the app never sees, and closes the connection."""

    def execute(self) -> None:
        refusal = self.channel.server.refuse(self.request.error.code, self.request.headers.get("ORIGIN"))
        self.status, self.content_length = refusal.status, len(refusal.body)
        self.response_headers.extend(refusal.headers)
        self.set_close_on_finish()
        self.write(b"" if getattr(self.request, "command", "") == "HEAD" else refusal.body)


class Channel(waitress.channel.HTTPChannel):
    """A connection. `requests` has the request that is answered, and those that the client has sent ahead.

    The main thread reads, and sends what a client has not read at once. A lane serves. `requests_lock` guards what both
    touch. Never take waitress' `outbuf_lock` while holding it.
    """

    server: "Listener"
    current_outbuf_count: int

    # Other threads look at a connection as soon as waitress' `__init__` has registered it.
    request: RequestParser | None = None
    requests: list[RequestParser] = []  # noqa: RUF012 - each connection gets its own
    total_outbufs_len: int = 0
    address = ""  # that of the last request, or else of the connection, as the limits count it
    counts_for = ""  # that of the connection, as the limits count it
    is_served = False  # a request is in a lane
    waits_since: float | None = None  # since when, if no thread has taken it yet
    is_lingering = False  # the last answer was sent; what still arrives is discarded
    discarded = 0  # bytes

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.requests_lock = threading.RLock()
        self.address = self.counts_for = self.server.address_of(self.connection_address, {})
        self.answered_at = self.moved_at = time.monotonic()  # moved_at: when bytes last came or went
        self.wait(bounds.HEAD_SECONDS)
        self.server.look_again(self)

    def wait(self, seconds: float) -> None:
        """Wait so long for a complete head, or for the client to close the connection."""
        self.idle_since = time.monotonic()
        self.deadline = self.idle_since + seconds

    # --- What the connection is doing (any thread may ask)

    @property
    def current(self) -> RequestParser | None:
        """The request that is answered, or else the one that is arriving."""
        requests = self.requests
        return requests[0] if requests else self.request

    @property
    def connection_address(self) -> str:
        address: str = self.addr[0]
        return address

    @property
    def is_idle(self) -> bool:
        """Whether no head is complete, and no answer is to be sent."""
        request = self.current
        has_head = request is not None and request.headers_finished
        return self.is_lingering or (not has_head and self.total_outbufs_len == 0)

    def has_room(self, size: int) -> bool:
        """Return whether an answer whose body has `size` bytes can be kept until the client has read it."""
        if size <= bounds.SMALL_ANSWER_BYTES:
            return True
        channels = self.server.channels()
        unread = sum(channel.total_outbufs_len for channel in channels)
        of_address = sum(channel.total_outbufs_len for channel in channels if channel.address == self.address)
        return unread + size <= bounds.UNREAD_ANSWERS and of_address + size <= bounds.UNREAD_ANSWERS_OF_AN_ADDRESS

    # --- Reading

    def readable(self) -> bool:
        if self.is_lingering:
            return True
        return not (self.requests or self.total_outbufs_len or self.will_close or self.close_when_flushed)

    def handle_read(self) -> None:
        self.moved_at = time.monotonic()
        request = self.request
        is_cheap = self.is_lingering or (request is not None and request.is_wanted and not request.chunked)
        try:
            data = self.recv(bounds.READ_BYTES if is_cheap else bounds.PARSED_BYTES)  # closes a connection that ended
        except OSError:
            self.handle_close()
            return
        if not self.is_lingering:
            self.received(data)
            return
        self.discarded += len(data)
        if self.discarded > bounds.LINGER_BYTES:
            self.handle_close()

    def handle_expt(self) -> None:
        self.handle_close()  # urgent data (TCP), which HTTP does not have: the main thread would never rest

    def received(self, data: bytes) -> bool:
        with self.requests_lock:
            if self.will_close or self.close_when_flushed:
                return False
            while data and len(self.requests) < bounds.REQUESTS_AHEAD:
                if self.request is None:
                    data = data.lstrip(b"\r\n")  # empty lines before a request (RFC 9112 section 2.2), at once
                    if not data:
                        break
                    self.request = RequestParser(self.adj)
                    self.wait(bounds.HEAD_SECONDS)
                request = self.request
                had_head = request.headers_finished
                data = data[request.received(data) :]
                if request.headers_finished and not had_head and not (request.error or request.empty):
                    self._look_at_head(request)
                if request.completed:
                    self.request = None
                    if not request.empty:
                        self.requests.append(request)
                    if request.error:
                        data = b""  # nobody knows where the next request begins
            if data:  # more would have to be kept (RFC 9112 section 9.3.2)
                self.requests[-1].headers["CONNECTION"] = "close"
            self._serve_next()
        return True

    def _look_at_head(self, request: RequestParser) -> None:
        """Note whose request it is. Refuse it if too many of this client are in progress."""
        self.address = request.address = self.server.address_of(self.connection_address, request.headers)
        channels = self.server.channels()
        if len(channels) > bounds.REQUESTS_OF_AN_ADDRESS:
            busy = sum(not channel.is_idle for channel in channels if channel.address == request.address)
            if busy > bounds.REQUESTS_OF_AN_ADDRESS:
                request.refuse()

    # --- Serving

    def _serve_next(self) -> None:
        """Put the next request into a lane, if there is one and none is in a lane. Hold `requests_lock`."""
        if self.is_served:
            return
        if not self.requests and self.request and self.request.headers_finished and not self.request.is_wanted:
            self.requests.append(self.request)  # its body is incomplete, but its head can be looked at
        if self.requests:
            self.is_served, self.waits_since = True, time.monotonic()
            self.server.add_task(self)

    def service(self) -> None:
        """Serve the request that waits. A lane calls this."""
        with self.requests_lock:
            if self.waits_since is None:  # it was refused meanwhile
                return
            self.waits_since, request = None, self.requests[0]
        self._serve(request)

    def refuse_late(self, now: float) -> None:
        """Refuse the request that waits if it has waited too long."""
        with self.requests_lock:
            if self.waits_since is None or now - self.waits_since < bounds.QUEUE_SECONDS:
                return
            self.waits_since, request = None, self.requests[0]
            request.refuse()
        self._serve(request)

    def _serve(self, request: RequestParser) -> None:
        task = (RefusalTask if request.error else AppTask)(self, request)
        try:
            if self.connected:
                task.service()
                with self.outbuf_lock:
                    self._flush_exception(self._flush_some, do_close=False)
        except BodyWanted as wanted:
            self._receive_body(request, wanted.most)
            return
        except waitress.channel.ClientDisconnected:
            pass
        except Exception as error:
            log.error(error)
            if not task.wrote_header:
                request.error = waitress.utilities.InternalServerError("")
                task = RefusalTask(self, request)
                with contextlib.suppress(waitress.channel.ClientDisconnected):
                    task.service()
            task.close_on_finish = True
        self._finish(request, task.close_on_finish)

    def _receive_body(self, request: RequestParser, most: int) -> None:
        """Receive the rest of a body that the app asks for, or refuse the request if there is no room."""
        request.most = most if most >= 0 else self.adj.max_request_body_size - 1
        try:
            if not self.server.make_room(self, request):
                request.refuse()
            elif request.expect_continue and not request.completed:
                request.expect_continue = False
                self.write_soon(b"HTTP/1.1 100 Continue\r\n\r\n")
        except waitress.channel.ClientDisconnected:
            request.refuse()
        except OSError as error:  # the disk, or the folder; nothing else of the server may notice it
            log(event="body_not_kept", errno=error.errno)
            request.refuse()
        with self.requests_lock:
            self.is_served, self.moved_at = False, time.monotonic()
            if not request.completed:
                self.requests.pop(0)  # it is `self.request`: so reading goes on
            self._serve_next()
        self.server.look_again(self)

    def _finish(self, request: RequestParser, closes: bool) -> None:
        """Go on after an answer."""
        with self.requests_lock:
            self.is_served, self.answered_at = False, time.monotonic()
            if closes or not self.connected:
                self.close_when_flushed = True
                for each in self.requests:
                    each.close()
                self.requests, self.request = [], None
            else:
                request.close()
                if self.current_outbuf_count:
                    self.current_outbuf_count = self.adj.outbuf_high_watermark  # as in waitress: a new buffer is next
                self.requests.pop(0)
                self.wait(bounds.IDLE_SECONDS)
                self._serve_next()
        self.server.look_again(self)

    # --- Sending and closing

    def _flush_some(self, do_close: bool = True) -> bool:
        sent: bool = super()._flush_some(do_close)
        if sent:
            self.moved_at = time.monotonic()
        if self.total_outbufs_len:
            self.server.look_again(self)
        return sent

    def handle_write(self) -> None:
        self._flush_exception(self._flush_some_if_lockable)
        if not self.connected:  # it broke, and is closed
            return
        if self.will_close:  # it is broken
            self.handle_close()
        elif self.close_when_flushed and not self.total_outbufs_len:
            self._linger()
        elif not self.total_outbufs_len and not self.requests:
            self.wait(bounds.IDLE_SECONDS)

    def _linger(self) -> None:
        """End the answers, but not yet the connection: a reset could overtake the answer (RFC 9112 section 9.6)."""
        self.close_when_flushed, self.is_lingering = False, True
        self.wait(bounds.LINGER_SECONDS)
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()

    def handle_close(self) -> None:
        super().handle_close()
        with self.requests_lock:
            if self.request and not self.is_served:
                self.request.close()

    def look(self, now: float, body_seconds: int) -> None:
        """Close the connection, or end the request, if it has kept the server waiting too long."""
        request = self.request
        if self.is_served:
            self.refuse_late(now)
            return
        if self.total_outbufs_len or self.close_when_flushed:
            is_late = now - self.moved_at > bounds.SILENT_SECONDS or now - self.answered_at > bounds.ANSWER_SECONDS
        elif request and request.headers_finished:
            is_late = False
            if request.is_late(body_seconds) or now - self.moved_at > bounds.SILENT_SECONDS:
                self._end_body(request)
        else:
            is_late = now > self.deadline
        if is_late:
            self.handle_close()

    def _end_body(self, request: RequestParser) -> None:
        with self.requests_lock:
            if self.request is not request or self.is_served:  # a thread has it meanwhile
                return
            request.end_body(408)
            self.requests.append(request)
            self.request = None
            self._serve_next()
        self.server.look_again(self)


class Listener(waitress.server.TcpWSGIServer):
    """The socket that accepts connections, and what all connections share."""

    def __init__(self, app: WsgiApp, listener: socket.socket, adjustments: Any, options: "HttpOptions") -> None:
        self.lanes = Lanes(options.at_once, options.read_threads)
        super().__init__(
            app,
            map={},
            _sock=listener,
            dispatcher=self.lanes,
            adj=adjustments,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
        )
        self.refuse, self.address_of, self.is_proxied = options.refuse, options.address_of, options.is_proxied
        self._main_thread = threading.get_ident()
        self._poll, self._flags = select.poll(), dict[int, int]()  # what the main thread waits for, by descriptor
        self._changed: deque[Any] = deque()  # connections that may wait for something else
        self._room = threading.Lock()
        self._accepts_from = 0.0  # when to accept again, after an error
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most_connections = max(1, min(bounds.CONNECTIONS, descriptors - bounds.RESERVED_DESCRIPTORS))

    def channels(self) -> list[Channel]:
        """Return the open connections."""
        return list(self.active_channels.values())

    def look_again(self, channel: Channel) -> None:
        """Let the main thread look at what a connection waits for, because that has changed. Any thread may ask."""
        self._changed.append(channel)
        # If more are there, the main thread has not looked at them yet: it is awake, or being woken.
        if len(self._changed) == 1 and threading.get_ident() != self._main_thread:
            self.pull_trigger()

    def poll(self, seconds: float) -> None:
        """Read, send and accept, as soon as there is something, or when so many seconds are over.

        waitress' own loop looks at all connections each time. This one looks at those that have changed.
        """
        self._changed.extend((self, self.trigger))
        while self._changed:
            self._register(self._changed.popleft())
        ready = [(number, self._map.get(number), flags) for number, flags in self._poll.poll(seconds * 1000)]
        for number, each, flags in ready:
            if each is None:  # it was closed before
                self._poll.unregister(number)
                del self._flags[number]
            elif each._fileno == number:  # it was not closed meanwhile
                wasyncore.readwrite(each, flags)
                self._changed.append(each)

    def _register(self, each: Any) -> None:
        if each._fileno is None:  # it is closed
            return
        flags = select.POLLIN | select.POLLPRI if each.readable() else 0
        if each.writable():
            flags |= select.POLLOUT
        if flags == self._flags.get(each._fileno, 0):
            return
        if flags:
            self._poll.register(each._fileno, flags)
            self._flags[each._fileno] = flags
        else:
            self._poll.unregister(each._fileno)
            del self._flags[each._fileno]

    def make_room(self, channel: Channel, request: RequestParser) -> bool:
        """Return whether there is room for a request's body. If so, it is the request's until this is answered.

        Raise OSError if the body is to be on disk, and cannot be.
        """
        body = request.body
        if body is None or request.completed:  # it came with the head
            request.is_wanted = True
            return True
        body.expected = min(body.expected, request.most)
        with self._room:
            others = [each.current for each in self.channels() if each is not channel]
            kept = [(each.user, each.body) for each in others if each and each.is_wanted]
            alike = [(user, its.expected) for user, its in kept if its is not None and its.is_large == body.is_large]
            most = bounds.BODIES_ON_DISK if body.is_large else bounds.BODIES_IN_MEMORY
            if sum(size for _, size in alike) + body.expected > most:
                return False
            of_user = sum(size for user, size in alike if user == request.user)
            if of_user + body.expected > most / bounds.SHARE_OF_A_USER:
                return False
            request.is_wanted = True
        body.keep()
        return True

    def load(self) -> "Load":
        """Return what there is to do now."""
        sizes = dict.fromkeys(("memory", "disk"), 0)
        for each in self.channels():
            if (request := each.current) and request.is_wanted and (body := request.body):
                sizes["disk" if body.is_large else "memory"] += body.expected
        return Load(len(self.active_channels), self.lanes.waiting(), sizes)

    def readable(self) -> bool:
        if not self.accepting or time.monotonic() < self._accepts_from:
            return False
        return len(self.active_channels) < self.most_connections or self._longest_idle(self.channels()) is not None

    def handle_accept(self) -> None:
        for _ in range(bounds.ACCEPTED_AT_ONCE):
            if not self.readable():
                return
            try:
                accepted = self.accept()
            except OSError as error:  # such as EMFILE: it will not be over at once
                log(event="not_accepted", errno=error.errno)
                self._accepts_from = time.monotonic() + 1
                return
            if accepted is None:
                return
            connection, address = accepted
            with contextlib.suppress(OSError):  # the client may be gone
                self.set_socket_options(connection)
            self._close_one_too_many(address[0])
            Channel(self, connection, address, self.adj, map=self._map)

    def _close_one_too_many(self, address: str) -> None:
        """Close the connection that has been idle longest, if there are too many, or too many from this address."""
        channels = self.channels()
        if len(channels) < self.most_connections:
            address = self.address_of(address, {})
            channels = [] if self.is_proxied else [each for each in channels if each.counts_for == address]
            if len(channels) < bounds.CONNECTIONS_OF_AN_ADDRESS:
                return
        if channel := self._longest_idle(channels):
            channel.handle_close()

    def _longest_idle(self, channels: list[Channel]) -> Channel | None:
        idle = [channel for channel in channels if channel.is_idle]
        return min(idle, key=lambda channel: channel.idle_since, default=None)


class Lanes:
    """Chooses a lane for each request. It stands in place of waitress' dispatcher, so its methods have those names."""

    def __init__(self, at_once: Set[str], read_threads: int) -> None:
        self._at_once = at_once
        self._now: deque[Channel] = deque()  # requests that the main thread serves
        self._reads = lanes.Lane("reads", read_threads, bounds.READS[1])
        self._writes = lanes.Lane("writes", *bounds.WRITES)
        self._large_writes = lanes.Lane("large writes", *bounds.LARGE_WRITES)

    def add_task(self, channel: Channel) -> None:
        """Have the first request of a connection served."""
        request = channel.requests[0]
        if not request.error and request.request_uri not in self._at_once:
            if self._lane(request).put(channel.service):
                return
            request.refuse()
        self._now.append(channel)

    def _lane(self, request: RequestParser) -> lanes.Lane:
        if not request.is_wanted or request.body_fault:
            return self._reads
        return self._large_writes if request.body and request.body.is_large else self._writes

    def waiting(self) -> dict[str, int]:
        """Return how many requests wait in each lane."""
        found = {"reads": self._reads, "writes": self._writes, "large writes": self._large_writes}
        return {name: lane.waiting for name, lane in found.items()}

    def serve_now(self) -> None:
        """Serve what takes no time: refusals, and the targets that are to be answered at once."""
        while self._now:
            self._now.popleft().service()

    def shutdown(self, cancel_pending: bool = True, timeout: float = 0) -> None:
        """End the threads."""
        lanes.stop(self._reads, self._writes, self._large_writes)


class WaitressLog(logging.Handler):
    """Logs where waitress logged something, but not its message, which may repeat what was sent."""

    def emit(self, record: logging.LogRecord) -> None:
        log(event="http_server", level=record.levelname, at=f"{record.module}:{record.lineno}")
        if record.exc_info and record.exc_info[1]:
            log.error(record.exc_info[1])


class Load(NamedTuple):
    """What the server has to do at a moment. Bytes are those that the bodies in flight may have."""

    connections: int
    waiting: Mapping[str, int]  # requests, by lane
    body_bytes: Mapping[str, int]  # by place: memory or disk


@dataclass(frozen=True)
class HttpOptions:
    """What the HTTP server needs to know from the app.

    `refuse` returns the answer to a request that never reaches the app. `address_of` returns the client's address from
    that of the connection and the headers, whose names are as in WSGI, without HTTP_. `is_proxied` is true if all
    connections come from a proxy. Requests for the targets in `at_once` must not wait for anything. `body_directory` is
    where large bodies wait. `read_threads` is how many threads read heads and serve what changes nothing.
    """

    refuse: Refuse
    address_of: AddressOf
    is_proxied: bool
    at_once: Set[str]
    body_directory: Path
    read_threads: int


class HttpServer:
    """Serves an app on an address until SIGTERM, SIGINT or SIGHUP."""

    def __init__(self, app: WsgiApp, host: str, port: int, limits: RequestLimits, options: HttpOptions) -> None:
        """Bind the address. Port 0 picks a free port. Raise OSError or UnicodeError if the address cannot be bound."""
        listener = listen(host, port)
        logging.getLogger("waitress").addHandler(WaitressLog())
        logging.getLogger("waitress").propagate = False
        adjustments = waitress.adjustments.Adjustments(
            ident="",
            send_bytes=bounds.SMALL_ANSWER_BYTES,  # so that head and body of a small answer are sent in one step
            outbuf_overflow=1 << 40,  # an answer is never written to /tmp: `has_room` bounds it
            max_request_header_size=limits.header_bytes + 1,
            max_request_body_size=limits.body_bytes + 1,
            clear_untrusted_proxy_headers=False,  # the server reads no such header
        )
        adjustments.body_directory = options.body_directory
        self._listener = Listener(in_memory(app), listener, adjustments, options)
        self._body_seconds = limits.body_seconds

    @property
    def host(self) -> str:
        """The address that the server listens on, in numbers."""
        host: str = self._listener.effective_host
        return host

    @property
    def url(self) -> str:
        """The URL of the server, with the port that it really has."""
        host = self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._listener.effective_port}"

    def run(self, **serving: Any) -> None:
        """Log that the server serves, with `serving` as further members. Serve until a signal, then stop.

        Finish requests in progress before stopping. A second signal ends the process without that.
        """
        stopping = threading.Event()

        def stop() -> None:
            stopping.set()
            self._listener.pull_trigger()

        process.stop_once(stop, functools.partial(log.finish, bounds.ABORT_LOG_SECONDS))
        log(event="serving", url=self.url, **serving)
        next_look = 0.0
        while not stopping.is_set():
            self._poll(LOOK_SECONDS)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_SECONDS
                self._look()
        log(event="stopping")
        self._drain()

    def load(self) -> "Load":
        """Return what the server has to do now. Any thread may ask."""
        return self._listener.load()

    def _poll(self, seconds: float) -> None:
        self._listener.poll(seconds)
        self._listener.lanes.serve_now()

    def _look(self) -> None:
        # In a function of its own: `run` would keep the last channel, with its body, long after its connection.
        now = time.monotonic()
        for channel in self._listener.channels():
            channel.look(now, self._body_seconds)

    def _drain(self) -> None:
        """Stop listening, and answer what has arrived, within the bounds of time."""
        self._poll(0)  # accept what has arrived already
        self._listener.accepting = False
        self._poll(0)  # and read it
        wasyncore.dispatcher.close(self._listener)
        started = time.monotonic()
        while self._listener.active_channels and (waited := time.monotonic() - started) < bounds.DRAIN_SECONDS:
            for channel in self._listener.channels():
                is_answered = channel.requests or channel.total_outbufs_len
                # A refused body is still discarded for a while, so that its sender sees the answer.
                is_arriving = channel.request or channel.close_when_flushed or channel.is_lingering
                if not is_answered and (not is_arriving or waited > bounds.DRAIN_INCOMPLETE_SECONDS):
                    channel.handle_close()
            self._poll(0.05)
            self._look()
        self._listener.lanes.shutdown()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address or a name. `::` is every address, of IPv4 and of IPv6.

    A name is looked up, and IPv4 comes first. Raise OSError or UnicodeError.
    """
    host = host.removeprefix("[").removesuffix("]")  # as in a URL
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    is_both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, dualstack_ipv6=is_both)


def in_memory(app: WsgiApp) -> WsgiApp:
    """Return the same app. waitress sends its large answers without copying them."""

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        parts = app(environ, start_response)
        body = b"".join(parts)
        return LargeAnswer(body) if len(body) > bounds.SMALL_ANSWER_BYTES else [body]

    return call


class LargeAnswer(waitress.buffers.ReadOnlyFileBasedBuffer):
    """The body of an answer, in the form in which waitress sends files. It shares the app's bytes."""

    def __init__(self, body: bytes) -> None:
        self._unsent = memoryview(body)
        self.remain = len(body)

    def prepare(self, size: int | None = None) -> int:
        return self.remain

    def get(self, numbytes: int = -1, skip: bool = False) -> memoryview:
        return self._unsent[:numbytes]

    def skip(self, numbytes: int, allow_prune: bool = False) -> None:
        self._unsent = self._unsent[numbytes:]
        self.remain -= numbytes

    def close(self) -> None:
        self._unsent, self.remain = memoryview(b""), 0
