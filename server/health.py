"""The health of a store, as a thread of its own sees it. So whoever asks for it does not wait for the disk.

Whether writes succeed is known from those who write: `Writes`. Whether the clock is right: `ClockCheck` in clock.py.
"""

import threading
import time
from typing import NamedTuple

from server import bounds, clock
from server.accounts import StorageUnavailable, StoreReader, TooSlow
from server.log import log

PARTS = ("writes", "space", "scrub", "clock", "copies")  # of a server: what may be degraded
LOOK_SECONDS = 1  # between two looks
LATELY = 600_000  # milliseconds after a failed write: longer than an alert waits, so that one failure is told


class Look(NamedTuple):
    """What a look at the store found, and when it ended, by the monotonic clock."""

    ended: float
    problem: StorageUnavailable | None


class Watch:
    """Looks at a store each second, until it is closed."""

    def __init__(self, store: StoreReader) -> None:
        """Begin. Wait for the first look, but no longer than HEALTH_SECONDS."""
        self._store = store
        self._last = Look(time.monotonic(), StorageUnavailable("nobody has looked yet"))
        self._has_looked, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()
        self._has_looked.wait(bounds.HEALTH_SECONDS)

    def check(self) -> None:
        """Raise StorageUnavailable if the last look failed, or is too long ago because the next one does not end."""
        last = self._last
        if time.monotonic() - last.ended > bounds.HEALTH_SECONDS:
            log(event="storage_error", reason="a read takes too long")
            raise TooSlow("a read takes too long")
        if last.problem is not None:
            raise type(last.problem)(str(last.problem))

    def close(self) -> None:
        """Look no more. A look that does not end is left behind."""
        self._stopping.set()
        self._thread.join(LOOK_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            problem = self._look()
            self._last = Look(time.monotonic(), problem)
            self._has_looked.set()
            self._stopping.wait(LOOK_SECONDS)

    def _look(self) -> StorageUnavailable | None:
        try:
            self._store.check()
        except StorageUnavailable as error:
            return error
        except Exception as error:  # the next look may succeed
            log.error(error)
            return StorageUnavailable("the look failed")
        return None


class Writes:
    """Whether writes have failed lately."""

    def __init__(self) -> None:
        self.are_failing = False  # the last one has failed
        self._failed_at: int | None = None  # milliseconds of the monotonic clock

    def succeeded(self) -> None:
        """Hear that a write has ended well."""
        self.are_failing = False

    def failed(self) -> None:
        """Hear that a write has failed, or takes too long."""
        self.are_failing, self._failed_at = True, clock.monotonic()

    def have_failed_lately(self) -> bool:
        """Return whether a write has failed in the last ten minutes, or whether none has succeeded since."""
        failed_at = self._failed_at
        return self.are_failing or (failed_at is not None and clock.monotonic() - failed_at < LATELY)
