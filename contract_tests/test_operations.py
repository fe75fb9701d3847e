"""Each operation and each of its own statuses, as in openapi.yaml."""

import base64
import json
import secrets
import time
from datetime import datetime
from typing import Any

import pytest
import requests
import yaml

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target import openapi, raw
from contract_tests.target.calls import FromAddress, outcome, sha256, stats
from contract_tests.target.edge import own_etag
from contract_tests.target.openapi import RESERVED
from contract_tests.target.target import RAISED_LIMITS

NEW_KEY = secrets.token_hex(32)
A, B, C = b"the first backup", b"the second", b"\x00\xff" * 5000


def run(client: BackupClient, steps: list[tuple[Any, ...]]) -> None:
    """Make the calls in order and compare their outcomes."""
    for number, (call, *arguments, wants) in enumerate(steps):
        assert outcome(getattr(client, call)(*arguments)) == wants, f"step {number}: {call}"


SEQUENCES = {
    "registering again is a retry": [
        ("register_user", "201"),
        ("register_user", "200"),
        ("store_backup", A, "201"),
        ("register_user", "200"),
        ("fetch_backup", "200"),
    ],
    "nothing works before the registration": [
        ("fetch_backup", "401 credentials_invalid"),
        ("list_backup_versions", "401 credentials_invalid"),
        ("fetch_backup_version", 1, "401 credentials_invalid"),
        ("fetch_backup_version", "x", "401 credentials_invalid"),
        ("store_backup", A, "401 credentials_invalid"),
        ("change_storage_key", NEW_KEY, A, "401 credentials_invalid"),
        ("delete_user", "401 credentials_invalid"),
    ],
    "an account without a backup": [
        ("register_user", "201"),
        ("fetch_backup", "404 no_backup"),
        ("fetch_backup", "*", "404 no_backup"),
        ("fetch_backup_version", 1, "404 no_such_version"),
        ("list_backup_versions", "200"),
        ("delete_user", "204"),
    ],
    "an upload repeated is a retry, with any base": [
        ("register_user", "201"),
        ("store_backup", A, "201"),
        ("store_backup", A, "200"),
        ("store_backup", A, sha256(A), "200"),
        ("store_backup", A, sha256(B), "200"),
        ("fetch_backup_version", 2, "404 no_such_version"),
    ],
    "only an upload made from the latest version": [
        ("register_user", "201"),
        ("store_backup", A, sha256(A), "409 version_conflict"),
        ("store_backup", A, "201"),
        ("store_backup", B, "409 version_conflict"),
        ("store_backup", B, sha256(B), "409 version_conflict"),
        ("store_backup", B, sha256(A), "201"),
        ("store_backup", C, sha256(A), "409 version_conflict"),
        ("store_backup", C, "409 version_conflict"),
        ("store_backup", C, sha256(B), "201"),
        ("fetch_backup_version", 3, "200"),
        ("fetch_backup_version", 4, "404 no_such_version"),
    ],
    "an older version's bytes are a new version": [
        ("register_user", "201"),
        ("store_backup", A, "201"),
        ("store_backup", B, sha256(A), "201"),
        ("store_backup", A, "409 version_conflict"),
        ("store_backup", A, sha256(B), "201"),
        ("fetch_backup_version", 3, "200"),
    ],
    "the storage key": [
        ("register_user", "201"),
        ("change_storage_key", NEW_KEY, A, sha256(A), "409 version_conflict"),
        ("store_backup", A, "201"),
        ("change_storage_key", NEW_KEY, B, "409 version_conflict"),
        ("change_storage_key", NEW_KEY.upper(), B, sha256(A), "422 validation_failed"),
        ("change_storage_key", NEW_KEY[2:], B, sha256(A), "422 validation_failed"),
        ("change_storage_key", NEW_KEY, B, sha256(A), "200"),
        ("change_storage_key", NEW_KEY, B, sha256(A), "401 credentials_invalid"),
        ("fetch_backup", "401 credentials_invalid"),
        ("delete_user", "401 credentials_invalid"),
        ("register_user", "409 username_taken"),
    ],
    "the end": [
        ("register_user", "201"),
        ("store_backup", A, "201"),
        ("delete_user", "204"),
        ("delete_user", "401 credentials_invalid"),
        ("fetch_backup", "401 credentials_invalid"),
        ("list_backup_versions", "401 credentials_invalid"),
        ("store_backup", A, "401 credentials_invalid"),
        ("register_user", "409 recently_deleted"),
    ],
}


