"""Each bound of `server/bounds.py`, reached over HTTP. Most servers here have smaller bounds, to save time."""

import base64
import contextlib
import errno
import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_bytes
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.siege import NotRun, small_file_system
from contract_tests.suite.outcomes import not_run
from contract_tests.target import openapi, raw
from contract_tests.target.calls import eventually, outcome, sha256
from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.process import COMMAND
from server import bounds

MANY = {"REGISTRATIONS_PER_HOUR": 1000, "BACKUPS_PER_HOUR": 1000, "BACKUPS_PER_DAY": 1000}
HEALTH = raw.request("GET", "/health")
BODY_BYTES = openapi.LIMITS["requestBodyBytes"]
MOST = openapi.MAX_DECODED_BYTES


def bounded(**changed: float | str) -> list[str]:
    """Return the command of a server with other bounds."""
    return [*COMMAND, *(each for name, value in changed.items() for each in ("--bound", f"{name}={value}"))]


@contextlib.contextmanager
def connection_from(server: Any, address: str, receives: int = 0) -> Iterator[socket.socket]:
    """Connect from an address of this machine. If `receives` is given, its kernel keeps about so many bytes."""
    url = urlsplit(server.base_url)
    with socket.socket() as connection:
        if receives:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        connection.bind((address, 0))
        connection.settimeout(10)
        connection.connect((url.hostname, url.port))
        yield connection


def descriptors(server: Any) -> list[str]:
    """Return what the descriptors of a server stand for."""
    folder = Path(f"/proc/{server.process.pid}/fd")
    if not folder.exists():
        not_run("needs /proc, which tells what files a process has open")
    found = []
    for each in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed since
            found.append(str(each.readlink()))
    return found


def sockets(server: Any) -> int:
    return sum(each.startswith("socket:") for each in descriptors(server))


def resident(server: Any) -> int:
    """Return the memory that a server has, in bytes."""
    try:
        return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        not_run("needs /proc, which tells the memory of a process")


def upload_head(server: Any, user: Any, body: bytes, *lines: str) -> bytes:
    """Return the signed head of an upload."""
    proofs = raw.signed(server, user.credentials, "POST", "/api/backup", body)
    headers = (*proofs, "Content-Type: application/json", f"Content-Length: {len(body)}", *lines)
    return raw.request("POST", "/api/backup", headers=headers).replace(raw.HOST, raw.host(server))


def body_of(blob: bytes, base: bytes | None = None) -> bytes:
    value = {"data": base64.b64encode(blob).decode()} | ({"baseSha256": sha256(base)} if base else {})
    return json.dumps(value).encode()


def registered(server: Any) -> Any:
    user = server.client()
    assert outcome(user.register_user()) == "201"
    return user


def is_asked_for(connection: socket.socket) -> bool:
    """Return whether the server asks for the body. If not, leave its answer on the connection."""
    if connection.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) != b"HTTP/1.1 100":
        return False
    assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return True


def answer_of(server: Any, connection: socket.socket) -> str:
    return outcome(raw.receive(server, connection, "POST", "/api/backup"))


# ---- The time of each step -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(start_shared_server):
    return start_shared_server(command=bounded(HEAD_SECONDS=1, IDLE_SECONDS=1, SILENT_SECONDS=1), **MANY)


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"POST /api/backup HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_has_its_time(impatient, sent):
    with connection_from(impatient, "127.0.0.1") as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_head_that_arrives_slowly_has_no_more(impatient):
    with connection_from(impatient, "127.0.0.1") as connection, pytest.raises(ConnectionError):
        for byte in b"GET /health HTTP/1.1\r\nX: " + b"x" * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)


def test_a_connection_may_be_idle_for_a_while(impatient):
    with connection_from(impatient, "127.0.0.1") as connection:
        for _ in range(2):
            connection.sendall(HEALTH)
            assert outcome(raw.receive(impatient, connection, "GET", "/health")) == "200"
            time.sleep(0.3)
        assert connection.recv(1) == b""


def test_a_body_that_stops_gets_an_answer(impatient):
    user, body = registered(impatient), body_of(b"slow")
    with connection_from(impatient, "127.0.0.1") as connection:
        connection.sendall(upload_head(impatient, user, body) + body[:-1])
        assert answer_of(impatient, connection) == "408 request_timeout"
        assert connection.recv(1) == b""
    assert outcome(user.fetch_backup()) == "404 no_backup"


