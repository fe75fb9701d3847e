"""A damaged record never looks like a wrong password. A file in the former format can still be read."""

import contextlib
import dbm.sqlite3
import hashlib
import json
import random
import secrets
from pathlib import Path
from typing import Any

import pytest

from contract_tests.target.calls import eventually
from server.records import from_bytes

BLOB, OTHER_BLOB = b"a backup", b"another backup"


def flip_a_bit(database: Path, key: str, bit: int) -> None:
    """Flip one bit of a stored value while the server is stopped. Bits are counted from the beginning of the value."""
    with contextlib.closing(dbm.sqlite3.open(database, "w")) as file:
        value = bytearray(file[key.encode()])
        value[bit // 8 % len(value)] ^= 1 << bit % 8
        file[key.encode()] = bytes(value)


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_a_record_is_no_wrong_password(start_server, seed):
    """Every operation of this account gets a logged 500, with any key. Other accounts still work."""
    server = start_server()
    user, other = server.client(), server.client()
    for each in (user, other):
        assert each.register_user().status_code == 201
        assert each.store_backup(BLOB).status_code == 201
    user_id, _ = user.credentials
    server.stop()
    flip_a_bit(server.database, f"user/{user_id}", random.Random(seed).randrange(8 * 400))
    server.start()
    stranger = server.client((user_id, secrets.token_hex(32)))
    other.base_url = user.base_url = server.base_url
    digest = hashlib.sha256(BLOB).hexdigest()
    answers = [
        user.register_user(),
        user.fetch_backup(),
        user.fetch_backup_version(1),
        user.list_backup_versions(),
        user.store_backup(BLOB),
        user.store_backup(OTHER_BLOB, digest),
        user.change_storage_key(secrets.token_hex(32), OTHER_BLOB, digest),
        user.delete_user(),
        stranger.register_user(),
        stranger.fetch_backup(),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(500, "internal_error")}

    def damaged() -> int:
        return sum(line.get("error") == "Damaged" for line in server.log())

    assert eventually(lambda: damaged() >= len(answers))
    assert other.fetch_backup().json()["sha256"] == digest
    assert other.store_backup(OTHER_BLOB, digest).status_code == 201


def former(record: dict[str, Any]) -> bytes:
    """Return a record in the former format: only JSON, with the slot in each version."""
    record = {name: value for name, value in record.items() if name not in ("format", "slotsUsed")}
    slots = record.pop("slots")
    versions = [version | {"slot": slot} for version, slot in zip(record["versions"], slots, strict=True)]
    return json.dumps(record | {"versions": versions, "slots": len(slots)}).encode()


def test_a_file_of_the_former_format_is_read(start_server):
    server = start_server()
    user, gone = server.client(), server.client()
    for each in (user, gone):
        assert each.register_user().status_code == 201
    assert user.store_backup(BLOB).status_code == 201
    assert user.store_backup(OTHER_BLOB, hashlib.sha256(BLOB).hexdigest()).status_code == 201
    server.stop()
    user_key, gone_key = (f"user/{each.credentials[0]}".encode() for each in (user, gone))
    with contextlib.closing(dbm.sqlite3.open(server.database, "w")) as file:
        file[b"format"] = b"1"
        file[user_key] = former(json.loads(file[user_key].partition(b"\n")[2]))
        file[gone_key] = b'{"deletedAt": 1000, "slots": 0}'
    server.start()
    user.base_url = gone.base_url = server.base_url
    assert user.fetch_backup().json()["sha256"] == hashlib.sha256(OTHER_BLOB).hexdigest()
    assert user.fetch_backup_version(1).json()["sha256"] == hashlib.sha256(BLOB).hexdigest()
    assert gone.fetch_backup().status_code == 401
    assert gone.register_user().status_code == 201
    third = user.store_backup(BLOB, hashlib.sha256(OTHER_BLOB).hexdigest())
    assert (third.status_code, third.json()["version"]) == (201, 3)
    server.stop()
    with contextlib.closing(dbm.sqlite3.open(server.database, "r")) as file:
        assert file[b"format"] == b"2"  # a server that knows only the former format refuses it
        account, members = from_bytes(user.credentials[0], file[user_key])
        assert [version.number for version in account.versions] == [1, 2, 3]
        assert members["slotsUsed"] == 3


def test_a_file_of_a_later_format_is_refused(start_server):
    server = start_server()
    server.stop()
    with contextlib.closing(dbm.sqlite3.open(server.database, "w")) as file:
        file[b"format"] = b"3"
    with pytest.raises(RuntimeError, match="DATABASE_PATH .* it is not a store in a format that this server knows"):
        server.start()
