"""The limits on guessing storage keys."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import backup_server
from backup_server import Request, Response, Server, User
from server import clock, guessing
from server.accounts import Account
from server.guessing import Guessing, Source, Wait, is_reached
from server.tables import EventsTable
from server_tests.broken.fault import (
    HeldRow,
    breaks,
    change,
    change_guessing,
    instead_of,
    instead_of_handler,
)

# --- The limit of an account ------------------------------------------------------------------------------------------


@breaks("guessing.account", "guessing.unknown")
def account_has_no_limit() -> None:
    """With enough addresses, as many keys are tried as somebody likes."""
    change_guessing("per_day", lambda quota: 1_000_000)


@breaks("guessing.account")
def one_more_failure_of_an_account() -> None:
    """Fifty-one keys are tried before the limit is reached."""
    change_guessing("per_day", lambda quota: quota + 1)


@breaks("guessing.account", "guessing.network")
def one_more_attempt_of_a_new_address() -> None:
    """Three attempts are compared, and two promised."""
    change_guessing("new_address_attempts", lambda quota: quota + 1)


@breaks("guessing.unknown")
def unknown_user_has_no_limit() -> None:
    """The limit tells which names are taken."""

    @instead_of(backup_server, "count_failure")
    def count_failure(real: Any, server: Server, user_id: str | None, address: str) -> None:
        is_taken = user_id and isinstance(server.store.find(user_id), Account)
        real(server, user_id if is_taken else None, address)


@breaks("guessing.network")
def each_64_has_two_attempts() -> None:
    """Somebody with one /48 has 131,072 attempts."""
    change(guessing, "network_of", lambda address: address)


@breaks("guessing.retry-after")
def wait_is_that_of_the_address() -> None:
    """Retry-After says when the address may try again, although the account needs longer."""

    @instead_of(Guessing, "wait")
    def wait(real: Any, self: Guessing, user_id: str | None, address: str, may_be_known: bool = True) -> Wait | None:
        found = real(self, user_id, address, may_be_known)
        return found and found._replace(seconds=min(found.seconds, 300))


# --- The owner --------------------------------------------------------------------------------------------------------


@breaks("guessing.new-address")
def attempts_are_of_all_addresses_together() -> None:
    """Strangers use up the attempts, and the owner cannot come in from a new address."""
    change(guessing, "network_of", lambda address: "any")


@breaks("guessing.known-address", "guessing.neighbour", "guessing.pair")
def no_address_is_known() -> None:
    """The owner's addresses are limited as a stranger's."""
    change(Guessing, "remember", lambda *_: False)


@breaks("guessing.known-address")
def address_is_known_for_29_days() -> None:
    """An owner who comes once a month is a stranger."""
    change_guessing("known_days", lambda days: days - 1)


@breaks("guessing.known-address")
def address_is_known_for_ever() -> None:
    """A borrowed phone may guess for ever."""
    change_guessing("known_days", lambda days: 36_500)


@breaks("guessing.known-address")
def wrong_key_makes_an_address_known() -> None:
    """Whoever tries once counts as the owner."""

    @instead_of(Guessing, "count")
    def count(real: Any, self: Guessing, user_id: str | None, address: str, may_be_known: bool = True) -> Wait | None:
        wait = real(self, user_id, address, may_be_known)
        if user_id:
            self.remember(user_id, address)
        return wait


@breaks("address.failures")
def registration_tells_who_is_known_at_the_address() -> None:
    """Past the limit on registrations, a known address still helps: its answers tell a right key from a wrong one."""
    change(backup_server, "may_be_known", lambda server, request: True)


@breaks("guessing.bound")
def one_more_address_is_known() -> None:
    """Thirty-three addresses are known, and 32 promised."""
    change_guessing("most_known", lambda most: most + 1)


@breaks("guessing.bound")
def one_address_less_is_known() -> None:
    """Thirty-one addresses are known, and 32 promised."""
    change_guessing("most_known", lambda most: most - 1)


@breaks("guessing.bound")
def address_that_became_known_first_is_forgotten() -> None:
    """The owner's home address is forgotten, however often it is used."""

    @instead_of(Guessing, "remember")
    def remember(real: Any, self: Guessing, user_id: str, address: str) -> bool:
        if self._is_known(Source.of(user_id, address), clock.monotonic()):
            return False
        is_new: bool = real(self, user_id, address)
        return is_new


@breaks("guessing.neighbour")
def neighbour_stops_the_owner() -> None:
    """The limit of an address holds for accounts to which it is known, too."""

    @instead_of(Guessing, "_wait")
    def wait(real: Any, self: Guessing, source: Source, moment: int) -> Wait | None:
        is_limited = is_reached(self._addresses, source.address, moment)
        return Wait(300, self._addresses.limit) if is_limited else real(self, source, moment)


@breaks("guessing.pair")
def known_address_has_no_limit() -> None:
    """Somebody behind the owner's router may guess without an end."""

    @instead_of(Guessing, "_wait")
    def wait(real: Any, self: Guessing, source: Source, moment: int) -> Wait | None:
        return None if self._is_known(source, moment) else real(self, source, moment)


@breaks("guessing.pair")
def failures_at_a_known_address_count_for_the_address() -> None:
    """A user who mistypes a password thirty times stops everybody behind the same router."""

    @instead_of(Guessing, "_counting")
    def counting(real: Any, self: Guessing, source: Source, moment: int) -> Iterator[tuple[EventsTable, bytes]]:
        yield from real(self, source, moment)
        if self._is_known(source, moment):
            yield self._addresses, source.address


@breaks("guessing.key-change")
def thief_stays_known() -> None:
    """After a change of the key, whoever had the old one may guess from the same address as before."""
    change(Guessing, "forget", lambda *_: None)


@breaks(test="server_tests/test_store.py::test_a_key_that_changes_late_makes_addresses_unknown")
def thief_stays_known_after_a_late_key_change() -> None:
    """While the disk stalls, the key changes after the request. Addresses are forgotten with the request alone."""

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, account: Account, data: bytes, on_commit: Any) -> None:
        real(held, account, data)
        on_commit()


@breaks("guessing.key-change")
def key_change_makes_its_own_address_unknown() -> None:
    """The owner is a stranger after a change of the password."""

    @instead_of_handler("changeStorageKey")
    def change_storage_key(real: Any, server: Server, request: Request, user: User, **needs: Any) -> Response:
        response: Response = real(server, request, user=user, **needs)
        server.guessing.forget(user.user_id)
        return response


@breaks("guessing.key-change")
def deletion_leaves_addresses_known() -> None:
    """Who used an account before its deletion is known to the next one of the name."""

    @instead_of_handler("deleteUser")
    def delete_user(real: Any, server: Server, request: Request, user: User) -> Response:
        with mock.patch.object(server.guessing, "forget"):
            response: Response = real(server, request, user=user)
        return response
