"""Rate limits with sliding windows. Waits are whole seconds.

Times are milliseconds of one clock. What is in memory goes by the monotonic clock, so that nobody who sets the clock
lifts a limit or prolongs it. What is stored goes by Unix time.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


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
