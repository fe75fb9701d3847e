"""Limits as sliding windows. Times are Unix milliseconds; what a caller gets back are whole seconds to wait."""

import contextlib
import math
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """At most `quota` events within any `seconds`: a sliding window."""

    name: str
    quota: int
    seconds: int

    def counted(self, times: Sequence[int], moment: int) -> Sequence[int]:
        """Return those of the sorted times that count at a moment: younger than `seconds`, and not in the future."""
        return times[bisect_right(times, moment - self.seconds * 1000) : bisect_right(times, moment)]


def wait_seconds(limits: Sequence[Limit], times: Sequence[int], moment: int) -> int:
    """Return after how many seconds, rounded up, one more event is within every limit. 0 means at once.

    `times` are those of the events so far, sorted.
    """
    leaves = sorted(time + limit.seconds * 1000 for time in times for limit in limits)
    for at in [moment, *leaves[bisect_right(leaves, moment) :]]:  # there is room only after one leaves a window
        if all(len(limit.counted(times, at)) < limit.quota for limit in limits):
            return math.ceil((at - moment) / 1000)
    raise AssertionError("a quota is at least 1, so there is room when the last event has left")


class AddressLimit:
    """A limit for each client address, in memory and bounded.

    When too many addresses are known, the one that has been quiet longest is forgotten.
    """

    MOST_ADDRESSES = 10_000

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._times: OrderedDict[str, deque[int]] = OrderedDict()
        self._lock = threading.RLock()

    def wait(self, address: str, moment: int) -> int:
        """Return how many seconds this address has to wait for its next event. 0 means it need not."""
        with self._lock:
            times = sorted(self._times.get(address, ()))
        return wait_seconds((self.limit,), times, moment) if len(times) == self.limit.quota else 0

    def count(self, address: str, moment: int) -> int:
        """Count one event and return 0. If the quota is spent, count nothing and return the seconds to wait."""
        with self._lock:
            if seconds := self.wait(address, moment):
                return seconds
            # The last `quota` times decide, so no more are kept.
            self._times.setdefault(address, deque(maxlen=self.limit.quota)).append(moment)
            self._times.move_to_end(address)
            if len(self._times) > self.MOST_ADDRESSES:
                self._times.popitem(last=False)
            return 0

    def give_back(self, address: str, moment: int) -> None:
        """Count an event of this moment no longer: it came to nothing."""
        with self._lock, contextlib.suppress(KeyError, ValueError):  # the address may have been forgotten
            self._times[address].remove(moment)
