"""The parts that the server stands on, one by one: what cannot be seen from outside, or not for certain."""

import contextlib
import dbm.sqlite3
import errno
import gc
import hashlib
import itertools
import json
import logging
import os
import random
import shutil
import sqlite3
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import waitress.adjustments
import waitress.parser

import backup_server
from contract_tests.target import openapi
from contract_tests.target.calls import eventually
from server import bounds, clock, dbm_reader, dbm_writer, i_json, records, store_file
from server.accounts import Account, Damaged, DamagedData, Deleted, StorageFull, StorageUnavailable, Upload, Version
from server.address_limit import AddressLimit
from server.dbm_reader import DbmReader
from server.dbm_store import DbmStore
from server.guessing import Guessing
from server.housekeeping import Housekeeper
from server.http_parser import RequestParser
from server.http_server import Channel, WaitressLog
from server.json_schema import ObjectValidator, UnknownKeyword
from server.limits import Limit
from server.log import MOST_FRAMES, Line, Log, log
from server.recent import Recent
from server.refused import RefusedUploads
from server.tables import Events, keyed_hash
from server_tests.memory_store import MemoryStore

USER = "a" * 64
ACCOUNT = Account(created_at=1_795_510_800_000, key_sha256="c" * 64)
PAGE = 4096  # bytes of SQLite's pages


# ---- Settings ------------------------------------------------------------------------------------------------------


def test_by_default_a_client_names_no_address():
    """Not in a header of any name. On Fly, its proxy does."""
    defaults = openapi.SPEC["x-configurable-limits"]
    secret = {"APP_SECRET_KEY": "an-example-secret-for-the-tests-alone"}
    settings = [backup_server.Settings.from_environ(secret | more, defaults) for more in ({}, {"FLY_APP_NAME": "x"})]
    assert [each.address_header for each in settings] == [None, "Fly-Client-IP"]


# ---- Limits --------------------------------------------------------------------------------------------------------


@pytest.fixture
def at(monkeypatch):
    """`at(milliseconds)` sets the clocks."""

    def set_clocks(moment: int) -> None:
        for name in ("now", "monotonic"):
            monkeypatch.setattr(clock, name, lambda: moment)

    return set_clocks


def test_a_limit_tells_the_seconds_to_wait(at):
    limit = AddressLimit(Limit("attempts", 2, 60))
    counted = []
    for moment in (0, 10_000, 10_001):
        at(moment)
        counted.append(limit.count("a"))
    assert counted == [0, 0, 50]
    at(59_001)
    assert (limit.wait("a"), limit.wait("b")) == (1, 0)
    at(60_000)
    assert limit.wait("a") == 0


def test_what_is_given_back_does_not_count(at):
    at(1_000)
    limit = AddressLimit(Limit("attempts", 1, 60))
    assert limit.count("a") == 0
    limit.give_back("a")
    limit.give_back("a")  # once more does no harm, nor does an address that is not known
    limit.give_back("b")
    assert limit.count("a") == 0
    assert limit.count("a") == 60


def test_the_address_that_was_quiet_longest_is_forgotten(at):
    limit = AddressLimit(Limit("attempts", 1, 3600))
    with mock.patch.object(Events, "MOST_KEYS", 3):
        for moment, address in enumerate("abcd"):
            at(moment)
            assert limit.count(address) == 0
    assert [limit.wait(address) > 0 for address in "abcd"] == [False, True, True, True]


# What happens to the keys of a table that has room for three, one event a second, and which of them it still has.
TABLES = {
    "the one whose last event is the oldest": ("abcd", "bcd"),
    "a new event makes a key young": ("abcad", "cad"),
    "one that has not reached its limit goes first": ("aabcd", "acd"),
    "if all have reached it, the oldest goes": ("aabbccd", "bcd"),
    "then the new one is the first to go": ("aabbccde", "bce"),
    "a limit that was reached long ago is not reached": ("aabbc" + "-" * 60 + "d", "bcd"),
    "unless another is older": ("caabb" + "-" * 60 + "d", "abd"),
}


