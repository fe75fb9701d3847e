"""Every example in openapi.yaml is true. The tests send each documented request, and the documented answer comes back.

The clock stands still at the examples' time. For each example, ROWS says what has happened before, and how the request
differs from the documented one. An example without a row fails, and so does a row without an example.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.python import backup_client
from contract_tests.target import openapi, raw
from contract_tests.target.calls import eventually
from contract_tests.target.openapi import LIMITS, MAX_DECODED_BYTES, SPEC
from contract_tests.target.process import ServerProcess
from server_tests.this_server import problems

ROOT = Path(__file__).resolve().parents[1]
NOW = 1795510800  # 2026-11-24T09:00:00Z
SECRET = "an-example-secret-for-the-documentation"
USERNAME, PASSWORD, NEW_PASSWORD = "alex", "correct horse battery staple", "a longer and better passphrase"
PROSE: str = SPEC["info"]["description"]
PROBLEMS: dict[str, tuple[int, str]] = problems()

# ---- The examples ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One documented answer: its operation, its status, and its body if it has one."""

    operation: openapi.Operation
    status: str
    name: str
    response: Mapping[str, Any]
    body: Any = None

    def __str__(self) -> str:
        return f"{self.operation.id} {self.status} {self.name}".strip()


def examples() -> Iterator[Example]:
    for operation in openapi.OPERATIONS.values():
        for status, response in operation.responses.items():
            if "content" not in response:
                yield Example(operation, status, "", response)
            for content in response.get("content", {}).values():
                if "example" in content:
                    yield Example(operation, status, "", response, content["example"])
                for name, example in content.get("examples", {}).items():
                    yield Example(operation, status, name, response, example["value"])


EXAMPLES = list(examples())


def documented_upload(operation_id: str, name: str = "") -> dict[str, str]:
    """Return the example of an operation's request body, the first if there are several."""
    operation = openapi.OPERATIONS[operation_id]
    (content,) = SPEC["paths"][operation.path][operation.method.lower()]["requestBody"]["content"].values()
    if "example" in content:
        return content["example"]
    return content["examples"][name or next(iter(content["examples"]))]["value"]


def header_example(operation_id: str, status: str, name: str) -> str:
    return openapi.OPERATIONS[operation_id].responses[status]["headers"][name]["schema"]["examples"][0]


# ---- What has happened before ------------------------------------------------------------------------------


@dataclass
class Scene:
    """A server, and a user that no other test uses."""

    server: ServerProcess
    credentials: tuple[str, str] = field(default_factory=lambda: (secrets.token_hex(32), secrets.token_hex(32)))
    version: str = "1"  # in the path
    latest: str | None = None  # sha256

    @property
    def user(self) -> backup_client.BackupClient:
        return self.server.client(self.credentials)

    def store(self, upload: Mapping[str, str]) -> None:
        response = self.user.request("POST", "/api/backup", body=upload)
        assert response.status_code == 201, response.text
        self.latest = response.json()["sha256"]


def registered(scene: Scene) -> None:
    assert scene.user.register_user().status_code == 201


def stored(scene: Scene) -> None:
    registered(scene)
    scene.store(documented_upload("storeBackup", "first"))


def stored_twice(scene: Scene) -> None:
    stored(scene)
    scene.store(documented_upload("storeBackup", "next"))


def stored_as_often_as_allowed(scene: Scene) -> None:
    registered(scene)
    for number in range(SPEC["x-configurable-limits"]["BACKUPS_PER_HOUR"]):
        base = {} if scene.latest is None else {"baseSha256": scene.latest}
        scene.store({"data": base64.b64encode(bytes([number])).decode(), **base})


def registered_with_another_key(scene: Scene) -> None:
    registered(scene)
    scene.credentials = (scene.credentials[0], secrets.token_hex(32))


def deleted(scene: Scene) -> None:
    registered(scene)
    assert scene.user.delete_user().status_code == 204


def changed_as_often_as_allowed(scene: Scene) -> None:
    registered(scene)
    for number in range(SPEC["x-configurable-limits"]["KEY_CHANGES_PER_HOUR"]):
        base = {} if scene.latest is None else {"baseSha256": scene.latest}
        change = {"storageKey": secrets.token_hex(32), "data": base64.b64encode(bytes([number])).decode(), **base}
        response = scene.user.request("PUT", "/api/user/storage-key", body=change)
        assert response.status_code == 200, response.text
        scene.credentials, scene.latest = (scene.credentials[0], change["storageKey"]), response.json()["sha256"]