PROVES = {  # the requirements that each sequence proves
    "registering again is a retry": (
        "registerUser.200 registerUser.201 register.retry storeBackup.201 fetchBackup.200"
    ),
    "nothing works before the registration": (
        "fetchBackup.401 listBackupVersions.401 fetchBackupVersion.401 storeBackup.401 changeStorageKey.401 "
        "deleteUser.401"
    ),
    "an account without a backup": "fetchBackup.404 fetchBackupVersion.404 listBackupVersions.200 deleteUser.204",
    "an upload repeated is a retry, with any base": "storeBackup.200 retry.receipt retry.first",
    "only an upload made from the latest version": (
        "storeBackup.201 storeBackup.409 base.latest base.conflict version.count"
    ),
    "an older version's bytes are a new version": "storeBackup.201 version.count",
    "the storage key": (
        "changeStorageKey.200 changeStorageKey.409 changeStorageKey.422 changeStorageKey.401 key.old registerUser.409"
    ),
    "the end": "deleteUser.204 deleteUser.401 delete.refused registerUser.409",
}


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(steps, marks=pytest.mark.requirement(*PROVES[name].split()), id=name)
        for name, steps in SEQUENCES.items()
    ],
)
def test_sequences(target, steps):
    user_id = secrets.token_hex(32)
    target.client((user_id, NEW_KEY))  # so that it is deleted after the test
    run(target.client((user_id, secrets.token_hex(32))), steps)


# ---- The account -------------------------------------------------------------------------------------------


@pytest.mark.requirement("registerUser.200", "register.retry")
def test_registration_tells_when(target, new_user):
    created = new_user().register_user().json()["createdAt"]
    assert abs(seconds(created) - target.now()) <= 300


@pytest.mark.requirement("registerUser.200", "register.retry")
def test_a_repeated_registration_tells_when_the_first_was(new_user):
    client = new_user()
    created = client.register_user().json()["createdAt"]
    time.sleep(1.1)  # createdAt has whole seconds
    again = client.register_user()
    assert (outcome(again), again.json()["createdAt"]) == ("200", created)


@pytest.mark.requirement("registerUser.409", "isolation.read", "problem.unchanged")
def test_another_storage_key_does_not_register_nor_change_anything(target, new_user):
    user_id, storage_key = secrets.token_hex(32), secrets.token_hex(32)
    client = new_user((user_id, storage_key))
    assert outcome(client.store_backup(A)) == "201"
    other = target.client((user_id, secrets.token_hex(32)))
    assert outcome(other.register_user()) == "409 username_taken"
    assert outcome(other.fetch_backup()) == "401 credentials_invalid"
    assert backup_bytes(client.fetch_backup()) == A


@pytest.mark.requirement(
    "changeStorageKey.200", "changeStorageKey.422", "key.old", "key.new", "key.same", "version.key", "problem.pointer"
)
def test_changed_storage_key(target, new_user):
    user_id, old_key, new_key = (secrets.token_hex(32) for _ in range(3))
    old = new_user((user_id, old_key))
    new = target.client((user_id, new_key))
    first = old.store_backup(A).json()
    assert first["keyVersion"] == 1

    # The key in force is not a change. The problem points to the member that is wrong.
    same = old.change_storage_key(old_key, B, sha256(A))
    assert outcome(same) == "422 validation_failed"
    assert [error["pointer"] for error in same.json()["errors"]] == ["#/storageKey"]

    changed = old.change_storage_key(new_key, B, sha256(A))
    assert outcome(changed) == "200"
    assert (
        changed.json().items()
        >= {
            "version": 2,
            "size": len(B),
            "sha256": sha256(B),
            "keyVersion": 2,
        }.items()
    )
    assert outcome(old.fetch_backup()) == "401 credentials_invalid"
    # The new key opens everything. The older version keeps the keyVersion that it was stored under.
    assert new.list_backup_versions().json()["versions"] == [changed.json(), first]
    assert backup_bytes(new.fetch_backup()) == B
    assert backup_bytes(new.fetch_backup_version(1)) == A
    assert outcome(new.register_user()) == "200"
    assert new.store_backup(C, sha256(B)).json()["keyVersion"] == 2


