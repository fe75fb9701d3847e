"""Hostile bodies, and every problem: its status and code, its shape, and that it changes nothing.

Each request is signed for real, so that what is refused is the body.
"""

import gzip
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import raw
import spec
from client import BackupClient, backup_bytes
from raw import outcome

MARK = "Zebra7"  # stands in what is sent, and must not come back
LATEST = b"the latest version"
BASE = hashlib.sha256(LATEST).hexdigest()
JSON = {"Content-Type": "application/json"}


def upload(**members: Any) -> bytes:
    """A body that would be accepted, but for these members."""
    return json.dumps({"data": "QUFB", "baseSha256": BASE} | members).encode()


def with_data(text: str) -> bytes:
    return upload(data=text)


def with_base(value: Any) -> bytes:
    return upload(baseSha256=value)


NOT_I_JSON = {
    "nothing": b"",
    "white space": b" \n\t\r ",
    "half": upload()[:-1],
    "not JSON": MARK.encode(),
    "single quotes": b"{'data':'QUFB'}",
    "a trailing comma": upload()[:-1] + b",}",
    "a comment": upload() + b"/* " + MARK.encode() + b" */",
    "trailing bytes": upload() + MARK.encode(),
    "two documents": upload() + b" " + upload(),
    "a trailing NUL": upload() + b"\0",
    "a byte order mark": b"\xef\xbb\xbf" + upload(),
    "UTF-16": upload().decode().encode("utf-16"),
    "bad UTF-8": b'{"data":"QUFB","' + MARK.encode() + b'":"\xff"}',
    "overlong UTF-8": b'{"data":"QUFB","' + MARK.encode() + b'":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"data":"QUFB","' + MARK.encode() + b'":"\xed\xa0\x80"}',
    "a line feed in a string": b'{"data":"QU\nFB"}',
    "an unknown escape": b'{"data":"\\x51UFB"}',
    "NaN": b'{"data":NaN}',
    "Infinity": b'{"data":Infinity}',
    "-Infinity": b'{"data":-Infinity}',
    "1e999": b'{"data":1e999}',
    "-1e999": b'{"data":-1e999}',
    "a leading zero": b'{"data":01}',
    "a plus sign": b'{"data":+1}',
    "hexadecimal": b'{"data":0x1}',
    "5,000 digits": b'{"data":' + b"1" * 5000 + b"}",
    "a name twice": b'{"data":"QUFB","data":"QUFB"}',
    "a name twice, once escaped": b'{"data":"QUFB","\\u0064ata":"QUFB"}',
    "a name twice, deep down": b'{"data":[{"' + MARK.encode() + b'":1,"' + MARK.encode() + b'":1}]}',
    "a lone surrogate in a value": b'{"data":"\\ud800"}',
    "a lone surrogate in a name": b'{"data":"QUFB","\\udc00":1}',
    "surrogates in the wrong order": b'{"data":"\\udc00\\ud800"}',
    "a lone surrogate deep down": b'{"data":[["\\ud83d"]]}',
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 open arrays": b"[" * 100_000,
    "100,000 objects": b'{"data":' * 100_000 + b"1" + b"}" * 100_000,
}

NOT_THE_SCHEMA = {  # body, the pointers of its errors
    "null": (b"null", ["#"]),
    "an array": (b"[]", ["#"]),
    "a string": (json.dumps(MARK).encode(), ["#"]),
    "a number": (b"1", ["#"]),
    "an object without members": (b"{}", ["#/data"]),
    "no data": (json.dumps({"baseSha256": BASE}).encode(), ["#/data"]),
    "data null": (with_data(None), ["#/data"]),
    "data a number": (with_data(1), ["#/data"]),
    "data an array": (with_data([MARK]), ["#/data"]),
    "data empty": (with_data(""), ["#/data"]),
    "not base64": (with_data(f"{MARK}!!"), ["#/data"]),
    "base64 with line breaks": (with_data("QUFB\r\nQUFB"), ["#/data"]),
    "base64 with a trailing newline": (with_data("QUFB\n"), ["#/data"]),
    "base64 after a space": (with_data(" QUFB"), ["#/data"]),
    "base64 of the URL-safe alphabet": (with_data("-_-_"), ["#/data"]),
    "base64 without padding": (with_data("QUE"), ["#/data"]),
    "base64 with too much padding": (with_data("QUFB===="), ["#/data"]),
    "base64 of padding alone": (with_data("===="), ["#/data"]),
    "base64 padded in the middle": (with_data("QQ==QUFB"), ["#/data"]),
    "base64 with two unused bits set": (with_data("QUF="), ["#/data"]),
    "base64 with four unused bits set": (with_data("QR=="), ["#/data"]),
    "base64 of full-width letters": (with_data("ＱＵＦＢ"), ["#/data"]),
    "an emoji": (with_data("\U0001f4aa"), ["#/data"]),
    "base null": (with_base(None), ["#/baseSha256"]),
    "base a number": (with_base(1), ["#/baseSha256"]),
    "base empty": (with_base(""), ["#/baseSha256"]),
    "base in capitals": (with_base(BASE.upper()), ["#/baseSha256"]),
    "base too short": (with_base(BASE[1:]), ["#/baseSha256"]),
    "base too long": (with_base(BASE + "0"), ["#/baseSha256"]),
    "base with a trailing newline": (with_base(BASE + "\n"), ["#/baseSha256"]),
    "base with a newline for its last character": (with_base(BASE[1:] + "\n"), ["#/baseSha256"]),
    "base in full-width digits": (with_base("１" * 64), ["#/baseSha256"]),
    "two faults": (upload(data=1, baseSha256=1), ["#/baseSha256", "#/data"]),
    "the storage key's member": (upload(storageKey="ab" * 32), ["#"]),
    "an unknown member": (upload(**{MARK: MARK}), ["#"]),
    "an unknown member with a surrogate pair": (upload(**{"\U0001f4aa": MARK}), ["#"]),
    "an unknown member of 4,000 digits": (upload(x=int("1" * 4000)), ["#"]),
    "an unknown member of __proto__": (upload(**{"__proto__": {"data": MARK}}), ["#"]),
}

NOT_THE_MEDIA_TYPE = {
    "none": {},
    "text": {"Content-Type": "text/plain"},
    "text/json": {"Content-Type": "text/json"},
    "JSON's relatives": {"Content-Type": "application/merge-patch+json"},
    "a longer name": {"Content-Type": "application/jsonp"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "a multipart form": {"Content-Type": f"multipart/form-data; boundary={MARK}"},
    "a wild card": {"Content-Type": "*/*"},
    "two": {"Content-Type": "application/json, text/plain"},
    "another charset": {"Content-Type": "application/json; charset=iso-8859-1"},
    "gzip named": {**JSON, "Content-Encoding": "gzip"},
    "br": {**JSON, "Content-Encoding": "br"},
    "gzip after identity": {**JSON, "Content-Encoding": "identity, gzip"},
}


@pytest.fixture
def user(new_user) -> BackupClient:
    """A user with one backup."""
    client = new_user()
    assert outcome(client.store_backup(LATEST)) == "201"
    return client


def state(client: BackupClient) -> tuple[Any, Any]:
    """What a client can see of its account."""
    return client.list_backup_versions().json(), client.fetch_backup().json()


def refuses(client: BackupClient, wants: str, method: str, path: str, body: bytes, headers: Any = None) -> Any:
    """The problem that answers this request, which changed nothing and is not repeated in the answer."""
    before = state(client)
    answer = client.request(method, path, body=body, headers=JSON if headers is None else headers)
    assert outcome(answer) == wants
    assert MARK not in answer.text + str(answer.headers)
    assert state(client) == before
    return answer.json()


@pytest.mark.parametrize("body", NOT_I_JSON.values(), ids=NOT_I_JSON)
def test_what_is_not_i_json(user, body):
    refuses(user, "400 malformed_request", "POST", "/api/backup", body)


@pytest.mark.parametrize(("body", "pointers"), NOT_THE_SCHEMA.values(), ids=NOT_THE_SCHEMA)
def test_what_does_not_fit_the_schema(user, body, pointers):
    problem = refuses(user, "422 validation_failed", "POST", "/api/backup", body)
    assert sorted({error["pointer"] for error in problem["errors"]}) == pointers


@pytest.mark.parametrize(
    ("storage_key", "pointers"),
    [
        (None, ["#/storageKey"]),
        (1, ["#/storageKey"]),
        ("", ["#/storageKey"]),
        ("AB" * 32, ["#/storageKey"]),
        ("ab" * 31, ["#/storageKey"]),
        ("ab" * 33, ["#/storageKey"]),
        ("ab" * 32 + "\n", ["#/storageKey"]),
        ("ab" * 31 + "a\n", ["#/storageKey"]),
        ("xy" * 32, ["#/storageKey"]),
    ],
)
def test_a_storage_key_that_does_not_fit_the_schema(user, storage_key, pointers):
    body = upload(storageKey=storage_key)
    problem = refuses(user, "422 validation_failed", "PUT", "/api/user/storage-key", body)
    assert sorted({error["pointer"] for error in problem["errors"]}) == pointers


@pytest.mark.parametrize("body", [upload(), b"[]", upload(storageKey="ab" * 32, **{MARK: 1})])
def test_other_bodies_that_are_no_key_change(user, body):
    refuses(user, "422 validation_failed", "PUT", "/api/user/storage-key", body)


@pytest.mark.parametrize("headers", NOT_THE_MEDIA_TYPE.values(), ids=NOT_THE_MEDIA_TYPE)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/api/backup", upload()), ("PUT", "/api/user/storage-key", upload(storageKey="ab" * 32))],
)
def test_what_is_not_plain_json(user, method, path, body, headers):
    refuses(user, "415 unsupported_media_type", method, path, body, headers)


def test_gzip(user):
    headers = JSON | {"Content-Encoding": "gzip"}
    refuses(user, "415 unsupported_media_type", "POST", "/api/backup", gzip.compress(upload()), headers)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json ;charset=UTF-8",
    ],
)
def test_what_is_plain_json(user, content_type):
    answer = user.request("POST", "/api/backup", body=upload(), headers={"Content-Type": content_type})
    assert outcome(answer) == "201"


