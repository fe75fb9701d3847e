"""How a store reads its file, even while a server is running on it. The file is one of `dbm.sqlite3`.

`user/{userId}` holds a record, and `blob/{userId}/{slot}` the bytes of a version. `server/dbm_store.py` says why.
"""

import contextlib
import dbm.sqlite3
import functools
import hashlib
import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server import records
from server.accounts import (
    Account,
    Damaged,
    DamagedData,
    Record,
    StorageFull,
    StorageUnavailable,
    StoreReader,
    Version,
)
from server.log import log
from server.store_file import FrozenFile, address, is_frozen

FILE_FORMAT = b"2"
FORMER_FORMAT = b"1"  # without checksums; the server reads it, and converts a record when it next writes it
UNKNOWN_FORMAT = "it is not a store in a format that this server knows"
KEY = re.compile(rb"user/([0-9a-f]{64})|blob/([0-9a-f]{64})/(0|[1-9][0-9]{0,8})|format|probe|closed")
ERRORS = (dbm.sqlite3.error, sqlite3.Error)
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # the codes that say so


def sqlite_code(error: Exception) -> int:
    """Return SQLite's primary result code. dbm.sqlite3 hides it in the context of its own error."""
    cause = error if isinstance(error, sqlite3.Error) else error.__context__
    return getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def user_key(user_id: str) -> bytes:
    return f"user/{user_id}".encode()


def blob_key(user_id: str, slot: int) -> bytes:
    return f"blob/{user_id}/{slot}".encode()


@dataclass(frozen=True)
class Row:
    """A record as this store keeps it, with the slot of each version and the number of slots ever used.

    `dropped` has the slots of dropped versions whose bytes are still there, with the times when they were dropped (Unix
    milliseconds), in this order. It is None in a record of a former version, which does not know.
    """

    record: Record
    slots: tuple[int, ...] = ()
    slots_used: int = 0
    dropped: tuple[tuple[int, int], ...] | None = ()

    def to_bytes(self, user_id: str) -> bytes:
        """Return the bytes to store."""
        members = {} if self.dropped is None else {"dropped": self.dropped}
        return records.to_bytes(user_id, self.record, slots=self.slots, slotsUsed=self.slots_used, **members)

    @classmethod
    def from_bytes(cls, user_id: str, stored: bytes) -> "Row":
        """Return the row that the stored bytes contain, in either format. Raise Damaged."""
        if not stored.startswith(b"{"):
            record, members = records.from_bytes(user_id, stored)
            dropped = tuple((slot, moment) for slot, moment in members["dropped"]) if "dropped" in members else None
            return cls(record, tuple(members["slots"]), members["slotsUsed"], dropped)
        try:  # the former format
            value = json.loads(stored)
            slots = tuple(version["slot"] for version in value.get("versions", ()))
            return cls(records.record_of(value), slots, value["slots"], None)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Damaged("a record of the former format cannot be read") from None

    @property
    def versions(self) -> tuple[Version, ...]:
        """The kept versions, oldest first."""
        return self.record.versions if isinstance(self.record, Account) else ()

    @property
    def unnamed(self) -> Iterator[int]:
        """The slots that the record does not name, and the next one, where a crash may have left an upload."""
        return (slot for slot in range(self.slots_used + 1) if slot not in self.slots)

    def next_slot(self) -> int:
        """Return the slot for the next version: that of the version that was dropped first, or an empty one."""
        return self.dropped[0][0] if self.dropped else next(self.unnamed)

    def dropped_with(self, account: Account, slot: int) -> tuple[tuple[int, int], ...] | None:
        """Return `dropped` for when the account is replaced, and its latest version is in this slot."""
        if self.dropped is None:
            return None
        moment = account.versions[-1].stored_at
        slots = dict(zip(self.versions, self.slots, strict=True))
        now = [(slots[version], moment) for version in self.versions if version not in account.versions]
        return (*(each for each in self.dropped if each[0] != slot), *now)

    def slot(self, version: Version) -> int | None:
        """Return the slot of a version, or None if the account does not have it."""
        return dict(zip(self.versions, self.slots, strict=True)).get(version)


# A request reads its user's record two or three times, and rarely finds other bytes: they are understood once.
read_row = functools.lru_cache(maxsize=16)(Row.from_bytes)


