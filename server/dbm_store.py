"""A store of accounts in one file. It uses `dbm.sqlite3` of Python's standard library.

`user/{userId}` holds a record. Every change replaces the whole record with one put, which is the commit of the change.
`blob/{userId}/{slot}` holds the bytes of a version. An upload overwrites a slot that the record does not name, then
replaces the record. So each change happens completely or not at all, an upload deletes nothing, and the file does not
keep growing. After a crash, the only thing to clean up is a deletion that was cut short. The next start finishes it.

One thread writes, through the only writing connection. This also avoids SQLite's WAL-reset bug. Each other thread
reads through a connection of its own.

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
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from server import bounds, clock, lanes, records
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
    nothing,
)
from server.log import log
from server.store_file import StoreFile, check_table

FILE_FORMAT = b"2"
FORMER_FORMAT = b"1"  # without checksums; the server reads it, and converts a record when it next writes it
UNKNOWN_FORMAT = "it is not a store in a format that this server knows"
NOT_SYNCED = "this SQLite does not sync each commit (WAL, synchronous=FULL): use another build"
RESERVE_BYTES = 32 * 1024 * 1024  # kept free, because a deletion first needs room in the write-ahead log

ERRORS = (dbm.sqlite3.error, sqlite3.Error)


def sqlite_code(error: Exception) -> int:
    """Return SQLite's primary result code. dbm.sqlite3 hides it in the context of its own error."""
    cause = error if isinstance(error, sqlite3.Error) else error.__context__
    return getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


@dataclass(frozen=True)
class Row:
    """A record as this store keeps it, with the slot of each version and the number of slots ever used."""

    record: Record
    slots: tuple[int, ...] = ()
    slots_used: int = 0

    def to_bytes(self, user_id: str) -> bytes:
        """Return the bytes to store."""
        return records.to_bytes(user_id, self.record, slots=self.slots, slotsUsed=self.slots_used)

    @classmethod
    def from_bytes(cls, user_id: str, stored: bytes) -> "Row":
        """Return the row that the stored bytes contain, in either format. Raise Damaged."""
        if not stored.startswith(b"{"):
            record, members = records.from_bytes(user_id, stored)
            return cls(record, tuple(members["slots"]), members["slotsUsed"])
        try:  # the former format
            value = json.loads(stored)
            slots = tuple(version["slot"] for version in value.get("versions", ()))
            return cls(records.record_of(value), slots, value["slots"])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Damaged("a record of the former format cannot be read") from None

    @property
    def versions(self) -> tuple[Version, ...]:
        """The kept versions, oldest first."""
        return self.record.versions if isinstance(self.record, Account) else ()

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

    @contextlib.contextmanager
    def _database(self) -> Iterator[Any]:
        """Give this thread's connection. Turn its errors into StorageFull or StorageUnavailable."""
        try:
            if not hasattr(self._local, "database"):
                self._local.database = dbm.sqlite3.open(self.path, "r")
            yield self._local.database
        except ERRORS as error:
            log(event="storage_error", sqliteCode=sqlite_code(error))
            is_full = sqlite_code(error) == sqlite3.SQLITE_FULL
            raise (StorageFull() if is_full else StorageUnavailable(str(error))) from None

    def check(self) -> None:
        with self._database() as database:
            if database.get(b"format") not in (FILE_FORMAT, FORMER_FORMAT):
                log(event="storage_error", reason=UNKNOWN_FORMAT)
                raise StorageUnavailable(UNKNOWN_FORMAT)

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
                if key.startswith(b"user/"):
                    yield key[5:].decode()

    def close(self) -> None:
        if hasattr(self._local, "database"):
            self._local.database.close()

    def _row(self, user_id: str) -> Row | None:
        with self._database() as database:
            stored = database.get(user_key(user_id))
        return None if stored is None else read_row(user_id, stored)

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


class Counts(NamedTuple):
    """The counts that `stats` returns, all except the size of the file."""

    users: int = 0
    backups: int = 0
    versions: int = 0

    @classmethod
    def of(cls, record: Record | None) -> "Counts":
        """Return what one record adds to the counts."""
        if not isinstance(record, Account):
            return cls()
        return cls(1, int(bool(record.versions)), len(record.versions))


