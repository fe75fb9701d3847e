"""The signatures of uploads that were refused, or acknowledged as retries. They store nothing later."""

import contextlib
import functools

from server import clock
from server.accounts import StorageError
from server.tables import MemoryTables, RecentTable, Tables, keyed_hash


class RefusedUploads:
    """Remembers signatures for as long as they live. Their number is bounded.

    This goes by Unix time, as the signatures do: if somebody sets the clock back, a signature lives again.
    """

    MOST_OF_AN_ACCOUNT = 20
    MOST = 10_000

    def __init__(self, seconds: int, tables: Tables | None = None) -> None:
        """Take the time, in seconds, for which a signature lives at most, and where they are kept; None: in memory."""
        self._milliseconds = seconds * 1000
        # With the times of the refusals. Tables on a full disk take nothing, so what was refused for that is here.
        groups = [MemoryTables(), *([tables] if tables else [])]
        size = self.MOST_OF_AN_ACCOUNT, self.MOST, seconds
        self._refused = [(group, group.recent("signatures", *size)) for group in reversed(groups)]

    def add(self, user_id: str, signature: str) -> None:
        """Remember a signature from now on."""
        account, thing = keyed_hash(user_id), keyed_hash(signature)

        def add(refused: RecentTable, moment: int) -> None:
            # If it was refused before, it lives no longer for that.
            if refused.time(account, thing) is None:
                refused.add(account, thing, clock.now())

        for tables, refused in self._refused:
            with contextlib.suppress(StorageError):
                tables.run(functools.partial(add, refused), [account], changes=[account])
                return

    def has(self, user_id: str, signature: str) -> bool:
        """Return whether an upload under this signature was refused, and the signature may still live."""
        account, thing = keyed_hash(user_id), keyed_hash(signature)

        def time(refused: RecentTable, moment: int) -> int | None:
            return refused.time(account, thing)

        times = [tables.run(functools.partial(time, refused), [account]) for tables, refused in self._refused]
        return any(time is not None and clock.now() - time < self._milliseconds for time in times)
