"""How a store writes its file: one thread, one change at a time, and each change is on disk before it counts.

One thread writes, through the only writing connection. This also avoids SQLite's WAL-reset bug. Each other thread
reads through a connection of its own.

If the disk fails during a commit, SQLite reports it, but the whole commit may be in the write-ahead log: after a crash,
it would take effect, although the client was told that it did not. Therefore, another write overwrites it at once.

Changes take turns. If the disk stalls, whoever waits for a turn or for a write gives up in time, but the turn does not
pass on before the write has ended. So the next change sees what it did, even if nobody waited for it.
"""

import contextlib
import functools
import gc
import math
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from server import bounds, lanes, migration
from server.accounts import Closed, Damaged, StorageError, StorageFull, StorageUnavailable, Volume
from server.clock import ClockCheck
from server.counts import Tally
from server.dbm_reader import (
    DAMAGE,
    ERRORS,
    FILE_FORMAT,
    FORMER_FORMAT,
    UNKNOWN_FORMAT,
    DbmReader,
    Row,
    blob_key,
    sqlite_code,
    user_key,
)
from server.health import Writes
from server.log import log
from server.replica import Replica
from server.store_file import FrozenFile, StoreFile, address, check_table, drop_ballast, obstacle, whose

CLOSED = b"closed"  # the key of a value that says where the accounts were moved (server/migration.py)
PROBE = b"probe"  # the key of a value that is written to see whether it can be: the time, for the next start
NOT_SYNCED = "this SQLite does not sync each commit (WAL, synchronous=FULL): use another build"
ONLY_READS = "the file cannot be written, so only reads are served: look at the disk, and how it is mounted"
RESTORE = ": it is damaged as a whole, so restore a copy (maintenance.py restore)"
RESERVE_BYTES = 32 * 1024 * 1024  # kept free, because a deletion first needs room in the write-ahead log
FREE_PAGES_SECONDS = 1  # for so long it is known how many there are
INCREMENTAL = 2  # the value of SQLite's auto_vacuum; a file that an older server made does not have it


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


def last_written(database: Any) -> int:
    """Return the time that `probe` wrote last (Unix milliseconds), or 0 if it is not known."""
    with contextlib.suppress(*ERRORS):
        stamp = database.get(PROBE) or b""
        return int(stamp) if re.fullmatch(rb"[0-9]{1,15}", stamp) else 0  # an older server writes nothing there
    return 0


class FreePages(NamedTuple):
    """The bytes of the pages that the file does not need, whether it can become smaller by them, and when that was."""

    bytes: int
    can_shrink: bool
    read_at: float