@pytest.mark.parametrize(("events", "kept"), TABLES.values(), ids=TABLES)
def test_which_key_is_forgotten(events, kept):
    table = Events(Limit("attempts", 2, 60))
    with mock.patch.object(Events, "MOST_KEYS", 3):
        for second, key in enumerate(events):
            if key != "-":
                table.add(key.encode(), second * 1000)
    assert {key for key in "abcde" if table.times(key.encode())} == set(kept)


def test_a_table_that_keeps_the_newest():
    table = Events(Limit("attempts", 2, 60), keeps_fullest=False)
    with mock.patch.object(Events, "MOST_KEYS", 3):
        for second, key in enumerate("aabcd"):
            table.add(key.encode(), second * 1000)
    assert {key for key in "abcd" if table.times(key.encode())} == set("bcd")


def test_a_table_is_bounded():
    table = Events(Limit("attempts", 2, 60))
    for number in range(3 * Events.MOST_KEYS):
        table.add(str(number // 2).encode(), number)
        assert len(table) <= Events.MOST_KEYS
    assert len(table) == Events.MOST_KEYS


def test_only_the_last_events_are_kept():
    table = Events(Limit("attempts", 3, 60))
    for moment in (5, 1, 4, 2):
        table.add(b"a", moment)
    assert table.times(b"a") == [1, 2, 4]  # added last, whatever the clock said


# ---- Guessing ------------------------------------------------------------------------------------------------------


def test_no_address_and_no_userid_is_kept_as_it_is(at):
    at(0)
    guessing = Guessing(per_5_minutes=30, per_day=2, new_address_attempts=2, known_days=30, most_known=32)
    guessing.remember(USER, "192.0.2.1")
    for address in ("192.0.2.2", "192.0.2.1", "192.0.2.2"):
        assert guessing.count(USER, address) is None
    tables = [table for table in vars(guessing).values() if isinstance(table, Events)]
    assert len(tables) == 5 and all(table._times for table in tables)
    keys = [key for table in tables for key in table._times]
    kept = b" ".join([*keys, *(key for pair in guessing._known._times for key in pair)])
    for text in (USER, "192.0.2.1", "192.0.2.2"):
        assert keyed_hash(text) in kept and text.encode() not in kept


@pytest.mark.parametrize("failures", [50, 49])
def test_failures_of_invented_accounts_lift_no_limit(at, failures):
    """Somebody with one network fills every table with failures of others before each attempt on an account."""
    at(0)
    guessing = Guessing(per_5_minutes=1_000_000, per_day=50, new_address_attempts=2, known_days=30, most_known=32)
    compared, others = 0, iter(range(1_000_000))
    with mock.patch.object(Events, "MOST_KEYS", 100):
        for number in range(failures):
            assert guessing.count(USER, f"198.51.100.{number}") is None
        for _ in range(20):
            compared += guessing.count(USER, "2001:db8:1:1::/64") is None
            for _ in range(100):
                other = f"{next(others):064x}"
                for _ in range(2):
                    guessing.count(other, "2001:db8:1:2::/64")
    assert compared <= 4  # two before the account has reached its limit, or was forgotten, and two after


def test_an_address_is_known_anew_by_each_success(at):
    guessing = Guessing(per_5_minutes=30, per_day=50, new_address_attempts=2, known_days=30, most_known=32)
    days = 86_400_000
    at(0)
    assert guessing.remember(USER, "a")
    at(20 * days)
    assert not guessing.remember(USER, "a")
    at(50 * days - 1)
    assert not guessing.remember(USER, "a")
    at(80 * days - 1)
    assert guessing.remember(USER, "a")


def test_a_key_that_is_changed_while_it_is_compared_makes_no_address_known(at):
    """Between the comparison and the note that the address is known, the owner changes the key."""
    at(0)
    store, guessing = MemoryStore(), Guessing(30, 1, 1, 30, 32)
    with store.account(USER) as held:
        held.create(ACCOUNT)
    server: Any = SimpleNamespace(store=store, guessing=guessing)
    request: Any = SimpleNamespace(address="192.0.2.1")
    for key_sha256, is_known in [(ACCOUNT.key_sha256, True), ("d" * 64, False)]:
        guessing.forget(USER)
        backup_server.remember_address(server, request, backup_server.Credentials(USER, key_sha256))
        assert guessing.remember(USER, "192.0.2.1") != is_known


def test_a_registration_waits_for_the_failures_that_others_have_just_used_up(at):
    """Past the limit on registrations, its credentials are let through. Before it counts as a failure, others do."""
    at(0)
    guessing, registrations = Guessing(2, 50, 2, 30, 32), AddressLimit(Limit("registrations", 1, 3600))
    registrations.count("192.0.2.1")
    server: Any = SimpleNamespace(store=MemoryStore(), guessing=guessing, registrations=registrations)
    request: Any = SimpleNamespace(address="192.0.2.1")
    waits = []
    for _ in range(3):
        with pytest.raises(backup_server.Problem) as refused:
            backup_server.register_user(server, request, backup_server.Credentials(USER, "d" * 64))
        waits.append(refused.value.response.headers["Retry-After"])
    assert waits == ["3600", "3600", "300"]


# ---- Refused uploads -----------------------------------------------------------------------------------------------


def test_refused_uploads_are_remembered_for_as_long_as_a_signature_lives(at):
    refused = RefusedUploads(900)
    at(1_000_000)
    refused.add(USER, "a")
    at(1_300_000)
    refused.add(USER, "a")  # it is refused again, but lives no longer
    for moment, is_there in [(0, True), (1_899_999, True), (1_900_000, False)]:  # a clock may be set back
        at(moment)
        assert refused.has(USER, "a") == is_there
    assert not refused.has("b" * 64, "a")


def test_refused_uploads_are_bounded(at):
    at(0)
    with mock.patch.object(RefusedUploads, "MOST", 22):
        refused = RefusedUploads(900)
    for number in range(21):
        refused.add(USER, str(number))
    assert [refused.has(USER, str(number)) for number in range(21)] == [False] + [True] * 20
    for user in "bcde":
        refused.add(user, "x")
    assert [refused.has(user, "x") for user in "bcde"] == [True] * 4  # the account that has most, makes room
    assert [refused.has(USER, str(number)) for number in range(21)] == [False] * 3 + [True] * 18


def test_an_account_with_few_things_does_not_suffer_from_others():
    recent = Recent(most_of_an_account=3, most=6)
    for moment, (account, thing) in enumerate(["a1", "b1", "b2", "b3", "c1", "c2", "d1", "e1"]):
        recent.add(account.encode(), thing.encode(), moment)
    kept = {(account + thing).decode() for account, thing in recent._times}
    assert kept == {"a1", "b2", "b3", "c2", "d1", "e1"} or kept == {"a1", "b3", "c1", "c2", "d1", "e1"}


def test_what_is_remembered_of_accounts():
    """Whatever happens, both views have the same pairs, and no more of them than they may have."""
    recent, chance = Recent(most_of_an_account=3, most=12), random.Random(1)
    expected: list[tuple[bytes, bytes]] = []  # in the order in which they were added last
    for moment in range(2_000):
        account, thing = chance.choice([b"a", b"b", b"c", b"d"]), chance.choice([b"1", b"2", b"3", b"4", b"5"])
        match chance.choice(["add"] * 8 + ["forget", "forget_all"]):
            case "add":
                expected = [pair for pair in expected if pair != (account, thing)]
                of_account = [pair for pair in expected if pair[0] == account]
                expected = [pair for pair in expected if pair not in of_account[:-2]] + [(account, thing)]
                recent.add(account, thing, moment)
                assert recent.time(account, thing) == moment
            case "forget":
                expected = [pair for pair in expected if pair != (account, thing)]
                recent.forget(account, thing)
            case "forget_all":
                expected = [pair for pair in expected if pair[0] != account]
                recent.forget_all(account)
        assert list(recent._times) == expected
        by_account = {name: list(things) for name, things in recent._of_account.items()}
        assert by_account == {
            name: [thing for other, thing in expected if other == name] for name in {name for name, _ in expected}
        }


def test_a_quota_holds_when_requests_race(monkeypatch):
    """A thread may lose time between reading the clock and counting, so that others count meanwhile."""
    times = itertools.count(1_000)

    def monotonic() -> int:
        moment = next(times)
        time.sleep(0 if moment % 2 else 0.01)
        return moment

    monkeypatch.setattr(clock, "monotonic", monotonic)
    limit = AddressLimit(Limit("attempts", 5, 3600))
    with ThreadPoolExecutor(8) as pool:
        counted = list(pool.map(lambda _: limit.count("a"), range(24)))
    assert counted.count(0) == 5


# ---- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 1}', "a member name occurs twice"),
        (b"1e999", "a number is not finite"),
        (b"NaN", "a number is not finite"),
        (b'"\xff"', "it is not UTF-8"),
        (b'"\\ud800"', "it has a lone surrogate"),
        (b"[1", "at character 2"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"1" * 5_000, "a number has too many digits"),
        (b"[" + b"0," * 101 + b"0]", "it has too many values"),
    ],
)
def test_what_is_not_i_json(text, reason):
    with pytest.raises(i_json.NotIJson, match=reason):
        i_json.decode(text)