def test_a_slow_body_is_served(impatient):
    user, body = registered(impatient), body_of(b"slow")
    with connection_from(impatient, "127.0.0.1") as connection:
        connection.sendall(upload_head(impatient, user, body))
        for start in range(0, len(body), 4):
            time.sleep(0.4)
            connection.sendall(body[start : start + 4])
        assert answer_of(impatient, connection) == "201"


def fetch_slowly(server: Any, seconds: float) -> int:
    """Fetch a backup of 5 MiB, a little each time. Return how many bytes arrived before the connection ended."""
    user = registered(server)
    assert outcome(user.store_backup(token_bytes(MOST))) == "201"
    request = raw.request("GET", "/api/backup", headers=raw.signed(server, user.credentials, "GET", "/api/backup"))
    count = 0
    with connection_from(server, "127.0.0.1", 300_000) as connection:
        connection.sendall(request)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.1)
            count += len(connection.recv(1000))
        connection.settimeout(1)
        with contextlib.suppress(ConnectionError, TimeoutError):  # the connection may stay open
            while received := connection.recv(1 << 20):
                count += len(received)
    return count


def test_an_answer_has_its_time(start_server):
    """The client reads all the time, but too slowly. If it may take longer, it gets everything."""
    assert fetch_slowly(start_server(command=bounded(ANSWER_SECONDS=1), **MANY), 3) < MOST
    assert fetch_slowly(start_server(**MANY), 3) > MOST * 4 / 3


def test_whoever_reads_nothing_is_not_waited_for(impatient):
    user = registered(impatient)
    assert outcome(user.store_backup(token_bytes(MOST))) == "201"
    headers = raw.signed(impatient, user.credentials, "GET", "/api/backup")
    before = sockets(impatient)
    with connection_from(impatient, "127.0.0.1", 4096) as connection:
        connection.sendall(raw.request("GET", "/api/backup", headers=headers))
        assert eventually(lambda: sockets(impatient) > before)
        assert eventually(lambda: sockets(impatient) <= before, 5)


def test_urgent_data_ends_a_connection(start_server):
    server = start_server()
    with raw.connected(server) as connection:
        connection.send(b"x", socket.MSG_OOB)
        assert eventually(lambda: not is_open(connection), 3)
    assert len([line for line in server.log() if line["event"] != "request"]) < 5


# ---- Refused bodies ------------------------------------------------------------------------------------------------

