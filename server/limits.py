"""Rate limits with sliding windows. Times are Unix milliseconds. Waits are whole seconds."""

import contextlib
import math
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from server import clock


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


def wait_seconds(limits: Sequence[Limit], times: Sequence[int], moment: int) -> int:
    """Return how many seconds to wait until every limit allows one more event, rounded up. 0 means at once.

    `times` has the times of the earlier events, sorted.
    """
    leaves = sorted(time + limit.seconds * 1000 for time in times for limit in limits)
    for at in [moment, *leaves[bisect_right(leaves, moment) :]]:  # room appears only when an event leaves a window
        if all(len(limit.counted(times, at)) < limit.quota for limit in limits):
            return math.ceil((at - moment) / 1000)
    raise AssertionError("a quota is at least 1, so there is room after the last event has left")


class AddressLimit:
    """A limit for each client address. It lives in memory, and its size is bounded.

    If there are too many addresses, it forgets the one whose last event is the oldest.
    """

    MOST_ADDRESSES = 10_000

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._times: OrderedDict[str, deque[int]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, address: str) -> int:
        """Return how many seconds this address must wait for its next event. 0 means that it need not wait."""
        with self._lock:
            return self._wait(address, clock.now())

    def count(self, address: str) -> int:
        """Count one event and return 0. If the quota is spent, count nothing, and return the seconds to wait."""
        with self._lock:
            moment = clock.now()  # read under the lock, or an event that is counted meanwhile would seem to come later
            if seconds := self._wait(address, moment):
                return seconds
            # Only the last `quota` times matter, so keep no more.
            self._times.setdefault(address, deque(maxlen=self.limit.quota)).append(moment)
            self._times.move_to_end(address)
            if len(self._times) > self.MOST_ADDRESSES:
                self._times.popitem(last=False)
            return 0

    def give_back(self, address: str) -> None:
        """Take back the event that `count` counted last for this address, because it came to nothing."""
        with self._lock, contextlib.suppress(KeyError, IndexError):  # the address may have been forgotten
            self._times[address].pop()

    def _wait(self, address: str, moment: int) -> int:
        times = sorted(self._times.get(address, ()))
        return wait_seconds((self.limit,), times, moment) if len(times) == self.limit.quota else 0