def another_registered(scene: Scene) -> None:
    others = (secrets.token_hex(32), secrets.token_hex(32))
    assert scene.server.client(others).register_user().status_code in (201, 429)


def guessed_too_often(scene: Scene) -> None:
    for _ in range(2):  # a new address has two attempts
        assert scene.user.fetch_backup().status_code == 401


def failed_too_often(scene: Scene) -> None:
    assert scene.user.fetch_backup().status_code in (401, 429)


def damaged(scene: Scene) -> None:
    blob = secrets.token_bytes(43)  # not the documented blob, because other rows have stored that
    registered(scene)
    scene.store({"data": base64.b64encode(blob).decode()})
    scene.server.damage(blob)


def damaged_record(scene: Scene) -> None:
    registered(scene)
    scene.server.damage_account(scene.credentials[0])


# ---- How the request differs from the documented one ---------------------------------------------------------


@dataclass
class Call:
    """The request to send. Without changes, it is exactly the documented one."""

    scene: Scene
    operation: openapi.Operation
    method: str = ""
    path: str = ""
    body: bytes = b""
    media_type: str = "application/json"
    headers: list[str] = field(default_factory=lambda: [f"Origin: {ORIGIN}"])
    signed_body: bytes | None = None
    authorization: str = ""
    admin_key: str | None = None
    secret: str = SECRET
    keyid: str = "app"
    created: int = NOW
    respelled: tuple[str, str] = ("", "")  # what in the signature's headers is replaced, and by what
    proofs: bool = True
    sends_body: bool = True

    def __post_init__(self) -> None:
        self.method, self.path = self.operation.method, self.operation.path.replace("{version}", self.scene.version)
        self.authorization = backup_client.authorization(*self.scene.credentials)
        self.admin_key = self.scene.server.admin_key
        if self.operation.id in ("storeBackup", "changeStorageKey"):
            self.upload(documented_upload(self.operation.id))

    def upload(self, value: Mapping[str, str]) -> None:
        self.body = json.dumps(value, separators=(",", ":")).encode()

    def request(self) -> bytes:
        lines = list(self.headers)
        if self.operation.signed and self.proofs:
            signed_body = self.body if self.signed_body is None else self.signed_body
            options = {"secret": self.secret, "keyid": self.keyid, "created": self.created}
            proof = backup_client.sign(self.method, self.path, signed_body, self.authorization, **options)
            lines += [f"{name}: {value}".replace(*self.respelled) for name, value in proof.items()]
        if self.operation.id == "getAdminStats" and self.proofs:
            lines.append(f"Authorization: Bearer {self.admin_key}")
        if self.body:
            lines.append(f"Content-Type: {self.media_type}")
        return raw.request(self.method, self.path, (self.body or None) if self.sends_body else None, tuple(lines))


Change = Callable[[Call], None]


def change(**attributes: Any) -> Change:
    return lambda call: vars(call).update(attributes)


def with_etag(call: Call) -> None:
    call.headers.append(f"If-None-Match: {header_example('fetchBackup', '304', 'ETag')}")


def with_a_long_header(call: Call) -> None:
    call.headers.append("Cookie: " + "x" * LIMITS["requestHeaderBytes"])


def with_two_signatures(call: Call) -> None:
    call.headers.append("Signature: app=:AAAA:")


def with_a_member_twice(call: Call) -> None:
    call.body = call.body.replace(b"{", b'{"data":"AA==",', 1)


def with_another_body_than_signed(call: Call) -> None:
    call.signed_body = call.body + b" "


def without_the_body(call: Call) -> None:
    call.sends_body = False
    call.headers += ["Transfer-Encoding: chunked", "Expect: 100-continue"]


def without_data(call: Call) -> None:
    upload = json.loads(call.body)
    del upload["data"]
    call.upload(upload)


def from_the_latest(call: Call) -> None:
    call.upload(json.loads(call.body) | {"baseSha256": call.scene.latest})


