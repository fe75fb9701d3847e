"""The file of a store before and after SQLite has it open: how it is made, recognised and locked."""

import contextlib
import fcntl
import os
import sqlite3
import stat
import sys
from pathlib import Path

from server.accounts import StorageUnavailable

MAGIC = b"SQLite format 3\0"
TABLE = "CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)"  # the table that dbm.sqlite3 works on
EMPTY = "it is empty, so it is not a store: restore a copy, or remove it if the store is to be a new one"
FOREIGN = "it is not a store of this server: name another file, or restore a copy"


class StoreFile:
    """The lock on a store's file. Only one server can hold it, whatever names the file has."""

    def __init__(self, path: Path, new_format: bytes) -> None:
        """Lock the file. If there is none, make a store with this value of `format`. Raise StorageUnavailable.

        Close it only after SQLite has closed the file: closing any descriptor of a file drops the POSIX locks that
        this process has on it, and SQLite relies on those.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                make(path.resolve(), new_format)
            self._descriptors = [os.open(path, os.O_RDONLY)]
        except (OSError, sqlite3.Error) as error:
            raise StorageUnavailable(f"it cannot be used: {getattr(error, 'strerror', None) or error}") from None
        try:
            lock(path, self._descriptors)
            self._recognise()
        except BlockingIOError:
            self.close()
            raise StorageUnavailable("another server has it open: stop that one first") from None
        except OSError as error:
            self.close()
            raise StorageUnavailable(f"it cannot be used: {error.strerror}") from None
        except StorageUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """Let another server have the file."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _recognise(self) -> None:
        """Refuse what SQLite could not open, or would take for a new database. The locked descriptor reads it."""
        found = os.fstat(self._descriptors[0])
        if not stat.S_ISREG(found.st_mode):
            raise StorageUnavailable("it cannot be used: it is not a file")
        if not found.st_size:
            raise StorageUnavailable(EMPTY)
        if os.pread(self._descriptors[0], len(MAGIC), 0) != MAGIC:
            raise StorageUnavailable(FOREIGN)


def lock(path: Path, descriptors: list[int]) -> None:
    """Lock a file, so that nobody else has it open as a store. Raise BlockingIOError or another OSError.

    The first of the descriptors is the file's. The lock lasts until all are closed. This adds one if it needs one.
    """
    if sys.platform != "linux":  # elsewhere, flock could be in the way of SQLite's own locks
        descriptors.append(os.open(f"{path.resolve()}.lock", os.O_RDWR | os.O_CREAT, 0o600))
    fcntl.flock(descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(descriptors[0]), path.stat()):  # restored or made compact a moment ago
        raise BlockingIOError


def make(path: Path, new_format: bytes) -> None:
    """Make a store under another name, then give it its own. So a crash never leaves an empty file behind."""
    unfinished = path.with_name(f"{path.name}-new-{os.getpid()}")
    try:
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        with contextlib.closing(sqlite3.connect(unfinished)) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible before there is a table
            connection.execute(TABLE)
            connection.execute("INSERT INTO Dict VALUES (?, ?)", (b"format", new_format))
            connection.commit()
            connection.execute("PRAGMA journal_mode = WAL")
        sync(unfinished)
        with contextlib.suppress(FileExistsError):  # another server was faster: its lock decides
            os.link(unfinished, path)  # unlike a rename, it never replaces a store
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file or a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_table(path: Path) -> None:
    """Refuse another program's database, before dbm.sqlite3 would add its table to it."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'Dict'").fetchone():
            raise StorageUnavailable(FOREIGN)
