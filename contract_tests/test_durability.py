"""Crashes and races: every acknowledged write survives, complete. No other write survives by half.

The tests kill the server's process (SIGKILL) at random moments. The page cache survives that, so these tests say
nothing about a power cut.
"""

import base64
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from secrets import token_bytes, token_hex
from typing import Any

import pytest
import requests

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.generated.exchanges import Exchange
from contract_tests.generated.model import Settings
from contract_tests.generated.witness import Witness
from contract_tests.target import raw
from contract_tests.target.calls import at_once, counts, eventually, outcome, sha256
from contract_tests.target.openapi import RESERVED
from contract_tests.target.process import ServerProcess
from contract_tests.target.target import Target

MANY = {
    "BACKUPS_PER_HOUR": 100_000,
    "BACKUPS_PER_DAY": 100_000,
    "KEY_CHANGES_PER_HOUR": 100_000,
    "KEY_CHANGES_PER_DAY": 100_000,
    "REGISTRATIONS_PER_HOUR": 100_000,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 100_000,
}
# The errors that a client sees if the server is killed before its answer, or in the middle of it.
GONE = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
DEVICES = 16
FROZEN = 1_795_510_800  # 2026-11-24T09:00:00Z


@pytest.fixture
def server(start_server) -> ServerProcess:
    """A server on which no day ends, so that it keeps exactly the last 4 versions of what a test stores."""
    return start_server(frozen=FROZEN, **MANY)


@pytest.fixture
def user(server) -> BackupClient:
    user = server.client()
    assert user.register_user().status_code == 201
    return user