with_a_body = change(body=b"{}")
unsigned = change(proofs=False)
with_another_label = change(respelled=("app=", "sig1="))
with_another_order = change(respelled=('"@method" "@path"', '"@path" "@method"'))
with_another_parameter = change(respelled=(';alg="hmac-sha256"', ';alg="hmac-sha256";nonce="1"'))
with_another_spelling = change(respelled=(";created=", ";created=0"))
with_an_unknown_keyid = change(keyid="unknown")
with_a_retired_keyid = change(keyid="retired")
with_a_wrong_secret = change(secret="not-" + SECRET)
with_a_wrong_clock = change(created=NOW - LIMITS["signatureSkewSeconds"] - 1)
without_credentials = change(authorization="Basic " + base64.b64encode(b"alex").decode())
with_a_wrong_admin_key = change(admin_key="wrong")
as_text = change(media_type="text/plain")
too_large = change(body=bytes(LIMITS["requestBodyBytes"] + 1))
elsewhere = change(path="/no/such/path")
patched = change(method="PATCH")

# ---- The rows ----------------------------------------------------------------------------------------------

ORIGIN = header_example("getHealth", "200", "Access-Control-Allow-Origin")
# All tests send at the same moment. Failures and registrations of other tests must not count.
USUAL = {"FAILED_CREDENTIALS_PER_5_MINUTES": 1_000_000, "REGISTRATIONS_PER_HOUR": 1_000_000, "ALLOWED_ORIGINS": ORIGIN}
RETIRED = USUAL | {"RETIRED_KEYIDS": "retired"}
ONE_REGISTRATION = USUAL | {"REGISTRATIONS_PER_HOUR": 1}
ONE_GUESS = USUAL | {"FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": 1}
ONE_FAILURE = USUAL | {"FAILED_CREDENTIALS_PER_5_MINUTES": 1}
NO_ADMIN_KEY = USUAL | {"ADMIN_SECRET_KEY": None}
# The bucket is out of reach. While the clock stands still, it is not behind all the same.
WITH_A_BUCKET = USUAL | {
    "BUCKET_NAME": "copies",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "REVISION": "1f0c2a9d4b7e",
}
NEW_SERVER = USUAL | {"BACKUPS_PER_DAY": 20}  # for rows that need a server of their own; 20 is the default


@dataclass(frozen=True)
class Row:
    """How to get a documented answer: what happens first, how the request is changed, and on which server."""

    before: Callable[[Scene], None] = lambda _: None
    sent: Change = lambda _: None
    server: Mapping[str, Any] = field(default_factory=lambda: USUAL)
    fault: str | None = None
    late: bool = False  # more time than a body may take passes after the head


UNREACHABLE = None  # no request gets this answer, so only the table of problems is compared

