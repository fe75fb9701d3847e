"""Whole copies of a store's file: a snapshot, its restoration, and a file without free pages.

A copy is made under another name, verified, synced, and only then given its name. So nobody ever finds half a copy
under that name, whenever the work is interrupted. What an interrupted run has left is removed by the next one.

A copy is made by VACUUM INTO: it is as of one moment, has what is in the write-ahead log, and has no free pages, in
which deleted data might live on. It is one file, complete without any other.
"""

import contextlib
import functools
import glob
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from server import inspection, store_file
from server.dbm_reader import Row, blob_key, sqlite_code
from server.inspection import UNREADABLE, Unusable, opened

COMPANIONS = ("-wal", "-shm", "-journal")  # what SQLite may keep beside a file, and takes as a part of it
MARGIN_BYTES = 1024 * 1024
DAMAGED_PAGE = "a page of it is damaged, so nothing can be copied from it: verify says more, and restore takes a copy"
CREATING = threading.Lock()  # whoever holds it can remove leftovers for good

Measure = Callable[[], tuple[int, int]]  # returns how much is done, and how much there is; zeros if nobody knows
Stage = Callable[[str, Measure], None]  # gets what begins now
Fill = Callable[[Path, Stage], Iterable[inspection.Damage]]  # writes a copy into an empty file, returns what it lacks


class DamagedCopy(Unusable):
    """The copy is damaged, because its source is. Nothing was replaced."""

    def __init__(self, report: inspection.Report) -> None:
        super().__init__("damage was found")
        self.report = report


def no_stage(name: str, measure: Measure) -> None:
    """Tell nobody how far it is."""


def no_measure() -> tuple[int, int]:
    return 0, 0


# --- The commands -----------------------------------------------------------------------------------------------------


def snapshot(
    database: Path, target: Path, force: bool = False, damaged: bool = False, stage: Stage = no_stage
) -> inspection.Report:
    """Make a verified copy of a file, which a server may be using. Return what is in it.

    Raise Unusable, also if the target exists and `force` is not set, and DamagedCopy unless `damaged` is set.
    """
    refuse_same(database, target)
    return snapshot_by(functools.partial(vacuum_into, database), target, force, damaged, stage)


def snapshot_by(
    fill: Fill, target: Path, force: bool = False, damaged: bool = False, stage: Stage = no_stage
) -> inspection.Report:
    """Make a verified file of what `fill` writes, as `snapshot` does."""
    # What SQLite has left beside a former file of this name would be taken for a part of the new one.
    there = [path for path in with_companions(target) if os.path.lexists(path)]
    if there and not force:
        raise Unusable(f"{there[0]}: it exists already: choose another name, or add --force")
    with new_copy(fill, target, damaged, stage) as (part, report):
        if force:
            remove_companions(target)
            part.replace(target)
        else:
            name_new(part, target)
    store_file.sync(target.parent)
    return report


def restore(
    database: Path, source: Path, damaged: bool = False, stage: Stage = no_stage
) -> tuple[inspection.Report, Path | None]:
    """Put a copy of `source` in the place of a store, as `restore_by` does."""
    refuse_same(database, source)
    return restore_by(functools.partial(vacuum_into, source), database, damaged, stage)


def restore_by(
    fill: Fill, database: Path, damaged: bool = False, stage: Stage = no_stage
) -> tuple[inspection.Report, Path | None]:
    """Put what `fill` writes in the place of a store. Return what is in it, and where the replaced file is now.

    The server must be stopped. Raise Unusable or DamagedCopy; then the store is as it was.
    """
    database = Path(os.path.realpath(database))
    with locked(database), new_copy(fill, database, damaged, stage) as (part, report):
        remove_half_kept(database)
        stage("putting it in its place", no_measure)
        is_new = not os.path.lexists(database)  # then nothing is locked
        kept = keep_aside(database)
        # From here on, the write-ahead log is empty, or kept under another name. SQLite would take one that is left for
        # a part of the new file.
        remove_companions(database)
        store_file.sync(database.parent)
        if is_new:
            name_new(part, database)
        else:
            part.replace(database)
        store_file.sync(database.parent)
    return report, kept


