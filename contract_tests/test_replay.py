"""Nothing replayed takes effect (openapi.yaml, "Replays").

The tests capture a request and send it again, byte for byte, at each moment at which it might do harm. What the user
sees must be the same before and after. The clock moves only if a test moves it.
"""

from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from clients.python.backup_client import BackupClient
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.openapi import RESERVED
from contract_tests.target.process import ServerProcess
from contract_tests.target.target import Target

FROZEN = 1_795_510_800
SKEW = 300  # how many seconds `created` may differ from the server's clock, either way


@dataclass
class User:
    """A user. The device's clock is `drift` seconds ahead. `keys` has all keys that were in force; the last one is."""

    server: ServerProcess | Target
    drift: int = 0
    user_id: str = field(default_factory=lambda: token_hex(32))
    keys: list[str] = field(default_factory=lambda: [token_hex(32)])

    def client(self, key: str | None = None, drift: int = 0) -> BackupClient:
        return self.server.client((self.user_id, key or self.keys[-1]), clock=lambda: self.server.now() + drift)

    @property
    def device(self) -> BackupClient:
        return self.client(drift=self.drift)

    def register(self) -> requests.Response:
        return accepted(self.device.register_user())

    def store(self, blob: bytes, base: bytes | None = None) -> requests.Response:
        return accepted(self.device.store_backup(blob, base and sha256(base)))

    def change_key(self, blob: bytes, base: bytes | None, key: str | None = None) -> requests.Response:
        key = key or token_hex(32)
        response = accepted(self.device.change_storage_key(key, blob, base and sha256(base)))
        self.keys.append(key)
        return response

    def delete(self) -> requests.Response:
        return accepted(self.device.delete_user())

    def state(self) -> list[Any]:
        """Return everything that the server shows of this user, under each key.

        Add the counts if nobody else uses the server.
        """
        shown: list[Any] = []
        if isinstance(self.server, ServerProcess):
            shown.append(self.server.client().get_admin_stats(self.server.admin_key).json())
            for changing in ("databaseBytes", "freeBytes"):
                shown[0].pop(changing, None)
        for key in self.keys:
            client = self.client(key)
            versions = client.list_backup_versions()
            shown.append((versions.status_code, versions.json()))
            for receipt in versions.json().get("versions", []):
                shown.append(client.fetch_backup_version(receipt["version"]).json())
        return shown


def accepted(response: requests.Response) -> requests.Response:
    assert response.status_code in (200, 201, 204), response.text
    return response


def replay(server: ServerProcess | Target, captured: requests.Response) -> str:
    """Send the request of an exchange again, byte for byte. The server may have another port since then."""
    request = captured.request.copy()
    request.url = server.base_url + urlsplit(request.url).path
    session = server.client().session
    return outcome(session.send(request, timeout=30))


def replay_changes_nothing(user: User, captured: requests.Response, answer: str) -> None:
    before = user.state()
    assert replay(user.server, captured) == answer
    assert user.state() == before


@pytest.fixture(scope="module")
def shared(start_shared_server) -> ServerProcess:
    return start_shared_server(
        frozen=FROZEN, FAILED_CREDENTIALS_PER_5_MINUTES=1000, FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY=1000
    )


@pytest.fixture
def server(shared) -> ServerProcess:
    return shared.some_weeks_later()


# ---- Each writing operation, replayed at each moment -------------------------------------------------------

# What the user does. The last request is captured.
CAPTURED = {
    "register": lambda user: user.register(),
    "store the first": lambda user: (user.register(), user.store(b"1"))[-1],
    "store the next": lambda user: (user.register(), user.store(b"1"), user.store(b"2", b"1"))[-1],
    "change the key": lambda user: (user.register(), user.store(b"1"), user.change_key(b"2", b"1"))[-1],
    "change the key first": lambda user: (user.register(), user.change_key(b"2", None))[-1],
    "delete": lambda user: (user.register(), user.store(b"1"), user.delete())[-1],
}
LATEST = {"register": None, "store the first": b"1"} | dict.fromkeys(
    ("store the next", "change the key", "change the key first"), b"2"
)
RETRY = "200"
WRONG_KEY, TAKEN = "401 credentials_invalid", "409 username_taken"
STALE, DELETED, EXPIRED = "409 version_conflict", "409 recently_deleted", "401 signature_expired"


