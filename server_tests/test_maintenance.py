"""maintenance.py, as an operator runs it: beside a running server, on a stopped one, and interrupted."""

import contextlib
import errno
import hashlib
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from clients.python.backup_client import BackupClient
from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import FromAddress, eventually
from contract_tests.target.openapi import SERVER
from contract_tests.target.process import COVERAGE, ServerProcess
from server import bounds, clock, copies, inspection, operator
from server.accounts import Account, Upload, Version
from server.dbm_reader import Row
from server.dbm_store import DbmStore

DAY = 86_400_000
MANY = {
    "BACKUPS_PER_HOUR": 100_000,
    "BACKUPS_PER_DAY": 100_000,
    "REGISTRATIONS_PER_HOUR": 100_000,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 100_000,
}
# The command that runs maintenance.py. The gallery of broken servers has one that puts a fault in.
TOOL = shlex.split(os.environ.get("MAINTENANCE_COMMAND", "")) or [
    *(sys.executable, str(Path(os.environ.get("BACKUP_SERVER", SERVER)).resolve().parent / "maintenance.py"))
]
COMMANDS = ("verify", "snapshot", "restore", "compact", "accounts", "remove", "migrate", "reopen")


def environment(database: Path) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", *COVERAGE) if name in os.environ}
    return inherited | {"DATABASE_PATH": str(database)}


