"""What is on disk when an answer is sent, after a crash and after a restart."""

import dataclasses
import time
from typing import Any

from server.accounts import Account
from server.dbm_store import DbmReader, DbmStore, Row
from server_tests.broken.fault import breaks, instead_of


@breaks("durability.acknowledged")
def answers_go_ahead_of_the_disk() -> None:
    """The server acknowledges a change and writes it a moment later."""
    waiting: dict[str, tuple[Row | None, Row]] = {}

    @instead_of(DbmStore, "_put_row")
    def put_row(real: Any, store: Any, user_id: str, before: Row | None, after: Row) -> None:
        if len(waiting) > 2:
            for each in list(waiting):
                real(store, each, *waiting[each])
                del waiting[each]
        waiting[user_id] = before, after

    @instead_of(DbmReader, "_row")
    def row(real: Any, store: Any, user_id: str) -> Row | None:
        _, acknowledged = waiting.get(user_id, (None, None))
        return acknowledged or real(store, user_id)


@breaks("durability.whole")
def record_is_written_before_the_backup() -> None:
    """A crash between the two leaves a version without its bytes."""
    blobs: list[Any] = []
    put_blob = DbmStore._put_blob

    @instead_of(DbmStore, "_put_blob")
    def put_blob_later(real: Any, store: Any, *blob: Any) -> None:
        blobs.append(blob)

    @instead_of(DbmStore, "_put_row")
    def put_row(real: Any, store: Any, *arguments: Any) -> None:
        real(store, *arguments)
        time.sleep(0.1 * len(blobs))  # so that a crash is likely to come in between
        while blobs:
            put_blob(store, *blobs.pop())


@breaks("durability.restart")
def restart_forgets_the_limits() -> None:
    """After each deployment, everybody has all uploads left again."""
    served = set()

    @instead_of(DbmStore, "_put_row")
    def put_row(real: Any, store: Any, user_id: str, *rows: Any) -> None:
        served.add(user_id)
        real(store, user_id, *rows)

    @instead_of(DbmReader, "_row")
    def row(real: Any, store: Any, user_id: str) -> Row | None:
        found = real(store, user_id)
        if found and isinstance(found.record, Account) and user_id not in served:
            return dataclasses.replace(found, record=dataclasses.replace(found.record, uploads=()))
        return found
