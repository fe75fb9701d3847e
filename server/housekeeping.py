"""Housekeeping: a thread that cleans up behind the changes, finds damage, and gives space back.

At the start, it counts, and finishes deletions that a crash cut short. Then it forgets deleted users, and makes rounds:
it visits each account to erase what was dropped and to find damage.
"""

import contextlib
import functools
import hashlib
import heapq
import itertools
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator

from server import bounds, clock, space
from server.accounts import (
    Account,
    Damaged,
    DamagedData,
    Deleted,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Version,
)
from server.clock import DAY
from server.dbm_reader import DAMAGE, KEY, Row, read_row, sqlite_code, user_key
from server.dbm_writer import DbmWriter
from server.log import log
from server.store_file import load_ballast

# The contract gives 10 minutes after a deletion, and 7 days after a version was dropped.
ERASE_DROPPED_AFTER = 6 * DAY
ROUND_EVERY = DAY // 2
COUNTED_AT_ONCE = 100  # users: a turn and a pause for each took minutes for 100,000
RETRY_SECONDS = 5  # after the disk has failed
LOOK_SECONDS = 1  # between two looks at the space and at the clock
ROUND_LATE = 3 * DAY  # a round takes minutes, and there are two a day
VERIFIED_EVERY = 7  # days: a part of the accounts each day
VERIFIED_BYTES_A_SECOND = 1024 * 1024  # so that it does not get in the way of requests, on a disk of 16 MiB/s
VERIFY_PAUSE_SECONDS = 0.2
SPARE_BYTES = 8 * 1024 * 1024  # stay in the file for the next uploads
SHRINK_PAGES = 256  # at a time: 1 MiB
TABLE = "SELECT rowid, CAST(key AS BLOB) FROM Dict NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT 100"
INDEX = "SELECT rowid FROM Dict INDEXED BY sqlite_autoindex_Dict_1 WHERE key = ?"