# ---- kill -9 under load ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """The expected state of an account. `key` is None after its deletion. All versions are of one day."""

    user_id: str = field(default_factory=lambda: token_hex(32))
    key: str | None = None
    blobs: tuple[bytes, ...] = ()  # the blobs of all versions, oldest first

    def is_there(self, server: ServerProcess, key: str) -> bool:
        """Return whether the server shows exactly this account. If it is deleted, try `key` to see that."""
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
    """Works on one account after another until the server is gone. Knows which writes were acknowledged."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.account = self.pending = Account()
        self.key = token_hex(32)  # the last key that was in force

    def step(self, server: ServerProcess) -> requests.Response:
        """Send a random operation. Note its effect when it is acknowledged."""
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
        """Check that the account is as acknowledged, or as the operation in progress would leave it, not in between."""
        there = [account for account in (self.account, self.pending) if account.is_there(server, self.key)]
        assert there, "the account is neither as acknowledged nor as the operation in progress would leave it"
        self.account = self.pending = there[0]
        self.key = self.account.key or self.key


@pytest.mark.requirement("durability.acknowledged", "durability.whole", "admin.counts")
def test_killed_at_random_moments(server):
    chance = random.Random(5)
    writers = [Writer(seed) for seed in range(4)]
    for _ in range(4):
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
    assert counts(server) == {"users": len(living), "backups": backups, "versions": kept}


@pytest.mark.requirement("durability.acknowledged", "durability.whole", "retry.receipt")
def test_an_upload_repeated_after_a_lost_answer(server, user):
    """Whether the upload was stored or not, the repeat returns the version that it became, and it is stored once."""
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


@pytest.mark.requirement("durability.restart", "delete.reserved", "delete.fresh", "delete.all")
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_reserved_userid_outlives_a_restart(start_server, is_killed):
    server = start_server(frozen=FROZEN, **MANY)
    user = server.client()
    assert user.register_user().status_code == 201
    assert user.store_backup(b"a backup").status_code == 201
    assert user.delete_user().status_code == 204
    server.move_clock(RESERVED - 1)
    if is_killed:
        server.kill()
    user.base_url = server.restart().base_url
    answer = user.register_user()
    assert (outcome(answer), answer.headers["Retry-After"]) == ("409 recently_deleted", "1")
    assert outcome(user.fetch_backup()) == "401 credentials_invalid"
    server.move_clock(1)
    assert user.register_user().status_code == 201
    assert outcome(user.fetch_backup()) == "404 no_backup"
    assert user.store_backup(b"a backup").json()["version"] == 1


@pytest.mark.requirement("durability.restart", "durability.acknowledged", "version.list", "backup.bytes")
@pytest.mark.parametrize("is_killed", [False, True])
def test_versions_outlive_a_restart(server, user, is_killed):
    blobs = [token_bytes(50_000) for _ in range(3)]
    for before, blob in zip([None, *blobs], blobs, strict=False):
        assert user.store_backup(blob, sha256(before)).status_code == 201
    before = user.list_backup_versions().json()
    if is_killed:
        server.kill()
    user.base_url = server.restart().base_url
    assert user.list_backup_versions().json() == before
    for version, blob in enumerate(blobs, start=1):
        assert backup_bytes(user.fetch_backup_version(version)) == blob
    assert outcome(user.store_backup(b"made from an older one", sha256(blobs[0]))) == "409 version_conflict"
    assert user.store_backup(b"made from the latest", sha256(blobs[2])).json()["version"] == 4


# ---- kill -9 before each write -----------------------------------------------------------------------------

SEVERAL = Settings(*[100_000] * 7, keep=(2, 0, 0, 0))
SMALL, LARGE = 300, 300_000  # bytes


class Operation:
    """An operation, and what a user did before it."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self.user_id, self.keys = token_hex(32), [token_hex(32), token_hex(32)]
        self.blobs = [token_bytes(SMALL) for _ in range(3)]

    def do(self, operation: str, **arguments: Any) -> None:
        self.witness.call(operation, self.user_id, self.keys[0], **arguments)

    def store(self, count: int) -> None:
        self.do("registerUser")
        for number in range(count):
            self.do("storeBackup", blob=self.blobs[number], base=sha256(self.blobs[number - 1]) if number else None)

    def prepared(self, name: str) -> Exchange:
        """Do what comes before the operation with this name. Return its call, which is not sent yet."""
        prepare = partial(self.witness.prepare, user_id=self.user_id, key=self.keys[0])
        match name:
            case "register":
                return prepare("registerUser")
            case "register again":
                self.store(2)
                self.do("deleteUser")
                self.witness.server.move_clock(RESERVED)
                return prepare("registerUser")
            case "store, and drop a version" | "store a large one":
                self.store(3)
                size = LARGE if "large" in name else SMALL
                return prepare("storeBackup", blob=token_bytes(size), base=sha256(self.blobs[2]))
            case "change the key":
                self.store(3)
                return prepare(
                    "changeStorageKey", new_key=self.keys[1], blob=token_bytes(SMALL), base=sha256(self.blobs[2])
                )
            case "delete":
                self.store(3)
                return prepare("deleteUser")
        raise AssertionError(name)

    def look(self) -> None:
        """Look at everything, and see that the next operation works."""
        witness = self.witness
        expected = [model.counts() for model in witness.models]
        found = list(counts(witness.server).values())
        assert found in expected, f"{found} users, backups and versions, not one of {expected}"
        witness.look(self.user_id, self.keys)
        if account := witness.account(self.user_id):
            base = account.latest.sha256 if account.latest else None
            witness.call("storeBackup", self.user_id, account.key, blob=token_bytes(SMALL), base=base)
            witness.look(self.user_id, self.keys)
        witness.do(witness.prepare("registerUser", self.user_id, self.keys[0]))
        assert len(witness.models) == 1


OPERATIONS = [
    "register",
    "register again",
    "store, and drop a version",
    "store a large one",
    "change the key",
    "delete",
]
MOST = 8  # writes of one operation; what a server writes after so many of them is cleaning up
QUIET = 0.3  # seconds; what a server has not begun to write so long after its answer, it does not write by itself


@pytest.mark.requirement("durability.acknowledged", "durability.whole", "durability.restart", "admin.counts")
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_before_each_write(start_server, name):
    """And after the last one, when the answer is there. What the server then shows was acknowledged, or it did happen.

    A server that does not wait at a write is killed right after its answer.
    """
    server = start_server(frozen=FROZEN, pauses=True, KEEP_VERSIONS="2,0,0,0", **MANY)
    witness = Witness(server, SEVERAL)
    for number in range(1, MOST + 1):
        operation = Operation(witness)
        exchange = operation.prepared(name)
        server.pause_at(number, "write")
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(witness.send, exchange)
            eventually(lambda call=call: server.is_waiting() or call.done(), 60, pause=0.001)
            if call.done():
                eventually(server.is_waiting, QUIET, pause=0.01)
            was_waiting = server.is_waiting()
            server.kill()
        server.start()
        witness.settle(exchange)
        witness.restart()
        operation.look()
        if not was_waiting:
            break


