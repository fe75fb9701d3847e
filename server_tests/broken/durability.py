"""What is on disk when an answer is sent, after a crash and after a restart."""

import contextlib
import dataclasses
import dbm.sqlite3
import time
from collections.abc import Iterator
from typing import Any

from backup_server import Request, Response, Server
from server import bounds
from server.accounts import Account, Damaged, StorageError, StorageUnavailable
from server.dbm_reader import DbmReader, Row, read_row, user_key
from server.dbm_store import DbmStore
from server.health import Watch
from server.housekeeping import Housekeeper
from server_tests.broken.fault import (
    HeldRow,
    breaks,
    change,
    instead_of,
    instead_of_handler,
)


@breaks("durability.acknowledged", test="server_tests/test_kills.py::test_kills_lose_nothing", store="file")
def answers_go_ahead_of_the_disk() -> None:
    """The server acknowledges a change and writes it a moment later."""
    waiting: dict[str, tuple[Row | None, Row]] = {}

    @instead_of(DbmStore, "put_row")
    def put_row(real: Any, store: Any, user_id: str, before: Row | None, after: Row) -> None:
        if len(waiting) > 2:
            for each in list(waiting):
                real(store, each, *waiting[each])
                del waiting[each]
        waiting[user_id] = before, after

    @instead_of(DbmReader, "row")
    def row(real: Any, store: Any, user_id: str) -> Row | None:
        _, acknowledged = waiting.get(user_id, (None, None))
        return acknowledged or real(store, user_id)


@breaks("durability.whole", test="server_tests/test_power_cuts.py::test_a_power_cut_at_any_moment", store="file")
def record_is_written_before_the_backup() -> None:
    """A crash between the two leaves a version without its bytes."""
    blobs: list[Any] = []
    put_blob = DbmStore.put_blob

    @instead_of(DbmStore, "put_blob")
    def put_blob_later(real: Any, store: Any, *blob: Any) -> None:
        blobs.append(blob)

    @instead_of(DbmStore, "put_row")
    def put_row(real: Any, store: Any, *arguments: Any) -> None:
        real(store, *arguments)
        time.sleep(0.1 * len(blobs))  # so that a crash is likely to come in between
        while blobs:
            put_blob(store, *blobs.pop())


@breaks("durability.restart", store="file")
def restart_forgets_the_limits() -> None:
    """After each deployment, everybody has all uploads left again."""
    served = set()

    @instead_of(DbmStore, "put_row")
    def put_row(real: Any, store: Any, user_id: str, *rows: Any) -> None:
        served.add(user_id)
        real(store, user_id, *rows)

    @instead_of(DbmReader, "row")
    def row(real: Any, store: Any, user_id: str) -> Row | None:
        found = real(store, user_id)
        if found and isinstance(found.record, Account) and user_id not in served:
            return dataclasses.replace(found, record=dataclasses.replace(found.record, uploads=()))
        return found


@breaks(test="server_tests/test_store.py::test_a_commit_that_failed_does_not_come_back", store="file")
def failed_commit_comes_back() -> None:
    """A deletion that the disk did not sync stays in the write-ahead log, and takes effect after a crash."""

    @instead_of(DbmStore, "overwrite_failed_commit")
    def overwrite(real: Any, store: Any) -> None:
        pass


@breaks(test="server_tests/test_store.py::test_a_clock_that_ran_ahead_reserves_no_userid_for_longer")
def clock_that_ran_ahead_reserves_a_userid() -> None:
    """A userId that was deleted while the clock was a month ahead stays reserved for a month."""

    @instead_of(HeldRow, "delete")
    def delete(real: Any, held: Any, *arguments: Any, **options: Any) -> None:
        if isinstance(held.record, Account):
            real(held, *arguments, **options)


@breaks(test="server_tests/test_power_cuts.py::test_a_power_cut_at_any_moment", store="file")
def commits_are_not_synced() -> None:
    """The last changes are in the memory of the system only: a power cut takes them."""

    @instead_of(dbm.sqlite3._Database, "__init__")
    def open_database(real: Any, database: Any, *arguments: Any, **options: Any) -> None:
        real(database, *arguments, **options)
        database._cx.execute("PRAGMA synchronous = NORMAL")


