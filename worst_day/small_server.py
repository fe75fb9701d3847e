"""A server without sockets, whose whole state can be put down and taken up again, and whose clock stands still.

It has one userId, so few things can happen to it. Everything that decides is the real thing: the app with its routes
and proofs, the handlers, the memory of refused uploads, and the store. Only the limits on guessing and on registrations
are left out. Beside each state of the server goes the state of the model (contract_tests/generated/model.py), and each
answer is compared with the model's.

Nothing runs at once here. What matters of two requests at once is that one may change the account after the other's
credentials were compared, and before it holds the account. Therefore, a request can be given the account that its
credentials were compared with.

Times are Unix milliseconds, except `created`, which is in Unix seconds.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import backup_server
from clients.python.backup_client import authorization, sign
from contract_tests.generated.model import Call, Memory, Model, copied
from contract_tests.generated.model import Settings as ModelSettings
from contract_tests.target.openapi import LIMITS
from server import clock
from server.accounts import Account, Damaged, Deleted, Record, Store
from server.dbm_store import DbmStore
from server.health import Watch
from server.http_server import ARRIVAL, Arrival
from server.limits import Limit
from server.refused import RefusedUploads
from server_tests.memory_store import MemoryStore

USER = "5e" * 32
KEYS = ("a1" * 32, "b2" * 32)  # the two storage keys between which the account changes
KEY_DIGESTS = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS]
ADDRESS = "192.0.2.1"
SECRET = "a secret for a server that nobody else can reach"
PATHS = {
    "registerUser": ("POST", "/api/register"),
    "storeBackup": ("POST", "/api/backup"),
    "changeStorageKey": ("PUT", "/api/user/storage-key"),
    "fetchBackup": ("GET", "/api/backup"),
    "deleteUser": ("DELETE", "/api/user"),
}
# Small limits, so that a short history reaches them. Of the versions, only the latest two are kept, whatever the date.
ENVIRON = {
    "APP_SECRET_KEY": SECRET,
    "BACKUPS_PER_HOUR": "3",
    "BACKUPS_PER_DAY": "5",
    "KEY_CHANGES_PER_HOUR": "1",
    "KEY_CHANGES_PER_DAY": "2",
    "KEEP_VERSIONS": "2,0,0,0",
}
KEPT = 2


# What clients store. It has small numbers, so that states with equal futures look equal.
CONTENTS = [b"content %d" % number for number in range(100)]
DIGESTS = [hashlib.sha256(content).hexdigest() for content in CONTENTS]
NUMBERS = {digest: number for number, digest in enumerate(DIGESTS)}


@dataclass(frozen=True, eq=False)
class Request:
    """A signed request. `key` and `new_key` are indexes of KEYS; `base` and `content` are numbers of contents."""

    operation: str
    key: int
    base: int | None
    content: int | None
    created: int
    signature: str = field(repr=False)
    environ: dict[str, Any] = field(repr=False)
    body: bytes = field(repr=False)
    call: Call = field(repr=False)

    @property
    def new_key(self) -> int:
        """The key that is in force after this request."""
        return 1 - self.key if self.operation == "changeStorageKey" else self.key


def arrival(at: int) -> Arrival:
    """Return how a request arrived whose head came at this time. Nothing is unusual about it."""
    ordinary: dict[str, Any] = {
        "at": at,
        "started": at,
        "body_fault": None,
        "repeated": frozenset(),
        "address": ADDRESS,
        "has_room": lambda _: True,
        "proven": {},
    }
    # By name, and only what the server asks for: it may come to need less.
    return Arrival(**{each.name: ordinary[each.name] for each in fields(Arrival)})


@functools.cache
def signed(operation: str, key: int, base: int | None, content: int | None, created: int) -> Request:
    """Return a request as the app would sign it at this time. There is only one object for equal requests."""
    method, path = PATHS[operation]
    value: dict[str, str] = {}
    if content is not None:
        value["data"] = base64.b64encode(CONTENTS[content]).decode()
    if base is not None:
        value["baseSha256"] = DIGESTS[base]
    new_key = KEYS[1 - key] if operation == "changeStorageKey" else None
    if new_key is not None:
        value["storageKey"] = new_key
    body = json.dumps(value).encode() if value else b""
    headers = sign(method, path, body, authorization(USER, KEYS[key]), secret=SECRET, created=created)
    environ = {
        "REQUEST_METHOD": method,
        "REQUEST_URI": path,
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
        **{"HTTP_" + name.upper().replace("-", "_"): text for name, text in headers.items()},
    }
    call = Call(
        operation=operation,
        user_id=USER,
        key=KEYS[key],
        created=created,
        signature=headers["Signature"],
        address=ADDRESS,
        blob=b"" if content is None else CONTENTS[content],
        base=None if base is None else DIGESTS[base],
        new_key=new_key,
    )
    return Request(operation, key, base, content, created, headers["Signature"], environ, body, call)


# --- States and stores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What matters of a record, in small numbers. Times are in Unix seconds."""

    key: int | None = None  # None if there is no account
    contents: tuple[int, ...] | None = None  # of the kept versions, newest first
    uploads: tuple[tuple[int, bool, str], ...] = ()  # when, whether it changed the key, and the signature
    deleted: int | None = None

    @property
    def latest(self) -> int | None:
        """The latest content."""
        return self.contents[0] if self.contents else None

    @classmethod
    def of(cls, record: Record | None) -> Summary:
        """Summarize a record."""
        if isinstance(record, Deleted):
            return cls(deleted=record.deleted_at // 1000)
        if record is None:
            return cls()
        return cls(
            KEY_DIGESTS.index(record.key_sha256),
            tuple(NUMBERS[version.sha256] for version in reversed(record.versions)),
            tuple((each.moment // 1000, each.changes_key, each.signature) for each in record.uploads),
        )


@dataclass(frozen=True, eq=False)
class Node:
    """A state of the server: what is in the store, which signatures of uploads were refused when, and the model."""

    number: int
    record: Record | None
    summary: Summary
    stored: Any = field(repr=False)  # what the shelf needs to get this state back
    refused: tuple[tuple[str, int], ...] = field(repr=False)
    model: Model = field(repr=False)


class Shelf(ABC):
    """A store whose content can be taken away and put back."""

    store: Store

    @abstractmethod
    def save(self) -> Any:
        """Return the content of the store. It can be hashed."""

    @abstractmethod
    def load(self, stored: Any) -> None:
        """Give the store this content."""

    @abstractmethod
    def keep_house(self) -> None:
        """Do what the store does by itself as time passes."""

    @abstractmethod
    def close(self) -> None:
        """Close the store."""


class MemoryShelf(Shelf):
    """The store of the tests. It replaces its dictionaries' values and never changes them, so no copies are needed."""

    EMPTY: Any = (None, ())

    def __init__(self) -> None:
        self.store: MemoryStore = MemoryStore()

    def save(self) -> Any:
        return self.store.find(USER), tuple(self.store._data.items())

    def load(self, stored: Any) -> None:
        record, data = stored
        self.store._records = {} if record is None else {USER: record}
        self.store._data = dict(data)

    def keep_house(self) -> None:
        pass

    def close(self) -> None:
        self.store.close()


class FileShelf(Shelf):
    """The store of the server, in a file. A second connection to the file takes its rows away and puts them back."""

    EMPTY: Any = ()

    def __init__(self, directory: Path, reserved_seconds: int) -> None:
        self.store: DbmStore = DbmStore(directory / "backup.db", reserved_seconds)
        # What the housekeeper does depends on the clock, which here goes back and forth. `keep_house` does it instead.
        assert self.store.tally.is_complete.wait(10)
        self.house = self.store.housekeeper
        self.house.stop()
        self._rows = sqlite3.connect(directory / "backup.db", isolation_level=None)

    def save(self) -> Any:
        rows = self._rows.execute("SELECT key, value FROM Dict WHERE key != CAST('format' AS BLOB)")
        return tuple(sorted((bytes(key), bytes(value)) for key, value in rows))

    def load(self, stored: Any) -> None:
        if self.save() == stored:
            return
        self._rows.execute("BEGIN IMMEDIATE")
        self._rows.execute("DELETE FROM Dict WHERE key != CAST('format' AS BLOB)")
        self._rows.executemany("INSERT INTO Dict (key, value) VALUES (?, ?)", stored)
        self._rows.execute("COMMIT")

    def keep_house(self) -> None:
        record = self.store.find(USER)
        self.house._deleted.clear()
        if isinstance(record, Deleted):
            self.house.forget_later(USER, record)
            if self.house._deleted[0][0] <= clock.monotonic():
                self.house._forget_next()

    def close(self) -> None:
        self._rows.close()
        self.store.close()


class NoGuessing:
    """In place of the limits on guessing: their numbers are far above what so few requests can reach."""

    def wait(self, *_: Any, **__: Any) -> None:
        return None

    def count(self, *_: Any, **__: Any) -> None:
        return None

    def remember(self, *_: Any) -> bool:
        return False

    def forget(self, *_: Any) -> None:
        return None


class NoLimit:
    """In place of the limit on registrations."""

    limit = Limit("registrations from this address", 1_000_000, 3600)

    def wait(self, *_: Any) -> int:
        return 0

    def count(self, *_: Any) -> int:
        return 0

    def give_back(self, *_: Any) -> None:
        return None


# --- The server -------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What a request did. `fault` says what was wrong about it by itself, whoever sent it and whatever came before."""

    node: Node
    outcome: str
    has_changed: bool
    fault: str | None


@functools.cache
def spec() -> backup_server.Spec:
    return backup_server.Spec(backup_server.ROOT / "openapi.yaml")


class SmallServer:
    """The server. `calls` counts the requests that it has really answered: the others were answered before."""

    def __init__(self, shelf: Shelf, has_model: bool = True) -> None:
        self.calls = 0
        self._shelf, self._has_model = shelf, has_model
        settings = backup_server.Settings.from_environ(ENVIRON, spec().configurable_limits)
        self.server = backup_server.Server(settings, spec(), shelf.store, cast(Watch, None))
        self.server.guessing = cast(Any, NoGuessing())
        self.server.registrations = cast(Any, NoLimit())
        limits = spec().limits
        self._refused_seconds = 2 * limits["signatureSkewSeconds"] + limits["requestBodySeconds"] + 1
        self._app = backup_server.App(self.server, {})
        self._now = 0
        self._nodes: dict[Any, Node] = {}
        self._results: dict[Any, Result] = {}
        self._clock = contextlib.ExitStack()
        for name in ("now", "monotonic"):
            self._clock.enter_context(mock.patch.object(clock, name, lambda: self._now))

    def close(self) -> None:
        """Give the clock back, and close the store."""
        self._clock.close()
        self._shelf.close()

    def empty(self) -> Node:
        """Return the state of a server that has never been used."""
        mine = self.server.settings
        numbers = ModelSettings(
            hour=mine.backups_per_hour,
            day=mine.backups_per_day,
            key_hour=mine.key_changes_per_hour,
            key_day=mine.key_changes_per_day,
            registrations=1_000_000,
            failures=1_000_000,
            account_failures=1_000_000,
            keep=mine.keep_versions,
        )
        return self._node(cast(Any, self._shelf).EMPTY, (), Model(numbers))

    def restarted(self, node: Node) -> Node:
        """Return the state after a restart: what is in memory is forgotten."""
        if not node.refused:
            return node
        after = copied(node.model)
        after.restart()
        return self._node(node.stored, (), after)

    def later(self, node: Node, now: int) -> Node:
        """Return the state at a later time, if nobody does anything."""
        if isinstance(self._shelf, MemoryShelf):
            return node  # it does nothing by itself
        self._now = now
        self._shelf.load(node.stored)
        self._shelf.keep_house()
        return self._node(self._shelf.save(), node.refused, node.model)

    def deliver(
        self, node: Node, request: Request, now: int, arrived: int | None = None, seen: Account | None = None
    ) -> Result:
        """Return what a request does that arrives now.

        If `arrived` is given, only its end arrives now, and its head arrived then. If `seen` is given, too, its
        credentials were compared with this account, before others changed it.
        """
        key = node.number, request, now, arrived, id(seen)
        result = self._results.get(key)
        if result is None:
            if len(self._results) > 1_000_000:  # so many fit into memory
                self._results.clear()
            self._results[key] = result = self._deliver(node, request, now, now if arrived is None else arrived, seen)
        return result

    def _deliver(self, node: Node, request: Request, now: int, arrived: int, seen: Account | None) -> Result:
        self.calls += 1
        self.server.refused = RefusedUploads(self._refused_seconds)
        for signature, self._now in node.refused:
            self.server.refused.add(USER, signature)
        self._now = now
        self._shelf.load(node.stored)
        environ = request.environ | {ARRIVAL: arrival(arrived), "wsgi.input": io.BytesIO(request.body)}
        with self._looking_at(seen):
            _, response = self._app._respond(environ)
        outcome = str(response.status)
        if response.status >= 400:
            outcome += " " + json.loads(response.body)["code"]
        stored, record = self._shelf.save(), self._shelf.store.find(USER)
        refused = node.refused
        if request.signature not in dict(refused) and self.server.refused.has(USER, request.signature):
            refused += ((request.signature, now),)
        fault, after = self._compare(node, request, now, arrived, seen, outcome)
        has_changed = record != node.record
        fault = fault or misstep(node.record, record, request, outcome) or self._damage(record)
        if request.operation == "fetchBackup" and outcome == "200":
            data = base64.b64decode(json.loads(response.body)["data"])
            latest = record.latest if isinstance(record, Account) else None
            if latest is None or hashlib.sha256(data).hexdigest() != latest.sha256:
                fault = fault or "a fetch got other bytes than those of the latest version"
        return Result(self._node(stored, refused, after), outcome, has_changed, fault)

    @contextlib.contextmanager
    def _looking_at(self, seen: Account | None) -> Iterator[None]:
        """The first look into the store finds what was there when the credentials were compared."""
        if seen is None:
            yield
            return
        looks = [seen]
        find = self._shelf.store.find
        with mock.patch.object(self._shelf.store, "find", lambda user_id: looks.pop() if looks else find(user_id)):
            yield

    def _node(self, stored: Any, refused: tuple[tuple[str, int], ...], after: Model) -> Node:
        # The model's memory, too: a server that forgets what it should remember must not make the model forget it.
        key = stored, refused, tuple(after.memory.refused.get(USER, {}).items())
        node = self._nodes.get(key)
        if node is None:
            self._shelf.load(stored)
            record = self._shelf.store.find(USER)
            node = Node(len(self._nodes), record, Summary.of(record), stored, refused, after)
            self._nodes[key] = node
        return node

    def _compare(
        self, node: Node, request: Request, now: int, arrived: int, seen: Account | None, outcome: str
    ) -> tuple[str | None, Model]:
        """Compare the answer with the model's. Return the difference, if any, and the model's next state."""
        if not self._has_model:
            return None, node.model
        after, call = copied(node.model), request.call
        is_late = now - arrived > LIMITS["requestBodySeconds"] * 1000
        if abs(arrived // 1000 - call.created) <= LIMITS["signatureSkewSeconds"]:
            call = replace(call, created=now // 1000)  # the model has only one time, but the head was in time
        if is_late and (seen or request.operation == "registerUser"):
            expected = "408 request_timeout"
        else:
            expected = after.answer(replace(call, flaw="408 request_timeout") if is_late else call, now).outcome
        after.memory = Memory(refused=after.memory.refused)  # the rest belongs to limits that are left out
        return (None if outcome == expected else f"the model answers {expected}"), after

    def _damage(self, record: Record | None) -> str | None:
        for version in record.versions if isinstance(record, Account) else ():
            try:
                data = self._shelf.store.data(USER, version)
            except Damaged:
                data = None
            if data is None or hashlib.sha256(data).hexdigest() != version.sha256:
                return f"the bytes of version {version.number} are not those that were stored"
        return None


# --- What a single request may do -------------------------------------------------------------------------------------

ACCEPTED = {"registerUser": "201", "storeBackup": "201", "changeStorageKey": "200", "deleteUser": "204"}


def misstep(before: Record | None, after: Record | None, request: Request, outcome: str) -> str | None:
    """Say what is wrong if a request turned one record into another and got this answer. Return None if nothing is.

    Each change is one version on top of its base, a new account, or a deletion, and each answer tells the truth. So by
    induction, no version that was acknowledged is ever gone, unless a version was made from it or the account deleted.
    """
    if after == before:
        if outcome == ACCEPTED.get(request.operation) or outcome.startswith("5"):
            return f"the answer was {outcome}, but nothing has changed"
        is_right = isinstance(before, Account) and before.key_sha256 == KEY_DIGESTS[request.key]
        if outcome == "200" and not is_right:
            return "the credentials were wrong, but the answer was 200"
        if request.operation == "storeBackup" and outcome == "200" and number_of_latest(before) != request.content:
            return "an upload was acknowledged as a retry, but the latest version is another one"
        return None
    if outcome != ACCEPTED.get(request.operation):
        return f"the answer was {outcome}, but the account has changed"
    if request.operation == "registerUser":
        is_new = isinstance(after, Account) and not after.versions and not isinstance(before, Account)
        return None if is_new else "a registration replaced an account"
    if not isinstance(before, Account):
        return "an account that does not exist was changed"
    if before.key_sha256 != KEY_DIGESTS[request.key]:
        return "a key that is not in force changed the account"
    if request.operation == "deleteUser":
        return "a deletion left the account" if isinstance(after, Account) else None
    if not isinstance(after, Account):
        return "an upload deleted the account"
    if number_of_latest(before) != request.base:
        return "LOST UPDATE: the latest version was replaced by one that was not made from it"
    if number_of_latest(after) != request.content:
        return "an upload was acknowledged, but the latest version has other bytes"
    if after.versions[:-1] != before.versions[-KEPT + 1 :]:
        return "LOST UPDATE: an upload dropped versions that should be kept"
    if after.key_sha256 != KEY_DIGESTS[request.new_key]:
        return "the key is not the one that the upload leaves in force"
    return None


def number_of_latest(record: Record | None) -> int | None:
    """Return the number of the latest content, or None if there is none."""
    latest = record.latest if isinstance(record, Account) else None
    return NUMBERS[latest.sha256] if latest else None
