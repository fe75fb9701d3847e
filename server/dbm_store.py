"""A store of accounts in one file. It uses `dbm.sqlite3` of Python's standard library.

`user/{userId}` holds a record. Every change replaces the whole record with one put, which is the commit of the change.
`blob/{userId}/{slot}` holds the bytes of a version. An upload overwrites a slot that the record does not name, then
replaces the record. So each change happens completely or not at all, an upload deletes nothing, and the file does not
keep growing. Housekeeping, in the background, cleans up behind it: it erases what was deleted or dropped.

Slot 0 of an account exists as long as the account lives. So if a record is missing, but its slot 0 is not, the record
did not go by itself: a damaged index is not taken for an account that does not exist.

`dbm_reader.py` reads the file, `dbm_writer.py` writes it, `housekeeping.py` cleans up, and this module makes the
changes out of their parts.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from server import clock
from server.accounts import (
    Account,
    Deleted,
    HeldAccount,
    Stats,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Store,
    Version,
    nothing,
)
from server.dbm_reader import Row
from server.dbm_writer import DbmWriter
from server.health import PARTS
from server.housekeeping import Housekeeper
from server.space import takes_accounts
from server.store_file import beside, drop_ballast


class DbmStore(DbmWriter, Store):
    """Accounts in one file. Only one server can have it open."""

    def __init__(self, path: Path, reserved_seconds: int, is_new: bool | None = None) -> None:
        """Open the file, or create it. A deleted userId stays reserved for `reserved_seconds`, then it is forgotten.

        `is_new` says whether there has to be a store (false), or whether an empty file is taken for none (true).
        If the file cannot be written, the store can be read all the same, and `degraded` says so.

        Raise StorageUnavailable if another server has the file open, or if the file cannot be used.
        """
        super().__init__(path, is_new)
        self.housekeeper = Housekeeper(self, reserved_seconds)
        self.housekeeper.start()

    def close(self) -> None:
        self.housekeeper.stop()
        super().close()

    @contextlib.contextmanager
    def account(self, user_id: str) -> Iterator[HeldAccount]:
        with self.turn():
            held = HeldRow(self, user_id, self.row(user_id))
            yield held
        if held.is_deleted:
            self.housekeeper.erase_deleted(user_id)

    def stats(self) -> Stats:
        if not self.tally.is_complete.wait(2):
            raise StorageUnavailable("the accounts are still being counted", retry_after=1)
        files = [self.path, beside(self.path, "-wal")]
        size = sum(file.stat().st_size for file in files if file.exists())
        counts, house = self.tally.counts, self.housekeeper
        return Stats(
            users=counts.users,
            backups=counts.backups,
            versions=counts.versions,
            database_bytes=size,
            free_bytes=self.volume().free,
            damaged=len(house.damaged),
            round_seconds=(clock.monotonic() - house.round_ended) / 1000,
            copy_lag_seconds=self.replica.lag_seconds() if self.replica else None,
            copy_compared_seconds=self.replica.compared_seconds() if self.replica else None,
        )

    def degraded(self) -> list[str]:
        house = self.housekeeper
        parts = {
            "writes": self.has_failed_commit or self.writes.have_failed_lately(),
            "space": house.is_tight,
            "scrub": house.damaged or house.is_late(),
            "clock": self.clock.is_off,
            "copies": self.replica and self.replica.is_degraded(),
        }
        return [name for name in PARTS if parts[name]]

    def suspect_index(self) -> None:
        self.housekeeper.look_soon()


class HeldRow(HeldAccount):
    """An account that nobody else can change, because this thread has the turn."""

    def __init__(self, store: DbmStore, user_id: str, row: Row | None) -> None:
        self._store, self._user_id, self.row = store, user_id, row
        self.record = row.record if row else None
        self.is_deleted = False  # by this block

    def create(self, account: Account) -> None:
        self._store.check_open()
        self._store.check_space(0)
        if not takes_accounts(self._store.volume()):
            raise StorageFull("there is no room for more accounts")
        self._store.write(functools.partial(self._create, Row(account, slots_used=1)))

    def _create(self, after: Row) -> None:
        if self.row:  # the row of a deleted user
            self._store.erase_blobs(self._user_id, self.row)
        self._store.put_row(self._user_id, self.row, after)
        # The sign that there is an account. It comes last, or a crash could leave it without a record.
        self._store.put_blob(self._user_id, 0, b"")

    def append(
        self, account: Account, data: bytes, on_commit: Callable[[], None] = nothing, gives_back: bool = False
    ) -> None:
        self._store.check_open()
        self._store.check_space(len(data))
        before = self._living()
        slot = before.next_slot()
        slots = dict(zip(before.versions, before.slots, strict=True)) | {account.versions[-1]: slot}
        after = Row(
            account,
            slots=tuple(slots[version] for version in account.versions),
            slots_used=max(before.slots_used, slot + 1),
            dropped=before.dropped_with(account, slot),
        )
        self._store.write(functools.partial(self._append, after, slot, data, on_commit, gives_back))

    def _append(self, after: Row, slot: int, data: bytes, on_commit: Callable[[], None], gives_back: bool) -> None:
        self._store.put_blob(self._user_id, slot, data)
        self._store.put_row(self._user_id, self.row, after)
        on_commit()
        if gives_back and (slots := [slot for slot, _ in after.dropped or ()]):
            with contextlib.suppress(StorageError):  # the version is stored, and the slots are erased some time later
                self._store.erase_dropped(self._user_id, after, slots)

    def mend(self, version: Version, data: bytes) -> None:
        slot = self._living().slot(version)
        if slot is not None and self._store.blob(self._user_id, slot) != data:
            self._store.write(functools.partial(self._store.put_blob, self._user_id, slot, data))

    def delete(self, moment: int, on_commit: Callable[[], None] = nothing, by_operator: bool = False) -> None:
        self._store.check_open()
        if isinstance(self.record, Deleted):
            by_operator = self.record.by_operator
        self._store.write(functools.partial(self._delete, Deleted(moment, by_operator), on_commit))
        self.is_deleted = True

    def _delete(self, deleted: Deleted, on_commit: Callable[[], None]) -> None:
        before = self.row
        assert before, "only what exists can be deleted"
        after = Row(deleted, slots_used=before.slots_used)
        try:
            try:
                self._store.put_row(self._user_id, before, after)
            except StorageFull:
                if not drop_ballast(self._store.path):
                    raise
                self._store.put_row(self._user_id, before, after)
        except StorageFull as error:  # a deletion needs no lasting space, so a retry may work soon
            raise StorageUnavailable(str(error)) from None
        on_commit()
        self._store.empty_log_soon()  # the log has the digest of the key
        self._store.housekeeper.forget_later(self._user_id, deleted)

    def _living(self) -> Row:
        assert self.row and isinstance(self.row.record, Account), "only an existing account can be changed"
        return self.row
