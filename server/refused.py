"""The signatures of uploads that were refused, or acknowledged as retries. They store nothing later."""

import threading

from server import clock
from server.limits import keyed_hash
from server.recent import Recent


class RefusedUploads:
    """Remembers signatures for as long as they live. They are in memory, and their number is bounded.

    This goes by Unix time, as the signatures do: if somebody sets the clock back, a signature lives again.
    """

    MOST_OF_AN_ACCOUNT = 20
    MOST = 10_000

    def __init__(self, seconds: int) -> None:
        """Take the time, in seconds, for which a signature lives at most."""
        self._milliseconds = seconds * 1000
        self._lock = threading.Lock()
        self._refused = Recent(self.MOST_OF_AN_ACCOUNT, self.MOST)  # with the times of the refusals

    def add(self, user_id: str, signature: str) -> None:
        """Remember a signature from now on."""
        with self._lock:
            # If it was refused before, it lives no longer for that.
            if self._refused.time(keyed_hash(user_id), keyed_hash(signature)) is None:
                self._refused.add(keyed_hash(user_id), keyed_hash(signature), clock.now())

    def has(self, user_id: str, signature: str) -> bool:
        """Return whether an upload under this signature was refused, and the signature may still live."""
        with self._lock:
            refused_at = self._refused.time(keyed_hash(user_id), keyed_hash(signature))
            return refused_at is not None and clock.now() - refused_at < self._milliseconds
