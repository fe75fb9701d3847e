"""Faults of what is stored: a backup's bytes, its versions, and the base that guards against lost updates."""

import base64
import binascii
import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import backup_server
from backup_server import Problem, Request, Response, Server, User
from server import clock, i_json, json_schema, records
from server.accounts import Account, Damaged, Record, Upload, Version
from server_tests.broken.fault import (
    Function,
    HeldRow,
    Reader,
    add_to_limit,
    breaks,
    change,
    instead_of,
    instead_of_handler,
    on_answer,
    stored_bytes,
)

# --- A backup ---------------------------------------------------------------------------------------------------------


@breaks("backup.bytes")
def backup_loses_its_last_byte() -> None:
    """The server stores one byte less than was sent, and the receipt describes that."""
    change_data(lambda data: data[:-1] or data)


@breaks("backup.bytes")
def backup_is_padded() -> None:
    """The server stores whole blocks of 16 bytes."""
    change_data(lambda data: data + bytes(-len(data) % 16))


@breaks("backup.largest")
def backup_is_cut_off_at_a_mebibyte() -> None:
    """The server stores only the beginning of a large backup."""
    change_data(lambda data: data[: 2**20])


def change_data(change_bytes: Callable[[bytes], bytes]) -> None:
    @instead_of(json_schema, "decode_base64")
    def decode_base64(real: Function, text: str) -> bytes | None:
        data = real(text)
        return change_bytes(data) if data else data


@breaks("backup.bytes")
def one_bit_is_flipped() -> None:
    """What is fetched differs from what was stored in the last bit."""

    @on_answer
    def flip_the_last_bit(environ: dict[str, Any], answer: Any) -> None:
        if b'"data":' in answer.body and answer.status == 200 and environ["PATH_INFO"].startswith("/api/"):
            backup = json.loads(answer.body)
            *data, last = base64.b64decode(backup["data"])
            answer.body = json.dumps(backup | {"data": base64.b64encode(bytes([*data, last ^ 1])).decode()}).encode()


@breaks("backup.bytes")
def what_is_fetched_has_no_padding() -> None:
    """What is fetched is base64 without padding, which some decoders refuse."""

    @on_answer
    def strip_the_padding(environ: dict[str, Any], answer: Any) -> None:
        if b'"data":' in answer.body and answer.status == 200 and environ["PATH_INFO"].startswith("/api/"):
            backup = json.loads(answer.body)
            answer.body = json.dumps(backup | {"data": backup["data"].rstrip("=")}).encode()


@breaks("backup.largest")
def largest_backup_is_a_byte_smaller() -> None:
    """5,242,880 bytes are too many."""
    change_largest_backup(lambda size: size - 1)


@breaks("backup.too-large")
def largest_backup_is_a_byte_larger() -> None:
    """5,242,881 bytes are accepted."""
    change_largest_backup(lambda size: size + 1)