def at_once(user: User, latest: bytes | None) -> None:
    pass


def after_a_restart(user: User, latest: bytes | None) -> None:
    user.server.restart()


def after_a_later_version(user: User, latest: bytes | None) -> None:
    user.store(b"later", latest)


def after_a_key_change(user: User, latest: bytes | None) -> None:
    user.change_key(b"later", latest)


def after_deletion(user: User, latest: bytes | None) -> None:
    user.delete()


def after_deletion_and_a_restart(user: User, latest: bytes | None) -> None:
    user.delete()
    user.server.restart()


def after_deletion_and_a_new_registration(user: User, latest: bytes | None) -> None:
    user.delete()
    user.server.move_clock(RESERVED)
    user.keys = user.keys[:1]  # the same username and password have the same key
    user.register()


# What a replay of each captured request gets at each moment.
ANSWERS = {
    at_once: {"register": RETRY, "store": RETRY, "change": WRONG_KEY},
    after_a_restart: {"register": RETRY, "store": RETRY, "change": WRONG_KEY},
    after_a_later_version: {"register": RETRY, "store": STALE, "change": WRONG_KEY},
    after_a_key_change: {"register": TAKEN, "store": WRONG_KEY, "change": WRONG_KEY},
    after_deletion: {"register": DELETED, "store": WRONG_KEY, "change": WRONG_KEY},
    after_deletion_and_a_restart: {"register": DELETED, "store": WRONG_KEY, "change": WRONG_KEY},
    after_deletion_and_a_new_registration: {"register": EXPIRED, "store": EXPIRED, "change": EXPIRED},
}


# The moments that need no clock to be moved and no server to be restarted.
ON_ANY_SERVER = [at_once, after_a_later_version, after_a_key_change, after_deletion]
IDS = {"register": "replay.register", "store": "replay.store", "change": "replay.key"}


@pytest.mark.parametrize("moment", ON_ANY_SERVER, ids=lambda moment: moment.__name__)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.requirement(IDS[name.split()[0]])) for name in LATEST]
)
def test_a_replay_changes_nothing_on_any_server(target, name, moment):
    user = User(target)
    captured = CAPTURED[name](user)
    moment(user, LATEST[name])
    replay_changes_nothing(user, captured, ANSWERS[moment][name.split()[0]])


@pytest.mark.requirement("replay.delete", "deleteUser.401")
def test_a_replayed_deletion_changes_nothing_on_any_server(target):
    user = User(target)
    captured = CAPTURED["delete"](user)
    replay_changes_nothing(user, captured, WRONG_KEY)
    replay_changes_nothing(user, captured, WRONG_KEY)


@pytest.mark.requirement("replay.register", "replay.store", "replay.key", "durability.restart", "delete.all")
@pytest.mark.parametrize("moment", ANSWERS, ids=lambda moment: moment.__name__)
def test_a_replay_changes_nothing(server, moment):
    for name, latest in LATEST.items():
        user = User(server)
        captured = CAPTURED[name](user)
        moment(user, latest)
        answer = ANSWERS[moment][name.split()[0]]
        replay_changes_nothing(user, captured, answer)


@pytest.mark.requirement("replay.delete", "durability.restart", "delete.fresh")
def test_a_replayed_deletion_changes_nothing(server):
    user = User(server)
    captured = CAPTURED["delete"](user)
    replay_changes_nothing(user, captured, WRONG_KEY)
    server.restart()
    replay_changes_nothing(user, captured, WRONG_KEY)
    server.move_clock(RESERVED)
    user.register()
    user.store(b"1")  # the same bytes that were deleted
    replay_changes_nothing(user, captured, EXPIRED)


