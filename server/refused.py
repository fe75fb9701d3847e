"""The signatures of uploads that were refused. They store nothing later."""

import threading
from collections import OrderedDict, deque

from server import clock


class RefusedUploads:
    """Remembers signatures for as long as they live. It lives in memory, and its size is bounded.

    If an account has too many, or all accounts together, it forgets the oldest of them.
    """

    MOST_OF_AN_ACCOUNT = 20
    MOST = 10_000

    def __init__(self, seconds: int) -> None:
        """Take the time, in seconds, for which a signature lives at most."""
        self._milliseconds = seconds * 1000
        self._lock = threading.Lock()
        # Both have the same pairs, oldest first: with the time of the refusal, in Unix milliseconds, and by account.
        self._moments: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._of_account: dict[str, deque[str]] = {}

    def add(self, user_id: str, signature: str) -> None:
        """Remember a signature from now on."""
        with self._lock:
            if (user_id, signature) in self._moments:  # it was refused again: then it lives no longer than before
                return
            if len(self._of_account.get(user_id, ())) >= self.MOST_OF_AN_ACCOUNT:
                self._forget(user_id, self._of_account[user_id][0])
            if len(self._moments) >= self.MOST:
                self._forget(*next(iter(self._moments)))
            self._moments[user_id, signature] = clock.now()
            self._of_account.setdefault(user_id, deque()).append(signature)

    def has(self, user_id: str, signature: str) -> bool:
        """Return whether an upload under this signature was refused, and the signature may still live."""
        with self._lock:
            moment = self._moments.get((user_id, signature))
            return moment is not None and clock.now() - moment < self._milliseconds

    def _forget(self, user_id: str, signature: str) -> None:
        """Forget the oldest signature of an account."""
        del self._moments[user_id, signature]
        self._of_account[user_id].popleft()
        if not self._of_account[user_id]:
            del self._of_account[user_id]
