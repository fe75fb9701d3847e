"""Limits on guessing storage keys: per account, per client address, and per pair of the two.

An address is known to an account for a while after right credentials came from it. What is counted is in tables, whose
size is bounded. Times are milliseconds of their clock. Waits are whole seconds.
"""

import functools
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from server.accounts import StorageError
from server.limits import Limit, wait_until
from server.tables import Events, EventsTable, MemoryTables, Tables, keyed_hash

DAY = 86_400
NETWORK_BITS = 48  # one customer often gets so large a network


@dataclass(frozen=True)
class Source:
    """Where credentials come from, and for which account, as keys of the tables."""

    account: bytes  # empty if the credentials name none, because they are malformed
    address: bytes
    network: bytes
    may_be_known: bool

    @classmethod
    def of(cls, user_id: str | None, address: str, may_be_known: bool = True) -> "Source":
        """Take a userId, or None, and an address: IPv4, or IPv6 as its /64."""
        account = b"" if user_id is None else keyed_hash(user_id)
        key, network = keyed_hash(address), network_of(address)
        return cls(account, key, key if network == address else keyed_hash(network), may_be_known)

    @property
    def pair(self) -> bytes:
        """The account and the address."""
        return self.account + self.address

    @property
    def attempt(self) -> bytes:
        """The account and the network of the address."""
        return self.account + self.network

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All keys of the tables that this source has."""
        return self.account, self.address, self.pair, self.attempt


def network_of(address: str) -> str:
    """Return the /48 of an IPv6 address, given as its /64. Return any other address as it is."""
    if "/" not in address:
        return address
    return str(ipaddress.ip_network(address).supernet(new_prefix=NETWORK_BITS))


class Wait(NamedTuple):
    """How many seconds to wait, and for which limit."""

    seconds: int
    limit: Limit


class Guessing:
    """Decides whether credentials are compared, and counts those that were wrong.

    Credentials from a known address have a limit of their own: 30 failures in 5 minutes (the numbers are settings).
    All others have two. One is on their address: 30 failures in 5 minutes, for whatever account. The other is on their
    account: 50 failures a day, but each new network may fail twice a day, whatever others do. So a stranger cannot
    stop an owner who has the right key, neither at a known address nor at a new one.
    """

    def __init__(
        self,
        per_5_minutes: int,
        per_day: int,
        new_address_attempts: int,
        known_days: int,
        most_known: int,
        tables: Tables | None = None,
    ) -> None:
        """Take the numbers of the limits, and where is kept what they count; None: in memory."""
        self._tables = tables = tables or MemoryTables()
        failures = Limit("failed credentials from this address", per_5_minutes, 300)
        self._addresses = tables.events("addresses", failures)
        self._pairs = tables.events("pairs", failures)  # the same name, so that it tells nobody that it is known
        self._accounts = tables.events("accounts", Limit("failed credentials for this account", per_day, DAY))
        # The attempts of new addresses, before and after their account has reached its limit. Whoever fills the second
        # table has to bring accounts to their limit, so failures with invented userIds lift nobody's limit.
        self._attempts = tables.events("attempts", Limit("attempts of a new address", new_address_attempts, DAY))
        self._guarded_attempts = tables.events("guarded", self._attempts.limit, keeps_fullest=False)
        # Addresses, with the times when they were used last.
        self._known = tables.recent("known", most_known, Events.MOST_KEYS, known_days * DAY)
        self._known_milliseconds = known_days * DAY * 1000

    def wait(self, user_id: str | None, address: str, may_be_known: bool = True) -> Wait | None:
        """Return how long to wait until credentials for this userId are compared. None means that they are now.

        `user_id` is None if the credentials are malformed. `address` is IPv4, or IPv6 as its /64. If `may_be_known` is
        false, the address has no advantage from being known.
        """
        source = Source.of(user_id, address, may_be_known)
        return self._tables.run(functools.partial(self._wait, source), source.keys)

    def count(self, user_id: str | None, address: str, may_be_known: bool = True) -> Wait | None:
        """Count wrong credentials, and return None. If a limit is reached, count nothing, and return how long to wait.

        Other requests may have reached it since these credentials were let through. The arguments are those of `wait`.
        """
        source = Source.of(user_id, address, may_be_known)

        def count(moment: int) -> Wait | None:
            if wait := self._wait(source, moment):
                return wait
            for events, key in self._counting(source, moment):
                events.add(key, moment)
            return None

        # Each table goes by the account, by the address, or by both.
        return self._tables.run(count, source.keys, changes=[source.account, source.address])

    def remember(self, user_id: str, address: str) -> bool:
        """Note that right credentials for this userId came from this address. Return whether it was not known."""
        source = Source.of(user_id, address)

        def remember(moment: int) -> bool:
            is_new = not self._is_known(source, moment)
            self._known.add(source.account, source.address, moment)
            return is_new

        try:
            return self._tables.run(remember, source.keys, changes=[source.account])
        except StorageError:  # it is logged. Whoever has the right credentials is served all the same
            return False

    def forget(self, user_id: str, address: str | None = None) -> None:
        """Forget that this address is known to the account, or that any is."""
        account = keyed_hash(user_id)

        def forget(moment: int) -> None:
            if address is None:
                self._known.forget_all(account)
            else:
                self._known.forget(account, keyed_hash(address))

        self._tables.run(forget, [account], changes=[account])

    def _counting(self, source: Source, moment: int) -> Iterator[tuple[EventsTable, bytes]]:
        """Yield where a failure counts: each table, and the key in it."""
        is_known = self._is_known(source, moment)
        if source.account:
            is_guarded = is_reached(self._accounts, source.account, moment)
            attempts = self._guarded_attempts if is_guarded else self._attempts
            yield (self._pairs, source.pair) if is_known else (attempts, source.attempt)
            yield self._accounts, source.account
        if not is_known:
            yield self._addresses, source.address

    def _is_known(self, source: Source, moment: int) -> bool:
        used = self._known.time(source.account, source.address) if source.may_be_known else None
        return used is not None and 0 <= moment - used < self._known_milliseconds

    def _wait(self, source: Source, moment: int) -> Wait | None:
        def is_guessed(at: int) -> bool:
            attempts = sorted(self._attempts.times(source.attempt) + self._guarded_attempts.times(source.attempt))
            return is_reached(self._accounts, source.account, at) and self._attempts.limit.is_reached(attempts, at)

        def is_compared(at: int) -> bool:
            if self._is_known(source, at):
                return not is_reached(self._pairs, source.pair, at)
            return not (is_reached(self._addresses, source.address, at) or is_guessed(at))

        if is_compared(moment):
            return None
        used = self._known.time(source.account, source.address)
        changes = [
            *([] if used is None else [used, used + self._known_milliseconds]),
            *leaves(self._pairs, source.pair),
            *leaves(self._addresses, source.address),
            *leaves(self._accounts, source.account),
            *leaves(self._attempts, source.attempt),
            *leaves(self._guarded_attempts, source.attempt),
        ]
        if self._is_known(source, moment):
            limit = self._pairs.limit
        else:
            limit = self._accounts.limit if is_guessed(moment) else self._addresses.limit
        return Wait(wait_until(is_compared, changes, moment), limit)


def is_reached(events: EventsTable, key: bytes, moment: int) -> bool:
    """Return whether this key has reached its limit at `moment`."""
    return events.limit.is_reached(events.times(key), moment)


def leaves(events: EventsTable, key: bytes) -> list[int]:
    """Return the moments at which this key's events leave the window."""
    return events.limit.leaves(events.times(key))
