"""A database as a source or a target of a migration (server/migration.py), and what an operator sees of it.

Whoever closes the store changes all rows of `tally`, and so waits for each change that has counted there. A change that
comes later finds its row closed, and does not happen. A run that fills a database writes only as long as these rows
name it, so of two runs, only the later one goes on.
"""

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator

from server import bounds, clock, operator, records
from server.accounts import Account, Damaged, Record, StorageError, StorageUnavailable, Version
from server.guessing import Guessing
from server.inspection import UNREADABLE, Damage, Report, Seen, Usage
from server.migration import FILLING, Changed, Data, Impossible, Lapsed, Side, check_target
from server.postgres.database import FOR_GOOD, NOW, Connection, again, check_schema, prepare
from server.postgres.reader import DATA, FIND, PostgresReader
from server.postgres.store import COUNT, PostgresStore, counted, hash_key, summed

__all__ = ["hash_key", "opened", "remove", "reopen", "usages", "verify"]

ROWS = "SELECT user_id, record FROM account WHERE user_id > %s ORDER BY user_id LIMIT 100"
COUNT_IN_RUN = f"{COUNT} AND closed_by = %s"
SUMMED = ("users", "backups", "versions", "new_bytes", "given_up", "bytes")
SUMS = f"SELECT {', '.join(f'sum({name})' for name in SUMMED)} FROM tally"
STRAY = (
    "SELECT user_id, version FROM backup WHERE user_id >= %s AND user_id < %s AND NOT EXISTS"
    " (SELECT 1 FROM account WHERE account.user_id = backup.user_id) ORDER BY user_id LIMIT 100"
)
PARTS = [f"{number:02x}" for number in range(256)] + ["g"]  # of the userIds, so that no statement takes too long