@pytest.mark.requirement("changeStorageKey.200", "base.latest", "version.key")
def test_a_first_backup_may_come_with_a_key_change(target, new_user):
    user_id, new_key = secrets.token_hex(32), secrets.token_hex(32)
    changed = new_user((user_id, secrets.token_hex(32))).change_storage_key(new_key, A)
    assert outcome(changed) == "200"
    assert (changed.json()["version"], changed.json()["keyVersion"]) == (1, 2)
    assert backup_bytes(target.client((user_id, new_key)).fetch_backup()) == A


@pytest.mark.requirement("changeStorageKey.409", "base.conflict", "retry.receipt")
def test_a_key_change_has_no_retry_by_equal_bytes(target, new_user):
    user_id, new_key = secrets.token_hex(32), secrets.token_hex(32)
    client = new_user((user_id, secrets.token_hex(32)))
    client.store_backup(A)
    assert outcome(client.change_storage_key(new_key, A)) == "409 version_conflict"
    changed = client.change_storage_key(new_key, A, sha256(A))
    assert (outcome(changed), changed.json()["version"]) == ("200", 2)
    assert outcome(target.client((user_id, new_key)).list_backup_versions()) == "200"


@pytest.mark.requirement("delete.reserved", "delete.fresh", "delete.all", "registerUser.409", "header.Retry-After")
def test_a_deleted_user_may_register_after_901_seconds(start_server):
    server = start_server(frozen=1_800_000_000)
    credentials = (secrets.token_hex(32), secrets.token_hex(32))
    client = server.client(credentials)
    run(client, [("register_user", "201"), ("store_backup", A, "201"), ("delete_user", "204")])
    for passed, left in [(0, RESERVED), (1, RESERVED - 1), (RESERVED - 2, 1)]:
        server.move_clock(passed)
        refused = client.register_user()
        assert (outcome(refused), refused.headers["Retry-After"]) == ("409 recently_deleted", str(left))
    # The storage key does not matter.
    other = server.client((credentials[0], secrets.token_hex(32)))
    assert outcome(other.register_user()) == "409 recently_deleted"
    server.move_clock(1)
    run(client, [("register_user", "201"), ("fetch_backup", "404 no_backup")])
    assert client.store_backup(B).json()["version"] == 1
    assert outcome(client.fetch_backup_version(2)) == "404 no_such_version"


@pytest.mark.requirement("delete.reserved", "header.Retry-After")
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_a_reservation_counts_from_the_very_moment_of_the_last_deletion(start_server, fraction):
    """Each attempt in between changes nothing. The second deletion of a name reserves it as long as the first did."""
    server = start_server(frozen=1_800_000_000 + fraction)
    client = server.client()
    run(client, [("register_user", "201")])
    for _ in range(2):
        run(client, [("store_backup", A, "201"), ("delete_user", "204")])
        for passed, left in [(0.4, RESERVED), (0.2, RESERVED), (0.399, RESERVED), (0.001, RESERVED - 1)]:
            server.move_clock(passed)
            refused = client.register_user()
            assert (outcome(refused), refused.headers["Retry-After"]) == ("409 recently_deleted", str(left))
        server.move_clock(RESERVED - 2.4)
        assert client.register_user().headers["Retry-After"] == "2"
        server.move_clock(1.399)
        assert client.register_user().headers["Retry-After"] == "1"
        server.move_clock(0.001)
        run(client, [("register_user", "201"), ("fetch_backup", "404 no_backup")])


@pytest.mark.requirement("isolation.read", "isolation.delete")
def test_users_are_strangers_to_each_other(new_user):
    one, other = new_user(), new_user()
    one.store_backup(A)
    other.store_backup(B)
    assert (backup_bytes(one.fetch_backup()), backup_bytes(other.fetch_backup())) == (A, B)
    assert (backup_bytes(one.fetch_backup_version(1)), backup_bytes(other.fetch_backup_version(1))) == (A, B)
    assert outcome(one.delete_user()) == "204"
    assert backup_bytes(other.fetch_backup()) == B