def test_what_is_i_json():
    value = {"text": "ü \U0001f600", "numbers": [1, 1.5, -2e3], "others": [None, True]}
    assert i_json.decode(i_json.encode(value)) == value
    assert i_json.decode(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "properties": {"a": {"minLenght": 1}}}, "minLenght"),
        ({"type": "object", "properties": {"a": {"contentEncoding": "base32"}}}, "contentEncoding"),
        ({"properties": {"a": {"type": "array", "items": {"minLenght": 1}}}}, "minLenght"),
        ({"properties": {"a": {"type": "array", "items": {"contentEncoding": "base64"}}}}, "contentEncoding"),
    ],
)
def test_a_keyword_that_nobody_checks_is_refused(schema, named):
    with pytest.raises(UnknownKeyword, match=named):
        ObjectValidator(schema)


def test_a_pattern_ends_where_the_text_ends():
    """Python's `$` also stands before a line feed."""
    validator = ObjectValidator({"type": "object", "properties": {"a": {"type": "string", "pattern": "^[0-9]{4}$"}}})
    assert validator.read({"a": "1234"})[1] == []
    assert [error["pointer"] for error in validator.read({"a": "1234\n"})[1]] == ["#/a"]


# ---- The store -----------------------------------------------------------------------------------------------------


def version_of(data: bytes, number: int) -> Version:
    return Version(number, 1_795_510_800_000 + number, len(data), hashlib.sha256(data).hexdigest(), key_version=1)


