"""What survives a crash and a race: every acknowledged write, whole, and no other half of one.

The server's process is killed (SIGKILL) at random moments; what it had in the page cache survives that, so this says
nothing of a power cut. Some tests look into the database file: it is SQLite, one table `Dict` of `key` and `value`.
"""

import base64
import contextlib
import hashlib
import json
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from secrets import token_bytes, token_hex
from typing import Any

import pytest
import raw
import requests
from client import BackupClient, backup_bytes
from launcher import SERVER, ServerProcess

MANY = {
    "BACKUPS_PER_HOUR": 100_000,
    "BACKUPS_PER_DAY": 100_000,
    "REGISTRATIONS_PER_HOUR": 100_000,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 100_000,
}
# What a client sees when the server is killed before its answer, and in the midst of it.
GONE = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
RESERVED = 601  # seconds for which a deleted userId stays
DEVICES = 16


def sha256(blob: bytes | None) -> str | None:
    return None if blob is None else hashlib.sha256(blob).hexdigest()


def code(response: requests.Response) -> str | int:
    """The status of a success, the code of a problem."""
    return response.status_code if response.ok else response.json()["code"]


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What the calls return, of answers the code; they start at one moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        answer = call()
        return code(answer) if isinstance(answer, requests.Response) else answer

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def values(database: Path, part: bytes) -> int:
    """How many values in the file hold these bytes."""
    return count(database, "SELECT count(*) FROM Dict WHERE instr(value, ?)", part)


def keys(database: Path, part: str) -> int:
    """How many keys or values in the file hold this text."""
    return count(database, "SELECT count(*) FROM Dict WHERE instr(key, ?1) OR instr(value, ?1)", part.encode())


def count(database: Path, query: str, part: bytes) -> int:
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query, (part,)).fetchone()[0]


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def stats(server: ServerProcess) -> dict[str, int]:
    """The server's counts; right after a start they may take a moment (503)."""
    client = server.client()
    assert eventually(lambda: client.get_admin_stats(server.admin_key).status_code == 200)
    counts = client.get_admin_stats(server.admin_key).json()
    del counts["databaseBytes"]
    return counts


@pytest.fixture
def server(start_server) -> ServerProcess:
    return start_server(**MANY)


@pytest.fixture
def user(server) -> BackupClient:
    user = server.client()
    assert user.register_user().status_code == 201
    return user


# ---- kill -9 under load ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """An account as it should be; `key` is None once it is deleted. All its versions are of one day."""

    user_id: str = field(default_factory=lambda: token_hex(32))
    key: str | None = None
    blobs: tuple[bytes, ...] = ()  # of all versions, oldest first

    def is_there(self, server: ServerProcess, key: str) -> bool:
        """Whether the server shows exactly this account; `key` is one to try once it is deleted."""
        client = server.client((self.user_id, self.key or key))
        response = client.list_backup_versions()
        if self.key is None:
            return response.status_code == 401
        if response.status_code == 401:
            return False
        listed = [receipt["version"] for receipt in response.json()["versions"]]
        kept = list(range(len(self.blobs), 0, -1))[:4]
        return listed == kept and all(
            backup_bytes(client.fetch_backup_version(version)) == self.blobs[version - 1] for version in listed
        )


