"""What is left if the server is killed between two writes of one operation."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from server.accounts import Account, Deleted
from server.dbm_reader import DbmReader, Row, blob_key, user_key
from server.dbm_store import DbmStore
from server_tests.broken.fault import (
    HeldRow,
    breaks,
    instead_of,
)


def in_two_steps(between: Callable[[Any, Any], Row | None]) -> None:
    """Write the row that `between(before, after)` returns ahead of the row `after`, unless it is None."""

    @instead_of(DbmStore, "put_row")
    def put_row(real: Any, store: DbmStore, user_id: str, before: Row | None, after: Row) -> None:
        if middle := between(before, after):
            real(store, user_id, before, middle)
            before = middle
        real(store, user_id, before, after)


def is_upload(before: Any, after: Any) -> bool:
    """Return whether an account gets a version."""
    return bool(
        before
        and isinstance(before.record, Account)
        and isinstance(after.record, Account)
        and len(after.record.uploads) > len(before.record.uploads)
    )


@breaks("durability.whole", store="file")
def key_follows_its_version() -> None:
    """A change of the key stores the version, and then replaces the key."""

    def between(before: Any, after: Any) -> Row | None:
        if before and is_upload(before, after) and before.record.key_sha256 != after.record.key_sha256:
            return replace(after, record=replace(after.record, key_sha256=before.record.key_sha256))
        return None

    in_two_steps(between)


@breaks("durability.whole", store="file")
def version_follows_its_key() -> None:
    """A change of the key replaces the key, and then stores the version."""

    def between(before: Any, after: Any) -> Row | None:
        if before and is_upload(before, after) and before.record.key_sha256 != after.record.key_sha256:
            key = {"key_sha256": after.record.key_sha256, "key_version": after.record.key_version}
            return replace(before, record=replace(before.record, **key))
        return None

    in_two_steps(between)


@breaks("durability.whole", store="file")
def deletion_empties_the_account_first() -> None:
    """A deletion drops all versions, and then deletes the account."""

    def between(before: Any, after: Any) -> Row | None:
        if before and isinstance(before.record, Account) and before.record.versions:
            if isinstance(after.record, Deleted):
                return Row(replace(before.record, versions=()), slots_used=before.slots_used)
        return None

    in_two_steps(between)


@breaks("durability.whole", store="file")
def deletion_reserves_afterwards() -> None:
    """A deletion removes the account, and then reserves the userId."""

    @instead_of(DbmStore, "put_row")
    def put_row(real: Any, store: DbmStore, user_id: str, before: Row | None, after: Row) -> None:
        if before and isinstance(before.record, Account) and isinstance(after.record, Deleted):
            with store._database() as database:
                del database[blob_key(user_id, 0)]
                del database[user_key(user_id)]
        real(store, user_id, before, after)


@breaks("durability.whole", store="file")
def upload_is_counted_afterwards() -> None:
    """An upload stores the version, and then counts it and notes its signature as spent."""

    def between(before: Any, after: Any) -> Row | None:
        if before and is_upload(before, after):
            return replace(after, record=replace(after.record, uploads=before.record.uploads))
        return None

    in_two_steps(between)


@breaks("durability.whole", store="file")
def upload_is_counted_ahead() -> None:
    """An upload is counted, and its signature spent, before the version is stored."""

    def between(before: Any, after: Any) -> Row | None:
        if before and is_upload(before, after):
            return replace(before, record=replace(before.record, uploads=after.record.uploads))
        return None

    in_two_steps(between)


@breaks("durability.whole", store="file")
def versions_are_dropped_afterwards() -> None:
    """An upload stores the version, and then drops those that are too many."""

    def between(before: Any, after: Any) -> Row | None:
        if before and is_upload(before, after) and len(after.versions) <= len(before.versions):
            versions, slots = (*before.versions, after.versions[-1]), (*before.slots, after.slots[-1])
            return replace(after, record=replace(after.record, versions=versions), slots=slots)
        return None

    in_two_steps(between)


@breaks("durability.whole", store="file")
def versions_are_dropped_ahead() -> None:
    """An upload first drops a version, to make room."""

    def between(before: Any, after: Any) -> Row | None:
        if before and is_upload(before, after) and len(after.versions) <= len(before.versions):
            kept = [pair for pair in zip(before.versions, before.slots, strict=True) if pair[0] in after.versions]
            record = replace(before.record, versions=tuple(version for version, _ in kept))
            return replace(before, record=record, slots=tuple(slot for _, slot in kept))
        return None

    in_two_steps(between)


@breaks("durability.whole", store="file")
def registration_sets_the_key_afterwards() -> None:
    """A registration takes the name, and then sets the key."""

    def between(before: Any, after: Any) -> Row | None:
        if isinstance(after.record, Account) and not (before and isinstance(before.record, Account)):
            return replace(after, record=replace(after.record, key_sha256="0" * 64))
        return None

    in_two_steps(between)


@breaks("durability.acknowledged", store="file")
def deletions_go_ahead_of_the_disk() -> None:
    """A deletion is acknowledged, and written a moment later."""
    deleted: dict[str, Row] = {}

    @instead_of(DbmStore, "put_row")
    def put_row(real: Any, store: DbmStore, user_id: str, before: Row | None, after: Row) -> None:
        if not isinstance(after.record, Deleted):
            real(store, user_id, before, after)
            return

        def later() -> None:
            time.sleep(0.05)
            with store.turn():
                store.write(lambda: real(store, user_id, before, after))
                deleted.pop(user_id, None)

        deleted[user_id] = after
        threading.Thread(target=later, daemon=True).start()

    @instead_of(DbmReader, "row")
    def row(real: Any, store: DbmReader, user_id: str) -> Row | None:
        return deleted.get(user_id) or real(store, user_id)

    @instead_of(DbmStore, "erase_blob")
    def erase_blob(real: Any, store: DbmStore, user_id: str, slot: int) -> None:
        if user_id not in deleted:
            real(store, user_id, slot)


@breaks("durability.acknowledged", store="file")
def large_uploads_go_ahead_of_the_disk() -> None:
    """An upload of more than 64 KiB is acknowledged, and its bytes are written with the next change."""
    waiting: list[tuple[str, int, bytes]] = []
    put_blob = DbmStore.put_blob

    @instead_of(DbmStore, "put_blob")
    def put_blob_later(real: Any, store: DbmStore, user_id: str, slot: int, data: bytes) -> None:
        while waiting:
            real(store, *waiting.pop())
        if len(data) > 65_536:
            waiting.append((user_id, slot, data))
        else:
            real(store, user_id, slot, data)

    @instead_of(DbmReader, "blob")
    def blob(real: Any, store: DbmReader, user_id: str, slot: int) -> bytes | None:
        return next((data for *place, data in waiting if place == [user_id, slot]), None) or real(store, user_id, slot)

    @instead_of(DbmStore, "close")
    def close(real: Any, store: DbmStore) -> None:
        def write_all() -> None:
            while waiting:
                put_blob(store, *waiting.pop())

        with store.turn():
            store.write(write_all)
        real(store)


@breaks("durability.whole", store="file")
def oldest_version_is_overwritten_in_place() -> None:
    """An upload overwrites the bytes of the version that it drops, before the record forgets this version."""

    dropped: list[int] = []  # the slot of the version that the current upload drops

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, account: Account, *arguments: Any, **options: Any) -> None:
        row = held._living()
        pairs = zip(row.versions, row.slots, strict=True)
        dropped[:] = [slot for version, slot in pairs if version not in account.versions]
        real(held, account, *arguments, **options)

    @instead_of(Row, "next_slot")
    def next_slot(real: Any, row: Row) -> int:
        return dropped[0] if dropped else real(row)

    @instead_of(Row, "dropped_with")
    def dropped_with(real: Any, row: Row, account: Account, slot: int) -> Any:
        return tuple(each for each in real(row, account, slot) or () if each[0] != slot)
