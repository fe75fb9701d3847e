"""What goes wrong only at the second time: caches that outlive what they know, and checks that are made once."""

from dataclasses import replace
from typing import Any

import backup_server
from backup_server import Credentials, Problem, Request, Response, Server, User
from server.accounts import Account, DamagedData, Version
from server_tests.broken.fault import (
    HeldRow,
    Reader,
    breaks,
    instead_of,
    instead_of_handler,
    instead_of_proof,
    named_user,
    stored_bytes,
)


@breaks("backup.damaged")
def bytes_are_verified_once() -> None:
    """A version that was read well once is never verified again."""
    verified: set[tuple[str, Version]] = set()

    @instead_of(Reader, "data")
    def data(real: Any, store: Any, user_id: str, version: Version) -> bytes | None:
        if (user_id, version) in verified and (unverified := stored_bytes(store, user_id, version)) is not None:
            return unverified
        found: bytes | None = real(store, user_id, version)
        if found is not None:
            verified.add((user_id, version))
        return found


@breaks("retry.mends")
def damage_is_remembered() -> None:
    """A version that was damaged once is said to be damaged for ever, although a retry has repaired it."""
    damaged: set[tuple[str, Version]] = set()

    @instead_of(Reader, "data")
    def data(real: Any, store: Any, user_id: str, version: Version) -> bytes | None:
        if (user_id, version) in damaged:
            raise DamagedData
        try:
            return real(store, user_id, version)
        except DamagedData:
            damaged.add((user_id, version))
            raise


@breaks("delete.all", "delete.fresh")
def bytes_are_cached_by_number() -> None:
    """The bytes of a version are cached by userId and number. A new account of this name gets those of the old one."""
    cache: dict[tuple[str, int, int], bytes] = {}

    @instead_of(Reader, "data")
    def data(real: Any, store: Any, user_id: str, version: Version) -> bytes | None:
        found = real(store, user_id, version)
        return found if found is None else cache.setdefault((user_id, version.number, version.size), found)


@breaks("version.list")
def list_is_cached_until_an_upload() -> None:
    """The list of versions is cached, and a change of the key does not renew it."""
    cache: dict[str, Response] = {}

    @instead_of_handler("listBackupVersions")
    def list_backup_versions(real: Any, server: Server, request: Request, user: User) -> Response:
        if user.user_id not in cache:
            cache[user.user_id] = real(server, request, user=user)
        return cache[user.user_id]

    @instead_of_handler("storeBackup")
    def store_backup(real: Any, server: Server, request: Request, **arguments: Any) -> Response:
        cache.pop(arguments["user"].user_id, None)
        response: Response = real(server, request, **arguments)
        cache.pop(arguments["user"].user_id, None)
        return response


@breaks("delete.fresh")
def list_is_cached_beyond_a_deletion() -> None:
    """The list of versions is cached under the credentials, and forgotten when a version is stored."""
    cache: dict[tuple[str, str], Response] = {}

    @instead_of_handler("listBackupVersions")
    def list_backup_versions(real: Any, server: Server, request: Request, user: User) -> Response:
        if (user.user_id, user.key_sha256) not in cache:
            cache[user.user_id, user.key_sha256] = real(server, request, user=user)
        return cache[user.user_id, user.key_sha256]

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, *arguments: Any, **options: Any) -> None:
        real(held, *arguments, **options)
        for each in [each for each in cache if each[0] == held._user_id]:
            del cache[each]


@breaks("key.new")
def wrong_key_stays_wrong() -> None:
    """A key that was wrong once is refused from then on, also when the account has been changed to it."""
    wrong: set[tuple[str, str]] = set()

    @instead_of(Credentials, "open")
    def open_account(real: Any, credentials: Credentials, record: Any) -> Account | None:
        pair = credentials.user_id, credentials.key_sha256
        found = None if pair in wrong else real(credentials, record)
        if found is None and isinstance(record, Account):
            wrong.add(pair)
        return found


