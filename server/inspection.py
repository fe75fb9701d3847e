"""What is in the file of a store, and what is damaged in it. Nothing is ever written.

It may be the file of a running server: each look is one short transaction, so that the server's write-ahead log does
not grow meanwhile. Between two looks the server may change anything, so what belongs together is read together.
"""

import contextlib
import functools
import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from server.accounts import Account, Damaged
from server.dbm_reader import DAMAGE, FILE_FORMAT, FORMER_FORMAT, KEY, Row, blob_key, sqlite_code, user_key
from server.store_file import address, is_frozen, obstacle

CHUNK = 100  # keys in a transaction
UNREADABLE = (Damaged, ValueError, LookupError, TypeError, AttributeError)  # what a damaged record raises

Seen = Callable[[int, int], None]  # gets how many keys are done, and how many there are


class Unusable(Exception):
    """The file is no store, or cannot be read. The message says why."""


class Broken(Unusable):
    """The file may have been a store, but SQLite cannot read its beginning."""


def is_corrupt(error: sqlite3.Error) -> bool:
    return sqlite_code(error) in DAMAGE


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file of a store for reading. Raise Unusable.

    If its folder is read-only for this user, SQLite has to be told that the file does not change. So raise Unusable at
    the end if a server has used it meanwhile: what was read may be of several moments.
    """
    try:
        status, was_frozen = path.stat(), is_frozen(path)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Unusable(f"{path}: it is not a file")
    if not status.st_size:
        raise Unusable(f"{path}: it is empty, so it is not a store")
    try:
        with contextlib.closing(connect(path, "ro")) as connection:
            was_frozen = was_frozen or is_frozen(path)

            def check_that_it_stayed() -> None:
                if was_frozen and not (is_frozen(path) and is_same(path, status)):
                    raise Unusable(f"{path}: a server has begun to use it meanwhile, so look again") from None

            try:
                check_format(connection, path)
                yield connection
            except Exception:  # what has changed may be the cause
                check_that_it_stayed()
                raise
            check_that_it_stayed()
    except sqlite3.Error as error:
        if is_corrupt(error):
            raise Broken(f"{path}: it cannot be read as a store: {error}") from None
        raise Unusable(f"{path}: {error}{obstacle(path)}") from None


def is_same(path: Path, before: os.stat_result) -> bool:
    """Return whether a file is the same, with the same content, as when `before` was its status."""
    try:
        now = path.stat()
    except OSError:  # it is gone
        return False
    return os.path.samestat(now, before) and (now.st_mtime_ns, now.st_size) == (before.st_mtime_ns, before.st_size)


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Return a connection that begins no transaction by itself. `mode` is ro or rw: it never makes a file."""
    return sqlite3.connect(address(path, mode), uri=True, isolation_level=None)


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'Dict'").fetchone():
        raise Unusable(f"{path}: it is an SQLite file of another program")
    # From the table: the index may be damaged.
    found = connection.execute("SELECT value FROM Dict NOT INDEXED WHERE key = ?", (b"format",)).fetchone()
    if not found or found[0] not in (FILE_FORMAT, FORMER_FORMAT):
        raise Unusable(f"{path}: it is not a store in a format that this version knows")


