"""Two things at once on one account, or on many: what one request sees of another that has not ended."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import backup_server
from backup_server import Credentials, Problem, Request, Response, Server, User
from server import clock
from server.accounts import Account, DamagedData, Deleted, Record, Version
from server.dbm_reader import DbmReader
from server_tests.broken.fault import (
    HeldRow,
    breaks,
    instead_of,
    instead_of_handler,
)


def as_it_is_now(server: Server, user: User) -> User | None:
    """Return the user with the account as it is now, or None if it is gone."""
    account = server.store.find(user.user_id)
    return replace(user, account=account) if isinstance(account, Account) else None


@breaks("isolation.order")
def etag_is_of_another_version_than_the_bytes() -> None:
    """The server looks the latest version up twice: once for the ETag, and once for the bytes."""

    @instead_of_handler("fetchBackup")
    def fetch_backup(real: Any, server: Server, request: Request, user: User) -> Response:
        later = as_it_is_now(server, user) or user
        response: Response = real(server, request, user=later)
        if response.status == 200 and (latest := user.account.latest):
            return response.with_headers({"ETag": f'"{latest.number}-{latest.sha256}"'})
        return response


@breaks("isolation.order", "backup.bytes")
def receipt_is_of_another_version_than_the_bytes() -> None:
    """The receipt of a fetch is read first, and the bytes of the latest version later."""

    @instead_of_handler("fetchBackup")
    def fetch_backup(real: Any, server: Server, request: Request, user: User) -> Response:
        if not (later := as_it_is_now(server, user)) or not (shown := user.account.latest):
            return real(server, request, user=user)
        with mock.patch.object(backup_server, "receipt", lambda _, receipt=backup_server.receipt: receipt(shown)):
            return real(server, request, user=later)


@breaks("isolation.order")
def list_is_made_of_two_reads() -> None:
    """A version that comes while the list is made is missing, and so is one that goes."""

    @instead_of_handler("listBackupVersions")
    def list_backup_versions(real: Any, server: Server, request: Request, user: User) -> Response:
        if later := as_it_is_now(server, user):
            both = tuple(version for version in user.account.versions if version in later.account.versions)
            user = replace(user, account=replace(user.account, versions=both))
        return real(server, request, user=user)


@breaks("isolation.order", "credentials.commit")
def deletion_does_not_look_again() -> None:
    """A deletion with the old key takes effect after the key was changed."""

    @instead_of_handler("deleteUser")
    def delete_user(real: Any, server: Server, request: Request, user: User) -> Response:
        with server.store.account(user.user_id) as held:
            if isinstance(held.record, Account):
                backup_server.delete(server, held, user.user_id)
        return Response(204)


@breaks("isolation.order", "credentials.commit")
def key_change_does_not_look_again() -> None:
    """A second change with the old key takes effect after the first."""

    @instead_of(User, "again")
    def again(real: Any, user: User, server: Server, record: Record | None) -> Account:
        return record if isinstance(record, Account) else real(user, server, record)


@breaks("isolation.order", "base.race")
def key_change_compares_the_base_too_early() -> None:
    """An upload that comes between the comparison and the change is overwritten unseen."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any,
        server: Server,
        request: Request,
        signature: str,
        user: User,
        value: Mapping[str, Any],
        new_key_sha256: str | None = None,
    ) -> Response:
        before = server.store.find(user.user_id)
        latest = before.latest if isinstance(before, Account) else None
        if new_key_sha256 and value.get("baseSha256") == (latest and latest.sha256):
            now = server.store.find(user.user_id)
            if isinstance(now, Account) and now.latest:
                value = {**value, "baseSha256": now.latest.sha256}
        return real(server, request, signature, user, value, new_key_sha256)


@breaks("isolation.order", "base.race")
def large_uploads_compare_the_base_too_early() -> None:
    """An upload of more than 64 KiB compares its base before it has its turn, because that takes longer."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, value: Any, *key: Any
    ) -> Response:
        before = server.store.find(user.user_id)
        latest = before.latest if isinstance(before, Account) else None
        if len(value["data"]) < 65_536 or value.get("baseSha256") != (latest and latest.sha256):
            return real(server, request, signature, user, value, *key)

        def store_next(real_next: Any, *arguments: Any) -> Response:
            *first, account, _, new_key = arguments
            base = account.latest.sha256 if account.latest else None
            return real_next(*first, account, {**value, "baseSha256": base}, new_key)

        next_one = backup_server.store_next
        with mock.patch.object(backup_server, "store_next", lambda *arguments: store_next(next_one, *arguments)):
            return real(server, request, signature, user, value, *key)


@breaks("isolation.order")
def receipt_is_read_after_the_upload() -> None:
    """The receipt of an upload is that of the latest version, which may be another device's by then."""

    @instead_of_handler("storeBackup")
    def store_backup(real: Any, server: Server, request: Request, signature: str, user: User, value: Any) -> Response:
        response: Response = real(server, request, signature=signature, user=user, value=value)
        now = as_it_is_now(server, user)
        if response.status == 201 and now and now.account.latest:
            return backup_server.answer(201, backup_server.receipt(now.account.latest), response.headers)
        return response


