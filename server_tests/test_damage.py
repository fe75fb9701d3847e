"""A damaged record never looks like a wrong password. A file in the former format can still be read."""

import contextlib
import dbm.sqlite3
import hashlib
import json
import random
import re
import secrets
import zlib
from pathlib import Path
from typing import Any

import pytest

from contract_tests.target.calls import eventually
from contract_tests.target.openapi import LIMITS
from server.records import from_bytes
from server_tests.test_bounds import bounded

BLOB, OTHER_BLOB = b"a backup", b"another backup"


def flip_a_bit(database: Path, key: str, bit: int) -> None:
    """Flip one bit of a stored value while the server is stopped. Bits are counted from the beginning of the value."""
    with contextlib.closing(dbm.sqlite3.open(database, "w")) as file:
        value = bytearray(file[key.encode()])
        value[bit // 8 % len(value)] ^= 1 << bit % 8
        file[key.encode()] = bytes(value)


@pytest.mark.parametrize("seed", range(2))
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
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(500, "account_damaged")}

    def damaged() -> int:
        return sum(line.get("error") == "Damaged" for line in server.log())

    assert eventually(lambda: damaged() >= len(answers))
    assert other.fetch_backup().json()["sha256"] == digest
    assert other.store_backup(OTHER_BLOB, digest).status_code == 201


def test_a_round_each_week_finds_what_nobody_reads(start_server):
    """A backup that is damaged is found within seven days, though nobody fetches it. Nothing else changes."""
    server = start_server(frozen=1_795_510_800)
    user = server.client()
    assert user.register_user().status_code == 201
    assert user.store_backup(BLOB).status_code == 201
    server.damage(BLOB)
    user.base_url = server.base_url

    def damaged() -> int:
        return user.get_admin_stats(server.admin_key).json()["damaged"]

    for _ in range(15):
        if eventually(damaged, 1.5):
            break
        server.move_clock(43_200)
    assert damaged() == 1
    assert [line["kind"] for line in server.log() if line["event"] == "damage"] == ["backup"]
    health = user.get_health()
    assert (health.status_code, health.json()["degraded"]) == (200, ["scrub"])
    assert user.store_backup(BLOB).status_code == 200  # the retry mends it
    server.move_clock(43_200)
    assert eventually(lambda: damaged() == 0)


def test_an_account_is_verified_on_one_day_of_seven(start_server):
    """Two backups are damaged. A round finds only the one whose day it is."""
    moment = 1_795_510_800
    server = start_server(frozen=moment)
    today = moment // 86_400
    backups = {today: b"of today", today + 1: b"of tomorrow"}
    for day, blob in backups.items():
        user_ids = iter(lambda: secrets.token_hex(32), "")
        user_id = next(each for each in user_ids if zlib.crc32(each.encode()) % 7 == day % 7)
        user = server.client((user_id, secrets.token_hex(32)))
        assert user.register_user().status_code == 201
        assert user.store_backup(blob).status_code == 201
    for blob in backups.values():
        server.damage(blob)

    def damaged() -> int:
        return server.client().get_admin_stats(server.admin_key).json()["damaged"]

    assert eventually(lambda: damaged() == 1)
    assert not eventually(lambda: damaged() == 2, 2)
    server.move_clock(86_400)
    assert eventually(lambda: damaged() == 2)


def test_so_much_damage_is_remembered(start_server):
    server = start_server(command=bounded(DAMAGED=1))
    users = [server.client() for _ in range(3)]
    for each in users:
        assert each.register_user().status_code == 201
    server.stop()
    for each in users:
        flip_a_bit(server.database, f"user/{each.credentials[0]}", 8 * 50)
    server.start()
    # The statistics wait until every account was visited once.
    assert server.client().get_admin_stats(server.admin_key).json()["damaged"] == 1
    for each in users:
        each.base_url = server.base_url
        assert each.fetch_backup().json()["code"] == "account_damaged"