@contextlib.contextmanager
def together(connection: sqlite3.Connection) -> Iterator[None]:
    """Let everything in this block be read as of one moment, or be written at once."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


# --- Damage -----------------------------------------------------------------------------------------------------------


class Damage(NamedTuple):
    """Something that is damaged. `what` names nobody."""

    kind: str  # file, page, key, index, record, missing, blob, stray or sums
    what: str
    user_id: str | None = None


@dataclass
class Report:
    """What `verify` has seen."""

    accounts: int = 0
    deleted: int = 0  # accounts whose userId is still reserved
    versions: int = 0
    bytes: int = 0  # of these versions
    damage: list[Damage] = field(default_factory=list)


INDEX = "sqlite_autoindex_Dict_1"  # SQLite's own name for the index of the keys
BY_INDEX = f"SELECT key, rowid FROM Dict INDEXED BY {INDEX} WHERE key > ? ORDER BY key LIMIT {CHUNK}"
BY_TABLE = f"""\
SELECT row.rowid, row.key, (SELECT rowid FROM Dict INDEXED BY {INDEX} WHERE key = row.key)
FROM Dict AS row NOT INDEXED WHERE row.rowid > ? ORDER BY row.rowid LIMIT {CHUNK}"""


def verify(path: Path, seen: Seen = lambda done, of: None) -> Report:
    """Read everything: each record and its checksum, each blob and its SHA-256, each key in index and table.

    Raise Unusable if the file is no store.
    """
    report = Report()
    try:
        with opened(path) as connection:
            Verifier(connection, report, seen).run()
    except Broken as error:
        report.damage.append(Damage("file", str(error)))
    return report


class Verifier:
    def __init__(self, connection: sqlite3.Connection, report: Report, seen: Seen) -> None:
        self._connection, self._report, self._seen = connection, report, seen

    def run(self) -> None:
        self._attempt(self._walk_index)
        self._attempt(self._walk_table)
        self._attempt(self._check_pages)

    def _found(self, kind: str, what: str, user_id: str | None = None) -> None:
        self._report.damage.append(Damage(kind, what, user_id))

    def _attempt(self, part: Callable[[], None], user_id: str | None = None) -> None:
        """Do a part of the work. A damaged page ends this part only."""
        try:
            part()
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self._found("page", f"a page cannot be read: {error}", user_id)

    def _walk_index(self) -> None:
        """Check each key that the index has, and each account."""
        (total,) = self._connection.execute("SELECT count(*) FROM Dict").fetchone()
        last, done = b"", 0
        while True:
            with together(self._connection):
                keys = self._connection.execute(BY_INDEX, (last,)).fetchall()
                users = [user_of(key) if self._is_sound(key, rowid) else None for key, rowid in keys]
            for user_id in users:
                if user_id:
                    self._attempt(functools.partial(self._check_account, user_id), user_id)
                done += 1
                self._seen(min(done, total), total)
            if len(keys) < CHUNK:
                return
            if not last < keys[-1][0]:  # or it would never end
                self._found("index", "the keys are not in order")
                return
            last = keys[-1][0]

    def _is_sound(self, key: Any, rowid: int) -> bool:
        """Check a key that the index has."""
        row = self._connection.execute("SELECT key FROM Dict WHERE rowid = ?", (rowid,)).fetchone()
        parts = KEY.fullmatch(key) if isinstance(key, bytes) else None
        user_id = (parts[1] or parts[2] or b"").decode() or None if parts else None
        if row != (key,):
            self._found("index", "a key in the index is not that of its row", user_id)
        elif not parts:
            self._found("key", f"the server makes no such key: {key[:13]!r}…")
        elif parts[2] and user_id and self._value(user_key(user_id)) is None:
            self._found("stray", "bytes of a version belong to no account", user_id)
        else:
            return True
        return False

    def _walk_table(self) -> None:
        """Check that the index has each row."""
        last = -1
        while True:
            with together(self._connection):
                rows = self._connection.execute(BY_TABLE, (last,)).fetchall()
            for rowid, key, found in rows:
                if found != rowid:
                    self._found("index", "a row is missing from the index", user_of(key))
                last = rowid
            if len(rows) < CHUNK:
                return

    def _check_account(self, user_id: str) -> None:
        with together(self._connection):
            stored = self._value(user_key(user_id))
            if stored is None:  # it was forgotten a moment ago, or the index is damaged, which `_is_sound` has found
                return
            try:
                row = Row.from_bytes(user_id, stored)
                named = dict(zip(row.versions, row.slots, strict=True))
            except UNREADABLE:
                self._found("record", "the checksum of a record is wrong, or its form", user_id)
                return
            for version, slot in named.items():
                data = self._blob(user_id, slot)
                if data is None:
                    self._found("missing", f"the bytes of version {version.number} are missing", user_id)
                elif hashlib.sha256(data).hexdigest() != version.sha256 or len(data) != version.size:
                    self._found("blob", f"the bytes of version {version.number} have another digest", user_id)
            # A crash may have left one in the next slot.
            for slot in self._slots(user_id):
                if slot > row.slots_used:
                    self._found("stray", f"there are bytes in slot {slot}, which was never used", user_id)
        is_living = isinstance(row.record, Account)
        self._report.accounts += is_living
        self._report.deleted += not is_living
        self._report.versions += len(named)
        self._report.bytes += sum(version.size for version in named)

    def _blob(self, user_id: str, slot: int) -> bytes | None:
        """Return the bytes in a slot. If a page of them is damaged, those of other slots may be intact."""
        try:
            return self._value(blob_key(user_id, slot))
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            return b""

    def _value(self, key: bytes) -> bytes | None:
        found = self._connection.execute("SELECT value FROM Dict WHERE key = ?", (key,)).fetchone()
        return None if not found else found[0] if isinstance(found[0], bytes) else b""

    def _slots(self, user_id: str) -> Iterator[int]:
        for key, _, _ in blobs(self._connection, user_id):
            if parts := KEY.fullmatch(key):
                yield int(parts[3])

    def _check_pages(self) -> None:
        """Let SQLite check the structure of the file. What it says of the index is known already, with names."""
        knows_index = any(damage.kind == "index" for damage in self._report.damage)
        for (line,) in self._connection.execute("PRAGMA integrity_check"):
            if line != "ok" and not (knows_index and ("missing from index" in line or "entries in index" in line)):
                self._found("page", f"SQLite: {line}")


def user_of(key: Any) -> str | None:
    """Return whose record has this key."""
    parts = KEY.fullmatch(key) if isinstance(key, bytes) else None
    return parts[1].decode() if parts and parts[1] else None


def blobs(connection: sqlite3.Connection, user_id: str) -> list[tuple[bytes, int, int]]:
    """Return key, rowid and size of each value in a user's slots. The values themselves are not read."""
    first, end = f"blob/{user_id}/".encode(), f"blob/{user_id}0".encode()  # 0 comes after the slash
    query = "SELECT key, rowid, length(value) FROM Dict WHERE key > ? AND key < ?"
    return connection.execute(query, (first, end)).fetchall()