def compact(database: Path, damaged: bool = False, stage: Stage = no_stage) -> inspection.Report:
    """Replace a file by one without free pages and without bytes of dropped versions. Return what is in it.

    The server must be stopped. Raise Unusable or DamagedCopy; then everything that is not dropped is as it was.
    """
    database = Path(os.path.realpath(database))
    with opened(database):  # or a new file would be locked
        pass
    with locked(database):
        remove_half_kept(database)  # or the old file would live on under that name
        fold(database)
        stage("erasing what is dropped", no_measure)
        erase_dropped(database)
        with new_copy(functools.partial(vacuum_into, database), database, damaged, stage) as (part, report):
            stage("putting it in its place", no_measure)
            fold(database)
            remove_companions(database)
            store_file.sync(database.parent)
            part.replace(database)
            store_file.sync(database.parent)
    return report


def name_new(part: Path, target: Path) -> None:
    """Give a file a name that nothing has. Raise Unusable if something has it."""
    try:
        os.link(part, target)  # unlike a renaming, this never replaces what somebody else has made meanwhile
    except FileExistsError:
        raise Unusable(f"{target}: it exists by now") from None
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise Unusable(f"{target}: it exists by now") from None
        part.rename(target)


# --- Steps ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_copy(fill: Fill, target: Path, damaged: bool, stage: Stage) -> Iterator[tuple[Path, inspection.Report]]:
    """Make a verified and synced copy of a store beside `target`, for the block to give it its name.

    After the block, nothing of the copy is left under its first name.
    """
    remove_leftovers(target)
    part = Path(f"{target}.part-{secrets.token_hex(4)}")
    try:
        with CREATING:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        lacking = fill(part, stage)
        at = [0, 0]
        stage("verifying the copy", lambda: (at[0], at[1]))
        report = inspection.verify(part, lambda done, of: at.__setitem__(slice(None), [done, of]))
        report.damage.extend(lacking)
        if report.damage and not damaged:
            raise DamagedCopy(report)
        store_file.sync(part)
        if os.geteuid() == 0:  # the server's user has to be able to open it
            owner = (target if target.exists() else target.parent).stat()
            os.chown(part, owner.st_uid, owner.st_gid)
        yield part, report
    except OSError as error:
        raise Unusable(f"{error.filename or part}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            remove_leftovers(target)


def remove_leftovers(target: Path) -> None:
    """Remove the unfinished copies of interrupted runs. If one is in progress, it fails, and changes nothing."""
    for part in siblings(target, ".part-*"):
        part.unlink(missing_ok=True)


def siblings(file: Path, pattern: str) -> list[Path]:
    """Return the files beside this one whose names begin with its name and go on like this."""
    return sorted(file.parent.glob(glob.escape(file.name) + pattern))


def vacuum_into(source: Path, part: Path, stage: Stage) -> Iterable[inspection.Damage]:
    with opened(source) as connection:
        (pages,), (free,), (size,), (auto_vacuum,) = (
            connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "freelist_count", "page_size", "auto_vacuum")
        )
        needed = (pages - free) * size
        available = shutil.disk_usage(part.parent).free
        if available < needed + MARGIN_BYTES:
            mebibytes = f"{(needed + MARGIN_BYTES) >> 20} MiB are needed and {available >> 20} MiB are free"
            raise Unusable(f"{part.parent}: the copy has no room: {mebibytes}")
        stage("copying", lambda: (part.stat().st_size if part.exists() else 0, needed))
        if auto_vacuum == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of the copy
        try:
            connection.execute("VACUUM INTO ?", (str(part.absolute()),))
        except sqlite3.Error as error:
            # A damaged page that names one beyond the end of the file makes SQLite say that the disk is full.
            is_full = shutil.disk_usage(part.parent).free < MARGIN_BYTES
            if inspection.is_corrupt(error) or (sqlite_code(error) == sqlite3.SQLITE_FULL and not is_full):
                raise inspection.Broken(f"{source}: {DAMAGED_PAGE}") from None
            raise
    return ()