def store_with(path: Path, *blobs: bytes) -> list[Version]:
    """Make a file with one account that has these versions, and close it."""
    versions = [version_of(data, number) for number, data in enumerate(blobs, start=1)]
    with contextlib.closing(DbmStore(path, 601)) as store:
        with store.account(USER) as account:
            account.create(ACCOUNT)
        for number, data in enumerate(blobs, start=1):
            with store.account(USER) as account:
                account.append(Account(1, "c" * 64, versions=tuple(versions[:number])), data)
    return versions


def test_a_damaged_page_is_one_versions_damage(tmp_path):
    """SQLite finds a chain of pages broken. The version in it is damaged, and the others are not."""
    path = tmp_path / "backup.db"
    pattern = b"".join(b"<%06d>" % number for number in range(10_000))
    first, second = store_with(path, pattern, b"whole")
    content = bytearray(path.read_bytes())
    page = content.index(b"<%06d>" % 2_000) // PAGE * PAGE
    content[page : page + 4] = b"\x7f\xff\xff\xff"  # the number of the chain's next page
    path.write_bytes(content)
    with contextlib.closing(DbmStore(path, 601)) as store:
        with pytest.raises(DamagedData):
            store.data(USER, first)
        assert store.data(USER, second) == b"whole"


def test_damaged_bytes_are_mended(tmp_path):
    path = tmp_path / "backup.db"
    (version,) = store_with(path, b"right")
    with contextlib.closing(dbm.sqlite3.open(path, "w")) as file:
        file[dbm_reader.blob_key(USER, 0)] = b"wrong"
    with contextlib.closing(DbmStore(path, 601)) as store:
        with pytest.raises(DamagedData):
            store.data(USER, version)
        with store.account(USER) as account:
            account.mend(version, b"right")
        assert store.data(USER, version) == b"right"


