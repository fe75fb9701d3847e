"""Registration, change of the storage key, deletion and replay."""

import dataclasses
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any

import backup_server
from backup_server import Credentials, Problem, Request, Response, Server, User
from server import clock, dbm_store
from server.accounts import Account, Deleted, Record, Version
from server.dbm_reader import DbmReader, Row
from server.refused import RefusedUploads
from server_tests.broken.fault import (
    HeldRow,
    add_to_limit,
    breaks,
    change,
    change_account,
    instead_of,
    instead_of_handler,
    instead_of_proof,
    on_answer,
    shorten_retry_after,
)

# --- Registration -----------------------------------------------------------------------------------------------------


@breaks("register.race")
def two_registrations_at_once_both_win() -> None:
    """The server asks whether the name is free before it takes the lock, and not again."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        was_free = server.store.find(user.user_id) is None
        time.sleep(0.05)
        try:
            return real(server, request, user=user)
        except Problem:
            if not was_free:
                raise
            return backup_server.answer(201, {"createdAt": clock.rfc3339(clock.now())})


@breaks("register.retry")
def registering_again_is_a_conflict() -> None:
    """If the answer was lost, the username is taken, by its own user."""

    @on_answer
    def change_answer(environ: Mapping[str, Any], answer: Any) -> None:
        if environ["PATH_INFO"] == "/api/register" and answer.status == 200:
            answer.status, answer.body = 409, Problem("username_taken", "This userId is registered.").response.body
            answer.headers["Content-Type"] = "application/problem+json"


@breaks("register.retry")
def registering_again_starts_anew() -> None:
    """A phone that registers after a fresh install empties the account."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        response = real(server, request, user=user)
        if response.status == 200:
            with server.store.account(user.user_id) as held:
                if account := user.open(held.record):
                    held.create(dataclasses.replace(account, versions=()))
        return response


# --- Change of the storage key ----------------------------------------------------------------------------------------


@breaks("key.old")
def old_key_stays_good() -> None:
    """Credentials that were right once are cached."""
    right = set()

    @instead_of(Credentials, "open")
    def open_account(real: Any, credentials: Credentials, record: Record | None) -> Account | None:
        pair = credentials.user_id, credentials.key_sha256
        if real(credentials, record):
            right.add(pair)
        return record if pair in right and isinstance(record, Account) else None


@breaks("key.new")
def new_key_does_not_open_older_versions() -> None:
    """A change of the key hides what was stored before."""

    @instead_of(backup_server, "fetch")
    def fetch(real: Any, server: Server, request: Request, user: User, choose: Any) -> Response:
        def choose_of_this_key(account: Account) -> Version:
            versions = (version for version in account.versions if version.key_version == account.key_version)
            return choose(dataclasses.replace(account, versions=tuple(versions)))

        return real(server, request, user, choose_of_this_key)


@breaks("key.same")
def key_may_be_changed_to_itself() -> None:
    """The server accepts the key that is in force as a new key."""

    @instead_of_handler("changeStorageKey")
    def change_storage_key(
        real: Any, server: Server, request: Request, signature: str, user: User, value: Mapping[str, Any]
    ) -> Response:
        new_key_sha256 = backup_server.sha256(value["storageKey"].encode())
        return backup_server.store_version(server, request, signature, user, value, new_key_sha256)