class DbmStore(DbmReader, Store):
    """Accounts in one file. Only one server can have it open."""

    def __init__(self, path: Path, reserved_seconds: int) -> None:
        """Open the file, or create it. A deleted userId stays reserved for `reserved_seconds`, then it is forgotten.

        Raise StorageUnavailable if another server has the file open, or if the file cannot be used.
        """
        super().__init__(path)
        self._reserved_milliseconds = reserved_seconds * 1000
        self._stopping = threading.Event()
        self._changing = threading.Lock()  # the turn; see `_turn`
        self._counted = threading.Event()
        self._seen: set[str] = set()  # while counting: the users that are in the counts already
        self._counts = Counts()
        self._deleted: list[tuple[int, str]] = []  # a heap of (when to forget, userId)
        self._file = StoreFile(path, FILE_FORMAT)
        self._writer = lanes.Lane("writer", 1, 1)
        self._last_write = self._start_write(self._open)
        try:
            self._last_write.result()  # however long it takes: SQLite may have to recover
        except StorageUnavailable:
            lanes.stop(self._writer)
            self._file.close()
            raise
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)
        self._housekeeper.start()

    def _open(self) -> None:
        try:
            check_table(self.path)
            self._local.database = database = dbm.sqlite3.open(self.path, "w")
            if database.get(b"format") not in (FILE_FORMAT, FORMER_FORMAT):
                raise StorageUnavailable(UNKNOWN_FORMAT)
            # dbm requests the write-ahead log but does not check it, and leaves `synchronous` to the library's default.
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
                (journal_mode,), (synchronous,) = (
                    connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")
                )
            if journal_mode != "wal" or synchronous < 2:
                raise StorageUnavailable(NOT_SYNCED)
            # The last step: a server that knows only the former format can no longer open the file.
            if database[b"format"] == FORMER_FORMAT:
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
            with contextlib.suppress(StorageError):  # it is logged, and repeated when the userId is forgotten
                self._erase_in_turns(user_id)

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
        return Stats(*self._counts, sum(file.stat().st_size for file in files if file.exists()))

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
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:
            raise StorageUnavailable(str(error)) from None
        # A blob is written to the write-ahead log and then to the file. The third is a margin.
        if free < RESERVE_BYTES + 3 * size:
            raise StorageFull("only the reserve is left")

    def _put_blob(self, user_id: str, slot: int, data: bytes) -> None:
        with self._database() as database:
            database[blob_key(user_id, slot)] = data

    def _put_row(self, user_id: str, before: Row | None, after: Row) -> None:
        """Replace a record. This is the commit of a change. When this returns, it is on disk."""
        with self._database() as database:
            database[user_key(user_id)] = after.to_bytes(user_id)
        self._count(user_id, before.record if before else None, after.record)

    def _erase_blobs(self, user_id: str, row: Row) -> None:
        """Delete the blobs of a deleted user, including one that a crash may have left in the next slot."""
        for slot in range(row.slots_used + 1):
            self._erase_blob(user_id, slot)

    def _erase_blob(self, user_id: str, slot: int) -> None:
        with self._database() as database, contextlib.suppress(KeyError):
            del database[blob_key(user_id, slot)]

    def _forget_later(self, user_id: str, record: Deleted) -> None:
        heapq.heappush(self._deleted, (record.deleted_at + self._reserved_milliseconds, user_id))

    # Housekeeping runs in the background. It counts, finishes deletions that a crash cut short, and forgets deleted
    # users.

    def _keep_house(self) -> None:
        users: list[str] | None = None  # still to count
        while not self._stopping.is_set():
            try:
                if users is None:
                    users = list(self.user_ids())  # through a connection of this thread, so no writer waits for it
                elif users:
                    self._visit(users[-1])
                    users.pop()
                    self._stopping.wait(0.001)  # leave the disk to the requests
                elif not self._counted.is_set():
                    self._end_counting()
                elif self._deleted and self._deleted[0][0] <= clock.now():
                    self._forget_next()
                else:
                    self._stopping.wait(1)
            except (StorageFull, StorageUnavailable):  # it is logged, and the disk may work again in a while
                self._stopping.wait(5)
            except Exception as error:  # skip a record that cannot be read, so that the others get their turn
                log.error(error)
                self._stopping.wait(1)
                if users:
                    users.pop()

    def _visit(self, user_id: str) -> None:
        if isinstance(self.find(user_id), Deleted):
            self._erase_in_turns(user_id)
        with self._turn():
            if user_id in self._seen:  # a change since the start has counted it
                return
            row = self._row(user_id)
            if row and isinstance(row.record, Deleted):
                self._forget_later(user_id, row.record)
            self._count(user_id, None, row.record if row else None)

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
        self._erase_in_turns(self._deleted[0][1])
        with self._turn():
            moment, user_id = heapq.heappop(self._deleted)
            try:
                row = self._row(user_id)
                # Since then, the account may have been registered again, and even deleted again.
                if row and isinstance(row.record, Deleted):
                    if row.record.deleted_at + self._reserved_milliseconds <= clock.now():
                        self._write(functools.partial(self._forget, user_id, row))
            except (StorageFull, StorageUnavailable):  # try again later
                heapq.heappush(self._deleted, (moment, user_id))
                raise

    def _forget(self, user_id: str, row: Row) -> None:
        self._erase_blobs(user_id, row)
        with self._database() as database:
            del database[user_key(user_id)]


