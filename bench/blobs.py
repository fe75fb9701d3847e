"""Where the bytes of versions are: in rows of PostgreSQL, or in a bucket with rows as the commit. Which costs what?

Each way has a database of its own on one PostgreSQL, and they take turns. The store is that of the server. In the
bucket's way, a row has the name of an object in place of its bytes: the object is put first, then the row is committed,
and then the objects that the account has dropped are deleted.
"""

import contextlib
import hashlib
import itertools
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench.generator import quantile
from bench.report import MEGABYTE, number, table
from server.accounts import Account, Upload, Version
from server.bucket import Address, Bucket
from server.postgres.store import PostgresStore
from server_tests.postgres_cluster import Cluster
from server_tests.s3 import BUCKET, S3Server

KEPT = 3  # versions of an account
PLENTY = 10**12  # bytes that the store may have
TABLES = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname IN ('account', 'backup', 'tally')"
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
STORAGE = "ALTER TABLE backup ALTER COLUMN data SET STORAGE {}"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """A run: accounts that each store so many blobs."""

    blob_bytes: int
    accounts: int
    stores: int


SIZES = {
    True: (Size(300_000, 4, 5), Size(5 * 1024 * 1024, 2, 4)),
    False: (Size(300_000, 12, 12), Size(5 * 1024 * 1024, 3, 9)),
}


@dataclass
class Cost:
    """What a way has cost. Times are in milliseconds, sizes in bytes.

    `stored` is the size of the tables and objects after all accounts have replaced their versions, without a vacuum so
    far. `vacuumed` is that after one, and `deleted` and `reclaimed` are the same once all accounts were deleted.
    """

    name: str
    blob_bytes: int
    store_ms: list[float] = field(default_factory=list)
    fetch_ms: list[float] = field(default_factory=list)
    wal: list[int] = field(default_factory=list)  # of each round of stores, for each store
    live: int = 0  # what the kept versions have
    stored: int = 0
    vacuum_ms: float = 0
    vacuum_wal: int = 0
    vacuumed: int = 0
    deleted: int = 0
    reclaimed: int = 0
    found: list[str] = field(default_factory=list)  # where the bytes of deleted blobs still are, and when


