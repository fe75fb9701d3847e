"""Faults that let one user reach another's account, or lock the other out."""

from typing import Any

from backup_server import Credentials, Problem, Request, Response, Server
from server.accounts import Account, Record
from server_tests.broken.fault import (
    Function,
    breaks,
    change_account,
    count_upload,
    instead_of,
    instead_of_handler,
    instead_of_proof,
    named_user,
    on_answer,
)


@breaks("isolation.read")
def anyone_reads() -> None:
    """Anybody who knows the username gets the backups."""
    belongs_to_anyone("fetchBackup", "fetchBackupVersion", "listBackupVersions")


@breaks("isolation.write")
def anyone_overwrites() -> None:
    """Anybody who knows the username can store a version."""
    belongs_to_anyone("storeBackup")


@breaks("isolation.key")
def anyone_changes_the_key() -> None:
    """Anybody who knows the username can lock the user out."""
    belongs_to_anyone("changeStorageKey")


@breaks("isolation.delete")
def anyone_deletes() -> None:
    """Anybody who knows the username can delete the account."""
    belongs_to_anyone("deleteUser")


def belongs_to_anyone(*operations: str) -> None:
    """Accept the userId alone as the proof of who sends a request to these operations."""

    @instead_of_proof("userCredentials")
    def check_credentials(real: Function, server: Server, request: Request) -> Any:
        user = named_user(server, request) if request.operation.id in operations else None
        return user or real(server, request)


@breaks("isolation.read", "isolation.write", "isolation.delete")
def any_users_key_opens_every_account() -> None:
    """The server looks up a storage key, but does not check whose it is."""
    in_use = set()

    @instead_of(Credentials, "open")
    def open_account(real: Function, credentials: Credentials, record: Record | None) -> Account | None:
        if real(credentials, record):
            in_use.add(credentials.key_sha256)
        return record if credentials.key_sha256 in in_use and isinstance(record, Account) else None


@breaks("isolation.key")
def registering_again_replaces_the_key() -> None:
    """Anybody who knows the username can take over the account by registering it."""

    @instead_of_handler("registerUser")
    def register_user(real: Function, server: Server, request: Request, user: Credentials) -> Response:
        if named_user(server, request):
            change_account(server, user.user_id, key_sha256=user.key_sha256)
        response: Response = real(server, request, user=user)
        return response


@breaks("isolation.read")
def cache_takes_one_user_for_another() -> None:
    """A version never changes, so the server caches it by its path, for all users."""
    cache: dict[str, bytes] = {}

    @on_answer
    def answer_from_cache(environ: dict[str, Any], answer: Any) -> None:
        if environ["PATH_INFO"].startswith("/api/backup/versions/") and answer.status == 200:
            answer.body = cache.setdefault(environ["PATH_INFO"], answer.body)


@breaks("isolation.block")
def uploads_of_strangers_count() -> None:
    """Anybody who knows the username can use up the user's uploads, without any key."""

    @instead_of_proof("userCredentials")
    def check_credentials(real: Function, server: Server, request: Request) -> Any:
        try:
            return real(server, request)
        except Problem:
            if request.operation.has_account_limits and (user := named_user(server, request)):
                count_upload(server, user.user_id)
            raise
