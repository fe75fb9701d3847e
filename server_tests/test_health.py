"""What /health tells, and what it costs: the watch over reads, failed writes, little space, a clock that is off."""

import contextlib
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import eventually, outcome, sha256
from contract_tests.target.openapi import REPOSITORY, SPEC
from contract_tests.target.process import COMMAND
from server import bounds, clock, health
from server.accounts import StorageUnavailable
from server.clock import DAY, ClockCheck
from server.health import PARTS, Watch
from server_tests.memory_store import MemoryStore
from server_tests.test_bounds import bounded


class SickStore(MemoryStore):
    """A store whose check fails or waits if a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()

    def check(self) -> None:
        assert self.goes_on.wait(30)
        if self.failure:
            raise self.failure


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SickStore]:
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(bounds, "HEALTH_SECONDS", 0.5)
    store = SickStore()
    yield store
    store.goes_on.set()


def is_well(watch: Watch) -> bool:
    try:
        watch.check()
    except StorageUnavailable:
        return False
    return True


@pytest.mark.parametrize("failure", [StorageUnavailable("for the test"), ZeroDivisionError()])
def test_a_store_that_fails_and_recovers(store, failure):
    """Even an error that nobody foresaw does not end the watch."""
    with contextlib.closing(Watch(store)) as watch:
        assert is_well(watch)  # the first look has ended
        store.failure = failure
        assert eventually(lambda: not is_well(watch))
        store.failure = None
        assert eventually(lambda: is_well(watch))


def test_a_look_that_does_not_end(store):
    with contextlib.closing(Watch(store)) as watch:
        store.goes_on.clear()
        assert eventually(lambda: not is_well(watch))
        store.goes_on.set()
        assert eventually(lambda: is_well(watch))


def test_a_store_that_stalls_from_the_start(store):
    """The server starts all the same, and stops."""
    store.goes_on.clear()
    started = time.monotonic()
    with contextlib.closing(Watch(store)) as watch:
        assert not is_well(watch)
    assert time.monotonic() - started < 5


def test_a_watch_that_is_closed_looks_no_more(store):
    watch = Watch(store)
    watch.close()
    assert not watch._thread.is_alive()


# ---- The parts ---------------------------------------------------------------------------------------------


def degraded(server) -> list[str]:
    answer = server.client().get_health()
    assert answer.status_code == 200
    return answer.json().get("degraded", [])


def test_the_parts_are_those_of_the_contract_and_of_the_runbook():
    text = SPEC["components"]["schemas"]["Health"]["properties"]["degraded"]["description"]
    assert tuple(re.findall(r"^- `(\w+)`:", text, re.MULTILINE)) == PARTS
    runbook = (REPOSITORY / "docs" / "operations.md").read_text().partition("\n## Degraded\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", runbook, re.MULTILINE)) == PARTS


def test_a_disk_that_takes_nothing_is_noticed_before_anybody_stores(start_server):
    """The server writes something now and then. What a probe finds is what that write has found."""
    server = start_server(command=bounded(PROBE_SECONDS=0.2))
    assert degraded(server) == []
    server.fault = "storage_full"
    assert eventually(lambda: degraded(server) == ["writes"])
    server.fault = None
    time.sleep(6)  # until the server has tried again
    assert degraded(server) == ["writes"]
    server.move_clock(600)
    assert degraded(server) == []


def test_a_write_that_stalls_is_told_and_holds_up_no_probe(start_server):
    """Another program holds the lock on the file, so that SQLite waits for it."""
    server = start_server()
    user = server.client()
    assert outcome(user.register_user()) == "201"
    with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        upload = threading.Thread(target=user.store_backup, args=(b"waits",))
        upload.start()
        slowest = 0.0
        while upload.is_alive():
            began = time.perf_counter()
            degraded(server)
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.01)
        assert degraded(server) == ["writes"]
        connection.execute("ROLLBACK")
    assert slowest < 1


def test_little_space_is_told(start_server):
    """On a volume that has only the reserve, nobody can store anything, however little is used."""
    server = start_server(volume=bounds.MIB * 30)
    assert eventually(lambda: degraded(server) == ["space"])
    assert outcome(server.client().register_user()) == "507 storage_full"


# ---- The clock ---------------------------------------------------------------------------------------------


@pytest.fixture
def jump(start_server, tmp_path):
    """A server, and a function that sets its clock, so that it is some seconds ahead of the right time."""
    file = tmp_path / "jump"
    server = start_server(command=[*COMMAND, "--jump", str(file)])

    def set_clock(seconds: float) -> None:
        new = file.with_name("new")
        new.write_text(str(seconds))
        new.replace(file)

    return server, set_clock


def test_the_tolerance_is_that_of_the_contract():
    assert SPEC["x-limits"]["signatureSkewSeconds"] * 1000 == clock.TOLERANCE


@pytest.mark.parametrize("seconds", [302, -302, 86_400 * 30])
def test_a_clock_that_is_set_is_in_doubt_until_it_is_right(jump, seconds):
    server, set_clock = jump
    set_clock(seconds)
    assert eventually(lambda: degraded(server) == ["clock"])
    set_clock(290 if seconds > 0 else -290)
    assert eventually(lambda: degraded(server) == [])
    assert [line["state"] for line in server.log() if line["event"] == "clock"] == ["off", "right"]


def test_a_clock_that_was_set_is_believed_after_a_day(jump):
    server, set_clock = jump
    set_clock(-3600)
    assert eventually(lambda: degraded(server) == ["clock"])
    server.move_clock(86_390)
    time.sleep(1.5)
    assert degraded(server) == ["clock"]
    server.move_clock(11)
    assert eventually(lambda: degraded(server) == [])


def test_a_clock_that_is_behind_the_store_at_the_start(jump):
    server, set_clock = jump
    server.stop()
    set_clock(-400)
    server.start()
    assert eventually(lambda: degraded(server) == ["clock"])
    server.restart()  # what the store knows does not go back with the clock
    assert eventually(lambda: degraded(server) == ["clock"])
    set_clock(0)  # now it is right, and that is no jump
    assert eventually(lambda: degraded(server) == [])
    set_clock(-302)
    assert eventually(lambda: degraded(server) == ["clock"])


def test_no_client_puts_the_clock_in_doubt(start_server):
    server = start_server()
    for offset in (-86_400, 86_400):
        user = server.client(clock=lambda offset=offset: time.time() + offset)
        for _ in range(20):
            assert outcome(user.register_user()) == "401 signature_expired"
    time.sleep(1.2)
    assert degraded(server) == []


def test_what_a_clock_check_believes(monkeypatch):
    moment = {"now": 10 * DAY, "uptime": 5}
    monkeypatch.setattr(clock, "now", lambda: moment["now"])
    monkeypatch.setattr(clock, "uptime", lambda: moment["uptime"])
    check = ClockCheck(moment["now"] + clock.TOLERANCE)
    assert not check.is_off and check.stamp() == 10 * DAY
    check = ClockCheck(moment["now"] + clock.TOLERANCE + 1)
    assert check.is_off and check.stamp() == 10 * DAY + clock.TOLERANCE + 1  # a restart asks again
    moment["now"] += 1
    check.look()
    assert not check.is_off
    for _ in range(10):  # small steps add up
        moment["now"] += clock.TOLERANCE // 9
        check.look()
    assert check.is_off and check.stamp() == 10 * DAY + clock.TOLERANCE + 1
    moment["now"] += DAY  # the machine ran for a day
    moment["uptime"] += DAY + 1
    check.look()
    assert not check.is_off and check.stamp() == moment["now"]


# ---- What a probe costs ------------------------------------------------------------------------------------

WRITES = ("fdatasync", "fsync", "pwrite64", "pwritev", "ftruncate", "fallocate")


@contextlib.contextmanager
def writes_of(server, file) -> Iterator[None]:
    """During this block, `file` gets a line for each call of the kernel by which the server writes to a file."""
    if not shutil.which("strace"):
        not_run("needs strace (Debian: apt-get install strace)")
    command = ["strace", "-f", "-q", "-o", str(file), "-e", f"trace={','.join(WRITES)}", "-p", str(server.process.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        try:
            time.sleep(0.5)
            if tracer.poll() is not None:
                not_run(f"strace may not trace: {tracer.stderr.read().decode().strip()}")
            yield
        finally:
            tracer.send_signal(signal.SIGINT)


@pytest.mark.parametrize("fault", [None, "storage_full"])
def test_a_probe_writes_nothing(start_server, tmp_path, fault):
    """A thousand probes write nothing to a file. An upload does."""
    server = start_server(command=bounded(PROBE_SECONDS=600, EMPTY_LOG_SECONDS=0.1))
    user = server.client()
    assert outcome(user.register_user()) == "201"
    if fault:
        server.fault = fault
        assert outcome(user.store_backup(b"x")) == "507 storage_full"
        server.fault = None
        assert outcome(user.store_backup(b"y")) == "201"
    time.sleep(1.5)  # until the housekeeper has nothing to do
    with writes_of(server, tmp_path / "trace"):
        for _ in range(1000):
            assert user.get_health().status_code == 200
        assert degraded(server) == (["writes"] if fault else [])
        assert (tmp_path / "trace").read_text() == ""
        assert outcome(user.store_backup(b"z", sha256(b"y") if fault else None)) == "201"
        assert eventually(lambda: "fdatasync" in (tmp_path / "trace").read_text())