@pytest.mark.parametrize(
    "body",
    [
        b' \r\n\t{ "data" :\n"QUFB", "baseSha256":"' + BASE.encode() + b'" }\n',
        b'{"\\u0064ata":"\\u0051UFB","baseSha256":"' + BASE.encode() + b'"}',
        b'{"baseSha256":"' + BASE.encode() + b'","data":"QUFB"}',
    ],
)
def test_json_may_be_written_in_many_ways(user, body):
    assert outcome(user.request("POST", "/api/backup", body=body, headers=JSON)) == "201"
    assert backup_bytes(user.fetch_backup()) == b"AAA"


@pytest.mark.parametrize("body", [b"{}", b" ", b"0", MARK.encode(), b"x" * 100_000])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/register"),
        ("GET", "/api/backup"),
        ("GET", "/api/backup/versions"),
        ("GET", "/api/backup/versions/1"),
        ("GET", "/api/backup/versions/x"),
        ("DELETE", "/api/user"),
    ],
)
def test_a_body_where_none_belongs(user, method, path, body):
    refuses(user, "400 malformed_request", method, path, body)


@pytest.mark.parametrize("path", ["/health", "/openapi.yaml", "/openapi.json"])
def test_a_body_where_none_belongs_and_nothing_is_signed(target, path):
    answer = target.client().request("GET", path, body=MARK.encode(), signed=False)
    assert outcome(answer) == "400 malformed_request"
    assert MARK not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/backup", upload()),
        ("DELETE", "/api/user", b""),
        ("PUT", "/api/user/storage-key", upload(storageKey="ab" * 32)),
    ],
)
def test_another_body_than_the_signed_one(target, new_user, method, path, body):
    credentials = secrets.token_hex(32), secrets.token_hex(32)
    user = new_user(credentials)
    user.store_backup(LATEST)
    before = state(user)
    for other in (body + b" ", body[:-1] + b"\n" if body else b"{}"):
        headers = ("Content-Type: application/json", *raw.signed(target, credentials, method, path, body))
        assert outcome(raw.send(target, raw.request(method, path, other, headers))) == "400 digest_mismatch"
    assert state(user) == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (MARK, "/health"),
        (MARK, "/api/backup"),
        ("GET", f"/{MARK}"),
        ("GET", f"/health/{MARK}"),
        ("GET", f"/api/backup?{MARK}"),
        ("GET", f"/api/backup/versions/{MARK}"),
        ("GET", f"/{MARK} {MARK}"),
        ("GET", "/admin/stats"),
        ("GET", "/api/backup"),
    ],
)
def test_nothing_of_the_request_is_repeated(target, method, path):
    headers = (
        f"Authorization: Bearer {MARK}",
        f"Signature: {MARK}",
        f"Signature-Input: {MARK}",
        f"X-Request-Id: {MARK}",
    )
    answer = raw.send(
        target, raw.request(method, path, headers=(*headers, f"Content-Digest: {MARK}", f"Origin: {MARK}"))
    )
    assert answer.status >= 400
    assert MARK not in answer.text + str(answer.headers)