def keep_aside(database: Path) -> Path | None:
    """Give the file a second, dated name, with everything in it. Return this name, or None if there is no file."""
    there = [path for path in with_companions(database) if path.exists() and not path.name.endswith("-shm")]
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = [Path(f"{database}.replaced-{date}{more}") for more in ("", *(f"-{number}" for number in range(2, 100)))]
    kept = next(name for name in names if not any(path.exists() for path in with_companions(name)))
    for path in there:
        os.link(path, f"{kept}{path.name.removeprefix(database.name)}")
    try:
        fold(database)
        remove_companions(kept)
    except inspection.Broken:  # no server could serve it, but somebody may be able to mend it
        pass
    except Unusable:
        kept.unlink()
        remove_companions(kept)
        raise
    store_file.sync(database.parent)
    return kept if kept.exists() else None


def remove_half_kept(database: Path) -> None:
    """Remove the second name that an interrupted `restore` has given to the file that is still in place."""
    for name in siblings(database, ".replaced-*"):
        if name.exists() and database.exists() and os.path.samefile(name, database):
            try:
                fold(database)
            except inspection.Broken:  # it gets back what was beside it; for a sound file, that may be out of date
                for suffix in COMPANIONS:
                    with contextlib.suppress(FileNotFoundError, FileExistsError):
                        os.link(f"{name}{suffix}", f"{database}{suffix}")
            remove_companions(name)
            name.unlink()


def fold(database: Path) -> None:
    """Move everything from the write-ahead log into the file. Raise Broken if SQLite cannot read the file."""
    if not database.exists() or not database.stat().st_size:
        raise inspection.Broken(f"{database}: it is empty")
    try:
        with contextlib.closing(inspection.connect(database, "rw")) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # recovers it after a crash
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        kind = inspection.Broken if inspection.is_corrupt(error) else Unusable
        raise kind(f"{database}: {error}") from None
    if busy:
        raise Unusable(f"{database}: another program is reading it: wait until it has ended")


def erase_dropped(database: Path) -> None:
    """Empty the slots that no version needs. A server would overwrite or delete them later.

    What is damaged stays as it is: the copy is verified.
    """
    try:
        with contextlib.closing(inspection.connect(database, "rw")) as connection:
            for keys in inspection.user_keys(connection):
                with inspection.together(connection):  # one wait for the disk, not one for each slot
                    for key in keys:
                        (stored,) = connection.execute("SELECT value FROM Dict WHERE key = ?", (key,)).fetchone()
                        with contextlib.suppress(*UNREADABLE):
                            empty_dropped(connection, inspection.user_of(key) or "", stored)
    except sqlite3.Error as error:
        if not inspection.is_corrupt(error):
            raise Unusable(f"{database}: {error}") from None


def empty_dropped(connection: sqlite3.Connection, user_id: str, stored: bytes) -> None:
    needed = {blob_key(user_id, slot) for slot in Row.from_bytes(user_id, stored).slots}
    for key, rowid, size in inspection.blobs(connection, user_id):
        if size and key not in needed:
            connection.execute("UPDATE Dict SET value = ? WHERE rowid = ?", (b"", rowid))


def refuse_same(database: Path, other: Path) -> None:
    if database.exists() and other.exists() and os.path.samefile(database, other):
        raise Unusable(f"{other}: this is the store itself")


def with_companions(file: Path) -> list[Path]:
    return [file, *(Path(f"{file}{suffix}") for suffix in COMPANIONS)]


def remove_companions(file: Path) -> None:
    for path in with_companions(file)[1:]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the lock that a server holds on its file, if there is one. Raise Unusable if a server runs."""
    descriptors: list[int] = []
    try:
        if database.exists():
            descriptors.append(os.open(database, os.O_RDONLY))
            store_file.lock(database, descriptors)
        yield
    except BlockingIOError:
        raise Unusable(f"{database}: a server has it open: stop the server first") from None
    except OSError as error:
        raise Unusable(f"{error.filename or database}: {error.strerror}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
