"""The file of a store as a source or a target of a migration (server/migration.py). A server may be using a source."""

import contextlib
import functools
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from server import inspection, operator, store_file
from server.accounts import Account, Damaged, DamagedData, Record, Version
from server.dbm_reader import FILE_FORMAT, Row, blob_key, user_key
from server.dbm_writer import CLOSED
from server.inspection import UNREADABLE, Damage, Unusable
from server.migration import FILLING, Changed, Data, Impossible, Lapsed, Side, check_target

PAGE = f"SELECT key, value FROM Dict WHERE key > ? AND key < ? ORDER BY key LIMIT {inspection.CHUNK}"
VALUE = "SELECT value FROM Dict WHERE key = ?"
PUT = "INSERT INTO Dict VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class FileSide(Side):
    """The file of a store."""

    def __init__(self, path: Path, connection: sqlite3.Connection, descriptors: list[int]) -> None:
        """Take an open file. The first descriptor is that of the file. All are closed after the connection."""
        self._path, self._connection, self._descriptors = path, connection, descriptors
        self._has_lock = False
        self.name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]

    # ---- Both

    def state(self) -> str:
        with self._translated():
            return (self._value(CLOSED) or b"").decode()

    def rows(self) -> Iterator[tuple[str, bytes]]:
        last, end = inspection.USERS
        while page := self._page(last, end):
            for key, value in page:
                user_id = inspection.user_of(key)
                if user_id is None:
                    raise Damaged("a key is damaged")
                yield user_id, value
            if not last < page[-1][0]:
                raise Damaged("the keys are not in order")
            last = page[-1][0]

    def _page(self, last: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        with self._translated():
            return self._connection.execute(PAGE, (last, end)).fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Let this block raise Damaged or Impossible in place of SQLite's errors."""
        try:
            yield
        except sqlite3.Error as error:
            if inspection.is_corrupt(error):
                raise Damaged(str(error)) from None
            raise Impossible(f"{self._path}: {error}") from None

    def record(self, user_id: str, row: bytes) -> Record:
        return row_of(user_id, row).record

    def find(self, user_id: str) -> Record | None:
        with self._translated():
            row = self._row(user_id)
        return row.record if row else None

    def data(self, user_id: str, version: Version) -> bytes | None:
        with self._translated(), inspection.together(self._connection):
            row = self._row(user_id)
            slot = row.slot(version) if row else None
            data = None if slot is None else self._value(blob_key(user_id, slot))
        if slot is not None and (data is None or hashlib.sha256(data).hexdigest() != version.sha256):
            raise DamagedData("the digest of a version's bytes is wrong")
        return data

    def _row(self, user_id: str) -> Row | None:
        found = self._value(user_key(user_id))
        return None if found is None else row_of(user_id, found)

    def _value(self, key: bytes) -> bytes | None:
        found = self._connection.execute(VALUE, (key,)).fetchone()
        return found[0] if found else None

    # ---- As a source

    def close_for(self, run: str, seconds: int) -> None:
        """If a server has the file, ask it. Otherwise lock the file, so that none can use it, until the run ends."""
        if self._has_lock or self._lock():
            return
        asked(self._path, {"close": {"run": run, "seconds": seconds}})
        if not os.path.samestat(os.fstat(self._descriptors[0]), self._path.stat()):
            raise Impossible("the file was replaced meanwhile: run it again")

    def renew(self, run: str, seconds: int) -> None:
        self._keep({"renew": {"run": run, "seconds": seconds}})

    def close_for_good(self, run: str, state: str) -> None:
        if self._has_lock:
            write_state(self._path, state)
        else:
            self._keep({"move": {"run": run, "state": state}})

    def _keep(self, request: dict[str, Any]) -> None:
        """Ask the server for what it does only if the store was closed until now. Raise Lapsed if it was not."""
        if self._has_lock:
            return
        if self._lock():  # the server has ended, and another one may have come in between
            raise Lapsed
        if not asked(self._path, request).get("done"):
            raise Lapsed

    def _lock(self) -> bool:
        """Lock the file, if no server has."""
        with contextlib.suppress(BlockingIOError):
            # No descriptor is closed before the connection: this would drop the locks of SQLite.
            store_file.lock(self._path, self._descriptors)
            self._has_lock = True
        return self._has_lock

    # ---- As a target

    def begin(self, source: str, state: str) -> None:
        check_target(self.state(), source, next(self.rows(), None) is None)
        self._change(functools.partial(self._connection.execute, PUT, (CLOSED, state.encode())))

    def put(self, user_id: str, record: Record, data: Data, whole: bool = False) -> None:
        self._change(functools.partial(self._put, user_id, record, data, whole))

    def _put(self, user_id: str, record: Record, data: Data, whole: bool) -> None:
        versions = record.versions if isinstance(record, Account) else ()
        try:
            row = self._row(user_id)
        except Damaged:
            row = None
        there = dict(zip(row.versions, row.slots, strict=True)) if row and not whole else {}
        kept = {version: slot for version, slot in there.items() if version in versions}
        free = (slot for slot in range(len(versions)) if slot not in kept.values())
        slots = {version: kept[version] if version in kept else next(free) for version in versions}
        used = max(slots.values(), default=0) + 1 if isinstance(record, Account) else 0
        for key, rowid, _ in inspection.blobs(self._connection, user_id):
            if key not in {blob_key(user_id, slot) for slot in kept.values()}:
                self._connection.execute("DELETE FROM Dict WHERE rowid = ?", (rowid,))
        for version, slot in slots.items():
            if version not in kept:
                found = data(version)
                if found is None:
                    raise Changed
                self._connection.execute(PUT, (blob_key(user_id, slot), found))
        if used and 0 not in slots.values():  # the sign that there is an account
            self._connection.execute(PUT, (blob_key(user_id, 0), b""))
        new = Row(record, tuple(slots.values()), used)
        self._connection.execute(PUT, (user_key(user_id), new.to_bytes(user_id)))

    def remove(self, user_id: str) -> None:
        def remove() -> None:
            for _, rowid, _ in inspection.blobs(self._connection, user_id):
                self._connection.execute("DELETE FROM Dict WHERE rowid = ?", (rowid,))
            self._connection.execute("DELETE FROM Dict WHERE key = ?", (user_key(user_id),))

        self._change(remove)

    def check_sums(self) -> None:
        """A file has no sums: a server counts at its start."""

    def reopen(self) -> None:
        self._change(lambda: self._connection.execute("DELETE FROM Dict WHERE key = ?", (CLOSED,)))
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # it may have what was deleted

    def _change(self, change: Callable[[], Any]) -> None:
        """Make a change, completely or not at all."""
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                change()
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def row_of(user_id: str, row: bytes) -> Row:
    try:
        return Row.from_bytes(user_id, row)
    except UNREADABLE as error:
        raise Damaged(str(error)) from None


# --- Opening ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def source(path: Path) -> Iterator[FileSide]:
    """Open the file of a store that a server may be using. Raise Unusable."""
    path = Path(os.path.realpath(path))
    descriptors: list[int] = []
    try:
        with inspection.opened(path) as connection:
            descriptors.append(os.open(path, os.O_RDONLY))
            yield FileSide(path, connection, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextlib.contextmanager
def target(path: Path) -> Iterator[FileSide]:
    """Open the file of a store that no server uses, or make it. No server can use it meanwhile. Raise Unusable."""
    path = Path(os.path.realpath(path))
    descriptors: list[int] = []
    is_made, is_unused = not path.exists(), False
    try:
        if is_made:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            store_file.make(path, FILE_FORMAT)
            if os.geteuid() == 0:  # the server's user has to be able to open it
                owner = path.parent.stat()
                os.chown(path, owner.st_uid, owner.st_gid)
        with inspection.opened(path):  # or what is no store would be locked
            pass
        descriptors.append(os.open(path, os.O_RDONLY))
        store_file.lock(path, descriptors)
        with contextlib.closing(inspection.connect(path, "rw")) as connection:
            prepare(connection)
            side = FileSide(path, connection, descriptors)
            try:
                yield side
            except Impossible:
                is_unused = is_made and not side.state() and next(side.rows(), None) is None
                raise
    except Impossible:
        if is_unused:  # a server would take it for a store without accounts
            path.unlink()
        raise
    except BlockingIOError:
        raise Unusable(f"{path}: a server has it open: stop the server first") from None
    except sqlite3.Error as error:
        raise Unusable(f"{path}: {error}") from None
    except OSError as error:
        raise Unusable(f"{error.filename or path}: {error.strerror}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")


def write_state(path: Path, state: str) -> None:
    """Write the state of a store that no server uses."""
    with contextlib.closing(inspection.connect(path, "rw")) as connection:
        prepare(connection)
        if state:
            connection.execute(PUT, (CLOSED, state.encode()))
        else:
            connection.execute("DELETE FROM Dict WHERE key = ?", (CLOSED,))


def asked(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the server that uses a file. Raise Impossible."""
    try:
        return operator.asked(path, request)
    except (FileNotFoundError, ConnectionRefusedError):
        where = operator.socket_path(path)
        raise Impossible(f"{where}: no server listens there, but one has the file: wait until it has started") from None
    except OSError as error:
        raise Impossible(f"{operator.socket_path(path)}: the server does not answer: {error.strerror}") from None
    except operator.Refused as error:
        raise Impossible(f"the server refuses: {error}") from None


def reopen(path: Path) -> bool:
    """Let a store take changes again. Return whether it was closed. Raise Unusable or Impossible."""
    with source(path) as side:
        state = side.state()
        if FILLING.fullmatch(state):
            raise Impossible("it has only a part of the accounts: run the migration again, or delete it")
        if not state:
            return False
        if not side._lock():
            asked(side._path, {"reopen": True})
            return True
        write_state(side._path, "")
        return True


# --- A copy of another store ------------------------------------------------------------------------------------------


def fill(side: Side, part: Path) -> list[Damage]:
    """Write what is in another store into a new file. Return what is damaged, and is not in the file."""
    lacking: list[Damage] = []
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = MEMORY")  # an unfinished file is removed
        connection.execute("PRAGMA synchronous = OFF")  # it is synced as a whole
        store_file.initialise(connection, FILE_FORMAT)
        copy = FileSide(part, connection, [])
        for user_id, _ in side.rows():
            try:
                while record := side.find(user_id):
                    with contextlib.suppress(Changed):
                        copy.put(user_id, record, functools.partial(bytes_of, side, user_id))
                        break
            except Damaged:
                lacking.append(Damage("record", "the checksum of a record is wrong, or its form", user_id))
    return lacking


def bytes_of(side: Side, user_id: str, version: Version) -> bytes | None:
    """Return a version's bytes. If they are damaged, there are none in the copy, which is verified."""
    try:
        return side.data(user_id, version)
    except DamagedData:
        return b""