# ---- Every problem once, the server's own faults included --------------------------------------------------


def call_each(client: BackupClient) -> dict[str, Callable[[], Any]]:
    """Each operation of a user with one backup, as it would succeed."""
    return {
        "registerUser": client.register_user,
        "storeBackup": lambda: client.store_backup(b"another", BASE),
        "fetchBackup": client.fetch_backup,
        "listBackupVersions": client.list_backup_versions,
        "fetchBackupVersion": lambda: client.fetch_backup_version(1),
        "changeStorageKey": lambda: client.change_storage_key("ab" * 32, b"another", BASE),
        "deleteUser": client.delete_user,
        "getHealth": client.get_health,
    }


@pytest.mark.parametrize(
    ("fault", "wants"), [("unavailable", "503 unavailable"), ("internal_error", "500 internal_error")]
)
def test_a_database_that_fails(start_server, fault, wants):
    server = start_server()
    user = server.client()
    user.register_user()
    user.store_backup(LATEST)
    before = state(user)
    server.fault = fault
    for name, call in call_each(user).items():
        answer = call()
        assert outcome(answer) == wants, name
        assert (int(answer.headers.get("Retry-After", 0)) >= 1) == (fault == "unavailable")
        assert "purpose" not in answer.text and "Error" not in answer.text and "sqlite" not in answer.text
    assert outcome(user.get_openapi()) == "200"
    server.fault = None
    assert state(user) == before
    assert outcome(user.get_health()) == "200"
    assert server.stop() == 0


