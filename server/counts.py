"""What is counted of all accounts: for the statistics, and for the rules of space."""

import threading
from typing import NamedTuple

from server import clock
from server.accounts import Account, Record
from server.clock import DAY
from server.space import allotted, counted, is_established, size_of


class Counts(NamedTuple):
    """Sums over accounts.

    `new_bytes` is what the accounts that are still new have. `given_up` is what accounts have dropped while they could
    not grow. It is theirs, and so it is not free for others.
    """

    users: int = 0
    backups: int = 0
    versions: int = 0
    new_bytes: int = 0
    given_up: int = 0

    @classmethod
    def of(cls, record: Record | None) -> "Counts":
        """Return what one record adds to the counts."""
        if not isinstance(record, Account):
            return cls()
        new_bytes = 0 if is_established(record) else counted(record)
        given_up = allotted(record) - size_of(record.versions)
        return cls(1, int(bool(record.versions)), len(record.versions), new_bytes, given_up)


class Tally:
    """Counts all accounts once, while they change, and from then on each change. Its caller has the turn."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.is_complete = threading.Event()
        self._seen: set[str] = set()  # the users that are in the counts already, until they are complete
        # A day (UTC), and by how many bytes the accounts that are no longer new have grown on it. A restart forgets it.
        self._grown = 0, 0

    def is_new(self, user_id: str) -> bool:
        """Return whether a user has not been counted yet."""
        return not self.is_complete.is_set() and user_id not in self._seen

    def change(self, user_id: str, before: Record | None, after: Record | None) -> None:
        """Count a record in place of the one from before."""
        if before is not None:
            self._grown = clock.now() // DAY, self.grown_today() + growth_of(before, after)
        if self.is_new(user_id):
            self._seen.add(user_id)
            before = None  # it is not in the counts yet
        changes = zip(self.counts, Counts.of(before), Counts.of(after), strict=True)
        self.counts = Counts(*(count - less + more for count, less, more in changes))

    def grown_today(self) -> int:
        """Return by how many bytes all accounts that are no longer new have grown today, without what was deleted."""
        day, size = self._grown
        return size if day == clock.now() // DAY else 0

    def visit(self, user_id: str, record: Record | None) -> None:
        """Count a record, unless a change has counted it."""
        if self.is_new(user_id):
            self.change(user_id, None, record)

    def end(self) -> None:
        """Say that every record has been counted."""
        self.is_complete.set()
        self._seen.clear()


def growth_of(before: Record, after: Record | None) -> int:
    """Return by how many bytes a change lets an account grow, if it is no longer new."""
    old, new = (allotted(each) if isinstance(each, Account) else 0 for each in (before, after))
    account = after if isinstance(after, Account) else before
    return new - old if isinstance(account, Account) and is_established(account) else 0
