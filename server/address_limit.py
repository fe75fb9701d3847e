"""A limit for each client address. Waits are whole seconds."""

import functools

from server.limits import Limit, wait_seconds
from server.tables import MemoryTables, Tables, keyed_hash


class AddressLimit:
    """A limit for each client address."""

    def __init__(self, limit: Limit, tables: Tables | None = None) -> None:
        """Take the limit, and where its events are kept; None: in memory."""
        self.limit = limit
        self._tables = tables or MemoryTables()
        self._events = self._tables.events("events", limit)

    def wait(self, address: str) -> int:
        """Return how many seconds this address must wait for its next event. 0 means that it need not wait."""
        key = keyed_hash(address)
        return self._tables.run(functools.partial(self._wait, key), [key])

    def count(self, address: str) -> int:
        """Count one event and return 0. If the quota is spent, count nothing, and return the seconds to wait."""
        key = keyed_hash(address)

        def count(moment: int) -> int:
            if seconds := self._wait(key, moment):
                return seconds
            self._events.add(key, moment)
            return 0

        return self._tables.run(count, [key], changes=[key])

    def give_back(self, address: str) -> None:
        """Take back the event that `count` counted last for this address, because it came to nothing."""
        key = keyed_hash(address)
        self._tables.run(lambda moment: self._events.take_back(key), [key], changes=[key])

    def _wait(self, key: bytes, moment: int) -> int:
        return wait_seconds((self.limit,), self._events.times(key), moment)
