"""What holds for every answer, tried on each answer that an operation can give: CORS, Vary, and HEAD.

`raw.send` checks on each answer what does not depend on a deployment: its form, Cache-Control, X-Request-Id and so on.
A row of ANSWERS makes the server give one answer. Each is asked for by allowed origins, by others, and by nobody's.
"""

import base64
import functools
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from clients.python.backup_client import BackupClient
from contract_tests.target import openapi, raw
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.process import BEHIND_A_PROXY, ServerProcess
from contract_tests.test_http import to_the_end

ALLOWED = [
    *("https://app.example", "https://beta.app.example:8443", "http://localhost:5173", "capacitor://localhost"),
    *("https://[2001:db8::1]", "ionic://app"),
]
OTHERS = [
    *("https://other.example", "https://app.example:8443", "https://beta.app.example", "https://localhost:5173"),
    *("http://localhost", "capacitor://localhost:80", "https://ionic", "null", "https://app.example, ionic://app"),
]
EXPOSED = "etag location ratelimit ratelimit-policy retry-after x-request-id".split()
SENT = "authorization content-digest content-type if-none-match signature signature-input".split()
HEADER = BEHIND_A_PROXY["header"]
LATE = openapi.LIMITS["requestBodySeconds"] + 1
BLOB = b"the backup"
BASE = sha256(BLOB)
JSON = "Content-Type: application/json"
OPERATIONS = {
    each.id: (each.method, each.path.replace("{version}", "1"), each.signed) for each in openapi.OPERATIONS.values()
}
SIGNED = [name for name, (_, _, signed) in OPERATIONS.items() if signed]
UPLOADS = ["storeBackup", "changeStorageKey"]