def test_a_full_disk(start_server):
    server = start_server()
    user, newcomer = server.client(), server.client()
    user.register_user()
    user.store_backup(LATEST)
    before = state(user)
    server.fault = "storage_full"
    calls = call_each(user)
    for name in ("storeBackup", "changeStorageKey"):
        assert outcome(calls[name]()) == "507 storage_full"
    assert outcome(newcomer.register_user()) == "507 storage_full"
    assert outcome(user.delete_user()) == "503 unavailable"  # a deletion asks for no space of its own
    # What writes nothing goes on.
    assert outcome(user.register_user()) == "200"
    assert outcome(user.store_backup(LATEST)) == "200"
    assert state(user) == before
    server.fault = None
    assert state(user) == before
    assert outcome(newcomer.register_user()) == "201"
    assert outcome(calls["storeBackup"]()) == "201"


def test_a_damaged_version(start_server):
    server = start_server()
    user = server.client()
    user.register_user()
    newer = b"the one that will be damaged"
    user.store_backup(LATEST)
    receipt = user.store_backup(newer, BASE).json()
    server.stop()
    damage(server.database, newer)
    server.start()
    user.base_url = server.base_url
    assert outcome(user.fetch_backup()) == "500 backup_damaged"
    assert outcome(user.fetch_backup_version(2)) == "500 backup_damaged"
    # The others stay fetchable, the list is whole, and the client may go on from it.
    assert backup_bytes(user.fetch_backup_version(1)) == LATEST
    assert user.list_backup_versions().json()["versions"][0] == receipt
    assert outcome(user.store_backup(b"anew", receipt["sha256"])) == "201"
    assert backup_bytes(user.fetch_backup()) == b"anew"
    assert outcome(user.fetch_backup_version(2)) == "500 backup_damaged"