REFUSED = {  # what is sent, and the answer
    "unsigned": (raw.request("POST", "/api/backup", bytes(BODY_BYTES)), "401 signature_missing"),
    "of no path": (raw.request("POST", "/api/nothing", bytes(BODY_BYTES)), "404 not_found"),
    "of no method": (raw.request("PUT", "/api/backup", bytes(BODY_BYTES)), "405 method_not_allowed"),
    "too large": (raw.request("POST", "/api/backup", bytes(2 * BODY_BYTES)), "413 payload_too_large"),
    "large headers": (raw.request("POST", "/api/backup", headers=("X: " + "x" * 1_000_000,)), "431 headers_too_large"),
    "a faulty chunk": (
        raw.request("POST", "/api/backup", headers=("Transfer-Encoding: chunked",)) + b"x\r\n" + bytes(2_000_000),
        "401 signature_missing",
    ),
    "no HTTP": (b"GET / HTTP/3\r\n\r\n" + bytes(2_000_000), "400 malformed_request"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_whoever_sends_a_refused_body_sees_the_answer(target, name):
    """The client sends everything before it reads anything."""
    request, wants = REFUSED[name]
    method, path, _ = request.partition(b"\r\n")[0].decode().split(" ")
    with raw.connected(target) as connection:
        connection.sendall(request)
        assert outcome(raw.receive(target, connection, method, path)) == wants
        assert connection.recv(1) == b""


def test_so_much_is_discarded_and_no_more(start_server):
    server = start_server(command=bounded(LINGER_BYTES=1_000_000))
    head = raw.request("POST", "/api/backup", headers=(f"Content-Length: {BODY_BYTES}",))
    with raw.connected(server) as connection, pytest.raises(ConnectionError):
        connection.sendall(head + bytes(BODY_BYTES))
        connection.sendall(bytes(BODY_BYTES))


def test_the_end_of_a_refused_connection_is_waited_for(start_server):
    server = start_server(command=bounded(LINGER_SECONDS=1))
    before = sockets(server)
    with raw.connected(server) as connection:
        connection.sendall(raw.request("POST", "/api/backup", headers=("Content-Length: 100",)))
        assert answer_of(server, connection) == "401 signature_missing"
        assert sockets(server) > before
        assert eventually(lambda: sockets(server) <= before, 5)


# ---- Where a body waits --------------------------------------------------------------------------------------------


def test_nobody_without_an_account_makes_the_server_keep_a_body(start_server):
    server = start_server()
    before = resident(server)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(raw.connected(server))
            connection.sendall(raw.request("POST", "/api/backup", bytes(BODY_BYTES))[:-1])
            assert answer_of(server, connection) == "401 signature_missing"
        assert not [each for each in descriptors(server) if "(deleted)" in each]
        assert resident(server) < before + BODY_BYTES


@pytest.mark.parametrize("lines", [(), ("Expect: 100-continue",)])
def test_a_body_that_no_operation_takes_is_not_kept(start_server, lines):
    """Its length is not known, so the server asks for it to see whether it is empty. It keeps none of it."""
    server = start_server()
    before = resident(server)
    head = raw.request("GET", "/health", headers=("Transfer-Encoding: chunked", *lines))
    part = b"%x\r\n%s\r\n" % (64 * bounds.KIB, bytes(64 * bounds.KIB))
    with raw.connected(server) as connection:
        connection.sendall(head)
        if lines:
            assert is_asked_for(connection)
        for _ in range(40):
            connection.sendall(part)
        assert not [each for each in descriptors(server) if "(deleted)" in each]
        assert answer_of(server, connection) == "400 malformed_request"
    assert resident(server) < before + 2 * bounds.MIB


def test_a_large_body_waits_beside_the_database(start_server):
    """It never waits in the temporary directory, which does not even exist here."""
    server = start_server(TMPDIR="/nowhere", **MANY)
    user, blob = registered(server), token_bytes(MOST)
    body = body_of(blob)

    def unnamed() -> list[str]:
        folder = str(server.database.parent.resolve())
        return [each for each in descriptors(server) if each.startswith(folder) and "(deleted)" in each]

    with raw.connected(server) as connection:
        connection.sendall(upload_head(server, user, body) + body[:-1])
        assert eventually(lambda: len(unnamed()) == 1)
        connection.sendall(body[-1:])
        assert answer_of(server, connection) == "201"
    assert eventually(lambda: unnamed() == [])
    assert user.fetch_backup().json()["size"] == MOST
    with raw.connected(server) as connection:
        connection.sendall(upload_head(server, user, body) + body[:-1])
        assert eventually(lambda: len(unnamed()) == 1)
    assert eventually(lambda: unnamed() == [])


def test_a_body_of_unknown_length_waits_beside_the_database_too(start_server):
    server = start_server(**MANY)
    user, body = registered(server), body_of(token_bytes(MOST))
    proofs = raw.signed(server, user.credentials, "POST", "/api/backup", body)
    headers = (*proofs, "Content-Type: application/json", "Transfer-Encoding: chunked")
    head = raw.request("POST", "/api/backup", headers=headers)
    with raw.connected(server) as connection:
        connection.sendall(head.replace(raw.HOST, raw.host(server)) + b"%x\r\n%s" % (len(body), body))
        assert eventually(lambda: any("(deleted)" in each for each in descriptors(server)))
        connection.sendall(b"\r\n0\r\n\r\n")
        assert answer_of(server, connection) == "201"


# ---- Connections ---------------------------------------------------------------------------------------------------


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    ("command", "count"),
    [
        (bounded(CONNECTIONS=10), 10),
        (bounded(CONNECTIONS_OF_AN_ADDRESS=10), 10),
        (["sh", "-c", 'ulimit -n 128 && exec "$@"', "sh", *COMMAND], 128 - bounds.RESERVED_DESCRIPTORS),
    ],
    ids=["in all", "of an address", "descriptors"],
)
def test_the_connection_that_waits_longest_is_closed(start_server, command, count):
    """A request in progress has its place, and whoever comes gets one."""
    server = start_server(command=command, **MANY)
    user, body = registered(server), body_of(b"in progress")
    user.session.close()
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(raw.connected(server))
        busy.sendall(upload_head(server, user, body, "Expect: 100-continue"))
        assert is_asked_for(busy)
        idle = [stack.enter_context(raw.connected(server)) for _ in range(count + 20)]
        for number in range(3):
            idle[-1 - number].sendall(HEALTH)
            assert outcome(raw.receive(server, idle[-1 - number], "GET", "/health")) == "200"
        assert not is_open(idle[0]) and not is_open(idle[19]) and is_open(idle[-4])
        busy.sendall(body)
        assert answer_of(server, busy) == "201"
    assert len([line for line in server.log() if line["event"] != "request"]) < 5


FEW_DESCRIPTORS = """
import resource
from server import bounds
bounds.RESERVED_DESCRIPTORS = 0
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
"""


def test_whoever_comes_when_no_descriptor_is_free_is_served_later(start_server):
    server = start_server(command=preceded_by(FEW_DESCRIPTORS))
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(raw.connected(server))
        assert eventually(lambda: any(line["event"] == "not_accepted" for line in server.log()))
    assert {line["errno"] for line in server.log() if line["event"] == "not_accepted"} == {errno.EMFILE}
    assert eventually(lambda: outcome(server.client().get_health()) == "200")


def test_addresses_have_places_of_their_own(start_server):
    server = start_server(command=bounded(CONNECTIONS_OF_AN_ADDRESS=3))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connection_from(server, "127.0.0.3"))
        others = [stack.enter_context(connection_from(server, "127.0.0.2")) for _ in range(6)]
        assert [is_open(each) for each in (first, *others)] == [True, False, False, False, True, True, True]


