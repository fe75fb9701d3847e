"""The honest client that lives beside an attack, and the check that asks /health as Fly does.

Both come from addresses of their own, open a connection for each request, and note what they got.
"""

import contextlib
import hashlib
import json
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from bench.process import Address
from bench.wire import AnswerHead, Prepared, Signer, User, health, read_head, upload

HONEST, CHECK, ATTACKER = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # addresses of this machine
CHECK_SECONDS = 5  # as in fly.toml
PAUSE_SECONDS = 0.05
UPLOADS = 200  # of one account: the siege lifts the limits, and a record with all uploads of an hour is not real
CHECK_PAUSE_SECONDS = 0.1


class Flag(Protocol):
    """What ends a client."""

    def is_set(self) -> bool: ...


@dataclass
class Life:
    """What a client got: how long each answered request took, in seconds, and what went wrong."""

    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    delayed: int = 0  # 503 with Retry-After, after which a retry succeeded

    @property
    def count(self) -> int:
        return len(self.latencies) + self.failures.total()


def connect(address: Address, source: str, timeout: float) -> socket.socket:
    """Connect from an address of this machine."""
    connection = socket.create_connection(address, timeout, source_address=(source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection: socket.socket, request: Prepared, seconds: float) -> tuple[AnswerHead, bytes]:
    """Send a request and return the answer's head and body.

    Raise OSError or ValueError if there is no whole answer in time.
    """
    deadline = time.monotonic() + seconds

    def left() -> float:
        return max(0.001, deadline - time.monotonic())

    connection.settimeout(left())
    connection.sendall(request.head + request.body)
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += receive(connection, left())
    answer = read_head(bytes(received[:end]))
    body = received[end + 4 :]
    while len(body) < answer.length:
        body += receive(connection, left())
    return answer, bytes(body)


def receive(connection: socket.socket, timeout: float) -> bytes:
    connection.settimeout(timeout)
    data = connection.recv(1 << 18)
    if not data:
        raise ConnectionError("the connection ended before the answer was complete")
    return data


class Phone:
    """An honest user who stores, fetches and lists. Everything that it gets has to be right.

    It waits for a whole exchange as long as its `patience` (seconds).
    """

    def __init__(self, address: Address, secret: str, blob_bytes: int, patience: float) -> None:
        self._address, self._signer, self._user = address, Signer(secret), User.new()
        self._blob_bytes, self._patience = blob_bytes, patience
        self._version, self._sha256 = 0, ""  # of its latest backup
        self.life = Life()

    def begin(self) -> None:
        """Register and store a first backup, before the attack. Raise RuntimeError if that fails."""
        self._try(self._signer.register(self._user))
        self.store()
        if self.life.failures:
            raise RuntimeError(f"the honest client could not begin: {dict(self.life.failures)}")
        self.life = Life()

    def live(self, operations: tuple[str, ...], until: Flag) -> Life:
        """Send one request after the other until the flag is set."""
        while not until.is_set():
            if self._version >= UPLOADS:
                self._move_on()
            for name in operations:
                OPERATIONS[name](self)
                time.sleep(PAUSE_SECONDS)
                if until.is_set():
                    break
        return self.life

    def _move_on(self) -> None:
        """Begin anew, with another account."""
        self._user, self._version, self._sha256 = User.new(), 0, ""
        self._try(self._signer.register(self._user))
        self.store()

    def store(self) -> None:
        blob = secrets.token_bytes(self._blob_bytes)
        body = upload(blob, self._sha256 or None)
        # If an answer was lost, the backup may have been stored: then 200 is right for its repetition.
        if self._try(self._signer.prepare(self._user, "POST", "/api/backup", body, 201, 200, name="store")):
            self._version, self._sha256 = self._version + 1, hashlib.sha256(blob).hexdigest()

    def fetch(self) -> None:
        body = self._try(self._signer.fetch(self._user))
        if body and json.loads(body)["sha256"] != self._sha256:
            self.life.failures["fetch: another version"] += 1

    def not_modified(self) -> None:
        self._try(self._signer.not_modified(self._user, f'"{self._version}-{self._sha256}"'))

    def list(self) -> None:
        self._try(self._signer.list(self._user))

    def _try(self, request: Prepared) -> bytes | None:
        """Send a request, again after a 503 that says when. Note how it went. Return the body of a right answer."""
        started = time.monotonic()
        was_delayed = False
        try:
            while True:
                left = self._patience - (time.monotonic() - started)
                with connect(self._address, HONEST, max(0.001, left)) as connection:
                    answer, body = exchange(connection, request, left)
                if answer.status != 503 or not answer.retry_after or left < answer.retry_after:
                    break
                was_delayed = True
                time.sleep(answer.retry_after)
        except (OSError, ValueError, KeyError) as error:
            self.life.failures[f"{request.name}: {type(error).__name__}"] += 1
            return None
        if answer.status not in request.right:
            self.life.failures[f"{request.name}: {answer.status}"] += 1
            return None
        self.life.latencies.append(time.monotonic() - started)
        self.life.delayed += was_delayed
        return body


OPERATIONS: dict[str, Callable[[Phone], None]] = {
    "store": Phone.store,
    "fetch": Phone.fetch,
    "304": Phone.not_modified,
    "list": Phone.list,
}


def check_health(address: Address, until: Flag) -> Life:
    """Ask /health again and again until the flag is set."""
    life = Life()
    while not until.is_set():
        started = time.monotonic()
        try:
            with connect(address, CHECK, CHECK_SECONDS) as connection:
                answer, _ = exchange(connection, health(), CHECK_SECONDS)
            if answer.status == 200:
                life.latencies.append(time.monotonic() - started)
            else:
                life.failures[f"health: {answer.status}"] += 1
        except (OSError, ValueError, KeyError) as error:
            life.failures[f"health: {type(error).__name__}"] += 1
        time.sleep(CHECK_PAUSE_SECONDS)
    return life


@contextlib.contextmanager
def connections(address: Address, count: int) -> Iterator[list[socket.socket]]:
    """Open so many connections from the attacker's address. Fewer, if the server takes no more within a second each."""
    opened: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            try:
                opened.append(stack.enter_context(connect(address, ATTACKER, 1)))
            except OSError:
                break
        yield opened
