"""The server's clocks. Every time that the server stores, compares or sends comes from here.

`ClockCheck` tells whether the clock can be right.
"""

import time
from datetime import UTC, datetime

DAY = 86_400_000  # milliseconds
TOLERANCE = 300_000  # milliseconds that a clock may be off: signatureSkewSeconds of the contract
BELIEVED_AFTER = DAY  # a clock that was set: by then, somebody has been told
UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on Linux, only the first goes on in a machine's sleep


ahead = 0  # milliseconds: by so much is the clock ahead that this server follows


def follow(milliseconds: int) -> None:
    """Go by another clock, that of a database which several servers share. It is so many milliseconds ahead."""
    global ahead
    ahead = milliseconds


def now() -> int:
    """Return the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000 + ahead


def monotonic() -> int:
    """Return the milliseconds of a clock that nobody sets. Only a difference of two such times means anything."""
    return time.monotonic_ns() // 1_000_000


def uptime() -> int:
    """Return the milliseconds of a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime_ns(UPTIME) // 1_000_000


class ClockCheck:
    """Tells whether `now()` can be right, as far as a server can know by itself. No request has a say in it.

    Since the clock was last believed, it must not have moved against `uptime()` by more than TOLERANCE. After a start,
    it is believed if it is not behind the time that the store was last written. After a day, it is believed anyway: a
    server cannot know whether it was wrong before or is wrong now. All times are in milliseconds.
    """

    def __init__(self, last: int) -> None:
        """Take the time when the store was last written, or 0."""
        self._last = last
        self._ahead: int | None = None  # of `uptime()`, when the clock was last believed
        self._doubted_at = 0  # by `uptime()`
        self.is_off = False
        self.look()

    def look(self) -> int:
        """Set `is_off`. Return by how much the clock seems to be ahead; below 0, it seems to be behind."""
        moment, passed = now(), uptime()
        expected = self._last if self._ahead is None else passed + self._ahead
        ahead = moment - expected
        was_off, self.is_off = self.is_off, ahead < -TOLERANCE or (self._ahead is not None and ahead > TOLERANCE)
        if self.is_off and not was_off:
            self._doubted_at = passed
        if self.is_off and passed - self._doubted_at > BELIEVED_AFTER:
            self.is_off, self._ahead = False, None
        if not self.is_off and self._ahead is None:
            self._ahead = moment - passed
        return ahead

    def stamp(self) -> int:
        """Return what to keep for the next start: the time, or the last one that was believed."""
        if not self.is_off:
            self._last = now()
        return self._last


def rfc3339(milliseconds: int) -> str:
    """Return Unix milliseconds as RFC 3339 in UTC, without a fraction of a second."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