class Writer:
    """Works on one account after another until the server is gone; it knows what was acknowledged, and what not."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.account = self.pending = Account()
        self.key = token_hex(32)  # the last that was in force

    def step(self, server: ServerProcess) -> requests.Response:
        """Sends a random operation, and takes over its effect once it is acknowledged."""
        account = self.account
        if account.key is None:
            account, self.key = Account(), token_hex(32)
            self.account = account
            self.pending = replace(account, key=self.key)
            return server.client((account.user_id, self.key)).register_user()
        client = server.client((account.user_id, account.key))
        base = sha256(account.blobs[-1]) if account.blobs else None
        blob = self.chance.randbytes(self.chance.choice([10, 5_000, 100_000, 300_000]))
        kind = self.chance.random()
        if kind < 0.8:
            self.pending = replace(account, blobs=(*account.blobs, blob))
            return client.store_backup(blob, base)
        if kind < 0.9:
            self.pending = Account(account.user_id, token_hex(32), (*account.blobs, blob))
            return client.change_storage_key(self.pending.key, blob, base)
        self.pending = replace(account, key=None)
        return client.delete_user()

    def work(self, server: ServerProcess) -> None:
        with contextlib.suppress(*GONE):
            while True:
                assert self.step(server).status_code in (200, 201, 204)
                self.account = self.pending
                self.key = self.account.key or self.key

    def check(self, server: ServerProcess) -> None:
        """Each account is as acknowledged, or as the one operation in flight would have it, and nothing between."""
        there = [account for account in (self.account, self.pending) if account.is_there(server, self.key)]
        assert there, "neither what was acknowledged nor what was in flight"
        self.account = self.pending = there[0]
        self.key = self.account.key or self.key


def test_killed_at_random_moments(server):
    chance = random.Random(5)
    writers = [Writer(seed) for seed in range(4)]
    for _ in range(6):
        with ThreadPoolExecutor(len(writers)) as pool:
            working = [pool.submit(writer.work, server) for writer in writers]
            time.sleep(chance.uniform(0.05, 0.5))
            server.kill()
        for done in working:
            done.result()
        server.start()
        for writer in writers:
            writer.check(server)
    living = [writer.account for writer in writers if writer.account.key]
    kept = sum(min(4, len(account.blobs)) for account in living)
    backups = sum(1 for account in living if account.blobs)
    assert stats(server) == {"users": len(living), "backups": backups, "versions": kept}


def test_an_upload_repeated_after_a_lost_answer(server, user):
    """Whether it was stored or not, the repeat tells the version it became, and there is one of it."""
    base = None
    for version in range(1, 6):
        blob = token_bytes(400_000)
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(user.store_backup, blob, base)
            time.sleep(0.004 * version)
            server.kill()
        assert upload.exception() is None or isinstance(upload.exception(), GONE)
        user.base_url = server.start().base_url
        repeated = user.store_backup(blob, base)
        assert (repeated.status_code in (200, 201), repeated.json()["version"]) == (True, version)
        base = sha256(blob)


def test_restored_from_an_older_snapshot(server, user):
    """A device that knows versions which the server has lost is refused, and told where to begin."""
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
    assert (code(refused), refused.json()["currentVersion"]) == ("version_conflict", 2)
    assert user.store_backup(blobs[4], sha256(blobs[2])).json()["version"] == 3  # another 3 than the lost one
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
        server.kill()  # it has taken effect, and 40 MB are on their way out
    if not isinstance(deletion.exception(), GONE):
        pytest.skip("not run: the deletion was done before the server could be killed")
    assert values(server.database, mark) > 0

    user.base_url = server.start().base_url
    assert user.list_backup_versions().status_code == 401
    assert code(user.register_user()) == "recently_deleted"
    assert stats(server) == {"users": 0, "backups": 0, "versions": 0}
    server.stop()
    assert values(server.database, mark) == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_a_deleted_userid_is_forgotten_after_601_seconds(start_server, restarted):
    server = start_server(frozen=1_795_510_800, **MANY)
    gone, back = server.client(), server.client()
    for user in (gone, back):
        assert user.register_user().status_code == 201
        assert user.store_backup(b"a backup").status_code == 201
        assert user.delete_user().status_code == 204

    server.move_clock(RESERVED - 1)
    if restarted:
        gone.base_url = back.base_url = server.restart().base_url
    time.sleep(1.5)  # housekeeping must not come too early
    for user in (gone, back):
        answer = user.register_user()
        assert (code(answer), answer.headers["Retry-After"]) == ("recently_deleted", "1")
        assert keys(server.database, user.credentials[0]) == 1

    server.move_clock(1)
    assert back.register_user().status_code == 201
    assert code(back.fetch_backup()) == "no_backup"
    assert back.store_backup(b"a backup").json()["version"] == 1
    assert eventually(lambda: keys(server.database, gone.credentials[0]) == 0)
    time.sleep(1.5)
    assert back.fetch_backup().status_code == 200  # the new account is not what is forgotten
    assert stats(server) == {"users": 1, "backups": 1, "versions": 1}
    assert back.delete_user().status_code == 204  # and reserves the name anew
    server.move_clock(RESERVED - 1)
    assert code(back.register_user()) == "recently_deleted"


# ---- Races -------------------------------------------------------------------------------------------------


def test_16_devices_with_one_base(server, user):
    devices = [server.client(user.credentials) for _ in range(DEVICES)]
    base, latest = None, 0
    for _ in range(6):
        blobs = [token_bytes(50_000) for _ in devices]
        answers = at_once([partial(d.store_backup, blob, base) for d, blob in zip(devices, blobs, strict=True)])
        assert sorted(answers, key=str) == [201] + ["version_conflict"] * (DEVICES - 1)
        winner = blobs[answers.index(201)]
        fetched = user.fetch_backup()
        assert (fetched.json()["version"], backup_bytes(fetched)) == (latest := latest + 1, winner)
        base = sha256(winner)


def test_16_registrations_of_one_name(server):
    for _ in range(4):
        user_id = token_hex(32)
        strangers = [server.client((user_id, token_hex(32))) for _ in range(DEVICES)]
        answers = at_once([stranger.register_user for stranger in strangers])
        assert sorted(answers, key=str) == [201] + ["username_taken"] * (DEVICES - 1)
        for stranger, answer in zip(strangers, answers, strict=True):
            assert stranger.list_backup_versions().status_code == (200 if answer == 201 else 401)


# What 16 devices of one user send at once, what one of them gets and what the others, and the versions there are.
SAME_AT_ONCE = {
    "register": (lambda device, _: device.register_user(), 200, 200, 0),
    "the same bytes": (lambda device, _: device.store_backup(b"the same"), 201, 200, 1),
    "other keys": (lambda device, key: device.change_storage_key(key, b"new"), 200, "credentials_invalid", 1),
    "delete": (lambda device, _: device.delete_user(), 204, "credentials_invalid", 0),
}


@pytest.mark.parametrize(("send", "one", "others", "versions"), SAME_AT_ONCE.values(), ids=SAME_AT_ONCE)
def test_one_user_on_16_devices(server, user, send, one, others, versions):
    devices = [server.client(user.credentials) for _ in range(DEVICES)]
    answers = at_once([partial(send, device, token_hex(32)) for device in devices])
    assert sorted(answers, key=str) == sorted([one] + [others] * (DEVICES - 1), key=str)
    assert stats(server)["versions"] == versions


def upload_in_two_parts(user: BackupClient, blob: bytes, between: Callable[[], Any]) -> str:
    """The outcome of an upload that had arrived by half when something else happened."""
    body = json.dumps({"data": base64.b64encode(blob).decode()}).encode()
    headers = ("Content-Type: application/json", *raw.signed(user, user.credentials, "POST", "/api/backup", body))
    whole = raw.request("POST", "/api/backup", body, headers)
    with raw.connected(user) as connection:
        connection.sendall(whole[: -len(body) // 2])
        between()
        connection.sendall(whole[-len(body) // 2 :])
        return raw.outcome(raw.receive(connection, "POST", "/api/backup"))


def assert_deleted(user: BackupClient) -> None:
    assert code(user.fetch_backup()) == "credentials_invalid"
    assert code(user.register_user()) == "recently_deleted"


def test_a_slow_upload_does_not_bring_a_deleted_account_back(server, user):
    answer = upload_in_two_parts(user, token_bytes(1_000_000), lambda: user.delete_user().raise_for_status())
    assert answer == "401 credentials_invalid"
    assert_deleted(user)


def test_a_slow_upload_does_not_bring_an_old_key_back(server, user):
    changed = server.client((user.credentials[0], token_hex(32)))
    change = lambda: user.change_storage_key(changed.credentials[1], b"changed").raise_for_status()  # noqa: E731
    assert upload_in_two_parts(user, token_bytes(1_000_000), change) == "401 credentials_invalid"
    assert code(user.fetch_backup()) == "credentials_invalid"
    assert backup_bytes(changed.fetch_backup()) == b"changed"


@pytest.fixture(scope="module")
def large() -> bytes:
    return token_bytes(5 * 2**20)


def racing(server: ServerProcess, large: bytes, delay: float, second: Callable[[BackupClient], requests.Response]):
    """A new user's large upload, and while it is being worked on, a second request: the user and both codes."""
    user = server.client()
    assert user.register_user().status_code == 201
    other_device = server.client(user.credentials)
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(user.store_backup, large)
        time.sleep(delay)
        answer = second(other_device)
        return user, code(upload.result()), code(answer)


