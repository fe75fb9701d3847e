"""A store of accounts in a database that speaks the protocol of PostgreSQL. Any number of servers share it.

`account` has a row for each account, with its record. `backup` has the bytes of each kept version. A change locks the
row of its account, and is one transaction: it happens completely or not at all. What is deleted or dropped is deleted
in the same transaction, so there is nothing to clean up behind it.

`database.py` knows the database, `reader.py` reads, `tables.py` keeps what limits have counted, and
`housekeeping.py` forgets and verifies.
"""

import contextlib
import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from server import clock, migration, records, tables
from server.accounts import (
    Account,
    Closed,
    Deleted,
    HeldAccount,
    Record,
    Stats,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Store,
    Version,
    Volume,
    nothing,
)
from server.counts import Counts, growth_of
from server.health import PARTS, Writes
from server.postgres.database import NOW, SHARDS, Conflict, Connection, again, prepare
from server.postgres.housekeeping import Housekeeper
from server.postgres.reader import DATA, FIND, PostgresReader
from server.postgres.tables import AHEAD, PostgresTables
from server.space import RECORD_BYTES, size_of, takes_accounts

COUNT = (
    "UPDATE tally SET users = users + %s, backups = backups + %s, versions = versions + %s, new_bytes = new_bytes + %s,"
    " given_up = given_up + %s, bytes = bytes + %s, grown = CASE WHEN day = %s THEN grown ELSE 0 END + %s, day = %s"
    " WHERE shard = %s"
)
COUNT_IF_OPEN = f"{COUNT} AND closed_until < {NOW}"
SUMS = "SELECT sum(users), sum(backups), sum(versions), sum(new_bytes), sum(given_up), sum(bytes) FROM tally"
SPACE = (
    "SELECT sum(users), sum(bytes), sum(given_up), sum(new_bytes), sum(CASE WHEN day = %s THEN grown ELSE 0 END)"
    " FROM tally"
)


CLOSED = "the accounts are being moved"