class PostgresSide(Side):
    """A database."""

    def __init__(self, store: PostgresReader, reserved_seconds: int) -> None:
        """A userId that was deleted stays reserved for `reserved_seconds`."""
        self._store, self._database = store, store.database
        self._reserved_milliseconds = reserved_seconds * 1000
        self._filling = ""  # the state while this run fills it
        ((self.name,),) = self._database.read("SELECT name FROM identity")

    # ---- Both

    def state(self) -> str:
        return self._store.state()

    def rows(self) -> Iterator[tuple[str, bytes]]:
        last = ""
        while page := self._database.read(ROWS, (last,)):
            yield from page
            last = page[-1][0]

    def record(self, user_id: str, row: bytes) -> Record:
        return record_of(user_id, row)

    def find(self, user_id: str) -> Record | None:
        rows = self._database.read(FIND, (user_id,))
        return record_of(user_id, rows[0][0]) if rows else None

    def data(self, user_id: str, version: Version) -> bytes | None:
        return self._store.data(user_id, version)

    # ---- As a source

    # Each may run twice: if a connection breaks, nobody knows whether its commit has happened.

    def close_for(self, run: str, seconds: int) -> None:
        def close(connection: Connection) -> None:
            if any(until == FOR_GOOD for _, until in self._closings(connection)):
                raise Impossible("the store was closed for good by another run")
            self._set(connection, f"{NOW} + {1000 * seconds}", run)

        self._in_turn(close)

    def renew(self, run: str, seconds: int) -> None:
        def renew(connection: Connection) -> None:
            self._check_kept(connection, self._closings(connection), run)
            self._set(connection, f"{NOW} + {1000 * seconds}", run)

        self._in_turn(renew)

    def close_for_good(self, run: str, state: str) -> None:
        def close(connection: Connection) -> None:
            closings = self._closings(connection)
            if any(each != (state, FOR_GOOD) for each in closings):
                self._check_kept(connection, closings, run)
                self._set(connection, str(FOR_GOOD), state)

        self._in_turn(close)

    def _closings(self, connection: Connection) -> list[tuple[str, int]]:
        """Return by whom the store is closed, and until when. No change passes until the commit."""
        found = connection.execute("SELECT closed_by, closed_until FROM tally ORDER BY shard FOR UPDATE").fetchall()
        return [(by, until) for by, until in found]

    def _check_kept(self, connection: Connection, closings: list[tuple[str, int]], run: str) -> None:
        ((now,),) = connection.execute(f"SELECT {NOW}").fetchall()  # after the last lock
        if any(by != run or until <= now or until == FOR_GOOD for by, until in closings):
            raise Lapsed

    def _set(self, connection: Connection, until: str, by: str) -> None:
        connection.execute(f"UPDATE tally SET closed_until = {until}, closed_by = %s", (by,))  # noqa: S608 - ours

    def _in_turn[Result](self, work: Callable[[Connection], Result]) -> Result:
        """Do some work in a transaction. If the lock takes too long, since there are many changes, try it again."""

        def in_transaction() -> Result:
            with self._database.transaction() as connection, self._database.translated():
                return work(connection)

        for _ in range(bounds.DATABASE_ATTEMPTS):
            with contextlib.suppress(StorageUnavailable):
                return again(in_transaction)
        return again(in_transaction)

    # ---- As a target

    def begin(self, source: str, state: str) -> None:
        def begin(connection: Connection) -> None:
            before = next((by for by, until in self._closings(connection) if until == FOR_GOOD), "")
            is_empty = not connection.execute("SELECT 1 FROM account LIMIT 1").fetchall()
            check_target(before, source, is_empty)
            self._set(connection, str(FOR_GOOD), state)

        self._in_turn(begin)
        self._filling = state

    def put(self, user_id: str, record: Record, data: Data, whole: bool = False) -> None:
        self._in_turn(lambda connection: self._put(connection, user_id, record, data, whole))

    def _put(self, connection: Connection, user_id: str, record: Record, data: Data, whole: bool) -> None:
        before = self._locked(connection, user_id)
        there = {number for (number,) in connection.execute(VERSIONS, (user_id,)).fetchall()}
        kept = [each for each in versions_of(before) if each.number in there and not whole]
        wanted = [each for each in versions_of(record) if each not in kept]
        numbers = [each.number for each in versions_of(record) if each in kept]
        connection.execute("DELETE FROM backup WHERE user_id = %s AND NOT version = ANY(%s)", (user_id, numbers))
        for version in wanted:
            found = data(version)
            if found is None:
                raise Changed
            connection.execute("INSERT INTO backup VALUES (%s, %s, %s)", (user_id, version.number, found))
        forget_at = None if isinstance(record, Account) else self._reserved_until(record.deleted_at)
        values = (user_id, records.to_bytes(user_id, record), forget_at)
        connection.execute(PUT, values)
        self._count(connection, user_id, before, record)

    def remove(self, user_id: str) -> None:
        def remove(connection: Connection) -> None:
            before = self._locked(connection, user_id)
            connection.execute("DELETE FROM backup WHERE user_id = %s", (user_id,))
            connection.execute("DELETE FROM account WHERE user_id = %s", (user_id,))
            self._count(connection, user_id, before, None)

        self._in_turn(remove)

    def _locked(self, connection: Connection, user_id: str) -> Record | None:
        rows = connection.execute(FIND + " FOR UPDATE", (user_id,)).fetchall()
        return record_of(user_id, rows[0][0]) if rows else None

    def _count(self, connection: Connection, user_id: str, before: Record | None, after: Record | None) -> None:
        values = (*counted(user_id, before, after, 0), self._filling)
        if not connection.execute(COUNT_IN_RUN, values).rowcount:
            raise Impossible("another run of the migration has begun")

    def _reserved_until(self, deleted_at: int) -> int:
        return min(deleted_at, clock.now()) + self._reserved_milliseconds

    def check_sums(self) -> None:
        report = Report()
        check_sums(self._store, report)
        if report.damage:
            raise Impossible("the sums of the target are not those of its accounts: begin with an empty database")

    def reopen(self) -> None:
        """Open what this run has filled, or what was moved."""

        def reopen(connection: Connection) -> None:
            states = {by for by, until in self._closings(connection) if until == FOR_GOOD}
            if self._filling and states - {self._filling}:
                raise Impossible("another run of the migration has begun")
            self._set(connection, "0", "")

        self._in_turn(reopen)


VERSIONS = "SELECT version FROM backup WHERE user_id = %s"
PUT = (
    "INSERT INTO account (user_id, record, forget_at) VALUES (%s, %s, %s)"
    " ON CONFLICT (user_id) DO UPDATE SET record = excluded.record, forget_at = excluded.forget_at"
)


def versions_of(record: Record | None) -> tuple[Version, ...]:
    return record.versions if isinstance(record, Account) else ()


def record_of(user_id: str, row: bytes) -> Record:
    try:
        return records.from_bytes(user_id, row)[0]
    except UNREADABLE as error:
        raise Damaged(str(error)) from None


# --- Opening ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reader(url: str, is_made: bool = False) -> Iterator[PostgresReader]:
    """Open a store in a database, to look at it. If `is_made`, make it if there is none."""
    with contextlib.closing(PostgresReader(url)) as store:
        store.check()
        if is_made:
            prepare(store.database, None)
        else:
            check_schema(store.database)
        yield store


@contextlib.contextmanager
def opened(url: str, reserved_seconds: int, is_made: bool = False) -> Iterator[PostgresSide]:
    """Open a store in a database as a side of a migration."""
    with reader(url, is_made) as store:
        yield PostgresSide(store, reserved_seconds)


