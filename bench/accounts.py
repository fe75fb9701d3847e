"""The server with many accounts: how long a start takes, and what a request takes then.

The server itself makes one account. Its record and its backup are then copied, under other userIds, straight into the
file. So this module knows the records of `server/dbm_reader.py`, and nothing else of the server.
"""

import contextlib
import itertools
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.generator import drive
from bench.measure import Bench, Place, Say
from bench.process import Measured, new_secret, server
from bench.wire import UPLOADS, health
from server.dbm_reader import Row, blob_key, user_key

STARTS = 5
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass
class Size:
    """A file to measure: so many accounts, each with one backup of `blob_bytes`."""

    accounts: int
    blob_bytes: int


@dataclass
class WithAccounts:
    """What was measured with a file. Times are in milliseconds. If a cold start was not measured, it is None."""

    accounts: int
    file_bytes: int
    start_ms: float
    cold_start_ms: float | None
    cold_read_bytes: int | None
    p50_ms: dict[str, float]


QUICK = (Size(100, 3_000),)
WHOLE = (Size(100, 3_000), Size(10_000, 3_000), Size(100_000, 3_000), Size(200, 5 * 1024 * 1024))


def measure(size: Size, place: Place, seconds: float, say: Say, *, cold: bool) -> WithAccounts:
    """Fill a file, start servers on it, and store and fetch with one client.

    `cold` also starts one with an empty page cache. This empties the page cache of the whole machine, once.
    """
    with tempfile.TemporaryDirectory(dir=place.directory) as folder:
        directory, secret = Path(folder), new_secret()
        say(f"{size.accounts:,} accounts: fills the file")
        with server(directory, secret) as process:
            bench = Bench(process, secret)
            (user,) = bench.with_backup(size.blob_bytes, 1)
            process.stop()
        fill(directory / "backup.db", user.user_id, size.accounts)
        say(f"{size.accounts:,} accounts: {STARTS} starts")
        starts = sorted(start_seconds(directory, secret, place)[0] for _ in range(STARTS))
        cold_seconds, cold_bytes = None, None
        if cold and os.access(DROP_CACHES, os.W_OK):
            os.sync()
            DROP_CACHES.write_text("1")
            cold_seconds, cold_bytes = start_seconds(directory, secret, place)
        p50: dict[str, float] = {}
        with server(directory, secret, place.box) as process:
            for blob_bytes in (3_000, 300_000):
                say(f"{size.accounts:,} accounts: one client, {blob_bytes:,} bytes")
                p50 |= one_client(Bench(process, secret), blob_bytes, seconds)
        return WithAccounts(
            accounts=size.accounts,
            file_bytes=(directory / "backup.db").stat().st_size,
            start_ms=starts[len(starts) // 2] * 1000,
            cold_start_ms=cold_seconds * 1000 if cold_seconds is not None else None,
            cold_read_bytes=cold_bytes,
            p50_ms=p50,
        )


def start_seconds(directory: Path, secret: str, place: Place) -> tuple[float, int]:
    """Start a server. Return how long it takes until /health is answered, and how many bytes come from the disk."""
    started = time.monotonic()
    with server(directory, secret, place.box) as process:
        result = drive(process.address, [[health()]], 10)
        seconds = time.monotonic() - started
        if result.count != 1:
            raise RuntimeError(f"a new server is not healthy: {dict(result.wrong)}")
        read = read_bytes(process)
        process.stop()
    return seconds, read


def read_bytes(process: Measured) -> int:
    with contextlib.suppress(OSError):
        return process.read_bytes()
    return 0


def one_client(bench: Bench, size: int, seconds: float) -> dict[str, float]:
    """Return the p50 in milliseconds of stores and fetches of this size, by one client."""
    name = f"{size // 1000} kB"
    users = bench.fresh(int(seconds * 600) // UPLOADS + 1)
    stores = list(bench.signer.stores(users, bench.uploads(size)))
    stored = drive(bench.process.address, [stores], seconds)
    (reader,) = bench.with_backup(size, 1)
    fetched = drive(bench.process.address, [itertools.repeat(bench.signer.fetch(reader))], seconds)
    if stored.wrong or fetched.wrong:
        raise RuntimeError(f"wrong answers: {dict(stored.wrong + fetched.wrong)}")
    return {f"store {name}": stored.quantile(0.5) * 1000, f"fetch {name}": fetched.quantile(0.5) * 1000}


def fill(path: Path, user_id: str, count: int) -> None:
    """Copy an account of a stopped server until there are `count`."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        stored = dict(connection.execute("SELECT key, value FROM Dict WHERE instr(key, ?)", (user_id.encode(),)))
        row = Row.from_bytes(user_id, stored[user_key(user_id)])
        blob = stored[blob_key(user_id, row.slots[0])]

        def copies() -> Iterator[tuple[bytes, bytes]]:
            for copy in sorted(secrets.token_hex(32) for _ in range(count - 1)):
                yield user_key(copy), row.to_bytes(copy)
                yield blob_key(copy, row.slots[0]), blob

        connection.executemany("INSERT INTO Dict (key, value) VALUES (?, ?)", copies())
