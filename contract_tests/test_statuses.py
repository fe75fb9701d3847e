"""The statuses that operations share, each problem once, and what every answer carries.

The tests put faults into the server on purpose (500, 503, 507). Only then may an answer be a 5xx.
"""

import base64
import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target import openapi, raw
from contract_tests.target.calls import eventually, outcome, sha256

LATEST = b"the latest version"
BASE = sha256(LATEST)
OPERATIONS = sorted(openapi.OPERATIONS)
USER_OPERATIONS = sorted(each.id for each in openapi.OPERATIONS.values() if each.signed)
NOT_TOLD = ("Traceback", "ZeroDivisionError", "on purpose", "sqlite", ".py")  # no answer may contain these


def request_of(operation_id: str, *headers: str) -> bytes:
    """Return a request to an operation, without proofs and without a body."""
    operation = openapi.OPERATIONS[operation_id]
    return raw.request(operation.method, operation.path.replace("{version}", "1"), headers=headers)


# ---- Before anything is proven -----------------------------------------------------------------------------


@pytest.mark.requirement("{operation}.413", "backup.body")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_body_that_is_too_large(target, operation):
    body = b" " * (openapi.LIMITS["requestBodyBytes"] + 1)
    answer = raw.send(target, request_of(operation, f"Content-Length: {len(body)}") + body)
    assert outcome(answer) == "413 payload_too_large"


@pytest.mark.edge_may_change
@pytest.mark.requirement("{operation}.413")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_body_that_is_said_to_be_much_too_large(target, operation):
    """The server must answer at once. It must not wait for the body."""
    answer = raw.send(target, request_of(operation, "Content-Length: 1000000000"))
    assert outcome(answer) == "413 payload_too_large"


@pytest.mark.edge_may_change
@pytest.mark.requirement("{operation}.431", "http.header-limit")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_headers_that_are_too_large(target, operation):
    answer = raw.send(target, request_of(operation, f"X: {'x' * openapi.LIMITS['requestHeaderBytes']}"))
    assert outcome(answer) == "431 headers_too_large"


@pytest.mark.edge_may_change
@pytest.mark.requirement("{operation}.400", "http.framing")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_length_that_is_none(target, operation):
    assert outcome(raw.send(target, request_of(operation, "Content-Length: x"))) == "400 malformed_request"


@pytest.mark.requirement("{operation}.401", "signature.missing", "credentials.challenge", "header.WWW-Authenticate")
@pytest.mark.parametrize("operation", sorted(id for id, operation in openapi.OPERATIONS.items() if operation.signed))
@pytest.mark.public
def test_a_request_that_is_not_signed(target, operation):
    method, path = openapi.OPERATIONS[operation].method, openapi.OPERATIONS[operation].path.replace("{version}", "1")
    answer = target.client().request(method, path, signed=False)
    assert outcome(answer) == "401 signature_missing"
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="backup"'


# ---- What every answer carries -----------------------------------------------------------------------------


