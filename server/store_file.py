"""The file of a store before and after SQLite has it open: how it is made, recognised and locked."""

import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from server.accounts import StorageUnavailable

MAGIC = b"SQLite format 3\0"
TABLE = "CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)"  # the table that dbm.sqlite3 works on
EMPTY = "it is empty, so it is not a store: restore a copy, or set NEW_STORE=1 once if the store is to be a new one"
MISSING = (
    "there is no store: is the volume there? Restore a copy, or set NEW_STORE=1 once if the store is to be a new one "
    "(on Fly: fly deploy --ha=false -e NEW_STORE=1)"
)
LEFT_LOG = (
    "there is no store, but a log of one is beside it (-wal or -journal), which SQLite would take for a part of a new "
    "one: put the file back that belongs to it, or move the log away"
)
READ_ONLY = "its folder is read-only: make it writable, and start the server again"
UNREAD_LOG = ": the write-ahead log beside it has to be read first, which needs a folder that can be written"
FULL_VOLUME = ": the volume is full: delete what is not the store's, such as old copies, or make the volume larger"
SMALLEST_ROOM = 64 * 1024  # SQLite needs half of this beside the file, to open it
REMEDIES = {
    errno.EEXIST: "a part of the path is a file, so name another path",
    errno.ENOTDIR: "a part of the path is a file, so name another path",
    errno.ENOENT: "is the volume there? A link leads to nothing",
    errno.ELOOP: "links lead in a circle, so name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOSPC: "make room on the volume",
    errno.EROFS: "the file system is read-only: mount it in another way",
    errno.EIO: "the disk fails: restore a copy on another one",
}
BALLAST_BYTES = 16 * 1024 * 1024
BALLAST_PART = 50  # of the volume, it is no more than one part in so many
FOREIGN = "it is not a store of this server: name another file, or restore a copy"


class StoreFile:
    """The lock on a store's file. Only one server can hold it, whatever names the file has."""

    def __init__(self, path: Path, new_format: bytes, is_new: bool | None = None) -> None:
        """Lock the file. If there is none, make a store with this value of `format`. Raise StorageUnavailable.

        If `is_new` is false, a store has to be there. If it is true, an empty file is taken for none. `is_made` tells
        whether a store was made.

        Close it only after SQLite has closed the file: closing any descriptor of a file drops the POSIX locks that
        this process has on it, and SQLite relies on those.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_empty = is_new and path.is_file() and not path.stat().st_size
            if (is_empty or not path.exists()) and has_log(path):
                raise StorageUnavailable(LEFT_LOG)
            if is_empty:
                path.resolve().unlink()
            self.is_made = not path.exists()
            if self.is_made and is_new is False:
                raise StorageUnavailable(MISSING)
            if self.is_made:
                make(path.resolve(), new_format)
            self._descriptors = [os.open(path, os.O_RDONLY | os.O_NONBLOCK)]  # a pipe would wait for a writer
        except (OSError, sqlite3.Error) as error:
            raise StorageUnavailable(f"it cannot be used: {reason(path, error)}") from None
        try:
            lock(path, self._descriptors)
            for unfinished in path.parent.glob(f"{path.name}-new-*"):  # a start that was killed
                with contextlib.suppress(OSError):
                    unfinished.unlink()
            self._recognise()
        except BlockingIOError:
            self.close()
            raise StorageUnavailable("another server has it open: stop that one first") from None
        except OSError as error:
            self.close()
            raise StorageUnavailable(f"it cannot be used: {reason(path, error)}") from None
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


def reason(path: Path, error: Exception) -> str:
    """Say why a file cannot be used, and what to do about it."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError):
        return f"{text}{whose(path)}"
    remedy = REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{text}: {remedy}" if remedy else text


def whose(path: Path) -> str:
    """Say to whom the first thing belongs that this user may not use: the file, what SQLite has beside it, a folder.

    Return an empty text if it is no matter of users.
    """
    path = path.resolve()
    files = [path, beside(path, "-wal"), beside(path, "-shm")]
    needs = dict.fromkeys(files, os.R_OK | os.W_OK) | {path.parent: os.W_OK | os.X_OK}
    for each in (*reversed(path.parents), *files):
        with contextlib.suppress(OSError):
            found = each.stat()
            if not os.access(each, needs.get(each, os.X_OK)) and not os.statvfs(each).f_flag & os.ST_RDONLY:
                owner = f"belongs to the user {found.st_uid} (mode {stat.S_IMODE(found.st_mode):04o})"
                remedy = "change its mode (chmod)" if found.st_uid == os.geteuid() else "give it to that one (chown)"
                return f": {each} {owner}, and this process runs as {os.geteuid()}: {remedy}"
    return ""


