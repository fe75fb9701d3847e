"""PostgreSQL, or an engine that speaks its protocol: connections, transactions, what goes wrong, and the schema.

The SQL is portable. It needs no lock but that of a row, and no engine's isolation beyond `read committed`: whoever
changes a row has locked it before. An engine that prefers to let the later of two transactions fail (serialization
failures, SQLSTATE class 40) may do so, because each transaction can be repeated: see `Conflict`.
"""

import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import errors
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from server import bounds
from server.accounts import Damaged, StorageFull, StorageUnavailable, TooSlow, Unreachable
from server.log import log

# The pool would write to standard error what went wrong, and the address of the database with it.
logging.getLogger("psycopg").addHandler(logging.NullHandler())
logging.getLogger("psycopg").propagate = False

Connection = psycopg.Connection[tuple[Any, ...]]

# The URL of an owner may set any of these otherwise.
CONNECTING = {
    "application_name": "dailyreps-backup",
    "connect_timeout": bounds.DATABASE_CONNECT_SECONDS,
    "keepalives_idle": 5,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 1000 * bounds.DATABASE_STATEMENT_SECONDS,
}
SESSION = (
    f"SET statement_timeout = {1000 * bounds.DATABASE_STATEMENT_SECONDS}",
    f"SET lock_timeout = {1000 * bounds.DATABASE_LOCK_SECONDS}",
    f"SET idle_in_transaction_session_timeout = {1000 * bounds.DATABASE_IDLE_SECONDS}",
)
GONE, SLOW = "the database cannot be reached", "the database takes too long"


class IfPossible(str):
    """A statement that makes things faster, and no more. An engine may refuse it."""


# The steps that a schema has gone through. Its version is how many there were. A step is never changed: add another.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The record of an account, or of a deleted one, as server/records.py writes it. `forget_at` is when the record
        # of a deleted account may go (Unix milliseconds).
        "CREATE TABLE account (user_id text PRIMARY KEY, record bytea NOT NULL, forget_at bigint)",
        "CREATE INDEX account_forget_at ON account (forget_at) WHERE forget_at IS NOT NULL",
        "CREATE TABLE backup (user_id text, version bigint, data bytea NOT NULL, PRIMARY KEY (user_id, version))",
        # What was deleted or replaced is cleared away when it is a twentieth of all, not only when it is a fifth.
        IfPossible("ALTER TABLE backup SET (toast.autovacuum_vacuum_scale_factor = 0.05)"),
        # Sums over accounts (server/counts.py). Each account belongs to one row of them, so that few wait for another.
        "CREATE TABLE tally (shard int PRIMARY KEY, users bigint NOT NULL, backups bigint NOT NULL,"
        " versions bigint NOT NULL, new_bytes bigint NOT NULL, given_up bigint NOT NULL, bytes bigint NOT NULL,"
        # Each change counts in one of these rows, so it waits for whoever closes the store, and sees that it is closed:
        # until when (Unix milliseconds), and by which run or for which move (server/migration.py).
        " day bigint NOT NULL, grown bigint NOT NULL, closed_until bigint NOT NULL, closed_by text NOT NULL)",
        "INSERT INTO tally SELECT shard, 0, 0, 0, 0, 0, 0, 0, 0, 0, '' FROM generate_series(0, 15) AS shard",
        # By this name, another store knows where its accounts came from, or went.
        "CREATE TABLE identity (id int PRIMARY KEY, name text NOT NULL)",
        "INSERT INTO identity VALUES (0, CAST(gen_random_uuid() AS text))",
        # What limits have counted (tables.py). A key is a keyed hash. A row may go at `until`.
        "CREATE TABLE counted (tables text, key bytea, value text NOT NULL, until bigint NOT NULL,"
        " PRIMARY KEY (tables, key))",
        "CREATE INDEX counted_until ON counted (until)",
        # What the scrub has found damaged, and how far it is.
        "CREATE TABLE damage (what text PRIMARY KEY, kind text NOT NULL)",
        "CREATE TABLE scrub (id int PRIMARY KEY, place text NOT NULL, round_ended bigint NOT NULL,"
        " server text NOT NULL, leased_until bigint NOT NULL)",
        "INSERT INTO scrub VALUES (0, '', 0, '', 0)",
    ),
)
SHARDS = 16


FOR_GOOD = 2**62  # Unix milliseconds: a store that is closed until then stays closed
NOW = "CAST(1000 * extract(epoch FROM clock_timestamp()) AS bigint)"  # Unix milliseconds