# Runs where this machine has more addresses of IPv6: four of one /64, and one of another.
OF_ONE_NETWORK = """
import contextlib, json, socket, subprocess, sys
from contract_tests.target.process import ServerProcess
from server_tests.test_bounds import bounded, is_open
from urllib.parse import urlsplit

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
addresses = ["fd00:0:0:2::1", *(f"fd00:0:0:1::{number}" for number in range(1, 5))]
for address in addresses:
    subprocess.run(["ip", "-6", "address", "add", f"{address}/128", "dev", "lo"], check=True)
with ServerProcess(sys.argv[1], command=bounded(CONNECTIONS_OF_AN_ADDRESS=3), HOST="::") as server:
    with contextlib.ExitStack() as stack:
        port = urlsplit(server.base_url).port
        connections = [
            stack.enter_context(socket.create_connection(("::1", port), 10, (address, 0))) for address in addresses
        ]
        print(json.dumps([is_open(each) for each in connections]))
"""


def test_addresses_of_one_ipv6_network_share_their_places(tmp_path):
    """Whoever has one address of IPv6 has 2**64 of them."""
    unshare = ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*unshare, "ip", "-6", "address", "add", "fd00::1/128", "dev", "lo"], check=True)
    except (OSError, subprocess.CalledProcessError):
        not_run("needs a Linux on which this user may add addresses in a network of its own (unshare, ip)")
    command = [*unshare, sys.executable, "-c", OF_ONE_NETWORK, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[true, false, true, true, true]\n", done.stderr


def test_behind_a_proxy_an_address_is_not_that_of_a_connection(start_server):
    server = start_server(command=bounded(CONNECTIONS_OF_AN_ADDRESS=3), FLY_APP_NAME="x")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(raw.connected(server)) for _ in range(6)]
        assert all(is_open(each) for each in connections)