# ---- Backups and versions ----------------------------------------------------------------------------------


@pytest.mark.requirement(
    "storeBackup.201",
    "storeBackup.200",
    "fetchBackup.200",
    "fetchBackupVersion.200",
    "listBackupVersions.200",
    "backup.bytes",
    "version.count",
    "version.latest",
    "version.list",
    "version.key",
    "etag.strong",
    "retry.receipt",
    "header.ETag",
)
def test_receipts(target, new_user):
    client = new_user()
    receipts = []
    for version, (blob, base) in enumerate([(A, None), (B, sha256(A)), (C, sha256(B))], start=1):
        stored = client.store_backup(blob, base)
        receipt = stored.json()
        assert (
            receipt.items()
            >= {
                "version": version,
                "size": len(blob),
                "sha256": sha256(blob),
                "keyVersion": 1,
            }.items()
        )
        assert abs(seconds(receipt["updatedAt"]) - target.now()) <= 300
        assert client.store_backup(blob, base).json() == receipt  # a retry gets the same receipt
        receipts.insert(0, receipt)
        latest = client.fetch_backup()
        assert latest.json() == {**receipt, "data": base64.b64encode(blob).decode()}
        assert own_etag(latest.headers) == f'"{version}-{sha256(blob)}"'
        assert client.list_backup_versions().json() == {"versions": receipts}
    for receipt, blob in zip(receipts, (C, B, A), strict=True):
        fetched = client.fetch_backup_version(receipt["version"])
        assert fetched.json() == {**receipt, "data": base64.b64encode(blob).decode()}
        assert own_etag(fetched.headers) == f'"{receipt["version"]}-{sha256(blob)}"'


@pytest.mark.requirement("header.Location", "storeBackup.201", "storeBackup.200", "changeStorageKey.200")
def test_where_a_new_version_is(target, new_user):
    """Location names the version that was stored, and nothing else carries it."""
    user_id, new_key = secrets.token_hex(32), secrets.token_hex(32)
    client = new_user((user_id, secrets.token_hex(32)))
    for version, (blob, base) in enumerate([(A, None), (B, sha256(A)), (C, sha256(B))], start=1):
        stored = client.store_backup(blob, base)
        assert stored.headers["Location"] == f"/api/backup/versions/{version}"
        fetched = client.request("GET", stored.headers["Location"])
        assert fetched.json()["version"] == version
        assert backup_bytes(fetched) == blob
        others = [client.store_backup(blob, base), client.store_backup(b"stale"), client.fetch_backup()]
        assert not [answer for answer in others if "Location" in answer.headers]
    changed = client.change_storage_key(new_key, A, sha256(C))
    assert outcome(changed) == "200"
    assert "Location" not in changed.headers
    target.client((user_id, new_key))


@pytest.mark.requirement("base.current", "storeBackup.409", "changeStorageKey.409")
def test_a_conflict_names_the_current_version(new_user):
    client = new_user()
    assert client.store_backup(A, sha256(A)).json()["currentVersion"] == 0
    client.store_backup(A)
    client.store_backup(B, sha256(A))
    assert client.store_backup(C, sha256(A)).json()["currentVersion"] == 2
    assert client.change_storage_key(NEW_KEY, C).json()["currentVersion"] == 2


@pytest.mark.requirement("listBackupVersions.200", "version.list")
def test_an_empty_list(new_user):
    assert new_user().list_backup_versions().json() == {"versions": []}


