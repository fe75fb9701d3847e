"""What a bucket had at some moment: read, verified, and written into the file of a store."""

import contextlib
import functools
import hashlib
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from server import bounds, clock, store_file
from server.accounts import Damaged, Version
from server.bucket import DIGITS, HORIZON, OWNER, Bucket, BucketError, Folder, account_of
from server.dbm_reader import FILE_FORMAT, Row, blob_key, user_key
from server.inspection import Damage, Report, Seen, Unusable

KINDS = {"missing": "missing", "damaged": "blob"}  # the kind of damage, by the state of a version's bytes


class Value(NamedTuple):
    """A key of a store's file, and its value, or the version whose bytes are the value, and where they are."""

    user_id: str
    key: bytes
    value: bytes | None
    version: Version | None = None
    path: str = ""
    record: str = ""  # the name of the record that names the version


def verify(connect: Callable[[], Bucket], at: int | None, seen: Seen) -> Report:
    """Read everything that a bucket had at a moment (Unix milliseconds; None: now). Raise Unusable."""
    report = Report()
    for _ in values(connect, at, report, seen):
        pass
    return report


def fill(connect: Callable[[], Bucket], at: int | None, file: Path, seen: Seen) -> list[Damage]:
    """Write everything that a bucket had at a moment into a new file. Return what is damaged. Raise Unusable."""
    report = Report()
    try:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")  # an unfinished file is removed
            connection.execute("PRAGMA synchronous = OFF")  # it is synced as a whole
            store_file.initialise(connection, FILE_FORMAT)
            connection.execute("BEGIN")
            pairs = ((each.key, each.value) for each in values(connect, at, report, seen))
            connection.executemany("INSERT INTO Dict VALUES (?, ?)", pairs)
            if not report.accounts and not report.damage:  # a time that is mistyped must not empty a store
                raise Unusable(f"the bucket: there {'is' if at is None else 'was'} no account in it{moment(at)}")
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise Unusable(f"{file}: {error}") from None
    # What is damaged in this file is found when it is verified. A record that is damaged is not in it.
    return [each for each in report.damage if each.kind == "record"]


def values(connect: Callable[[], Bucket], at: int | None, report: Report, seen: Seen) -> Iterator[Value]:
    """Yield what the file of a store would have had at a moment. Count it, and what is damaged. Raise Unusable."""
    try:
        bucket = connect()
        check(bucket, at)
        with ThreadPoolExecutor(bounds.FETCHED_AT_ONCE) as pool:
            records = ahead(pool, functools.partial(fetch_record, bucket, at), all_folders(bucket))
            for each in ahead(pool, functools.partial(fetch_version, bucket), unfolded(records, report, seen)):
                if each.value is not None:
                    yield each
                    state = "" if not each.version or is_intact(each.value, each.version) else "damaged"
                else:  # a running server deletes the account of a user who wishes it
                    state = "missing" if bucket.get(each.record) else ""
                if state and each.version:
                    kind, text = KINDS[state], f"the bytes of version {each.version.number} are {state}"
                    report.damage.append(Damage(kind, text, each.user_id))
    except BucketError as error:
        raise Unusable(f"the bucket: {error}") from None


def moment(at: int | None) -> str:
    return "" if at is None else f" at {clock.rfc3339(at)}"


def is_intact(data: bytes, version: Version) -> bool:
    return hashlib.sha256(data).hexdigest() == version.sha256


def check(bucket: Bucket, at: int | None) -> None:
    """Refuse a bucket without a copy, and a moment whose states are gone."""
    horizon = int(bucket.get(HORIZON) or 0)
    if bucket.get(OWNER) is None:
        raise Unusable("the bucket: there is no copy in it")
    if at is not None and at < horizon:
        raise Unusable(f"the bucket: states from before {clock.rfc3339(horizon)} are gone")


def all_folders(bucket: Bucket) -> Iterator[tuple[str, Folder]]:
    for digit in DIGITS:
        yield from bucket.folders(digit)


class Fetched(NamedTuple):
    """The record that was the current one of a folder. `data` is None if it has just been deleted."""

    name: str
    folder: Folder
    path: str
    data: bytes | None


def fetch_record(bucket: Bucket, at: int | None, named: tuple[str, Folder]) -> Fetched | None:
    """Return the record that was the current one, or None if the account did not exist."""
    name, folder = named
    moment = folder.as_of((folder.newest or 0) if at is None else at)
    path = "" if moment is None else folder.record(moment)
    return Fetched(name, folder, path, bucket.get(path)) if path else None


def fetch_version(bucket: Bucket, each: Value) -> Value:
    return each._replace(value=bucket.get(each.path)) if each.version else each


def unfolded(records: Iterable[Fetched | None], report: Report, seen: Seen) -> Iterator[Value]:
    """Yield the values of each account. Its versions have still to be fetched."""
    for each in records:
        if each is None or each.data is None:
            continue
        try:
            user_id, account = account_of(each.name, each.data)
        except Damaged as error:
            report.damage.append(Damage("record", str(error)))
            continue
        slots = tuple(range(len(account.versions)))
        row = Row(account, slots, slots_used=max(1, len(slots)))
        yield Value(user_id, user_key(user_id), row.to_bytes(user_id))
        if not slots:  # the sign that there is an account
            yield Value(user_id, blob_key(user_id, 0), b"")
        for slot, version in zip(slots, account.versions, strict=True):
            path = each.folder.blob(version.sha256)
            yield Value(user_id, blob_key(user_id, slot), None, version, path, each.path)
        report.accounts += 1
        report.versions += len(slots)
        report.bytes += sum(version.size for version in account.versions)
        seen(report.accounts, 0)


def ahead[Item, Result](
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield the results in order, while the pool works on the next few."""
    started: deque[Future[Result]] = deque()
    for item in items:
        started.append(pool.submit(function, item))
        if len(started) >= bounds.FETCHED_AT_ONCE:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()