# ---- A device whose clock is as far ahead as it may be: its signatures live 600 s --------------------------


@pytest.mark.requirement(
    "replay.register",
    "replay.store",
    "replay.key",
    "replay.delete",
    "delete.reserved",
    "delete.refused",
    "durability.restart",
)
def test_replays_as_late_as_a_signature_lives(server):
    user = User(server, drift=SKEW)
    captured = {"register": user.register(), "store": user.store(b"1"), "next": user.store(b"2", b"1")}
    captured |= {"change": user.change_key(b"3", b"2"), "delete": user.delete()}
    answers = {"register": DELETED, "store": WRONG_KEY, "next": WRONG_KEY, "change": WRONG_KEY, "delete": WRONG_KEY}
    for seconds in (0, SKEW, SKEW):
        server.move_clock(seconds)
        server.restart()
        for name, exchange in captured.items():
            replay_changes_nothing(user, exchange, answers[name])

    server.move_clock(RESERVED - 1 - 2 * SKEW)
    answer = user.client().register_user()  # the last second of the reserved name
    assert (outcome(answer), answer.headers["Retry-After"]) == (DELETED, "1")
    server.move_clock(1)
    user.keys = user.keys[:1]
    user.register()
    for exchange in captured.values():
        replay_changes_nothing(user, exchange, EXPIRED)


@pytest.mark.requirement("replay.store", "signature.window")
def test_a_device_whose_clock_is_behind(server):
    user = User(server, drift=-SKEW)
    user.register()
    captured = user.store(b"1")
    replay_changes_nothing(user, captured, RETRY)
    server.move_clock(1)
    replay_changes_nothing(user, captured, EXPIRED)


# ---- Content that comes back: the base fits again, the signature does not ----------------------------------


def back_by_uploads(user: User) -> requests.Response:
    """Store A, then B made from A, then A again made from B. After that, the base of the upload of B fits again."""
    user.register()
    user.store(b"A")
    captured = user.store(b"B", b"A")
    user.store(b"A", b"B")
    return captured


def back_by_changes_of_the_key(user: User) -> requests.Response:
    """Do the same with the key: old, new, and old again."""
    user.register()
    user.store(b"A")
    captured = user.change_key(b"B", b"A")
    user.change_key(b"A", b"B", user.keys[0])
    return captured


def back_by_an_upload_and_a_change(user: User) -> requests.Response:
    user.register()
    user.store(b"A")
    captured = user.store(b"B", b"A")
    user.change_key(b"A", b"B")
    user.change_key(b"C", b"A", user.keys[0])
    user.store(b"A", b"C")
    return captured


@pytest.mark.requirement("replay.signature", "replay.store", "replay.key")
@pytest.mark.parametrize(
    "captured", [back_by_uploads, back_by_changes_of_the_key, back_by_an_upload_and_a_change], ids=lambda f: f.__name__
)
def test_a_signature_stores_one_version_only_on_any_server(target, captured):
    user = User(target)
    replay_changes_nothing(user, captured(user), STALE)