@dataclass
class Asker:
    """Somebody with an account and a backup, at an address of their own. `origin` is the Origin of each request."""

    server: ServerProcess
    origin: str | None = None
    credentials: tuple[str, str] = field(default_factory=lambda: (secrets.token_hex(32), secrets.token_hex(32)))
    address: str = field(default_factory=lambda: f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1")

    def client(self, credentials: tuple[str, str] | None = None) -> BackupClient:
        client = self.server.client(credentials or self.credentials)
        client.session.headers[HEADER] = self.address
        return client

    def register(self) -> "Asker":
        assert outcome(self.client().register_user()) == "201"
        return self

    def store(self) -> "Asker":
        assert outcome(self.client().store_backup(BLOB)) == "201"
        return self

    @property
    def lines(self) -> tuple[str, ...]:
        return (f"{HEADER}: {self.address}", *([] if self.origin is None else [f"Origin: {self.origin}"]))

    def bare(self, method: str, path: str, *lines: str, body: bytes | None = None) -> raw.Answer:
        return raw.send(self.server, raw.request(method, path, body, (*self.lines, *lines)))

    def ask(self, operation: str, *lines: str, body: bytes | None = None, **change: Any) -> raw.Answer:
        """Send a request of an operation. Unless it needs none, it is signed. `change` spoils the signature."""
        method, path, is_signed = OPERATIONS[operation]
        path, query = change.pop("path", path), change.pop("query", "")
        body = upload(operation) if body is None and operation in UPLOADS else body
        if is_signed:
            credentials = change.pop("credentials", self.credentials)
            lines += raw.signed(
                self.server, credentials, method, path, change.pop("signed_body", body or b""), **change
            )
        if operation == "getAdminStats":
            lines += (f"Authorization: Bearer {self.server.admin_key}",)
        lines += (JSON,) if body and not any(line.startswith("Content-Type") for line in lines) else ()
        return self.bare(method, path + query, *lines, body=body)

    def ask_slowly(self, operation: str) -> raw.Answer:
        method, path, is_signed = OPERATIONS[operation]
        lines = (*self.lines, JSON, "Transfer-Encoding: chunked", "Expect: 100-continue")
        if operation == "getAdminStats":
            lines += (f"Authorization: Bearer {self.server.admin_key}",)
        lines += raw.signed(self.server, self.credentials, method, path, b"x") if is_signed else ()
        head = raw.request(method, path, headers=lines)
        return raw.expect(self.server, head, b"", method, path, functools.partial(self.server.move_clock, LATE))[1]

    def under(self, fault: str, call: Callable[[], Any]) -> Any:
        self.server.fault = fault
        answer = call()
        self.server.fault = None
        return answer


def upload(operation: str, blob: bytes = b"another", base: str | None = BASE) -> bytes:
    members = {"data": base64.b64encode(blob).decode()} | ({} if base is None else {"baseSha256": base})
    return json.dumps(members | ({"storageKey": "ab" * 32} if operation == "changeStorageKey" else {})).encode()


Row = tuple[str, Callable[[Asker], raw.Answer]]


def for_each(operations: Iterable[str], wants: str, call: Callable[[Asker, str], raw.Answer]) -> dict[str, Row]:
    """Return a row for each of these operations."""
    return {
        f"{name} {wants}": (wants, functools.partial(lambda call, name, asker: call(asker, name), call, name))
        for name in operations
    }


def guessed(asker: Asker) -> Asker:
    """Use up the failures of an address that the account does not know."""
    asker.address = Asker(asker.server).address
    stranger = asker.client((secrets.token_hex(32), "0" * 64))
    assert outcome(stranger.fetch_backup()) == "401 credentials_invalid"
    return asker


def deleted(asker: Asker) -> Asker:
    assert outcome(asker.client().delete_user()) == "204"
    return asker


def without_a_backup(asker: Asker) -> Asker:
    return Asker(asker.server, asker.origin).register()


def used_up(asker: Asker, operation: str) -> Asker:
    """Use up what the account may do in an hour. The latest version is the same as before."""
    if operation == "changeStorageKey":
        user_id, key = asker.credentials[0], secrets.token_hex(32)
        assert outcome(asker.client().change_storage_key(key, BLOB, BASE)) == "200"
        asker.credentials = (user_id, key)
    else:
        assert outcome(asker.client().store_backup(b"the next", BASE)) == "201"
        assert outcome(asker.client().store_backup(BLOB, sha256(b"the next"))) == "201"
    return asker


ANSWERS: dict[str, Row] = {
    # What an operation answers if all is well.
    "registerUser 201": ("201", lambda asker: Asker(asker.server, asker.origin).ask("registerUser")),
    "registerUser 200": ("200", lambda asker: asker.ask("registerUser")),
    "storeBackup 201": (
        "201",
        lambda asker: without_a_backup(asker).ask("storeBackup", body=upload("storeBackup", base=None)),
    ),
    "storeBackup 200": ("200", lambda asker: asker.ask("storeBackup", body=upload("storeBackup", BLOB))),
    "changeStorageKey 200": ("200", lambda asker: asker.ask("changeStorageKey")),
    "deleteUser 204": ("204", lambda asker: asker.ask("deleteUser")),
    **for_each(
        ["fetchBackup", "fetchBackupVersion", "listBackupVersions", "getHealth", "getAdminStats", "getOpenapiYaml"],
        "200",
        lambda asker, name: asker.ask(name),
    ),
    **for_each(["fetchBackup", "fetchBackupVersion"], "304", lambda asker, name: asker.ask(name, "If-None-Match: *")),
    # What it answers to a request that is wrong in some way.
    **for_each(SIGNED, "400 malformed_request", lambda asker, name: asker.ask(name, query="?x")),
    **for_each(
        ["registerUser", "fetchBackup", "fetchBackupVersion", "listBackupVersions", "deleteUser"],
        "400 malformed_request (body)",
        lambda asker, name: asker.ask(name, body=b"x"),
    ),
    **for_each(UPLOADS, "400 malformed_request (JSON)", lambda asker, name: asker.ask(name, body=b"{")),
    **for_each(SIGNED, "400 digest_mismatch", lambda asker, name: asker.ask(name, signed_body=b"other")),
    **for_each(SIGNED, "401 signature_missing", lambda asker, name: asker.bare(*OPERATIONS[name][:2])),
    **for_each(SIGNED, "401 signature_invalid", lambda asker, name: asker.ask(name, secret="another secret")),
    **for_each(SIGNED, "401 signature_expired", lambda asker, name: asker.ask(name, created=1)),
    **for_each(
        [each for each in SIGNED if each != "registerUser"],
        "401 credentials_invalid",
        lambda asker, name: asker.ask(name, credentials=(asker.credentials[0], "0" * 64)),
    ),
    "getAdminStats 401 admin_key_invalid": ("401 admin_key_invalid", lambda asker: asker.bare("GET", "/admin/stats")),
    **for_each(SIGNED, "403 app_outdated", lambda asker, name: asker.ask(name, keyid="retired")),
    "fetchBackup 404 no_backup": ("404 no_backup", lambda asker: without_a_backup(asker).ask("fetchBackup")),
    "fetchBackupVersion 404 no_such_version": (
        "404 no_such_version",
        lambda asker: asker.ask("fetchBackupVersion", path="/api/backup/versions/9"),
    ),
    **for_each(OPERATIONS, "405 method_not_allowed", lambda asker, name: asker.bare("PATCH", OPERATIONS[name][1])),
    **for_each(["storeBackup", "getHealth"], "408 request_timeout", lambda asker, name: asker.ask_slowly(name)),
    "registerUser 409 username_taken": (
        "409 username_taken",
        lambda asker: asker.ask("registerUser", credentials=(asker.credentials[0], "0" * 64)),
    ),
    "registerUser 409 recently_deleted": ("409 recently_deleted", lambda asker: deleted(asker).ask("registerUser")),
    **for_each(UPLOADS, "409 version_conflict", lambda asker, name: asker.ask(name, body=upload(name, base=None))),
    **for_each(
        OPERATIONS,
        "413 payload_too_large",
        lambda asker, name: asker.bare(*OPERATIONS[name][:2], "Content-Length: 1000000000"),
    ),
    **for_each(
        UPLOADS,
        "413 payload_too_large (decoded)",
        lambda asker, name: asker.ask(name, body=upload(name, bytes(openapi.MAX_DECODED_BYTES + 1))),
    ),
    **for_each(UPLOADS, "415 unsupported_media_type", lambda asker, name: asker.ask(name, "Content-Type: text/plain")),
    **for_each(UPLOADS, "422 validation_failed", lambda asker, name: asker.ask(name, body=b"{}")),
    **for_each(SIGNED, "429 rate_limited (guessing)", lambda asker, name: guessed(asker).ask(name)),
    **for_each(
        UPLOADS, "429 rate_limited", lambda asker, name: used_up(asker, name).ask(name, body=upload(name, b"x"))
    ),
    # What the server answers if it fails.
    **for_each(
        OPERATIONS,
        "500 internal_error",
        lambda asker, name: asker.under("internal_error", functools.partial(asker.ask, name)),
    ),
    **for_each(
        SIGNED, "503 unavailable", lambda asker, name: asker.under("unavailable", functools.partial(asker.ask, name))
    ),
    "registerUser 507 storage_full": (
        "507 storage_full",
        lambda asker: asker.under(
            "storage_full", functools.partial(Asker(asker.server, asker.origin).ask, "registerUser")
        ),
    ),
    **for_each(
        UPLOADS, "507 storage_full", lambda asker, name: asker.under("storage_full", functools.partial(asker.ask, name))
    ),
    # What is no operation.
    **{
        f"{method} of nothing": (
            "404 not_found" if method != "HEAD" else "404",
            functools.partial(lambda method, asker: asker.bare(method, "/nothing"), method),
        )
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
    },
    "HEAD of health": ("200", lambda asker: asker.bare("HEAD", "/health")),
    "HEAD of a backup": ("405", lambda asker: asker.bare("HEAD", "/api/backup")),
}


@pytest.fixture(scope="module")
def shared(start_shared_server) -> ServerProcess:
    return start_shared_server(
        frozen=1_800_000_000,
        ALLOWED_ORIGINS=",".join(ALLOWED),
        RETIRED_KEYIDS="retired",
        REGISTRATIONS_PER_HOUR=1_000_000,
        FAILED_CREDENTIALS_PER_5_MINUTES=1,
        BACKUPS_PER_HOUR=3,
        KEY_CHANGES_PER_HOUR=1,
        **BEHIND_A_PROXY["settings"],
    )


def listed(answer: raw.Answer, name: str) -> list[str]:
    """Return the names in a header that is a list, in lowercase and sorted."""
    return sorted(filter(None, answer.headers.get(name, "").replace(" ", "").lower().split(",")))


def cors(answer: raw.Answer) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items() if name.lower().startswith("access-control-")}