# ---- Requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_proxied", [False, True])
def test_requests_in_progress_of_an_address(start_server, is_proxied):
    server = start_server(
        command=bounded(REQUESTS_OF_AN_ADDRESS=3), **MANY, **({"FLY_APP_NAME": "x"} if is_proxied else {})
    )
    users, body = [registered(server) for _ in range(6)], body_of(b"in progress")

    def begin(user: Any, address: str) -> tuple[socket.socket, bool]:
        line = f"Fly-Client-IP: {address}"
        connection = stack.enter_context(connection_from(server, "127.0.0.9" if is_proxied else address))
        connection.sendall(upload_head(server, user, body, "Expect: 100-continue", line))
        return connection, is_asked_for(connection)

    with contextlib.ExitStack() as stack:
        begun = [begin(user, "127.0.0.2") for user in users[:4]]
        assert [asked for _, asked in begun] == [True, True, True, False]
        refused = raw.receive(server, begun[3][0], "POST", "/api/backup")
        assert (outcome(refused), refused.headers["Retry-After"]) == ("503 unavailable", "2")
        assert begin(users[4], "127.0.0.3")[1]
        begun[0][0].sendall(body)
        assert answer_of(server, begun[0][0]) == "201"
        begun[0][0].sendall(raw.request("GET", "/health").replace(raw.HOST, raw.host(server)))
        raw.receive(server, begun[0][0], "GET", "/health")  # so the upload is over for the server, too
        assert begin(users[5], "127.0.0.2")[1]


@pytest.mark.parametrize(
    ("changed", "size"),
    [({"BODIES_IN_MEMORY": 40_000}, 9_000), ({"SMALL_BODY_BYTES": 1_000, "BODIES_ON_DISK": 40_000}, 9_000)],
    ids=["memory", "disk"],
)
def test_room_for_bodies(start_server, changed, size):
    """There is room for four, and for one of each user. Whoever finds none is not asked for the body."""
    server = start_server(command=bounded(**changed), **MANY)
    users, body = [registered(server) for _ in range(5)], body_of(b"in progress").ljust(size)

    def begin(user: Any) -> tuple[socket.socket, bool]:
        connection = stack.enter_context(raw.connected(server))
        connection.sendall(upload_head(server, user, body, "Expect: 100-continue"))
        return connection, is_asked_for(connection)

    with contextlib.ExitStack() as stack:
        begun = [begin(user) for user in (users[0], users[0], *users[1:])]
        assert [asked for _, asked in begun] == [True, False, True, True, True, False]
        assert answer_of(server, begun[1][0]) == answer_of(server, begun[5][0]) == "503 unavailable"
        begun[0][0].sendall(body)
        assert answer_of(server, begun[0][0]) == "201"
        assert begin(users[4])[1]


@pytest.mark.parametrize("bound", ["UNREAD_ANSWERS", "UNREAD_ANSWERS_OF_AN_ADDRESS"])
def test_room_for_answers(start_server, bound):
    """An answer is whole, or it is a 503."""
    server = start_server(command=bounded(**{bound: 8_000_000}), **MANY)
    user = registered(server)
    assert outcome(user.store_backup(token_bytes(MOST))) == "201"
    fetch = raw.request("GET", "/api/backup", headers=raw.signed(server, user.credentials, "GET", "/api/backup"))
    with (
        connection_from(server, "127.0.0.2", 4096) as first,
        connection_from(server, "127.0.0.2", 4096) as second,
        connection_from(server, "127.0.0.3") as third,
    ):
        first.sendall(fetch)
        assert eventually(lambda: any(line.get("route") == "/api/backup" for line in server.log()[-1:]))
        second.sendall(fetch)
        assert outcome(raw.receive(server, second, "GET", "/api/backup")) == "503 unavailable"
        third.sendall(fetch)
        wants = "503 unavailable" if bound == "UNREAD_ANSWERS" else "200"
        assert outcome(raw.receive(server, third, "GET", "/api/backup")) == wants
        assert outcome(user.list_backup_versions()) == "200"
        assert raw.receive(server, first, "GET", "/api/backup").json()["size"] == MOST
    assert outcome(user.fetch_backup()) == "200"


