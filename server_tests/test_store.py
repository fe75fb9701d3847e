"""The server's file: what is in it, what is no longer in it, and what a crash or a snapshot leaves of it.

It is an SQLite database with one table, `Dict`, of `key` and `value`.
"""

import contextlib
import functools
import random
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_bytes, token_hex
from typing import Any

import pytest
import requests

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target.calls import FromAddress, at_once, counts, eventually, outcome, sha256
from contract_tests.target.openapi import RESERVED
from contract_tests.target.process import COMMAND, ServerProcess

MANY = {
    "BACKUPS_PER_HOUR": 100_000,
    "BACKUPS_PER_DAY": 100_000,
    "REGISTRATIONS_PER_HOUR": 100_000,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 100_000,
}
GONE = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


def values(database: Path, part: bytes) -> int:
    """Return how many values in the file contain these bytes."""
    return count(database, "SELECT count(*) FROM Dict WHERE instr(value, ?)", part)


def keys(database: Path, part: str) -> int:
    """Return how many keys or values in the file contain this text."""
    return count(database, "SELECT count(*) FROM Dict WHERE instr(key, ?1) OR instr(value, ?1)", part.encode())


def count(database: Path, query: str, part: bytes) -> int:
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query, (part,)).fetchone()[0]


@pytest.fixture
def server(start_server) -> ServerProcess:
    return start_server(**MANY)


@pytest.fixture
def user(server) -> BackupClient:
    user = server.client()
    assert user.register_user().status_code == 201
    return user


def test_the_database_stays_level(start_server):
    """Later versions use the space of dropped ones: 60 uploads of 200 kB, a day apart, take no more than 20."""
    server = start_server(frozen=1_793_523_600, **MANY)
    user = server.client()
    assert user.register_user().status_code == 201
    chance, base, sizes = random.Random(1), None, []
    for _ in range(60):
        blob = chance.randbytes(200_000)
        server.move_clock(86_400)
        assert user.store_backup(blob, base).status_code == 201
        base = sha256(blob)
        stats = server.client().get_admin_stats(server.admin_key)
        sizes.append(stats.json()["databaseBytes"])
    assert max(sizes[20:]) <= max(sizes[:20]) * 1.1
    assert max(sizes) < 4 * 9 * 200_000


def test_the_statistics_count_the_file(start_server):
    server = start_server()
    answer = server.client().get_admin_stats(server.admin_key)
    assert answer.json()["databaseBytes"] >= server.database.stat().st_size > 0


def test_restored_from_an_older_snapshot(server, user):
    """A device that knows versions which the server has lost is refused, and learns the current version."""
    blobs = [None, *(token_bytes(1000) for _ in range(4))]
    for before, blob in zip(blobs[:2], blobs[1:3], strict=True):
        assert user.store_backup(blob, sha256(before)).status_code == 201
    server.stop()
    snapshot = shutil.copy(server.database, server.directory / "snapshot")
    user.base_url = server.start().base_url
    assert user.store_backup(blobs[3], sha256(blobs[2])).json()["version"] == 3
    lost = user.fetch_backup()
    server.stop()
    shutil.copy(snapshot, server.database)
    user.base_url = server.start().base_url

    refused = user.store_backup(blobs[4], lost.json()["sha256"])
    assert (outcome(refused), refused.json()["currentVersion"]) == ("409 version_conflict", 2)
    assert user.store_backup(blobs[4], sha256(blobs[2])).json()["version"] == 3  # not the lost version 3
    fetched = user.fetch_backup(if_none_match=lost.headers["ETag"])
    assert (fetched.status_code, backup_bytes(fetched)) == (200, blobs[4])


# ---- Deletion ----------------------------------------------------------------------------------------------


def test_nothing_of_a_deleted_user_is_left_but_the_name(server, user):
    user_id, _ = user.credentials
    mark, base = token_bytes(16), None
    for number in range(12):
        blob = mark + token_bytes(10_000 + number)
        assert user.store_backup(blob, base).status_code == 201
        base = sha256(blob)
    assert values(server.database, mark) >= 4
    assert user.delete_user().status_code == 204
    assert values(server.database, mark) == 0
    assert keys(server.database, user_id) == 1