@breaks("registerUser.201", "credentials.whole")
def unknown_user_stays_unknown() -> None:
    """The server remembers that there is no account. After the registration, reads still get 401."""
    unknown: set[str] = set()

    @instead_of_proof("userCredentials")
    def check_credentials(real: Any, server: Server, request: Request) -> Any:
        named = backup_server.credentials_of(request.header("Authorization") or "")
        if named and request.operation.id != "registerUser":
            if server.store.find(named.user_id) is None:
                unknown.add(named.user_id)
            elif named.user_id in unknown and request.method == "GET":
                raise backup_server.credentials_invalid()
        return real(server, request)


@breaks("key.new")
def former_key_is_never_good_again() -> None:
    """A key that was replaced stays blocked, also when the person changes back to it."""
    former: set[tuple[str, str]] = set()

    @instead_of(Credentials, "open")
    def open_account(real: Any, credentials: Credentials, record: Any) -> Account | None:
        return None if (credentials.user_id, credentials.key_sha256) in former else real(credentials, record)

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, account: Account, *arguments: Any, **options: Any) -> None:
        before = held.record
        real(held, account, *arguments, **options)
        if isinstance(before, Account) and before.key_sha256 != account.key_sha256:
            former.add((held._user_id, before.key_sha256))


@breaks("key.old", "delete.refused")
def not_modified_needs_no_key() -> None:
    """If the ETag of a request was given to these credentials before, the answer is 304, whatever happened since."""
    given: dict[tuple[str | None, str], Response] = {}

    @instead_of_proof("userCredentials")
    def check_credentials(real: Any, server: Server, request: Request) -> Any:
        named, etag = request.header("Authorization"), request.header("If-None-Match")
        if etag and (named, etag) in given and (user := named_user(server, request)):
            return user
        return real(server, request)

    @instead_of(backup_server, "fetch")
    def fetch(real: Any, server: Server, request: Request, *arguments: Any) -> Response:
        response: Response = real(server, request, *arguments)
        given[request.header("Authorization"), response.headers["ETag"]] = response
        return response


@breaks("history.dropped", "fetchBackupVersion.404")
def dropped_version_is_still_not_modified() -> None:
    """If-None-Match with the ETag of a version that was dropped gets 304 in place of 404."""
    etags: set[tuple[str, str]] = set()

    @instead_of_handler("fetchBackupVersion")
    def fetch_version(real: Any, server: Server, request: Request, user: User) -> Response:
        try:
            response: Response = real(server, request, user=user)
        except Problem:
            etag = request.header("If-None-Match") or ""
            if (user.user_id, etag) in etags:
                return Response(304, headers={"ETag": etag})
            raise
        etags.add((user.user_id, response.headers["ETag"]))
        return response


@breaks("version.count")
def missing_version_stays_missing() -> None:
    """The number of a version that was asked for before it was stored gets 404 afterwards, too."""
    missing: set[tuple[str, str]] = set()

    @instead_of_handler("fetchBackupVersion")
    def fetch_version(real: Any, server: Server, request: Request, user: User) -> Response:
        asked = user.user_id, request.parameters["version"]
        if asked in missing:
            raise Problem("no_such_version", "This version is not kept: list the versions that are.")
        try:
            return real(server, request, user=user)
        except Problem:
            missing.add(asked)
            raise


@breaks("delete.all", "version.key")
def only_the_first_deletion_is_complete() -> None:
    """The server notes which names it has cleaned up. The third account goes on with the second's keyVersion."""
    left: dict[str, Account] = {}
    cleaned_up: set[str] = set()

    @instead_of(HeldRow, "delete")
    def delete(real: Any, held: Any, *arguments: Any, **options: Any) -> None:
        if held._user_id in cleaned_up and isinstance(held.record, Account):
            left[held._user_id] = held.record
        cleaned_up.add(held._user_id)
        real(held, *arguments, **options)

    @instead_of(HeldRow, "create")
    def create(real: Any, held: Any, account: Account) -> None:
        before = left.pop(held._user_id, account)
        real(held, replace(account, key_version=before.key_version))