@pytest.mark.requirement("version.canonical", "fetchBackupVersion.404")
@pytest.mark.parametrize(
    ("version", "wants"),
    [
        ("1", "200"),
        ("2", "404 no_such_version"),
        ("0", "404 no_such_version"),
        ("-1", "404 no_such_version"),
        ("01", "404 no_such_version"),
        ("+1", "404 no_such_version"),
        ("1.0", "404 no_such_version"),
        ("1e0", "404 no_such_version"),
        ("0x1", "404 no_such_version"),
        ("1_0", "404 no_such_version"),
        ("%31", "404 no_such_version"),
        ("1%0A", "404 no_such_version"),
        ("1%20", "404 no_such_version"),
        ("%EF%BC%91", "404 no_such_version"),  # a full-width 1
        ("%FF", "404 no_such_version"),
        ("1;a=b", "404 no_such_version"),
        ("x", "404 no_such_version"),
        ("9007199254740992", "404 no_such_version"),
        ("18446744073709551617", "404 no_such_version"),  # 1 in 64 bits
        ("1" * 5000, "404 no_such_version"),
        ("", "404 not_found"),
        ("1/", "404 not_found"),
        ("1/1", "404 not_found"),
    ],
)
def test_canonical_version(target, version, wants):
    credentials = (secrets.token_hex(32), secrets.token_hex(32))
    run(target.client(credentials), [("register_user", "201"), ("store_backup", A, "201")])
    path = f"/api/backup/versions/{version}"
    answer = raw.send(target, raw.request("GET", path, headers=raw.signed(target, credentials, "GET", path)))
    assert outcome(answer) == wants


@pytest.mark.requirement(
    "etag.match", "etag.other", "etag.strong", "header.ETag", "fetchBackup.304", "fetchBackupVersion.304"
)
@pytest.mark.parametrize(
    ("if_none_match", "wants"),
    [
        ("{etag}", 304),
        ("W/{etag}", 304),  # RFC 9110 section 13.1.2: weak comparison
        ("*", 304),
        ('"other", {etag}', 304),
        ('{etag},"other"', 304),
        ('"with,comma" , W/"x",{etag}', 304),
        (", {etag} ,", 304),  # RFC 9110 section 5.6.1.2: empty elements are ignored
        ("{older}, {etag}", 304),
        ("{older}", 200),
        ('"other"', 200),
        ('"*"', 200),
        ('W/"other", "x"', 200),
        ('"1"', 200),
        ("", 200),
    ],
)
def test_if_none_match(new_user, if_none_match, wants):
    client = new_user()
    client.store_backup(A)
    older = own_etag(client.fetch_backup().headers)
    client.store_backup(B, sha256(A))
    etag = own_etag(client.fetch_backup().headers)
    condition = if_none_match.replace("{etag}", etag).replace("{older}", older)
    for fetched in (client.fetch_backup(condition), client.fetch_backup_version(2, condition)):
        assert fetched.status_code == wants
        assert own_etag(fetched.headers) == etag
    assert client.fetch_backup_version(1, older).status_code == 304


# ---- Limits on uploads -------------------------------------------------------------------------------------


POLICY = '"hour";q=5;w=3600, "day";q=20;w=86400'
UPLOADS = [  # the seconds that pass before an upload, its outcome, RateLimit, Retry-After
    (0, "201", '"hour";r=4;t=3600, "day";r=19;t=86400', None),
    (0.5, "201", '"hour";r=3;t=3600, "day";r=18;t=86400', None),  # rounded up
    (99.5, "201", '"hour";r=2;t=3500, "day";r=17;t=86300', None),
    (100, "201", '"hour";r=1;t=3400, "day";r=16;t=86200', None),
    (100, "201", '"hour";r=0;t=3300, "day";r=15;t=86100', None),
    (100, "429 rate_limited", '"hour";r=0;t=3200, "day";r=15;t=86000', "3200"),
    (3199, "429 rate_limited", '"hour";r=0;t=1, "day";r=15;t=82801', "1"),
    (1, "201", '"hour";r=0;t=1, "day";r=14;t=82800', None),  # the first is 3600 s old and no longer counts
    (0, "429 rate_limited", '"hour";r=0;t=1, "day";r=14;t=82800', "1"),
]