def test_a_deletion_cut_short_is_finished_at_the_next_start(start_server):
    server = start_server(KEEP_VERSIONS="40,0,0,0", **MANY)
    user = server.client()
    assert user.register_user().status_code == 201
    mark, base = token_bytes(16), None
    for _ in range(40):
        blob = mark + token_bytes(1_000_000)
        assert user.store_backup(blob, base).status_code == 201
        base = sha256(blob)

    observer = server.client(user.credentials)
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(user.delete_user)
        while observer.list_backup_versions().status_code == 200:
            pass
        server.kill()  # it has taken effect, but 40 MB are still being deleted
    if not isinstance(deletion.exception(), GONE):
        pytest.skip("not run: the deletion was done before the server could be killed")
    assert values(server.database, mark) > 0

    user.base_url = server.start().base_url
    assert user.list_backup_versions().status_code == 401
    assert outcome(user.register_user()) == "409 recently_deleted"
    assert counts(server) == {"users": 0, "backups": 0, "versions": 0}
    server.stop()
    assert values(server.database, mark) == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_a_deleted_userid_is_forgotten_after_901_seconds(start_server, restarted):
    server = start_server(frozen=1_795_510_800, **MANY)
    gone, back = server.client(), server.client()
    for user in (gone, back):
        assert user.register_user().status_code == 201
        assert user.store_backup(b"a backup").status_code == 201
        assert user.delete_user().status_code == 204

    server.move_clock(RESERVED - 1)
    if restarted:
        gone.base_url = back.base_url = server.restart().base_url
    time.sleep(1.5)  # give housekeeping time to do it too early
    for user in (gone, back):
        answer = user.register_user()
        assert (outcome(answer), answer.headers["Retry-After"]) == ("409 recently_deleted", "1")
        assert keys(server.database, user.credentials[0]) == 1

    server.move_clock(1)
    assert back.register_user().status_code == 201
    assert outcome(back.fetch_backup()) == "404 no_backup"
    assert back.store_backup(b"a backup").json()["version"] == 1
    assert eventually(lambda: keys(server.database, gone.credentials[0]) == 0)
    time.sleep(1.5)
    assert back.fetch_backup().status_code == 200  # the server must not forget the new account
    assert counts(server) == {"users": 1, "backups": 1, "versions": 1}
    assert back.delete_user().status_code == 204  # this reserves the name again
    server.move_clock(RESERVED - 1)
    assert outcome(back.register_user()) == "409 recently_deleted"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_ran_ahead_reserves_no_userid_for_longer(start_server, restarted):
    """A deletion that is stamped a month ahead reserves the userId for 901 seconds, too."""
    server = start_server(frozen=1_795_510_800, **MANY)
    gone, back = server.client(), server.client()
    for user in (gone, back):
        assert user.register_user().status_code == 201
    server.move_clock(30 * 86_400)
    for user in (gone, back):
        assert user.delete_user().status_code == 204
    server.move_clock(-30 * 86_400)
    if restarted:
        gone.base_url = back.base_url = server.restart().base_url
    answer = back.register_user()
    assert (outcome(answer), answer.headers["Retry-After"]) == ("409 recently_deleted", str(RESERVED))
    server.move_clock(RESERVED - 1)
    assert outcome(back.register_user()) == "409 recently_deleted"
    server.move_clock(1)
    assert back.register_user().status_code == 201
    if restarted:
        assert eventually(lambda: keys(server.database, gone.credentials[0]) == 0)