class Rows:
    """The bytes are in rows."""

    def __init__(self, url: str, storage: str) -> None:
        self.url = url
        self.store = PostgresStore(url, PLENTY, 901, b"a secret of the benchmark")
        self.sql(STORAGE.format(storage))

    def sql(self, query: str) -> list[tuple[int, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def put(self, user_id: str, data: bytes) -> None:
        """Store one more version."""
        with self.store.account(user_id) as held:
            assert isinstance(held.record, Account)
            held.append(following(held.record, data), data)

    def get(self, user_id: str) -> bytes:
        """Return the bytes of the newest version."""
        record = self.store.find(user_id)
        assert isinstance(record, Account) and record.latest
        data = self.store.data(user_id, record.latest)
        assert data is not None
        return data

    def register(self, user_id: str) -> None:
        with self.store.account(user_id) as held:
            held.create(Account(1, "c" * 64))

    def delete(self, user_id: str) -> None:
        with self.store.account(user_id) as held:
            held.delete(1)

    def size(self) -> int:
        """Return what everything takes, in bytes."""
        return int(self.sql(TABLES)[0][0])

    def wal(self) -> int:
        return int(self.sql(WAL)[0][0])

    def close(self) -> None:
        self.store.close()


class Objects(Rows):
    """The bytes are in a bucket, and the rows have the names of the objects."""

    def __init__(self, url: str, server: S3Server) -> None:
        super().__init__(url, "EXTENDED")
        set_up = server.settings()
        self._folder = server.folder
        self._bucket = Bucket(
            Address(BUCKET, set_up["AWS_ENDPOINT_URL_S3"], "auto", server.key_id, server.secret),
        )

    def put(self, user_id: str, data: bytes) -> None:
        # An upload that is repeated must not meet the deletion of an object that it has just put.
        name = f"{hashlib.sha256(data).hexdigest()}-{secrets.token_hex(8)}"
        self._bucket.put(name, data)
        with self.store.account(user_id) as held:
            assert isinstance(held.record, Account)
            after = following(held.record, name.encode())
            dropped = [self._name(user_id, each) for each in held.record.versions if each not in after.versions]
            held.append(after, name.encode())
        self._bucket.delete(dropped)

    def get(self, user_id: str) -> bytes:
        data = self._bucket.get(super().get(user_id).decode())
        assert data is not None
        return data

    def delete(self, user_id: str) -> None:
        record = self.store.find(user_id)
        names = [self._name(user_id, each) for each in record.versions] if isinstance(record, Account) else []
        super().delete(user_id)
        self._bucket.delete(names)

    def size(self) -> int:
        return super().size() + sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())

    def _name(self, user_id: str, version: Version) -> str:
        data = self.store.data(user_id, version)
        assert data is not None
        return data.decode()


def following(account: Account, data: bytes) -> Account:
    """Return the account with one more version, and without the oldest if there are too many."""
    number = account.latest.number + 1 if account.latest else 1
    version = Version(number, number, len(data), hashlib.sha256(data).hexdigest(), 1)
    kept = (*account.versions, version)[-KEPT:]
    return Account(1, account.key_sha256, 1, kept, (Upload(number, secrets.token_hex(32)),))


def measure(folder: Path, is_quick: bool, say: Say, server: S3Server | None) -> list[Cost]:
    """Measure each way with each size, on a PostgreSQL that waits for its disk."""
    costs = []
    # No vacuum begins by itself, so that it is measured when it is due.
    with Cluster(autovacuum="off", max_wal_size="4GB", max_connections="60") as cluster:
        for size in SIZES[is_quick]:
            ways: dict[str, Rows] = {
                "rows, EXTENDED": Rows(cluster.new_database(), "EXTENDED"),
                "rows, EXTERNAL": Rows(cluster.new_database(), "EXTERNAL"),
            }
            if server:
                ways["objects"] = Objects(cluster.new_database(), server)
            with contextlib.ExitStack() as stack:
                for way in ways.values():
                    stack.callback(way.close)
                costs += measure_size(ways, size, cluster, say)
    return costs


def measure_size(ways: dict[str, Rows], size: Size, cluster: Cluster, say: Say) -> list[Cost]:
    costs = {name: Cost(name, size.blob_bytes) for name in ways}
    users = [secrets.token_hex(32) for _ in range(size.accounts)]
    for way, user_id in itertools.product(ways.values(), users):
        way.register(user_id)
    marked: dict[str, list[bytes]] = {}
    for turn in range(size.stores):
        say(f"{size.blob_bytes:,} bytes: {turn + 1} of {size.stores} rounds of stores and fetches")
        order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
        for name in order:
            way, cost = ways[name], costs[name]
            blobs = marked[name] = [secrets.token_bytes(size.blob_bytes) for _ in users]
            before = way.wal()
            for user_id, blob in zip(users, blobs, strict=True):
                cost.store_ms.append(milliseconds(lambda: way.put(user_id, blob)))  # noqa: B023 - called at once
            cost.wal.append((way.wal() - before) // len(users))
            for user_id in users:
                cost.fetch_ms.append(milliseconds(lambda: way.get(user_id)))  # noqa: B023
    for name, way in ways.items():
        say(f"{size.blob_bytes:,} bytes, {name}: vacuums and deletes")
        finish(way, costs[name], users, marked[name], size, cluster)
    return list(costs.values())


def finish(way: Rows, cost: Cost, users: list[str], blobs: list[bytes], size: Size, cluster: Cluster) -> None:
    """Vacuum. Delete all accounts but the last, vacuum, and look for the bytes of the deleted. Then delete the last."""
    cost.live = min(KEPT, size.stores) * len(users) * size.blob_bytes
    cost.stored, before = way.size(), way.wal()
    cost.vacuum_ms = milliseconds(lambda: way.sql("VACUUM"))
    cost.vacuum_wal, cost.vacuumed = way.wal() - before, way.size()
    for user_id in users[:-1]:
        way.delete(user_id)
    marks = [blob[1000:1040] for blob in blobs[:-1]]
    for what in ("deleted", "vacuumed"):
        if what == "vacuumed":
            way.sql("VACUUM")
        for _ in range(2):
            way.sql("CHECKPOINT")
            way.sql("SELECT pg_switch_wal()")
        cost.found.append(f"{what}: {where(marks, cluster)}")
    way.delete(users[-1])
    cost.deleted = way.size()
    way.sql("VACUUM")
    cost.reclaimed = way.size()


def where(marks: Sequence[bytes], cluster: Cluster) -> str:
    """Return how many of these bytes are in the files of tables, and how many in the write-ahead log."""
    found: dict[str, set[bytes]] = {"base": set(), "pg_wal": set()}
    for folder, those in found.items():
        for file in (cluster.data / folder).rglob("*"):
            with contextlib.suppress(OSError):  # it has gone since
                data = file.read_bytes() if file.is_file() else b""
                those.update(mark for mark in marks if mark in data)
    return f"of {len(marks)} deleted blobs, {len(found['base'])} in tables and {len(found['pg_wal'])} in the log"


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


@contextlib.contextmanager
def s3_server(folder: Path, say: Say) -> Iterator[S3Server | None]:
    """Start an S3 server, or say that there is none."""
    import pytest

    try:
        server = S3Server(folder)
    except pytest.skip.Exception as error:
        say(str(error))
        yield None
        return
    with server:
        yield server


def blobs_table(costs: Sequence[Cost]) -> str:
    """Return the table of the ways. WAL and sizes are parts of what was stored, or is kept."""
    lines = []
    for each in costs:
        times = [quantile(values, part) for values in (each.store_ms, each.fetch_ms) for part in (0.5, 0.95)]
        sizes = (each.stored, each.vacuumed, each.deleted, each.reclaimed)
        lines.append(
            (
                f"{each.name}, {each.blob_bytes:,} bytes",
                f"{statistics.median(each.wal) / each.blob_bytes:.3f}",
                *map(number, times),
                *(f"{size / each.live:.2f}" for size in sizes),
                number(each.vacuum_ms),
                number(each.vacuum_wal / MEGABYTE),
            )
        )
    return table(
        (
            *("", "WAL / bytes", "store p50 ms", "p95 ms", "fetch p50 ms", "p95 ms"),
            *("on disk / kept", "vacuumed", "deleted", "and vacuumed", "vacuum ms", "its WAL MB"),
        ),
        lines,
    )
