"""The interface of a store, tested on each store, and records as bytes."""

import contextlib
import functools
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from contract_tests.target.calls import eventually
from server import bounds, clock, housekeeping
from server.accounts import (
    ESTABLISHED_DAYS,
    Account,
    Damaged,
    Deleted,
    Record,
    StorageUnavailable,
    Store,
    Upload,
    Version,
)
from server.dbm_reader import DbmReader
from server.dbm_store import DbmStore
from server.dbm_writer import DbmWriter
from server.housekeeping import Housekeeper
from server.log import log
from server.records import checksum, from_bytes, to_bytes
from server_tests.memory_store import MemoryStore

USER, OTHER = "a" * 64, "b" * 64
KEY = "c" * 64
ACCOUNT = Account(created_at=1_795_510_800_000, key_sha256=KEY)


STORES: dict[str, Callable[[Path], Store]] = {
    "dbm": lambda folder: DbmStore(folder / "backup.db", 601),
    "memory": lambda folder: MemoryStore(),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = STORES[request.param](tmp_path)
    yield store
    store.close()


def version_of(data: bytes, number: int) -> Version:
    return Version(number, 1_795_510_800_000 + number, len(data), hashlib.sha256(data).hexdigest(), key_version=1)


def register(store: Store, user_id: str = USER) -> None:
    with store.account(user_id) as account:
        account.create(ACCOUNT)


def append(store: Store, data: bytes, keep: int = 2) -> Version:
    """Store a version, and keep only the last ones."""
    with store.account(USER) as held:
        assert isinstance(held.record, Account)
        latest = held.record.latest
        version = version_of(data, latest.number + 1 if latest else 1)
        versions = (*held.record.versions, version)[-keep:]
        held.append(Account(ACCOUNT.created_at, KEY, versions=versions), data)
    return version


def test_an_unknown_user(store):
    assert store.find(USER) is None
    with store.account(USER) as account:
        assert account.record is None
    assert store.data(USER, version_of(b"x", 1)) is None
    assert list(store.user_ids()) == []


def test_versions_are_kept_as_long_as_the_record_names_them(store):
    register(store)
    versions = [append(store, b"data %d" % number) for number in range(1, 5)]
    assert store.find(USER) == Account(ACCOUNT.created_at, KEY, versions=tuple(versions[-2:]))
    assert [store.data(USER, version) for version in versions] == [None, None, b"data 3", b"data 4"]
    assert store.data(OTHER, versions[-1]) is None
    assert store.data(USER, version_of(b"data 4", 3)) is None  # another version with this number was stored


def test_nothing_of_a_deleted_account_comes_back(store):
    register(store)
    register(store, OTHER)
    moment = clock.now()  # or it would be forgotten at once
    version = append(store, b"data")
    with store.account(USER) as account:
        account.delete(moment)
    assert store.find(USER) == Deleted(moment)
    assert store.data(USER, version) is None
    register(store)
    assert store.find(USER) == ACCOUNT
    assert store.data(USER, version) is None
    assert set(store.user_ids()) == {USER, OTHER}


def test_a_block_that_fails_changes_nothing(store):
    register(store)
    with pytest.raises(ZeroDivisionError), store.account(USER):
        raise ZeroDivisionError
    assert store.find(USER) == ACCOUNT
    append(store, b"data")  # the account is no longer held


def test_a_change_tells_that_it_is_committed(store):
    """When it does, everybody sees the change."""
    register(store)
    seen: list[Record | None] = []
    version = version_of(b"data", 1)
    with store.account(USER) as account:
        account.append(Account(1, KEY, versions=(version,)), b"data", on_commit=lambda: seen.append(store.find(USER)))
    assert isinstance(seen[-1], Account) and seen[-1].versions == (version,)
    with store.account(USER) as account:
        account.delete(clock.now(), on_commit=lambda: seen.append(store.find(USER)))
    assert isinstance(seen[-1], Deleted)


def test_an_account_is_held_by_one(store):
    """Of two threads that change an account at once, the second sees what the first has done. Both changes stay."""
    register(store)
    inside = threading.Event()

    def slowly() -> Version:
        with store.account(USER) as held:
            inside.set()
            time.sleep(0.2)
            version = version_of(b"first", 1)
            held.append(Account(ACCOUNT.created_at, KEY, versions=(version,)), b"first")
        return version

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(slowly)
        assert inside.wait(10)
        second = append(store, b"second")
    assert store.find(USER) == Account(ACCOUNT.created_at, KEY, versions=(first.result(), second))


def test_right_bytes_mend_a_version(store):
    register(store)
    version = append(store, b"right")
    with store.account(USER) as account:
        account.mend(version, b"right")
    assert store.data(USER, version) == b"right"


def test_counts(store):
    register(store)
    register(store, OTHER)
    append(store, b"one")
    append(store, b"two")
    stats = store.stats()
    assert (stats.users, stats.backups, stats.versions) == (2, 1, 2)
    assert stats.database_bytes >= 6


# ---- Reading beside a running server -------------------------------------------------------------------------------


def test_a_reader_beside_the_server(tmp_path):
    """A reader sees what is committed at each moment. It needs neither the writer nor its lock."""
    store = DbmStore(tmp_path / "backup.db", 601)
    reader = DbmReader(tmp_path / "backup.db")
    try:
        register(store)
        assert reader.find(USER) == ACCOUNT
        with store.account(OTHER):  # the writer is busy
            assert list(reader.user_ids()) == [USER]
        version = append(store, b"data")
        assert reader.data(USER, version) == b"data"
        reader.check()
        with pytest.raises(Exception, match="readonly"):
            reader._local.database[b"key"] = b"value"
    finally:
        reader.close()
        store.close()


# ---- A disk that stalls ---------------------------------------------------------------------------------------------

IN_TIME = 5  # seconds


class Stall:
    """Makes one method of DbmStore wait before it writes, until it is released."""

    def __init__(self, method: str) -> None:
        real, self.released = getattr(DbmStore, method), threading.Event()

        def stalled(*arguments: Any) -> None:
            assert self.released.wait(3 * IN_TIME)
            real(*arguments)

        self._patch = mock.patch.object(DbmStore, method, stalled)

    def __enter__(self) -> "Stall":
        self._patch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._patch.stop()
        self.released.set()


@pytest.fixture
def impatient(monkeypatch):
    """Bounds that a test can wait for. They are much shorter than IN_TIME."""
    monkeypatch.setattr(bounds, "TURN_SECONDS", 0.3)
    monkeypatch.setattr(bounds, "DISK_SECONDS", 0.5)


def unavailable(change: Callable[[], Any]) -> None:
    """Make a change, and check that it fails in time."""
    started = time.monotonic()
    with pytest.raises(StorageUnavailable):
        change()
    assert time.monotonic() - started < IN_TIME


def hold(store: Store, user_id: str) -> None:
    with store.account(user_id):
        pass


@pytest.mark.parametrize("by_operator", [False, True])
def test_another_time_of_a_deletion_does_not_change_whose_wish_it_was(store, by_operator):
    register(store)
    moment = clock.now()  # or it would be forgotten at once
    with store.account(USER) as account:
        account.delete(moment + 1, by_operator=by_operator)
    with store.account(USER) as account:
        account.delete(moment)
    assert store.find(USER) == Deleted(moment, by_operator)


def delete(store: Store, user_id: str, moment: int = 1_795_510_900_000) -> None:
    with store.account(user_id) as account:
        account.delete(moment)


def test_a_request_hears_of_a_stalled_disk_while_its_client_waits():
    assert bounds.QUEUE_SECONDS + bounds.TURN_SECONDS + bounds.DISK_SECONDS < 30


@pytest.mark.parametrize("method", ["put_blob", "put_row"])
def test_an_upload_that_stalls(tmp_path, monkeypatch, impatient, method):
    """Its caller and the next ones fail in time, reads go on, and the next change builds on what it did later."""
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        register(store, OTHER)
        first = append(store, b"first", keep=3)
        assert store.stats().versions == 1
        with Stall(method):
            unavailable(lambda: append(store, b"second", keep=3))
            for user_id in (USER, OTHER, USER):
                unavailable(lambda user_id=user_id: hold(store, user_id))
            assert store.find(USER) == Account(ACCOUNT.created_at, KEY, versions=(first,))
            assert store.data(USER, first) == b"first"
            assert set(store.user_ids()) == {USER, OTHER}
            assert store.stats().versions == 1
            store.check()
        monkeypatch.setattr(bounds, "TURN_SECONDS", 30)
        append(store, b"third", keep=3)
        record = store.find(USER)
        assert isinstance(record, Account)
        assert [store.data(USER, version) for version in record.versions] == [b"first", b"second", b"third"]
        assert [version.number for version in record.versions] == [1, 2, 3]
        stats = store.stats()
        assert (stats.users, stats.backups, stats.versions) == (2, 1, 3)


@pytest.mark.parametrize("change", [register, delete])
def test_another_change_that_stalls(tmp_path, monkeypatch, impatient, change):
    """What it did later is counted, and a deletion is forgotten when it is due."""
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        append(store, b"data")
        assert store.stats().users == 1
        user_id = USER if change is delete else OTHER
        with Stall("put_row"):
            unavailable(lambda: change(store, user_id))
            unavailable(lambda: hold(store, OTHER))
            assert store.stats().users == 1
        monkeypatch.setattr(bounds, "TURN_SECONDS", 30)
        hold(store, user_id)
        assert store.stats().users == (0 if change is delete else 2)
        if change is delete:  # it was long ago
            assert eventually(lambda: store.find(USER) is None)


def test_others_have_their_turns_while_a_large_account_is_deleted(tmp_path, monkeypatch):
    """Twenty blobs, each of which takes the disk 0.1 s: together more than any change waits for its turn."""
    monkeypatch.setattr(bounds, "TURN_SECONDS", 1.5)  # more than one blob takes, and less than all of them
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        register(store, OTHER)
        versions = [append(store, b"%d" % number, keep=20) for number in range(20)]
        erase = DbmStore.erase_blob
        slow = mock.patch.object(DbmStore, "erase_blob", lambda *blob: (time.sleep(0.1), erase(*blob))[1])
        with slow, ThreadPoolExecutor(1) as pool:
            deletion = pool.submit(delete, store, USER, clock.now())
            assert eventually(lambda: isinstance(store.find(USER), Deleted))
            turns = 0
            while not deletion.done():
                hold(store, OTHER)
                turns += 1
        assert turns > 3
        deletion.result()
        for slot in range(len(versions) + 1):
            assert store.blob(USER, slot) is None


def test_housekeeping_that_stalls(tmp_path, monkeypatch, impatient):
    """It keeps its turn until its write has ended. Then it goes on where it was."""
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        delete(store, USER)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        with Stall("erase_blob"):
            unavailable(lambda: store.housekeeper._erase_in_turns(USER))
            unavailable(lambda: hold(store, OTHER))
        monkeypatch.setattr(bounds, "TURN_SECONDS", 30)
        store.housekeeper._count([USER])
        store.housekeeper._erase_in_turns(USER)
        with Stall("erase_blob"):
            unavailable(store.housekeeper._forget_next)
            monkeypatch.setattr(bounds, "TURN_SECONDS", 0.3)
            unavailable(store.housekeeper._end_counting)
        monkeypatch.setattr(bounds, "TURN_SECONDS", 30)
        store.housekeeper._forget_next()
        assert store.find(USER) is None
        store.housekeeper._end_counting()
        assert store.stats().users == 0


def test_counting_takes_few_turns(tmp_path):
    """A turn and a pause for each account took minutes for 100,000 after a start, and the statistics were 503 then.

    In one turn for all of them, nobody else would have one.
    """
    path, users = tmp_path / "backup.db", 1000
    with contextlib.closing(DbmStore(path, 601)) as store:
        for number in range(users):
            register(store, f"{number:064x}")
        assert store.stats().users == users
    turns, turn = [], DbmStore.turn
    with mock.patch.object(DbmStore, "turn", lambda store: (turns.append(1), turn(store))[1]):
        with contextlib.closing(DbmStore(path, 601)) as store:
            assert store.tally.is_complete.wait(10)
            assert store.stats().users == users
    assert users / 200 < len(turns) < users / 10


def test_a_change_while_an_account_is_being_counted(tmp_path, monkeypatch):
    """Its record was read, and has changed before it is counted. The change counts."""
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        register(store, OTHER)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        old = {user_id: store.row(user_id) for user_id in (USER, OTHER)}
        append(store, b"data")
        delete(store, OTHER)
        with mock.patch.object(store, "row", old.get):
            store.housekeeper._count([USER, OTHER])
        store.housekeeper._end_counting()
        stats = store.stats()
        assert (stats.users, stats.backups, stats.versions) == (1, 1, 1)
        register(store, OTHER)
        with mock.patch.object(store, "row", {OTHER: None}.get):
            store.housekeeper._count([OTHER])
        assert store.stats().users == 2


def test_a_copy_hears_only_of_changes_of_a_record(tmp_path, monkeypatch):
    """A dropped version is erased a while later. The bucket has it no longer, and would be asked for nothing."""
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        store.replica = copy = mock.Mock()
        register(store)
        for data in (b"first", b"second", b"third"):
            append(store, data)
        assert copy.changed.call_count == 4
        row = store.row(USER)
        ((slot, _),) = row.dropped
        with store.turn():
            store.write(functools.partial(store.erase_dropped, USER, row, [slot]))
        assert store.row(USER).dropped == ()
        assert copy.changed.call_count == 4


def test_damage_is_not_forgotten_because_the_disk_stalls(tmp_path, monkeypatch):
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        append(store, b"a backup")
        house = store.housekeeper
        house.damaged[USER] = "backup"
        with mock.patch.object(store, "row", side_effect=StorageUnavailable):
            unavailable(lambda: house._look_after(USER))
        assert house.damaged == {USER: "backup"}
        house._look_after(USER)
        ((user_id, version, _),) = house._to_verify
        house._to_verify.clear()
        with mock.patch.object(store, "data", side_effect=StorageUnavailable):
            unavailable(lambda: house._verify(user_id, version, 1))
        assert house._to_verify == [(user_id, version, 1)]


def test_a_dropped_version_is_erased_days_later(tmp_path, monkeypatch):
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        for data in (b"first", b"second", b"third"):
            append(store, data)
        row, now = store.row(USER), clock.now()
        ((slot, _),) = row.dropped
        assert store.housekeeper._to_erase(USER, row) == []
        monkeypatch.setattr(clock, "now", lambda: now + housekeeping.ERASE_DROPPED_AFTER)
        assert store.housekeeper._to_erase(USER, row) == [slot]


@pytest.mark.parametrize("end", ["forgotten", "registered anew"])
def test_what_a_deletion_has_left_is_erased_at_the_latest_when_the_name_is_free(tmp_path, monkeypatch, end):
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    monkeypatch.setattr(Housekeeper, "erase_deleted", lambda house, user_id: None)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        for data in (b"first", b"second"):
            append(store, data)
        delete(store, USER)
        assert store.blob(USER, 1) == b"second"
        if end == "forgotten":
            with store.turn():
                store.write(functools.partial(store.forget, USER, store.row(USER)))
        else:
            register(store)
        assert store.blob(USER, 1) is None
        assert not store.blob(USER, 0)  # the empty one is the sign that there is an account


def test_a_probe_is_followed_by_a_minute_without_one(tmp_path, monkeypatch):
    """Each costs a sync, and the housekeeper has other things to do."""
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        house = store.housekeeper
        house._next_probe = time.monotonic()
        assert house._is_probe_due()
        house._probe()
        assert not house._is_probe_due()


def test_an_index_that_takes_no_writes_is_made_anew(tmp_path, monkeypatch):
    """Although all that it has is right."""
    monkeypatch.setattr(Housekeeper, "_keep_house", lambda house: None)
    monkeypatch.setattr(housekeeping, "RETRY_SECONDS", 0)
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        house = store.housekeeper
        with mock.patch.object(store, "probe", side_effect=Damaged):
            house._probe()
        assert house.damaged == {"the index": "index"}
        assert list(house._walk()) == [USER]
        assert house.damaged == {} and not store.has_damaged_index


def test_a_store_is_closed_in_time(tmp_path, impatient, capfd):
    """Until the write has ended, no other server can open the file."""
    store = DbmStore(tmp_path / "backup.db", 601)
    register(store)
    with Stall("put_blob"):
        unavailable(lambda: append(store, b"late"))
        started = time.monotonic()
        store.close()
        assert time.monotonic() - started < IN_TIME
        log.finish(5)
        assert "could not be closed" in capfd.readouterr().out
        with pytest.raises(StorageUnavailable, match="another server has it open"):
            DbmStore(tmp_path / "backup.db", 601)
    with contextlib.closing(DbmReader(tmp_path / "backup.db")) as reader:
        assert eventually(lambda: getattr(reader.find(USER), "versions", ()) != ())


def test_a_store_that_is_closed_leaves_no_thread(tmp_path):
    before = set(threading.enumerate())
    with contextlib.closing(DbmStore(tmp_path / "backup.db", 601)) as store:
        register(store)
        assert set(threading.enumerate()) - before
    assert eventually(lambda: not set(threading.enumerate()) - before)


def test_each_account_is_counted_even_if_the_disk_stalls_meanwhile(tmp_path, monkeypatch):
    """And a deletion that a crash cut short is finished."""
    path = tmp_path / "backup.db"
    with mock.patch.object(Housekeeper, "_keep_house"), contextlib.closing(DbmStore(path, 601)) as store:
        for user_id in (USER, OTHER):
            register(store, user_id)
        append(store, b"of the deleted account")
        with mock.patch.object(Housekeeper, "erase_deleted"), store.account(USER) as held:
            held.delete(clock.now())
    monkeypatch.setattr(bounds, "TURN_SECONDS", 0.05)
    monkeypatch.setattr("server.housekeeping.RETRY_SECONDS", 0.1)
    with contextlib.closing(DbmWriter(path)) as store:
        house = Housekeeper(store, 601)
        with store.turn():
            house.start()
            time.sleep(0.5)
        assert store.tally.is_complete.wait(10)
        assert store.tally.counts.users == 1
        assert eventually(lambda: store.blob(USER, 0) is None and store.blob(USER, 1) is None)
        house.stop()


# ---- Records as bytes -----------------------------------------------------------------------------------------------

RECORDS: list[Record] = [
    ACCOUNT,
    Account(
        1,
        KEY,
        2,
        (version_of(b"one", 1), version_of(b"two", 2)),
        (Upload(3, "app=:signature:"), Upload(4, "app=:another:", True)),
    ),
    Deleted(4),
    Deleted(4, by_operator=True),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was(record):
    assert from_bytes(USER, to_bytes(USER, record, slots=[1, 0])) == (record, {"slots": [1, 0]})


def test_a_record_without_marks_on_its_uploads():
    """Records were once written like this. No upload counts as a change of the key, and the account is established."""
    text = (
        b'{"format":2,"createdAt":1,"storageKeySha256":"cc","keyVersion":2,"versions":[],'
        b'"uploads":[[3,"app=:signature:"],[4,"app=:another:"]],"slots":[],"slotsUsed":0}'
    )
    uploads = (Upload(3, "app=:signature:"), Upload(4, "app=:another:"))
    assert [upload.changes_key for upload in uploads] == [False, False]
    stored = checksum(USER, text) + b"\n" + text
    assert from_bytes(USER, stored) == (
        Account(1, "cc", 2, uploads=uploads, upload_days=ESTABLISHED_DAYS),
        {"slots": [], "slotsUsed": 0},
    )


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_each_bit_counts(record):
    stored = to_bytes(USER, record)
    for index in range(len(stored) * 8):
        flipped = bytearray(stored)
        flipped[index // 8] ^= 1 << index % 8
        with pytest.raises(Damaged):
            from_bytes(USER, bytes(flipped))
    for length in range(len(stored)):
        with pytest.raises(Damaged):
            from_bytes(USER, stored[:length])
    with pytest.raises(Damaged):
        from_bytes(OTHER, stored)