class PostgresStore(PostgresReader, Store):
    """Accounts in a database."""

    keeps_counts = True

    def __init__(
        self, url: str, database_bytes: int, reserved_seconds: int, hash_key: bytes, is_new: bool | None = None
    ) -> None:
        """Open the database, or make the tables. It may have `database_bytes` bytes.

        A deleted userId stays reserved for `reserved_seconds`, then it is forgotten. `hash_key` is a secret of all
        servers. `is_new` says whether there has to be a store (false), or whether an empty database is taken for none
        (true). Raise StorageUnavailable.
        """
        super().__init__(url)
        self._bytes, self._reserved_milliseconds = database_bytes, reserved_seconds * 1000
        self.writes = Writes()
        tables.HASH_KEY = hashlib.sha256(hash_key).digest()  # what one server counts, the others look up
        try:
            self.is_made = prepare(self.database, is_new)
            self.check()
            self.is_moved = bool(migration.startable(self.state()))
            self.housekeeper = Housekeeper(self, self.volume, self.writes)
        except StorageUnavailable:
            super().close()
            raise

    def close(self) -> None:
        self.housekeeper.close()
        super().close()

    def stats(self) -> Stats:
        ((users, backups, versions, *_, size),) = self.database.read(SUMS)
        ((round_ended, damaged),) = self.database.read("SELECT round_ended, (SELECT count(*) FROM damage) FROM scrub")
        return Stats(
            users=int(users),
            backups=int(backups),
            versions=int(versions),
            database_bytes=int(size + RECORD_BYTES * users),
            free_bytes=self.volume().free,
            damaged=damaged,
            round_seconds=max(0, clock.now() - round_ended) / 1000,
        )

    def volume(self) -> Volume:
        ((users, size, given_up, new_bytes, grown),) = self.database.read(SPACE, (clock.now() // clock.DAY,))
        used = size + RECORD_BYTES * users
        return Volume(self._bytes, int(max(0, self._bytes - used - given_up)), int(new_bytes), int(grown))

    def connections(self) -> dict[str, float]:
        return self.database.connections()

    def degraded(self) -> list[str]:
        house = self.housekeeper
        parts = {
            "writes": self.writes.have_failed_lately(),
            "space": house.is_tight,
            "scrub": house.damaged or house.is_late,
            "clock": house.clock.is_off,
            "copies": False,
        }
        return [name for name in PARTS if parts[name]]

    # ---- Changing

    def tables(self, group: str) -> PostgresTables:
        return PostgresTables(self.database, group)

    def run[Result](self, work: Callable[[], Result]) -> Result:
        return again(work)

    @contextlib.contextmanager
    def account(self, user_id: str) -> Iterator[HeldAccount]:
        with self.database.transaction() as connection:
            with self.database.translated():
                with connection.pipeline():  # the transaction begins on the same way
                    found = connection.execute(FIND + " FOR UPDATE", (user_id,))
                rows = found.fetchall()
            yield HeldRow(self, connection, user_id, records.from_bytes(user_id, rows[0][0])[0] if rows else None)

    def reserved_until(self, deleted_at: int) -> int:
        """Return until when a deleted userId is reserved (Unix milliseconds). The stamp may be in the future."""
        return min(deleted_at, clock.now()) + self._reserved_milliseconds


def hash_key(url: str, admin_key: str | None) -> bytes:
    """Return what all servers know, and neither the database nor a client does."""
    return f"{admin_key or ''} {url}".encode()


class HeldRow(HeldAccount):
    """An account whose row is locked. If there is none yet, only one of those who create it succeeds."""

    def __init__(self, store: PostgresStore, connection: Connection, user_id: str, record: Record | None) -> None:
        self._store, self._connection, self._user_id, self.record = store, connection, user_id, record
        self._counted: Any = None  # the cursor of the statement that counts
        if isinstance(record, Account) and record.uploads:  # what another server has just counted is not in the future
            ahead = record.uploads[-1].moment - clock.now()
            time.sleep(ahead / 1000 if 0 < ahead <= AHEAD else 0)

    def create(self, account: Account) -> None:
        if not takes_accounts(self._store.volume()):
            raise StorageFull("there is no room for more accounts")
        record = records.to_bytes(self._user_id, account)
        if self.record is not None:  # a deleted user
            with self._change():
                self._put(record, None)
                self._count(account)
            return
        with self._change(has_pipeline=False):
            query = "INSERT INTO account (user_id, record) VALUES (%s, %s) ON CONFLICT (user_id) DO NOTHING"
            if not self._connection.execute(query, (self._user_id, record)).rowcount:
                raise Conflict("somebody else has just created this account")
            self._count(account)

    def append(
        self, account: Account, data: bytes, on_commit: Callable[[], None] = nothing, gives_back: bool = False
    ) -> None:
        if self._store.volume().free < len(data):
            raise StorageFull("there is no space left")
        kept = [version.number for version in account.versions]
        with self._change(on_commit):
            self._connection.execute("INSERT INTO backup VALUES (%s, %s, %s)", (self._user_id, kept[-1], data))
            self._connection.execute(
                "DELETE FROM backup WHERE user_id = %s AND NOT version = ANY(%s)", (self._user_id, kept)
            )
            self._put(records.to_bytes(self._user_id, account), None)
            self._count(account)

    def mend(self, version: Version, data: bytes) -> None:
        where = (self._user_id, version.number)
        with self._store.database.translated():
            stored = self._connection.execute(DATA, where).fetchall()
        if stored != [(data,)]:
            with self._change():
                self._connection.execute("DELETE FROM backup WHERE user_id = %s AND version = %s", where)
                self._connection.execute("INSERT INTO backup VALUES (%s, %s, %s)", (*where, data))

    def delete(self, moment: int, on_commit: Callable[[], None] = nothing, by_operator: bool = False) -> None:
        if isinstance(self.record, Deleted):
            by_operator = self.record.by_operator
        deleted = Deleted(moment, by_operator)
        try:
            with self._change(on_commit):
                self._connection.execute("DELETE FROM backup WHERE user_id = %s", (self._user_id,))
                self._put(records.to_bytes(self._user_id, deleted), self._store.reserved_until(moment))
                self._count(deleted)
        except StorageFull as error:  # it needs no lasting space, so a retry may work soon
            raise StorageUnavailable(str(error)) from None

    @contextlib.contextmanager
    def _change(self, on_commit: Callable[[], None] = nothing, has_pipeline: bool = True) -> Iterator[None]:
        """Send the statements of this block at once, and commit. Call `on_commit` right before that, too.

        A server that ends right after the commit must not leave undone what belongs to it.
        """
        try:
            database = self._store.database
            with database.translated(), self._connection.pipeline() if has_pipeline else contextlib.nullcontext():
                yield
            if self._counted and not self._counted.rowcount:
                raise Closed(CLOSED)
            on_commit()  # not earlier: the database may have refused the change
            with database.translated(is_ended=True):
                self._connection.commit()
        except (Conflict, Closed):
            raise
        except StorageError:
            self._store.writes.failed()
            raise
        self._store.writes.succeeded()
        on_commit()

    def _put(self, record: bytes, forget_at: int | None) -> None:
        query = "UPDATE account SET record = %s, forget_at = %s WHERE user_id = %s"
        self._connection.execute(query, (record, forget_at, self._user_id))

    def _count(self, after: Record) -> None:
        """Count the new record in place of the one from before. This comes last: others wait for the row.

        If the store is closed, this changes no row.
        """
        grown = growth_of(self.record, after) if self.record else 0
        values = counted(self._user_id, self.record, after, grown)
        self._counted = self._connection.execute(COUNT_IF_OPEN, values)


def counted(user_id: str, before: Record | None, after: Record | None, grown: int) -> tuple[int, ...]:
    """Return the values for COUNT if a record is counted in place of the one from before."""
    changes = [new - old for old, new in zip(summed(before), summed(after), strict=True)]
    day = clock.now() // clock.DAY
    return (*changes, day, grown, day, zlib.crc32(user_id.encode()) % SHARDS)


def summed(record: Record | None) -> tuple[Any, ...]:
    return (*Counts.of(record), size_of(record.versions) if isinstance(record, Account) else 0)