class DbmWriter(DbmReader):
    """Reads and writes the file of a store. Only one server can have it open."""

    def __init__(self, path: Path, is_new: bool | None = None) -> None:
        """Open the file, or create it.

        `is_new` says whether there has to be a store (false), or whether an empty file is taken for none (true).
        If the file cannot be written, it can be read all the same, and `has_failed_commit` says so.

        Raise StorageUnavailable if another server has the file open, or if the file cannot be used.
        """
        super().__init__(path)
        self.tally = Tally()
        self.replica: Replica | None = None  # hears of each change, if there is to be a copy off the machine
        self.has_failed_commit = False
        self.writes = Writes()
        self.clock = ClockCheck(0)
        self.empty_log_at: float | None = None  # by the monotonic clock; something was erased, and is in the log
        self._changing = threading.Lock()  # the turn; see `turn`
        self._closed = ""  # the state of a store that is closed for good, as `server/migration.py` writes it
        self._lease: tuple[str, float] = ("", -math.inf)  # which run has closed it for a while, and until when
        self._free_pages = FreePages(0, False, -math.inf)
        self._file = StoreFile(path, FILE_FORMAT, is_new)
        self.is_made, self.erases, self.is_moved = self._file.is_made, True, False
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

    def _open(self) -> None:
        try:
            check_table(self.path)
            self._local.database = database = self._open_file("w")
            found = self._format(database)
            if found is None:
                raise StorageUnavailable(UNKNOWN_FORMAT)
            self.clock = ClockCheck(last_written(database))
            self._closed = migration.startable((database.get(CLOSED) or b"").decode())
            self.is_moved = bool(self._closed)
            self.has_failed_commit = True
            if not isinstance(database, FrozenFile):
                self._check_that_it_syncs()
                with contextlib.suppress(StorageUnavailable):  # if the disk is full, it has to wait
                    self.empty_log()  # a crash may have left there what was erased since
                self.overwrite_failed_commit()  # this shows whether the file can be written
            if self.has_failed_commit:
                log(event="storage_error", reason=f"{ONLY_READS}{whose(self.path)}")
                return
            # The last step: a server that knows only the former format can no longer open the file.
            if found == FORMER_FORMAT:
                database[b"format"] = FILE_FORMAT
        except ERRORS as error:
            remedy = RESTORE if sqlite_code(error) in DAMAGE else obstacle(self.path)
            raise StorageUnavailable(f"it cannot be used: {error}{remedy}") from None

    def _check_that_it_syncs(self) -> None:
        """Look at what dbm.sqlite3 requests but does not check (the log), and what it leaves to the library (syncs)."""
        with contextlib.closing(sqlite3.connect(self.address, uri=True)) as connection:
            names = ("journal_mode", "synchronous", "secure_delete")
            (journal,), (synchronous,), (erases,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in names)
        if journal != "wal" or synchronous < 2:
            raise StorageUnavailable(NOT_SYNCED)
        self.erases = bool(erases)  # Debian's SQLite does, and so does the one in the image

    def close(self) -> None:
        super().close()  # this thread's connection
        gc.collect()  # those of threads that have ended: a connection refers to itself
        try:
            with self.turn():
                self.write(super().close)  # the writer's connection, last: so it folds the write-ahead log in
        except StorageUnavailable:
            # SQLite recovers the file when it is next opened. The lock goes with the process, and with it the write.
            log(event="storage_error", reason="the file could not be closed")
            return
        lanes.stop(self._writer)
        self._file.close()

    @property
    def is_closed(self) -> bool:
        """Whether the accounts are being moved to another store, or have been."""
        return bool(self._closed) or time.monotonic() < self._lease[1]

    def close_for(self, run: str, seconds: float) -> None:
        """Let a run of `migrate` close the store for so long.

        When this returns, all changes that anybody will hear of have ended. Raise StorageUnavailable.
        """
        with self.turn():
            self._lease = run, time.monotonic() + seconds

    def renew(self, run: str, seconds: float) -> bool:
        """Keep the store closed for so long. Return false if the run has not kept it closed until now.

        Raise StorageUnavailable.
        """
        with self.turn():
            if is_kept := self._is_kept(run):
                self._lease = run, time.monotonic() + seconds
        return is_kept

    def _is_kept(self, run: str) -> bool:
        return self._lease[0] == run and time.monotonic() < self._lease[1]

    def close_for_good(self, run: str, state: str) -> bool:
        """Let the store stay closed, after a restart, too. Return false if the run has not kept it closed until now.

        Raise StorageUnavailable.
        """
        with self.turn():
            if not self._is_kept(run):
                return False
            self.write(functools.partial(self._put_state, state))
        return True

    def reopen(self) -> None:
        """Let the store take changes again. Raise StorageUnavailable."""
        with self.turn():
            self.write(functools.partial(self._put_state, ""))

    def _put_state(self, state: str) -> None:
        with self._database() as database:
            if state:
                database[CLOSED] = state.encode()
            elif CLOSED in database:
                del database[CLOSED]
        self._closed, self._lease = state, ("", -math.inf)

    def volume(self) -> Volume:
        """Return how much space there is. Raise StorageUnavailable."""
        counts = self.tally.counts
        disk, in_file = self.disk(), self.free_in_file().bytes
        free = max(0, disk.free + in_file - counts.given_up)
        return Volume(disk.total, free, counts.new_bytes, self.tally.grown_today())

    def disk(self) -> Any:
        try:
            return shutil.disk_usage(self.path.parent)
        except OSError as error:
            raise StorageUnavailable(str(error)) from None

    def free_in_file(self) -> FreePages:
        """Return the pages that the file did not need a second ago. SQLite uses them before the file grows."""
        if self._free_pages.read_at < time.monotonic() - FREE_PAGES_SECONDS:
            try:
                with contextlib.closing(sqlite3.connect(self.address, uri=True)) as connection:
                    names = ("freelist_count", "page_size", "auto_vacuum")
                    (count,), (size,), (vacuum,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in names)
            except sqlite3.Error as error:
                raise StorageUnavailable(str(error)) from None
            self._free_pages = FreePages(count * size, vacuum == INCREMENTAL, time.monotonic())
        return self._free_pages

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
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

    def check_open(self) -> None:
        """Raise Closed if the accounts are being moved."""
        if self.is_closed:
            raise Closed("the accounts are being moved")

    def write(self, change: Callable[[], None]) -> None:
        """Run `change` on the writing thread, and wait for it. Raise what it raises.

        Raise StorageUnavailable if it takes too long. Then it goes on, and keeps the turn.
        """
        self._last_write = write = self._start_write(change)
        try:
            if wait([write], bounds.DISK_SECONDS).not_done:
                log(event="storage_error", reason="a write takes too long")
                raise StorageUnavailable("a write takes too long")
            write.result()
            self.writes.succeeded()
        except StorageError as error:
            if not isinstance(error, Damaged):
                self.writes.failed()
            raise
        finally:
            del write  # see `run`

    def _start_write(self, change: Callable[[], None]) -> Future[None]:
        write: Future[None] = Future()
        started = self._writer.put(functools.partial(run, change, write))
        assert started, "changes take turns, so none waits for the writing thread"
        return write

    def check_space(self, size: int) -> None:
        """Raise StorageFull if `size` more bytes would use up the reserve."""
        on_disk = self.disk().free
        # A blob is written to the write-ahead log and then to the file. The third is a margin. The file may have room
        # for it in free pages, but the log grows on the disk.
        needed = RESERVE_BYTES + 3 * size
        if on_disk < needed and (
            on_disk + self.free_in_file().bytes < needed or on_disk < RESERVE_BYTES // 2 + 2 * size
        ):
            raise StorageFull("only the reserve is left")

    def put_blob(self, user_id: str, slot: int, data: bytes) -> None:
        with self._database() as database:
            database[blob_key(user_id, slot)] = data

    def put_row(self, user_id: str, before: Row | None, after: Row) -> None:
        """Replace a record. This is the commit of a change. When this returns, it is on disk."""
        try:
            with self._database() as database:
                database[user_key(user_id)] = after.to_bytes(user_id)
        except StorageError:
            self.has_failed_commit = True
            self.overwrite_failed_commit()
            raise
        self.tally.change(user_id, before.record if before else None, after.record)
        if self.replica and (before is None or before.record != after.record):
            self.replica.changed(user_id, after.record)

    def overwrite_failed_commit(self) -> None:
        """Write something else where the write-ahead log has a commit that failed. If this fails, do so again later.

        The next write goes to the same place in the log. It does so in the memory of the system, too, so that it helps
        against a crash of the server even if the disk still does not sync.
        """
        with contextlib.suppress(StorageError):
            self.probe()

    def probe(self) -> None:
        """Write something, to see whether it can be written. Raise StorageFull or StorageUnavailable."""
        with self._database() as database:
            database[PROBE] = str(self.clock.stamp()).encode()
            self.has_failed_commit = False

    def erase_blobs(self, user_id: str, row: Row) -> None:
        """Delete the blobs of a deleted user, including one that a crash may have left in the next slot."""
        for slot in range(row.slots_used + 1):
            self.erase_blob(user_id, slot)

    def erase_blob(self, user_id: str, slot: int) -> None:
        with self._database() as database, contextlib.suppress(KeyError):
            del database[blob_key(user_id, slot)]
        self.empty_log_soon()

    def erase_dropped(self, user_id: str, row: Row, slots: list[int]) -> None:
        """Make slots of a living account empty, and forget that they had something."""
        with self._database() as database:
            for slot in slots:
                database[blob_key(user_id, slot)] = b""
        left = tuple(each for each in row.dropped or () if each[0] not in slots)
        self.put_row(user_id, row, replace(row, dropped=left))
        self.empty_log_soon()

    def forget(self, user_id: str, row: Row) -> None:
        """Delete the record of a deleted user, and what may be left of the blobs."""
        self.erase_blobs(user_id, row)
        with self._database() as database:
            del database[user_key(user_id)]
        self.empty_log_soon()

    def empty_log_soon(self) -> None:
        if self.empty_log_at is None:
            self.empty_log_at = time.monotonic() + bounds.EMPTY_LOG_SECONDS

    def empty_log(self) -> None:
        """Move what is in the write-ahead log to the file, and cut the log off: it still has what was erased."""
        ((is_busy, _, _),) = self.maintain("PRAGMA wal_checkpoint(TRUNCATE)")
        self.empty_log_at = time.monotonic() + bounds.EMPTY_LOG_SECONDS if is_busy else None  # somebody is reading it

    def maintain(self, statement: str) -> list[Any]:
        """Run a statement that dbm.sqlite3 does not have, and return its rows. Raise StorageUnavailable.

        The writing thread calls this, so there is still one writer.
        """
        try:
            with contextlib.closing(sqlite3.connect(address(self.path, "rw"), uri=True, timeout=1)) as connection:
                return connection.execute(statement).fetchall()
        except sqlite3.Error as error:
            raise StorageUnavailable(str(error)) from None
