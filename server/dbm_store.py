"""A store of accounts in one file. It uses `dbm.sqlite3` of Python's standard library.

`user/{userId}` holds a record. Every change replaces the whole record with one put, which is the commit of the change.
`blob/{userId}/{slot}` holds the bytes of a version. An upload overwrites a slot that the record does not name, then
replaces the record. So each change happens completely or not at all, an upload deletes nothing, and the file does not
keep growing. Housekeeping, in the background, cleans up behind it: it erases what was deleted or dropped.

Slot 0 of an account exists as long as the account lives. So if a record is missing, but its slot 0 is not, the record
did not go by itself: a damaged index is not taken for an account that does not exist.

One thread writes, through the only writing connection. This also avoids SQLite's WAL-reset bug. Each other thread
reads through a connection of its own.

If the disk fails during a commit, SQLite reports it, but the whole commit may be in the write-ahead log: after a crash,
it would take effect, although the client was told that it did not. Therefore, another write overwrites it at once.

Changes take turns. If the disk stalls, whoever waits for a turn or for a write gives up in time, but the turn does not
pass on before the write has ended. So the next change sees what it did, even if nobody waited for it.
"""

import contextlib
import dbm.sqlite3
import functools
import gc
import hashlib
import heapq
import itertools
import json
import math
import re
import shutil
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from server import bounds, clock, lanes, records, space
from server.accounts import (
    Account,
    Damaged,
    DamagedData,
    Deleted,
    HeldAccount,
    Record,
    Stats,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Store,
    StoreReader,
    Version,
    Volume,
    nothing,
)
from server.clock import DAY
from server.log import log
from server.space import allotted, counted, is_established, size_of, takes_accounts
from server.store_file import StoreFile, address, check_table, drop_ballast, load_ballast

PROBE = b"probe"  # the key of a value that means nothing
FILE_FORMAT = b"2"
FORMER_FORMAT = b"1"  # without checksums; the server reads it, and converts a record when it next writes it
UNKNOWN_FORMAT = "it is not a store in a format that this server knows"
NOT_SYNCED = "this SQLite does not sync each commit (WAL, synchronous=FULL): use another build"
RESERVE_BYTES = 32 * 1024 * 1024  # kept free, because a deletion first needs room in the write-ahead log
# The contract gives 10 minutes after a deletion, and 7 days after a version was dropped.
ERASE_DROPPED_AFTER = 6 * DAY
ROUND_EVERY = DAY // 2
VERIFIED_EVERY = 7  # days: a part of the accounts each day
VERIFIED_BYTES_A_SECOND = 1024 * 1024  # so that it does not get in the way of requests, on a disk of 16 MiB/s
VERIFY_PAUSE_SECONDS = 0.2
SPARE_BYTES = 8 * 1024 * 1024  # stay in the file for the next uploads
SHRINK_PAGES = 256  # at a time: 1 MiB
FREE_PAGES_SECONDS = 1  # for so long it is known how many there are
INCREMENTAL = 2  # the value of SQLite's auto_vacuum; a file that an older server made does not have it
MOST_DAMAGE = 10_000  # so much is remembered
KEY = re.compile(rb"user/([0-9a-f]{64})|blob/([0-9a-f]{64})/(0|[1-9][0-9]{0,8})|format|probe")
TABLE = "SELECT rowid, CAST(key AS BLOB) FROM Dict NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT 100"
INDEX = "SELECT rowid FROM Dict INDEXED BY sqlite_autoindex_Dict_1 WHERE key = ?"

ERRORS = (dbm.sqlite3.error, sqlite3.Error)
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # the codes that say so


def sqlite_code(error: Exception) -> int:
    """Return SQLite's primary result code. dbm.sqlite3 hides it in the context of its own error."""
    cause = error if isinstance(error, sqlite3.Error) else error.__context__
    return getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