@pytest.mark.requirement("replay.signature", "replay.store", "replay.key", "durability.restart")
@pytest.mark.parametrize(
    "captured", [back_by_uploads, back_by_changes_of_the_key, back_by_an_upload_and_a_change], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("drift", [-SKEW, 0, SKEW])
def test_a_signature_stores_one_version_only(server, captured, drift):
    user = User(server, drift)
    exchange = captured(user)
    replay_changes_nothing(user, exchange, STALE)
    server.restart()
    replay_changes_nothing(user, exchange, STALE)
    server.move_clock(SKEW + drift)  # the last second in which the signature is accepted
    replay_changes_nothing(user, exchange, STALE)
    server.move_clock(1)
    replay_changes_nothing(user, exchange, EXPIRED)


@pytest.mark.requirement("replay.signature", "replay.store")
def test_nor_when_the_content_comes_back_late(server):
    """The device's clock is ahead. Another version is stored in the last second in which the signature is accepted."""
    user = User(server, drift=SKEW)
    user.register()
    user.store(b"A")
    captured = user.store(b"B", b"A")
    server.move_clock(2 * SKEW)
    user.store(b"A", b"B")
    replay_changes_nothing(user, captured, STALE)


@pytest.mark.requirement("replay.signature", "replay.store")
def test_nor_after_many_uploads(start_server):
    server = start_server(frozen=FROZEN, BACKUPS_PER_HOUR=1000, BACKUPS_PER_DAY=1000)
    user = User(server)
    user.register()
    user.store(b"0")
    captured = [user.store(b"%d" % (number + 1), b"%d" % number) for number in range(60)]
    user.store(b"0", b"60")
    replay_changes_nothing(user, captured[0], STALE)
    user.store(b"30", b"0")
    replay_changes_nothing(user, captured[30], STALE)


@pytest.mark.requirement("base.current", "replay.signature")
def test_a_refused_replay_names_the_version_there_is(target):
    user = User(target)
    request = back_by_uploads(user).request
    answer = target.client().session.send(request, timeout=30)
    assert (answer.status_code, answer.json()["currentVersion"]) == (409, 3)


@pytest.mark.requirement("base.latest", "storeBackup.201")
def test_what_is_signed_afresh_may_come_back(server):
    """The rule is about a signature, not about bytes."""
    user = User(server)
    back_by_uploads(user)
    server.move_clock(1)
    user.store(b"B", b"A")


# ---- Uploads that were refused -----------------------------------------------------------------------------


def refused_for_its_base(user: User) -> requests.Response:
    """The base of the upload is not stored yet. Afterwards it is."""
    captured = user.device.store_backup(b"B", sha256(b"A"))
    assert outcome(captured) == "409 version_conflict"
    user.store(b"A")
    return captured


def change_refused_for_its_base(user: User) -> requests.Response:
    captured = user.device.change_storage_key(token_hex(32), b"B", sha256(b"A"))
    assert outcome(captured) == "409 version_conflict"
    user.store(b"A")
    return captured


REFUSED_ON_ANY_SERVER = [refused_for_its_base, change_refused_for_its_base]


def refused_for_space(user: User) -> requests.Response:
    user.store(b"A")
    user.server.fault = "storage_full"
    captured = user.device.store_backup(b"B", sha256(b"A"))
    user.server.fault = None
    assert outcome(captured) == "507 storage_full"
    return captured


def change_refused_for_space(user: User) -> requests.Response:
    user.store(b"A")
    user.server.fault = "storage_full"
    captured = user.device.change_storage_key(token_hex(32), b"B", sha256(b"A"))
    user.server.fault = None
    assert outcome(captured) == "507 storage_full"
    return captured


def refused_for_the_limit(user: User) -> requests.Response:
    for number in range(5):
        user.store(b"%d" % number, b"%d" % (number - 1) if number else None)
    user.server.move_clock(3599)
    captured = user.device.store_backup(b"B", sha256(b"4"))
    assert outcome(captured) == "429 rate_limited"
    user.server.move_clock(1)
    return captured


def change_refused_for_the_limit(user: User) -> requests.Response:
    for number in range(3):
        user.change_key(b"%d" % number, b"%d" % (number - 1) if number else None)
    user.server.move_clock(3599)
    captured = user.device.change_storage_key(token_hex(32), b"B", sha256(b"2"))
    assert outcome(captured) == "429 rate_limited"
    user.server.move_clock(1)
    return captured


REFUSED = [
    *REFUSED_ON_ANY_SERVER,
    *(refused_for_space, change_refused_for_space, refused_for_the_limit, change_refused_for_the_limit),
]


@pytest.mark.requirement("replay.refused")
@pytest.mark.parametrize("refused", REFUSED_ON_ANY_SERVER, ids=lambda f: f.__name__)
def test_a_refused_upload_stores_nothing_later_on_any_server(target, refused):
    user = User(target)
    user.register()
    replay_changes_nothing(user, refused(user), STALE)


@pytest.mark.requirement("replay.refused", "problem.unchanged")
@pytest.mark.parametrize("drift", [0, SKEW])
def test_a_refused_upload_stores_nothing_later(server, drift):
    for refused in REFUSED:
        user = User(server, drift)
        user.register()
        refused_at = server.now()
        captured = refused(user)
        if "limit" in refused.__name__:  # a second passed until the limit allows it
            refused_at = server.now() - 1
        replay_changes_nothing(user, captured, STALE)
        server.move_clock(refused_at + SKEW + drift - server.now())  # the last second in which it is accepted
        replay_changes_nothing(user, captured, STALE)
        server.move_clock(1)
        replay_changes_nothing(user, captured, EXPIRED)


@pytest.mark.requirement("replay.retry", "retry.receipt")
def test_a_retry_stores_nothing_later(server):
    """Somebody stores the bytes of the base once more, so that the base of the retry is the latest version again."""
    user = User(server)
    user.register()
    user.store(b"A")
    user.store(b"B", b"A")
    server.move_clock(1)
    captured = accepted(user.device.store_backup(b"B", sha256(b"A")))
    server.move_clock(1)
    user.store(b"A", b"B")
    replay_changes_nothing(user, captured, STALE)


@pytest.mark.requirement("replay.refused", "storeBackup.201")
def test_what_was_refused_and_is_signed_afresh_is_stored(server):
    user = User(server)
    user.register()
    refused_for_its_base(user)
    server.move_clock(1)
    user.store(b"B", b"A")


@pytest.mark.requirement("replay.refused", "retry.first", "retry.receipt")
def test_a_refused_upload_of_what_is_the_latest_version_now_is_a_retry(server):
    user = User(server)
    user.register()
    captured = refused_for_its_base(user)
    server.move_clock(1)
    user.store(b"B", b"A")
    replay_changes_nothing(user, captured, RETRY)
    user.store(b"A", b"B")
    replay_changes_nothing(user, captured, STALE)  # the base fits again


@pytest.mark.requirement("replay.refused")
def test_20_refused_uploads_of_an_account_are_remembered(server):
    users = [User(server), User(server)]
    for user in users:
        user.register()
    captured = [user.device.store_backup(b"B %d" % number, sha256(b"A")) for number in range(20) for user in users]
    for user in users:
        user.store(b"A")
    before = [user.state() for user in users]
    assert {replay(server, exchange) for exchange in captured} == {STALE}
    assert [user.state() for user in users] == before


@pytest.mark.requirement("replay.refused", "base.current")
def test_a_refused_upload_names_the_version_there_is(target):
    user = User(target)
    user.register()
    request = refused_for_its_base(user).request
    answer = target.client().session.send(request, timeout=30)
    assert (answer.status_code, answer.json()["currentVersion"]) == (409, 1)


# ---- A clock that jumps ------------------------------------------------------------------------------------


@pytest.mark.requirement("replay.store", "replay.signature")
def test_a_replay_once_the_clock_has_come_back(server):
    """The server's clock was an hour ahead. When that hour comes, signatures from then are accepted again."""
    server.move_clock(3600)
    user = User(server)
    captured = back_by_uploads(user)
    server.move_clock(-3600)
    replay_changes_nothing(user, captured, EXPIRED)
    user.store(b"C", b"A")
    user.store(b"A", b"C")
    for seconds in (3300, 300, 300):
        server.move_clock(seconds)
        replay_changes_nothing(user, captured, STALE)


@pytest.mark.requirement("replay.register", "delete.all")
def test_a_deleted_user_once_the_clock_has_come_back(server):
    """The server's clock was ahead by as much as the userId stays reserved. Later, the userId may be forgotten."""
    server.move_clock(900)
    user = User(server)
    captured = user.register()
    user.delete()
    server.move_clock(-900)
    server.restart()
    for seconds in (0, 600, 300, 300):
        server.move_clock(seconds)
        assert replay(server, captured) in (EXPIRED, DELETED)
    assert user.state()[1:] == [(401, user.client().list_backup_versions().json())]