@breaks("backup.largest")
def base64_has_to_fit_the_limit() -> None:
    """A backup may have 5,242,880 characters of base64."""
    change_largest_backup(lambda size: size * 3 // 4)


@breaks("backup.too-large")
def size_is_counted_in_text() -> None:
    """A backup may be as long in base64 as the largest one, but three sizes have this length."""
    change_largest_backup(lambda size: math.ceil(size / 3) * 3)


def change_largest_backup(change_size: Callable[[int], int]) -> None:
    @instead_of(backup_server.Spec, "__init__")
    def load(real: Function, spec: Any, path: Any) -> None:
        real(spec, path)
        spec.max_decoded_bytes = change_size(spec.max_decoded_bytes)


@breaks("backup.body")
def largest_body_is_a_byte_smaller() -> None:
    """A body of 8,388,608 bytes is too large."""
    add_to_limit("requestBodyBytes", -1)


@breaks("backup.body")
def largest_body_is_a_byte_larger() -> None:
    """A body of 8,388,609 bytes is read."""
    add_to_limit("requestBodyBytes", 1)


@breaks("backup.base64")
def base64_is_unchecked() -> None:
    """The server skips characters that are not base64."""
    decode_by(lambda text: base64.b64decode(text.encode() + b"==") or None)


@breaks("backup.base64")
def unused_bits_are_unchecked() -> None:
    """One backup has many spellings."""
    decode_by(lambda text: base64.b64decode(text, validate=True))


def decode_by(decode: Callable[[str], bytes | None]) -> None:
    @instead_of(json_schema, "decode_base64")
    def decode_base64(real: Function, text: str) -> bytes | None:
        with contextlib.suppress(binascii.Error):
            return decode(text)
        return None


@breaks("backup.damaged")
def damage_is_not_seen() -> None:
    """The server returns a version even if its bytes are damaged."""

    @instead_of(Reader, "data")
    def data(real: Function, store: Any, user_id: str, version: Version) -> bytes | None:
        try:
            found: bytes | None = real(store, user_id, version)
            return found
        except Damaged:
            return stored_bytes(store, user_id, version)


@breaks("retry.mends")
def damage_stays() -> None:
    """A retry succeeds, but the damaged bytes stay as they are."""
    change(HeldRow, "mend", lambda held, version, data: None)


# --- Versions ---------------------------------------------------------------------------------------------------------


@breaks("version.count")
def version_numbers_are_used_again() -> None:
    """A new version gets the number of versions that exist as its number."""

    @instead_of(backup_server, "kept_versions")
    def kept_versions(real: Function, versions: tuple[Version, ...], keep: tuple[int, ...]) -> tuple[Version, ...]:
        *older, last = real(versions, keep)
        return (*older, replace(last, number=len(older) + 1))


@breaks("version.latest")
def oldest_version_is_fetched() -> None:
    """fetchBackup returns the oldest kept version."""
    show_versions("fetchBackup", lambda versions: versions[:1])


@breaks("version.list")
def versions_are_listed_oldest_first() -> None:
    """The list begins with the oldest version."""
    show_versions("listBackupVersions", lambda versions: versions[::-1])


def show_versions(operation_id: str, choose: Callable[[tuple[Version, ...]], tuple[Version, ...]]) -> None:
    """Make an operation see other versions than the account has."""

    @instead_of_handler(operation_id)
    def handler(real: Function, server: Server, request: Request, user: User) -> Any:
        account = replace(user.account, versions=choose(user.account.versions))
        return real(server, request, user=replace(user, account=account))


@breaks("version.key")
def key_version_is_always_1() -> None:
    """A client cannot tell which password opens a version."""

    @instead_of(backup_server, "receipt")
    def receipt(real: Function, version: Version) -> Any:
        return real(version) | {"keyVersion": 1}


@breaks("version.key")
def key_version_is_the_accounts() -> None:
    """A change of the key changes the keyVersion of older versions, too, but only the old password opens them."""

    @instead_of(records, "record_of")
    def record_of(real: Function, value: dict[str, Any]) -> Record:
        record: Record = real(value)
        if not isinstance(record, Account):
            return record
        versions = (replace(version, key_version=record.key_version) for version in record.versions)
        return replace(record, versions=tuple(versions))


@breaks("version.canonical")
def version_may_have_leading_zeros() -> None:
    """The path may name a version in any form that int() accepts."""

    @instead_of_handler("fetchBackupVersion")
    def fetch_backup_version(real: Function, server: Server, request: Request, user: User) -> Any:
        if re.fullmatch("[+0]*[0-9]{1,9}", request.parameters["version"]):
            request = replace(request, parameters={"version": str(int(request.parameters["version"]))})
        return real(server, request, user=user)


@breaks("etag.strong")
def etag_is_weak() -> None:
    """The ETag is weak, as if a proxy had compressed the answer."""

    @on_answer
    def weaken(environ: dict[str, Any], answer: Any) -> None:
        if "ETag" in answer.headers:
            answer.headers["ETag"] = "W/" + answer.headers["ETag"]


@breaks("etag.other")
def changed_backup_is_not_modified() -> None:
    """A client that has any version is told that it is the latest."""
    change(backup_server, "matches", lambda if_none_match, etag: bool(if_none_match))


@breaks("etag.match")
def if_none_match_has_to_be_the_etag() -> None:
    """The server does not understand a list of ETags, a weak one, or *."""
    change(backup_server, "matches", lambda if_none_match, etag: if_none_match == etag)


# --- No lost update ---------------------------------------------------------------------------------------------------

Value = Mapping[str, Any]  # the members of an upload's body
Storing = Callable[[Value], Response]


def instead_of_storing(function: Callable[[Storing, Server, User, Value], Response]) -> None:
    """Replace the function that stores an upload. The new function gets (real, server, user, value)."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Function, server: Server, request: Request, signature: str, user: User, value: Value, *key: str
    ) -> Response:
        return function(lambda value: real(server, request, signature, user, value, *key), server, user, value)


def latest(server: Server, user: User) -> Version | None:
    """Return the user's latest version as it is now, or None if there is none."""
    record = server.store.find(user.user_id)
    return record.latest if isinstance(record, Account) else None


def rebased(server: Server, user: User, value: Value) -> Value:
    """Return an upload whose base is the latest version, whatever its base was."""
    version, rest = latest(server, user), {name: value[name] for name in value if name != "baseSha256"}
    return rest | {"baseSha256": version.sha256} if version else rest


def conflict(server: Server, user: User) -> Problem:
    version = latest(server, user)
    return Problem("version_conflict", "A conflict.", currentVersion=version.number if version else 0)


@breaks("base.latest")
def first_backup_needs_a_base() -> None:
    """An upload without a base is a conflict, even the first one."""

    @instead_of_storing
    def store(real: Storing, server: Server, user: User, value: Value) -> Response:
        if "baseSha256" not in value:
            raise conflict(server, user)
        return real(value)


@breaks("base.conflict")
def base_is_ignored() -> None:
    """The last upload wins."""
    rebase_if(lambda server, user, value: True)


@breaks("base.conflict")
def base_may_be_left_out() -> None:
    """An upload without a base overwrites whatever there is."""
    rebase_if(lambda server, user, value: "baseSha256" not in value)


@breaks("base.conflict")
def base_may_be_any_kept_version() -> None:
    """An upload that was made from an older version overwrites the newer ones."""
    rebase_if(
        lambda server, user, value: value.get("baseSha256") in [version.sha256 for version in user.account.versions]
    )


@breaks("base.content")
def number_is_taken_for_a_base() -> None:
    """The latest version's number is as good a base as its sha256."""

    @instead_of(backup_server, "receive")
    def receive(real: Function, server: Server, request: Request) -> bytes:
        member = re.compile(rb'("baseSha256": ?)"?0*([0-9]{1,9})"?(?=[,}])')
        return member.sub(lambda found: b'%b"%064d"' % (found[1], int(found[2])), real(server, request))

    def is_number(server: Server, user: User, value: Value) -> bool:
        version = latest(server, user)
        return version is not None and value.get("baseSha256") == f"{version.number:064}"

    rebase_if(is_number)


def rebase_if(condition: Callable[[Server, User, Value], bool]) -> None:
    @instead_of_storing
    def store(real: Storing, server: Server, user: User, value: Value) -> Response:
        if condition(server, user, value):
            value = rebased(server, user, value)
        return real(value)


@breaks("base.race")
def two_uploads_at_once_both_win() -> None:
    """The base is compared before the account is held, and not again."""

    @instead_of_storing
    def store(real: Storing, server: Server, user: User, value: Value) -> Response:
        fits = value == rebased(server, user, value)
        time.sleep(0.05 * fits)
        for _ in range(16 * fits):
            with contextlib.suppress(Problem):
                return real(rebased(server, user, value))
        return real(value)


@breaks("base.current")
def conflict_names_the_next_version() -> None:
    """currentVersion is the number that the upload would have had."""

    @on_answer
    def add_one(environ: dict[str, Any], answer: Any) -> None:
        if answer.status == 409 and b'"currentVersion"' in answer.body:
            problem = json.loads(answer.body)
            answer.body = json.dumps(problem | {"currentVersion": problem["currentVersion"] + 1}).encode()


@breaks("base.conflict", "problem.unchanged")
def conflicting_upload_is_stored_all_the_same() -> None:
    """The client gets a conflict, but has overwritten the other device's version."""

    @instead_of_storing
    def store(real: Storing, server: Server, user: User, value: Value) -> Response:
        try:
            return real(value)
        except Problem as problem:
            if problem.code == "version_conflict":
                with mock.patch.object(server.refused, "has", return_value=False):
                    real(rebased(server, user, value))
            raise


@breaks("retry.receipt", "limits.free")
def retry_makes_another_version() -> None:
    """An upload that is repeated after a lost answer is stored twice."""

    @instead_of_storing
    def store(real: Storing, server: Server, user: User, value: Value) -> Response:
        response = real(value)
        if response.status == 201:
            return response
        with server.store.account(user.user_id) as held:
            account = user.again(server, held.record)
            version = replace(account.versions[-1], number=account.versions[-1].number + 1)
            uploads = (*account.uploads, Upload(clock.now(), ""))
            held.append(replace(account, versions=(*account.versions, version), uploads=uploads), value["data"])
        response = response.with_headers({"Location": f"/api/backup/versions/{version.number}"})
        return replace(response, status=201, body=i_json.encode(backup_server.receipt(version)))


@breaks("retry.first")
def base_is_compared_before_a_retry_is_seen() -> None:
    """A repeated upload is a conflict with itself."""

    @instead_of_storing
    def store(real: Storing, server: Server, user: User, value: Value) -> Response:
        if value != rebased(server, user, value):
            raise conflict(server, user)
        return real(value)


# --- Compared in part -------------------------------------------------------------------------------------------------


def match_by(other: Callable[[str, str], bool]) -> None:
    """Decide by `other(if_none_match, etag)`, too, whether the version is the one that the client has."""

    @instead_of(backup_server, "matches")
    def matches(real: Function, if_none_match: str | None, etag: str) -> bool:
        return real(if_none_match, etag) or (if_none_match is not None and other(if_none_match, etag))


@breaks("etag.whole")
def etag_counts_by_its_version() -> None:
    """After a deletion, a device that has version 1 of the old account is told that it has that of the new one."""
    match_by(lambda sent, etag: f"{etag.partition('-')[0]}-" in sent)


@breaks("etag.whole")
def etag_counts_by_its_digest() -> None:
    """A version with the same bytes and another number is taken for the one that the device has."""
    match_by(lambda sent, etag: etag.partition("-")[2] in sent)


@breaks("etag.whole")
def etag_is_looked_for_in_the_text() -> None:
    """An ETag that contains another one is taken for it."""
    match_by(lambda sent, etag: etag.strip('"') in sent)


@breaks("etag.whole")
def etag_counts_by_its_beginning() -> None:
    """Only the first 32 digits of the digest count."""
    match_by(lambda sent, etag: any(each.startswith(etag[:35]) for each in re.findall('"[^"]*"', sent)))


@breaks("etag.match")
def only_the_first_etags_of_a_list_count() -> None:
    """The server reads eight ETags at most."""
    real = backup_server.matches
    change(backup_server, "matches", lambda sent, etag: real(sent and ",".join(sent.split(",")[:8]), etag))


@breaks("base.whole")
def base_counts_by_its_first_half() -> None:
    """The base is compared as far as a short sha256 goes."""
    rebase_if_like(lambda sent, latest: sent[:32] == latest[:32])


@breaks("base.whole")
def base_counts_by_its_last_half() -> None:
    """Only the last 16 bytes of the base count."""
    rebase_if_like(lambda sent, latest: sent[32:] == latest[32:])


def rebase_if_like(is_like: Callable[[str, str], bool]) -> None:
    def condition(server: Server, user: User, value: Value) -> bool:
        version = latest(server, user)
        return version is not None and is_like(value.get("baseSha256", ""), version.sha256)

    rebase_if(condition)


@breaks("retry.whole")
def retry_is_seen_by_size_and_beginning() -> None:
    """An upload of the same size, which begins like the latest version, is taken for a retry, and is lost."""
    see_retry_by(lambda new, old: len(new) == len(old) and new[:64] == old[:64])


@breaks("retry.whole")
def retry_is_seen_by_size_and_end() -> None:
    """An upload of the same size, which ends like the latest version, is taken for a retry, and is lost."""
    see_retry_by(lambda new, old: len(new) == len(old) and new[-64:] == old[-64:])


def see_retry_by(is_same: Callable[[bytes, bytes], bool]) -> None:
    @instead_of_storing
    def store(real: Storing, server: Server, user: User, value: Value) -> Response:
        version = latest(server, user)
        stored = version and server.store.data(user.user_id, version)
        if stored and "storageKey" not in value and is_same(value["data"], stored):
            value = {**value, "data": stored}
        return real(value)


@breaks("key.whole")
def key_that_begins_like_the_old_is_the_same() -> None:
    """A new key is compared with the old one by its first 60 characters."""

    @instead_of_handler("changeStorageKey")
    def change_storage_key(real: Function, server: Server, request: Request, value: Value, **needs: Any) -> Any:
        encoded = (request.header("Authorization") or "").rpartition(" ")[2]
        if base64.b64decode(encoded).decode().partition(":")[2][:60] == value["storageKey"][:60]:
            raise backup_server.validation_failed([{"pointer": "#/storageKey", "detail": "is the key in force"}])
        return real(server, request, value=value, **needs)


# --- Large ones -------------------------------------------------------------------------------------------------------


@breaks("backup.any-size")
def base64_of_a_large_backup_is_not_looked_at() -> None:
    """To save time, what is larger than 100,000 characters is decoded without a check."""

    @instead_of(json_schema, "decode_base64")
    def decode_base64(real: Function, text: str) -> bytes | None:
        if len(text) <= 100_000:
            return real(text)
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(text.encode("ascii", "replace") + b"==") or None
        return None


@breaks("backup.any-size")
def unused_bits_of_a_large_backup_are_unchecked() -> None:
    """Only what fits a cache line by line is encoded again."""

    @instead_of(json_schema, "decode_base64")
    def decode_base64(real: Function, text: str) -> bytes | None:
        if len(text) <= 1_000_000:
            return real(text)
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(text.encode("ascii", "replace"), validate=True)
        return None


@breaks("backup.any-size")
def last_byte_of_a_block_is_lost() -> None:
    """The server copies blocks of 64 KiB, and loses a last block of one byte."""
    change_data(lambda data: data[:-1] if len(data) % 65_536 == 1 and len(data) > 1 else data)


@breaks("backup.any-size")
def base_of_a_large_backup_is_ignored() -> None:
    """A backup that went to a file is put in place without a look at its base."""
    rebase_if(lambda server, user, value: len(value["data"]) > 1_000_000)


@breaks("backup.any-size")
def base_of_a_middling_backup_is_ignored() -> None:
    """Between what is held in memory and what goes to a file, the base is not compared."""
    rebase_if(lambda server, user, value: 65_536 < len(value["data"]) <= 524_288)


@breaks("backup.any-size")
def damage_of_a_large_version_is_not_seen() -> None:
    """To save time, only what is smaller than 256 KiB is verified when it is fetched."""

    @instead_of(Reader, "data")
    def data(real: Function, store: Any, user_id: str, version: Version) -> bytes | None:
        return (stored_bytes if version.size > 262_144 else real)(store, user_id, version)


@breaks("backup.any-size")
def signature_of_a_large_upload_may_be_used_again() -> None:
    """The signature of an upload that went to a file is not kept."""

    @instead_of(backup_server, "store_version")
    def store_version(
        real: Function, server: Server, request: Request, signature: str, user: User, value: Value, *key: str
    ) -> Response:
        kept = str(time.monotonic_ns()) if len(value["data"]) > 65_536 else signature
        return real(server, request, kept, user, value, *key)