# ---- A disk that fails -------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(server: ServerProcess, call: str, when: str) -> Iterator[None]:
    """Let the system call `call` of each of the server's threads fail with EIO: the first one, or each ("1+")."""
    if not shutil.which("strace"):
        pytest.skip("not run: there is no strace")
    command = ["strace", "-qq", "-f", "-o", "/dev/null", "-p", str(server.process.pid), "-e", f"trace={call}"]
    inject = f"inject={call}:error=EIO:when={when}"
    with subprocess.Popen([*command, "-e", inject], stderr=subprocess.PIPE, text=True) as process:
        try:
            traced = f"/proc/{server.process.pid}/status"
            if not eventually(lambda: "TracerPid:\t0" not in Path(traced).read_text() or process.poll() is not None):
                pytest.skip("not run: strace does not come to trace")
            if process.poll() is not None:
                pytest.skip(f"not run: {process.stderr.read().strip()}")
            time.sleep(0.2)  # until it has all threads
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("when", ["1", "1+"])
def test_a_commit_that_failed_does_not_come_back(server, user, when):
    """A deletion is refused because the disk does not sync. After a crash, the account still has its backup."""
    assert user.store_backup(b"a backup").status_code == 201
    with failing(server, "fdatasync", when):
        assert outcome(user.delete_user()) == "503 unavailable"
        server.kill()
    user.base_url = server.start().base_url
    assert outcome(user.fetch_backup()) == "200"


# ---- A disk that stalls ------------------------------------------------------------------------------------


@contextlib.contextmanager
def stalled(database: Path) -> Iterator[None]:
    """Hold the lock that every write needs. SQLite waits for it for 5 seconds, as for a disk that stalls."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the answer to a call, and how many seconds it took."""
    started = time.monotonic()
    return call(), time.monotonic() - started


def test_a_stalled_disk_holds_up_nothing_but_changes(start_server):
    """Changes get a 503 in time, and the first of them happens later. Meanwhile, everything else is answered."""
    server = start_server(command=[*COMMAND, "--bound", "TURN_SECONDS=0.3", "--bound", "DISK_SECONDS=1"], **MANY)
    user, others = server.client(), [server.client() for _ in range(3)]
    for each in (user, *others):
        assert each.register_user().status_code == 201
    assert user.store_backup(b"the first").status_code == 201
    base, blobs = sha256(b"the first"), [b"one", b"two", b"three"]
    uploads = [functools.partial(server.client(user.credentials).store_backup, blob, base) for blob in blobs]
    uploads += [functools.partial(other.store_backup, b"a backup") for other in others]
    reader, done = server.client(user.credentials), threading.Event()

    def read() -> float:
        slowest = 0.0
        while not done.is_set():
            for call in (reader.get_health, reader.fetch_backup, reader.list_backup_versions):
                answer, seconds = timed(call)
                assert outcome(answer) == "200"
                slowest = max(slowest, seconds)
        return slowest

    with ThreadPoolExecutor(1) as pool, stalled(server.database):
        reading = pool.submit(read)
        try:
            answers = [timed(uploads[0])]  # it has its turn
            answers += at_once([functools.partial(timed, upload) for upload in uploads[1:]])
        finally:
            done.set()
    for answer, seconds in answers:
        assert outcome(answer) == "503 unavailable"
        assert int(answer.headers["Retry-After"]) >= 1
        assert seconds < 4.5
    assert reading.result() < 2

    assert eventually(lambda: counts(server)["versions"] == 2)
    repeated = [outcome(upload()) for upload in uploads]
    assert repeated == ["200", *["409 version_conflict"] * 2, *["201"] * 3]
    versions = user.list_backup_versions().json()["versions"]
    assert [version["version"] for version in versions] == [2, 1]
    assert backup_bytes(user.fetch_backup()) == b"one"
    assert counts(server) == {"users": 4, "backups": 4, "versions": 5}


def test_a_registration_that_stalls_is_not_counted(start_server):
    """The account exists afterwards, but whoever repeats while the disk stalls keeps the rest of the quota."""
    bounds = ("--bound", "TURN_SECONDS=0.1", "--bound", "DISK_SECONDS=0.2")
    server = start_server(command=[*COMMAND, *bounds], REGISTRATIONS_PER_HOUR=2)
    first, second = server.client(), server.client()
    with stalled(server.database):
        for _ in range(4):
            assert outcome(first.register_user()) == "503 unavailable"
    assert eventually(lambda: counts(server)["users"] == 1)
    assert outcome(first.register_user()) == "200"
    for user, wants in [(second, "201"), (server.client(), "201"), (server.client(), "429 rate_limited")]:
        assert outcome(user.register_user()) == wants