def test_a_damaged_tombstone_holds_up_no_other(start_server):
    """Two accounts are deleted. What is left of the first is damaged: the second is forgotten in time all the same."""
    server = start_server(frozen=1_795_510_800)
    first, second = server.client(), server.client()
    for each in (first, second):
        assert each.register_user().status_code == 201
        assert each.store_backup(BLOB).status_code == 201
        assert each.delete_user().status_code == 204
        server.move_clock(1)
    flip_a_bit(server.database, f"user/{first.credentials[0]}", 8 * 100)
    server.move_clock(LIMITS["deletedUserSeconds"])

    def is_there() -> bool:
        with contextlib.closing(dbm.sqlite3.open(server.database, "r")) as file:
            return file.get(f"user/{second.credentials[0]}".encode()) is not None

    assert eventually(lambda: not is_there())
    assert server.client().get_admin_stats(server.admin_key).json()["damaged"] == 1
    assert first.register_user().json()["code"] == "account_damaged"


# What a flipped bit in a key does: of the record's key in the table or in its index, or of a blob's.
PLACES = {
    f"of {kind} in the {part}": (key, part == "index")
    for kind, key in {"a record": "user/{}", "a blob": "blob/{}/0"}.items()
    for part in ("table", "index")
}


@pytest.mark.parametrize(("where", "bit"), [(0, 7), (40, 0)])
@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_in_a_key_is_no_absence(start_server, place, where, bit):
    """Nobody is told that an account does not exist, nobody can register it anew, and the others are served."""
    server = start_server()
    user, other = server.client(), server.client()
    for each in (user, other):
        assert each.register_user().status_code == 201
        assert each.store_backup(BLOB).status_code == 201
    server.stop()
    key, is_index = PLACES[place]
    flip_a_bit_of_a_key(server.database, key.format(user.credentials[0]).encode(), is_index, where, bit)
    server.start()
    user.base_url = other.base_url = server.base_url
    stranger = server.client((user.credentials[0], secrets.token_hex(32)))
    answers = [user.fetch_backup(), user.list_backup_versions(), user.register_user(), stranger.register_user()]
    codes = [answer.json().get("code", answer.status_code) for answer in answers]
    allowed = [{200, "account_damaged", "backup_damaged"}] * 3 + [{"username_taken", "account_damaged"}]
    assert all(code in each for code, each in zip(codes, allowed, strict=True)), codes
    assert eventually(lambda: any(line["event"] == "damage" for line in server.log()))
    if is_index:  # it is made anew from the table
        assert eventually(lambda: any(line["event"] == "index_rebuilt" for line in server.log()))
        assert user.fetch_backup().json()["sha256"] == hashlib.sha256(BLOB).hexdigest()
        assert user.store_backup(OTHER_BLOB, hashlib.sha256(BLOB).hexdigest()).status_code == 201
    else:
        assert other.get_admin_stats(server.admin_key).json()["damaged"] >= 1
    assert other.store_backup(OTHER_BLOB, hashlib.sha256(BLOB).hexdigest()).status_code == 201
    assert other.delete_user().status_code == 204


def test_what_the_index_has_lost_is_damaged_before_anybody_looks(start_server):
    """As long as nothing can be written, no round begins. A fetch finds out by itself."""
    server = start_server()
    user = server.client()
    assert user.register_user().status_code == 201
    assert user.store_backup(BLOB).status_code == 201
    server.stop()
    flip_a_bit_of_a_key(server.database, f"user/{user.credentials[0]}".encode(), True, 0, 7)
    user.base_url = server.restart(fault="full_from_the_start").base_url
    assert user.fetch_backup().json()["code"] == "account_damaged"


def flip_a_bit_of_a_key(database: Path, key: bytes, is_index: bool, where: int, bit: int) -> None:
    """Flip a bit of a key in the file itself. SQLite has it twice: in the table, before its value, and in the index."""
    content = bytearray(database.read_bytes())
    with contextlib.closing(dbm.sqlite3.open(database, "r")) as file:
        value = file[key]
    places = [match.start() for match in re.finditer(re.escape(key), content)]
    (at,) = (at for at in places if content.startswith(value[:20], at + len(key)) != is_index)
    content[at + where] ^= 1 << bit
    database.write_bytes(content)


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
