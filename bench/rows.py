"""What the benchmark measures: each row is a kind of work. Add a row here; nothing else has to change."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bench.wire import UPLOADS, Prepared, Signer, Uploads, User, health

MIXED_DAY = {"304": 0.7, "store 300 kB": 0.2, "fetch 300 kB": 0.1}  # shares of the requests

Plans = list[Iterable[Prepared]]  # one for each connection


class Accounts(Protocol):
    """What a row may ask for before it is measured."""

    signer: Signer

    def fresh(self, count: int) -> list[User]:
        """Return registered users without a backup. Nobody else gets them."""

    def uploads(self, size: int) -> Uploads:
        """Return the bodies of uploads of this size."""

    def with_backup(self, size: int, count: int) -> list[User]:
        """Return users with one backup of this size. Rows that only read share them."""


class Goal(NamedTuple):
    """What a row should reach: a part of a floor's rate, or a multiple of a floor's p50.

    `beside` is "file" or "empty". `outside` and `inside` are the numbers outside the box and in it.
    """

    what: str
    beside: str
    outside: float
    inside: float

    @property
    def text(self) -> str:
        return "at most {}" if self.what == "p50" else "at least {}"


@dataclass(frozen=True)
class Row:
    """A kind of work: its requests, how many connections send them, its floors and its goal.

    `fastest` is the number of requests a second that nothing here will exceed: so many are prepared. `file` is what one
    thread does with a `dbm.sqlite3` file for the same work: "put", "get" or nothing.
    """

    name: str
    size: int
    plans: Callable[["Row", Accounts, int], Plans]
    fastest: int
    file: str = ""
    goal: Goal | None = None
    connections: int = 8


def shares(count: int, parts: int) -> range:
    """Return how many of `count` things each of `parts` gets: the numbers of the parts."""
    return range(max(1, -(-count // parts)))


def healths(row: Row, accounts: Accounts, count: int) -> Plans:
    return [[health()] * count for _ in range(row.connections)]


def registrations(row: Row, accounts: Accounts, count: int) -> Plans:
    each = shares(count, row.connections)
    return [[accounts.signer.register(User.new()) for _ in each] for _ in range(row.connections)]


def stores(row: Row, accounts: Accounts, count: int) -> Plans:
    each = len(shares(count, row.connections * UPLOADS))
    users, uploads = accounts.fresh(each * row.connections), accounts.uploads(row.size)
    return [list(accounts.signer.stores(users[i :: row.connections], uploads)) for i in range(row.connections)]


def fetches(row: Row, accounts: Accounts, count: int) -> Plans:
    users = accounts.with_backup(row.size, row.connections)
    return [[accounts.signer.fetch(user)] * count for user in users]


def not_modified(row: Row, accounts: Accounts, count: int) -> Plans:
    users, etag = accounts.with_backup(row.size, row.connections), accounts.uploads(row.size).etag(0)
    return [[accounts.signer.not_modified(user, etag)] * count for user in users]


def lists(row: Row, accounts: Accounts, count: int) -> Plans:
    users = accounts.with_backup(row.size, row.connections)
    return [[accounts.signer.list(user)] * count for user in users]


def mixed_day(row: Row, accounts: Accounts, count: int) -> Plans:
    """Let each connection read users that have a backup, and store backups of others."""
    chance, etag = random.Random(1), accounts.uploads(row.size).etag(0)
    readers = accounts.with_backup(row.size, row.connections)
    stores_each = len(shares(int(count * MIXED_DAY["store 300 kB"]), row.connections * UPLOADS))
    writers = accounts.fresh(stores_each * row.connections)
    plans: Plans = []
    for i, user in enumerate(readers):
        uploads = accounts.signer.stores(writers[i :: row.connections], accounts.uploads(row.size))
        reads = {"304": accounts.signer.not_modified(user, etag), "fetch 300 kB": accounts.signer.fetch(user)}
        plan: list[Prepared] = []
        for name in chance.choices(list(MIXED_DAY), list(MIXED_DAY.values()), k=count // row.connections):
            request = reads.get(name) or next(uploads, None)
            if request is None:
                break
            plan.append(request)
        plans.append(plan)
    return plans


KB_3, KB_300, MIB_5 = 3_000, 300_000, 5 * 1024 * 1024
ROWS = (
    Row("health", 0, healths, 20_000, goal=Goal("rate", "empty", 0.7, 0.7)),
    Row("register", 0, registrations, 4_000, file="put"),
    Row("store 3 kB", KB_3, stores, 2_000, file="put"),
    Row("store 300 kB", KB_300, stores, 1_000, file="put", goal=Goal("rate", "file", 0.6, 0.7)),
    Row("store 300 kB, alone", KB_300, stores, 600, file="put", goal=Goal("p50", "file", 2.5, 2.5), connections=1),
    Row("store 5 MiB", MIB_5, stores, 40, file="put"),
    Row("fetch 3 kB", KB_3, fetches, 20_000, file="get"),
    Row("fetch 300 kB", KB_300, fetches, 10_000, file="get", goal=Goal("rate", "empty", 0.5, 0.5)),
    Row("fetch 5 MiB", MIB_5, fetches, 2_000, file="get"),
    Row("304", KB_300, not_modified, 20_000, goal=Goal("rate", "empty", 0.7, 0.7)),
    Row("list", KB_300, lists, 20_000),
    Row("mixed day", KB_300, mixed_day, 2_000),
)
