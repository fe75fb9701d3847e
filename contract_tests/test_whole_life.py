"""The whole life of a few users. It fits the default limits, so you may run it against a public deployment.

A run creates six accounts, stores no more than an account may store in an hour, and fails at credentials a dozen times.
"""

import secrets

import pytest
import requests

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.edge import own_etag
from contract_tests.target.openapi import RESERVED

pytestmark = pytest.mark.public

MOST_UPLOADS = 20  # how many uploads a test makes to reach a limit; it does not reach a higher limit


def again(client: BackupClient, exchange: requests.Response) -> requests.Response:
    """Send a captured request again, byte for byte. Return the answer."""
    return client.session.send(exchange.request.copy(), timeout=30, allow_redirects=False)


@pytest.mark.requirement(
    "registerUser.201",
    "registerUser.200",
    "register.retry",
    "storeBackup.201",
    "storeBackup.200",
    "storeBackup.409",
    "fetchBackup.200",
    "fetchBackup.304",
    "fetchBackup.404",
    "fetchBackupVersion.200",
    "fetchBackupVersion.304",
    "fetchBackupVersion.404",
    "listBackupVersions.200",
    "backup.bytes",
    "base.latest",
    "base.conflict",
    "base.current",
    "retry.receipt",
    "version.count",
    "version.latest",
    "version.list",
    "etag.strong",
    "etag.match",
    "etag.other",
    "signature.accepted",
    "limits.remaining",
    "header.RateLimit",
    "header.RateLimit-Policy",
)
def test_two_devices(target, new_user, about):
    about("registerUser.201", "registerUser.200", "register.retry", "signature.accepted")
    phone = new_user()
    tablet = target.client(phone.credentials)
    assert outcome(tablet.register_user()) == "200"
    about("fetchBackup.404")
    assert outcome(phone.fetch_backup()) == "404 no_backup"
    about("listBackupVersions.200", "version.list")
    assert phone.list_backup_versions().json() == {"versions": []}

    about("storeBackup.201", "base.latest", "header.RateLimit", "header.RateLimit-Policy")
    first, second = secrets.token_bytes(300), secrets.token_bytes(300)
    stored = phone.store_backup(first)
    assert (outcome(stored), stored.json()["sha256"], stored.json()["size"]) == ("201", sha256(first), 300)
    assert "RateLimit" in stored.headers and "RateLimit-Policy" in stored.headers
    about("storeBackup.200", "retry.receipt", "limits.remaining")
    retried = tablet.store_backup(first)
    assert (outcome(retried), retried.json()) == ("200", stored.json())
    assert retried.headers["RateLimit"].split(";")[1] == stored.headers["RateLimit"].split(";")[1]

    about("storeBackup.409", "base.conflict", "base.current")
    conflict = tablet.store_backup(second)
    assert (outcome(conflict), conflict.json()["currentVersion"]) == ("409 version_conflict", 1)
    about("fetchBackup.200", "backup.bytes")
    fetched = tablet.fetch_backup()
    assert backup_bytes(fetched) == first
    about("storeBackup.201", "base.latest", "version.count")
    assert tablet.store_backup(second, fetched.json()["sha256"]).json()["version"] == 2

    about("fetchBackup.200", "fetchBackup.304", "etag.strong", "etag.match", "etag.other", "version.latest")
    assert phone.fetch_backup(fetched.headers["ETag"]).status_code == 200
    latest = phone.fetch_backup()
    assert own_etag(latest.headers) == f'"2-{sha256(second)}"'
    assert phone.fetch_backup(latest.headers["ETag"]).status_code == 304
    about("fetchBackupVersion.200", "fetchBackupVersion.304", "etag.match")
    assert phone.fetch_backup_version(1, fetched.headers["ETag"]).status_code == 304
    assert backup_bytes(phone.fetch_backup_version(1)) == first
    about("fetchBackupVersion.404")
    assert outcome(phone.fetch_backup_version(3)) == "404 no_such_version"
    about("listBackupVersions.200", "version.list")
    assert [receipt["version"] for receipt in phone.list_backup_versions().json()["versions"]] == [2, 1]


@pytest.mark.requirement(
    "changeStorageKey.200",
    "changeStorageKey.401",
    "changeStorageKey.422",
    "fetchBackup.401",
    "key.old",
    "key.new",
    "key.same",
    "version.key",
    "registerUser.409",
    "isolation.read",
    "isolation.key",
    "replay.key",
    "replay.register",
    "credentials.challenge",
)
def test_another_password(target, about):
    about("changeStorageKey.422", "key.same")
    user_id, old_key, new_key = (secrets.token_hex(32) for _ in range(3))
    old = target.client((user_id, old_key))
    registered = old.register_user()
    assert outcome(registered) == "201"
    assert outcome(old.change_storage_key(old_key, b"the log")) == "422 validation_failed"
    about("changeStorageKey.200", "version.key")
    changed = old.change_storage_key(new_key, b"the log")
    assert (outcome(changed), changed.json()["keyVersion"]) == ("200", 2)
    about("key.new")
    new = target.client((user_id, new_key))
    assert backup_bytes(new.fetch_backup()) == b"the log"
    about("key.old", "fetchBackup.401", "credentials.challenge", "isolation.read")
    refused = old.fetch_backup()
    assert outcome(refused) == "401 credentials_invalid"
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="backup"'
    about("replay.key", "changeStorageKey.401", "isolation.key")
    assert outcome(again(old, changed)) == "401 credentials_invalid"
    about("replay.register", "registerUser.409")
    assert outcome(again(old, registered)) == "409 username_taken"
    about("version.key")
    assert [receipt["keyVersion"] for receipt in new.list_backup_versions().json()["versions"]] == [2]