def assert_cors(answer: raw.Answer, origin: str | None) -> None:
    assert "origin" in listed(answer, "Vary")
    if origin in ALLOWED:
        assert answer.headers.get_all("Access-Control-Allow-Origin") == [origin]
        assert listed(answer, "Access-Control-Expose-Headers") == EXPOSED
    else:
        assert cors(answer) == {}


@pytest.mark.requirement("cors.exposed", "cors.vary", "cors.others", "cors.each-origin")
@pytest.mark.parametrize("row", ANSWERS.values(), ids=ANSWERS)
def test_cors_of_every_answer(shared, row):
    wants, call = row
    for origin in (ALLOWED[1], OTHERS[0], None):
        asker = Asker(shared, origin).register().store()
        answer = call(asker)
        assert outcome(answer) == wants.partition(" (")[0]
        assert_cors(answer, origin)


@pytest.mark.requirement("cors.each-origin", "cors.exposed", "cors.preflight", "cors.vary")
@pytest.mark.parametrize("origin", ALLOWED)
def test_each_allowed_origin(shared, origin):
    asker = Asker(shared, origin)
    for method, path in [("GET", "/health"), ("GET", "/nothing"), ("POST", "/api/register"), ("POST", "/health")]:
        assert_cors(asker.bare(method, path), origin)
    for _, path, _ in OPERATIONS.values():
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            answer = asker.bare("OPTIONS", path, f"Access-Control-Request-Method: {method}")
            assert (answer.status, answer.body) == (204, b"")
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert listed(answer, "Access-Control-Allow-Headers") == SENT
            methods = {each.lower() for each, other, _ in OPERATIONS.values() if other == path}
            assert set(listed(answer, "Access-Control-Allow-Methods")) - {"head", "options"} == methods
            assert "origin" in listed(answer, "Vary")