def damage(database: Any, blob: bytes) -> None:
    """Flips the lowest bit of a stored blob's last byte, wherever a stopped server's file has it."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT key, value FROM Dict WHERE instr(value, ?)", (blob,)).fetchall()
        assert len(rows) == 1
        for key, value in rows:
            value = value.replace(blob, blob[:-1] + bytes([blob[-1] ^ 1]))
            connection.execute("UPDATE Dict SET value = ? WHERE key = ?", (value, key))
    connection.close()


def test_each_problem_once(start_server):
    """Every code of the spec's table, each with the status and the title that its example has."""
    server = start_server(
        frozen=1_800_000_000, BACKUPS_PER_HOUR=2, REGISTRATIONS_PER_HOUR=4, FAILED_CREDENTIALS_PER_5_MINUTES=5
    )
    user_id, storage_key = secrets.token_hex(32), secrets.token_hex(32)
    user, empty, deleted = server.client((user_id, storage_key)), server.client(), server.client()
    for client in (user, empty, deleted):
        client.register_user()
    user.store_backup(LATEST)
    deleted.delete_user()

    def anyone(method: str, path: str, *headers: str) -> Any:
        return raw.send(server, raw.request(method, path, headers=headers))

    def signing(**change: Any) -> Any:
        proofs = raw.signed(server, (user_id, storage_key), "GET", "/api/backup", **change)
        return anyone("GET", "/api/backup", *proofs)

    def under(fault: str | None, call: Callable[[], Any]) -> Any:
        server.fault = fault
        answer = call()
        server.fault = None
        return answer

    def of_damaged() -> Any:
        server.stop()
        damage(server.database, LATEST)
        server.start()
        user.base_url = server.base_url
        return user.fetch_backup()

    def too_often() -> Any:
        user.store_backup(b"the second", BASE)
        return user.store_backup(b"the third", hashlib.sha256(b"the second").hexdigest())

    digest_of_other = raw.signed(server, (user_id, storage_key), "GET", "/api/backup", b"{}")
    problems: dict[str, Callable[[], Any]] = {
        "malformed_request": lambda: anyone("GET", "/health", "Content-Length: x"),
        "digest_mismatch": lambda: anyone("GET", "/api/backup", *digest_of_other),
        "signature_missing": lambda: anyone("GET", "/api/backup"),
        "signature_invalid": lambda: signing(secret="another secret"),
        "signature_expired": lambda: signing(created=int(server.now()) - 301),
        "credentials_invalid": lambda: server.client().fetch_backup(),
        "admin_key_invalid": lambda: anyone("GET", "/admin/stats", "Authorization: Bearer x"),
        "not_found": lambda: anyone("GET", "/nothing"),
        "no_backup": empty.fetch_backup,
        "no_such_version": lambda: user.fetch_backup_version(2),
        "method_not_allowed": lambda: anyone("POST", "/health"),
        "username_taken": lambda: server.client((user_id, secrets.token_hex(32))).register_user(),
        "recently_deleted": deleted.register_user,
        "version_conflict": lambda: user.store_backup(b"another"),
        "payload_too_large": lambda: anyone("POST", "/api/backup", "Content-Length: 100000000"),
        "unsupported_media_type": lambda: user.request("POST", "/api/backup", body=upload()),
        "validation_failed": lambda: user.request("POST", "/api/backup", body={}),
        "headers_too_large": lambda: anyone("GET", "/health", f"X: {'x' * 20_000}"),
        "internal_error": lambda: under("internal_error", user.fetch_backup),
        "unavailable": lambda: under("unavailable", user.get_health),
        "storage_full": lambda: under("storage_full", lambda: server.client().register_user()),
        "backup_damaged": of_damaged,
        "rate_limited": too_often,
    }
    examples = {
        example["value"]["code"]: example["value"]
        for response in spec.SPEC["components"]["responses"].values()
        for content in response.get("content", {}).values()
        for example in content["examples"].values()
    }
    assert set(problems) == set(examples)
    for code, call in problems.items():
        answer = call()
        assert outcome(answer) == f"{examples[code]['status']} {code}"
        assert answer.json()["title"] == examples[code]["title"]
        assert answer.json()["type"] == examples[code]["type"]
        assert set(answer.json()) == set(examples[code])