@dataclass(frozen=True)
class Row:
    """A record as this store keeps it, with the slot of each version and the number of slots ever used.

    `dropped` has the slots of dropped versions whose bytes are still there, with the times when they were dropped (Unix
    milliseconds), in this order. It is None in a record of a former version, which does not know.
    """

    record: Record
    slots: tuple[int, ...] = ()
    slots_used: int = 0
    dropped: tuple[tuple[int, int], ...] | None = ()

    def to_bytes(self, user_id: str) -> bytes:
        """Return the bytes to store."""
        members = {} if self.dropped is None else {"dropped": self.dropped}
        return records.to_bytes(user_id, self.record, slots=self.slots, slotsUsed=self.slots_used, **members)

    @classmethod
    def from_bytes(cls, user_id: str, stored: bytes) -> "Row":
        """Return the row that the stored bytes contain, in either format. Raise Damaged."""
        if not stored.startswith(b"{"):
            record, members = records.from_bytes(user_id, stored)
            dropped = tuple((slot, moment) for slot, moment in members["dropped"]) if "dropped" in members else None
            return cls(record, tuple(members["slots"]), members["slotsUsed"], dropped)
        try:  # the former format
            value = json.loads(stored)
            slots = tuple(version["slot"] for version in value.get("versions", ()))
            return cls(records.record_of(value), slots, value["slots"], None)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Damaged("a record of the former format cannot be read") from None

    @property
    def versions(self) -> tuple[Version, ...]:
        """The kept versions, oldest first."""
        return self.record.versions if isinstance(self.record, Account) else ()

    @property
    def unnamed(self) -> Iterator[int]:
        """The slots that the record does not name, and the next one, where a crash may have left an upload."""
        return (slot for slot in range(self.slots_used + 1) if slot not in self.slots)

    def next_slot(self) -> int:
        """Return the slot for the next version: that of the version that was dropped first, or an empty one."""
        return self.dropped[0][0] if self.dropped else next(self.unnamed)

    def dropped_with(self, account: Account, slot: int) -> tuple[tuple[int, int], ...] | None:
        """Return `dropped` for when the account is replaced, and its latest version is in this slot."""
        if self.dropped is None:
            return None
        moment = account.versions[-1].stored_at
        slots = dict(zip(self.versions, self.slots, strict=True))
        now = [(slots[version], moment) for version in self.versions if version not in account.versions]
        return (*(each for each in self.dropped if each[0] != slot), *now)

    def slot(self, version: Version) -> int | None:
        """Return the slot of a version, or None if the account does not have it."""
        return dict(zip(self.versions, self.slots, strict=True)).get(version)


# A request reads its user's record two or three times, and rarely finds other bytes: they are understood once.
read_row = functools.lru_cache(maxsize=16)(Row.from_bytes)


class DbmReader(StoreReader):
    """Reads the file of a store, even while a server is running on it."""

    def __init__(self, path: Path) -> None:
        """Take the file's path. Each thread opens the file when it first reads from it. Nothing is ever written."""
        self.path = path
        self._local = threading.local()
        self._has_damaged_index = False  # as far as is known

    @contextlib.contextmanager
    def _database(self) -> Iterator[Any]:
        """Give this thread's connection. Turn its errors into StorageFull, Damaged or StorageUnavailable."""
        try:
            if not hasattr(self._local, "database"):
                self._local.database = dbm.sqlite3.open(self.path, "r")
            yield self._local.database
        except ERRORS as error:
            log(event="storage_error", sqliteCode=sqlite_code(error))
            match sqlite_code(error):
                case sqlite3.SQLITE_FULL:
                    raise StorageFull from None
                case code if code in DAMAGE:
                    raise Damaged(str(error)) from None
            raise StorageUnavailable(str(error)) from None

    def check(self) -> None:
        with self._database() as database:
            if self._format(database) is None:
                log(event="storage_error", reason=UNKNOWN_FORMAT)
                raise StorageUnavailable(UNKNOWN_FORMAT)

    def _format(self, database: Any) -> bytes | None:
        """Return the format of the file, or None if it is unknown. A damaged index may lead to another value."""
        for read in (database.get, self._in_table):
            found: bytes | None = read(b"format")
            if found in (FILE_FORMAT, FORMER_FORMAT):
                return found
        return None

    def find(self, user_id: str) -> Record | None:
        row = self._row(user_id)
        return row.record if row else None

    def data(self, user_id: str, version: Version) -> bytes | None:
        row = self._row(user_id)
        while row and (slot := row.slot(version)) is not None:
            data = self._blob(user_id, slot)
            if data is not None and hashlib.sha256(data).hexdigest() == version.sha256:
                return data
            # Later uploads may have overwritten the slot after the record was read. Then the record has changed, too.
            before, row = row, self._row(user_id)
            if row == before:
                raise DamagedData("the digest of a version's bytes is wrong")
        return None

    def user_ids(self) -> Iterator[str]:
        with self._database() as database:
            for key in database:
                if (match := KEY.fullmatch(key)) and match[1]:
                    yield match[1].decode()

    def close(self) -> None:
        if hasattr(self._local, "database"):
            self._local.database.close()

    def _row(self, user_id: str) -> Row | None:
        with self._database() as database:
            stored = database.get(user_key(user_id))
            # A registration may have come in between, so look again.
            if stored is None and database.get(blob_key(user_id, 0)) is not None:
                stored = database.get(user_key(user_id))
                if stored is None:
                    self._suspect_index()
                    raise Damaged("a record is missing, but its first slot is there")
            if stored is None and self._has_damaged_index and self._in_table(user_key(user_id)):
                raise Damaged("a record is not in the index")
        return None if stored is None else read_row(user_id, stored)

    def _suspect_index(self) -> None:
        """Have the index compared with the table soon, if somebody does so."""

    def _in_table(self, key: bytes) -> bytes | None:
        """Return a value as the table has it, whatever the index says. This reads much of the file."""
        try:
            with contextlib.closing(sqlite3.connect(address(self.path), uri=True)) as connection:
                row = connection.execute("SELECT value FROM Dict NOT INDEXED WHERE key = ? LIMIT 1", (key,)).fetchone()
        except sqlite3.Error as error:
            raise Damaged(str(error)) from None
        return row[0] if row else None

    def _blob(self, user_id: str, slot: int) -> bytes | None:
        """Return the bytes in a slot, or None if they are gone or their page is damaged.

        A damaged page is no error here, because the pages of other slots may be intact.
        """
        with self._database() as database:
            try:
                found: bytes | None = database.get(blob_key(user_id, slot))
                return found
            except ERRORS as error:
                if sqlite_code(error) == sqlite3.SQLITE_CORRUPT:
                    return None
                raise


