"""Which versions are kept."""

import dataclasses
from collections.abc import Callable
from typing import Any

import backup_server
from backup_server import Request, Response, Server, User
from server.accounts import Account, Version
from server_tests.broken.fault import breaks, change, instead_of


def keep(change_numbers: Callable[..., tuple[int, ...]]) -> None:
    """Keep other numbers of last versions, days, weeks and months than the settings say."""

    @instead_of(backup_server, "kept_versions")
    def kept_versions(real: Any, versions: tuple[Version, ...], numbers: tuple[int, ...]) -> tuple[Version, ...]:
        return real(versions, change_numbers(*numbers))


@breaks("history.last")
def history_is_lost() -> None:
    """Only the latest version is kept."""
    keep(lambda last, days, weeks, months: (1, 0, 0, 0))


@breaks("history.last")
def history_is_one_short() -> None:
    """Only three of the last versions are kept."""
    keep(lambda last, days, weeks, months: (last - 1, days, weeks, months))


@breaks("history.days")
def history_is_a_day_short() -> None:
    """Only two days are kept."""
    keep(lambda last, days, weeks, months: (last, days - 1, weeks, months))


@breaks("history.weeks")
def history_is_a_week_short() -> None:
    """Only one week is kept."""
    keep(lambda last, days, weeks, months: (last, days, weeks - 1, months))


@breaks("history.months")
def history_is_a_month_short() -> None:
    """Only one month is kept."""
    keep(lambda last, days, weeks, months: (last, days, weeks, months - 1))


@breaks("history.dropped")
def history_is_never_trimmed() -> None:
    """Each version is kept for ever."""
    keep(lambda last, days, weeks, months: (10_000, days, weeks, months))


@breaks("history.weeks")
def weeks_end_with_the_year() -> None:
    """The week of New Year counts as two."""
    days, _, months = backup_server.PERIODS
    change(backup_server, "PERIODS", (days, lambda day: (day.year, day.strftime("%W")), months))


@breaks("history.clock")
def history_is_ordered_by_date() -> None:
    """If a clock once ran ahead, its versions count as the newest days, weeks and months for years."""

    @instead_of(backup_server, "kept_versions")
    def kept_versions(real: Any, versions: tuple[Version, ...], numbers: tuple[int, ...]) -> tuple[Version, ...]:
        by_date = real(tuple(sorted(versions, key=lambda version: version.stored_at)), (1, *numbers[1:]))
        last = versions[-numbers[0] :]
        return tuple(version for version in versions if version in last or version in by_date)


@breaks("history.listed")
def listed_versions_cannot_be_fetched() -> None:
    """Only the last two of the listed versions can be fetched."""

    @instead_of(backup_server, "fetch")
    def fetch(real: Any, server: Server, request: Request, user: User, choose: Any) -> Response:
        def choose_of_the_last_two(account: Account) -> Version:
            return choose(dataclasses.replace(account, versions=account.versions[-2:]))

        return real(server, request, user, choose_of_the_last_two)
