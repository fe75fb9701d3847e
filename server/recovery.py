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


class Value(NamedTuple):
    """A key of a store's file, and its value. If there is no value, it is the version at this place in the bucket."""

    user_id: str
    key: bytes
    value: bytes | None
    version: Version | None = None
    path: str = ""


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
                if each.version:
                    is_intact = each.value is not None and hashlib.sha256(each.value).hexdigest() == each.version.sha256
                    if not is_intact:
                        kind, state = ("missing", "missing") if each.value is None else ("blob", "damaged")
                        text = f"the bytes of version {each.version.number} are {state}"
                        report.damage.append(Damage(kind, text, each.user_id))
                if each.value is not None:
                    yield each
    except BucketError as error:
        raise Unusable(f"the bucket: {error}") from None


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


def fetch_record(bucket: Bucket, at: int | None, named: tuple[str, Folder]) -> tuple[str, Folder, bytes | None]:
    """Return the record that was the current one, or None if the account did not exist."""
    name, folder = named
    moment = folder.as_of((folder.newest or 0) if at is None else at)
    return name, folder, None if moment is None else bucket.get(folder.record(moment)) or b""


def fetch_version(bucket: Bucket, each: Value) -> Value:
    return each._replace(value=bucket.get(each.path)) if each.version else each


def unfolded(records: Iterable[tuple[str, Folder, bytes | None]], report: Report, seen: Seen) -> Iterator[Value]:
    """Yield the values of each account. Its versions have still to be fetched."""
    for name, folder, data in records:
        if data is None:
            continue
        try:
            user_id, account = account_of(name, data)
        except Damaged as error:
            report.damage.append(Damage("record", str(error)))
            continue
        slots = tuple(range(len(account.versions)))
        row = Row(account, slots, slots_used=max(1, len(slots)))
        yield Value(user_id, user_key(user_id), row.to_bytes(user_id))
        if not slots:  # the sign that there is an account
            yield Value(user_id, blob_key(user_id, 0), b"")
        for slot, version in zip(slots, account.versions, strict=True):
            yield Value(user_id, blob_key(user_id, slot), None, version, folder.blob(version.sha256))
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