def test_a_file_that_is_refused_keeps_its_format(tmp_path):
    """The server that wrote it can still open it."""
    path = tmp_path / "backup.db"
    with contextlib.closing(dbm.sqlite3.open(path, "c")) as file:
        file[b"format"] = dbm_reader.FORMER_FORMAT
    with mock.patch.object(sqlite3, "connect", not_synced), pytest.raises(StorageUnavailable, match="sync"):
        DbmStore(path, 601)
    with contextlib.closing(dbm.sqlite3.open(path, "r")) as file:
        assert file[b"format"] == dbm_reader.FORMER_FORMAT
    DbmStore(path, 601).close()  # nothing of the first attempt holds it


def not_synced(*arguments: Any, real: Any = sqlite3.connect, **options: Any) -> Any:
    """Connect, and let the library's default be a commit that is not synced."""
    connection = real(*arguments, **options)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def test_only_one_server_has_the_file(tmp_path):
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)):
        with pytest.raises(StorageUnavailable, match="another server has it open"):
            DbmStore(tmp_path / "backup.db", 601)


@pytest.mark.parametrize("path", [".", "/dev/null/backup.db"])
def test_a_path_that_cannot_be_a_file(tmp_path, path):
    with pytest.raises(StorageUnavailable, match="cannot be used"):
        DbmStore(tmp_path / path, 601)


def test_nobody_is_named_if_the_user_may_use_every_file(tmp_path):
    assert store_file.whose(tmp_path / "backup.db") == ""


def test_the_first_folder_that_keeps_a_user_out_is_named(tmp_path, monkeypatch):
    path = tmp_path / "inner" / "backup.db"
    path.parent.mkdir()
    monkeypatch.setattr(os, "access", lambda each, mode: tmp_path not in (each, *each.parents))
    assert f": {tmp_path} belongs to the user " in store_file.whose(path)


def test_a_reader_of_what_is_no_store(tmp_path, capfd):
    with pytest.raises(StorageUnavailable):
        DbmReader(tmp_path / "missing.db").check()
    with contextlib.closing(dbm.sqlite3.open(tmp_path / "other.db", "c")) as file:
        file[b"format"] = b"of another program"
    reader = DbmReader(tmp_path / "other.db")
    with pytest.raises(StorageUnavailable, match="format"):
        reader.check()
    reader.close()
    log.finish(5)
    assert capfd.readouterr().out.count('"event": "storage_error"') == 2


def test_the_reserve_is_left_alone(tmp_path, monkeypatch):
    """New accounts and versions leave it to deletions."""
    usage = namedtuple("usage", "free")
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        with store.account(USER) as account:
            account.create(ACCOUNT)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(dbm_writer.RESERVE_BYTES + 3))
        with store.account(USER) as account, pytest.raises(StorageFull):
            account.append(Account(1, "c" * 64, versions=(version_of(b"12", 1),)), b"12")
        with store.account(USER) as account:
            account.append(Account(1, "c" * 64, versions=(version_of(b"1", 1),)), b"1")
        monkeypatch.setattr(shutil, "disk_usage", mock.Mock(side_effect=PermissionError))
        with store.account("b" * 64) as account, pytest.raises(StorageUnavailable):
            account.create(ACCOUNT)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0))
        with store.account("b" * 64) as account, pytest.raises(StorageFull):
            account.create(ACCOUNT)
        with store.account(USER) as account:
            account.delete(clock.now())
        assert isinstance(store.find(USER), Deleted)