@pytest.mark.requirement("header.X-Request-Id", "header.Cache-Control")
@pytest.mark.public
def test_every_answer_carries_an_id_of_its_own_and_is_not_to_be_stored(target):
    client, ids = target.client(), []
    for method, path, status in [
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
        ("GET", "/openapi.yaml", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/nothing", 404),
        ("PUT", "/health", 405),
    ] * 2:
        answer = client.request(method, path, signed=False)
        assert answer.status_code == status
        ids.append(answer.headers.get("X-Request-Id", len(ids)))  # the check of every answer finds it missing
    assert len(set(ids)) == len(ids)


@pytest.mark.requirement("header.X-Request-Id", "header.Cache-Control")
def test_so_does_every_answer_to_a_user(new_user):
    client = new_user()
    stored = client.store_backup(LATEST)
    answers = [
        stored,
        client.request("GET", "/api/backup", signed=False),
        client.request("POST", "/api/backup", signed=False),
        client.request("DELETE", "/api/user", signed=False),
        client.register_user(),
        client.store_backup(LATEST),
        client.store_backup(b"stale", "0" * 64),
        client.request("POST", "/api/backup", body={"data": ""}),
        client.request("POST", "/api/backup", body=b"{}"),
        client.request("GET", "/api/backup", body=b"{}"),
        client.fetch_backup(),
        client.fetch_backup("*"),
        client.list_backup_versions(),
        client.fetch_backup_version(1),
        client.fetch_backup_version(2),
        client.delete_user(),
    ]
    ids = [answer.headers.get("X-Request-Id", number) for number, answer in enumerate(answers)]
    assert len(set(ids)) == len(ids)


@pytest.mark.requirement("problem.form")
@pytest.mark.public
def test_the_form_of_a_problem(target):
    client = target.client()
    for answer in [
        client.request("GET", "/nothing", signed=False),
        client.request("PUT", "/health", signed=False),
    ]:
        assert answer.status_code in (404, 405)  # the check of every answer looks at the form of the problem


# ---- The server's own faults -------------------------------------------------------------------------------


def call_each(client: BackupClient, admin_key: str) -> dict[str, Callable[[], Any]]:
    """Return a call for each operation of a user with one backup. Without a fault, each call succeeds."""
    return {
        "registerUser": client.register_user,
        "storeBackup": lambda: client.store_backup(b"another", BASE),
        "fetchBackup": client.fetch_backup,
        "listBackupVersions": client.list_backup_versions,
        "fetchBackupVersion": lambda: client.fetch_backup_version(1),
        "changeStorageKey": lambda: client.change_storage_key("ab" * 32, b"another", BASE),
        "deleteUser": client.delete_user,
        "getHealth": client.get_health,
        "getAdminStats": lambda: client.get_admin_stats(admin_key),
        "getOpenapiYaml": lambda: client.get_openapi("yaml"),
        "getOpenapiJson": lambda: client.get_openapi("json"),
    }


def state(client: BackupClient) -> tuple[Any, Any]:
    """Return what a client can see of its account."""
    return client.list_backup_versions().json(), client.fetch_backup().json()


@pytest.fixture(scope="module")
def faulty(start_shared_server):
    """A server that the tests give faults."""
    return start_shared_server(REGISTRATIONS_PER_HOUR=1000)


@pytest.fixture
def user(faulty):
    """A user of this server, with one backup."""
    user = faulty.client()
    assert user.register_user().status_code == 201
    assert user.store_backup(LATEST).status_code == 201
    return user


def answer_under(server: Any, fault: str, call: Callable[[], Any]) -> Any:
    """Return the answer to a call while the server has a fault. Check that it does not reveal the fault."""
    server.fault = fault
    try:
        answer = call()
    finally:
        server.fault = None
    assert not [text for text in NOT_TOLD if text in answer.text + str(answer.headers)]
    return answer


@pytest.mark.requirement("{operation}.500", "problem.silent", "problem.unchanged", "header.X-Request-Id")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_fault_of_the_server(faulty, user, operation):
    before = state(user)
    call = call_each(user, faulty.admin_key)[operation]
    assert outcome(answer_under(faulty, "internal_error", call)) == "500 internal_error"
    assert state(user) == before


def last_health(client: BackupClient, wants: str) -> Any:
    """Ask for the health until the outcome is this: the state may be a few seconds old. Return the last answer."""
    answers = []

    def is_wanted() -> bool:
        answers.append(client.get_health())
        return outcome(answers[-1]) == wants

    eventually(is_wanted)
    return answers[-1]


@pytest.mark.requirement("{operation}.503", "problem.silent", "problem.unchanged", "header.Retry-After")
@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - {"getAdminStats", "getOpenapiYaml", "getOpenapiJson"}))
def test_a_database_that_fails(faulty, user, operation):
    before = state(user)
    calls = call_each(user, faulty.admin_key) | {"getHealth": lambda: last_health(user, "503 unavailable")}
    answer = answer_under(faulty, "unavailable", calls[operation])
    assert outcome(answer) == "503 unavailable"
    assert int(answer.headers["Retry-After"]) >= 1
    assert state(user) == before
    assert outcome(last_health(user, "200")) == "200"


