"""What the limits have counted: tables in memory, and the interface of tables that several servers share.

Times are milliseconds of one clock, which the tables choose.
"""

import hashlib
import secrets
import threading
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from server import clock
from server.limits import Limit
from server.recent import Recent

# --- Keys -------------------------------------------------------------------------------------------------------------

HASH_KEY = secrets.token_bytes(32)  # another one in each process


def keyed_hash(text: str) -> bytes:
    """Return 16 bytes that stand for an address or a userId, so that a dump of the memory does not show it."""
    return hashlib.blake2b(text.encode(), key=HASH_KEY, digest_size=16).digest()


# --- Interface --------------------------------------------------------------------------------------------------------


class EventsTable(Protocol):
    """The last events of each key, as many as one limit needs."""

    limit: Limit

    def times(self, key: bytes) -> list[int]:
        """Return the times of a key's last events, sorted."""

    def add(self, key: bytes, moment: int) -> None:
        """Add an event. It is the last one of all, whatever the clock says."""

    def take_back(self, key: bytes) -> None:
        """Remove the event that was added last for this key. The key may have been forgotten since."""


class RecentTable(Protocol):
    """Things of accounts, each with a time: as many as there is room for, the last ones of each account."""

    def time(self, account: bytes, thing: bytes) -> int | None:
        """Return the time that was added last with this thing, or None if it is not remembered."""

    def add(self, account: bytes, thing: bytes, time: int) -> None:
        """Add a thing, or add it again with another time."""

    def forget(self, account: bytes, thing: bytes) -> None:
        """Forget a thing, if it is remembered."""

    def forget_all(self, account: bytes) -> None:
        """Forget all things of an account."""


class Tables(ABC):
    """A group of tables. Nobody else changes any of them during a `run`."""

    @abstractmethod
    def events(self, name: str, limit: Limit, keeps_fullest: bool = True) -> EventsTable:
        """Return the table of this name. `keeps_fullest` says which keys stay if there are too many: see Events."""

    @abstractmethod
    def recent(self, name: str, most_of_an_account: int, most: int, seconds: int) -> RecentTable:
        """Return the table of this name. It holds so many things: see Recent. After so many seconds, none is of use."""

    @abstractmethod
    def run[Result](
        self, work: Callable[[int], Result], keys: Iterable[bytes], changes: Sequence[bytes] = ()
    ) -> Result:
        """Do some work with the tables, and return its result.

        `work` gets the moment. It uses only these `keys`, or accounts, and what it does to a table depends on nothing
        but the tables. It may be called again if others were faster. `changes` has those keys that everybody who
        changes the same rows names, too. Raise StorageUnavailable if the tables cannot be read or written.
        """


# --- In memory --------------------------------------------------------------------------------------------------------


class Events:
    """The last events of each key, as many as one limit needs. They live in memory, and their number is bounded.

    If there are too many keys, it forgets one whose events have left the window. If there is none, it forgets one of
    those with the fewest events, so that a flood of others does not lift a limit: of these, the key whose last event is
    the oldest. If `keeps_fullest` is false, it forgets the key whose last event is the oldest of all. Whoever calls it
    holds a lock.
    """

    MOST_KEYS = 10_000

    def __init__(self, limit: Limit, keeps_fullest: bool = True) -> None:
        self.limit = limit
        self._keeps_fullest = keeps_fullest
        self._times: OrderedDict[bytes, array[int]] = OrderedDict()  # in the order of the keys' last events
        self._ranks: dict[int, OrderedDict[bytes, None]] = {}  # the same keys by rank, each rank in the same order

    def __len__(self) -> int:
        return len(self._times)

    def times(self, key: bytes) -> list[int]:
        """Return the times of a key's last events, sorted."""
        return sorted(self._times.get(key, ()))

    def add(self, key: bytes, moment: int) -> None:
        """Add an event. It is the last one of all, whatever the clock says."""
        times = self._remove(key)
        if times is None:
            times = array("q")
            if len(self) >= self.MOST_KEYS:
                self._forget_one(moment)
        times.append(moment)
        self._put(key, times[-self.limit.quota :])

    def take_back(self, key: bytes) -> None:
        """Remove the event that was added last for this key. The key may have been forgotten since."""
        if times := self._remove(key):
            self._put(key, times[:-1])

    def _rank(self, times: "array[int]") -> int:
        return len(times) if self._keeps_fullest else 0

    def _remove(self, key: bytes) -> "array[int] | None":
        times = self._times.pop(key, None)
        if times is not None:
            rank = self._rank(times)
            del self._ranks[rank][key]
            if not self._ranks[rank]:
                del self._ranks[rank]
        return times

    def _put(self, key: bytes, times: "array[int]") -> None:
        if times:  # a key without events is not kept
            self._times[key] = times
            self._ranks.setdefault(self._rank(times), OrderedDict())[key] = None

    def _forget_one(self, moment: int) -> None:
        key = next(iter(self._times))
        if self.limit.counted(self.times(key), moment):
            key = next(iter(self._ranks[min(self._ranks)]))
        self._remove(key)


class MemoryTables(Tables):
    """Tables of this process. They go by the monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def events(self, name: str, limit: Limit, keeps_fullest: bool = True) -> Events:
        return Events(limit, keeps_fullest)

    def recent(self, name: str, most_of_an_account: int, most: int, seconds: int) -> Recent:
        return Recent(most_of_an_account, most)

    def run[Result](
        self, work: Callable[[int], Result], keys: Iterable[bytes], changes: Sequence[bytes] = ()
    ) -> Result:
        with self._lock:
            # The moment is one under the lock, or an event that is counted meanwhile would seem to come later.
            return work(clock.monotonic())