def test_an_upload_that_failed_is_not_kept_in_memory(tmp_path):
    """Its error has a traceback, and its frames have the bytes. Nobody keeps it, and it is in no circle."""

    gone = threading.Event()

    class Data(bytes):
        """Bytes that tell when they are gone."""

        def __del__(self) -> None:
            gone.set()

    with contextlib.closing(DbmStore(tmp_path / "x.db", 601)) as store:
        with store.account(USER) as account:
            account.create(ACCOUNT)

        def upload() -> None:
            data = Data(b"data")
            with contextlib.suppress(StorageFull), store.account(USER) as account:
                account.append(Account(1, "c" * 64, versions=(version_of(data, 1),)), data)

        gc.disable()
        try:
            with mock.patch.object(DbmStore, "put_blob", lambda *_: storage_full()):
                upload()
                assert gone.wait(3)
        finally:
            gc.enable()


def storage_full() -> None:
    raise StorageFull


def test_what_cannot_be_forgotten_now_is_forgotten_later(tmp_path, at):
    with mock.patch.object(Housekeeper, "_keep_house"), contextlib.closing(DbmStore(tmp_path / "x.db", 601)) as store:
        at(0)
        with store.account(USER) as account:
            account.create(ACCOUNT)
        with store.account(USER) as account:
            account.delete(0)
        at(601_000)
        with mock.patch.object(store, "forget", side_effect=StorageUnavailable), pytest.raises(StorageUnavailable):
            store.housekeeper._forget_next()
        assert store.find(USER) == Deleted(0)
        store.housekeeper._forget_next()
        assert store.find(USER) is None


def test_a_record_of_a_later_format_is_damage(monkeypatch):
    with mock.patch.object(records, "RECORD_FORMAT", 3):
        later = records.to_bytes(USER, ACCOUNT)
    with pytest.raises(Damaged, match="format"):
        records.from_bytes(USER, later)


@pytest.mark.parametrize("stored", [b"{", b"{}", b'{"deletedAt": 1}', b'{"versions": 1}', b'{"versions": [[]]}'])
def test_a_damaged_record_of_the_former_format(stored):
    with pytest.raises(Damaged, match="former format"):
        dbm_reader.Row.from_bytes(USER, stored)


def test_signatures_and_keys_are_in_no_repr():
    secret = "5e" * 32
    account = Account(1, secret, uploads=(Upload(1, secret),))
    assert secret not in repr(account) + repr(account.uploads)


# ---- The log -------------------------------------------------------------------------------------------------------


def test_waitress_says_where_and_not_what(capfd):
    try:
        raise ValueError("something private")
    except ValueError as error:
        exception = (ValueError, error, error.__traceback__)
    WaitressLog().emit(logging.LogRecord("waitress", logging.ERROR, "task.py", 7, "private: %s", ("x",), exception))
    log.finish(5)
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert (first["event"], first["level"], first["at"]) == ("http_server", "ERROR", "task:7")
    assert (second["event"], second["error"]) == ("error", "ValueError")
    assert "private" not in json.dumps([first, second])


@pytest.fixture
def pipe():
    """The file descriptors to read from a pipe and to write to it."""
    descriptors = os.pipe()
    yield descriptors
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_a_line_of_the_log(pipe, at):
    log = Log(pipe[1])
    for moment in (1_795_510_800_999, 1_795_510_801_000):
        at(moment)
        log(event="request", route=None, path="é\n", milliseconds=0.5)
    log.finish(5)
    member = r'"event": "request", "route": null, "path": "\u00e9\n", "milliseconds": 0.5'
    lines = [f'{{"time": "2026-11-24T09:00:0{second}Z", {member}}}\n' for second in (0, 1)]
    assert os.read(pipe[0], 1000).decode() == "".join(lines)


def test_the_end_does_not_wait_for_what_is_written(pipe):
    log = Log(pipe[1])
    log(number=1)
    end = threading.Thread(target=log.finish, args=(60,), daemon=True)
    end.start()
    end.join(20)
    assert not end.is_alive()