@breaks("isolation.order")
def deletion_looks_like_emptiness() -> None:
    """A fetch during a deletion finds no bytes, and says that there is no backup."""

    @instead_of(backup_server, "fetch")
    def fetch(real: Any, server: Server, request: Request, user: User, choose: Any) -> Response:
        if isinstance(server.store.find(user.user_id), Deleted):
            raise Problem("no_backup", "Store a first backup without baseSha256.")
        return real(server, request, user, choose)


@breaks("isolation.order", store="file")
def race_looks_like_damage() -> None:
    """A fetch whose version is dropped and overwritten meanwhile finds other bytes, and says that they are damaged."""

    @instead_of(DbmReader, "data")
    def data(real: Any, store: DbmReader, user_id: str, version: Version) -> bytes | None:
        row = store.row(user_id)
        if not row or (slot := row.slot(version)) is None:
            return real(store, user_id, version)
        found = store.blob(user_id, slot)
        if found is None:
            return real(store, user_id, version)
        if backup_server.sha256(found) != version.sha256:
            raise DamagedData
        return found


@breaks("isolation.order", "backup.bytes")
def two_uploads_of_a_user_share_a_buffer() -> None:
    """The bytes of an upload wait in a place that the next upload of this user takes."""
    buffer: dict[str, bytes] = {}

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, value: Any, *key: Any
    ) -> Response:
        buffer[user.user_id] = value["data"]
        return real(server, request, signature, user, value, *key)

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, account: Account, data: bytes, *arguments: Any, **options: Any) -> None:
        real(held, account, buffer[held._user_id], *arguments, **options)


@breaks("isolation.order", "backup.bytes", "isolation.write")
def small_uploads_share_a_buffer() -> None:
    """The bytes of an upload of less than 1 KiB wait in a place that all users share."""
    buffer = [b""]

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, value: Any, *key: Any
    ) -> Response:
        if len(value["data"]) < 1024:
            buffer[0] = value["data"]
        return real(server, request, signature, user, value, *key)

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, account: Account, data: bytes, *arguments: Any, **options: Any) -> None:
        real(held, account, buffer[0] if len(data) < 1024 else data, *arguments, **options)


@breaks("isolation.order")
def registration_promises_twice() -> None:
    """Two registrations with the same key at once both get 201."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        was_there = server.store.find(user.user_id)
        response: Response = real(server, request, user=user)
        if response.status == 200 and not isinstance(was_there, Account):
            return backup_server.answer(201, response.body)
        return response


@breaks("credentials.commit")
def upload_ends_after_the_deletion() -> None:
    """An upload of more than 64 KiB that began before a deletion is acknowledged, although nothing of it is left."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any, server: Server, request: Request, signature: str, user: User, value: Any, *key: Any
    ) -> Response:
        try:
            return real(server, request, signature, user, value, *key)
        except Problem as problem:
            if problem.code != "credentials_invalid" or len(value["data"]) < 65_536:
                raise
            version = Version(1, clock.now(), len(value["data"]), backup_server.sha256(value["data"]), 1)
            headers = server.rate_limit("storeBackup", [], version.stored_at)
            return backup_server.answer(
                201, backup_server.receipt(version), headers | {"Location": "/api/backup/versions/1"}
            )


@breaks("isolation.order")
def first_fetch_sees_the_account_as_it_was() -> None:
    """The first fetch after a change gets the account from a cache that is renewed behind it."""
    former: dict[str, Account] = {}

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, *arguments: Any, **options: Any) -> None:
        before = held.record
        real(held, *arguments, **options)
        if isinstance(before, Account) and before.versions:
            former[held._user_id] = before

    @instead_of_handler("fetchBackup")
    def fetch_backup(real: Any, server: Server, request: Request, user: User) -> Response:
        account = former.pop(user.user_id, user.account)
        if account.key_sha256 == user.account.key_sha256:
            user = replace(user, account=account)
        return real(server, request, user=user)