@pytest.mark.requirement(
    "limits.remaining",
    "limits.policy",
    "limits.hour",
    "limits.sliding",
    "limits.retry-after",
    "limits.free",
    "header.RateLimit",
    "header.RateLimit-Policy",
    "storeBackup.429",
)
def test_rate_limit_headers(start_server):
    server = start_server(frozen=1_800_000_000)
    client = server.client()
    client.register_user()
    base = None
    for number, (passes, wants, rate_limit, retry_after) in enumerate(UPLOADS):
        server.move_clock(passes)
        blob = b"backup %d" % number
        stored = client.store_backup(blob, base)
        assert outcome(stored) == wants, f"upload {number}"
        assert stored.headers["RateLimit"] == rate_limit, f"upload {number}"
        assert stored.headers["RateLimit-Policy"] == POLICY
        assert stored.headers.get("Retry-After") == retry_after
        if wants == "201":
            base = sha256(blob)
            # A retry does not count, and shows the same.
            retried = client.store_backup(blob)
            assert (outcome(retried), retried.headers["RateLimit"]) == ("200", rate_limit)


@pytest.mark.requirement("limits.remaining", "retry.first", "header.RateLimit")
def test_a_retry_shows_an_empty_window_without_t(start_server):
    server = start_server(frozen=1_800_000_000)
    client = server.client()
    run(client, [("register_user", "201"), ("store_backup", A, "201")])
    for passes, rate_limit in [(3600, '"hour";r=5, "day";r=19;t=82800'), (82800, '"hour";r=5, "day";r=20')]:
        server.move_clock(passes)
        retried = client.store_backup(A)
        assert (outcome(retried), retried.headers["RateLimit"]) == ("200", rate_limit)


@pytest.mark.requirement(
    *("limits.policy", "limits.hour", "limits.day", "limits.key-hour", "limits.key-day", "limits.key-own"),
    *("changeStorageKey.429", "header.RateLimit", "header.RateLimit-Policy"),
)
def test_the_limits_in_force_are_told_and_are_those_of_the_operation(start_server):
    limits = {"BACKUPS_PER_HOUR": 2, "BACKUPS_PER_DAY": 3, "KEY_CHANGES_PER_HOUR": 1, "KEY_CHANGES_PER_DAY": 2}
    server = start_server(frozen=1_800_000_000, **limits)
    user_id, *keys = (secrets.token_hex(32) for _ in range(5))
    client = server.client((user_id, keys[0]))
    client.register_user()
    stored = client.store_backup(A)
    assert stored.headers["RateLimit-Policy"] == '"hour";q=2;w=3600, "day";q=3;w=86400'
    assert stored.headers["RateLimit"] == '"hour";r=1;t=3600, "day";r=2;t=86400'
    changed = client.change_storage_key(keys[1], B, sha256(A))
    assert changed.headers["RateLimit-Policy"] == '"key-hour";q=1;w=3600, "key-day";q=2;w=86400'
    assert changed.headers["RateLimit"] == '"key-hour";r=0;t=3600, "key-day";r=1;t=86400'
    client = server.client((user_id, keys[1]))
    refused = client.change_storage_key(keys[2], C, sha256(B))
    assert (outcome(refused), refused.headers["Retry-After"]) == ("429 rate_limited", "3600")
    server.move_clock(3600)
    assert outcome(client.change_storage_key(keys[2], C, sha256(B))) == "200"
    server.move_clock(3600)
    client = server.client((user_id, keys[2]))
    refused = client.change_storage_key(keys[3], A, sha256(C))
    assert (outcome(refused), refused.headers["Retry-After"]) == ("429 rate_limited", str(86400 - 7200))
    assert refused.headers["RateLimit"] == '"key-hour";r=1, "key-day";r=0;t=79200'
    assert refused.headers["RateLimit-Policy"] == '"key-hour";q=1;w=3600, "key-day";q=2;w=86400'
    stored = client.store_backup(A, sha256(C))
    assert (outcome(stored), stored.headers["RateLimit"]) == ("201", '"hour";r=1;t=3600, "day";r=1;t=79200')


@pytest.mark.requirement("address.registrations", "address.retry-after", "registerUser.429")
def test_registrations_from_one_address(start_server):
    server = start_server(frozen=1_800_000_000)
    clients = [server.client() for _ in range(21)]
    for client in clients[:20]:
        assert outcome(client.register_user()) == "201"
        server.move_clock(1)
    refused = clients[20].register_user()
    assert (outcome(refused), refused.headers["Retry-After"]) == ("429 rate_limited", "3580")
    # A retry is not refused, nor is anything but a registration.
    assert outcome(clients[0].register_user()) == "200"
    assert outcome(clients[0].store_backup(A)) == "201"
    server.move_clock(3579)
    assert outcome(clients[20].register_user()) == "429 rate_limited"
    server.move_clock(1)
    assert outcome(clients[20].register_user()) == "201"


