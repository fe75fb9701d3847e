"""What only a database can do wrong, which several servers share: locks, transactions, and whose memory it is."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from server.accounts import Account, Damaged, Record
from server.tables import MemoryTables, Tables
from server_tests.broken.fault import STORE, HeldRow, Reader, breaks, change, instead_of

TESTS = "server_tests/test_postgres.py::test_"


def change_statements(changed: Callable[[str], str]) -> None:
    """Change the text of each statement. It has to take the same values."""
    from server.postgres import database  # its parts are installed only where it is used

    @instead_of(database.BoundedConnection, "execute")
    def execute(real: Any, connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
        return real(connection, changed(query), *arguments, **options)


@contextlib.contextmanager
def uncommitted(held: Any) -> Iterator[None]:
    """Let what this block commits be rolled back."""
    connection = held._connection
    connection.commit = connection.rollback
    try:
        yield
    finally:
        del connection.commit


# --- Locks ------------------------------------------------------------------------------------------------------------


@breaks("base.race", store="postgres")
def account_is_not_locked() -> None:
    """Two changes of an account read it before either writes it."""
    change_statements(lambda query: query.removesuffix(" FOR UPDATE"))


@breaks("register.race", store="postgres")
def later_registration_replaces_the_earlier() -> None:
    """Of those who register a name at once, each succeeds, and the last one has the account."""
    change_statements(
        lambda query: query.replace("(user_id) DO NOTHING", "(user_id) DO UPDATE SET record = excluded.record")
    )


@breaks("register.race", store="postgres")
def nothing_is_repeated() -> None:
    """Whoever was slower than others gets 503, although doing it again would help."""
    change(STORE, "again", lambda work: work())


@breaks(test=f"{TESTS}limits_are_those_of_all_servers_together", store="postgres")
def servers_count_without_waiting_for_each_other() -> None:
    """What two servers count at once counts once."""
    from server.postgres.tables import PostgresTables

    @instead_of(PostgresTables, "_locked")
    def locked(real: Any, tables: Any, connection: Any, keys: list[bytes], locked: set[bytes]) -> Any:
        return real(tables, connection, keys, set())


@breaks(test=f"{TESTS}limits_are_those_of_all_servers_together", store="postgres")
def each_server_counts_for_itself() -> None:
    """With three servers, everybody may do everything three times as often."""

    @instead_of(STORE.PostgresStore, "tables")
    def tables(real: Any, store: Any, group: str) -> Tables:
        return MemoryTables()


# --- Transactions -----------------------------------------------------------------------------------------------------


@breaks("durability.whole", store="postgres")
def change_is_several_transactions() -> None:
    """Each statement of a change is a transaction of its own."""

    @instead_of(HeldRow, "_change")
    @contextlib.contextmanager
    def change_it(real: Any, held: Any, *arguments: Any, **options: Any) -> Iterator[None]:
        connection, execute = held._connection, held._connection.execute

        def execute_and_commit(*statement: Any, **choices: Any) -> Any:
            cursor = execute(*statement, **choices)
            connection.commit()
            return cursor

        connection.execute = execute_and_commit
        try:
            with real(held, *arguments, **options | {"has_pipeline": False}):
                yield
        finally:
            del connection.execute


@breaks("backup.bytes", "registerUser.201", store="postgres")
def change_is_not_committed() -> None:
    """The transaction is rolled back before the answer."""

    @instead_of(HeldRow, "_change")
    @contextlib.contextmanager
    def change_it(real: Any, held: Any, *arguments: Any, **options: Any) -> Iterator[None]:
        with uncommitted(held), real(held, *arguments, **options):
            yield


@breaks("retry.mends", store="postgres")
def repair_is_not_committed() -> None:
    """A repair is rolled back, since nothing else changes."""

    @instead_of(HeldRow, "mend")
    def mend(real: Any, held: Any, *arguments: Any) -> None:
        with uncommitted(held):
            real(held, *arguments)


@breaks(test="server_tests/test_migrate.py::test_the_window_ends_by_itself", store="postgres")
def closed_store_takes_changes() -> None:
    """While the accounts are moved, and afterwards, servers go on to change the ones that were left behind."""
    from server.postgres import store  # the test starts a server on a file, too

    change(store, "COUNT_IF_OPEN", store.COUNT)


@breaks(
    test="server_tests/test_postgres_faults.py::test_a_commit_that_somebody_has_ended_while_it_waited_for_a_replica",
    store="postgres",
)
def commit_that_no_replica_has_is_acknowledged() -> None:
    """Somebody ends the wait for a replica. PostgreSQL only warns, and nobody hears it."""
    import psycopg

    from server.postgres import database

    change(database.BoundedConnection, "commit", psycopg.Connection.commit)


@breaks(
    test="server_tests/test_postgres_faults.py::test_a_commit_that_waits_for_a_replica_that_is_gone", store="postgres"
)
def commit_is_waited_for_without_end() -> None:
    """A replica is gone, and all threads wait for it."""
    import psycopg

    from server.postgres import database

    change(database.BoundedConnection, "wait", psycopg.Connection.wait)


# --- Rows -------------------------------------------------------------------------------------------------------------


@breaks("delete.fresh", store="postgres")
def deletion_leaves_the_rows_of_versions() -> None:
    """The record of a deleted account says that it has no versions, and their rows stay."""
    whole = "DELETE FROM backup WHERE user_id = %s"
    change_statements(lambda query: "SELECT CAST(%s AS text)" if query == whole else query)


@breaks("account.damaged", store="postgres")
def damaged_row_looks_like_none() -> None:
    """An account whose record is damaged looks as if it did not exist: its key is wrong."""

    @instead_of(Reader, "find")
    def find(real: Any, *arguments: Any) -> Record | None:
        try:
            found: Record | None = real(*arguments)
            return found
        except Damaged:
            return None


@breaks("delete.reserved", store="postgres")
def reservation_goes_with_the_next_cleaning() -> None:
    """The row of a deleted account may be forgotten at once."""
    change(STORE.PostgresStore, "reserved_until", lambda store, deleted_at: 0)


@breaks("isolation.order", store="postgres")
def accounts_are_read_from_a_copy_that_is_behind() -> None:
    """A server reads from a replica that is a tenth of a second behind."""
    seen: dict[str, tuple[float, Record | None]] = {}

    @instead_of(Reader, "find")
    def find(real: Any, store: Any, user_id: str) -> Record | None:
        now = time.monotonic()
        if user_id not in seen or now - seen[user_id][0] > 0.1:
            seen[user_id] = now, real(store, user_id)
        return seen[user_id][1]


@breaks("admin.counts", store="postgres")
def deletion_is_not_counted() -> None:
    """What is deleted still counts."""

    @instead_of(HeldRow, "_count")
    def count(real: Any, held: Any, after: Record) -> None:
        if isinstance(after, Account):
            real(held, after)


@breaks("space.always", store="postgres")
def deletion_gives_no_room_back() -> None:
    """Bytes are counted when they are taken, and not when they are given back."""

    @instead_of(STORE, "counted")
    def counted(real: Any, *arguments: Any) -> tuple[int, ...]:
        *sums, size, day, grown, same_day, shard = real(*arguments)
        return (*sums, max(0, size), day, grown, same_day, shard)