class HeldRow(HeldAccount):
    """An account that nobody else can change, because this thread has the turn."""

    def __init__(self, store: DbmStore, user_id: str, row: Row | None) -> None:
        self._store, self._user_id, self._row = store, user_id, row
        self.record = row.record if row else None
        self.is_deleted = False  # by this block

    def create(self, account: Account) -> None:
        self._store._check_space(0)
        self._store._write(functools.partial(self._create, Row(account)))

    def _create(self, after: Row) -> None:
        if self._row:  # the row of a deleted user
            self._store._erase_blobs(self._user_id, self._row)
        self._store._put_row(self._user_id, self._row, after)

    def append(self, account: Account, data: bytes, on_commit: Callable[[], None] = nothing) -> None:
        self._store._check_space(len(data))
        before = self._living()
        slot = next(slot for slot in range(len(before.slots) + 1) if slot not in before.slots)
        slots = dict(zip(before.versions, before.slots, strict=True)) | {account.versions[-1]: slot}
        after = Row(
            account,
            slots=tuple(slots[version] for version in account.versions),
            slots_used=max(before.slots_used, slot + 1),
        )
        self._store._write(functools.partial(self._append, after, slot, data, on_commit))

    def _append(self, after: Row, slot: int, data: bytes, on_commit: Callable[[], None]) -> None:
        self._store._put_blob(self._user_id, slot, data)
        self._store._put_row(self._user_id, self._row, after)
        on_commit()

    def mend(self, version: Version, data: bytes) -> None:
        slot = self._living().slot(version)
        if slot is not None and self._store._blob(self._user_id, slot) != data:
            self._store._write(functools.partial(self._store._put_blob, self._user_id, slot, data))

    def delete(self, moment: int, on_commit: Callable[[], None] = nothing) -> None:
        self._store._write(functools.partial(self._delete, Deleted(moment), on_commit))
        self.is_deleted = True

    def _delete(self, deleted: Deleted, on_commit: Callable[[], None]) -> None:
        before = self._living()
        after = Row(deleted, slots_used=before.slots_used)
        try:
            self._store._put_row(self._user_id, before, after)
        except StorageFull as error:  # a deletion needs no lasting space, so a retry may work soon
            raise StorageUnavailable(str(error)) from None
        on_commit()
        self._store._forget_later(self._user_id, deleted)

    def _living(self) -> Row:
        assert self._row and isinstance(self._row.record, Account), "only an existing account can be changed"
        return self._row