ROWS: dict[str, Row | None] = {  # by operation, status and name of the example; * means each operation without a row
    "registerUser 201": Row(),
    "registerUser 200": Row(registered),
    "storeBackup 201": Row(registered),
    "storeBackup 200": Row(stored),
    "fetchBackup 200": Row(stored),
    "fetchBackup 304": Row(stored, with_etag),
    "listBackupVersions 200": Row(stored),
    "fetchBackupVersion 200": Row(stored),
    "fetchBackupVersion 304": Row(stored, with_etag),
    "changeStorageKey 200": Row(stored),
    "deleteUser 204": Row(stored),
    "getHealth 200 ok": Row(server=ONE_GUESS),  # where nothing is damaged
    "getHealth 200 degraded": UNREACHABLE,
    "getAdminStats 200 counted": Row(stored, server=NEW_SERVER),
    "getAdminStats 200 copied": Row(stored, server=WITH_A_BUCKET),
    "getOpenapiYaml 200": Row(),
    "getOpenapiJson 200": Row(),
    "* 400 malformed_request": Row(registered, with_a_body),
    "storeBackup 400 malformed_request": Row(registered, with_a_member_twice),
    "changeStorageKey 400 malformed_request": Row(stored, with_a_member_twice),
    "* 400 digest_mismatch": Row(registered, with_another_body_than_signed),
    "* 401 signature_missing": Row(registered, unsigned),
    "* 401 header_twice": Row(registered, with_two_signatures),
    "* 401 label": Row(registered, with_another_label),
    "* 401 components": Row(registered, with_another_order),
    "* 401 parameter": Row(registered, with_another_parameter),
    "* 401 spelling": Row(registered, with_another_spelling),
    "* 401 keyid": Row(registered, with_an_unknown_keyid),
    "* 401 mac": Row(registered, with_a_wrong_secret),
    "* 401 signature_expired": Row(registered, with_a_wrong_clock),
    "* 401 credentials_invalid": Row(registered_with_another_key),
    "registerUser 401 credentials_invalid": Row(sent=without_credentials),
    "getAdminStats 401 admin_key_invalid": Row(sent=with_a_wrong_admin_key),
    "* 403 app_outdated": Row(registered, with_a_retired_keyid, server=RETIRED),
    "getAdminStats 404 not_found": Row(server=NO_ADMIN_KEY),
    "fetchBackup 404 no_backup": Row(registered),
    "fetchBackupVersion 404 no_such_version": Row(registered),
    "* 408 request_timeout": Row(registered, without_the_body, late=True),
    "registerUser 409 username_taken": Row(registered_with_another_key),
    "registerUser 409 recently_deleted": Row(deleted),
    "* 409 version_conflict": Row(stored_twice),
    "* 413 payload_too_large": Row(sent=too_large),
    "* 415 unsupported_media_type": Row(registered, as_text),
    "* 422 validation_failed": Row(registered, without_data),
    "* 429 uploads": Row(stored_as_often_as_allowed, from_the_latest),
    "changeStorageKey 429 key_changes": Row(changed_as_often_as_allowed, from_the_latest),
    "registerUser 429 registrations": Row(another_registered, server=ONE_REGISTRATION),
    "* 429 guessing": Row(guessed_too_often, server=ONE_GUESS),
    "* 429 rate_limited": Row(failed_too_often, server=ONE_FAILURE),
    "* 431 headers_too_large": Row(sent=with_a_long_header),
    "* 500 internal_error": Row(registered, fault="internal_error"),
    "getAdminStats 500 internal_error": UNREACHABLE,
    "getOpenapiYaml 500 internal_error": UNREACHABLE,
    "getOpenapiJson 500 internal_error": UNREACHABLE,
    "* 500 account_damaged": Row(damaged_record),
    "* 500 backup_damaged": Row(damaged),
    "* 503 unavailable": Row(registered, fault="unavailable"),
    "getAdminStats 503 unavailable": UNREACHABLE,
    "* 507 storage_full": Row(registered, fault="storage_full"),
    "registerUser 507 storage_full": Row(fault="storage_full"),
    "changeStorageKey 507 storage_full": Row(stored, fault="storage_full"),
    "* default not_found": Row(sent=elsewhere),
    "* default method_not_allowed": Row(sent=patched),
}


def row_of(example: Example) -> str:
    """Return the key of an example's row."""
    own = str(example)
    return own if own in ROWS else own.replace(example.operation.id, "*", 1)


def test_each_example_has_a_row_and_each_row_an_example() -> None:
    assert {row_of(example) for example in EXAMPLES} == set(ROWS)


def test_each_answer_with_content_has_an_example() -> None:
    for operation in openapi.OPERATIONS.values():
        for status in operation.responses:
            assert any((example.operation, example.status) == (operation, status) for example in EXAMPLES)


# ---- The exchanges -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(start_shared_server: Callable[..., ServerProcess]) -> Callable[..., ServerProcess]:
    """Return the server with these settings, frozen at the examples' time. It is started once."""
    started: dict[str, ServerProcess] = {}

    def server(settings: Mapping[str, Any]) -> ServerProcess:
        key = repr(settings)
        if key not in started or settings is NEW_SERVER:
            started[key] = start_shared_server(frozen=NOW, **{"APP_SECRET_KEY": SECRET} | settings)
        return started[key]

    return server


def play(row: Row, operation: openapi.Operation, servers: Callable[..., ServerProcess]) -> raw.Answer:
    """Do what must happen before a row's request, then send it. Return the answer."""
    scene = Scene(servers(row.server))
    row.before(scene)
    call = Call(scene, operation)
    row.sent(call)
    scene.server.fault = row.fault
    try:
        if row.fault and operation.path == "/health":  # its state is a few seconds old
            assert eventually(lambda: raw.send(scene.server, call.request()).status != 200)
        return send_late(scene.server, call) if row.late else raw.send(scene.server, call.request())
    finally:
        scene.server.fault = None
        if row.fault and operation.path == "/health":
            assert eventually(lambda: raw.send(scene.server, call.request()).status == 200)