class Housekeeper:
    """Keeps house for a store, in a thread of its own, until it is told to stop."""

    def __init__(self, store: DbmWriter, reserved_seconds: int) -> None:
        """Take the store. A deleted userId stays reserved for `reserved_seconds`, then it is forgotten."""
        self.damaged: dict[str, str] = {}  # "record", "backup", "index", "key" or "table", by user or key
        self.is_tight = False  # little space is left, as of a moment ago
        self._store = store
        self._reserved_milliseconds = reserved_seconds * 1000
        # A heap of (when to forget, by the monotonic clock, which nobody sets; userId; the time in the record).
        self._deleted: list[tuple[int, str, int]] = []
        self._unerased: deque[str] = deque()  # deleted users whose blobs have still to be erased
        self._round: Iterator[str] = iter(())  # the users whom the current round has still to visit
        self._next_round = clock.monotonic()
        self.round_ended = clock.monotonic()  # or the start
        self._to_verify: list[tuple[str, Version, float]] = []  # of the user who was visited last
        self._next_look = 0.0  # by the monotonic clock of this machine, like the next one
        self._next_probe = time.monotonic() + bounds.PROBE_SECONDS  # the store has just been opened, which writes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop. Whatever waits for a stalled disk is left behind."""
        self._stopping.set()
        self._thread.join(bounds.TURN_SECONDS)

    def look_soon(self) -> None:
        """Begin the next round now."""
        self._next_round = clock.monotonic()

    def forget_later(self, user_id: str, record: Deleted) -> None:
        """Forget a deleted user when the userId is no longer reserved. The caller has the turn."""
        reserved = record.deleted_at + self._reserved_milliseconds - clock.now()
        left = min(max(reserved, 0), self._reserved_milliseconds)  # a stamp may be in the future
        heapq.heappush(self._deleted, (clock.monotonic() + left, user_id, record.deleted_at))

    def erase_deleted(self, user_id: str) -> None:
        """Erase the blobs of a deleted user now, or as soon as the disk lets it."""
        try:
            self._erase_in_turns(user_id)
        except StorageError:  # it is logged
            self._unerased.append(user_id)

    def _erase_in_turns(self, user_id: str) -> None:
        """Delete the blobs of a deleted user, each in a turn of its own. Together, they can take many seconds."""
        for slot in itertools.count():
            with self._store.turn():
                row = self._store.row(user_id)
                if not row or not isinstance(row.record, Deleted) or slot > row.slots_used:
                    return
                self._store.write(functools.partial(self._store.erase_blob, user_id, slot))
            self._stopping.wait(0.001)  # let others have their turn

    def _keep_house(self) -> None:
        users: list[str] | None = None  # still to count
        while not self._stopping.is_set():
            try:
                self._look_around()
                if users is None:
                    users = self._users()
                elif users:
                    uncounted = users[-COUNTED_AT_ONCE:]
                    self._count(uncounted)
                    del users[-len(uncounted) :]  # not before: nobody else would count them
                    self._stopping.wait(0.001)  # leave the disk to the requests
                elif not self._store.tally.is_complete.is_set():
                    self._end_counting()
                elif self._store.has_failed_commit or self._store.writes.are_failing or self._is_probe_due():
                    self._probe()
                elif self._unerased:
                    with contextlib.suppress(Damaged):  # it is noted when the userId is to be forgotten
                        self._erase_in_turns(self._unerased[0])
                    self._unerased.popleft()
                elif self._deleted and self._deleted[0][0] <= clock.monotonic():
                    self._forget_next()
                elif self._store.empty_log_at is not None and self._store.empty_log_at <= time.monotonic():
                    with self._store.turn():
                        self._store.write(self._store.empty_log)
                elif self._to_verify:
                    self._stopping.wait(self._verify(*self._to_verify.pop()))
                elif user_id := next(self._round, None):
                    self._look_after(user_id)
                elif self._next_round <= clock.monotonic():
                    self._next_round = clock.monotonic() + ROUND_EVERY
                    self._round = self._walk()
                    self._store.empty_log_soon()
                elif self._shrink():
                    self._stopping.wait(0.01)
                else:
                    with contextlib.suppress(OSError):
                        load_ballast(self._store.path)
                    self._stopping.wait(1)
            except (StorageFull, StorageUnavailable):  # it is logged, and the disk may work again in a while
                self._stopping.wait(RETRY_SECONDS)
            except Exception as error:  # whatever it is, the next step may succeed
                log.error(error)
                self._stopping.wait(1)

    def _look_around(self) -> None:
        """Look at the space and at the clock, whatever else there is to do."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        with contextlib.suppress(StorageUnavailable):
            self.is_tight = self._has_little_space()
        was_off, ahead = self._store.clock.is_off, self._store.clock.look()
        if self._store.clock.is_off != was_off:
            log(event="clock", state="off" if self._store.clock.is_off else "right", aheadSeconds=ahead // 1000)

    def _has_little_space(self) -> bool:
        """Return whether accounts may not grow, or whether nothing may be stored at all."""
        try:
            self._store.check_space(0)
        except StorageFull:
            return True
        return space.is_below(self._store.volume(), space.GROWTH_MARK)

    def _probe(self) -> None:
        self._next_probe = time.monotonic() + bounds.PROBE_SECONDS
        try:
            with self._store.turn():
                self._store.write(self._store.probe)
        except Damaged:  # the next round finds out more
            self._note_damage("the index", "index")
            self.look_soon()
            self._stopping.wait(RETRY_SECONDS)

    def _is_probe_due(self) -> bool:
        return time.monotonic() >= self._next_probe

    def is_late(self) -> bool:
        """Return whether no round has ended for days, so that nobody has looked for damage."""
        return clock.monotonic() - self.round_ended > ROUND_LATE

    def _users(self) -> list[str]:
        """Return all userIds, through a connection of this thread, so that no writer waits for it."""
        try:
            return list(self._store.user_ids())
        except Damaged:
            self._note_damage("the index", "index")
            return list(self._walk())

    def _count(self, user_ids: list[str]) -> None:
        """Count users. If one is deleted, erase what a crash may have left, and forget it when the time comes.

        The records are read without the turn, so that nobody waits for the disk. If one has changed since then, the
        change has counted the user, and the old record is not used.
        """
        rows: dict[str, Row | None] = {}
        for user_id in user_ids:
            try:
                rows[user_id] = self._store.row(user_id)
            except Damaged:
                self._note_damage(user_id, "record")
        with self._store.turn():
            for user_id, row in rows.items():
                if row and isinstance(row.record, Deleted) and self._store.tally.is_new(user_id):
                    self.forget_later(user_id, row.record)
                    self._unerased.append(user_id)
                self._store.tally.visit(user_id, row.record if row else None)

    def _end_counting(self) -> None:
        with self._store.turn():
            self._store.tally.end()

    def _walk(self) -> Iterator[str]:
        """Yield all userIds in the table. On the way, compare the table with its index, and mend the index."""
        last, is_table_right = -1, True
        while True:
            try:
                with contextlib.closing(sqlite3.connect(self._store.address, uri=True)) as connection:
                    connection.execute("BEGIN")  # so that both are of one moment
                    rows = connection.execute(TABLE, (last,)).fetchall()
                    wrong = [key for rowid, key in rows if connection.execute(INDEX, (key,)).fetchone() != (rowid,)]
            except sqlite3.Error as error:
                if sqlite_code(error) not in DAMAGE:
                    self.look_soon()  # this round is over
                    raise StorageUnavailable(str(error)) from None
                # Where the table goes on is not known. The index may know the other users.
                self._note_damage("the table", "table")
                yield from self._store.user_ids()
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
        self.round_ended = clock.monotonic()
        if self._store.has_damaged_index and is_table_right:
            with self._store.turn():
                self._store.write(self._rebuild_index)

    def _is_right(self, key: bytes) -> bool:
        """Return whether a key in the table belongs to its value. If so, its copy in the index is wrong."""
        match, value = KEY.fullmatch(key), self._store.in_table(key) or b""
        if not match:
            return False
        user, owner, slot = match.groups()
        try:
            if user:
                read_row(user.decode(), value)
            elif owner and value:
                row = read_row(owner.decode(), self._store.in_table(user_key(owner.decode())) or b"")
                version = dict(zip(row.slots, row.versions, strict=True)).get(int(slot))
                return version is not None and version.sha256 == hashlib.sha256(value).hexdigest()
        except Damaged:
            return False
        return True

    def _rebuild_index(self) -> None:
        """Make the index anew from the table. This reads much of the file."""
        self._store.maintain("REINDEX Dict")
        self._store.has_damaged_index = False
        self.damaged = {what: kind for what, kind in self.damaged.items() if kind != "index"}
        log(event="index_rebuilt")

    def _shrink(self) -> bool:
        """Give free pages back to the file system, some at a time. Return whether there may be more."""
        free = self._store.free_in_file()
        if not free.can_shrink or free.bytes < SPARE_BYTES:
            return False
        with self._store.turn():
            self._store.write(self._shrink_by_some)
        return True

    def _shrink_by_some(self) -> None:
        self._store.maintain(f"PRAGMA incremental_vacuum({SHRINK_PAGES})")
        self._store.empty_log_soon()  # the file is cut off when the log is emptied

    def _look_after(self, user_id: str) -> None:
        """Erase what a user dropped a while ago. Verify everything of a part of the users each day."""
        before = self.damaged.pop(user_id, None)
        try:
            row = self._store.row(user_id)
            if row and self._to_erase(user_id, row):
                with self._store.turn():
                    row = self._store.row(user_id)
                    if row and (slots := self._to_erase(user_id, row)):
                        self._store.write(functools.partial(self._store.erase_dropped, user_id, row, slots))
            if zlib.crc32(user_id.encode()) % VERIFIED_EVERY == clock.now() // DAY % VERIFIED_EVERY or before:
                self._to_verify = [(user_id, version, 0) for version in row.versions] if row else []
        except Damaged:
            self._note_damage(user_id, "record")
        except StorageError:
            if before:  # nobody has seen that it is over
                self.damaged[user_id] = before
            raise
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
            self._store.data(user_id, version)
        except DamagedData:
            self._note_damage(user_id, "backup")
        except StorageUnavailable:
            self._to_verify.append((user_id, version, waited))  # look again when the disk works
            raise
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

        def is_due(slot: int) -> bool:
            if slot in dropped:
                return not now - ERASE_DROPPED_AFTER < dropped[slot] <= now
            return bool(self._store.blob(user_id, slot))

        return [slot for slot in row.unnamed if is_due(slot)]

    def _note_damage(self, what: str, kind: str) -> None:
        self._store.has_damaged_index |= kind == "index"
        if what not in self.damaged and len(self.damaged) < bounds.DAMAGED:
            self.damaged[what] = kind
            log(event="damage", kind=kind, damaged=len(self.damaged))

    def _forget_next(self) -> None:
        with contextlib.suppress(Damaged):  # see below
            self._erase_in_turns(self._deleted[0][1])
        with self._store.turn():
            first = _, user_id, deleted_at = heapq.heappop(self._deleted)
            try:
                row = self._store.row(user_id)
                # Since then, the account may have been registered again, and even deleted again.
                if row and isinstance(row.record, Deleted) and row.record.deleted_at == deleted_at:
                    self._store.write(functools.partial(self._store.forget, user_id, row))
            except (StorageFull, StorageUnavailable):  # try again later
                heapq.heappush(self._deleted, first)
                raise
            except Damaged:  # the others have their turn
                self._note_damage(user_id, "record")
