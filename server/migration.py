"""Moves all accounts from one store to another, while servers go on using the first one.

Most is copied while the source takes changes. Then the source is closed for changes: for a moment, in which the rest is
copied, and then for good. Only after that, the target is opened. So each change that was acknowledged is at the target.

The closing is a lease, which the run renews. If the run ends before the move is complete, the source opens by itself.
If the lease was lost for whatever reason, the run cannot close the source for good: it closes it again, and copies what
has changed.

The state of a store is a text, which both kinds of stores keep in the same form:

    (empty)             open
    from:NAME:RUN       it is being filled from the store NAME by this run, and no server uses it
    to:NAME             its accounts were moved to the store NAME, and it is closed for good
"""

import hashlib
import math
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from server import bounds
from server.accounts import Account, Damaged, Record, StorageUnavailable, Version

NAME = r"[0-9a-f-]{32,36}"
MOVED = re.compile(rf"to:({NAME})")
FILLING = re.compile(rf"from:({NAME}):([0-9a-f]+)")
FEW = 20  # so many changed accounts are left for the moment in which the source is closed
ATTEMPTS = 5  # at something that others keep changing

Stage = Callable[[str, Callable[[], tuple[int, int]]], None]  # gets what begins now, and what measures it
Data = Callable[[Version], bytes | None]  # returns a version's bytes, or None if it was dropped meanwhile


class Impossible(Exception):
    """The accounts cannot be moved. The message says why, and names nobody."""


class Lapsed(Exception):
    """The source was not closed all the time, so something may have changed."""


class Changed(Exception):
    """An account has changed while it was copied."""


def startable(state: str) -> str:
    """Return the state of a store for a server. Raise StorageUnavailable if only a part of the accounts is in it."""
    if FILLING.fullmatch(state):
        raise StorageUnavailable("a migration into it has not ended: run maintenance.py migrate again")
    return state


# --- The two sides ----------------------------------------------------------------------------------------------------


class Side(ABC):
    """A store, as a source or as a target. Methods raise StorageError, or Impossible."""

    name: str  # of the store, whoever opens it: 32 to 36 characters of 0-9 a-f -

    @abstractmethod
    def state(self) -> str:
        """Return the state of the store."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[str, bytes]]:
        """Yield each userId, in order, and its record as it is stored."""

    @abstractmethod
    def record(self, user_id: str, row: bytes) -> Record:
        """Return the record that a row has. Raise Damaged."""

    @abstractmethod
    def find(self, user_id: str) -> Record | None:
        """Return the record that a user has now. Raise Damaged."""

    @abstractmethod
    def data(self, user_id: str, version: Version) -> bytes | None:
        """Return a version's bytes, which have its SHA-256, or None if it is no longer there. Raise DamagedData."""

    # As a source:

    @abstractmethod
    def close_for(self, run: str, seconds: int) -> None:
        """Let this run close the store for so long."""

    @abstractmethod
    def renew(self, run: str, seconds: int) -> None:
        """Keep the store closed for so long from now on. Raise Lapsed if this run has not kept it closed until now."""

    @abstractmethod
    def close_for_good(self, run: str, state: str) -> None:
        """Close the store for good. Raise Lapsed if this run has not kept it closed until now."""

    # As a target:

    @abstractmethod
    def begin(self, source: str, state: str) -> None:
        """Close the store with this state, if it may be filled from this source: see `check_target`."""

    @abstractmethod
    def put(self, user_id: str, record: Record, data: Data, whole: bool = False) -> None:
        """Let a user have this record. Take the bytes of the versions that are new, or of all if `whole`.

        Raise Changed if there are no bytes of one; then nothing has changed.
        """

    @abstractmethod
    def remove(self, user_id: str) -> None:
        """Remove a record, and all that belongs to it."""

    @abstractmethod
    def check_sums(self) -> None:
        """Raise Impossible if what is counted of all accounts is not what they are."""

    @abstractmethod
    def reopen(self) -> None:
        """Let the store take changes."""


def check_target(state: str, source: str, is_empty: bool) -> None:
    """Raise Impossible unless a store may be filled from this source.

    It has to be empty, or to have nothing that it did not get from this source, or that did not go there.
    """
    parts = FILLING.fullmatch(state) or MOVED.fullmatch(state)
    if is_empty and not MOVED.fullmatch(state):
        return
    if parts is None:
        raise Impossible("the target has accounts already: take an empty one")
    if parts[1] != source:
        raise Impossible("the target has accounts of another store: take an empty one")


# --- Moving -----------------------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """What a run has done."""

    accounts: int  # that exist, at the target
    versions: int
    bytes: int
    copied: int  # records that this run has written to the target
    closed_seconds: float  # for how long the source took no changes before the target did


