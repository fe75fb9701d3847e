"""What was deleted or dropped is in no file of the server any more: see openapi.yaml, "What is stored"."""

import hashlib
import os
from collections.abc import Iterable

import pytest

from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import eventually, outcome, sha256
from contract_tests.target.openapi import RESERVED
from contract_tests.target.process import ServerProcess

FROZEN = 1_795_510_800
MINUTE, DAY = 60, 86_400
MANY = {"BACKUPS_PER_HOUR": 1000, "BACKUPS_PER_DAY": 1000, "KEEP_VERSIONS": "2,0,0,0"}
PIECE = 24  # bytes


def pieces(blob: bytes) -> list[bytes]:
    return [blob[:PIECE], blob[len(blob) // 2 :][:PIECE], blob[-PIECE:]]


def found(server: ServerProcess, gone: Iterable[bytes]) -> list[str]:
    """Return the files that still have one of these."""
    contents = {path.name: path.read_bytes() for path in server.directory.iterdir() if path.is_file()}
    return sorted({name for name, content in contents.items() for piece in gone if piece in content})


def key_hash(key: str) -> list[bytes]:
    digest = hashlib.sha256(key.encode())
    return [digest.digest(), digest.hexdigest().encode()]


@pytest.mark.requirement("erase.deleted")
@pytest.mark.parametrize("is_killed", [False, True])
def test_what_was_deleted_is_gone(start_server, is_killed):
    server = start_server(frozen=FROZEN, **MANY)
    user, base = server.client(), None
    user_id, key = user.credentials
    assert outcome(user.register_user()) == "201"
    gone = key_hash(key)
    for size in (60, 3000, 50_000, 300_000):
        blob = os.urandom(size)
        assert outcome(user.store_backup(blob, base)) == "201"
        base, gone = sha256(blob), gone + pieces(blob)
    if not found(server, gone[2:]):
        not_run("the server keeps its data where this test cannot look")
    assert outcome(user.delete_user()) == "204"
    if is_killed:
        server.kill()
        server.start()
    server.move_clock(10 * MINUTE)
    assert eventually(lambda: not found(server, gone), 30), found(server, gone)
    server.move_clock(RESERVED - 9 * MINUTE)
    assert eventually(lambda: not found(server, [user_id.encode(), bytes.fromhex(user_id)]), 30)


@pytest.mark.requirement("erase.dropped")
def test_what_was_dropped_is_gone(start_server):
    server = start_server(frozen=FROZEN, **MANY)
    user, blobs = server.client(), [os.urandom(size) for size in (3000, 200_000, 60, 50_000, 3000)]
    assert outcome(user.register_user()) == "201"
    for before, blob in zip([None, *blobs], blobs, strict=False):
        assert outcome(user.store_backup(blob, sha256(before))) == "201"
    server.move_clock(7 * DAY)
    gone = [piece for blob in blobs[:3] for piece in pieces(blob)]
    assert eventually(lambda: not found(server, gone), 30), found(server, gone)
    for version in (4, 5):
        assert outcome(user.fetch_backup_version(version)) == "200"
