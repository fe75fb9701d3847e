"""Rate limits with sliding windows. Waits are whole seconds.

Times are milliseconds of one clock. What is in memory goes by the monotonic clock, so that nobody who sets the clock
lifts a limit or prolongs it. What is stored goes by Unix time.
"""

import hashlib
import math
import secrets
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from server import clock

# --- One limit --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """At most `quota` events within any `seconds`: a sliding window."""

    name: str
    quota: int
    seconds: int

    def counted(self, times: Sequence[int], moment: int) -> Sequence[int]:
        """Return the times that count at `moment`: less than `seconds` old, and not in the future.

        `times` is sorted.
        """
        return times[bisect_right(times, moment - self.seconds * 1000) : bisect_right(times, moment)]

    def is_reached(self, times: Sequence[int], moment: int) -> bool:
        """Return whether there is no room for one more event at `moment`. `times` is sorted."""
        return len(self.counted(times, moment)) >= self.quota

    def leaves(self, times: Iterable[int]) -> list[int]:
        """Return the moments at which these events leave the window."""
        return [time + self.seconds * 1000 for time in times]


def wait_seconds(limits: Sequence[Limit], times: Sequence[int], moment: int) -> int:
    """Return how many seconds to wait until every limit allows one more event, rounded up. 0 means at once.

    `times` has the times of the earlier events, sorted.
    """
    leaves = [leave for limit in limits for leave in limit.leaves(times)]
    return wait_until(lambda at: not any(limit.is_reached(times, at) for limit in limits), leaves, moment)


def wait_until(is_free: Callable[[int], bool], leaves: Iterable[int], moment: int) -> int:
    """Return how many seconds after `moment` `is_free` becomes true, rounded up. 0 means that it is true now.

    `leaves` has the moments at which events leave their windows, because only then can it become true.
    """
    for at in [moment, *sorted(leave for leave in leaves if leave > moment)]:
        if is_free(at):
            return math.ceil((at - moment) / 1000)
    raise AssertionError("a quota is at least 1, so there is room after the last event has left")


# --- A limit for each of many keys ------------------------------------------------------------------------------------

HASH_KEY = secrets.token_bytes(32)  # another one in each process


def keyed_hash(text: str) -> bytes:
    """Return 16 bytes that stand for an address or a userId, so that a dump of the memory does not show it."""
    return hashlib.blake2b(text.encode(), key=HASH_KEY, digest_size=16).digest()


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

    def is_reached(self, key: bytes, moment: int) -> bool:
        """Return whether this key has reached its limit at `moment`."""
        return self.limit.is_reached(self.times(key), moment)

    def leaves(self, key: bytes) -> list[int]:
        """Return the moments at which this key's events leave the window."""
        return self.limit.leaves(self.times(key))

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


class AddressLimit:
    """A limit for each client address."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._events = Events(limit)
        self._lock = threading.Lock()

    def wait(self, address: str) -> int:
        """Return how many seconds this address must wait for its next event. 0 means that it need not wait."""
        with self._lock:
            return self._wait(keyed_hash(address), clock.monotonic())

    def count(self, address: str) -> int:
        """Count one event and return 0. If the quota is spent, count nothing, and return the seconds to wait."""
        key = keyed_hash(address)
        with self._lock:
            moment = clock.monotonic()  # under the lock, or an event that is counted meanwhile would seem to come later
            if seconds := self._wait(key, moment):
                return seconds
            self._events.add(key, moment)
            return 0

    def give_back(self, address: str) -> None:
        """Take back the event that `count` counted last for this address, because it came to nothing."""
        with self._lock:
            self._events.take_back(keyed_hash(address))

    def _wait(self, key: bytes, moment: int) -> int:
        return wait_seconds((self.limit,), self._events.times(key), moment)