@pytest.mark.requirement("getAdminStats.503", "header.Retry-After")
def test_statistics_that_cannot_be_taken_yet(start_server):
    server = start_server(fault="uncountable")
    answer = server.client().get_admin_stats(server.admin_key)
    assert outcome(answer) == "503 unavailable"
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.requirement("{operation}.507", "problem.unchanged", "problem.silent")
@pytest.mark.parametrize("operation", ["registerUser", "storeBackup", "changeStorageKey"])
def test_a_full_disk(faulty, user, operation):
    newcomer = faulty.client()
    call = newcomer.register_user if operation == "registerUser" else call_each(user, faulty.admin_key)[operation]
    before = state(user)
    assert outcome(answer_under(faulty, "storage_full", call)) == "507 storage_full"
    # Operations that write nothing still work.
    assert outcome(answer_under(faulty, "storage_full", user.register_user)) == "200"
    assert outcome(answer_under(faulty, "storage_full", lambda: user.store_backup(LATEST))) == "200"
    assert answer_under(faulty, "storage_full", user.fetch_backup).json() == before[1]
    # A deletion needs no space of its own.
    assert outcome(answer_under(faulty, "storage_full", user.delete_user)) == "503 unavailable"
    assert state(user) == before
    faulty.move_clock(1)  # or the repeated upload would have the signature of the refused one
    assert outcome(call()) in ("201", "200")


@pytest.mark.requirement("backup.damaged", "fetchBackup.500", "fetchBackupVersion.500")
def test_a_damaged_version(start_server):
    server = start_server()
    user = server.client()
    user.register_user()
    newer = b"the one that will be damaged"
    user.store_backup(LATEST)
    receipt = user.store_backup(newer, BASE).json()
    server.damage(newer)
    user.base_url = server.base_url
    assert outcome(user.fetch_backup()) == "500 backup_damaged"
    assert outcome(user.fetch_backup_version(2)) == "500 backup_damaged"
    # You can still fetch the others, the list is complete, and the client can continue from it.
    assert backup_bytes(user.fetch_backup_version(1)) == LATEST
    assert user.list_backup_versions().json()["versions"][0] == receipt
    assert outcome(user.store_backup(b"anew", receipt["sha256"])) == "201"
    assert backup_bytes(user.fetch_backup()) == b"anew"
    assert outcome(user.fetch_backup_version(2)) == "500 backup_damaged"


@pytest.mark.requirement("account.damaged", *(f"{each}.500" for each in USER_OPERATIONS))
def test_a_damaged_account(start_server):
    server = start_server()
    user, other = server.client(), server.client()
    for each in (user, other):
        each.register_user()
        each.store_backup(LATEST)
    server.damage_account(user.credentials[0])
    user.base_url = other.base_url = server.base_url
    stranger = server.client((user.credentials[0], secrets.token_hex(32)))
    for each in (user, stranger):
        answers = [
            each.register_user(),
            each.fetch_backup(),
            each.fetch_backup_version(1),
            each.list_backup_versions(),
            each.store_backup(b"anew", BASE),
            each.change_storage_key(secrets.token_hex(32), b"anew", BASE),
            each.delete_user(),
        ]
        assert {outcome(answer) for answer in answers} == {"500 account_damaged"}
    assert backup_bytes(other.fetch_backup()) == LATEST
    assert outcome(other.store_backup(b"anew", BASE)) == "201"


@pytest.mark.requirement("retry.mends")
def test_a_retry_mends_a_damaged_version(start_server):
    server = start_server()
    user = server.client()
    user.register_user()
    receipt = user.store_backup(LATEST).json()
    server.damage(LATEST)
    user.base_url = server.base_url
    assert outcome(user.fetch_backup()) == "500 backup_damaged"
    answer = user.store_backup(LATEST)
    assert (answer.status_code, answer.json()) == (200, receipt)
    assert backup_bytes(user.fetch_backup()) == LATEST