def send_late(server: ServerProcess, call: Call) -> raw.Answer:
    """Send a request whose body does not come in time. Put the clock back afterwards."""
    seconds = LIMITS["requestBodySeconds"] + 1
    with raw.connected(server) as connection:
        connection.sendall(call.request())
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        server.move_clock(seconds)
        try:
            return raw.receive(server, connection, call.method, call.path)
        finally:
            server.move_clock(-seconds)


NOT_FIXED = {"X-Request-Id"}  # different in each answer
WHERE_HEADERS_ARE_AS_SHOWN = {  # in other answers, they depend on earlier requests or on the path
    "RateLimit": {"storeBackup 201", "storeBackup 200", "changeStorageKey 200"},
    "Retry-After": {
        "storeBackup 429 uploads",
        "changeStorageKey 429 key_changes",
        "registerUser 429 registrations",
        "registerUser 409 recently_deleted",
    },
    "Allow": {"storeBackup default method_not_allowed", "fetchBackup default method_not_allowed"},
    # The server does not read headers that are too large, so it does not know the Origin.
    "Access-Control-Allow-Origin": {str(example) for example in EXAMPLES if example.status != "431"},
}


@pytest.mark.parametrize("example", [pytest.param(example, id=str(example)) for example in EXAMPLES])
def test_the_documented_answer_comes_back(example: Example, servers: Callable[..., ServerProcess]) -> None:
    row = ROWS[row_of(example)]
    if example.status >= "400":
        assert (example.body["status"], example.body["title"]) == PROBLEMS[example.body["code"]]
    if row is UNREACHABLE:
        return
    answer = play(row, example.operation, servers)
    assert str(answer.status) == (str(example.body["status"]) if example.status == "default" else example.status)
    check_body(example, answer)
    for name, header in example.response["headers"].items():
        (shown,) = header["schema"]["examples"]
        if name not in NOT_FIXED and str(example) in WHERE_HEADERS_ARE_AS_SHOWN.get(name, {str(example)}):
            assert answer.headers[name] == str(shown), name


def check_body(example: Example, answer: raw.Answer) -> None:
    """Check that the body is as documented, except for bytes on the disk and for this document inside itself."""
    if example.body is None:
        assert answer.body == b""
    elif str(example).startswith("getAdminStats 200"):
        assert answer.json().keys() == example.body.keys()
        changing = {"databaseBytes": 0, "freeBytes": 0}
        assert answer.json() | changing == example.body | changing
    elif str(example) in ("getOpenapiYaml 200", "getOpenapiJson 200"):
        document = yaml.load(answer.text, yaml.CSafeLoader)  # JSON is YAML
        info = {name: document["info"][name] for name in example.body["info"]}
        assert {"openapi": document["openapi"], "info": info, "paths": {}} == example.body
    else:
        assert answer.json() == example.body


def test_each_header_with_an_example_is_seen_as_shown() -> None:
    for name, at in WHERE_HEADERS_ARE_AS_SHOWN.items():
        assert at <= {str(example) for example in EXAMPLES if name in example.response["headers"]}


@pytest.mark.parametrize("name", ["first", "next"])
def test_the_documented_uploads_are_accepted(name: str, servers: Callable[..., ServerProcess]) -> None:
    scene = Scene(servers(USUAL))
    before = {"first": registered, "next": stored}
    before[name](scene)
    scene.store(documented_upload("storeBackup", name))
    operation = SPEC["paths"]["/api/backup"]["post"]
    assert set(operation["requestBody"]["content"]["application/json"]["examples"]) == set(before)