class Conflict(StorageUnavailable):
    """Others were faster, or a connection broke before anything was changed. Nothing has happened: do it again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=1)


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait forever.

    The database bounds a statement, but neither a commit that waits for a replica, nor what a machine takes that hangs.
    """

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for an answer. If there is none in time, close the connection and raise Unanswered."""
        try:
            return super().wait(gen, interval, timeout or bounds.DATABASE_ANSWER_SECONDS)
        except errors._WaitTimeout:
            self.close()
            raise Unanswered from None

    def commit(self) -> None:
        """Commit. Raise Unanswered if replicas may not have it: somebody has ended the wait for them.

        That is no error to PostgreSQL, just a warning.
        """
        severities: list[str | None] = []

        def note(notice: errors.Diagnostic) -> None:  # it can be read only now
            severities.append(notice.severity_nonlocalized)

        self.add_notice_handler(note)
        try:
            super().commit()
        finally:
            self.remove_notice_handler(note)
        if "WARNING" in severities:
            raise Unanswered


class Unanswered(psycopg.OperationalError):
    """There was no answer in time. What was asked for may still happen."""


class Database:
    """A database, and a pool of connections to it."""

    def __init__(self, url: str) -> None:
        """Connect as soon as somebody needs it. `url` is a connection URI or string of libpq."""
        self._pool = ConnectionPool(
            url,
            connection_class=BoundedConnection,
            kwargs=CONNECTING | known_options(url),
            min_size=1,
            max_size=bounds.DATABASE_CONNECTIONS,
            timeout=bounds.DATABASE_LOCK_SECONDS,
            reconnect_timeout=0.5,  # then whoever needs a connection tries again, at once
            max_idle=60,
            configure=configure,
            open=True,
        )
        self._known_failures = 0  # to connect, before the last look that succeeded
        self._drained_at = -math.inf

    def close(self) -> None:
        """Close all connections."""
        self._pool.close(bounds.DATABASE_CONNECT_SECONDS)

    def connections(self) -> dict[str, float]:
        """Return how many connections are open, how many of them are free, and how many requests wait for one."""
        stats = self._pool.get_stats()
        open_ones, free, waiting = (stats.get(name, 0) for name in ("pool_size", "pool_available", "requests_waiting"))
        return {"open": open_ones, "free": free, "waited_for": waiting}

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection for one transaction, and commit as the block ends. If it raises an error, roll back.

        Raise Conflict if nothing was changed, and doing it again may help. Raise StorageFull, StorageUnavailable (then
        the change may have happened, if the block had ended) or Damaged.
        """
        with self.translated(), self._pool.connection() as connection:
            yield connection
            with self.translated(is_ended=True):
                connection.commit()

    @contextlib.contextmanager
    def translated(self, is_ended: bool = False) -> Iterator[None]:
        """Let this block raise errors of a store in place of those of the driver."""
        try:
            yield
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise self._translated(error, is_ended) from None

    def read(self, query: str, values: Sequence[Any] = (), seconds: float | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of one query. Wait so long for a connection. Raise StorageUnavailable or Damaged."""

        def read() -> list[tuple[Any, ...]]:
            with self.translated(), self._pool.connection(seconds) as connection:
                connection.autocommit = True
                try:
                    # As text, the bytes of a version would be twice as long.
                    return connection.execute(query, values, binary=True).fetchall()
                finally:
                    if not connection.broken:
                        connection.autocommit = False

        return again(read)

    def look(self) -> int:
        """Return the milliseconds by which the database's clock is ahead of this machine's. Raise StorageUnavailable.

        What the way takes may be the error, so the way back and the way there are taken for equally long.
        """
        began, moment = time.monotonic(), time.time()
        ((at,),) = self.read(f"SELECT {NOW}", seconds=bounds.DATABASE_LOOK_SECONDS)
        took = time.monotonic() - began
        self._known_failures = self._failures()
        ahead: int = round(at - 1000 * (moment + took / 2))
        return ahead

    def _failures(self) -> int:
        return self._pool.get_stats().get("connections_errors", 0)

    def _translated(self, error: Exception, is_ended: bool) -> Exception:
        """Return the error to raise. `is_ended` says whether the transaction was being committed."""
        match error:
            case errors.DiskFull():
                self._log(error, "the database's disk is full")
                return StorageFull("the database's disk is full")
            case errors.DataCorrupted() | errors.IndexCorrupted():
                return Damaged(f"the database says {error.sqlstate}")
            case errors.StatementCompletionUnknown():
                reason = GONE
            case psycopg.Error() if (error.sqlstate or "").startswith("40"):
                return Conflict("others were faster")
            case errors.IdleInTransactionSessionTimeout():
                return Conflict("the database did not wait any longer for this server")
            case errors.QueryCanceled() | errors.LockNotAvailable() | Unanswered():
                reason = SLOW
            case PoolTimeout() if self._failures() == self._known_failures:
                reason = SLOW
            # A database that has become a replica, or the next one that has not yet ceased to be one, is the wrong one.
            case psycopg.OperationalError() | psycopg.InterfaceError() | PoolClosed() | errors.ReadOnlySqlTransaction():
                reason = GONE
                if not is_ended and not isinstance(error, PoolTimeout):  # the connection was an old one, perhaps
                    self._reconnect()
                    return Conflict(GONE)
            case _:
                reason = "the database refuses a statement"
        self._log(error, reason)
        return {GONE: Unreachable, SLOW: TooSlow}.get(reason, StorageUnavailable)(reason)

    def _reconnect(self) -> None:
        """Connect anew. The other connections are as old as the one that broke, and to test them may take long."""
        if time.monotonic() - self._drained_at > 1:
            self._drained_at = time.monotonic()
            self._pool.drain()

    def _log(self, error: Exception, reason: str) -> None:
        # Not the message: it may repeat values, or the address of the database.
        log(event="storage_error", reason=reason, error=type(error).__name__)


def known_options(url: str) -> dict[str, Any]:
    """Return the options of a URL, which are stronger than ours. Raise StorageUnavailable if it is none."""
    try:
        return psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise StorageUnavailable("it is no URL of a database (postgresql://user:password@host/name)") from None


def configure(connection: Connection) -> None:
    """Prepare a new connection."""
    connection.autocommit = True
    for statement in SESSION:
        connection.execute(statement)
    # Whatever else an owner has chosen waits for at least the database's own disk.
    if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
        connection.execute("SET synchronous_commit = on")
    connection.autocommit = False
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED


def again[Result](work: Callable[[], Result]) -> Result:
    """Do some work, again and again while there are conflicts, but not forever. Raise what it raises."""
    until = time.monotonic() + bounds.DATABASE_LOCK_SECONDS
    for attempt in range(bounds.DATABASE_ATTEMPTS):
        try:
            return work()
        except Conflict:
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311 - no secret
    return work()


def prepare(database: Database, is_new: bool | None) -> bool:
    """Make the schema, or bring it up to date. Return whether it was made.

    `is_new` says whether there has to be a store (false), or whether an empty database is taken for none (true). Raise
    StorageUnavailable.
    """

    def migrate() -> bool:
        with database.transaction() as connection:
            ((exists,),) = connection.execute("SELECT to_regclass('store_schema') IS NOT NULL").fetchall()
            if not exists:
                if is_new is False:
                    raise StorageUnavailable("there is no store in this database, and NEW_STORE is 0")
                connection.execute("CREATE TABLE store_schema (id int PRIMARY KEY, version int NOT NULL)")
                connection.execute("INSERT INTO store_schema VALUES (0, 0)")
            # From here on, nobody else migrates.
            ((version,),) = connection.execute("SELECT version FROM store_schema FOR UPDATE").fetchall()
            if version > len(MIGRATIONS):
                what = f"its schema is of version {version}, and this server knows {len(MIGRATIONS)}"
                raise StorageUnavailable(f"{what}: use the newer server")
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    if not isinstance(statement, IfPossible):
                        connection.execute(statement)
                        continue
                    with contextlib.suppress(psycopg.Error), connection.transaction():
                        connection.execute(statement)
            if version < len(MIGRATIONS):
                connection.execute("UPDATE store_schema SET version = %s", (len(MIGRATIONS),))
        return not exists

    for _ in range(20):
        try:
            return again(migrate)
        except StorageUnavailable as error:
            if error.args != ("the database refuses a statement",):
                raise
            time.sleep(0.1)  # another server is making the same tables
    return again(migrate)


def check_schema(database: Database) -> None:
    """Raise StorageUnavailable if there is no store in the database, or one of another version. Change nothing."""
    if database.read("SELECT to_regclass('store_schema') IS NULL") == [(True,)]:
        raise StorageUnavailable("there is no store in this database")
    ((version,),) = database.read("SELECT version FROM store_schema")
    if version != len(MIGRATIONS):
        what = f"its schema is of version {version}, and this program knows {len(MIGRATIONS)}"
        raise StorageUnavailable(f"{what}: use programs of the same version as the servers")


class Thread(threading.Thread):
    """A thread that does something every so many seconds, until it is closed."""

    def __init__(self, name: str, work: Callable[[], None], seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self._work, self._seconds = work, seconds
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                self._work()
            except StorageUnavailable:  # it is logged, and the database may come back
                pass
            except Exception as error:  # whatever it is, the next time it may work
                log.error(error)
            self.stopping.wait(self._seconds)

    def close(self) -> None:
        self.stopping.set()
        self.join(bounds.DATABASE_LOCK_SECONDS)