# ---- Races -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("base.race", "base.conflict", "storeBackup.409")
def test_16_devices_with_one_base(target, new_user):
    user = new_user()
    devices = [target.client(user.credentials) for _ in range(DEVICES)]
    base, latest = None, 0
    for _ in range(6):
        blobs = [token_bytes(50_000) for _ in devices]
        answers = at_once([partial(d.store_backup, blob, base) for d, blob in zip(devices, blobs, strict=True)])
        assert sorted(answers) == ["201"] + ["409 version_conflict"] * (DEVICES - 1)
        winner = blobs[answers.index("201")]
        fetched = user.fetch_backup()
        assert (fetched.json()["version"], backup_bytes(fetched)) == (latest := latest + 1, winner)
        base = sha256(winner)


@pytest.mark.requirement("register.race", "registerUser.409")
def test_16_registrations_of_one_name(target):
    for _ in range(4):
        user_id = token_hex(32)
        strangers = [target.client((user_id, token_hex(32))) for _ in range(DEVICES)]
        answers = at_once([stranger.register_user for stranger in strangers])
        assert sorted(answers) == ["201"] + ["409 username_taken"] * (DEVICES - 1)
        for stranger, answer in zip(strangers, answers, strict=True):
            assert stranger.list_backup_versions().status_code == (200 if answer == "201" else 401)


# What 16 devices of one user send at once, what one of them gets, what the others get, and the versions afterwards.
SAME_AT_ONCE = {
    "register": (lambda device, _: device.register_user(), "200", "200", []),
    "the same bytes": (lambda device, _: device.store_backup(b"the same"), "201", "200", [1]),
    "other keys": (lambda device, key: device.change_storage_key(key, b"new"), "200", "401 credentials_invalid", [1]),
    "delete": (lambda device, _: device.delete_user(), "204", "401 credentials_invalid", None),
}


@pytest.mark.stage(5)
@pytest.mark.requirement("register.retry", "retry.receipt", "key.old", "key.new", "delete.refused")
@pytest.mark.parametrize(("send", "one", "others", "versions"), SAME_AT_ONCE.values(), ids=SAME_AT_ONCE)
def test_one_user_on_16_devices(target, new_user, send, one, others, versions):
    user = new_user()
    devices = [target.client(user.credentials) for _ in range(DEVICES)]
    keys = [token_hex(32) for _ in devices]
    answers = at_once([partial(send, device, key) for device, key in zip(devices, keys, strict=True)])
    assert sorted(answers) == sorted([one] + [others] * (DEVICES - 1))
    # At most one key opens the account: the old key, or one of the new ones.
    clients = [user, *(target.client((user.credentials[0], key)) for key in keys)]
    lists = [answer for client in clients if (answer := client.list_backup_versions()).status_code == 200]
    listed = [[receipt["version"] for receipt in answer.json()["versions"]] for answer in lists]
    assert listed == ([] if versions is None else [versions])


