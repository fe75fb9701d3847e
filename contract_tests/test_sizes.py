"""What holds for a small backup holds for a large one (openapi.yaml, "Backups and versions").

A server may keep small bodies in memory and large ones in a file, read them by different parsers, or store them in
different places. So each rule is tried at each size. `test_http.py` has the limits themselves.
"""

import base64
import functools
import json
from collections.abc import Callable
from secrets import token_bytes, token_hex
from typing import Any

import pytest

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target import raw
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.edge import own_etag
from contract_tests.target.openapi import LIMITS, MAX_DECODED_BYTES

SIZES = [300, 70_000, 300_000, 1_500_000, MAX_DECODED_BYTES]
KIB = 1024
# Round the sizes of buffers and blocks. No size fits three, so that each kind of padding occurs.
BOUNDARIES = sorted(
    {size + more for size in (KIB, 4 * KIB, 8 * KIB, 64 * KIB, 256 * KIB, 512 * KIB, KIB * KIB) for more in (-1, 0, 1)}
    | {MAX_DECODED_BYTES - 64 * KIB + 1, MAX_DECODED_BYTES - 1}
)
JSON = "application/json"
BLOBS = {size: token_bytes(size) for size in SIZES}
LATEST = b"the latest version"
BASE = sha256(LATEST)


def text(blob: bytes) -> bytes:
    return base64.b64encode(blob)


def upload(blob: bytes, **members: Any) -> bytes:
    """Return a body that stores a blob on the latest version, with other members besides."""
    return json.dumps({"data": text(blob).decode(), "baseSha256": BASE} | members).encode()