def ballast(path: Path) -> Path:
    return path.with_name(f"{path.name}-ballast")


def load_ballast(path: Path) -> None:
    """Keep some space that `drop_ballast` can give back, if there is plenty now. It may fail; then there is none."""
    usage = shutil.disk_usage(path.parent)
    size = min(BALLAST_BYTES, usage.total // BALLAST_PART)
    if ballast(path).exists() or usage.free < 4 * size:
        return
    descriptor = os.open(ballast(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except OSError:
        ballast(path).unlink()
        raise
    finally:
        os.close(descriptor)


def drop_ballast(path: Path) -> bool:
    """Give back the space that was kept, if the disk is full. Return whether that may help."""
    try:
        if shutil.disk_usage(path.parent).free >= BALLAST_BYTES:
            return False
        ballast(path).unlink()
    except OSError:
        return False
    return True


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
            initialise(connection, new_format)
            connection.commit()
            connection.execute("PRAGMA journal_mode = WAL")
        sync(unfinished)
        with contextlib.suppress(FileExistsError):  # another server was faster: its lock decides
            os.link(unfinished, path)  # unlike a rename, it never replaces a store
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def initialise(connection: sqlite3.Connection, new_format: bytes) -> None:
    """Make an empty file a store."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible before there is a table
    connection.execute(TABLE)
    connection.execute("INSERT INTO Dict VALUES (?, ?)", (b"format", new_format))


def sync(path: Path) -> None:
    """Make a file or a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def address(path: Path, mode: str = "ro") -> str:
    """Return the address by which sqlite3 opens a file, without making one. `mode` is ro or rw."""
    frozen = "&immutable=1" if mode == "ro" and is_frozen(path) else ""
    return f"{path.absolute().as_uri()}?mode={mode}{frozen}"


def is_frozen(path: Path) -> bool:
    """Return whether SQLite can open the file only if it hears that nobody can change it (`immutable`).

    SQLite keeps a write-ahead log and an index of it beside the file. It cannot make them in a folder that is
    read-only. If both are there, it needs no more, and a server may be writing: the folder may be read-only for this
    user or in this mount alone. If only a log is there, it must not be passed over: it may have the last changes.
    """
    log, index = beside(path, "-wal"), beside(path, "-shm")
    try:
        return not (os.access(log.parent, os.W_OK) or (log.exists() and index.exists()) or has_log(path))
    except OSError:  # nobody can open it
        return False


def beside(path: Path, suffix: str) -> Path:
    """Return what SQLite calls a file of its own beside this one. If this is a link, it is beside the file itself."""
    return Path(f"{os.path.realpath(path)}{suffix}")


def has_log(path: Path) -> bool:
    """Return whether there may be changes that are not in the file yet. Raise OSError."""
    logs = (beside(path, "-wal"), beside(path, "-journal"))
    return any(log.exists() and log.stat().st_size for log in logs)


def obstacle(path: Path) -> str:
    """Say why SQLite may be unable to open a file, and what to do about it. Return an empty text if it is not known."""
    with contextlib.suppress(OSError):
        if text := whose(path):
            return text
        if not os.access(path.resolve().parent, os.W_OK) and has_log(path):
            return UNREAD_LOG
        if shutil.disk_usage(path.resolve().parent).free < SMALLEST_ROOM:
            return FULL_VOLUME
    return ""


class FrozenFile:
    """A file that nobody can change. It has what a store needs of `dbm.sqlite3`, which cannot open such a file."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raise sqlite3.Error."""
        self._connection = sqlite3.connect(address(path), uri=True)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None if there is none."""
        row = self._connection.execute("SELECT value FROM Dict WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def __iter__(self) -> Iterator[bytes]:
        for (key,) in self._connection.execute("SELECT CAST(key AS BLOB) FROM Dict"):
            yield key

    def __setitem__(self, key: bytes, value: bytes) -> None:
        raise StorageUnavailable(READ_ONLY)

    def __delitem__(self, key: bytes) -> None:
        raise StorageUnavailable(READ_ONLY)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def check_table(path: Path) -> None:
    """Refuse another program's database, before dbm.sqlite3 would add its table to it."""
    with contextlib.closing(sqlite3.connect(address(path), uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'Dict'").fetchone():
            raise StorageUnavailable(FOREIGN)
