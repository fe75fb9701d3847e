"""SECURITY.md names a test for each attack. Secrets that are planted everywhere show nowhere."""

import base64
import re
import secrets

from clients.python.backup_client import authorization
from contract_tests.target import raw
from contract_tests.target.calls import outcome
from contract_tests.target.openapi import REPOSITORY

NAMED = re.compile(r"`((?:server_tests/)?test_\w+\.py)::(test_\w+)`")


def attacks() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the rows of the table of attacks: what the attack is, and the file and name of each test."""
    text = (REPOSITORY / "SECURITY.md").read_text()
    table = text.partition("## Known attacks")[2].partition("\n\n`openapi.yaml`")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    return [(row[0].removeprefix("| "), NAMED.findall(row[-1])) for row in rows]


def test_each_attack_has_a_test():
    assert len(attacks()) >= 25
    for attack, tests in attacks():
        assert tests, attack
        for file, name in tests:
            path = REPOSITORY / (file if "/" in file else f"contract_tests/{file}")
            assert f"\ndef {name}(" in path.read_text(), f"{attack}: {file}::{name}"


def test_planted_secrets(start_server):
    """What is private is sent wherever it can stand in a request. Then it is searched in all that the server writes."""
    server = start_server(DEBUG=None, ADMIN_SECRET_KEY=secrets.token_urlsafe(32))
    user = server.client()
    user_id, key = user.credentials
    blob = secrets.token_bytes(300)
    new_key = secrets.token_hex(32)
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(blob)) == "201"
    assert outcome(user.change_storage_key(new_key, blob + b"x", user.fetch_backup().json()["sha256"])) == "200"
    credentials = authorization(user_id, new_key)
    private = [user_id, key, new_key, credentials.split()[1], base64.b64encode(blob).decode()[:60], server.secret]
    private.append(server.admin_key)

    for planted in private:
        body = f'{{"{planted}": "{planted}", "data": "{planted}"}}'.encode()
        for request in (
            raw.request("GET", f"/api/backup/versions/{planted}"),
            raw.request("GET", f"/{planted}?{planted}#{planted}"),
            raw.request(planted[:20], f"//{planted}"),
            raw.request("POST", "/api/backup", body, headers=(f"Content-Type: {planted}", f"Authorization: {planted}")),
            raw.request("GET", "/health", headers=(f"{planted}: {planted}", f"Host: {planted}", f"Origin: {planted}")),
            raw.request("GET", "/admin/stats", headers=(f"Authorization: Bearer {planted}x",)),
            raw.request("POST", "/api/backup", headers=(f"Content-Length: {planted}",)),
            raw.request("POST", "/api/backup", headers=("Transfer-Encoding: chunked",)) + f"1;{planted}\r\n".encode(),
            f"{planted}\r\n\r\n".encode(),
        ):
            with raw.connected(server) as connection:
                connection.sendall(request)
                connection.shutdown(1)
                answer = b""
                while data := connection.recv(1 << 16):
                    answer += data
                assert planted.encode() not in answer, request
        signed = server.client((user_id, new_key))
        for value in ({"data": planted}, {planted: planted}, {"data": "AAAA", "baseSha256": planted + "x"}):
            answer = signed.request("POST", "/api/backup", body=value)
            assert answer.status_code >= 400
            assert planted not in answer.text
    for fault in ("storage_full", "unavailable", "internal_error"):
        server.fault = fault
        for answer in (signed.store_backup(blob), signed.delete_user(), signed.register_user()):
            assert all(planted not in answer.text for planted in private)
    server.fault = None
    server.stop()

    for path in server.directory.rglob("*"):
        if path.is_file():
            found = [planted for planted in private if planted.encode() in path.read_bytes()]
            # The database is named by userId. It has no key and no credentials.
            assert found == ([user_id] if path.name.startswith("backup.db") and found else []), path