def test_the_worked_request_is_accepted(servers: Callable[..., ServerProcess]) -> None:
    """Send exactly the request that the prose prints: its body and its four headers."""
    server = servers(USUAL)
    keys = backup_client.derive_keys(USERNAME, PASSWORD)
    assert server.client(keys).register_user().status_code == 201
    body = block("exactly as they will be sent:").encode()
    lines = block("Send the four headers:").splitlines()
    request = raw.request("POST", "/api/backup", body, ("Content-Type: application/json", *lines))
    answer = raw.send(server, request)
    assert answer.status == 201
    content = openapi.OPERATIONS["storeBackup"].responses["201"]["content"]["application/json"]
    assert answer.json() == content["example"]


# ---- What is derived ---------------------------------------------------------------------------------------


def block(after: str) -> str:
    """Return the first fenced block of the prose after this text."""
    return PROSE.partition(after)[2].split("```")[1].strip("\n")


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def recomputed() -> set[str]:
    """Return every derived value that the document may show, in hex or base64: keys, blobs, digests, signatures."""
    invented = backup_client.Derivation("v2", 1_200_000, "dailyreps/v2/storage-key", "dailyreps/v2/encryption-key")
    keys, new_keys = (backup_client.derive_keys(USERNAME, password) for password in (PASSWORD, NEW_PASSWORD))
    newer_keys = backup_client.derive_keys(USERNAME, PASSWORD, invented)
    empty, squat = b'{"workouts":[]}', b'{"workouts":["squat"]}'
    first = backup_client.encrypt(keys, empty, sequence=1, nonce=bytes(range(0, 12)))
    second: dict[str, Any] = {"sequence": 2, "base_sha256": sha256(first).hex()}
    blobs = [
        first,
        backup_client.encrypt(keys, squat, nonce=bytes(range(16, 28)), **second),
        backup_client.encrypt(new_keys, squat, nonce=bytes(range(32, 44)), **second),
    ]
    body = json.dumps({"data": base64.b64encode(first).decode()}, separators=(",", ":")).encode()
    authorization = backup_client.authorization(keys.user_id, keys.storage_key)
    proof = backup_client.sign("POST", "/api/backup", body, authorization, secret=SECRET, created=NOW)
    lists = [(ROOT / "fixtures" / name).read_bytes() for name in ("common_passwords.txt", "passphrase_words.txt")]
    in_hex = [sha256(data).hex() for data in (*blobs, *lists)]
    for each in (keys, new_keys, newer_keys):
        in_hex += [each.user_id, each.storage_key, each.encryption_key.hex(), each.master_key.hex()]
    in_base64 = [base64.b64encode(data).decode() for data in (*blobs, sha256(body), sha256(b""))]
    in_base64 += [proof["Signature"].removeprefix("app=:").removesuffix(":"), authorization.removeprefix("Basic ")]
    return {*in_hex, *in_base64}


def test_every_digest_key_blob_and_signature_is_recomputed() -> None:
    """Any value in the file that looks derived must be one of these."""
    text = openapi.SPEC_BYTES.decode()
    shown = set(re.findall(r"(?<![#0-9A-Za-z+/=])(?:[0-9a-f]{32,}|[0-9A-Za-z+/]{40,}={0,2})(?![0-9A-Za-z+/=])", text))
    assert shown - recomputed() == set()
    assert len(shown) >= 12
    credentials = base64.b64decode(next(value for value in shown if value.startswith("NDY2"))).decode()
    assert credentials.split(":")[0] in shown


def members(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield each member of each object in an example, by its name."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield name, value
            yield from members(value)
    elif isinstance(node, list):
        for value in node:
            yield from members(value)


def test_examples_within_schemas_are_those_of_the_exchanges() -> None:
    """Each example of a property is also in a documented body, and the tests above compare those bodies."""
    bodies = [example.body for example in EXAMPLES if example.body is not None]
    bodies += [documented_upload("storeBackup", "first"), documented_upload("storeBackup", "next")]
    bodies.append(documented_upload("changeStorageKey"))
    seen = {(name, json.dumps(value)) for body in bodies for name, value in members(body)}
    count = 0
    for schema_name, schema in openapi.resolved(SPEC["components"]["schemas"]).items():
        for name, property_schema in schema.get("properties", {}).items():
            for value in property_schema.get("examples", []):
                assert (name, json.dumps(value)) in seen, f"{schema_name}.{name}"
                count += 1
    assert count >= 30
    assert len(base64.b64decode(documented_upload("storeBackup")["data"])) <= MAX_DECODED_BYTES