def reopen(url: str) -> bool:
    """Let a store take changes again. Return whether it was closed. Raise Impossible."""
    with opened(url, 0) as side:
        state = side.state()
        if FILLING.fullmatch(state):
            raise Impossible("it has only a part of the accounts: run the migration again, or take an empty database")
        if state:
            side.reopen()
        return bool(state)


# --- Looking ----------------------------------------------------------------------------------------------------------


def verify(url: str, seen: Seen) -> Report:
    """Read everything: each record and its checksum, each version and its SHA-256, and the sums."""
    report = Report()
    with reader(url) as store:
        ((total,),) = store.database.read("SELECT count(*) FROM account")
        side = PostgresSide(store, 0)
        for done, (user_id, row) in enumerate(side.rows(), 1):
            check_account(side, user_id, row, report)
            seen(min(done, total), total)
        for part in itertools.pairwise(PARTS):
            for user_id, number in store.database.read(STRAY, part):
                report.damage.append(Damage("stray", f"the bytes of version {number} belong to no account", user_id))
        check_sums(store, report)
    return report


def check_account(side: PostgresSide, user_id: str, row: bytes, report: Report) -> None:
    try:
        record = side.record(user_id, row)
    except Damaged:
        report.damage.append(Damage("record", "the checksum of a record is wrong, or its form", user_id))
        return
    report.accounts += isinstance(record, Account)
    report.deleted += not isinstance(record, Account)
    there = {number for (number,) in side._database.read(VERSIONS, (user_id,))}
    for version in versions_of(record):
        report.versions += 1
        report.bytes += version.size
        found = side._database.read(DATA, (user_id, version.number))
        if found and hashlib.sha256(found[0][0]).hexdigest() == version.sha256:
            continue
        now = side._database.read(FIND, (user_id,))
        if now == [(row,)]:  # or it has changed since
            kind, what = ("blob", "have another digest") if found else ("missing", "are missing")
            report.damage.append(Damage(kind, f"the bytes of version {version.number} {what}", user_id))
    for number in sorted(there - {version.number for version in versions_of(record)}):
        if side._database.read(FIND, (user_id,)) == [(row,)] and side._database.read(DATA, (user_id, number)):
            report.damage.append(Damage("stray", f"the bytes of version {number} belong to no version", user_id))


def check_sums(store: PostgresReader, report: Report) -> None:
    """Compare the sums with the accounts, as of one moment."""

    def look() -> bool:
        found = [0] * len(SUMMED)
        with store.database.transaction() as connection, store.database.translated():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            sums = [int(each) for each in connection.execute(SUMS).fetchall()[0]]
            last = ""
            while page := connection.execute(ROWS, (last,)).fetchall():
                for user_id, row in page:
                    found = [sum(each) for each in zip(found, summed(record_of(user_id, row)), strict=True)]
                last = page[-1][0]
        return found == sums

    with contextlib.suppress(Damaged):  # what a damaged record has to add is not known
        if not again(look):
            report.damage.append(Damage("sums", "the sums of all accounts are not those of the accounts"))


def usages(url: str, seen: Seen) -> Iterator[Usage | None]:
    """Yield each account that exists, and None for each record that is damaged."""
    with reader(url) as store:
        ((total,),) = store.database.read("SELECT count(*) FROM account")
        for done, (user_id, row) in enumerate(PostgresSide(store, 0).rows(), 1):
            try:
                record = record_of(user_id, row)
            except Damaged:
                yield None
                continue
            if isinstance(record, Account):
                yield Usage.of(user_id, record)
            seen(min(done, total), total)


# --- Removing ---------------------------------------------------------------------------------------------------------


def remove(url: str, reserved_seconds: int, hash_key: bytes, accounts: list[operator.Listed]) -> Iterator[str]:
    """Delete accounts that are still as they were listed, and forget their known addresses. Yield the outcomes."""
    with contextlib.closing(PostgresStore(url, FOR_GOOD, reserved_seconds, hash_key, is_new=False)) as store:
        guessing = Guessing(1, 1, 1, 1, 1, store.tables("guessing"))  # it only forgets, so no number matters
        for listed in accounts:
            try:
                yield again(functools.partial(remove_one, store, guessing, listed))
            except StorageError:
                yield operator.FAILED


def remove_one(store: PostgresStore, guessing: Guessing, listed: operator.Listed) -> str:
    """Delete an account, as a server does (`remove` in backup_server.py)."""
    with store.account(listed.user_id) as held:
        if not isinstance(held.record, Account):
            return operator.GONE
        latest = held.record.latest.number if held.record.latest else 0
        if (held.record.created_at, latest) != (listed.created_at, listed.version):
            return operator.CHANGED
        forget = functools.partial(guessing.forget, listed.user_id)
        held.delete(clock.now(), on_commit=forget, by_operator=True)
    return operator.REMOVED
