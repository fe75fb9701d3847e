"""What each limit counts, and what it does not: each request of a table, and what it uses up of every limit.

A row of the table has a request and the limits for which it counts. It counts for no other limit, so each row is a test
of all of them. The limits are so low that a few requests show what is left of each.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import pytest

from clients.python.backup_client import BackupClient
from contract_tests.target import raw
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.openapi import LIMITS, MAX_DECODED_BYTES
from contract_tests.target.process import BEHIND_A_PROXY, ServerProcess

FAILURES, OF_ACCOUNT, REGISTRATIONS, UPLOADS, CHANGES = 5, 4, 3, 4, 3
SETTINGS = {
    "FAILED_CREDENTIALS_PER_5_MINUTES": FAILURES,
    "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": OF_ACCOUNT,
    "REGISTRATIONS_PER_HOUR": REGISTRATIONS,
    "BACKUPS_PER_HOUR": UPLOADS,
    "KEY_CHANGES_PER_HOUR": CHANGES,
    "RETIRED_KEYIDS": "retired",
    "ALLOWED_ORIGINS": "https://app.example",
}
BIRTHPLACE, HOME, ELSEWHERE, PROBE = "192.0.2.1", "192.0.2.2", "198.51.100.7", "203.0.113.9"
HEADER = BEHIND_A_PROXY["header"]
JSON = {"Content-Type": "application/json"}
WRONG, LIMITED = "401 credentials_invalid", "429 rate_limited"
TIMES = 2  # how often the request of a row is made


@dataclass
class World:
    """An account with a backup. It is known at HOME, and at BIRTHPLACE, where it was registered.

    The requests of a row come from `address`.
    """

    server: ServerProcess
    address: str = HOME
    user_id: str = field(default_factory=lambda: token_hex(32))
    key: str = field(default_factory=lambda: token_hex(32))
    blob: bytes = b"the first backup"  # of the latest version
    former: BackupClient | None = None  # with the key before the latest change

    def client(self, key: str = "", user_id: str = "", at: str = "", **options: Any) -> BackupClient:
        client = self.server.client((user_id or self.user_id, key or self.key), **options)
        client.session.headers[HEADER] = at or self.address
        return client

    def stranger(self, at: str = "") -> BackupClient:
        return self.client("5e" * 32, at=at)

    def nobody(self, at: str = "") -> BackupClient:
        return self.client("5e" * 32, token_hex(32), at)

    def deleted(self) -> BackupClient:
        """Return the client of an account that was deleted just now, by somebody at another address."""
        client = self.nobody(f"2001:db8:{token_hex(2)}::1")
        assert [outcome(client.register_user()), outcome(client.delete_user())] == ["201", "204"]
        client.session.headers[HEADER] = self.address
        return client

    def malformed(self, authorization: str) -> BackupClient:
        client = self.client()
        client._auth._authorization = authorization
        return client

    def post(self, body: Any, method: str = "POST", path: str = "/api/backup", **headers: str) -> Any:
        return self.client().request(method, path, body=body, headers=JSON | headers)

    def bare(self, method: str, path: str, *lines: str) -> raw.Answer:
        """Send a request without proofs."""
        return raw.send(self.server, raw.request(method, path, headers=(f"{HEADER}: {self.address}", *lines)))

    def signed(self, path: str = "/api/backup", signed_body: bytes = b"", **change: Any) -> raw.Answer:
        """Fetch, with a signature that differs in one thing from the right one."""
        credentials = self.user_id, self.key
        proofs = raw.signed(self.server, credentials, "GET", path.partition("?")[0], signed_body, **change)
        return self.bare("GET", path, *proofs)

    def under(self, fault: str, call: Callable[[], Any]) -> Any:
        self.server.fault = fault
        answer = call()
        self.server.fault = None
        self.server.move_clock(1)  # or a repeated upload would have the signature of the refused one
        return answer

    def store(self, at: str = "") -> Any:
        blob = token_hex(8).encode()
        answer = self.client(at=at).store_backup(blob, sha256(self.blob))
        self.blob = blob if answer.status_code == 201 else self.blob
        return answer

    def change_key(self, at: str = "") -> Any:
        key, blob = token_hex(32), token_hex(8).encode()
        answer = self.client(at=at).change_storage_key(key, blob, sha256(self.blob))
        if answer.status_code == 200:
            self.key, self.blob = key, blob
        return answer

    def upload_while(self, meanwhile: Callable[[], Any]) -> raw.Answer:
        """Store a backup. Its head arrives before something happens, and its body after that."""
        body = b'{"data":"QUFB","baseSha256":"%b"}' % sha256(self.blob).encode()
        proofs = raw.signed(self.server, (self.user_id, self.key), "POST", "/api/backup", body)
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Expect: 100-continue")
        head = raw.request("POST", "/api/backup", headers=(*proofs, *lines, f"{HEADER}: {self.address}"))
        return raw.expect(self.server, head, body, "POST", "/api/backup", meanwhile)[1]

    def too_slow(self) -> raw.Answer:
        return self.upload_while(functools.partial(self.server.move_clock, LIMITS["requestBodySeconds"] + 1))

    def with_the_former_key(self) -> Any:
        if self.former is None:
            self.former = self.client()
            assert outcome(self.change_key(HOME)) == "200"
        return self.former.fetch_backup()

    def used(self) -> dict[str, int]:
        """Return how much of each limit is used up, without what is not. This uses up the rest."""
        uploads = UPLOADS - 1 - left(self.client(at=HOME).store_backup(self.blob))  # one was made before
        assert accepted(lambda: self.store(HOME), "201") == UPLOADS - 1 - uploads  # as many as RateLimit says
        changes = CHANGES - accepted(lambda: self.change_key(HOME), "200")
        # Below the limit of the account, an address that is not known may fail more than twice.
        account = OF_ACCOUNT - compared(lambda: self.stranger(PROBE))
        pair = FAILURES - compared(lambda: self.stranger(HOME))
        created = 0
        while created < REGISTRATIONS and outcome(self.nobody().register_user()) == "201":
            created += 1
        registrations = REGISTRATIONS - created
        address = FAILURES - compared(self.nobody) - (registrations > 0)  # the last of these registrations got a 429
        found = locals()
        names = ("uploads", "changes", "account", "pair", "registrations", "address")
        return {name: found[name] for name in names if found[name]}


def left(answer: Any) -> int:
    """Return how many are left in this hour."""
    assert answer.status_code == 200, answer.text
    return int(answer.headers["RateLimit"].partition("r=")[2].partition(";")[0].partition(",")[0])


def accepted(call: Callable[[], Any], wants: str) -> int:
    """Return how often a call is accepted before the answer is 429."""
    for number in range(UPLOADS + CHANGES):
        if (answer := outcome(call())) == LIMITED:
            return number
        assert answer == wants
    pytest.fail("there is no limit")


def compared(client: Callable[[], BackupClient]) -> int:
    """Return how many wrong credentials are compared before the answer is 429."""
    for number in range(FAILURES + OF_ACCOUNT):
        if (answer := outcome(client().list_backup_versions())) == LIMITED:
            return number
        assert answer == WRONG
    pytest.fail("there is no limit")


@pytest.fixture(scope="module")
def shared(start_shared_server) -> ServerProcess:
    return start_shared_server(frozen=1_795_510_800, **BEHIND_A_PROXY["settings"], **SETTINGS)


@pytest.fixture
def world(shared) -> World:
    world = World(shared.some_weeks_later())
    assert outcome(world.client(at=BIRTHPLACE).register_user()) == "201"
    assert outcome(world.client(at=HOME).store_backup(world.blob)) == "201"
    return world


Row = tuple[str, Callable[[World], Any]]  # what the request gets, and the request
CALLS: dict[str, Callable[[BackupClient], Any]] = {  # with wrong credentials
    "fetches": lambda client: client.fetch_backup(),
    "fetches what is not modified": lambda client: client.fetch_backup("*"),
    "fetches a version": lambda client: client.fetch_backup_version(1),
    "lists": lambda client: client.list_backup_versions(),
    "stores": lambda client: client.store_backup(b"junk"),
    "changes the key": lambda client: client.change_storage_key("ab" * 32, b"junk"),
    "deletes": lambda client: client.delete_user(),
}
COUNT_NOTHING: dict[str, Row] = {
    "a fetch": ("200", lambda world: world.client().fetch_backup()),
    "a 304": ("304", lambda world: world.client().fetch_backup("*")),
    "a list": ("200", lambda world: world.client().list_backup_versions()),
    "a version that is not there": ("404 no_such_version", lambda world: world.client().fetch_backup_version(9)),
    "a registration again": ("200", lambda world: world.client().register_user()),
    "an upload again": ("200", lambda world: world.client().store_backup(world.blob)),
    "a stale upload": ("409 version_conflict", lambda world: world.client().store_backup(b"x", "0" * 64)),
    "a stale key change": (
        "409 version_conflict",
        lambda world: world.client().change_storage_key("ab" * 32, b"x", "0" * 64),
    ),
    "a change to the same key": (
        "422 validation_failed",
        lambda world: world.client().change_storage_key(world.key, b"x", sha256(world.blob)),
    ),
    "a wrong member": ("422 validation_failed", lambda world: world.post(b"{}")),
    "a wrong member of a key change": (
        "422 validation_failed",
        lambda world: world.post(b"{}", "PUT", "/api/user/storage-key"),
    ),
    "no JSON": ("400 malformed_request", lambda world: world.post(b"{")),
    "another media type": ("415 unsupported_media_type", lambda world: world.post(b"{}", **{"Content-Type": "x/y"})),
    "a needless body": ("400 malformed_request", lambda world: world.post(b"{}", "GET")),
    "too large a backup": (
        "413 payload_too_large",
        lambda world: world.client().store_backup(bytes(MAX_DECODED_BYTES + 1), sha256(world.blob)),
    ),
    "too large a body": (
        "413 payload_too_large",
        lambda world: world.bare("POST", "/api/backup", "Content-Length: 99999999"),
    ),
    "too slow a body": ("408 request_timeout", lambda world: world.too_slow()),
    "another body": ("400 digest_mismatch", lambda world: world.signed(signed_body=b"{}")),
    "a query": ("400 malformed_request", lambda world: world.signed("/api/backup?x")),
    "no signature": ("401 signature_missing", lambda world: world.bare("GET", "/api/backup")),
    "a wrong signature": ("401 signature_invalid", lambda world: world.signed(secret="another secret")),
    "an unknown keyid": ("401 signature_invalid", lambda world: world.signed(keyid="unknown")),
    "an old signature": ("401 signature_expired", lambda world: world.signed(created=1)),
    "an outdated app": ("403 app_outdated", lambda world: world.signed(keyid="retired")),
    "an upload without space": ("507 storage_full", lambda world: world.under("storage_full", world.store)),
    "a key change without space": ("507 storage_full", lambda world: world.under("storage_full", world.change_key)),
    "a registration without space": (
        "507 storage_full",
        lambda world: world.under("storage_full", world.nobody().register_user),
    ),
    "a fault": ("500 internal_error", lambda world: world.under("internal_error", world.client().fetch_backup)),
    "a fault at an upload": ("500 internal_error", lambda world: world.under("internal_error", world.store)),
    "a reserved userId": ("409 recently_deleted", lambda world: world.deleted().register_user()),
    "no admin key": ("401 admin_key_invalid", lambda world: world.bare("GET", "/admin/stats")),
    "a wrong admin key": (
        "401 admin_key_invalid",
        lambda world: world.bare("GET", "/admin/stats", "Authorization: Bearer x"),
    ),
    "a user's key for the admin key": (
        "401 admin_key_invalid",
        lambda world: world.bare("GET", "/admin/stats", f"Authorization: Bearer {world.key}"),
    ),
    "health with credentials": ("200", lambda world: world.bare("GET", "/health", "Authorization: Basic !")),
    "no path": ("404 not_found", lambda world: world.bare("GET", "/nothing", "Authorization: Basic !")),
    "another method": ("405 method_not_allowed", lambda world: world.bare("PATCH", "/api/user", "Authorization: !")),
    "a preflight": (
        "204",
        lambda world: world.bare(
            "OPTIONS", "/api/user", "Origin: https://app.example", "Access-Control-Request-Method: DELETE"
        ),
    ),
}
COUNT = {
    "an upload": ({"uploads": 2}, ("201", lambda world: world.store())),
    "a key change": ({"changes": 2}, ("200", lambda world: world.change_key())),
    "a registration": ({"registrations": 2}, ("201", lambda world: world.nobody().register_user())),
    "a taken userId": (
        {"pair": 2, "account": 2},
        ("409 username_taken", lambda world: world.stranger().register_user()),
    ),
    "a former key": ({"pair": 2, "account": 2, "changes": 1}, (WRONG, lambda world: world.with_the_former_key())),
    "a key that became wrong": (
        {"pair": 2, "account": 2, "changes": 2},
        (WRONG, lambda world: world.upload_while(lambda: world.change_key(HOME))),
    ),
    "a deleted account": ({"address": 2}, (WRONG, lambda world: world.deleted().list_backup_versions())),
    "no base64": ({"address": 2}, (WRONG, lambda world: world.malformed("Basic !").fetch_backup())),
    "another scheme": ({"address": 2}, (WRONG, lambda world: world.malformed("Bearer x").register_user())),
    "a userId in capitals": (
        {"address": 2},
        (WRONG, lambda world: world.client(user_id=world.user_id.upper().replace("0", "A")).delete_user()),
    ),
    "half a key": ({"address": 2}, (WRONG, lambda world: world.client(world.key[:32]).fetch_backup())),
    **{
        f"somebody with a wrong key {name}": (
            {"pair": 2, "account": 2},
            (WRONG, lambda world, call=call: call(world.stranger())),
        )
        for name, call in CALLS.items()
    },
    **{
        f"nobody {name}": ({"address": 2}, (WRONG, lambda world, call=call: call(world.nobody())))
        for name, call in CALLS.items()
    },
}


def try_out(world: World, row: Row) -> dict[str, int]:
    """Make the request of a row. Return what it has used up."""
    wants, call = row
    assert [outcome(call(world)) for _ in range(TIMES)] == [wants] * TIMES
    return world.used()


@pytest.mark.requirement(
    "address.free", "limits.free", "address.failures", "address.registrations", "guessing.counts", "limits.key-own"
)
@pytest.mark.parametrize("row", COUNT_NOTHING.values(), ids=COUNT_NOTHING)
def test_what_counts_nothing(world, row):
    assert try_out(world, row) == {}


@pytest.mark.requirement(
    *(
        "guessing.counts",
        "guessing.pair",
        "address.failures",
        "address.registrations",
        "limits.hour",
        "limits.key-hour",
    ),
    *("limits.key-own", "address.free"),
)
@pytest.mark.parametrize(("counts", "row"), COUNT.values(), ids=COUNT)
def test_what_counts_and_for_which_limits(world, counts, row):
    assert try_out(world, row) == counts


@pytest.mark.requirement("guessing.counts", "guessing.account", "address.failures", "registerUser.409")
@pytest.mark.parametrize("name", [*CALLS, "registers"])
def test_what_counts_at_an_address_that_is_not_known(world, name):
    world.address = ELSEWHERE
    call = CALLS.get(name, lambda client: client.register_user())
    wants = "409 username_taken" if name == "registers" else WRONG
    assert try_out(world, (wants, lambda world: call(world.stranger()))) == {"address": 2, "account": 2}


@pytest.mark.requirement("guessing.counts", "address.registrations", "address.silent", "registerUser.429")
@pytest.mark.parametrize("is_taken", [True, False])
def test_a_registration_past_its_limit_counts_for_address_and_user_id(world, is_taken):
    world.address = ELSEWHERE
    for _ in range(REGISTRATIONS):
        assert outcome(world.nobody().register_user()) == "201"
    tried = world if is_taken else World(world.server, ELSEWHERE)
    for _ in range(TIMES):
        assert outcome(tried.stranger().register_user()) == LIMITED
    assert OF_ACCOUNT - compared(lambda: tried.stranger(PROBE)) == TIMES
    assert FAILURES - compared(world.nobody) == TIMES


@pytest.mark.requirement("address.free", "admin.proof", "getAdminStats.200")
def test_no_limit_applies_to_the_statistics_and_what_needs_no_proof(world):
    assert compared(world.nobody) == FAILURES
    for key, wants in [(world.server.admin_key, "200"), ("x" * 32, "401 admin_key_invalid")] * 20:
        assert outcome(world.bare("GET", "/admin/stats", f"Authorization: Bearer {key}")) == wants
    for method, path, wants in [
        ("GET", "/health", "200"),
        ("GET", "/openapi.json", "200"),
        ("GET", "/nothing", "404 not_found"),
        ("PATCH", "/api/backup", "405 method_not_allowed"),
        ("GET", "/api/backup", "401 signature_missing"),
    ]:
        assert outcome(world.bare(method, path)) == wants
    assert outcome(world.signed(secret="another secret")) == "401 signature_invalid"
    assert outcome(world.nobody().fetch_backup()) == LIMITED