def delays(server: ServerProcess, large: bytes, rounds: int) -> list[float]:
    """Moments spread over the time that a large upload takes here."""
    user = server.client()
    assert user.register_user().status_code == 201
    started = time.perf_counter()
    assert user.store_backup(large).status_code == 201
    took = time.perf_counter() - started
    return [(number + 0.5) / rounds * took for number in range(rounds)]


def test_a_deletion_during_a_large_upload(server, large):
    for delay in delays(server, large, 16):
        user, uploaded, deleted = racing(server, large, delay, lambda device: device.delete_user())
        assert (uploaded in (201, "credentials_invalid"), deleted) == (True, 204)
        assert_deleted(user)
    assert stats(server) == {"users": 1, "backups": 1, "versions": 1}


def test_a_change_of_the_key_during_a_large_upload(server, large):
    new_key = token_hex(32)
    for delay in delays(server, large, 16):
        user, uploaded, changed = racing(
            server, large, delay, lambda device: device.change_storage_key(new_key, b"changed")
        )
        assert (uploaded, changed) in [("credentials_invalid", 200), (201, "version_conflict")]
        new = server.client((user.credentials[0], new_key))
        valid, invalid = (new, user) if changed == 200 else (user, new)
        assert valid.fetch_backup().json()["version"] == 1
        assert code(invalid.fetch_backup()) == "credentials_invalid"