def user_key(user_id: str) -> bytes:
    return f"user/{user_id}".encode()


def blob_key(user_id: str, slot: int) -> bytes:
    return f"blob/{user_id}/{slot}".encode()


def run(change: Callable[[], None], write: Future[None]) -> None:
    """Make a change, and tell `write` when it has ended, and what it raised."""
    try:
        change()
    except BaseException as error:
        write.set_exception(error)
        del write  # the error knows this frame: a circle would keep an upload in memory for a long time
    else:
        write.set_result(None)


NO_WRITE: Future[None] = Future()  # in place of a turn's last write
NO_WRITE.set_result(None)


class FreePages(NamedTuple):
    """The bytes of the pages that the file does not need, whether it can become smaller by them, and when that was."""

    bytes: int
    can_shrink: bool
    read_at: float


class Counts(NamedTuple):
    """What is counted of all accounts.

    `new_bytes` is what the accounts that are still new have. `given_up` is what accounts have dropped while they could
    not grow. It is theirs, and so it is not free for others.
    """

    users: int = 0
    backups: int = 0
    versions: int = 0
    new_bytes: int = 0
    given_up: int = 0

    @classmethod
    def of(cls, record: Record | None) -> "Counts":
        """Return what one record adds to the counts."""
        if not isinstance(record, Account):
            return cls()
        new_bytes = 0 if is_established(record) else counted(record)
        given_up = allotted(record) - size_of(record.versions)
        return cls(1, int(bool(record.versions)), len(record.versions), new_bytes, given_up)


