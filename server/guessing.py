"""Limits on guessing storage keys: per account, per client address, and per pair of the two.

An address is known to an account for a while after right credentials came from it. Everything lives in memory, and its
size is bounded. Times are milliseconds of the monotonic clock. Waits are whole seconds.
"""

import ipaddress
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from server import clock
from server.limits import Events, Limit, keyed_hash, wait_until
from server.recent import Recent

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
        self, per_5_minutes: int, per_day: int, new_address_attempts: int, known_days: int, most_known: int
    ) -> None:
        self._lock = threading.Lock()
        self._addresses = Events(Limit("failed credentials from this address", per_5_minutes, 300))
        self._pairs = Events(self._addresses.limit)  # the same name, so that it tells nobody that an address is known
        self._accounts = Events(Limit("failed credentials for this account", per_day, DAY))
        # The attempts of new addresses, before and after their account has reached its limit. Whoever fills the second
        # table has to bring accounts to their limit, so failures with invented userIds lift nobody's limit.
        self._attempts = Events(Limit("attempts of a new address", new_address_attempts, DAY))
        self._guarded_attempts = Events(self._attempts.limit, keeps_fullest=False)
        self._known = Recent(most_known, Events.MOST_KEYS)  # addresses, with the times when they were used last
        self._known_milliseconds = known_days * DAY * 1000

    def wait(self, user_id: str | None, address: str, may_be_known: bool = True) -> Wait | None:
        """Return how long to wait until credentials for this userId are compared. None means that they are now.

        `user_id` is None if the credentials are malformed. `address` is IPv4, or IPv6 as its /64. If `may_be_known` is
        false, the address has no advantage from being known.
        """
        with self._lock:
            return self._wait(Source.of(user_id, address, may_be_known), clock.monotonic())

    def count(self, user_id: str | None, address: str, may_be_known: bool = True) -> Wait | None:
        """Count wrong credentials, and return None. If a limit is reached, count nothing, and return how long to wait.

        Other requests may have reached it since these credentials were let through. The arguments are those of `wait`.
        """
        source = Source.of(user_id, address, may_be_known)
        with self._lock:
            moment = clock.monotonic()  # under the lock, or an event that is counted meanwhile would seem to come later
            if wait := self._wait(source, moment):
                return wait
            for events, key in self._counting(source, moment):
                events.add(key, moment)
            return None

    def remember(self, user_id: str, address: str) -> bool:
        """Note that right credentials for this userId came from this address. Return whether it was not known."""
        source = Source.of(user_id, address)
        with self._lock:
            moment = clock.monotonic()
            is_new = not self._is_known(source, moment)
            self._known.add(source.account, source.address, moment)
            return is_new

    def forget(self, user_id: str, address: str | None = None) -> None:
        """Forget that this address is known to the account, or that any is."""
        with self._lock:
            if address is None:
                self._known.forget_all(keyed_hash(user_id))
            else:
                self._known.forget(keyed_hash(user_id), keyed_hash(address))

    def _counting(self, source: Source, moment: int) -> Iterator[tuple[Events, bytes]]:
        """Yield where a failure counts: each table, and the key in it."""
        is_known = self._is_known(source, moment)
        if source.account:
            is_guarded = self._accounts.is_reached(source.account, moment)
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
            return self._accounts.is_reached(source.account, at) and self._attempts.limit.is_reached(attempts, at)

        def is_compared(at: int) -> bool:
            if self._is_known(source, at):
                return not self._pairs.is_reached(source.pair, at)
            return not (self._addresses.is_reached(source.address, at) or is_guessed(at))

        if is_compared(moment):
            return None
        used = self._known.time(source.account, source.address)
        changes = [
            *([] if used is None else [used, used + self._known_milliseconds]),
            *self._pairs.leaves(source.pair),
            *self._addresses.leaves(source.address),
            *self._accounts.leaves(source.account),
            *self._attempts.leaves(source.attempt),
            *self._guarded_attempts.leaves(source.attempt),
        ]
        if self._is_known(source, moment):
            limit = self._pairs.limit
        else:
            limit = self._accounts.limit if is_guessed(moment) else self._addresses.limit
        return Wait(wait_until(is_compared, changes, moment), limit)
