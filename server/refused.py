"""The signatures of uploads that were refused, or acknowledged as retries. They store nothing later."""

from server import clock
from server.tables import MemoryTables, Tables, keyed_hash


class RefusedUploads:
    """Remembers signatures for as long as they live. Their number is bounded.

    This goes by Unix time, as the signatures do: if somebody sets the clock back, a signature lives again.
    """

    MOST_OF_AN_ACCOUNT = 20
    MOST = 10_000

    def __init__(self, seconds: int, tables: Tables | None = None) -> None:
        """Take the time, in seconds, for which a signature lives at most, and where they are kept; None: in memory."""
        self._milliseconds = seconds * 1000
        self._tables = tables or MemoryTables()
        # With the times of the refusals.
        self._refused = self._tables.recent("signatures", self.MOST_OF_AN_ACCOUNT, self.MOST, seconds)

    def add(self, user_id: str, signature: str) -> None:
        """Remember a signature from now on."""
        account, thing = keyed_hash(user_id), keyed_hash(signature)

        def add(moment: int) -> None:
            # If it was refused before, it lives no longer for that.
            if self._refused.time(account, thing) is None:
                self._refused.add(account, thing, clock.now())

        self._tables.run(add, [account], changes=[account])

    def has(self, user_id: str, signature: str) -> bool:
        """Return whether an upload under this signature was refused, and the signature may still live."""
        account, thing = keyed_hash(user_id), keyed_hash(signature)
        refused_at = self._tables.run(lambda moment: self._refused.time(account, thing), [account])
        return refused_at is not None and clock.now() - refused_at < self._milliseconds