def test_what_has_no_room_in_memory_is_lost(pipe, monkeypatch):
    """The pipe is full and does not block. Ten lines wait. Five more lines are lost, and one that is too long."""
    for descriptor in pipe:
        os.set_blocking(descriptor, False)
    filling = os.write(pipe[1], bytes(1_000_000))
    log = Log(pipe[1])
    monkeypatch.setattr("server.bounds.LOG_BYTES", 10 * len(log._line({"number": 10})))
    for number in range(10, 25):
        log(number=number)
    log(text="x" * 10_000)
    log.finish(0.1)
    assert log.lines_lost == 6  # before anybody reads
    os.read(pipe[0], filling)
    log.finish(5)
    log(number=25)
    log.finish(5)
    lines = [json.loads(line) for line in os.read(pipe[0], 10_000).splitlines()]
    assert [line["number"] for line in lines if "number" in line] == [*range(10, 20), 25]
    assert sum(line["lines"] for line in lines if line.get("event") == "log_lost") == 6
    assert log.lines_lost == 6


def test_what_is_written_whole_is_not_lost(monkeypatch):
    """The reader goes away exactly at the end of a line."""
    parts = [6, BrokenPipeError()]
    monkeypatch.setattr(os, "write", mock.Mock(side_effect=parts))
    lines = [Line(b"first\n"), Line(b"second\n")]
    assert Log(-7)._write(list(lines)) == lines[1:]


def test_what_waits_in_memory_is_counted_under_the_lock(monkeypatch):
    """Other threads count there, too."""
    log, writes, goes_on = Log(-7), threading.Event(), threading.Event()
    monkeypatch.setattr(log, "_write", lambda lines: (writes.set(), goes_on.wait(10), [])[-1])
    log(number=1)
    assert writes.wait(10)
    with log._lock:
        goes_on.set()
        time.sleep(0.2)
        assert log._bytes > 0
    assert eventually(lambda: log._bytes == 0)


def test_an_error_names_its_innermost_frames(pipe):
    """Not all of them: a recursion that does not end has a thousand."""

    def fail(depth: int) -> float:
        return fail(depth - 1) if depth else 1 / 0

    log = Log(pipe[1])
    try:
        fail(100)
    except ZeroDivisionError as error:
        log.error(error)
    log.finish(5)
    line = json.loads(os.read(pipe[0], 100_000))
    assert (line["event"], line["error"]) == ("error", "ZeroDivisionError")
    place = f"{Path(__file__).name}:{fail.__code__.co_firstlineno + 1}"
    assert line["at"] == [place] * MOST_FRAMES


def test_a_lost_line_is_counted_once():
    """However often the line that reports it is lost, too."""
    with open("/dev/full", "wb") as full:
        log = Log(full.fileno())
        for number in range(5):
            log(number=number)
            log.finish(5)
        assert log.lines_lost == 5


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPIPE])
def test_a_line_is_written_whole_or_not_at_all(monkeypatch, error):
    """After a full disk, the rest of a line that is begun comes first. After a broken pipe, its reader is gone."""
    room, written, write = 0, b"", os.write

    def write_some(descriptor: int, data: bytes) -> int:
        nonlocal room, written
        if descriptor != -7:
            return write(descriptor, data)
        if not room:
            raise OSError(error, "no room")
        part = data[: min(room, 30)]  # in several parts
        room, written = room - len(part), written + part
        return len(part)

    monkeypatch.setattr(os, "write", write_some)
    log = Log(-7)
    length = len(log._line({"number": 10}))

    def log_line(number: int, more_room: float) -> None:
        nonlocal room
        room = int(more_room * length)
        log(number=number)
        log.finish(5)

    log_line(10, 1.5)
    log_line(11, 0)
    log_line(12, 0.5)  # half a line
    log_line(13, 0.0)
    log_line(14, 0.1)  # a little more of it
    log_line(15, 100)
    if error == errno.EPIPE:  # what a new reader gets
        _, _, written = written.rpartition(b'{"time"')[0].rpartition(b'{"time"')
        assert json.loads(b'{"time"' + written)["lines"] == 4
    else:
        events = [json.loads(line) for line in written.splitlines()]
        assert [event.get("number") or event["lines"] for event in events] == [10, 1, 3, 15]


