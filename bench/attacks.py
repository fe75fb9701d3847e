"""The attacks of the siege. Each is a row of data and a small function. Add a row to ATTACKS; nothing else changes.

An attack runs in a process of its own and ends by itself. It returns what it saw, in words, with how often.
"""

import contextlib
import dataclasses
import itertools
import secrets
import select
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.generator import Result, drive
from bench.honest import ATTACKER, connect, connections, exchange
from bench.process import Address
from bench.wire import Prepared, Signer, Uploads, User, head, health, upload

BODY_BYTES = 8 * 1024 * 1024  # the most that a body may have
BLOB_BYTES = 5 * 1024 * 1024  # the most that a backup may have
Seen = Counter[str]


@dataclass(frozen=True)
class Target:
    """The server under attack, and how hard and how long to attack it."""

    address: Address
    secret: str
    database: Path
    count: int
    seconds: float

    def until_over(self) -> Iterator[None]:
        """Yield until the time is over."""
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            yield


# ---- Bodies that are refused -------------------------------------------------------------------------------


def send_repeatedly(target: Target, prepare: Callable[[int], Prepared]) -> Seen:
    """Send one request after the other, on one connection as long as the server keeps it."""
    seen, connection = Seen(), None
    for number, _ in zip(itertools.count(), target.until_over(), strict=False):
        request = prepare(number)
        try:
            connection = connection or connect(target.address, ATTACKER, 5)
            answer, _body = exchange(connection, request, 30)
            seen[str(answer.status)] += 1
            if not answer.closes:
                continue
        except (OSError, ValueError, KeyError) as error:
            seen[type(error).__name__] += 1
            if isinstance(error, ConnectionRefusedError):
                time.sleep(0.1)  # the server is dead
        if connection:
            connection.close()
        connection = None
    return seen


def unsigned_bodies(target: Target) -> Seen:
    request = Prepared("unsigned", head("POST", "/api/backup", {}, BODY_BYTES), bytes(BODY_BYTES), ())
    return send_repeatedly(target, lambda _: request)


def account(target: Target) -> tuple[Signer, User]:
    """Make an account for the attacker, who is an honest phone that something went wrong with."""
    signer, user = Signer(target.secret), User.new()
    drive(target.address, [[signer.register(user)]], 30)
    return signer, user


def refused_uploads(target: Target, body: bytes) -> Seen:
    signer, user = account(target)
    return send_repeatedly(
        target, lambda number: signer.prepare(user, "POST", "/api/backup", body, age=number % 250, name="refused")
    )


def stale_base(target: Target) -> Seen:
    return refused_uploads(target, upload(secrets.token_bytes(BLOB_BYTES), "0" * 64))


def too_large(target: Target) -> Seen:
    return refused_uploads(target, upload(secrets.token_bytes(BLOB_BYTES + 1)))


def emoji(target: Target) -> Seen:
    """Send an upload with a member that the schema does not have. One emoji makes each character take four bytes."""
    text = upload(secrets.token_bytes(BLOB_BYTES))[:-1] + ',"\U0001f3cb":1}'.encode()
    return refused_uploads(target, text)


# ---- Bodies that do not end --------------------------------------------------------------------------------