def test_a_key_that_changes_late_makes_addresses_unknown(start_server):
    """While the disk stalls, a thief comes in with the old key. His address is known for no longer than that key."""
    bounds = ("--bound", "DISK_SECONDS=0.5")
    server = start_server(command=[*COMMAND, *bounds], FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY=1)
    owner = server.client()
    user_id, _ = owner.credentials
    thief, stranger = server.client(owner.credentials), server.client((user_id, token_hex(32)))
    thief.session.mount("http://", FromAddress("127.0.0.2"))
    stranger.session.mount("http://", FromAddress("127.0.0.3"))
    new_key = token_hex(32)
    assert outcome(owner.register_user()) == "201"
    with stalled(server.database):
        assert outcome(owner.change_storage_key(new_key, b"a backup")) == "503 unavailable"
        assert outcome(thief.list_backup_versions()) == "200"
    owner = server.client((user_id, new_key))
    assert eventually(lambda: outcome(owner.list_backup_versions()) == "200")
    assert outcome(stranger.list_backup_versions()) == "401 credentials_invalid"  # the limit of the account is reached
    answers = [outcome(thief.list_backup_versions()) for _ in range(3)]
    assert answers == ["401 credentials_invalid"] * 2 + ["429 rate_limited"]  # as from any new address


def test_health_while_reads_stall(start_server, tmp_path):
    """It is answered within a second all the time. After a few seconds, it says that the database cannot be read."""
    stall = tmp_path / "stall"
    server = start_server(command=[*COMMAND, "--stall", str(stall)])
    user, observer = server.client(), server.client(timeout=5)
    assert user.register_user().status_code == 201
    slowest = 0.0

    def health() -> str:
        nonlocal slowest
        answer, seconds = timed(observer.get_health)
        slowest = max(slowest, seconds)
        assert answer.status_code == 200 or int(answer.headers["Retry-After"]) >= 1
        return outcome(answer)

    assert health() == "200"
    stall.touch()
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(server.client(user.credentials).list_backup_versions) for _ in range(3)]
        try:
            assert eventually(lambda: health() == "503 unavailable")
            assert not any(read.done() for read in reads)
        finally:
            stall.unlink()
        assert [outcome(read.result()) for read in reads] == ["200"] * 3
    assert eventually(lambda: health() == "200")
    assert slowest < 1


def test_a_stop_does_not_wait_for_a_stalled_disk(start_server):
    bounds = ("--bound", "TURN_SECONDS=0.3", "--bound", "DISK_SECONDS=0.2")
    server = start_server(command=[*COMMAND, *bounds])
    user = server.client()
    with stalled(server.database):
        assert outcome(user.register_user()) == "503 unavailable"
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 4.5
    user.base_url = server.start().base_url
    assert outcome(user.register_user()) == "201"  # it did not happen, because the process was gone


# ---- Readers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["1,0,0,0", "4,3,2,2"])
def test_readers_beside_a_writer(start_server, keep):
    """A reader gets a complete version, or hears that it was dropped. It never gets the bytes of another version."""
    server = start_server(command=[*COMMAND, "--slow-reads"], KEEP_VERSIONS=keep, **MANY)
    user = server.client()
    assert user.register_user().status_code == 201
    blobs = [number.to_bytes(4) * 5_000 for number in range(1, 121)]
    user.store_backup(blobs[0])
    done = threading.Event()

    def write() -> int:
        try:
            for before, blob in zip(blobs, blobs[1:], strict=False):
                assert user.store_backup(blob, sha256(before)).status_code == 201
        finally:
            done.set()
        return 0

    def read() -> int:
        reader, latest, fetched = server.client(user.credentials), 0, 0
        while not done.is_set():
            answer = reader.fetch_backup()
            assert answer.status_code == 200, answer.text
            version = answer.json()["version"]
            assert version >= latest  # no reader sees an older version than before
            assert backup_bytes(answer) == blobs[version - 1]
            latest = version
            for receipt in reader.list_backup_versions().json()["versions"]:
                answer = reader.fetch_backup_version(receipt["version"])
                assert answer.status_code in (200, 404), answer.text
                if answer.status_code == 200:
                    assert backup_bytes(answer) == blobs[receipt["version"] - 1]
            fetched += 1
        return fetched

    assert min(at_once([write, read, read])[1:]) >= 1