class DbmStore(DbmReader, Store):
    """Accounts in one file. Only one server can have it open."""

    def __init__(self, path: Path, reserved_seconds: int, is_new: bool | None = None) -> None:
        """Open the file, or create it. A deleted userId stays reserved for `reserved_seconds`, then it is forgotten.

        `is_new` says whether there has to be a store (false), or whether an empty file is taken for none (true).
        If the file cannot be written, the store can be read all the same, and `degraded` says so.

        Raise StorageUnavailable if another server has the file open, or if the file cannot be used.
        """
        super().__init__(path)
        self._reserved_milliseconds = reserved_seconds * 1000
        self._stopping = threading.Event()
        self._changing = threading.Lock()  # the turn; see `_turn`
        self._has_failed_commit = False
        self._counted = threading.Event()
        self._seen: set[str] = set()  # while counting: the users that are in the counts already
        self._counts = Counts()
        # A heap of (when to forget, by the monotonic clock, which nobody sets; userId; the time in the record).
        self._deleted: list[tuple[int, str, int]] = []
        self._empty_log_at: float | None = None  # by the monotonic clock; something was erased, and is in the log
        self._unerased: deque[str] = deque()  # deleted users whose blobs could not be erased yet
        self._round: Iterator[str] = iter(())  # the users whom the current round has still to visit
        self._to_verify: list[tuple[str, Version, float]] = []  # of the user who was visited last
        self._next_round = clock.monotonic()
        self._is_tight = False  # little space is left, as of a moment ago
        self._free_pages = FreePages(0, False, -math.inf)
        self._damaged: dict[str, str] = {}  # "record", "backup", "index", "key" or "table", by user or key
        self._file = StoreFile(path, FILE_FORMAT, is_new)
        self.is_made, self.erases = self._file.is_made, False
        self._writer = lanes.Lane("writer", 1, 1)
        self._last_write = self._start_write(self._open)
        try:
            try:
                self._last_write.result()  # however long it takes: SQLite may have to recover
            except StorageError:
                if not drop_ballast(path):
                    raise
                self._last_write = self._start_write(self._open)
                self._last_write.result()
        except StorageError as error:
            lanes.stop(self._writer)
            self._file.close()
            raise StorageUnavailable(str(error)) from None
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)
        self._housekeeper.start()

    def _open(self) -> None:
        try:
            check_table(self.path)
            self._local.database = database = dbm.sqlite3.open(self.path, "w")
            found = self._format(database)
            if found is None:
                raise StorageUnavailable(UNKNOWN_FORMAT)
            # dbm requests the write-ahead log but does not check it, and leaves `synchronous` to the library's default.
            with contextlib.closing(sqlite3.connect(address(self.path), uri=True)) as connection:
                names = ("journal_mode", "synchronous", "secure_delete")
                (journal,), (synchronous,), (erases,) = (
                    connection.execute(f"PRAGMA {name}").fetchone() for name in names
                )
            if journal != "wal" or synchronous < 2:
                raise StorageUnavailable(NOT_SYNCED)
            self.erases = bool(erases)  # Debian's SQLite does, and so does the one in the image
            with contextlib.suppress(StorageUnavailable):  # if the disk is full, it has to wait
                self._empty_log()  # a crash may have left there what was erased since
            self._has_failed_commit = True
            self._overwrite_failed_commit()  # this shows whether the file can be written
            if self._has_failed_commit:
                log(event="storage_error", reason="the file cannot be written: only reads are served; look at the disk")
                return
            # The last step: a server that knows only the former format can no longer open the file.
            if found == FORMER_FORMAT:
                database[b"format"] = FILE_FORMAT
        except ERRORS as error:
            raise StorageUnavailable(f"it cannot be used: {error}") from None

    def close(self) -> None:
        self._stopping.set()
        self._housekeeper.join(bounds.TURN_SECONDS)
        super().close()  # this thread's connection
        gc.collect()  # those of threads that have ended: a connection refers to itself
        try:
            with self._turn():
                self._write(super().close)  # the writer's connection, last: so it folds the write-ahead log in
        except StorageUnavailable:
            # SQLite recovers the file when it is next opened. The lock goes with the process, and with it the write.
            log(event="storage_error", reason="the file could not be closed")
            return
        lanes.stop(self._writer)
        self._file.close()

    @contextlib.contextmanager
    def account(self, user_id: str) -> Iterator[HeldAccount]:
        with self._turn():
            held = HeldRow(self, user_id, self._row(user_id))
            yield held
        if held.is_deleted:
            try:
                self._erase_in_turns(user_id)
            except StorageError:  # it is logged
                self._unerased.append(user_id)

    def _erase_in_turns(self, user_id: str) -> None:
        """Delete the blobs of a deleted user, each in a turn of its own. Together, they can take many seconds."""
        for slot in itertools.count():
            with self._turn():
                row = self._row(user_id)
                if not row or not isinstance(row.record, Deleted) or slot > row.slots_used:
                    return
                self._write(functools.partial(self._erase_blob, user_id, slot))
            self._stopping.wait(0.001)  # let others have their turn

    def stats(self) -> Stats:
        if not self._counted.wait(2):
            raise StorageUnavailable("the accounts are still being counted", retry_after=1)
        files = [self.path, Path(f"{self.path}-wal")]
        size = sum(file.stat().st_size for file in files if file.exists())
        counts = self._counts
        return Stats(counts.users, counts.backups, counts.versions, size, self.volume().free, len(self._damaged))

    def degraded(self) -> list[str]:
        parts = {"writes": self._has_failed_commit, "space": self._is_tight, "scrub": self._damaged}
        return [name for name, is_wrong in parts.items() if is_wrong]

    def volume(self) -> Volume:
        disk, in_file = self._disk(), self._free_in_file().bytes
        return Volume(disk.total, max(0, disk.free + in_file - self._counts.given_up), self._counts.new_bytes)

    def _disk(self) -> Any:
        try:
            return shutil.disk_usage(self.path.parent)
        except OSError as error:
            raise StorageUnavailable(str(error)) from None

    def _free_in_file(self) -> FreePages:
        """Return the pages that the file did not need a second ago. SQLite uses them before the file grows."""
        if self._free_pages.read_at < time.monotonic() - FREE_PAGES_SECONDS:
            try:
                with contextlib.closing(sqlite3.connect(address(self.path), uri=True)) as connection:
                    names = ("freelist_count", "page_size", "auto_vacuum")
                    (count,), (size,), (vacuum,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in names)
            except sqlite3.Error as error:
                raise StorageUnavailable(str(error)) from None
            self._free_pages = FreePages(count * size, vacuum == INCREMENTAL, time.monotonic())
        return self._free_pages

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for a turn to change something, and have it. Raise StorageUnavailable if that takes too long.

        The turn ends with the block, but not before the block's last write has ended, even if the block gave up.
        """
        if not self._changing.acquire(timeout=bounds.TURN_SECONDS):
            log(event="storage_error", reason="earlier changes take too long")
            raise StorageUnavailable("earlier changes take too long")
        try:
            yield
        finally:
            # Do not keep the write: if it failed, its error has the frames, and with them the upload.
            write, self._last_write = self._last_write, NO_WRITE
            write.add_done_callback(lambda _: self._changing.release())  # at once, if it has ended
            del write

    # The caller of these methods has the turn.

    def _write(self, change: Callable[[], None]) -> None:
        """Run `change` on the writing thread, and wait for it. Raise what it raises.

        Raise StorageUnavailable if it takes too long. Then it goes on, and keeps the turn.
        """
        self._last_write = write = self._start_write(change)
        try:
            if wait([write], bounds.DISK_SECONDS).not_done:
                log(event="storage_error", reason="a write takes too long")
                raise StorageUnavailable("a write takes too long")
            write.result()
        finally:
            del write  # see `run`

    def _start_write(self, change: Callable[[], None]) -> Future[None]:
        write: Future[None] = Future()
        started = self._writer.put(functools.partial(run, change, write))
        assert started, "changes take turns, so none waits for the writing thread"
        return write

    def _check_space(self, size: int) -> None:
        """Raise StorageFull if `size` more bytes would use up the reserve."""
        on_disk = self._disk().free
        # A blob is written to the write-ahead log and then to the file. The third is a margin. The file may have room
        # for it in free pages, but the log grows on the disk.
        needed = RESERVE_BYTES + 3 * size
        if on_disk < needed and (
            on_disk + self._free_in_file().bytes < needed or on_disk < RESERVE_BYTES // 2 + 2 * size
        ):
            raise StorageFull("only the reserve is left")

    def _put_blob(self, user_id: str, slot: int, data: bytes) -> None:
        with self._database() as database:
            database[blob_key(user_id, slot)] = data

    def _put_row(self, user_id: str, before: Row | None, after: Row) -> None:
        """Replace a record. This is the commit of a change. When this returns, it is on disk."""
        try:
            with self._database() as database:
                database[user_key(user_id)] = after.to_bytes(user_id)
        except StorageError:
            self._has_failed_commit = True
            self._overwrite_failed_commit()
            raise
        self._count(user_id, before.record if before else None, after.record)

    def _overwrite_failed_commit(self) -> None:
        """Write something else where the write-ahead log has a commit that failed. If this fails, do so again later.

        The next write goes to the same place in the log. It does so in the memory of the system, too, so that it helps
        against a crash of the server even if the disk still does not sync.
        """
        with contextlib.suppress(StorageError), self._database() as database:
            database[PROBE] = b""
            self._has_failed_commit = False

    def _erase_blobs(self, user_id: str, row: Row) -> None:
        """Delete the blobs of a deleted user, including one that a crash may have left in the next slot."""
        for slot in range(row.slots_used + 1):
            self._erase_blob(user_id, slot)

    def _erase_blob(self, user_id: str, slot: int) -> None:
        with self._database() as database, contextlib.suppress(KeyError):
            del database[blob_key(user_id, slot)]
        self._empty_log_soon()

    def _erase_dropped(self, user_id: str, row: Row, slots: list[int]) -> None:
        """Make slots of a living account empty, and forget that they had something."""
        with self._database() as database:
            for slot in slots:
                database[blob_key(user_id, slot)] = b""
        left = tuple(each for each in row.dropped or () if each[0] not in slots)
        self._put_row(user_id, row, replace(row, dropped=left))
        self._empty_log_soon()

    def _empty_log_soon(self) -> None:
        if self._empty_log_at is None:
            self._empty_log_at = time.monotonic() + bounds.EMPTY_LOG_SECONDS

    def _empty_log(self) -> None:
        """Move what is in the write-ahead log to the file, and cut the log off: it still has what was erased."""
        ((is_busy, _, _),) = self._maintain("PRAGMA wal_checkpoint(TRUNCATE)")
        self._empty_log_at = time.monotonic() + bounds.EMPTY_LOG_SECONDS if is_busy else None  # somebody is reading it

    def _maintain(self, statement: str) -> list[Any]:
        """Run a statement that dbm.sqlite3 does not have, and return its rows. Raise StorageUnavailable.

        The writing thread calls this, so there is still one writer.
        """
        try:
            with contextlib.closing(sqlite3.connect(address(self.path, "rw"), uri=True, timeout=1)) as connection:
                return connection.execute(statement).fetchall()
        except sqlite3.Error as error:
            raise StorageUnavailable(str(error)) from None

    def _forget_later(self, user_id: str, record: Deleted) -> None:
        reserved = record.deleted_at + self._reserved_milliseconds - clock.now()
        left = min(max(reserved, 0), self._reserved_milliseconds)  # a stamp may be in the future
        heapq.heappush(self._deleted, (clock.monotonic() + left, user_id, record.deleted_at))

    # Housekeeping runs in the background. At the start, it counts, and finishes deletions that a crash cut short. Then
    # it forgets deleted users, and makes rounds: it visits each account to erase what was dropped and to find damage.

    def _keep_house(self) -> None:
        users: list[str] | None = None  # still to count
        while not self._stopping.is_set():
            try:
                if users is None:
                    users = self._users()
                elif users:
                    self._visit(users.pop())
                    self._stopping.wait(0.001)  # leave the disk to the requests
                elif not self._counted.is_set():
                    self._end_counting()
                elif self._has_failed_commit:
                    with self._turn():
                        self._write(self._overwrite_failed_commit)
                    self._stopping.wait(5)
                elif self._unerased:
                    with contextlib.suppress(Damaged):  # it is noted when the userId is to be forgotten
                        self._erase_in_turns(self._unerased[0])
                    self._unerased.popleft()
                elif self._deleted and self._deleted[0][0] <= clock.monotonic():
                    self._forget_next()
                elif self._empty_log_at is not None and self._empty_log_at <= time.monotonic():
                    with self._turn():
                        self._write(self._empty_log)
                elif self._to_verify:
                    self._stopping.wait(self._verify(*self._to_verify.pop()))
                elif user_id := next(self._round, None):
                    self._look_after(user_id)
                elif self._next_round <= clock.monotonic():
                    self._next_round = clock.monotonic() + ROUND_EVERY
                    self._round = self._walk()
                    self._empty_log_soon()
                elif self._shrink():
                    self._stopping.wait(0.01)
                else:
                    with contextlib.suppress(OSError, StorageUnavailable):
                        load_ballast(self.path)
                        self._is_tight = space.is_below(self.volume(), space.GROWTH_MARK)
                    self._stopping.wait(1)
            except (StorageFull, StorageUnavailable):  # it is logged, and the disk may work again in a while
                self._stopping.wait(5)
            except Exception as error:  # whatever it is, the next step may succeed
                log.error(error)
                self._stopping.wait(1)

    def _users(self) -> list[str]:
        """Return all userIds, through a connection of this thread, so that no writer waits for it."""
        try:
            return list(self.user_ids())
        except Damaged:
            self._note_damage("the index", "index")
            return list(self._walk())

    def _visit(self, user_id: str) -> None:
        try:
            if isinstance(self.find(user_id), Deleted):
                self._erase_in_turns(user_id)
            with self._turn():
                if user_id in self._seen:  # a change since the start has counted it
                    return
                row = self._row(user_id)
                if row and isinstance(row.record, Deleted):
                    self._forget_later(user_id, row.record)
                self._count(user_id, None, row.record if row else None)
        except Damaged:
            self._note_damage(user_id, "record")

    def _walk(self) -> Iterator[str]:
        """Yield all userIds in the table. On the way, compare the table with its index, and mend the index."""
        last, is_table_right = -1, True
        while True:
            try:
                with contextlib.closing(sqlite3.connect(address(self.path), uri=True)) as connection:
                    connection.execute("BEGIN")  # so that both are of one moment
                    rows = connection.execute(TABLE, (last,)).fetchall()
                    wrong = [key for rowid, key in rows if connection.execute(INDEX, (key,)).fetchone() != (rowid,)]
            except sqlite3.Error as error:
                if sqlite_code(error) not in DAMAGE:
                    raise StorageUnavailable(str(error)) from None
                # Where the table goes on is not known. The index may know the other users.
                self._note_damage("the table", "table")
                yield from self.user_ids()
                return
            if not rows:
                break
            for key in wrong:
                self._note_damage(repr(key), "index")
                is_table_right = is_table_right and self._is_right(key)
            last = rows[-1][0]
            for _, key in rows:
                if not (match := KEY.fullmatch(key)):
                    self._note_damage(repr(key), "key")
                elif match[1]:
                    yield match[1].decode()
            self._stopping.wait(0.001)
        if self._has_damaged_index and is_table_right:
            with self._turn():
                self._write(self._rebuild_index)

    def _is_right(self, key: bytes) -> bool:
        """Return whether a key in the table belongs to its value. If so, its copy in the index is wrong."""
        match, value = KEY.fullmatch(key), self._in_table(key) or b""
        if not match:
            return False
        user, owner, slot = match.groups()
        try:
            if user:
                read_row(user.decode(), value)
            elif owner and value:
                row = read_row(owner.decode(), self._in_table(user_key(owner.decode())) or b"")
                version = dict(zip(row.slots, row.versions, strict=True)).get(int(slot))
                return version is not None and version.sha256 == hashlib.sha256(value).hexdigest()
        except Damaged:
            return False
        return True

    def _rebuild_index(self) -> None:
        """Make the index anew from the table. This reads much of the file."""
        self._maintain("REINDEX Dict")
        self._has_damaged_index = False
        self._damaged = {what: kind for what, kind in self._damaged.items() if kind != "index"}
        log(event="index_rebuilt")

    def _shrink(self) -> bool:
        """Give free pages back to the file system, some at a time. Return whether there may be more."""
        free = self._free_in_file()
        if not free.can_shrink or free.bytes < SPARE_BYTES:
            return False
        with self._turn():
            self._write(self._shrink_by_some)
        return True

    def _shrink_by_some(self) -> None:
        self._maintain(f"PRAGMA incremental_vacuum({SHRINK_PAGES})")
        self._empty_log_soon()  # the file is cut off when the log is emptied

    def _look_after(self, user_id: str) -> None:
        """Erase what a user dropped a while ago. Verify everything of a part of the users each day."""
        before = self._damaged.pop(user_id, None)
        try:
            row = self._row(user_id)
            if row and self._to_erase(user_id, row):
                with self._turn():
                    row = self._row(user_id)
                    if row and (slots := self._to_erase(user_id, row)):
                        self._write(functools.partial(self._erase_dropped, user_id, row, slots))
            if zlib.crc32(user_id.encode()) % VERIFIED_EVERY == clock.now() // DAY % VERIFIED_EVERY or before:
                self._to_verify = [(user_id, version, 0) for version in row.versions] if row else []
        except Damaged:
            self._note_damage(user_id, "record")
        self._stopping.wait(0.001)

    def _verify(self, user_id: str, version: Version, waited: float) -> float:
        """Verify the bytes of a version, some time after the ones before. Return how many seconds to wait now.

        The time is that in which requests have the disk for themselves. It passes in short pieces, since other work of
        the housekeeper may not wait.
        """
        if waited < version.size / VERIFIED_BYTES_A_SECOND:
            self._to_verify.append((user_id, version, waited + VERIFY_PAUSE_SECONDS))
            return VERIFY_PAUSE_SECONDS
        try:
            self.data(user_id, version)
        except DamagedData:
            self._note_damage(user_id, "backup")
        return 0

    def _to_erase(self, user_id: str, row: Row) -> list[int]:
        """Return the slots of a living account that have to be erased: with dropped versions, or left by a crash."""
        if not isinstance(row.record, Account):
            return []
        now = clock.now()
        if row.dropped is None:  # a record of a former version
            moment = row.record.latest.stored_at if row.record.latest else 0
            dropped = dict.fromkeys(row.unnamed, moment)
        else:
            dropped = dict(row.dropped)
        return [
            slot
            for slot in row.unnamed
            if (not now - ERASE_DROPPED_AFTER < dropped[slot] <= now if slot in dropped else self._blob(user_id, slot))
        ]

    def _suspect_index(self) -> None:
        self._next_round = clock.monotonic()

    def _note_damage(self, what: str, kind: str) -> None:
        self._has_damaged_index |= kind == "index"
        if what not in self._damaged and len(self._damaged) < MOST_DAMAGE:
            self._damaged[what] = kind
            log(event="damage", kind=kind, damaged=len(self._damaged))

    def _count(self, user_id: str, before: Record | None, after: Record | None) -> None:
        if not self._counted.is_set() and user_id not in self._seen:
            self._seen.add(user_id)
            before = None  # the record from before is not in the counts yet
        changes = zip(self._counts, Counts.of(before), Counts.of(after), strict=True)
        self._counts = Counts(*(count - less + more for count, less, more in changes))

    def _end_counting(self) -> None:
        with self._turn():
            self._counted.set()
            self._seen.clear()

    def _forget_next(self) -> None:
        with contextlib.suppress(Damaged):  # see below
            self._erase_in_turns(self._deleted[0][1])
        with self._turn():
            first = _, user_id, deleted_at = heapq.heappop(self._deleted)
            try:
                row = self._row(user_id)
                # Since then, the account may have been registered again, and even deleted again.
                if row and row.record == Deleted(deleted_at):
                    self._write(functools.partial(self._forget, user_id, row))
            except (StorageFull, StorageUnavailable):  # try again later
                heapq.heappush(self._deleted, first)
                raise
            except Damaged:  # the others have their turn
                self._note_damage(user_id, "record")

    def _forget(self, user_id: str, row: Row) -> None:
        self._erase_blobs(user_id, row)
        with self._database() as database:
            del database[user_key(user_id)]
        self._empty_log_soon()


class HeldRow(HeldAccount):
    """An account that nobody else can change, because this thread has the turn."""

    def __init__(self, store: DbmStore, user_id: str, row: Row | None) -> None:
        self._store, self._user_id, self._row = store, user_id, row
        self.record = row.record if row else None
        self.is_deleted = False  # by this block

    def create(self, account: Account) -> None:
        self._store._check_space(0)
        if not takes_accounts(self._store.volume()):
            raise StorageFull("there is no room for more accounts")
        self._store._write(functools.partial(self._create, Row(account, slots_used=1)))

    def _create(self, after: Row) -> None:
        if self._row:  # the row of a deleted user
            self._store._erase_blobs(self._user_id, self._row)
        self._store._put_row(self._user_id, self._row, after)
        # The sign that there is an account. It comes last, or a crash could leave it without a record.
        self._store._put_blob(self._user_id, 0, b"")

    def append(
        self, account: Account, data: bytes, on_commit: Callable[[], None] = nothing, gives_back: bool = False
    ) -> None:
        self._store._check_space(len(data))
        before = self._living()
        slot = before.next_slot()
        slots = dict(zip(before.versions, before.slots, strict=True)) | {account.versions[-1]: slot}
        after = Row(
            account,
            slots=tuple(slots[version] for version in account.versions),
            slots_used=max(before.slots_used, slot + 1),
            dropped=before.dropped_with(account, slot),
        )
        self._store._write(functools.partial(self._append, after, slot, data, on_commit, gives_back))

    def _append(self, after: Row, slot: int, data: bytes, on_commit: Callable[[], None], gives_back: bool) -> None:
        self._store._put_blob(self._user_id, slot, data)
        self._store._put_row(self._user_id, self._row, after)
        on_commit()
        if gives_back and (slots := [slot for slot, _ in after.dropped or ()]):
            with contextlib.suppress(StorageError):  # the version is stored, and the slots are erased some time later
                self._store._erase_dropped(self._user_id, after, slots)

    def mend(self, version: Version, data: bytes) -> None:
        slot = self._living().slot(version)
        if slot is not None and self._store._blob(self._user_id, slot) != data:
            self._store._write(functools.partial(self._store._put_blob, self._user_id, slot, data))

    def delete(self, moment: int, on_commit: Callable[[], None] = nothing) -> None:
        self._store._write(functools.partial(self._delete, Deleted(moment), on_commit))
        self.is_deleted = True

    def _delete(self, deleted: Deleted, on_commit: Callable[[], None]) -> None:
        before = self._row
        assert before, "only what exists can be deleted"
        after = Row(deleted, slots_used=before.slots_used)
        try:
            try:
                self._store._put_row(self._user_id, before, after)
            except StorageFull:
                if not drop_ballast(self._store.path):
                    raise
                self._store._put_row(self._user_id, before, after)
        except StorageFull as error:  # a deletion needs no lasting space, so a retry may work soon
            raise StorageUnavailable(str(error)) from None
        on_commit()
        self._store._empty_log_soon()  # the log has the digest of the key
        self._store._forget_later(self._user_id, deleted)

    def _living(self) -> Row:
        assert self._row and isinstance(self._row.record, Account), "only an existing account can be changed"
        return self._row