@pytest.mark.requirement(
    "deleteUser.204",
    "deleteUser.401",
    "delete.refused",
    "delete.reserved",
    "replay.delete",
    "replay.store",
    "registerUser.409",
    "header.Retry-After",
)
def test_the_end(new_user, about):
    about("deleteUser.204")
    user = new_user()
    stored = user.store_backup(b"the log")
    deleted = user.delete_user()
    assert outcome(deleted) == "204"
    about("replay.delete", "deleteUser.401")
    assert outcome(again(user, deleted)) == "401 credentials_invalid"
    about("replay.store", "delete.refused")
    assert outcome(again(user, stored)) == "401 credentials_invalid"
    assert outcome(user.fetch_backup()) == "401 credentials_invalid"
    about("registerUser.409", "delete.reserved", "header.Retry-After")
    refused = user.register_user()
    assert outcome(refused) == "409 recently_deleted"
    assert 1 <= int(refused.headers["Retry-After"]) <= RESERVED


@pytest.mark.requirement("isolation.read", "isolation.write", "isolation.delete", "credentials.same", "fetchBackup.401")
def test_a_stranger(target, new_user):
    user = new_user()
    user.store_backup(b"the log")
    stranger = target.client((user.credentials[0], secrets.token_hex(32)))
    answers = [
        stranger.fetch_backup(),
        stranger.store_backup(b"overwritten", sha256(b"the log")),
        stranger.delete_user(),
        target.client().fetch_backup(),
    ]
    assert {outcome(answer) for answer in answers} == {"401 credentials_invalid"}
    assert len({answer.content for answer in answers}) == 1  # an unknown user gets the same answer
    assert backup_bytes(user.fetch_backup()) == b"the log"


@pytest.mark.requirement(
    "signature.secret", "signature.digest", "signature.query", "signature.expired", "digest.mismatch", "storeBackup.400"
)
def test_what_the_app_did_not_sign(target, new_user):
    client = new_user()
    wrong = target.client(client.credentials, secret="not the secret of this server, but as long")
    assert outcome(wrong.fetch_backup()) == "401 signature_invalid"
    old = target.client(client.credentials, clock=lambda: target.now() - 86_400)
    expired = old.fetch_backup()
    assert outcome(expired) == "401 signature_expired"
    assert abs(expired.json()["serverTime"] - target.now()) <= 300
    assert outcome(client.request("GET", "/api/backup?x")) == "400 malformed_request"
    signed = requests.Request("POST", f"{client.base_url}/api/backup", data=b"{}", auth=client._auth).prepare()
    signed.body = b"[]"
    signed.headers["Content-Type"] = "application/json"
    assert outcome(client.session.send(signed, timeout=30)) == "400 digest_mismatch"


@pytest.mark.requirement("storeBackup.400", "storeBackup.415", "storeBackup.422", "http.schema", "http.media-type")
def test_what_is_no_backup(new_user):
    user = new_user()
    json = {"Content-Type": "application/json"}
    for body, headers, wants in [
        (b"{", json, "400 malformed_request"),
        (b"{}", {"Content-Type": "text/plain"}, "415 unsupported_media_type"),
        (b"{}", json, "422 validation_failed"),
        (b'{"data":"QUE"}', json, "422 validation_failed"),
        (b'{"data":"QUFB","unknown":1}', json, "422 validation_failed"),
    ]:
        assert outcome(user.request("POST", "/api/backup", body=body, headers=headers)) == wants
    assert user.list_backup_versions().json() == {"versions": []}


@pytest.fixture
def limited_user(request, target):
    """A user whose uploads have the default limits of a deployment."""
    if target.is_public:
        user = target.client()
        user.session.meets_limits = True
    else:
        user = request.getfixturevalue("start_server")().client()
    assert outcome(user.register_user()) == "201"
    return user


@pytest.mark.requirement(
    "limits.hour", "limits.policy", "limits.remaining", "limits.retry-after", "storeBackup.429", "header.Retry-After"
)
def test_one_upload_too_many(limited_user):
    base, number = None, 0
    while True:
        stored = limited_user.store_backup(b"backup %d" % number, base)
        quota = int(stored.headers["RateLimit-Policy"].partition("q=")[2].partition(";")[0])
        if quota > MOST_UPLOADS:
            not_run(f"the target allows more than {MOST_UPLOADS} uploads an hour, and this test does not make so many")
        if number == quota:
            break
        assert outcome(stored) == "201"
        base, number = stored.json()["sha256"], number + 1
    assert outcome(stored) == "429 rate_limited"
    assert 3500 <= int(stored.headers["Retry-After"]) <= 3600
    assert stored.headers["RateLimit"].startswith('"hour";r=0;')
    assert limited_user.fetch_backup().json()["version"] == quota