@breaks(test="server_tests/test_disks.py::test_a_disk_that_is_full_or_fails", store="file")
def errors_of_the_disk_are_passed_over() -> None:
    """A change that is not on disk is acknowledged."""

    @instead_of(DbmStore, "put_row")
    def put_row(real: Any, *arguments: Any) -> None:
        with contextlib.suppress(StorageError):
            real(*arguments)


ERASED = "server_tests/test_erased.py::test_nothing_is_left_of_what_was_deleted_or_dropped"


@breaks("erase.deleted", test=ERASED, store="file")
def log_keeps_what_was_erased() -> None:
    """SQLite writes over the write-ahead log when it needs the space, which can take weeks."""
    change(DbmStore, "empty_log", lambda store: None)


@breaks("erase.dropped", test=ERASED, store="file")
def dropped_versions_stay_until_they_are_overwritten() -> None:
    """Whoever stores no more leaves the last dropped versions there for ever."""
    change(Housekeeper, "_to_erase", lambda *_: [])


@breaks("account.damaged", store="file")
def damage_looks_like_absence() -> None:
    """An account whose record is damaged does not exist: its key is wrong, and anybody can register it."""

    @instead_of(DbmReader, "row")
    def row(real: Any, *arguments: Any) -> Row | None:
        try:
            found: Row | None = real(*arguments)
            return found
        except Damaged:
            return None


@breaks(test="server_tests/test_damage.py::test_what_the_index_has_lost_is_damaged_before_anybody_looks", store="file")
def missing_record_is_no_damage() -> None:
    """If a record cannot be found, its account does not exist, whatever else is there of it."""

    @instead_of(DbmReader, "row")
    def row(real: Any, store: Any, user_id: str) -> Row | None:
        with store._database() as database:
            stored = database.get(user_key(user_id))
        return None if stored is None else read_row(user_id, stored)


@breaks(test="server_tests/test_damage.py::test_a_round_each_week_finds_what_nobody_reads", store="file")
def nobody_reads_what_is_stored() -> None:
    """A backup that is damaged is found when somebody needs it."""
    change(Housekeeper, "_verify", lambda *_: 0)


# --- A disk that stalls -----------------------------------------------------------------------------------------------

STALLED_CHANGES = "server_tests/test_store.py::test_a_stalled_disk_holds_up_nothing_but_changes"


@breaks(test=STALLED_CHANGES, store="file")
def turn_passes_on_before_the_write_has_ended() -> None:
    """The next change does not know what a late write is about to do, and overwrites it."""

    @instead_of(DbmStore, "turn")
    @contextlib.contextmanager
    def turn(real: Any, store: Any) -> Iterator[None]:
        if not store._changing.acquire(timeout=bounds.TURN_SECONDS):
            raise StorageUnavailable
        try:
            yield
        finally:
            store._changing.release()


@breaks(test=STALLED_CHANGES, store="file")
def write_is_waited_for_without_end() -> None:
    """While the disk stalls, a client hears nothing until it gives up."""

    @instead_of(DbmStore, "write")
    def write(real: Any, store: Any, change: Any) -> None:
        store._last_write = store._start_write(change)
        store._last_write.result()


@breaks(test=STALLED_CHANGES, store="file")
def turn_is_waited_for_without_end() -> None:
    """While the disk stalls, the changes behind the first one hear nothing, and hold the threads."""

    @instead_of(DbmStore, "turn")
    @contextlib.contextmanager
    def turn(real: Any, store: Any) -> Iterator[None]:
        store._changing.acquire()
        try:
            yield
        finally:
            store._last_write.add_done_callback(lambda _: store._changing.release())


@breaks(test="server_tests/test_store.py::test_health_while_reads_stall")
def health_reads_the_disk_itself() -> None:
    """While the disk stalls, nothing answers: the thread that answers for the health also serves the connections."""

    @instead_of_handler("getHealth")
    def get_health(real: Any, server: Server, request: Request) -> Response:
        server.store.check()
        response: Response = real(server, request)
        return response


@breaks("getHealth.503")
def health_is_what_it_was_at_the_start() -> None:
    """The server looks at its database once, and never again."""

    looks: list[str | None] = []

    @instead_of(Watch, "_look")
    def look(real: Any, watch: Watch) -> str | None:
        if not looks:
            looks.append(real(watch))
        return looks[0]