@breaks("key.both")
def refused_change_changes_the_key() -> None:
    """The server changes the key first, and then compares the base."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Any,
        server: Server,
        request: Request,
        signature: str,
        user: User,
        value: Any,
        new_key_sha256: str | None = None,
    ) -> Response:
        try:
            return real(server, request, signature, user, value, new_key_sha256)
        except Problem:
            if new_key_sha256:
                change_account(server, user.user_id, key_sha256=new_key_sha256)
            raise


# --- Deletion ---------------------------------------------------------------------------------------------------------


@breaks("delete.all", "delete.refused")
def deletion_does_nothing() -> None:
    """deleteUser answers 204 and does nothing else."""

    @instead_of_handler("deleteUser")
    def delete_user(real: Any, server: Server, request: Request, user: User) -> Response:
        return Response(204)


@breaks("delete.all", store="file")
def deleted_account_comes_back_with_a_restart() -> None:
    """The server remembers a deletion, but does not write it."""
    deleted: dict[str, Row] = {}

    @instead_of(HeldRow, "delete")
    def delete(real: Any, held: Any, moment: int, on_commit: Any, **options: Any) -> None:
        deleted[held._user_id] = Row(Deleted(moment))
        on_commit()

    @instead_of(DbmReader, "row")
    def row(real: Any, store: Any, user_id: str) -> Row | None:
        return deleted.get(user_id) or real(store, user_id)


@breaks("delete.all", "delete.fresh", store="file")
def deleted_data_comes_back_with_a_registration() -> None:
    """A deletion hides an account, and a registration of the name shows it again."""
    hidden: dict[str, Row] = {}
    change(dbm_store.DbmStore, "erase_blob", lambda *_: None)

    @instead_of(dbm_store.DbmStore, "put_row")
    def put_row(real: Any, store: Any, user_id: str, before: Row | None, after: Row) -> None:
        if before and isinstance(after.record, Deleted):
            hidden[user_id] = before
        elif isinstance(after.record, Account) and (shown := hidden.pop(user_id, None)):
            after = dataclasses.replace(shown, record=dataclasses.replace(after.record, versions=shown.versions))
        real(store, user_id, before, after)


def credentials_of_deleted(server: Server, request: Request) -> Credentials | None:
    """Return the credentials of a request if they name a deleted user."""
    credentials = backup_server.credentials_of(request.header("Authorization") or "")
    is_deleted = credentials and isinstance(server.store.find(credentials.user_id), Deleted)
    return credentials if is_deleted else None


@breaks("delete.all", "delete.refused", "replay.store")
def upload_registers_its_user() -> None:
    """An upload that is replayed after the deletion makes the account again."""

    @instead_of_proof("userCredentials")
    def check_credentials(real: Any, server: Server, request: Request) -> Credentials:
        try:
            return real(server, request)
        except Problem:
            credentials = credentials_of_deleted(server, request)
            if request.operation.id != "storeBackup" or not credentials:
                raise
            with server.store.account(credentials.user_id) as held:
                account = Account(created_at=clock.now(), key_sha256=credentials.key_sha256)
                held.create(account)
            return User(credentials.user_id, credentials.key_sha256, account, request.address)


@breaks("delete.reserved", "replay.register")
def deleted_name_is_free_at_once() -> None:
    """A registration that is replayed after the deletion makes the account again."""
    add_to_limit("deletedUserSeconds", -901)


@breaks("delete.reserved")
def deleted_name_is_free_a_second_early() -> None:
    """The name is free after 900 seconds. In the last of them an upload that began before may still act."""
    add_to_limit("deletedUserSeconds", -1)


@breaks("delete.reserved")
def retry_after_of_a_deleted_name_is_short() -> None:
    """A client that waits exactly as long as Retry-After says is refused again."""
    shorten_retry_after(409)


@breaks("delete.refused")
def deleted_user_is_told_so() -> None:
    """A deleted user's requests get 404, which distinguishes them from those of other users."""

    @instead_of_proof("userCredentials")
    def check_credentials(real: Any, server: Server, request: Request) -> Credentials:
        try:
            return real(server, request)
        except Problem:
            if credentials_of_deleted(server, request):
                raise Problem("no_backup", "This account was deleted.") from None
            raise


# --- Replay -----------------------------------------------------------------------------------------------------------


@breaks("replay.signature")
def signature_may_be_used_again() -> None:
    """A captured upload is accepted again when its base comes back."""

    @instead_of(backup_server, "store_version")
    def store_version(real: Any, server: Server, request: Request, signature: str, *arguments: Any) -> Response:
        return real(server, request, secrets.token_hex(), *arguments)


@breaks("replay.retry")
def retry_comes_back() -> None:
    """An upload that was acknowledged as a retry is stored from the network when its base is the latest again."""

    @instead_of(RefusedUploads, "add")
    def add(real: Any, refused: RefusedUploads, user_id: str, signature: str) -> None:
        if sys.exception():  # it is refused, and no retry
            real(refused, user_id, signature)


@breaks("replay.refused")
def refused_upload_comes_back() -> None:
    """An upload that was refused for its base is stored from the network when the base fits."""
    change(RefusedUploads, "has", lambda *_: False)


@breaks("replay.refused")
def refused_upload_comes_back_after_300_seconds() -> None:
    """The server forgets that the device's clock may have been ahead."""

    @instead_of(RefusedUploads, "__init__")
    def make(real: Any, refused: RefusedUploads, seconds: int, *tables: Any) -> None:
        real(refused, 300, *tables)


@breaks("replay.refused")
def few_refused_uploads_are_remembered() -> None:
    """Six refused uploads let the first of them come back."""
    change(RefusedUploads, "MOST_OF_AN_ACCOUNT", 5)


@breaks("replay.refused")
def upload_that_was_refused_for_space_comes_back() -> None:
    """Only conflicts are remembered."""

    change(backup_server, "REFUSALS_OF_UPLOADS", {"version_conflict", "rate_limited"})
