"""Times: zones, calendars, fractions of a second, and from which moment a limit or a reservation counts."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import backup_server
from backup_server import Credentials, Problem, Request, Response, Server, User
from server import clock
from server.accounts import Account, Deleted, Version
from server.guessing import Guessing
from server.limits import Limit
from server.tables import keyed_hash
from server_tests.broken.fault import (
    HeldRow,
    breaks,
    change,
    instead_of,
    instead_of_handler,
    instead_of_proof,
)


def local(moment: int) -> int:
    """Return the Unix milliseconds at which UTC shows what the server's own zone shows at this moment."""
    shown = datetime.fromtimestamp(moment // 1000).replace(tzinfo=UTC)  # noqa: DTZ006 - that is the fault
    return int(shown.timestamp()) * 1000 + moment % 1000


# --- Zones and calendars ----------------------------------------------------------------------------------------------


@breaks("history.days")
def days_are_those_of_the_servers_zone() -> None:
    """A day of the history begins when it does where the server stands."""

    @instead_of(backup_server, "kept_versions")
    def kept_versions(real: Any, versions: tuple[Version, ...], keep: tuple[int, ...]) -> tuple[Version, ...]:
        moved = {replace(version, stored_at=local(version.stored_at)): version for version in versions}
        return tuple(moved[version] for version in real(tuple(moved), keep))


@breaks("version.time")
def times_are_those_of_the_servers_zone() -> None:
    """Answers show the time of the server's zone, and call it UTC."""
    change(backup_server, "rfc3339", lambda moment: clock.rfc3339(local(moment)))


@breaks("limits.sliding")
def windows_are_an_hour_off_when_the_clocks_change() -> None:
    """The windows go by the time of the server's zone, which is put back an hour in autumn."""

    @instead_of(Limit, "counted")
    def counted(real: Any, limit: Limit, times: Sequence[int], moment: int) -> Sequence[int]:
        before = local(moment) - limit.seconds * 1000
        return [time for time in times if before < local(time) <= local(moment)]


@breaks("history.weeks")
def weeks_have_no_year() -> None:
    """The same week of last year counts as this one."""
    days, _, months = backup_server.PERIODS
    change(backup_server, "PERIODS", (days, lambda day: day.isocalendar()[1], months))


@breaks("history.months")
def months_have_no_year() -> None:
    """The same month of last year counts as this one."""
    days, weeks, _ = backup_server.PERIODS
    change(backup_server, "PERIODS", (days, weeks, lambda day: day.month))


@breaks("history.days")
def days_have_no_month() -> None:
    """The same day of last month counts as this one."""
    _, weeks, months = backup_server.PERIODS
    change(backup_server, "PERIODS", (lambda day: day.day, weeks, months))


@breaks("history.days")
def days_have_no_year() -> None:
    """The same day of last year counts as this one."""
    _, weeks, months = backup_server.PERIODS
    change(backup_server, "PERIODS", (lambda day: day.strftime("%m-%d"), weeks, months))


@breaks("history.months", "storeBackup.201")
def leap_day_is_unforeseen() -> None:
    """The server computes the day a year ago, which 29 February does not have. All uploads of this day fail."""

    @instead_of(backup_server, "kept_versions")
    def kept_versions(real: Any, versions: tuple[Version, ...], keep: tuple[int, ...]) -> tuple[Version, ...]:
        today = datetime.fromtimestamp(versions[-1].stored_at // 1000, UTC)
        year_ago = today.replace(year=today.year - 1).timestamp() * 1000
        return tuple(each for each in real(versions, keep) if each.stored_at > year_ago or len(versions) < 50)


@breaks("history.months")
def months_have_30_days() -> None:
    """A month of the history is 30 days."""
    days, weeks, _ = backup_server.PERIODS
    change(backup_server, "PERIODS", (days, weeks, lambda day: day.toordinal() // 30))


# --- Fractions of a second --------------------------------------------------------------------------------------------


@breaks("delete.reserved")
def reservation_begins_with_the_second() -> None:
    """The time of a deletion is kept in whole seconds, so the name is free up to a second early."""

    @instead_of(HeldRow, "delete")
    def delete(real: Any, held: Any, moment: int, *arguments: Any, **options: Any) -> None:
        real(held, moment // 1000 * 1000, *arguments, **options)


@breaks("delete.reserved")
def reservation_is_told_in_rounded_seconds() -> None:
    """Retry-After of a reserved name is rounded, so a client that waits as long may come half a second early."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        try:
            return real(server, request, user=user)
        except Problem as problem:
            record = server.store.find(user.user_id)
            if problem.code == "recently_deleted" and isinstance(record, Deleted):
                left = record.deleted_at / 1000 + server.spec.limits["deletedUserSeconds"] - clock.now() / 1000
                problem.retry_after = max(1, round(left))
            raise


@breaks("signature.window")
def signature_is_compared_in_milliseconds() -> None:
    """A signature that is 300 whole seconds old is refused, if the server's second has begun a while ago."""

    @instead_of_proof("appSignature")
    def check_signature(real: Any, server: Server, request: Request) -> Any:
        signature = real(server, request)
        created = re.search("created=([0-9]+)", request.header("Signature-Input") or "")
        assert created
        if abs(request.arrival.at - int(created[1]) * 1000) > server.spec.limits["signatureSkewSeconds"] * 1000:
            raise Problem("signature_expired", "Sign again.", serverTime=clock.now() // 1000)
        return signature


@breaks("signature.expired")
def server_time_is_rounded_up() -> None:
    """serverTime is up to a second ahead."""

    @instead_of(Problem, "__init__")
    def make(real: Any, problem: Problem, *arguments: Any, **members: Any) -> None:
        if "serverTime" in members:
            members["serverTime"] = math.ceil(clock.now() / 1000)
        real(problem, *arguments, **members)


@breaks("limits.sliding")
def uploads_are_taken_to_be_in_order() -> None:
    """The times of uploads are searched as if they were sorted. After the clock was put back, they are not."""

    def as_they_are(values: Any, **options: Any) -> list[Any]:
        values = list(values)
        return values if values and all(isinstance(value, int) for value in values) else sorted(values, **options)

    mock.patch.object(backup_server, "sorted", as_they_are, create=True).start()


# --- From which moment something counts -------------------------------------------------------------------------------


@breaks("limits.sliding")
def window_begins_with_the_first_upload() -> None:
    """An hour after the first upload, all are forgotten, also those of a minute ago."""

    @instead_of(Limit, "counted")
    def counted(real: Any, limit: Limit, times: Sequence[int], moment: int) -> Sequence[int]:
        window: list[int] = []
        for time in times:
            if window and time - window[0] >= limit.seconds * 1000:
                window = []
            window.append(time)
        return real(limit, window, moment) if window and moment - window[0] < limit.seconds * 1000 else []


@breaks("address.retry-after")
def attempts_past_the_limit_count() -> None:
    """Whoever asks again too early has to wait for longer, although nothing was compared."""

    @instead_of(Guessing, "wait")
    def wait(real: Any, guessing: Guessing, user_id: str | None, address: str, *more: Any) -> Any:
        found = real(guessing, user_id, address, *more)
        if found:
            key = keyed_hash(address)
            guessing._tables.run(lambda moment: guessing._addresses.add(key, moment), [key], [key])
        return found


@breaks("delete.reserved")
def reservation_counts_from_the_first_deletion() -> None:
    """If a name is deleted for the second time, it is free at once: the first deletion was long ago."""
    first: dict[str, int] = {}

    @instead_of(HeldRow, "delete")
    def delete(real: Any, held: Any, moment: int, *arguments: Any, **options: Any) -> None:
        real(held, first.setdefault(held._user_id, moment), *arguments, **options)


@breaks("delete.reserved")
def reservation_counts_from_the_last_request() -> None:
    """Each attempt to register a reserved name reserves it anew."""

    @instead_of_handler("registerUser")
    def register_user(real: Any, server: Server, request: Request, user: Credentials) -> Response:
        try:
            return real(server, request, user=user)
        except Problem as problem:
            if problem.code == "recently_deleted":
                with server.store.account(user.user_id) as held:
                    held.delete(clock.now())
            raise


@breaks("guessing.known-address")
def address_is_known_from_its_first_use() -> None:
    """An address that is used each day becomes unknown 30 days after its first use."""

    @instead_of(Guessing, "remember")
    def remember(real: Any, guessing: Guessing, user_id: str, address: str) -> bool:
        known = guessing._known.time(keyed_hash(user_id), keyed_hash(address))
        if known is not None and clock.monotonic() - known < guessing._known_milliseconds:
            return False
        return bool(real(guessing, user_id, address))


@breaks("version.time")
def version_is_dated_by_its_signature() -> None:
    """The time of a version is that of the device's clock."""
    signed: dict[str, int] = {}

    @instead_of(backup_server, "store_version")
    def store_version(real: Any, server: Server, request: Request, signature: str, user: User, *more: Any) -> Response:
        created = re.search("created=([0-9]+)", request.header("Signature-Input") or "")
        assert created
        signed[user.user_id] = int(created[1]) * 1000
        return real(server, request, signature, user, *more)

    @instead_of(HeldRow, "append")
    def append(real: Any, held: Any, account: Account, *arguments: Any, **options: Any) -> None:
        *older, latest = account.versions
        dated = replace(latest, stored_at=signed[held._user_id])
        real(held, replace(account, versions=(*older, dated)), *arguments, **options)


# --- After a deletion -------------------------------------------------------------------------------------------------


@breaks("address.registrations")
def deletion_gives_a_registration_back() -> None:
    """Whoever registers and deletes may register without end."""

    @instead_of_handler("deleteUser")
    def delete_user(real: Any, server: Server, request: Request, user: User) -> Response:
        response: Response = real(server, request, user=user)
        server.registrations.give_back(request.address)
        return response


@breaks("guessing.account", "guessing.unknown")
def deletion_forgets_failed_credentials() -> None:
    """A userId that was deleted may be guessed for afresh."""

    @instead_of_handler("deleteUser")
    def delete_user(real: Any, server: Server, request: Request, user: User) -> Response:
        response: Response = real(server, request, user=user)
        guessing, key = server.guessing, keyed_hash(user.user_id)

        def forget(moment: int) -> None:
            for _ in range(100):
                guessing._accounts.take_back(key)

        guessing._tables.run(forget, [key], [key])
        return response


@breaks("limits.fresh")
def uploads_count_beyond_a_deletion() -> None:
    """Who deletes the account and registers again finds the limits used up."""
    before: dict[str, tuple[Any, ...]] = {}

    @instead_of(HeldRow, "delete")
    def delete(real: Any, held: Any, *arguments: Any, **options: Any) -> None:
        if isinstance(held.record, Account):
            before[held._user_id] = held.record.uploads
        real(held, *arguments, **options)

    @instead_of(HeldRow, "create")
    def create(real: Any, held: Any, account: Account) -> None:
        real(held, replace(account, uploads=before.get(held._user_id, ())))