# --- Accounts ---------------------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """An account, as an operator looks at it. Times are Unix milliseconds."""

    user_id: str
    created_at: int
    last_use: int  # its latest upload, or its registration
    version: int  # the latest, or 0
    versions: int
    bytes: int  # of its versions
    stored_bytes: int  # in its slots, with those of dropped versions
    upload_days: int  # on how many days it has uploaded, as far as that is known

    @classmethod
    def of(cls, user_id: str, account: Account, stored_bytes: int | None = None) -> "Usage":
        """Return what there is to say of an account. Nothing is stored beside its versions, unless it is given."""
        moments = [version.stored_at for version in account.versions] + [upload.moment for upload in account.uploads]
        size = sum(version.size for version in account.versions)
        return cls(
            user_id=user_id,
            created_at=account.created_at,
            last_use=max([account.created_at, *moments]),
            version=account.latest.number if account.latest else 0,
            versions=len(account.versions),
            bytes=size,
            stored_bytes=size if stored_bytes is None else stored_bytes,
            upload_days=account.upload_days,
        )


def usages(path: Path, seen: Seen = lambda done, of: None) -> Iterator[Usage | None]:
    """Yield each account that exists, and None for each record that is damaged. Raise Unusable."""
    with opened(path) as connection:
        (total,) = connection.execute("SELECT count(*) FROM Dict WHERE key > ? AND key < ?", USERS).fetchone()
        done = 0
        for keys in user_keys(connection):
            for key in keys:
                yield from usage_of(connection, key)
                done += 1
                seen(min(done, total), total)


USERS = (b"user/", b"user0")  # all their keys are between these two


def user_keys(connection: sqlite3.Connection) -> Iterator[list[bytes]]:
    """Yield the keys of all records, some at a time. Between them, no transaction is open."""
    last, end = USERS
    query = f"SELECT key FROM Dict WHERE key > ? AND key < ? ORDER BY key LIMIT {CHUNK}"
    while keys := [key for (key,) in connection.execute(query, (last, end)).fetchall()]:
        yield keys
        if not last < keys[-1]:  # the index is damaged, and it would never end
            return
        last = keys[-1]


def usage_of(connection: sqlite3.Connection, key: bytes) -> Iterator[Usage | None]:
    """Yield an account, None if its record is damaged, or nothing if it is deleted."""
    user_id = user_of(key)
    if not user_id:
        yield None
        return
    with together(connection):
        found = connection.execute("SELECT value FROM Dict WHERE key = ?", (key,)).fetchone()
        stored_bytes = sum(size for _, _, size in blobs(connection, user_id))
    if not found:  # deleted and forgotten a moment ago
        return
    try:
        account = Row.from_bytes(user_id, found[0]).record
    except UNREADABLE:
        yield None
        return
    if isinstance(account, Account):
        yield Usage.of(user_id, account, stored_bytes)