# The server, but for a moment before each blob is read: time enough for its slot to be overwritten.
SLOW_READS = """
import dbm.sqlite3, time
__file__ = {server!r}

def slow(self, key, get=dbm.sqlite3._Database.__getitem__):
    time.sleep(0.01 if key.startswith(b"blob/") else 0)
    return get(self, key)

dbm.sqlite3._Database.__getitem__ = slow
exec(compile(open(__file__).read(), __file__, "exec"))
"""


@pytest.mark.parametrize("keep", ["1,0,0,0", "4,3,2,2"])
def test_readers_beside_a_writer(start_server, tmp_path, keep):
    """A reader gets a version whole, or hears that it was dropped; never another's bytes."""
    (tmp_path / "slow_reads.py").write_text(SLOW_READS.format(server=str(SERVER)))
    server = start_server(BACKUP_SERVER=tmp_path / "slow_reads.py", KEEP_VERSIONS=keep, **MANY)
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
            assert version >= latest  # no reader goes back
            assert backup_bytes(answer) == blobs[version - 1]
            latest = version
            for receipt in reader.list_backup_versions().json()["versions"]:
                answer = reader.fetch_backup_version(receipt["version"])
                assert answer.status_code in (200, 404), answer.text
                if answer.status_code == 200:
                    assert backup_bytes(answer) == blobs[receipt["version"] - 1]
            fetched += 1
        return fetched

    assert min(at_once([write, read, read])[1:]) > 3


# ---- The counts --------------------------------------------------------------------------------------------


class Population:
    """Many accounts of one server, and how many of what there should be."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.chance = random.Random(7)
        self.latest: dict[tuple[str, str], list[bytes]] = {}

    def change(self) -> None:
        """Does something to a random account, or to a new one."""
        kind = self.chance.random()
        if kind < 0.4 or not self.latest:
            client = self.server.client()
            assert client.register_user().status_code == 201
            self.latest[client.credentials] = []
            return
        credentials = self.chance.choice(list(self.latest))
        client, blobs = self.server.client(credentials), self.latest[credentials]
        blob, base = token_bytes(20), sha256(blobs[-1]) if blobs else None
        if kind < 0.7:
            assert client.store_backup(blob, base).status_code == 201
            blobs.append(blob)
        elif kind < 0.85:
            new = (credentials[0], token_hex(32))
            assert client.change_storage_key(new[1], blob, base).status_code == 200
            self.latest[new] = [*self.latest.pop(credentials), blob]
        else:
            assert client.delete_user().status_code == 204
            del self.latest[credentials]

    def expected(self) -> dict[str, int]:
        versions = [min(4, len(blobs)) for blobs in self.latest.values()]
        return {"users": len(versions), "backups": sum(map(bool, versions)), "versions": sum(versions)}


def test_the_counts_are_right_all_the_time(server):
    population = Population(server)
    for _ in range(60):
        population.change()
        assert stats(server) == population.expected()


def test_the_counts_are_right_after_a_restart(server):
    """Accounts change while the server is still counting."""
    population = Population(server)
    for number in range(4):
        for _ in range(100):
            population.change()
        if number % 2:
            server.kill()
            server.start()
        else:
            server.restart()
        for _ in range(30):
            population.change()
        assert stats(server) == population.expected()