def migrate(source: Side, target: Side, stage: Stage) -> Moved:
    """Move all accounts. Raise StorageError or Impossible; then the source takes changes again within LEASE_SECONDS."""
    if FILLING.fullmatch(source.state()):
        raise Impossible("a migration into the source has not ended: run that one again")
    moved = MOVED.fullmatch(source.state())
    if moved and moved[1] != target.name:
        raise Impossible("the source was moved to another store: reopen it first if its accounts are those that count")
    if moved and not target.state():
        raise Impossible("the accounts were moved already, so start the servers on the target")
    run, began = secrets.token_hex(8), time.monotonic()
    target.begin(source.name, f"from:{source.name}:{run}")
    copy = Copy(source, target)
    if not moved:  # or all is done but the last step
        copy.fill(stage)
        copy.verify(stage)
        target.check_sums()
        stage("copying what has changed", lambda: (copy.written, 0))
        before = math.inf
        while before > FEW and (changed := copy.catch_up()) < before / 2:  # it does not become fewer for ever
            before = changed
        began = close(source, target, run, copy)
    target.reopen()
    closed_seconds = time.monotonic() - began
    return Moved(*totals(target), copy.written, closed_seconds)


def close(source: Side, target: Side, run: str, copy: "Copy") -> float:
    """Close the source for good when everything is at the target. Return when it was closed (monotonic seconds)."""
    for _ in range(ATTEMPTS):
        began = time.monotonic()
        source.close_for(run, bounds.LEASE_SECONDS)
        try:
            copy.catch_up(Renewal(source, run).renew)
            source.close_for_good(run, f"to:{target.name}")
        except Lapsed:
            continue
        return began
    raise Impossible("the source did not stay closed: do other programs close it, too?")


class Renewal:
    """Keeps a source closed."""

    def __init__(self, source: Side, run: str) -> None:
        self._source, self._run, self._next = source, run, time.monotonic() + bounds.RENEW_SECONDS

    def renew(self) -> None:
        """Renew the lease if it is time to. Call this often. Raise Lapsed."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + bounds.RENEW_SECONDS
            self._source.renew(self._run, bounds.LEASE_SECONDS)


class Copy:
    """What was copied, so that what has changed since then is found quickly."""

    def __init__(self, source: Side, target: Side) -> None:
        self._source, self._target = source, target
        self._seen: dict[str, bytes] = {}  # a digest of each row of the source whose account is at the target
        self.written = 0

    def fill(self, stage: Stage) -> None:
        """Let the target have what the source has. Copy what differs."""
        done, of = 0, 0
        stage("copying", lambda: (done, of))
        of = sum(1 for _ in self._source.rows())
        there = self._target.rows()
        other = next(there, None)
        for user_id, row in self._source.rows():
            done += 1
            while other and other[0] < user_id:
                self._target.remove(other[0])
                other = next(there, None)
            is_there = other is not None and other[0] == user_id
            if not is_there or not other or not self._is_same(user_id, row, other[1]):
                self._copy(user_id)
            self._seen[user_id] = digest(row)
            if is_there:
                other = next(there, None)
        while other:
            self._target.remove(other[0])
            other = next(there, None)

    def _is_same(self, user_id: str, row: bytes, other: bytes) -> bool:
        record = self._source.record(user_id, row)
        try:
            return record == self._target.record(user_id, other)
        except Damaged:
            return False

    def catch_up(self, renew: Callable[[], None] = lambda: None) -> int:
        """Copy and verify what has changed. Return how many accounts that were."""
        gone, changed = set(self._seen), 0
        for user_id, row in self._source.rows():
            renew()
            gone.discard(user_id)
            if self._seen.get(user_id) != digest(row):
                changed += 1
                record = self._copy(user_id)
                self.check(user_id, record)
                self._seen[user_id] = digest(row)
        for user_id in gone:
            renew()
            self._target.remove(user_id)
            del self._seen[user_id]
        return changed + len(gone)

    def _copy(self, user_id: str, whole: bool = False) -> Record | None:
        """Copy an account as it is now, or remove it if it is gone. Return its record."""
        for _ in range(ATTEMPTS):
            record = self._source.find(user_id)
            if record is None:
                self._target.remove(user_id)
                return None
            try:
                self._target.put(user_id, record, lambda version: self._source.data(user_id, version), whole)
            except Changed:
                continue
            self.written += 1
            return record
        raise StorageUnavailable("an account changes all the time")

    def verify(self, stage: Stage) -> None:
        """Read every version at the target."""
        done, of = 0, 0
        stage("verifying", lambda: (done, of))
        of = sum(1 for _ in self._target.rows())
        for user_id, row in self._target.rows():
            self.check(user_id, self._target.record(user_id, row))
            done += 1

    def check(self, user_id: str, record: Record | None) -> None:
        """Verify an account at the target, and copy it again if it is not what it should be."""
        if not is_whole(self._target, user_id, record):
            record = self._copy(user_id, whole=True)
            if not is_whole(self._target, user_id, record):
                raise Impossible("the target does not keep what is written to it")


def totals(side: Side) -> tuple[int, int, int]:
    """Return the numbers of accounts and versions, and the bytes of these."""
    accounts, versions, size = 0, 0, 0
    for user_id, row in side.rows():
        record = side.record(user_id, row)
        if isinstance(record, Account):
            accounts += 1
            versions += len(record.versions)
            size += sum(version.size for version in record.versions)
    return accounts, versions, size


def is_whole(target: Side, user_id: str, record: Record | None) -> bool:
    """Return whether a user has this record at the target, and whether each version's bytes have its SHA-256."""
    try:
        return target.find(user_id) == record and all(
            target.data(user_id, version) is not None
            for version in (record.versions if isinstance(record, Account) else ())
        )
    except Damaged:
        return False


def digest(row: bytes) -> bytes:
    return hashlib.sha256(row).digest()[:16]
