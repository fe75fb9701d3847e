"""Requests that try to occupy threads or memory, a stop during such requests, and replays after a jump of the clock."""

import signal
import time
from contextlib import ExitStack
from typing import Any

import pytest

from contract_tests.target import openapi, raw
from contract_tests.target.calls import eventually, outcome, sha256
from contract_tests.target.process import COMMAND
from contract_tests.test_http import to_the_end

FROZEN = 1_795_510_800
HEADER_BYTES = openapi.LIMITS["requestHeaderBytes"]
CHUNKED = raw.request("POST", "/api/backup", headers=("Transfer-Encoding: chunked",))


def signed(target: Any, user: Any, method: str, path: str) -> bytes:
    return raw.request(method, path, headers=raw.signed(target, user.credentials, method, path))


# ---- Requests that are sent ahead --------------------------------------------------------------------------


def test_clients_that_read_nothing_hold_neither_threads_nor_the_stop(start_server):
    """Each gets a whole answer or a 503. One client starts to read during the stop, and still gets both of its."""
    server = start_server(command=[*COMMAND, "--bound", "DRAIN_SECONDS=2"])
    user = server.client(timeout=5)
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(bytes(5_242_880))) == "201"  # more than the kernel buffers for a client
    fetch = signed(server, user, "GET", "/api/backup")

    def fetches() -> int:
        return sum((line.get("method"), line.get("route")) == ("GET", "/api/backup") for line in server.log())

    with ExitStack() as stack:
        connections = [stack.enter_context(raw.connected(server)) for _ in range(5)]
        for connection in connections:
            connection.sendall(8 * fetch)
        assert eventually(lambda: fetches() >= 2 * len(connections))
        assert outcome(user.get_health()) == "200"
        server.send_signal(signal.SIGTERM)
        received = to_the_end(connections[0])
        answers = [raw.receive(server, received, "GET", "/api/backup") for _ in range(2)]
        assert answers[0].json()["size"] == 5_242_880
        assert outcome(answers[1]) in ("200", "503 unavailable")
        try:
            assert server.process.wait(10) == 0
        finally:
            server.kill()
    assert fetches() == 2 * len(connections)


# ---- Framing and bodies --------------------------------------------------------------------------------------

UNENDED = {  # what comes before the endless part, and how that part begins
    "a chunk's size": (b"", b"0"),
    "a chunk's extension": (b"", b"0;"),
    "a later chunk's size": (b"1\r\nx\r\n", b"0"),
    "a trailer": (b"0\r\n", b"X: "),
    "many trailers": (b"0\r\n", b"X: y\r\n" * 2_000),
}


def test_a_silent_body_is_waited_for(start_server):
    """The server closes an idle connection without an answer. A body has its time all the same, and then gets a 408."""
    server = start_server(command=[*COMMAND, "--bound", "HEAD_SECONDS=1"], frozen=1_800_000_000)
    user = server.client()
    assert outcome(user.register_user()) == "201"
    proofs = raw.signed(server, user.credentials, "POST", "/api/backup", b"{}")
    head = raw.request("POST", "/api/backup", headers=(*proofs, "Content-Type: application/json", "Content-Length: 2"))
    with raw.connected(server) as idle, raw.connected(server) as connection:
        connection.sendall(head + b"{")
        assert idle.recv(1) == b""  # a connection without a request has ended meanwhile
        time.sleep(2.5)
        server.move_clock(openapi.LIMITS["requestBodySeconds"] + 1)
        assert outcome(raw.receive(server, connection, "POST", "/api/backup")) == "408 request_timeout"


@pytest.mark.parametrize(("before", "begin"), UNENDED.values(), ids=UNENDED)
@pytest.mark.parametrize("wants", ["400 malformed_request", "401 signature_missing"])
def test_framing_without_end(target, new_user, before, begin, wants):
    """A chunk's line, and the trailer, have the same limit as the headers. What the head tells comes first."""
    proofs = raw.signed(target, new_user().credentials, "POST", "/api/backup") if wants.startswith("400") else ()
    headers = (*proofs, "Content-Type: application/json", "Transfer-Encoding: chunked")
    unended = begin.ljust(HEADER_BYTES + 1, b"0")
    with raw.connected(target) as connection:
        connection.sendall(raw.request("POST", "/api/backup", headers=headers) + before)
        for start in range(0, len(unended), 4_000):
            connection.sendall(unended[start : start + 4_000])
        received = to_the_end(connection)
    answer = raw.receive(target, received, "POST", "/api/backup")
    assert (outcome(answer), answer.headers["Connection"]) == (wants, "close")
    assert received.read() == b""


@pytest.mark.parametrize(("before", "begin"), UNENDED.values(), ids=UNENDED)
def test_long_framing_that_ends(target, before, begin):
    """Send as much as the limit allows, in two parts. Then the server reads the request and checks its proofs."""
    end, more = (b"\r\n\r\n", b"") if before.startswith(b"0") else (b"", b"\r\n\r\n")
    with raw.connected(target) as connection:
        connection.sendall(CHUNKED + before + begin.ljust(HEADER_BYTES - len(end), b"0"))
        time.sleep(0.05)
        connection.sendall(end + more)
        assert outcome(raw.receive(target, connection, "POST", "/api/backup")) == "401 signature_missing"


# ---- Replays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [700, -700, 7 * 3600, 86_401])
def test_a_signature_stays_spent_when_the_clock_jumps(start_server, jump):
    """While the clock is wrong, an old client stores the same bytes again, so that the base of the replay fits."""
    server = start_server(frozen=FROZEN)
    user = server.client()
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(b"A")) == "201"
    captured = user.store_backup(b"B", sha256(b"A"))
    assert outcome(captured) == "201"

    def replay() -> str:
        before = user.list_backup_versions().json(), user.fetch_backup().json()
        replayed = outcome(user.session.send(captured.request, timeout=30))
        assert (user.list_backup_versions().json(), user.fetch_backup().json()) == before
        return replayed

    server.move_clock(jump)
    assert outcome(user.store_backup(b"A", sha256(b"B"))) == "201"
    assert replay() == "401 signature_expired"
    server.move_clock(-jump)
    assert replay() == "409 version_conflict"
    server.move_clock(86_400)
    assert replay() == "401 signature_expired"