def upload_in_two_parts(target: Target, user: BackupClient, blob: bytes, between: Callable[[], Any]) -> str:
    """Return the outcome of an upload. Call `between` when half of the upload has arrived."""
    body = json.dumps({"data": base64.b64encode(blob).decode()}).encode()
    headers = ("Content-Type: application/json", *raw.signed(target, user.credentials, "POST", "/api/backup", body))
    whole = raw.request("POST", "/api/backup", body, headers).replace(raw.HOST, raw.host(target), 1)
    with raw.connected(target) as connection:
        connection.sendall(whole[: -len(body) // 2])
        between()
        raw.send_all(connection, whole[-len(body) // 2 :])
        return outcome(raw.receive(target, connection, "POST", "/api/backup"))


def assert_deleted(user: BackupClient) -> None:
    assert outcome(user.fetch_backup()) == "401 credentials_invalid"
    assert outcome(user.register_user()) == "409 recently_deleted"


@pytest.mark.requirement("credentials.commit", "delete.all", "delete.refused")
def test_a_slow_upload_does_not_bring_a_deleted_account_back(target, new_user):
    user = new_user()
    answer = upload_in_two_parts(target, user, token_bytes(1_000_000), lambda: user.delete_user().raise_for_status())
    assert answer == "401 credentials_invalid"
    assert_deleted(user)


@pytest.mark.requirement("credentials.commit", "key.old", "key.new")
def test_a_slow_upload_does_not_bring_an_old_key_back(target, new_user):
    user = new_user()
    changed = target.client((user.credentials[0], token_hex(32)))
    change = lambda: user.change_storage_key(changed.credentials[1], b"changed").raise_for_status()  # noqa: E731
    assert upload_in_two_parts(target, user, token_bytes(1_000_000), change) == "401 credentials_invalid"
    assert outcome(user.fetch_backup()) == "401 credentials_invalid"
    assert backup_bytes(changed.fetch_backup()) == b"changed"


@pytest.fixture(scope="module")
def large() -> bytes:
    return token_bytes(5 * 2**20)


def racing(target: Any, large: bytes, delay: float, second: Callable[[BackupClient], requests.Response]):
    """Send a new user's large upload and, while the server works on it, a second request.

    Return the user and both outcomes.
    """
    user = target.client()
    assert user.register_user().status_code == 201
    other_device = target.client(user.credentials)
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(user.store_backup, large)
        time.sleep(delay)
        answer = second(other_device)
        return user, outcome(upload.result()), outcome(answer)


def delays(target: Any, large: bytes, rounds: int) -> list[float]:
    """Return delays, in seconds, spread over the time that a large upload takes here."""
    user = target.client()
    assert user.register_user().status_code == 201
    started = time.perf_counter()
    assert user.store_backup(large).status_code == 201
    took = time.perf_counter() - started
    return [(number + 0.5) / rounds * took for number in range(rounds)]


@pytest.mark.requirement("credentials.commit", "delete.all", "delete.refused")
def test_a_deletion_during_a_large_upload(target, large):
    for delay in delays(target, large, 12):
        user, uploaded, deleted = racing(target, large, delay, lambda device: device.delete_user())
        assert (uploaded in ("201", "401 credentials_invalid"), deleted) == (True, "204")
        assert_deleted(user)


@pytest.mark.requirement("credentials.commit", "key.old", "key.new", "key.both", "base.race")
def test_a_change_of_the_key_during_a_large_upload(target, large):
    for delay in delays(target, large, 12):
        new_key = token_hex(32)
        user, uploaded, changed = racing(
            target, large, delay, lambda device, key=new_key: device.change_storage_key(key, b"changed")
        )
        assert (uploaded, changed) in [("401 credentials_invalid", "200"), ("201", "409 version_conflict")]
        new = target.client((user.credentials[0], new_key))
        valid, invalid = (new, user) if changed == "200" else (user, new)
        assert valid.fetch_backup().json()["version"] == 1
        assert outcome(invalid.fetch_backup()) == "401 credentials_invalid"


@pytest.mark.requirement("history.listed", "version.latest", "backup.bytes")
def test_readers_beside_a_writer(target, new_user):
    """A reader gets a complete version, or hears that it was dropped. It never gets the bytes of another version."""
    user = new_user()
    blobs = [number.to_bytes(4) * 5_000 for number in range(1, 61)]
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
        reader, latest, fetched = target.client(user.credentials), 0, 0
        while not done.is_set() or not fetched:
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


# ---- The counts --------------------------------------------------------------------------------------------


class Population:
    """Many accounts of one server, and the counts that they should add up to."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.chance = random.Random(7)
        self.latest: dict[tuple[str, str], list[bytes]] = {}

    def change(self) -> None:
        """Do something to a random account, or to a new one."""
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


@pytest.mark.requirement("admin.counts", "getAdminStats.200")
def test_the_counts_are_right_all_the_time(server):
    population = Population(server)
    for _ in range(60):
        population.change()
        assert counts(server) == population.expected()


@pytest.mark.requirement("admin.counts", "durability.restart")
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
        assert counts(server) == population.expected()