def send_all_but_the_end(target: Target, requests: list[Prepared]) -> Seen:
    """Send many bodies at once, all but the last byte. When the time is nearly over, send that too."""
    seen = Seen()
    with connections(target.address, len(requests)) as opened:
        seen["opened"] = len(opened)
        poll = select.poll()
        unsent = {}
        for connection, request in zip(opened, requests, strict=False):
            connection.setblocking(False)
            unsent[connection] = memoryview(request.head + request.body)[:-1]
            poll.register(connection, select.POLLOUT)
        by_number = {connection.fileno(): connection for connection in opened}
        deadline = time.monotonic() + 0.7 * target.seconds
        while unsent and time.monotonic() < deadline:
            for number, _ in poll.poll(100):
                connection = by_number[number]
                try:
                    unsent[connection] = unsent[connection][connection.send(unsent[connection][: 1 << 16]) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    seen[f"{type(error).__name__} while sending"] += 1
                    unsent[connection] = memoryview(b"")
                if not unsent[connection]:
                    poll.unregister(number)
                    del unsent[connection]
        seen["sent in time"] = len(opened) - len(unsent)
        for connection in opened:
            if connection not in unsent:
                with contextlib.suppress(OSError):
                    connection.send(b" ")
        deadline = time.monotonic() + 0.3 * target.seconds
        for connection in opened:
            seen[first_of_answer(connection, deadline)] += 1
    return seen


def first_of_answer(connection: socket.socket, deadline: float) -> str:
    """Return the status of an answer, or what came in its place."""
    try:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        received = connection.recv(12)
        return received[9:12].decode() if received else "closed"
    except OSError as error:
        return type(error).__name__


def unfinished_bodies(target: Target) -> Seen:
    request = Prepared("unsigned", head("POST", "/api/backup", {}, BODY_BYTES), bytes(BODY_BYTES), ())
    return send_all_but_the_end(target, [request] * target.count)


def unfinished_signed_bodies(target: Target) -> Seen:
    signer, user = account(target)
    uploads = Uploads.of(BLOB_BYTES)
    return send_all_but_the_end(target, [signer.store(user, uploads, 0)] * target.count)


# ---- Connections that do nothing ---------------------------------------------------------------------------


def held_connections(target: Target, first: bytes, more: bytes = b"", every: float = 1.0) -> Seen:
    """Open many connections, send `first` on each, and then a byte of `more` every so many seconds. Read nothing."""
    seen = Seen()
    with connections(target.address, target.count) as opened:
        seen["opened"] = len(opened)
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.setblocking(False)
                connection.send(first)
        slowly = iter(more)
        for _ in target.until_over():
            time.sleep(min(every, target.seconds / 4))
            byte = next(slowly, None)
            if byte is not None:
                for connection in opened:
                    with contextlib.suppress(OSError):
                        connection.send(bytes([byte]))
        seen["still open"] = sum(is_open(connection) for connection in opened)
    return seen


def is_open(connection: socket.socket) -> bool:
    """Return whether the server has not ended the connection. What it has sent is thrown away."""
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def idle(target: Target) -> Seen:
    return held_connections(target, b"")


def slow_heads(target: Target) -> Seen:
    return held_connections(target, b"GET /health HT", b"TP/1.1\r\nHost: x\r\nX-Slow: " + b"x" * 1000, every=5)


def slow_bodies(target: Target) -> Seen:
    return held_connections(target, head("POST", "/api/backup", {}, 8000), b"x" * 1000, every=5)


def never_read(target: Target) -> Seen:
    return held_connections(target, head("GET", "/openapi.yaml", {}) * 200)


def tiny_chunks(target: Target) -> Seen:
    """Send chunks of a byte each, as many as the socket takes, again and again."""
    first = head("POST", "/api/backup", {"Transfer-Encoding": "chunked"})
    return held_again_and_again(target, first + b"1\r\nx\r\n" * 11_000)


def empty_lines(target: Target) -> Seen:
    """Send empty lines before a head that never comes."""
    return held_again_and_again(target, b"\r\n" * 32_768)


def held_again_and_again(target: Target, first: bytes) -> Seen:
    """Hold so many connections, and open others as often as the time allows."""
    seen = Seen()
    for _ in target.until_over():
        seen += held_connections(dataclasses.replace(target, seconds=1), first)
    return seen


# ---- Honest crowds -----------------------------------------------------------------------------------------


def seen_by(result: Result) -> Seen:
    counts = {name: len(each) for name, each in result.latencies.items()}
    return result.wrong + Seen(counts) + Seen({"503, then repeated": result.delayed})


def crowd_stores(target: Target) -> Seen:
    """So many clients store 5 MiB, each one backup after the other."""
    signer, uploads = Signer(target.secret), Uploads.of(BLOB_BYTES)
    users = [User.new() for _ in range(target.count)]
    drive(target.address, [[signer.register(user)] for user in users], 60)
    result = drive(target.address, [list(signer.stores([user], uploads)) for user in users], target.seconds)
    return seen_by(result)


def crowd_stores_and_fetches(target: Target) -> Seen:
    signer, uploads = Signer(target.secret), Uploads.of(BLOB_BYTES)
    users = [User.new() for _ in range(target.count)]
    drive(target.address, [[signer.register(user)] for user in users], 60)

    plans = []
    for user in users:
        fetches = [signer.fetch(user)] * 4
        plans.append([each for store in signer.stores([user], uploads) for each in (store, *fetches)])
    result = drive(target.address, plans, target.seconds)
    return seen_by(result)


def stalled_disk(target: Target) -> Seen:
    """Hold the file's write lock while so many uploads wait."""
    signer, uploads = Signer(target.secret), Uploads.of(300_000)
    users = [User.new() for _ in range(target.count)]
    drive(target.address, [[signer.register(user)] for user in users], 60)
    with contextlib.closing(sqlite3.connect(target.database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with contextlib.ExitStack() as stack:
            waiting = []
            for user in users:
                request = signer.store(user, uploads, 0)
                waiting.append(stack.enter_context(connect(target.address, ATTACKER, 5)))
                waiting[-1].sendall(request.head + request.body)
            time.sleep(target.seconds)
            connection.execute("ROLLBACK")
            deadline = time.monotonic() + 10
            return Seen(first_of_answer(each, deadline) for each in waiting)


def many_requests(target: Target) -> Seen:
    """Send so many requests, each of which is a line in the log."""
    result = drive(target.address, [[health()] * (target.count // 8)] * 8, target.seconds, patience=5)
    return seen_by(result)


# ---- All of them -------------------------------------------------------------------------------------------


def in_turn(target: Target) -> Seen:
    """Run each attack that needs nothing special, one after the other, again and again, on the same server."""
    seen = Seen()
    attacks = [attack for attack in ATTACKS if attack.scaled and attack.is_plain]
    deadline = time.monotonic() + target.seconds
    for attack in itertools.cycle(attacks):
        left = deadline - time.monotonic()
        if left < 1:
            return seen
        seconds = min(left, attack.whole.seconds, max(2, target.seconds / len(attacks)))
        attack.run(dataclasses.replace(target, count=attack.whole.count, seconds=seconds))
        seen[attack.name] += 1
    raise AssertionError("a cycle has no end")


# ---- The table ---------------------------------------------------------------------------------------------

DRAIN = 25  # seconds that a stop may take while honest uploads are in progress
NO_BODIES = 12_000_000  # what the honest client beside the attack costs
EVERYTHING = ("store", "fetch", "304", "list")
READS = ("fetch", "304", "list")


@dataclass(frozen=True)
class Size:
    """How many connections or requests an attack has, and how many seconds it lasts."""

    count: int
    seconds: float


@dataclass(frozen=True)
class Attack:
    """An attack, how large it is in the siege and in the tests, and what is special about the server then."""

    name: str
    what: str
    run: Callable[[Target], Seen]
    whole: Size
    scaled: Size | None  # not in the tests if another attack is much the same
    operations: tuple[str, ...] = EVERYTHING  # of the honest client
    blob_bytes: int = 300_000  # of the honest client
    most_growth: int | None = None  # how many bytes of memory the server may take, besides what it has when idle
    most_stop_seconds: float = 5  # when the attack is over
    reads_log: bool = True
    limits: str = ""  # what a shell runs before the server
    tmp_bytes: int = 0  # if it is not 0, the server's temporary directory is a file system of this size

    @property
    def is_plain(self) -> bool:
        """Whether the server and the honest client are as ever, so that another attack may go before."""
        return self.reads_log and not self.limits and not self.tmp_bytes and self.operations == EVERYTHING


ATTACKS = (
    Attack(
        *("unsigned bodies", "unsigned 8 MiB bodies on one connection", unsigned_bodies, Size(1, 15), Size(1, 3)),
        most_growth=NO_BODIES,
    ),
    Attack("stale base", "5 MiB uploads with a stale base, one phone", stale_base, Size(1, 15), Size(1, 3)),
    Attack("too large", "uploads of 5 MiB and a byte, one phone", too_large, Size(1, 15), Size(1, 3)),
    Attack("emoji", "5 MiB uploads with an emoji, one phone", emoji, Size(1, 15), Size(1, 3)),
    Attack(
        "unfinished bodies", "unsigned 8 MiB bodies without their end", unfinished_bodies, Size(300, 30), Size(40, 3)
    ),
    Attack(
        *("unfinished signed bodies", "signed 5 MiB uploads without their end", unfinished_signed_bodies),
        *(Size(300, 30), Size(40, 3)),
    ),
    Attack("idle", "connections that send nothing", idle, Size(1100, 15), Size(1100, 2)),
    Attack("slow heads", "heads that arrive a byte every 5 s", slow_heads, Size(1100, 30), Size(1100, 2)),
    Attack("slow bodies", "bodies that arrive a byte every 5 s", slow_bodies, Size(1100, 30), None),
    Attack("tiny chunks", "64 kB of one-byte chunks each, unsigned", tiny_chunks, Size(48, 15), Size(48, 2)),
    Attack("empty lines", "64 kB of empty lines each", empty_lines, Size(250, 15), Size(250, 2)),
    Attack("never read", "clients that never read their answers", never_read, Size(1100, 30), Size(1100, 2)),
    Attack(
        *("crowd stores", "clients that store 5 MiB at once", crowd_stores, Size(32, 30), Size(32, 4)),
        most_stop_seconds=DRAIN,
    ),
    Attack("stalled disk", "uploads that wait for a disk", stalled_disk, Size(6, 14), Size(6, 4.5), READS),
    Attack(
        *("full /tmp", "unsigned unfinished bodies, and 40 MB of /tmp", unfinished_bodies, Size(100, 20), Size(100, 3)),
        blob_bytes=1_600_000,
        tmp_bytes=40_000_000,
    ),
    Attack("256 descriptors", "300 idle connections", idle, Size(300, 10), Size(300, 2), limits="ulimit -n 256"),
    Attack("1024 descriptors", "1,100 idle connections", idle, Size(1100, 10), None, limits="ulimit -n 1024"),
    Attack("unread log", "nobody reads the log", many_requests, Size(4000, 15), Size(800, 3), reads_log=False),
    Attack(
        *("8 store and fetch", "8 clients, 5 MiB", crowd_stores_and_fetches, Size(8, 30), None),
        most_stop_seconds=DRAIN,
    ),
    Attack(
        *("32 store and fetch", "32 clients, 5 MiB", crowd_stores_and_fetches, Size(32, 45), Size(32, 4)),
        most_stop_seconds=DRAIN,
    ),
    Attack(
        *("one after the other", "the attacks above in turn, on one server", in_turn, Size(1, 60), None),
        most_stop_seconds=DRAIN,
    ),
)
