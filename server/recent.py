"""A bounded memory of things that belong to accounts."""

from collections import OrderedDict


class Recent:
    """Things of accounts, each with a time.

    If an account has too many, or all accounts together, it forgets the one that was added first of them. Whoever calls
    it holds a lock.
    """

    def __init__(self, most_of_an_account: int, most: int) -> None:
        self._most_of_an_account, self._most = most_of_an_account, most
        # Both have the same pairs of an account and a thing, in the order in which they were added last.
        self._times: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()
        self._of_account: dict[bytes, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def time(self, account: bytes, thing: bytes) -> int | None:
        """Return the time that was added last with this thing, or None if it is not remembered."""
        return self._times.get((account, thing))

    def add(self, account: bytes, thing: bytes, time: int) -> None:
        """Add a thing, or add it again with another time."""
        self.forget(account, thing)
        things = self._of_account.get(account, ())
        if len(things) >= self._most_of_an_account:
            self.forget(account, next(iter(things)))
        if len(self._times) >= self._most:
            self.forget(*next(iter(self._times)))
        self._times[account, thing] = time
        self._of_account.setdefault(account, OrderedDict())[thing] = None

    def forget(self, account: bytes, thing: bytes) -> None:
        """Forget a thing, if it is remembered."""
        if self._times.pop((account, thing), None) is not None:
            things = self._of_account[account]
            del things[thing]
            if not things:
                del self._of_account[account]

    def forget_all(self, account: bytes) -> None:
        """Forget all things of an account."""
        for thing in self._of_account.pop(account, ()):
            del self._times[account, thing]