def encoded(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return a function from a blob to an upload whose base64 is changed."""
    return lambda blob: upload(b"").replace(b'""', b'"%b"' % change(text(blob)), 1)


def not_a_multiple_of_3(blob: bytes) -> bytes:
    """Return the base64 of the blob, or of one byte less, with unused bits set."""
    padded = text(blob if len(blob) % 3 else blob[:-1]).rstrip(b"=")
    unused = chr(padded[-1] + 1 if chr(padded[-1]) not in "Zz9/" else ord("B")).encode()
    return (padded[:-1] + unused).ljust(-(-len(padded) // 4) * 4, b"=")


BAD_BODIES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "half a body": ("400 malformed_request", lambda blob: upload(blob)[:-1]),
    "a byte behind": ("400 malformed_request", lambda blob: upload(blob) + b"x"),
    "another document behind": ("400 malformed_request", lambda blob: upload(blob) + upload(b"")),
    "a byte order mark": ("400 malformed_request", lambda blob: b"\xef\xbb\xbf" + upload(blob)),
    "bad UTF-8": ("400 malformed_request", lambda blob: upload(blob)[:-1] + b',"x":"\xff"}'),
    "a lone surrogate": ("400 malformed_request", lambda blob: upload(blob)[:-1] + b',"x":"\\ud800"}'),
    "data twice": ("400 malformed_request", lambda blob: b'{"data":"QUFB",' + upload(blob)[1:]),
    "the base twice": (
        "400 malformed_request",
        lambda blob: upload(blob)[:-1] + b',"baseSha256":"%b"}' % BASE.encode(),
    ),
    "NaN": ("400 malformed_request", lambda blob: upload(blob)[:-1] + b',"x":NaN}'),
    "101 commas": ("400 malformed_request", lambda blob: upload(blob, x="," * 100)),
    "a tab in a string": ("400 malformed_request", lambda blob: upload(blob)[:-1] + b',"x":"\t"}'),
    "a line feed in the base64": ("400 malformed_request", encoded(lambda data: data[:200] + b"\n" + data[200:])),
    "an unknown member": ("422 validation_failed", lambda blob: upload(blob, x=1)),
    "an unknown member in front": ("422 validation_failed", lambda blob: b'{"x":1,' + upload(blob)[1:]),
    "a base that is none": ("422 validation_failed", lambda blob: upload(blob, baseSha256="x" * 64)),
    "a base of null": ("422 validation_failed", lambda blob: upload(blob, baseSha256=None)),
    "unused bits": ("422 validation_failed", encoded(not_a_multiple_of_3)),
    "no padding": ("422 validation_failed", encoded(lambda data: data.rstrip(b"=") if b"=" in data else data[:-1])),
    "too much padding": ("422 validation_failed", encoded(lambda data: data + b"====")),
    "a line break in the base64": ("422 validation_failed", encoded(lambda data: data[:76] + rb"\r\n" + data[76:])),
    "a line break behind the base64": ("422 validation_failed", encoded(lambda data: data + rb"\n")),
    "a sign in the base64": ("422 validation_failed", encoded(lambda data: data[:100] + b"-" + data[101:])),
    "a sign at the end": ("422 validation_failed", encoded(lambda data: data[:-4] + b"_AAA")),
    "a letter of two bytes": ("422 validation_failed", encoded(lambda data: data[:-4] + "éAAA".encode())),
    "padding in the middle": ("422 validation_failed", encoded(lambda data: data[:96] + b"QQ==" + data[96:])),
}


@pytest.fixture
def user(new_user) -> BackupClient:
    client = new_user()
    assert outcome(client.store_backup(LATEST)) == "201"
    return client


@pytest.mark.requirement(
    "backup.any-size", "http.i-json", "http.schema", "backup.base64", "http.commas", "problem.unchanged"
)
@pytest.mark.parametrize("name", BAD_BODIES)
def test_what_is_no_upload_at_any_size(user, name):
    wants, body_of = BAD_BODIES[name]
    for size in SIZES[:-1]:
        body = body_of(BLOBS[size])
        assert outcome(user.request("POST", "/api/backup", body=body, headers={"Content-Type": JSON})) == wants, size
        changed = b'{"storageKey":"%b",' % (b"ab" * 32) + body[1:]
        if body.startswith(b"{") and size < 1_000_000:
            answer = user.request("PUT", "/api/user/storage-key", body=changed, headers={"Content-Type": JSON})
            assert outcome(answer) == wants, size
    assert backup_bytes(user.fetch_backup()) == LATEST


def refusals(user: BackupClient, target: Any, blob: bytes) -> dict[str, Callable[[], Any]]:
    """Return uploads of a blob that are refused, by what they get."""
    body, other = upload(blob), upload(blob[:-1] + bytes([blob[-1] ^ 1]))
    post = functools.partial(user.request, "POST", "/api/backup")

    def sent_as(sent: bytes, **change: Any) -> raw.Answer:
        lines = raw.signed(target, user.credentials, "POST", "/api/backup", body, **change)
        return raw.send(target, raw.request("POST", "/api/backup", sent, (*lines, f"Content-Type: {JSON}")))

    stranger = target.client((user.credentials[0], token_hex(32)))
    return {
        "400 digest_mismatch": lambda: sent_as(other),
        "400 digest_mismatch (white space behind)": lambda: sent_as(body + b" "),
        "401 signature_invalid": lambda: sent_as(body, secret="another secret"),
        "401 signature_expired": lambda: sent_as(body, created=int(target.now()) - 1000),
        "401 credentials_invalid": lambda: stranger.store_backup(blob, BASE),
        "415 unsupported_media_type": lambda: post(body=body, headers={"Content-Type": "text/plain"}),
        "415 unsupported_media_type (coding)": lambda: post(
            body=body, headers={"Content-Type": JSON, "Content-Encoding": "gzip"}
        ),
        "409 version_conflict": lambda: user.store_backup(blob, "0" * 64),
        "409 version_conflict (no base)": lambda: user.store_backup(blob),
        "409 version_conflict (key)": lambda: user.change_storage_key("ab" * 32, blob, "0" * 64),
        "422 validation_failed (key)": lambda: user.change_storage_key(user.credentials[1], blob, BASE),
    }


@pytest.mark.edge_may_answer
@pytest.mark.requirement(
    "backup.any-size", "digest.mismatch", "base.conflict", "http.media-type", "key.same", "problem.unchanged"
)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_refused_at_any_size(user, target, size):
    for wants, call in refusals(user, target, BLOBS[size]).items():
        assert outcome(call()) == wants.partition(" (")[0], wants
    assert backup_bytes(user.fetch_backup()) == LATEST


@pytest.mark.requirement("backup.any-size", "http.no-body", "problem.unchanged")
@pytest.mark.parametrize("size", SIZES[:-1])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/register"), ("GET", "/api/backup"), ("DELETE", "/api/user")]
)
def test_a_needless_body_of_any_size(user, method, path, size):
    answer = user.request(method, path, body=upload(BLOBS[size]), headers={"Content-Type": JSON})
    assert outcome(answer) == "400 malformed_request"
    assert backup_bytes(user.fetch_backup()) == LATEST


def chunked(body: bytes, size: int) -> bytes:
    chunks = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.mark.requirement("backup.any-size", "backup.bytes", "http.chunked", "digest.mismatch")
@pytest.mark.parametrize(
    ("size", "chunk"),
    [(300, 7), (70_000, 1000), (70_000, 1 << 30), (300_000, 65_537), (1_500_000, 1 << 30), (MAX_DECODED_BYTES, 65_536)],
)
def test_chunked_backups_of_any_size(user, target, size, chunk):
    blob, lines = BLOBS[size], (f"Content-Type: {JSON}", "Transfer-Encoding: chunked")
    body = upload(blob)
    proofs = raw.signed(target, user.credentials, "POST", "/api/backup", body)
    for sent, wants in [(body.replace(b" ", b"  ", 1), "400 digest_mismatch"), (body, "201")]:
        head = raw.request("POST", "/api/backup", headers=(*proofs, *lines))
        assert outcome(raw.send(target, head + chunked(sent, chunk))) == wants
    assert backup_bytes(user.fetch_backup()) == blob


@pytest.mark.requirement("backup.any-size", "backup.bytes", "version.list", "storeBackup.201", "fetchBackup.200")
def test_sizes_round_those_of_buffers(new_user):
    client, base = new_user(), None
    for size in BOUNDARIES:
        blob = token_bytes(size)
        stored = client.store_backup(blob, base)
        base = sha256(blob)
        assert outcome(stored) == "201", size
        assert (stored.json()["size"], stored.json()["sha256"]) == (size, base)
        assert backup_bytes(client.fetch_backup()) == blob, size
    assert [each["size"] for each in client.list_backup_versions().json()["versions"]][:4] == BOUNDARIES[:-5:-1]


@pytest.mark.requirement(
    *("backup.any-size", "backup.bytes", "retry.receipt", "etag.match", "key.new", "version.list", "base.latest"),
    *("fetchBackup.304", "fetchBackupVersion.200", "changeStorageKey.200"),
)
@pytest.mark.parametrize("size", SIZES)
def test_a_life_at_any_size(target, new_user, size):
    user_id, key, new_key = token_hex(32), token_hex(32), token_hex(32)
    client, blob, next_one = new_user((user_id, key)), BLOBS[size], BLOBS[size][::-1]
    stored = client.store_backup(blob)
    captured = stored.request
    assert outcome(stored) == "201"
    assert client.store_backup(blob, sha256(next_one)).json() == stored.json()
    etag = own_etag(client.fetch_backup().headers)
    assert client.fetch_backup(etag).status_code == client.fetch_backup_version(1, etag).status_code == 304
    assert client.change_storage_key(new_key, next_one, sha256(blob)).json()["size"] == size
    client = target.client((user_id, new_key))
    assert client.fetch_backup(etag).status_code == 200
    assert [backup_bytes(client.fetch_backup_version(number)) for number in (1, 2)] == [blob, next_one]
    assert outcome(client.store_backup(blob, sha256(next_one))) == "201"  # the bytes of version 1 are a new version
    assert backup_bytes(client.fetch_backup()) == blob
    assert outcome(client.session.send(captured.copy(), timeout=60)) == "401 credentials_invalid"  # under the old key


@pytest.mark.requirement("backup.any-size", "replay.signature", "replay.store", "replay.refused")
@pytest.mark.parametrize("size", SIZES[:-1])
def test_a_replay_at_any_size(user, size):
    """The bases of the two uploads fit again when they are sent once more."""
    stored = user.store_backup(BLOBS[size], BASE)
    assert outcome(stored) == "201"
    refused = user.store_backup(BLOBS[size][::-1], BASE)
    assert outcome(refused) == "409 version_conflict"
    assert outcome(user.store_backup(LATEST, sha256(BLOBS[size]))) == "201"
    for captured in (stored, refused):
        assert outcome(user.session.send(captured.request.copy(), timeout=60)) == "409 version_conflict"
    assert backup_bytes(user.fetch_backup()) == LATEST


@pytest.mark.edge_may_change
@pytest.mark.requirement("backup.any-size", "credentials.commit", "http.continue", "key.old", "delete.refused")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", ["the key", "the account"])
def test_credentials_that_become_wrong_meanwhile_at_any_size(target, new_user, size, change):
    """The head arrives before the change, and the body after it."""
    user_id, key, new_key = token_hex(32), token_hex(32), token_hex(32)
    client = new_user((user_id, key))
    assert outcome(client.store_backup(LATEST)) == "201"
    body = upload(BLOBS[size])
    proofs = raw.signed(target, (user_id, key), "POST", "/api/backup", body)
    lines = (*proofs, f"Content-Type: {JSON}", f"Content-Length: {len(body)}", "Expect: 100-continue")
    head = raw.request("POST", "/api/backup", headers=lines)

    def meanwhile() -> None:
        if change == "the key":
            assert outcome(client.change_storage_key(new_key, LATEST, BASE)) == "200"
        else:
            assert outcome(client.delete_user()) == "204"

    asked, answer = raw.expect(target, head, body, "POST", "/api/backup", meanwhile)
    assert (asked, outcome(answer)) == (True, "401 credentials_invalid")
    if change == "the key":
        assert backup_bytes(target.client((user_id, new_key)).fetch_backup()) == LATEST


@pytest.mark.requirement("backup.any-size", "backup.damaged", "retry.mends", "fetchBackup.500", "durability.restart")
def test_damage_of_a_large_version(start_server):
    server, base = start_server(), None
    user = server.client()
    assert outcome(user.register_user()) == "201"
    for blob in (BLOBS[300_000], BLOBS[1_500_000]):
        assert outcome(user.store_backup(blob, base)) == "201"
        base = sha256(blob)
    server.damage(BLOBS[1_500_000])
    user.base_url = server.base_url
    assert outcome(user.fetch_backup()) == "500 backup_damaged"
    assert [outcome(user.fetch_backup_version(number)) for number in (1, 2)] == ["200", "500 backup_damaged"]
    assert outcome(user.store_backup(BLOBS[1_500_000])) == "200"  # a retry mends it
    assert backup_bytes(user.fetch_backup()) == BLOBS[1_500_000]


@pytest.mark.requirement("backup.any-size", "http.body-time", "storeBackup.408", "problem.unchanged")
@pytest.mark.parametrize("size", SIZES[:-1])
def test_a_late_body_of_any_size(late, size):
    client = late.client()
    assert outcome(client.register_user()) == "201"
    assert outcome(client.store_backup(LATEST)) == "201"
    body = upload(BLOBS[size])
    proofs = raw.signed(late, client.credentials, "POST", "/api/backup", body)
    lines = (*proofs, f"Content-Type: {JSON}", f"Content-Length: {len(body)}", "Expect: 100-continue")
    head = raw.request("POST", "/api/backup", headers=lines)
    wait = functools.partial(late.move_clock, LIMITS["requestBodySeconds"] + 1)
    assert outcome(raw.expect(late, head, body, "POST", "/api/backup", wait)[1]) == "408 request_timeout"
    assert backup_bytes(client.fetch_backup()) == LATEST


@pytest.fixture(scope="module")
def late(start_shared_server):
    return start_shared_server(frozen=1_800_000_000)
