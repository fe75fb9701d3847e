"""The server's file: what is in it, what is no longer in it, and what a crash or a snapshot leaves of it.

It is an SQLite database with one table, `Dict`, of `key` and `value`.
"""

import contextlib
import random
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_bytes

import pytest
import requests

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target.calls import at_once, counts, eventually, outcome, sha256
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