class DbmReader(StoreReader):
    """Reads the file of a store, even while a server is running on it."""

    def __init__(self, path: Path) -> None:
        """Take the file's path. Each thread opens the file when it first reads from it. Nothing is ever written."""
        self.path = path
        self._local = threading.local()
        self.has_damaged_index = False  # as far as is known

    @property
    def address(self) -> str:
        """The address of the file, for what dbm.sqlite3 does not have."""
        return address(self.path)

    def _open_file(self, flag: Literal["r", "w"]) -> Any:
        return FrozenFile(self.path) if is_frozen(self.path) else dbm.sqlite3.open(self.path, flag)

    @contextlib.contextmanager
    def _database(self) -> Iterator[Any]:
        """Give this thread's connection. Turn its errors into StorageFull, Damaged or StorageUnavailable."""
        try:
            if not hasattr(self._local, "database"):
                self._local.database = self._open_file("r")
            yield self._local.database
        except ERRORS as error:
            log(event="storage_error", sqliteCode=sqlite_code(error))
            match sqlite_code(error):
                case sqlite3.SQLITE_FULL:
                    raise StorageFull from None
                case code if code in DAMAGE:
                    raise Damaged(str(error)) from None
            raise StorageUnavailable(str(error)) from None

    def check(self) -> None:
        with self._database() as database:
            if self._format(database) is None:
                log(event="storage_error", reason=UNKNOWN_FORMAT)
                raise StorageUnavailable(UNKNOWN_FORMAT)

    def _format(self, database: Any) -> bytes | None:
        """Return the format of the file, or None if it is unknown. A damaged index may lead to another value."""
        for read in (database.get, self.in_table):
            found: bytes | None = read(b"format")
            if found in (FILE_FORMAT, FORMER_FORMAT):
                return found
        return None

    def find(self, user_id: str) -> Record | None:
        row = self.row(user_id)
        return row.record if row else None

    def data(self, user_id: str, version: Version) -> bytes | None:
        row = self.row(user_id)
        while row and (slot := row.slot(version)) is not None:
            data = self.blob(user_id, slot)
            if data is not None and hashlib.sha256(data).hexdigest() == version.sha256:
                return data
            # Later uploads may have overwritten the slot after the record was read. Then the record has changed, too.
            before, row = row, self.row(user_id)
            if row == before:
                raise DamagedData("the digest of a version's bytes is wrong")
        return None

    def user_ids(self) -> Iterator[str]:
        with self._database() as database:
            for key in database:
                if (match := KEY.fullmatch(key)) and match[1]:
                    yield match[1].decode()

    def close(self) -> None:
        if hasattr(self._local, "database"):
            self._local.database.close()

    def row(self, user_id: str) -> Row | None:
        with self._database() as database:
            stored = database.get(user_key(user_id))
            # A registration may have come in between, so look again.
            if stored is None and database.get(blob_key(user_id, 0)) is not None:
                stored = database.get(user_key(user_id))
                if stored is None:
                    self.suspect_index()
                    raise Damaged("a record is missing, but its first slot is there")
            if stored is None and self.has_damaged_index and self.in_table(user_key(user_id)):
                raise Damaged("a record is not in the index")
        return None if stored is None else read_row(user_id, stored)

    def suspect_index(self) -> None:
        """Have the index compared with the table soon, if somebody does so."""

    def in_table(self, key: bytes) -> bytes | None:
        """Return a value as the table has it, whatever the index says. This reads much of the file."""
        try:
            with contextlib.closing(sqlite3.connect(self.address, uri=True)) as connection:
                row = connection.execute("SELECT value FROM Dict NOT INDEXED WHERE key = ? LIMIT 1", (key,)).fetchone()
        except sqlite3.Error as error:
            raise Damaged(str(error)) from None
        return row[0] if row else None

    def blob(self, user_id: str, slot: int) -> bytes | None:
        """Return the bytes in a slot, or None if they are gone or their page is damaged.

        A damaged page is no error here, because the pages of other slots may be intact.
        """
        with self._database() as database:
            try:
                found: bytes | None = database.get(blob_key(user_id, slot))
                return found
            except ERRORS as error:
                if sqlite_code(error) == sqlite3.SQLITE_CORRUPT:
                    return None
                raise