# ---- Lanes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "at_once"),
    [
        ({"WRITES": "1,2"}, 1),
        ({"LARGE_WRITES": "1,2", "SMALL_BODY_BYTES": 10}, 1),
        ({"WRITES": "1,9", "QUEUE_SECONDS": 1, "DISK_SECONDS": 4}, 0),
    ],
)
def test_uploads_that_wait_hold_up_nothing_else(start_server, changed, at_once):
    """One upload waits for the disk, and the others for their turn in a lane. Past a bound, they get a 503."""
    server = start_server(command=bounded(**changed), **MANY)
    users = [registered(server) for _ in range(4)]
    reader = registered(server)
    assert outcome(reader.store_backup(b"to be read")) == "201"
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(contextlib.closing(sqlite3.connect(server.database, isolation_level=None)))
        database.execute("BEGIN IMMEDIATE")
        waiting = []
        for user in users:
            body = body_of(b"waits")
            waiting.append(stack.enter_context(raw.connected(server)))
            waiting[-1].sendall(upload_head(server, user, body) + body)
            time.sleep(0.2)
        assert [outcome(call()) for call in (reader.get_health, reader.fetch_backup)] == ["200", "200"]
        assert outcome(reader.request("POST", "/api/backup", body=b"no JSON")) != "503 unavailable"
        refused = waiting[3] if at_once else waiting[1]
        assert answer_of(server, refused) == "503 unavailable"
        database.execute("ROLLBACK")
        assert answer_of(server, waiting[0]) == "201"