@pytest.mark.requirement("address.failures", "address.retry-after", "limits.policy")
def test_failed_credentials_from_one_address(start_server):
    server = start_server(frozen=1_800_000_000)
    user_id = secrets.token_hex(32)
    client = server.client((user_id, secrets.token_hex(32)))
    client.session.mount("http://", FromAddress("127.0.0.2"))
    run(client, [("register_user", "201"), ("store_backup", A, "201")])
    client = server.client(client.credentials)  # from an address that is not known
    stranger = server.client((user_id, secrets.token_hex(32)))
    malformed = server.client((user_id.upper(), secrets.token_hex(32)))
    for call, wants in [
        (stranger.fetch_backup, "401 credentials_invalid"),
        (stranger.register_user, "409 username_taken"),
        (malformed.fetch_backup, "401 credentials_invalid"),
    ] * 10:
        assert outcome(call()) == wants
    # After 30 failures, every request with credentials is refused, even with the right ones. Other requests work.
    for call in (client.fetch_backup, client.register_user, stranger.fetch_backup, client.delete_user):
        refused = call()
        assert (outcome(refused), refused.headers["Retry-After"]) == ("429 rate_limited", "300")
    upload = client.store_backup(B, sha256(A))
    assert (outcome(upload), upload.headers["RateLimit-Policy"]) == ("429 rate_limited", POLICY)
    assert outcome(client.get_health()) == "200"
    server.move_clock(300)
    assert backup_bytes(client.fetch_backup()) == A


# ---- Service -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("getHealth.200")
@pytest.mark.public
def test_health(target):
    health = target.client().get_health().json()
    assert health["version"] == openapi.SPEC["info"]["version"]
    assert health["status"] == ("degraded" if health.get("degraded") else "ok")
    assert "degraded" not in health or health["status"] == "degraded"


@pytest.mark.requirement("getHealth.200")
def test_a_server_without_a_fault_is_ok(start_server):
    assert start_server().client().get_health().json()["status"] == "ok"


@pytest.mark.requirement("health.writes")
def test_a_write_that_failed_lately(start_server):
    """It is told until one has succeeded, and for ten minutes."""
    server = start_server()
    client = server.client()
    assert outcome(client.register_user()) == "201"
    server.fault = "storage_full"
    assert outcome(client.store_backup(A)) == "507 storage_full"
    assert client.get_health().json()["degraded"] == ["writes"]
    server.move_clock(601)
    assert client.get_health().json()["degraded"] == ["writes"]  # none has succeeded since
    assert outcome(client.store_backup(A)) == "507 storage_full"
    server.fault = None
    assert outcome(client.store_backup(B)) == "201"
    assert client.get_health().json()["degraded"] == ["writes"]
    server.move_clock(590)
    assert client.get_health().json()["degraded"] == ["writes"]
    server.move_clock(11)
    assert client.get_health().json()["status"] == "ok"


@pytest.mark.requirement("getOpenapiYaml.200", "getOpenapiJson.200", "document.same")
@pytest.mark.public
def test_the_documents_say_what_the_server_does(target):
    """Both forms say the same, and each operation is as in the contract. A server may leave out operations."""
    client = target.client()
    document = client.get_openapi("json").json()
    assert json.loads(json.dumps(yaml.safe_load(client.get_openapi("yaml").content))) == document
    wants = json.loads(json.dumps(openapi.SPEC))
    for operation in openapi.OPERATIONS.values():
        if operation.id in target.observer.lacking:
            wants["paths"][operation.path].pop(operation.method.lower())
    assert {path: item for path, item in document["paths"].items() if item} == {
        path: item for path, item in wants["paths"].items() if item
    }
    for name in ("components", "x-limits"):
        assert document[name] == wants[name]
    assert document["info"]["version"] == wants["info"]["version"]