@pytest.mark.requirement("cors.others", "cors.each-origin", "cors.vary")
@pytest.mark.parametrize("origin", OTHERS)
def test_each_other_origin(shared, origin):
    asker = Asker(shared, origin)
    for method, path in [("GET", "/health"), ("GET", "/nothing"), ("POST", "/api/register"), ("POST", "/health")]:
        assert_cors(asker.bare(method, path), origin)
    for _, path, _ in OPERATIONS.values():
        answer = asker.bare("OPTIONS", path, "Access-Control-Request-Method: GET")
        assert outcome(answer) == "405 method_not_allowed"
        assert_cors(answer, origin)


@pytest.mark.requirement("cors.path", "cors.exposed", "cors.others", "cors.vary", "problem.path")
@pytest.mark.parametrize("path", ["/nothing", "/api", "/api/backup/", "/health/", "/api/backup/versions/1/2", "/admin"])
@pytest.mark.parametrize("origin", [*ALLOWED[:2], OTHERS[0], None])
def test_a_preflight_of_a_path_that_is_not_there(shared, path, origin):
    answer = Asker(shared, origin).bare(
        "OPTIONS", path, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization"
    )
    assert outcome(answer) == "404 not_found"
    assert_cors(answer, origin)


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.head", "http.keep-alive", "problem.path", "problem.method")
@pytest.mark.parametrize("path", ["/nothing", "/api/backup", "/api/user", "/admin/stats", "/health", "/openapi.json"])
def test_no_answer_to_head_has_a_body(target, path):
    """Otherwise, the next answer on the connection would begin with it."""
    head, get = raw.request("HEAD", path), raw.request("GET", "/health", headers=("Connection: close",))
    with raw.connected(target) as connection:
        raw.send_all(connection, b"".join(each.replace(raw.HOST, raw.host(target)) for each in (head, get)))
        received = to_the_end(connection)
    assert raw.receive(target, received, "HEAD", path, head).status in (200, 404, 405)
    assert outcome(raw.receive(target, received, "GET", "/health", get)) == "200"
    assert received.read() == b""
