"""Accounts and their versions, and what a store of them does. Knows nothing of HTTP, files or SQL.

Times are Unix milliseconds. Digests are SHA-256 in lowercase hex.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from server import i_json

# --- Records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One kept backup of an account. A store finds its bytes by `number` and can check them by `sha256`."""

    number: int
    stored_at: int
    size: int
    sha256: str
    key_version: int  # of the storage key that was in force once it was stored


@dataclass(frozen=True)
class Upload:
    """An upload that made a version. Its time counts against the limits, and its signature is spent."""

    moment: int
    signature: str = field(repr=False)


@dataclass(frozen=True)
class Account:
    """A living account. Of the storage key only the digest is kept."""

    created_at: int
    key_sha256: str = field(repr=False)
    key_version: int = 1
    versions: tuple[Version, ...] = ()  # those that are kept, oldest first
    uploads: tuple[Upload, ...] = field(default=(), repr=False)

    @property
    def latest(self) -> Version | None:
        """The newest version, if there is one."""
        return self.versions[-1] if self.versions else None


@dataclass(frozen=True)
class Deleted:
    """What is left of a deleted account. It reserves the userId for a while."""

    deleted_at: int


Record = Account | Deleted


# --- The store --------------------------------------------------------------------------------------------------------


class StorageError(Exception):
    """The store could not do what it was asked. Nothing was changed, unless the method says otherwise."""


class StorageFull(StorageError):
    """There is no space left for this."""


class StorageUnavailable(StorageError):
    """The store cannot be read or written now. `retry_after` is in seconds."""

    def __init__(self, message: str = "", retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Damaged(StorageError):
    """What is stored is not what was stored: its digest says so, or it cannot be read at all."""


class DamagedData(Damaged):
    """The same, of the bytes of a version. The record is whole, and other versions may be."""


@dataclass(frozen=True)
class Stats:
    """How many accounts there are, how many of them have a backup, all their versions, and the bytes these take."""

    users: int
    backups: int
    versions: int
    database_bytes: int


class HeldAccount(ABC):
    """An account that nobody else changes meanwhile. `record` is how it is now; None if there never was one.

    A block makes one change at most, as its last step. The change is on disk when the block has ended.
    """

    record: Record | None

    @abstractmethod
    def create(self, account: Account) -> None:
        """Make a new account. Nothing of a deleted one comes back.

        Raise StorageFull or StorageUnavailable.
        """

    @abstractmethod
    def append(self, account: Account, data: bytes) -> None:
        """Replace the account by one whose latest version is new and has these bytes. Forget versions it dropped.

        Both are stored, or neither. Raise StorageFull or StorageUnavailable.
        """

    @abstractmethod
    def mend(self, version: Version, data: bytes) -> None:
        """Write a version's bytes again if those that are stored are damaged. Raise StorageFull or StorageUnavailable.

        `data` are the right bytes: their SHA-256 is the version's.
        """

    @abstractmethod
    def delete(self, moment: int) -> None:
        """Delete the account and all its versions, and reserve the userId from `moment` on.

        A full disk does not prevent it. Raise StorageUnavailable.
        """


class StoreReader(ABC):
    """What can be read from a store, also beside a server that is running on it."""

    @abstractmethod
    def check(self) -> None:
        """Read something. Raise StorageUnavailable if that fails."""

    @abstractmethod
    def find(self, user_id: str) -> Record | None:
        """Return a user's record; None if there is none. Raise StorageUnavailable or Damaged."""

    @abstractmethod
    def data(self, user_id: str, version: Version) -> bytes | None:
        """Return a version's bytes, which have its SHA-256; None if the account does not have it any more.

        `version` is one that a record held. Raise DamagedData, StorageUnavailable or Damaged.
        """

    @abstractmethod
    def user_ids(self) -> Iterator[str]:
        """Yield the userId of each record, those of deleted accounts included. Raise StorageUnavailable."""

    @abstractmethod
    def close(self) -> None:
        """Finish what is being written and close the store. No other call may follow or be under way."""


class Store(StoreReader):
    """Accounts by userId."""

    @abstractmethod
    def account(self, user_id: str) -> AbstractContextManager[HeldAccount]:
        """Hold an account for one change.

            with store.account(user_id) as account:
                ...
                account.append(changed, data)

        The block decides by `account.record`. An error that it raises before the change leaves everything as it was.
        Do not nest such blocks: a store may hold all accounts at once. Raise StorageUnavailable or Damaged.
        """

    @abstractmethod
    def stats(self) -> Stats:
        """Return the counts. Raise StorageUnavailable, also as long as a store that was just opened still counts."""


# --- Records as bytes -------------------------------------------------------------------------------------------------

RECORD_FORMAT = 2


def to_bytes(user_id: str, record: Record, **members: Any) -> bytes:
    """Return a record as a checksum, a line feed and JSON. `members` are the store's own."""
    match record:
        case Account():
            value: dict[str, Any] = {
                "createdAt": record.created_at,
                "storageKeySha256": record.key_sha256,
                "keyVersion": record.key_version,
                "versions": [
                    {
                        "version": version.number,
                        "updatedAt": version.stored_at,
                        "size": version.size,
                        "sha256": version.sha256,
                        "keyVersion": version.key_version,
                    }
                    for version in record.versions
                ],
                "uploads": [[upload.moment, upload.signature] for upload in record.uploads],
            }
        case Deleted():
            value = {"deletedAt": record.deleted_at}
    text = i_json.encode({"format": RECORD_FORMAT, **value, **members})
    return checksum(user_id, text) + b"\n" + text


def from_bytes(user_id: str, stored: bytes) -> tuple[Record, dict[str, Any]]:
    """Return what `to_bytes` was given: the record and the store's own members.

    Raise Damaged if a bit has changed, or if the bytes are another user's.
    """
    found, _, text = stored.partition(b"\n")
    if found != checksum(user_id, text):
        raise Damaged("a record does not have its checksum")
    value = json.loads(text)
    if value.pop("format") != RECORD_FORMAT:
        raise Damaged("a record is of a format that this server does not know")
    return record_of(value), value


def record_of(value: dict[str, Any]) -> Record:
    """Take a record's members out of its JSON value, and return the record."""
    if "deletedAt" in value:
        return Deleted(value.pop("deletedAt"))
    return Account(
        created_at=value.pop("createdAt"),
        key_sha256=value.pop("storageKeySha256"),
        key_version=value.pop("keyVersion"),
        versions=tuple(
            Version(
                number=version["version"],
                stored_at=version["updatedAt"],
                size=version["size"],
                sha256=version["sha256"],
                key_version=version["keyVersion"],
            )
            for version in value.pop("versions")
        ),
        uploads=tuple(Upload(moment, signature) for moment, signature in value.pop("uploads")),
    )


def checksum(user_id: str, text: bytes) -> bytes:
    """Return the SHA-256 of a record and of whose it is, in hex: no bit of either can change unseen."""
    return hashlib.sha256(user_id.encode() + b"\n" + text).hexdigest().encode()