@pytest.mark.requirement("document.same")
@pytest.mark.public
def test_what_is_left_out_of_the_document_is_not_there(target):
    for operation_id in target.observer.lacking:
        operation = openapi.OPERATIONS[operation_id]
        url = target.base_url + operation.path.replace("{version}", "1")
        assert requests.request(operation.method, url, timeout=30).status_code in (404, 405), operation_id


@pytest.mark.requirement("getAdminStats.401", "admin.proof", "header.WWW-Authenticate")
@pytest.mark.public
@pytest.mark.parametrize(
    "authorization", [None, "Bearer x", "Basic {key}", "{key}", "Bearer {key}x", "Bearer", "Bearer "]
)
def test_admin_stats_need_the_key(target, admin_key, authorization):
    headers = {"Authorization": authorization.replace("{key}", admin_key)} if authorization else {}
    refused = target.client().request("GET", "/admin/stats", headers=headers, signed=False)
    assert outcome(refused) == "401 admin_key_invalid"
    assert refused.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.requirement("getAdminStats.200", "admin.counts")
def test_admin_stats_count_at_least_what_this_test_stored(target, admin_key, new_user):
    new_user().store_backup(A)
    counts = stats(target)
    assert 1 <= counts["backups"] <= min(counts["users"], counts["versions"])


@pytest.mark.requirement("getAdminStats.200", "admin.counts")
def test_admin_stats_count(start_server):
    server = start_server(**RAISED_LIMITS)

    def counts() -> tuple[int, ...]:
        counted = stats(server)
        return tuple(counted[name] for name in ("users", "backups", "versions"))

    assert counts() == (0, 0, 0)
    clients = [server.client() for _ in range(3)]
    for client in clients:
        client.register_user()
    assert counts() == (3, 0, 0)
    clients[0].store_backup(A)
    clients[1].store_backup(A)
    clients[1].store_backup(B, sha256(A))
    clients[1].store_backup(B, sha256(A))
    assert counts() == (3, 2, 3)
    server.restart()
    assert counts() == (3, 2, 3)
    for client in clients:
        client.base_url = server.base_url
    clients[1].delete_user()
    clients[2].delete_user()
    assert counts() == (1, 1, 1)
    for number in range(8):  # dropped versions no longer count
        latest = clients[0].fetch_backup().json()["sha256"]
        clients[0].store_backup(b"backup %d" % number, latest)
    assert counts() == (1, 1, len(clients[0].list_backup_versions().json()["versions"]))


@pytest.mark.requirement("getAdminStats.200", "admin.bytes")
def test_admin_stats_tell_the_bytes_of_what_is_stored(start_server):
    server = start_server(volume=1_000_000_000, **RAISED_LIMITS)
    client, size, base = server.client(), 5_000_000, None
    assert outcome(client.register_user()) == "201"
    before = stats(server)
    for number in range(1, 4):
        blob = secrets.token_bytes(size)
        assert outcome(client.store_backup(blob, base)) == "201"
        base = sha256(blob)
        after = stats(server)
        assert after["databaseBytes"] - before["databaseBytes"] >= number * size
        assert before["freeBytes"] - after["freeBytes"] >= number * size
    assert after["databaseBytes"] + after["freeBytes"] <= 1_100_000_000


@pytest.mark.requirement("getAdminStats.200", "admin.revision")
def test_admin_stats_tell_the_version_of_the_document(target, admin_key):
    document = target.client().get_openapi().json()
    assert stats(target)["version"] == document["info"]["version"]


@pytest.mark.requirement("getAdminStats.200", "admin.revision")
def test_admin_stats_tell_the_revision_if_it_is_known(start_server):
    revision = "0123456789abcdef0123456789abcdef01234567"
    assert stats(start_server(REVISION=revision))["revision"] == revision
    assert "revision" not in stats(start_server())


@pytest.mark.requirement("getAdminStats.404", "admin.absent")
def test_without_an_admin_key_there_are_no_stats(start_server):
    server = start_server(ADMIN_SECRET_KEY=None)
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}):
        answer = server.client().request("GET", "/admin/stats", headers=headers, signed=False)
        assert outcome(answer) == "404 not_found"


def seconds(timestamp: str) -> float:
    """Return a timestamp in the contract's form as Unix seconds."""
    return datetime.fromisoformat(timestamp).timestamp()