def run(database: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a command on a store."""
    command = [*TOOL, *map(str, arguments)]
    return subprocess.run(command, env=environment(database), capture_output=True, text=True, stdin=subprocess.DEVNULL)


def result(database: Path, *arguments: Any, code: int = 0) -> dict[str, Any]:
    """Run a command with --json. Return what it prints."""
    done = run(database, *arguments, "--json")
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def refused(database: Path, *arguments: Any) -> str:
    """Run a command that cannot be done. Return the one line that says why. Lines about its progress come first."""
    done = run(database, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), (done.stdout, done.stderr)
    *progress, line = done.stderr.splitlines()
    assert line.startswith("maintenance: ") and all(re.search(r"( …|: \d+ %)$", each) for each in progress), done.stderr
    return line


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def user_id(number: int) -> str:
    return digest(str(number).encode())


class Filled:
    """A store that no server uses. `blobs` has the bytes of each version of each account."""

    def __init__(self, path: Path, accounts: int = 3, versions: int = 2, size: int = 3000, seed: int = 1) -> None:
        self.path, self.blobs, self.dropped = path, {}, []
        chance = random.Random(seed)
        with self.store() as store:
            for number in range(accounts):
                self.blobs[user_id(number)] = [chance.randbytes(size) for _ in range(versions)]
                put(store, user_id(number), self.blobs[user_id(number)])

    @contextlib.contextmanager
    def store(self) -> Any:
        with contextlib.closing(DbmStore(self.path, 901)) as store:
            yield store

    def intact(self, path: Path | None = None) -> bool:
        """Return whether a file has exactly these accounts and bytes."""
        return contents(path or self.path) == self.blobs

    def sql(self, statement: str, *values: Any) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement, values)


def put(store: DbmStore, name: str, blobs: list[bytes], created_at: int | None = None, key: str = "0" * 64) -> None:
    """Register an account and let it store these versions, a day apart."""
    account = Account(clock.now() if created_at is None else created_at, key)
    with store.account(name) as held:
        held.create(account)
    versions: tuple[Version, ...] = ()
    for number, blob in enumerate(blobs, 1):
        moment = account.created_at + number * DAY
        versions += (Version(number, moment, len(blob), digest(blob), 1),)
        upload = Upload(moment, f"signature {number}")
        with store.account(name) as held:
            held.append(Account(account.created_at, key, 1, versions, (upload,), min(number, 7)), blob)


def contents(path: Path) -> dict[str, list[bytes]]:
    """Return the bytes of each version of each account in a file that no server uses."""
    found: dict[str, list[bytes]] = {}
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = dict(connection.execute("SELECT key, value FROM Dict").fetchall())
    for key, value in rows.items():
        if key.startswith(b"user/"):
            name = key[5:].decode()
            row = Row.from_bytes(name, value)
            if isinstance(row.record, Account):
                found[name] = [rows[f"blob/{name}/{slot}".encode()] for slot in row.slots]
                assert [digest(data) for data in found[name]] == [version.sha256 for version in row.versions]
    return found


def files_with(directory: Path, part: bytes) -> list[str]:
    """Return which files have these bytes anywhere."""
    return [file.name for file in directory.iterdir() if file.is_file() and part in file.read_bytes()]


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    return Filled(tmp_path / "store" / "backup.db")


@pytest.fixture
def server(start_server) -> ServerProcess:
    return start_server(**MANY)


def registered(server: ServerProcess, *blobs: bytes) -> BackupClient:
    user = server.client()
    assert user.register_user().status_code == 201
    base = None
    for blob in blobs:
        assert user.store_backup(blob, base).status_code == 201
        base = digest(blob)
    return user


# ---- All commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(tmp_path, command):
    done = run(tmp_path / "backup.db", command, "--help")
    assert done.returncode == 0 and "exit codes: 0" in done.stdout and "--json" in done.stdout
    assert f" {command} " in run(tmp_path / "backup.db", "--help").stdout
    assert not list(tmp_path.iterdir())


def not_there(path: Path) -> str:
    return "No such file"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return "it is empty"


def directory(path: Path) -> str:
    path.mkdir()
    return "it is not a file"


def of_another_program(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    return "another program"


def of_a_later_format(path: Path) -> str:
    filled = Filled(path)
    filled.sql("UPDATE Dict SET value = x'33' WHERE key = x'666f726d6174'")
    return "a format that this version knows"


@pytest.mark.parametrize("make", [not_there, empty, directory, of_another_program, of_a_later_format])
def test_what_is_no_store_is_named_in_one_line(tmp_path, make):
    """It is never changed, and nothing is made in its place."""
    path, good = tmp_path / "there" / "backup.db", Filled(tmp_path / "good.db")
    path.parent.mkdir()
    reason = make(path)
    before = path.read_bytes() if path.is_file() else None
    for arguments in (["verify"], ["accounts"], ["snapshot", tmp_path / "copy"], ["compact"], ["remove", "--young"]):
        line = refused(path, *arguments)
        assert reason in line and str(path) in line
    assert reason in refused(good.path, "restore", path)
    assert good.intact() and not (tmp_path / "copy").exists()
    assert (path.read_bytes() if path.is_file() else None) == before


def test_bytes_that_are_no_database_are_damage(tmp_path, filled):
    path = tmp_path / "backup.db"
    path.write_bytes(b"a text, and not a database" * 1000)
    assert [each["kind"] for each in result(path, "verify", code=1)["damage"]] == ["file"]
    for arguments in (["accounts"], ["snapshot", tmp_path / "copy"], ["compact"]):
        done = run(path, *arguments)
        assert done.returncode == 1 and "cannot be read as a store" in done.stderr
    assert run(filled.path, "restore", path).returncode == 1
    assert filled.intact()


# ---- verify ------------------------------------------------------------------------------------------------


def flip_a_blob(filled: Filled) -> None:
    key = f"blob/{user_id(1)}/0".encode()
    filled.sql("UPDATE Dict SET value = zeroblob(3000) WHERE key = ?", key)


def flip_a_record(filled: Filled) -> None:
    filled.sql("UPDATE Dict SET value = x'00' || value WHERE key = ?", f"user/{user_id(1)}".encode())


def lose_a_blob(filled: Filled) -> None:
    filled.sql("DELETE FROM Dict WHERE key = ?", f"blob/{user_id(1)}/1".encode())


def lose_a_record(filled: Filled) -> None:
    filled.sql("DELETE FROM Dict WHERE key = ?", f"user/{user_id(1)}".encode())


def add_a_slot(filled: Filled) -> None:
    filled.sql("INSERT INTO Dict VALUES (?, x'00')", f"blob/{user_id(1)}/9".encode())


def add_a_key(filled: Filled) -> None:
    filled.sql("INSERT INTO Dict VALUES (?, x'00')", f"user/{user_id(1)[:-1]}X".encode())


def flip_the_index(filled: Filled) -> None:
    """Flip a bit of a key where the index has it. Records have the key twice in the file: in their row, and there."""
    data, key = bytearray(filled.path.read_bytes()), f"user/{user_id(1)}".encode()
    places = [found.start() for found in re.finditer(key, bytes(data))]
    page = next(place for place in places if data[place // 4096 * 4096] in (10, 2))  # a page of an index
    data[page + 68] ^= 1
    filled.path.write_bytes(data)


def flip_a_page(filled: Filled) -> None:
    """Break the chain of pages that has a long value."""
    data = bytearray(filled.path.read_bytes())
    place = data.index(filled.blobs[user_id(1)][0][-1000:]) // 4096 * 4096
    data[place : place + 8] = b"\xff" * 8
    filled.path.write_bytes(data)


def cut_a_chain(filled: Filled) -> None:
    """Let a page in the middle of a long value name a next one that does not exist."""
    data = bytearray(filled.path.read_bytes())
    place = data.index(filled.blobs[user_id(1)][0][-10_000:-9_000]) // 4096 * 4096
    data[place : place + 4] = b"\x7f" * 4
    filled.path.write_bytes(data)


DAMAGE = {
    flip_a_blob: {"blob"},
    flip_a_record: {"record"},
    lose_a_blob: {"missing"},
    lose_a_record: {"stray"},
    add_a_slot: {"stray"},
    add_a_key: {"key"},
    flip_the_index: {"index"},
    flip_a_page: {"page"},
    cut_a_chain: {"page", "blob"},
}


def test_verify_finds_a_whole_store_whole(filled):
    before = filled.path.read_bytes()
    found = result(filled.path, "verify")
    assert found == {"accounts": 3, "deleted": 0, "versions": 6, "bytes": 18_000, "damage": []}
    assert "nothing is damaged" in run(filled.path, "verify").stdout
    assert filled.path.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_what_is_damaged(tmp_path, damage):
    """The others are counted. The userId is shortened unless asked for."""
    filled = Filled(tmp_path / "backup.db", size=20_000)
    damage(filled)
    before = filled.path.read_bytes()
    found = result(filled.path, "verify", code=1)
    kinds = {each["kind"] for each in found["damage"]}
    assert DAMAGE[damage] <= kinds <= DAMAGE[damage] | {"stray", "missing", "page", "blob"}, found["damage"]
    assert found["accounts"] >= 2
    assert damage is not cut_a_chain or "missing" not in kinds  # it is there, and cannot be read
    text = run(filled.path, "verify").stdout
    assert not re.search(r"[0-9a-f]{20}", text)
    named = {each["user"] for each in result(filled.path, "verify", "--full", code=1)["damage"]} - {None}
    if damage is add_a_key:
        assert re.search(f"b'user/{user_id(1)[:8]}'…$", text, re.MULTILINE)
    else:
        assert user_id(1) in named and named <= {user_id(1), *named_by_the_index(damage)}
        assert f"user {user_id(1)[:8]}:" in text
    assert filled.path.read_bytes() == before


# When a record is not found, the server takes it and its versions for missing.
def named_by_the_index(damage: Any) -> set[str]:
    flipped = user_id(1)[:-1] + chr(ord(user_id(1)[-1]) ^ 1)
    return {flipped} if damage is flip_the_index else set()


def test_verify_and_accounts_read_the_former_format(filled):
    name = user_id(1)
    with contextlib.closing(sqlite3.connect(filled.path)) as connection, connection:
        key = f"user/{name}".encode()
        ((stored,),) = connection.execute("SELECT value FROM Dict WHERE key = ?", (key,)).fetchall()
        record = json.loads(stored.partition(b"\n")[2])
        slots = record.pop("slots")
        record["versions"] = [each | {"slot": slot} for each, slot in zip(record["versions"], slots, strict=True)]
        record |= {"slots": record.pop("slotsUsed")}
        del record["format"]
        connection.execute("UPDATE Dict SET value = ? WHERE key = ?", (json.dumps(record).encode(), key))
        connection.execute("UPDATE Dict SET value = x'31' WHERE key = x'666f726d6174'")
    assert result(filled.path, "verify")["versions"] == 6
    assert result(filled.path, "accounts")["total"]["bytes"] == 18_000
    assert result(filled.path, "snapshot", filled.path.parent / "copy")["versions"] == 6


def test_reading_works_after_a_kill_and_beside_the_next_server(server):
    blob = random.Random(3).randbytes(50_000)
    registered(server, blob)
    server.kill()
    expected = {"accounts": 1, "deleted": 0, "versions": 1, "bytes": 50_000, "damage": []}
    assert result(server.database, "verify") == expected  # all of it is in the write-ahead log
    server.start()
    assert result(server.database, "verify") == expected
    assert result(server.database, "accounts")["total"]["accounts"] == 1
    registered(server, blob)  # nothing was locked
    server.stop()
    assert len(contents(server.database)) == 2


# ---- accounts ----------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(tmp_path: Path) -> Filled:
    """An old account that is idle, a large young one, one with many days, and one without a backup."""
    filled = Filled(tmp_path / "backup.db", accounts=0)
    now = clock.now()
    with filled.store() as store:
        put(store, user_id(0), [b"x" * 1000], created_at=now - 400 * DAY)
        put(store, user_id(1), [b"y" * 2_000_000], created_at=now - 3 * DAY)
        put(store, user_id(2), [bytes([number]) * 100 for number in range(9)], created_at=now - 10 * DAY)
        put(store, user_id(3), [], created_at=now - 40 * DAY)
        put(store, user_id(4), [b"gone"])
        with store.account(user_id(4)) as held:
            held.delete(now)
    return filled


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [1, 0, 2, 3]),
        (["--larger-than", "1M"], [1]),
        (["--larger-than", "999"], [1, 0]),
        (["--older-than", "30d"], [0, 3]),
        (["--older-than", "8w"], [0]),
        (["--idle-for", "36h"], [1, 0, 3]),
        (["--idle-for", "10d"], [0, 3]),
        (["--young"], [1, 0, 3]),
        (["--young", "--older-than", "1w"], [0, 3]),
        (["--without-backup"], [3]),
        (["--user", user_id(2)[:10]], [2]),
        (["--user", "f" * 64], []),
        (["--sort", "age"], [0, 3, 2, 1]),
        (["--sort", "idle"], [0, 3, 1, 2]),
        (["--sort", "versions"], [2, 0, 1, 3]),
    ],
)
def test_accounts_that_match(crowd, filters, expected):
    found = result(crowd.path, "accounts", *filters)
    if "versions" in filters:
        assert found["accounts"][0]["user"] == user_id(2)[:8] and found["accounts"][-1]["user"] == user_id(3)[:8]
    else:
        assert [each["user"] for each in found["accounts"]] == [user_id(number)[:8] for number in expected]
    assert found["total"]["accounts"] == len(expected)
    full = result(crowd.path, "accounts", *filters, "--full")
    assert {each["user"] for each in full["accounts"]} == {user_id(number) for number in expected}


def test_what_the_list_of_accounts_says(crowd):
    found = result(crowd.path, "accounts", "--user", user_id(2)[:8])
    (one,) = found["accounts"]
    assert (one["versions"], one["bytes"], one["storedBytes"], one["uploadDays"]) == (9, 900, 900, 7)
    text = run(crowd.path, "accounts").stdout
    assert text.endswith("4 accounts, 11 versions, 2.0 MB\n")
    assert not re.search(r"[0-9a-f]{20}", text) and user_id(1)[:8] in text


def test_damaged_records_are_counted_and_the_others_listed(filled):
    flip_a_record(filled)
    found = result(filled.path, "accounts", code=1)
    assert found["total"]["accounts"] == 2 and found["total"]["damaged"] == 1


@pytest.mark.parametrize(
    "bad", [["--larger-than", "much"], ["--older-than", "30"], ["--user", "'; DROP"], ["--sort", "x"]]
)
def test_filters_that_make_no_sense(filled, bad):
    done = run(filled.path, "accounts", *bad)
    assert done.returncode == 2 and bad[0] in done.stderr


# ---- snapshot ----------------------------------------------------------------------------------------------


def test_a_snapshot_is_one_whole_private_file(filled, tmp_path):
    copy = tmp_path / "copy.db"
    found = result(filled.path, "snapshot", copy)
    assert (found["snapshot"], found["accounts"], found["damage"]) == (str(copy), 3, [])
    assert filled.intact(copy) and filled.intact()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["copy.db"]


def test_a_snapshot_overwrites_nothing_unless_told_to(filled, tmp_path):
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"precious")
    assert "exists already" in refused(filled.path, "snapshot", copy) and copy.read_bytes() == b"precious"
    assert run(filled.path, "snapshot", copy, "--force").returncode == 0
    assert filled.intact(copy)
    copy.unlink()
    Path(f"{copy}-wal").write_bytes(b"it would become a part of the copy")
    assert "copy.db-wal: it exists already" in refused(filled.path, "snapshot", copy)
    assert run(filled.path, "snapshot", copy, "--force").returncode == 0
    assert filled.intact(copy)
    for name in (filled.path, filled.path.parent / "link"):
        if not name.exists():
            name.symlink_to(filled.path)
        assert "the store itself" in refused(filled.path, "snapshot", name, "--force")
    assert filled.intact()


@pytest.mark.parametrize("damage", [flip_a_blob, flip_a_record, flip_the_index, lose_a_blob])
def test_a_damaged_store_gives_no_snapshot_unless_told_to(tmp_path, damage):
    filled, copy = Filled(tmp_path / "backup.db"), tmp_path / "copy.db"
    damage(filled)
    assert result(filled.path, "snapshot", copy, code=1)["damage"]
    assert not copy.exists()
    assert result(filled.path, "snapshot", copy, "--damaged", code=1)["damage"]
    assert copy.exists()
    good = Filled(tmp_path / "good" / "backup.db", seed=2)
    assert run(good.path, "restore", copy).returncode == 1
    assert good.intact() and not list(good.path.parent.glob("*replaced*"))


@pytest.mark.parametrize("has_links", [True, False])
def test_a_name_that_somebody_takes_meanwhile_stays_theirs(filled, tmp_path, monkeypatch, has_links):
    """Also on a file system without links, such as that of many USB sticks."""
    vacuum_into, names = copies.vacuum_into, [tmp_path / "taken", tmp_path / "free"]

    def slow(source: Path, part: Path, stage: Any) -> Any:
        lacking = vacuum_into(source, part, stage)
        names[0].write_bytes(b"precious")
        return lacking

    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(copies, "vacuum_into", slow)
    if not has_links:
        monkeypatch.setattr(copies.os, "link", link)
    with pytest.raises(inspection.Unusable, match="it exists by now"):
        copies.snapshot(filled.path, names[0])
    assert names[0].read_bytes() == b"precious"
    copies.snapshot(filled.path, names[1])
    assert filled.intact(names[1])
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["free", "taken"]


def test_a_snapshot_into_no_directory(filled):
    assert "No such file or directory" in refused(filled.path, "snapshot", filled.path.parent / "missing" / "copy.db")


def test_snapshots_under_load_are_consistent_and_complete(server, tmp_path):
    """Each has what was acknowledged before it began, and nothing that is half there."""
    ledgers: list[list[bytes]] = [[] for _ in range(4)]
    users = [registered(server) for _ in ledgers]
    stopping = threading.Event()

    def store(user: BackupClient, ledger: list[bytes], seed: int) -> None:
        chance = random.Random(seed)
        while not stopping.is_set():
            blob = chance.randbytes(chance.choice((500, 60_000, 400_000)))
            answer = user.store_backup(blob, digest(ledger[-1]) if ledger else None)
            assert answer.status_code == 201
            ledger.append(blob)

    threads = [threading.Thread(target=store, args=each) for each in zip(users, ledgers, range(4), strict=True)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):  # each begins at another moment
            time.sleep(0.1 * number)
            before = [len(ledger) for ledger in ledgers]
            copy = tmp_path / f"copy-{number}"
            assert run(server.database, "snapshot", copy).returncode == 0
            found, versions = contents(copy), latest(copy)
            for user, ledger, stored in zip(users, ledgers, before, strict=True):
                name = user.credentials[0]
                assert versions[name] >= stored
                # An upload that was in progress may be in the copy before its answer is in the ledger.
                newest = versions[name]
                assert eventually(lambda ledger=ledger, newest=newest: len(ledger) >= newest)
                assert found[name][-1:] == ledger[:newest][-1:]
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert all(len(ledger) > 8 for ledger in ledgers)
    assert result(server.database, "verify")["damage"] == []


def latest(path: Path) -> dict[str, int]:
    """Return the latest version, or 0, of each account in a file."""
    found = {}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for key, value in connection.execute(
            "SELECT key, value FROM Dict WHERE key > ? AND key < ?", (b"user/", b"user0")
        ):
            name = key[5:].decode()
            account = Row.from_bytes(name, value).record
            found[name] = account.latest.number if account.latest else 0
    return found


# ---- restore -----------------------------------------------------------------------------------------------


def test_a_restored_snapshot_is_served_and_the_replaced_file_is_kept(server, tmp_path):
    user = registered(server, b"first")
    assert run(server.database, "snapshot", tmp_path / "copy").returncode == 0
    assert user.store_backup(b"second", digest(b"first")).status_code == 201
    later = registered(server, b"later")
    assert "stop the server first" in refused(server.database, "restore", tmp_path / "copy")
    assert user.fetch_backup().json()["sha256"] == digest(b"second")
    server.kill()  # what came after the snapshot is in the write-ahead log, which must not become a part of it
    found = result(server.database, "restore", tmp_path / "copy")
    assert stat.S_IMODE(server.database.stat().st_mode) == 0o600
    assert re.fullmatch(rf"{re.escape(str(server.database))}\.replaced-\d{{8}}T\d{{6}}Z", found["kept"])
    assert sorted(contents(Path(found["kept"])).values()) == [[b"first", b"second"], [b"later"]]
    server.start()
    user.base_url = later.base_url = server.base_url
    assert user.fetch_backup().json()["sha256"] == digest(b"first")
    assert later.fetch_backup().status_code == 401
    server.stop()
    assert run(server.database, "restore", found["kept"]).returncode == 0  # and back
    server.start()
    later.base_url = server.base_url
    assert later.fetch_backup().json()["sha256"] == digest(b"later")


def test_a_restore_twice_keeps_both(filled, tmp_path):
    assert run(filled.path, "snapshot", tmp_path / "copy").returncode == 0
    kept = {result(filled.path, "restore", tmp_path / "copy")["kept"] for _ in range(3)}
    assert len(kept) == 3 and all(filled.intact(Path(name)) for name in kept)
    assert filled.intact()


def nothing_there(path: Path) -> None:
    path.unlink()


def empty_there(path: Path) -> None:
    path.write_bytes(b"")


def rubbish_there(path: Path) -> None:
    path.write_bytes(b"rubbish" * 5000)
    Path(f"{path}-wal").write_bytes(b"of the rubbish")


@pytest.mark.parametrize("before", [nothing_there, empty_there, rubbish_there])
def test_a_restore_in_the_place_of_what_is_no_store(filled, tmp_path, before):
    assert run(filled.path, "snapshot", tmp_path / "copy").returncode == 0
    before(filled.path)
    there = filled.path.read_bytes() if filled.path.exists() else None
    kept = result(filled.path, "restore", tmp_path / "copy")["kept"]
    assert filled.intact()
    assert (Path(kept).read_bytes() if kept else None) == there
    if before is rubbish_there:
        assert Path(f"{kept}-wal").read_bytes() == b"of the rubbish"
    assert not Path(f"{filled.path}-wal").exists()


def test_a_restore_that_ended_early_loses_nothing_of_a_file_that_cannot_be_read(filled, tmp_path):
    """It had kept the file and its log, and had removed the log. Somebody may be able to mend them."""
    assert run(filled.path, "snapshot", tmp_path / "copy").returncode == 0
    rubbish_there(filled.path)
    kept = Path(f"{filled.path}.replaced-20261120T000000Z")
    os.link(filled.path, kept)
    Path(f"{filled.path}-wal").rename(f"{kept}-wal")
    again = result(filled.path, "restore", tmp_path / "copy")["kept"]
    assert filled.intact() and not kept.exists() and not Path(f"{kept}-wal").exists()
    assert Path(again).read_bytes() == b"rubbish" * 5000 and Path(f"{again}-wal").read_bytes() == b"of the rubbish"


def test_a_restore_through_a_link_replaces_the_file_and_not_the_link(filled, tmp_path):
    assert run(filled.path, "snapshot", tmp_path / "copy").returncode == 0
    link = tmp_path / "link.db"
    link.symlink_to(filled.path)
    filled.sql("DELETE FROM Dict WHERE key LIKE 'user/%'")
    assert run(link, "restore", tmp_path / "copy").returncode == 0
    assert link.is_symlink() and filled.intact()


def test_root_makes_no_file_that_the_server_cannot_open(filled, tmp_path):
    """On Fly, the console is root's, and the server has a user of its own."""
    if os.geteuid():
        not_run("needs root, who can give a file to another user")
    assert run(filled.path, "snapshot", tmp_path / "copy").returncode == 0
    for file in (filled.path.parent, *filled.path.parent.iterdir()):
        os.chown(file, 65534, 65534)
    for arguments in (["verify"], ["restore", tmp_path / "copy"], ["compact"], ["accounts"]):
        assert run(filled.path, *arguments).returncode == 0
        assert {file.stat().st_uid for file in filled.path.parent.iterdir()} == {65534}


# ---- compact -----------------------------------------------------------------------------------------------


def test_compact_leaves_no_byte_of_what_is_deleted(start_server):
    server = start_server(KEEP_VERSIONS="1,0,0,0", **MANY)
    deleted, dropped, kept = (random.Random(seed).randbytes(100_000) for seed in range(3))
    gone, stays = registered(server, deleted), registered(server, dropped, kept)
    assert gone.delete_user().status_code == 204
    assert "stop the server first" in refused(server.database, "compact")
    server.stop()
    assert files_with(server.directory, dropped[:50])
    before = server.database.stat().st_size
    found = result(server.database, "compact")
    assert found["fileBytes"] == server.database.stat().st_size < before
    assert files_with(server.directory, dropped[:50]) == files_with(server.directory, deleted[:50]) == []
    assert files_with(server.directory, kept[-50:]) == ["backup.db"]
    with contextlib.closing(sqlite3.connect(server.database)) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
    assert run(server.database, "compact").returncode == 0  # and again
    server.start()
    stays.base_url = server.base_url
    assert stays.fetch_backup().json()["sha256"] == digest(kept)
    assert stays.store_backup(deleted, digest(kept)).status_code == 201


def test_compact_removes_the_second_name_that_an_interrupted_restore_has_given(filled):
    """Otherwise, the old file would live on under that name, with everything that is deleted."""
    real, second = (Path(f"{filled.path}.replaced-2026112{day}T000000Z") for day in (0, 1))
    shutil.copy(filled.path, real)
    os.link(filled.path, second)
    assert run(filled.path, "compact").returncode == 0
    assert real.exists() and not second.exists() and filled.intact()


def test_a_damaged_store_is_not_compacted(filled):
    flip_a_blob(filled)
    inode = filled.path.stat().st_ino
    assert result(filled.path, "compact", code=1)["damage"]
    assert filled.path.stat().st_ino == inode
    assert result(filled.path, "compact", "--damaged", code=1)["damage"]
    assert filled.path.stat().st_ino != inode


def test_no_damaged_page_is_taken_for_a_full_disk(tmp_path):
    """SQLite says "database or disk is full" if a page names one that is beyond the end of the file."""
    filled = Filled(tmp_path / "backup.db", size=20_000)
    sound, said = filled.path.read_bytes(), set()
    for page in range(2, len(sound) // 4096):
        filled.path.write_bytes(sound[: page * 4096] + b"\xa5" * 4096 + sound[(page + 1) * 4096 :])
        try:
            copies.snapshot(filled.path, tmp_path / "copy.db")
        except copies.DamagedCopy:
            said.add("damaged")
        except inspection.Unusable as error:
            said.add(str(error).partition(": ")[2])
    assert copies.DAMAGED_PAGE in said and not any("full" in each for each in said)
    assert not (tmp_path / "copy.db").exists()


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("REPLACE INTO Dict VALUES (?, ?)", (b"probe", b""))  # so that something is in the log
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM Dict").fetchone()
print("reads", flush=True)
sys.stdin.read()
"""


def test_nothing_is_replaced_while_somebody_reads_it(filled, tmp_path):
    assert run(filled.path, "snapshot", tmp_path / "copy").returncode == 0
    command = [sys.executable, "-c", READER, str(filled.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "reads\n"
        for arguments in (["compact"], ["restore", tmp_path / "copy"]):
            assert "another program is reading it" in refused(filled.path, *arguments)
        reader.stdin.close()
    assert filled.intact()


# ---- remove, and the operator's socket ---------------------------------------------------------------------


def test_the_running_server_removes_accounts(server):
    blob = random.Random(5).randbytes(30_000)
    large, small = registered(server, blob * 10), registered(server, blob)
    listed = result(server.database, "remove", "--larger-than", "100k", "--dry-run")
    assert [each["user"] for each in listed["accounts"]] == [large.credentials[0][:8]]
    assert large.fetch_backup().status_code == 200  # so far
    assert "add --yes" in refused(server.database, "remove", "--larger-than", "100k")
    found = result(server.database, "remove", "--larger-than", "100k", "--yes")
    assert found == {"matched": 1, "removed": 1, "changed": 0, "gone": 0, "failed": 0}
    assert large.fetch_backup().status_code == 401
    assert large.register_user().json()["code"] == "recently_deleted"
    assert small.fetch_backup().json()["sha256"] == digest(blob)
    assert result(server.database, "verify")["accounts"] == 1
    assert result(server.database, "remove", "--larger-than", "100k", "--yes", code=1)["accounts"] == []
    text = server.stdout.read_text() + server.stderr.read_text()
    assert large.credentials[0][:8] not in text and '"operator_removed", "accounts": 1' in text


def test_many_accounts_are_removed_and_requests_go_on(server):
    many = 2 * bounds.OPERATOR_ACCOUNTS + 3
    for _ in range(many):
        registered(server)
    user = registered(server, b"stays")
    done = run(server.database, "remove", "--without-backup", "--yes")
    assert done.stdout == f"{many} of {many} accounts were removed\n" and done.returncode == 0
    assert user.fetch_backup().status_code == 200


def test_an_account_that_was_used_meanwhile_stays(server):
    """The server compares what the operator has seen with what is there."""
    user = registered(server, b"first")
    (usage,) = inspection.usages(server.database)
    assert user.store_backup(b"second", digest(b"first")).status_code == 201
    seen = operator.Listed(usage.user_id, usage.created_at, usage.version)
    assert operator.remove(server.database, [seen]) == ["changed"]
    assert operator.remove(server.database, [replace(seen, version=2, created_at=1)]) == ["changed"]
    assert user.fetch_backup().status_code == 200
    twice = [replace(seen, version=2)] * 2
    assert operator.remove(server.database, twice) == ["removed", "gone"]
    assert operator.remove(server.database, [replace(seen, user_id="0" * 64)]) == ["gone"]
    assert user.fetch_backup().status_code == 401


def test_a_removed_account_knows_no_address_any_more(start_server):
    """Whoever registers the userId again is not guessed at from where the former owner was."""
    server = start_server(FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY=1)
    former = registered(server)
    name = former.credentials[0]
    former.session.mount("http://", FromAddress("127.0.0.2"))
    assert former.list_backup_versions().status_code == 200
    assert result(server.database, "remove", "--user", name, "--yes")["removed"] == 1
    server.move_clock(901)
    owner = server.client((name, "a" * 64))
    owner.session.mount("http://", FromAddress("127.0.0.3"))
    assert owner.register_user().status_code == 201
    answers = [former.list_backup_versions().status_code for _ in range(4)]
    assert answers == [401, 401, 429, 429]  # a known address would have 30 attempts


def test_an_account_that_cannot_be_deleted_is_told(server):
    registered(server, b"backup")
    server.fault = "unavailable"
    time.sleep(0.1)
    found = result(server.database, "remove", "--young", "--yes", code=1)
    assert (found["removed"], found["failed"]) == (0, 1)
    server.fault = None
    assert result(server.database, "remove", "--young", "--yes")["removed"] == 1


def test_remove_without_a_filter_or_a_server(server, filled):
    assert "needs a filter" in refused(server.database, "remove", "--yes")
    done = run(filled.path, "remove", "--young", "--yes")
    assert done.returncode == 2 and "no server listens there" in done.stderr
    assert filled.intact()


@pytest.mark.parametrize(("typed", "code"), [("1", 0), ("yes", 2), ("", 2)])
def test_remove_asks_on_a_terminal(server, typed, code):
    user = registered(server, b"backup")
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*TOOL, "remove", "--young"], env=environment(server.database), stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        text = b""
        while b"Type 1 to do so:" not in text:
            text += os.read(controller, 1000)
        os.write(controller, f"{typed}\n".encode())
        assert process.wait(30) == code
    os.close(controller)
    assert user.fetch_backup().status_code == (401 if code == 0 else 200)


def ask(server: ServerProcess, *parts: bytes, pause: float = 0) -> bytes:
    """Send these bytes to the operator's socket. Return what comes back until the server ends the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(f"{server.database}.sock")
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while data := connection.recv(65536):
                answer += data
        return answer


def one(**changed: Any) -> dict[str, Any]:
    return {"userId": "0" * 64, "createdAt": 1, "version": 0} | changed


UNKNOWN = [
    b"",
    b"rubbish",
    b"\xff\xfe",
    b"[" * 10_000,
    b"{}",
    b'{"remove": {}}',
    b'{"remove": [], "and": 1}',
    *(
        json.dumps({"remove": accounts}).encode()
        for accounts in (
            [one(userId="0" * 63)],
            [one(userId="0" * 64 + "\n")],
            [one(userId=7)],
            [one(version="1")],
            [one(more=1)],
            [one()] * (bounds.OPERATOR_ACCOUNTS + 1),
        )
    ),
]


def test_the_socket_refuses_what_it_does_not_know(server):
    for line in UNKNOWN:
        answer = ask(server, line + b"\n")
        assert list(json.loads(answer)) == ["error"] and b"0000" not in answer, line
    answer = ask(server, b"x" * 1_000_000 + b"\n")
    assert not answer or b"a line may have 16384 bytes" in answer  # it may be lost, as the rest is not read
    assert operator.remove(server.database, []) == []  # it still serves


def test_whoever_is_slow_or_gone_does_not_stay_long(server):
    with contextlib.ExitStack() as stack:
        for _ in range(3):  # they say nothing
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.connect(f"{server.database}.sock")
        registered(server, b"requests go on")
    assert operator.remove(server.database, []) == []  # they are gone
    started = time.monotonic()
    assert ask(server, b"{", b" ", b" ", b" ", b" ", b" ", b" ", b" ", pause=1) == b""
    assert time.monotonic() - started < bounds.OPERATOR_SECONDS + 5
    assert operator.remove(server.database, []) == []


def test_the_socket_is_private_and_goes_with_the_server(server):
    path = operator.socket_path(server.database)
    assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 5 and not path.exists()
    server.start()
    server.kill()
    assert path.exists()
    with pytest.raises(ConnectionRefusedError):
        operator.remove(server.database, [])
    server.start()
    assert operator.remove(server.database, []) == []


def test_a_second_server_does_not_take_the_socket(server):
    inode = operator.socket_path(server.database).stat().st_ino
    second = ServerProcess(server.directory / "second", DATABASE_PATH=server.database)
    with pytest.raises(RuntimeError):
        second.start()
    assert operator.socket_path(server.database).stat().st_ino == inode
    assert operator.remove(server.database, []) == []


@pytest.mark.parametrize("trouble", ["too long", "a file"])
def test_a_server_that_cannot_make_its_socket_serves(tmp_path, trouble):
    directory = tmp_path / ("x" * 120 if trouble == "too long" else "short")
    server = ServerProcess(directory, **MANY)
    if trouble == "a file":
        Path(f"{server.database}.sock").write_bytes(b"precious")
    with server:
        registered(server, b"backup")
        (line,) = [line for line in server.log() if line["event"] == "operator_socket"]
        assert "maintenance.py cannot reach this server" in line["reason"]
        done = run(server.database, "remove", "--young", "--yes")
        assert done.returncode == 2 and f"{server.database}.sock" in done.stderr
    if trouble == "a file":
        assert Path(f"{server.database}.sock").read_bytes() == b"precious"


def test_a_socket_that_cannot_be_removed_does_not_disturb_the_end(tmp_path):
    """The file system may be read-only by then. Here, a folder has the name."""
    with ServerProcess(tmp_path, **MANY) as server:
        socket = Path(f"{server.database}.sock")
        socket.unlink()
        socket.mkdir()
        assert server.stop() == 0
        assert "Traceback" not in server.stderr.read_text()


def test_the_end_waits_for_a_deletion_and_begins_no_other(tmp_path):
    """The store is closed after it, so nobody may use it any more."""
    begun, events = threading.Event(), []

    def slow(account: operator.Listed) -> str:
        begun.set()
        time.sleep(0.5)
        events.append("removed")
        return operator.REMOVED

    listener = operator.Operator(tmp_path / "backup.db", slow, None)
    accounts = [operator.Listed(user_id(number), 1, 0) for number in range(3)]
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.extend(operator.remove(tmp_path / "backup.db", accounts)))
    thread.start()
    assert begun.wait(5)
    listener.close()
    events.append("closed")
    thread.join()
    assert events == ["removed", "closed"] and outcomes == ["removed", "failed", "failed"]


def test_a_listener_that_fails_rests_in_between(tmp_path, monkeypatch):
    attempts, accept = [], socket.socket.accept

    def fail(listener: socket.socket) -> Any:
        if listener.family != socket.AF_UNIX:
            return accept(listener)
        attempts.append(listener)
        raise OSError(errno.EMFILE, "no descriptor is free")

    monkeypatch.setattr(socket.socket, "accept", fail)
    with contextlib.closing(operator.Operator(tmp_path / "backup.db", None, None)):
        assert eventually(lambda: attempts)
        time.sleep(0.5)
    assert len(attempts) < 10


def test_what_nobody_foresaw_ends_one_request(tmp_path):
    def fails(account: operator.Listed) -> str:
        raise ZeroDivisionError

    listener = operator.Operator(tmp_path / "backup.db", fails, None)
    with contextlib.closing(listener):
        with pytest.raises(OSError):
            operator.remove(tmp_path / "backup.db", [operator.Listed(user_id(0), 1, 0)])
        assert operator.remove(tmp_path / "backup.db", []) == []


def test_a_stop_in_the_middle_of_a_request(server):
    for _ in range(bounds.OPERATOR_ACCOUNTS):
        registered(server, b"backup")
    accounts = [operator.Listed(each.user_id, each.created_at, 1) for each in inspection.usages(server.database)]
    outcomes: list[list[str]] = []
    thread = threading.Thread(target=lambda: outcomes.append(operator.remove(server.database, accounts)))
    thread.start()
    assert eventually(lambda: len(list(inspection.usages(server.database))) < len(accounts))
    assert server.stop() == 0
    thread.join()
    assert set(outcomes[0]) <= {"removed", "failed"}
    assert len(contents(server.database)) == outcomes[0].count("failed")


# ---- Interrupted -------------------------------------------------------------------------------------------


def interrupted(database: Path, number: signal.Signals, seconds: float, *arguments: Any) -> int:
    """Run a command, and send it a signal after so many seconds. Return its exit code."""
    command = [*TOOL, *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment(database), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        process.communicate()
    return process.returncode


def kept_files(directory: Path) -> list[Path]:
    """Return what `restore` has kept there."""
    return [file for file in directory.iterdir() if re.search(r"\.replaced-[0-9TZ]+(-[0-9]+)?$", file.name)]


@pytest.fixture(scope="module")
def heavy(tmp_path_factory) -> Filled:
    return Filled(tmp_path_factory.mktemp("heavy") / "backup.db", accounts=20, versions=2, size=500_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("command", ["verify", "accounts", "snapshot", "compact", "restore"])
def test_a_command_may_be_interrupted_at_any_moment(tmp_path, heavy, command, number):
    """The store is whole each time, and so is what has the name of the copy. The next run cleans up."""
    database, other, copy = (tmp_path / "store" / name for name in ("backup.db", "other.db", "copy.db"))
    database.parent.mkdir()
    shutil.copy(heavy.path, database)
    shutil.copy(heavy.path, other)
    arguments = [command, *{"snapshot": [copy, "--force"], "restore": [other]}.get(command, [])]
    started = time.monotonic()
    assert run(database, *arguments).returncode == 0
    whole = time.monotonic() - started
    chance, interruptions = random.Random(f"{command} {number}"), 0
    for _ in range(40):
        code = interrupted(database, number, chance.uniform(0.3, 1) * whole, *arguments)
        assert code in (0, 128 + number, -number)
        assert heavy.intact(database) and heavy.intact(other)
        assert not copy.exists() or heavy.intact(copy)
        if number != signal.SIGKILL:
            assert not list(database.parent.glob("*.part-*"))
        if code and (interruptions := interruptions + 1) == 5:
            break
    assert interruptions == 5, "the command ended before the signal too often"
    assert run(database, *arguments).returncode == 0
    assert heavy.intact(database) and not list(database.parent.glob("*.part-*"))
    assert all(heavy.intact(file) for file in kept_files(database.parent))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_remove_may_be_interrupted_and_run_again(server, number):
    chance = random.Random(number)
    for _ in range(3):
        users = [registered(server, b"backup") for _ in range(45)]
        code = interrupted(server.database, number, chance.uniform(0.1, 0.6), "remove", "--young", "--yes")
        assert code in {0, 128 + number, -number}
        assert result(server.database, "verify")["damage"] == []
        run(server.database, "remove", "--young", "--yes")
        assert result(server.database, "accounts")["total"]["accounts"] == 0
        assert {user.fetch_backup().status_code for user in users} == {401}


def test_a_long_command_says_how_far_it_is(heavy, tmp_path):
    """And nothing else is on standard error."""
    slow = tmp_path / "slow.py"
    slow.write_text("""\
import sys, time, maintenance
from server import inspection
check = inspection.Verifier._check_account
inspection.Verifier._check_account = lambda self, user_id: (time.sleep(0.25), check(self, user_id))
sys.exit(maintenance.main())
""")
    environ = environment(heavy.path) | {"PYTHONPATH": str(Path(TOOL[-1]).parent)}
    done = subprocess.run([sys.executable, str(slow), "verify"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(verifying: \d+ %\n)+", done.stderr)


# The n-th time that the command touches a file, it ends, as by SIGKILL.
ENDS_EARLY = """\
import os, sys, threading
count, last = 0, int(sys.argv.pop(1))
STEPS = {"os.link", "os.rename", "os.remove", "os.chown", "sqlite3.connect", "sqlite3.connect/handle"}
def hook(event, arguments):
    global count
    if event in STEPS or event == "open" and ".part-" in str(arguments[0]):
        count += 1
        if count == last:
            os._exit(77)
sys.addaudithook(hook)
import maintenance
sys.exit(maintenance.main())
"""


@pytest.mark.parametrize("command", ["snapshot", "restore", "compact"])
def test_a_command_may_end_at_each_of_its_steps(tmp_path, command):
    """The server was killed before, so much of the store is in its write-ahead log."""
    store = tmp_path / "store"
    filled = Filled(store / "backup.db", accounts=2, size=10_000)
    other = Filled(tmp_path / "other.db", accounts=3, size=5_000, seed=2)
    killed = subprocess.run(
        [
            *(sys.executable, "-c", "import os, sys, dbm.sqlite3; database = dbm.sqlite3.open(sys.argv[1], 'w')"),
            str(filled.path),
        ]
    )
    assert killed.returncode == 0
    with contextlib.closing(sqlite3.connect(filled.path)) as connection:  # what a killed server leaves
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        key = f"blob/{user_id(1)}/1".encode()
        with connection:
            connection.execute("UPDATE Dict SET value = x'00' WHERE key = ?", (key,))
        with connection:
            connection.execute("UPDATE Dict SET value = ? WHERE key = ?", (filled.blobs[user_id(1)][1], key))
        shutil.copytree(store, tmp_path / "killed")
    script = tmp_path / "ends_early.py"
    script.write_text(ENDS_EARLY)
    steps, codes = 0, [77]
    while codes[-1] == 77:
        steps += 1
        shutil.rmtree(store)
        shutil.copytree(tmp_path / "killed", store)
        assert (store / "backup.db-wal").stat().st_size
        arguments = [command, *{"snapshot": [store / "copy.db"], "restore": [other.path]}.get(command, [])]
        environ = environment(filled.path) | {"PYTHONPATH": str(Path(TOOL[-1]).parent)}
        done = subprocess.run(
            [sys.executable, script, str(steps), *map(str, arguments)], env=environ, capture_output=True
        )
        codes.append(done.returncode)
        assert not (store / "copy.db").exists() or filled.intact(store / "copy.db")
        found = contents(filled.path)
        if command == "restore":
            assert found in (filled.blobs, other.blobs)
            kept = [file for file in kept_files(store) if not os.path.samefile(file, filled.path)]
            assert found == filled.blobs or [contents(file) for file in kept] == [filled.blobs]
        else:
            assert found == filled.blobs
        (store / "copy.db").unlink(missing_ok=True)
        assert run(filled.path, *arguments).returncode == 0
        assert contents(filled.path) == (other.blobs if command == "restore" else filled.blobs)
        assert not list(store.glob("*.part-*"))
        assert all(file.stat().st_nlink == 1 for file in store.iterdir())  # nothing has a second name
        if command == "restore":
            assert filled.blobs in [contents(file) for file in kept_files(store)]
    assert codes[-1] == 0 and steps > {"snapshot": 5, "restore": 12, "compact": 12}[command]


@pytest.mark.parametrize("frozen", [(True, False, False), (False, True, False)])
def test_a_file_that_a_server_begins_to_use_is_looked_at_again(filled, monkeypatch, frozen):
    monkeypatch.setattr(inspection, "is_frozen", mock.Mock(side_effect=frozen))
    with pytest.raises(inspection.Unusable, match="has begun to use it"), inspection.opened(filled.path):
        pass


def test_a_store_that_cannot_be_locked_is_named(filled, monkeypatch):
    monkeypatch.setattr("server.store_file.lock", mock.Mock(side_effect=OSError(errno.ENOLCK, "no locks here")))
    with pytest.raises(inspection.Unusable, match=f"^{filled.path}: no locks here$"), copies.locked(filled.path):
        pass


def test_a_key_of_no_user_is_damaged_without_one(filled):
    report = inspection.Report()
    with inspection.opened(filled.path) as connection:
        inspection.Verifier(connection, report, lambda done, total: None)._is_sound(b"format", 999_999)
    assert [(each.kind, each.user_id) for each in report.damage] == [("index", None)]


def test_what_stops_a_copy_is_not_called_damage(filled, tmp_path):
    part = Path(shutil.copy(filled.path, tmp_path / "part"))
    with pytest.raises(inspection.Unusable, match="already exists"):
        copies.vacuum_into(filled.path, part, lambda *stage: None)
    with pytest.raises(inspection.Unusable, match="unable to open"):
        copies.erase_dropped(tmp_path / "gone.db")


def test_too_little_room_changes_nothing(filled, tmp_path, monkeypatch):
    other = Filled(tmp_path / "other.db")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 4096, 4096))
    for work in (
        lambda: copies.snapshot(filled.path, tmp_path / "copy"),
        lambda: copies.compact(filled.path),
        lambda: copies.restore(filled.path, other.path),
    ):
        with pytest.raises(inspection.Unusable, match="the copy has no room: 1 MiB are needed and 0 MiB are free"):
            work()
    assert filled.intact() and not (tmp_path / "copy").exists()
    assert [file.name for file in filled.path.parent.glob("*.*.*") if file.suffix != ".lock"] == []