# ---- Every problem once ------------------------------------------------------------------------------------


@pytest.mark.requirement("problem.form")
def test_each_problem_once(start_server):
    """Provoke every code of the spec's table. Each has the status and at least the members of its example."""
    server = start_server(
        frozen=1_800_000_000,
        BACKUPS_PER_HOUR=2,
        REGISTRATIONS_PER_HOUR=4,
        FAILED_CREDENTIALS_PER_5_MINUTES=5,
        RETIRED_KEYIDS="retired",
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
        server.damage(LATEST)
        user.base_url = server.base_url
        return user.fetch_backup()

    def of_damaged_account() -> Any:
        hurt = server.client()
        hurt.register_user()
        server.damage_account(hurt.credentials[0])
        hurt.base_url = user.base_url = server.base_url
        return hurt.fetch_backup()

    def too_often() -> Any:
        user.store_backup(b"the second", BASE)
        return user.store_backup(b"the third", sha256(b"the second"))

    def too_slow() -> Any:
        head = raw.request("GET", "/health", headers=("Transfer-Encoding: chunked", "Expect: 100-continue"))
        return raw.expect(server, head, b"", "GET", "/health", lambda: server.move_clock(301))[1]

    digest_of_other = raw.signed(server, (user_id, storage_key), "GET", "/api/backup", b"{}")
    upload = json.dumps({"data": base64.b64encode(b"another").decode()}).encode()
    problems: dict[str, Callable[[], Any]] = {
        "malformed_request": lambda: anyone("GET", "/health", "Content-Length: x"),
        "digest_mismatch": lambda: anyone("GET", "/api/backup", *digest_of_other),
        "signature_missing": lambda: anyone("GET", "/api/backup"),
        "signature_invalid": lambda: signing(secret="another secret"),
        "signature_expired": lambda: signing(created=int(server.now()) - 301),
        "credentials_invalid": lambda: server.client().fetch_backup(),
        "app_outdated": lambda: signing(keyid="retired"),
        "request_timeout": too_slow,
        "admin_key_invalid": lambda: anyone("GET", "/admin/stats", "Authorization: Bearer x"),
        "not_found": lambda: anyone("GET", "/nothing"),
        "no_backup": empty.fetch_backup,
        "no_such_version": lambda: user.fetch_backup_version(2),
        "method_not_allowed": lambda: anyone("POST", "/health"),
        "username_taken": lambda: server.client((user_id, secrets.token_hex(32))).register_user(),
        "recently_deleted": deleted.register_user,
        "version_conflict": lambda: user.store_backup(b"another"),
        "payload_too_large": lambda: anyone("POST", "/api/backup", "Content-Length: 100000000"),
        "unsupported_media_type": lambda: user.request("POST", "/api/backup", body=upload),
        "validation_failed": lambda: user.request("POST", "/api/backup", body={}),
        "headers_too_large": lambda: anyone("GET", "/health", f"X: {'x' * 20_000}"),
        "internal_error": lambda: under("internal_error", user.fetch_backup),
        "unavailable": lambda: under("unavailable", user.fetch_backup),
        "storage_full": lambda: under("storage_full", lambda: server.client().register_user()),
        "account_damaged": of_damaged_account,
        "backup_damaged": of_damaged,
        "rate_limited": too_often,
    }
    examples = {
        example["value"]["code"]: example["value"]
        for response in openapi.resolved(openapi.SPEC["components"]["responses"]).values()
        for content in response.get("content", {}).values()
        for example in content["examples"].values()
    }
    assert set(problems) == set(examples)
    types = {}
    for code, call in problems.items():
        answer = call()
        assert outcome(answer) == f"{examples[code]['status']} {code}"
        assert answer.json().keys() >= examples[code].keys()
        types[code] = answer.json()["type"]
    assert len(set(types.values())) == len(types)