def test_reads_that_wait(start_server, tmp_path):
    """One read waits for the disk, and one for its turn. The others get a 503, at once."""
    stall = tmp_path / "stall"
    server = start_server(command=[*bounded(READS="1,1"), "--stall", str(stall)], **MANY)
    users = [registered(server) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        stall.touch()
        waiting = []
        for user in users:
            headers = raw.signed(server, user.credentials, "GET", "/api/backup/versions")
            waiting.append(stack.enter_context(raw.connected(server)))
            waiting[-1].sendall(raw.request("GET", "/api/backup/versions", headers=headers))
            time.sleep(0.2)
        for connection in waiting[2:]:
            answer = raw.receive(server, connection, "GET", "/api/backup/versions")
            assert outcome(answer) == "503 unavailable" and answer.headers["Retry-After"]
        stall.unlink()
        for connection in waiting[:2]:
            assert outcome(raw.receive(server, connection, "GET", "/api/backup/versions")) == "200"


# ---- The stop ------------------------------------------------------------------------------------------------------


def test_a_request_that_is_half_there_does_not_hold_up_a_stop(start_server):
    server = start_server(command=bounded(DRAIN_INCOMPLETE_SECONDS=0.5), **MANY)
    user, body = registered(server), body_of(b"half")
    with raw.connected(server) as head, raw.connected(server) as half, raw.connected(server) as refused:
        head.sendall(b"GET /health HT")
        half.sendall(upload_head(server, user, body) + body[:-1])
        refused.sendall(raw.request("POST", "/api/backup", headers=("Content-Length: 100",)))
        assert answer_of(server, refused) == "401 signature_missing"
        server.process.terminate()
        assert server.process.wait(5) == 0


def test_what_has_begun_to_arrive_is_answered_during_a_stop(start_server):
    """The rest of an upload arrives, and the rest of an answer is read."""
    server = start_server(command=bounded(DRAIN_INCOMPLETE_SECONDS=15), **MANY)
    user, reader, body = registered(server), registered(server), body_of(b"half")
    assert outcome(reader.store_backup(token_bytes(MOST))) == "201"
    headers = raw.signed(server, reader.credentials, "GET", "/api/backup")
    with raw.connected(server) as half, connection_from(server, "127.0.0.2", 4096) as slow:
        half.sendall(upload_head(server, user, body) + body[:-1])
        slow.sendall(raw.request("GET", "/api/backup", headers=headers))
        assert slow.recv(1, socket.MSG_PEEK)
        server.process.terminate()
        assert eventually(lambda: any(line["event"] == "stopping" for line in server.log()))
        half.sendall(body[-1:])
        assert answer_of(server, half) == "201"
        assert raw.receive(server, slow, "GET", "/api/backup").json()["size"] == MOST
    assert server.process.wait(10) == 0


def test_whoever_sends_a_refused_body_sees_the_answer_during_a_stop(start_server):
    server = start_server()
    with raw.connected(server) as connection:
        request = raw.request("POST", "/api/backup", bytes(BODY_BYTES))
        connection.sendall(request[:BODY_BYTES])
        server.process.terminate()
        time.sleep(0.3)
        connection.sendall(request[BODY_BYTES:])
        assert answer_of(server, connection) == "401 signature_missing"
    assert server.process.wait(10) == 0


def test_whoever_reads_nothing_does_not_hold_up_a_stop_for_long(start_server):
    server = start_server(command=bounded(DRAIN_SECONDS=1), **MANY)
    user = registered(server)
    assert outcome(user.store_backup(token_bytes(MOST))) == "201"
    headers = raw.signed(server, user.credentials, "GET", "/api/backup")
    with connection_from(server, "127.0.0.2", 4096) as connection:
        connection.sendall(raw.request("GET", "/api/backup", headers=headers))
        assert connection.recv(1)
        server.process.terminate()
        assert server.process.wait(8) == 0


# ---- Memory --------------------------------------------------------------------------------------------------------

SMALLEST = 12_000_000  # two bodies of 5 MiB would be more
REFUSALS: dict[str, tuple[Callable[[], bytes], str]] = {
    "stale base": (lambda: body_of(token_bytes(MOST), b"another"), "409 version_conflict"),
    "a byte too much": (lambda: body_of(token_bytes(MOST + 1)), "413 payload_too_large"),
    "emoji": (
        lambda: body_of(token_bytes(MOST))[:-1] + ',"\U0001f3cb":1}'.encode(),
        "422 validation_failed",
    ),
    "no JSON": (lambda: body_of(token_bytes(MOST))[:-1], "400 malformed_request"),
    "unsigned": (lambda: bytes(BODY_BYTES), "401 signature_missing"),
}
THEN_SERVE = """
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def preceded_by(script: str) -> list[str]:
    """Return the command of a server in whose process this script has run before."""
    interpreter, *rest = COMMAND
    assert interpreter == sys.executable
    place = next(number for number, each in enumerate(rest) if each.endswith(".py"))
    return [interpreter, *rest[:place], "-c", script + THEN_SERVE, *rest[place:]]


@pytest.fixture(scope="module")
def collectorless(start_shared_server):
    """A server that has no cyclic garbage collector."""
    return start_shared_server(command=preceded_by("import gc; gc.disable()"), **MANY)


@pytest.mark.parametrize("name", REFUSALS)
def test_no_circle_keeps_a_refused_body(collectorless, name):
    if platform.libc_ver()[0] != "glibc":
        not_run("needs glibc, which gives memory back if it is told to")
    make, wants = REFUSALS[name]
    user, body = registered(collectorless), make()

    def refuse(times: int) -> int:
        for _ in range(times):
            proofs = (
                () if name == "unsigned" else raw.signed(collectorless, user.credentials, "POST", "/api/backup", body)
            )
            request = raw.request("POST", "/api/backup", body, (*proofs, "Content-Type: application/json"))
            assert outcome(raw.send(collectorless, request)) == wants
        return resident(collectorless)

    first = refuse(3)
    assert refuse(8) < first + SMALLEST


def test_what_large_requests_took_is_given_back(start_server):
    """Otherwise each thread keeps some of it."""
    if platform.libc_ver()[0] != "glibc":
        not_run("needs glibc, which gives memory back if it is told to")
    server = start_server(**MANY)
    users = [registered(server) for _ in range(4)]
    before = resident(server)

    def work(user: Any) -> None:
        assert outcome(user.store_backup(token_bytes(MOST))) == "201"
        assert outcome(user.fetch_backup()) == "200"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, users))
    assert eventually(lambda: resident(server) < before + 15_000_000)


def test_a_large_body_that_cannot_be_kept_is_in_the_log(start_server, tmp_path):
    """The folder takes no new file. Nothing else tells the operator why large uploads fail."""
    try:
        with small_file_system(tmp_path, 64_000_000) as disk:
            server = start_server(DATABASE_PATH=disk / "backup.db", **MANY)
            user = server.client()
            assert outcome(user.register_user()) == "201"
            assert eventually((disk / "backup.db-ballast").exists)
            usage = os.statvfs(disk)
            files = f"nr_inodes={usage.f_files - usage.f_ffree}"
            if subprocess.run(["mount", "-o", f"remount,{files}", disk], check=False).returncode:
                not_run("needs a file system whose number of files can be limited")
            assert outcome(user.store_backup(token_bytes(2_000_000))) == "503 unavailable"
            assert outcome(user.store_backup(b"small")) == "201"
            assert [line["errno"] for line in server.log() if line["event"] == "body_not_kept"] == [errno.ENOSPC]
            server.stop()
    except NotRun as error:
        not_run(str(error))