def test_a_connection_can_be_asked_while_it_is_being_made():
    """waitress registers a connection before it is complete. Other threads may look at it from then on."""
    connection = Channel.__new__(Channel)
    assert connection.is_idle
    assert (connection.current, connection.address, connection.total_outbufs_len) == (None, "", 0)


@pytest.mark.parametrize("state", ["will_close", "close_when_flushed"])
def test_what_arrives_after_the_last_answer_is_no_request(state):
    """A worker may end a connection after the main thread has heard that there is something to read."""
    connection = Channel.__new__(Channel)
    connection.requests_lock, connection.requests, connection.request = threading.Lock(), [], None
    connection.will_close = connection.close_when_flushed = False
    setattr(connection, state, True)
    assert not connection.received(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (connection.requests, connection.request) == ([], None)


def test_a_request_that_is_being_served_is_not_refused_as_well():
    connection, served = Channel.__new__(Channel), []
    connection.requests_lock, connection.requests, connection.waits_since = threading.Lock(), [mock.Mock()], 0
    connection._serve = served.append
    refusal = threading.Thread(target=connection.refuse_late, args=(time.monotonic(),))
    with connection.requests_lock:
        refusal.start()
        refusal.join(0.2)
        connection.waits_since = None  # a lane has it now
    refusal.join()
    assert served == []


@pytest.mark.parametrize(
    ("request_of", "size"),
    [
        (None, bounds.PARSED_BYTES),
        (SimpleNamespace(is_wanted=True, chunked=False), bounds.READ_BYTES),
        (SimpleNamespace(is_wanted=True, chunked=True), bounds.PARSED_BYTES),
        (SimpleNamespace(is_wanted=False, chunked=False), bounds.PARSED_BYTES),
    ],
)
def test_only_what_is_merely_copied_is_read_in_large_pieces(request_of, size):
    """What has to be parsed keeps the main thread for longer."""
    sizes = []
    connection = Channel.__new__(Channel)
    connection.request = request_of
    connection.recv, connection.received = lambda size: sizes.append(size) or b"", lambda data: False
    connection.handle_read()
    assert sizes == [size]


# ---- The head of a request -----------------------------------------------------------------------------------------


def test_whose_a_request_is_does_not_depend_on_how_the_scheme_is_written():
    def user(scheme: str) -> str:
        parser = RequestParser(waitress.adjustments.Adjustments())
        parser.parse_header(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {scheme} bmFtZTprZXk=".encode())
        return parser.user

    assert {user(scheme) for scheme in ("Basic", "BASIC", "basic ")} == {"bmFtZTprZXk="}


SIXTEEN_KB = {  # what takes long if something looks at it again for each of its characters
    "spaces in an option": b"Connection: a" + b" " * 16_000 + b"b",
    "many headers": b"\r\n".join(b"%04x:" % number for number in range(2_300)),
}


@pytest.mark.parametrize("lines", SIXTEEN_KB.values(), ids=SIXTEEN_KB)
def test_no_head_takes_long(lines):
    """Compare with a long header that takes a parser no time. Each is the best of three, without what others take.

    Many headers take 80 times as long as one. With a look at each for each other, it was more than 1000 times.
    """

    def duration(lines: bytes) -> float:
        parser = RequestParser(waitress.adjustments.Adjustments())
        started = time.thread_time()
        with contextlib.suppress(waitress.parser.ParsingError, waitress.parser.TransferEncodingNotImplemented):
            parser.parse_header(b"GET / HTTP/1.1\r\nHost: x\r\n" + lines)
        return time.thread_time() - started

    usual = min(duration(b"Cookie: " + b"a" * 16_000) for _ in range(3))
    assert min(duration(lines) for _ in range(3)) < 1000 * usual
