"""Who may have how much of the volume."""

import math
from typing import Any

from server import counts, dbm_writer, space
from server.accounts import Account, Record, StorageFull
from server.dbm_store import DbmStore
from server.dbm_writer import FreePages
from server.housekeeping import Housekeeper
from server_tests.broken.fault import (
    IS_ON_POSTGRES,
    STORE,
    HeldRow,
    breaks,
    change,
    instead_of,
)


@breaks("space.account")
def account_has_no_quota() -> None:
    """An account keeps 11 versions of 5 MiB."""
    change(space, "within", lambda versions, most: tuple(versions))


@breaks("space.account")
def junk_of_today_drives_out_yesterday() -> None:
    """Only the last two versions are safe from the quota."""

    @instead_of(space, "within")
    def within(real: Any, versions: Any, most: int) -> Any:
        left = list(versions)
        while len(left) > 2 and space.size_of(left) > most:
            del left[0]
        return tuple(left)


@breaks("space.new")
def new_accounts_may_take_everything() -> None:
    """Two addresses fill the volume in five minutes."""
    change(space, "NEW_ACCOUNTS_SHARE", math.inf)


@breaks("space.new")
def account_is_no_longer_new_after_its_first_day() -> None:
    """An attacker waits a day."""
    change(space, "is_established", lambda account: account.upload_days >= 1)


@breaks("space.day")
def growth_of_a_day_has_no_bound() -> None:
    """An attacker waits a week, and then fills ten volumes in a day."""
    change(space, "GROWTH_A_DAY", math.inf)


@breaks("space.day")
def what_is_deleted_today_is_no_room_today() -> None:
    """Accounts that come and go use up what all others may grow by."""

    @instead_of(STORE if IS_ON_POSTGRES else counts, "growth_of")
    def growth_of(real: Any, before: Record, after: Record | None) -> int:
        return max(0, real(before, after))


@breaks("space.registrations")
def registrations_go_on_to_the_last_byte() -> None:
    """Accounts that were there before find no room."""
    change(space, "REGISTRATION_MARK", (0.0, 0))


@breaks("space.own")
def growth_goes_on_to_the_reserve() -> None:
    """Whoever stores first takes the last of the volume."""
    change(space, "GROWTH_MARK", (0.0, 0))


@breaks("space.registrations")
def registrations_do_not_count_as_new_accounts() -> None:
    """Whoever only registers takes the volume with records."""
    change(STORE, "takes_accounts", lambda volume: not space.is_below(volume, space.REGISTRATION_MARK))


@breaks("space.own")
def account_forgets_what_it_gave_up() -> None:
    """A log that becomes a little larger each day is refused for good after a few days."""
    change(space, "allotted", lambda account: space.size_of(account.versions))


@breaks("space.own")
def nobody_stores_on_a_volume_that_is_nearly_full() -> None:
    """An account is refused, although its oldest version could make room."""

    @instead_of(space, "lets_grow")
    def lets_grow(real: Any, volume: Any, account: Account, growth: int) -> bool:
        if space.is_below(volume, space.GROWTH_MARK):
            raise StorageFull
        return bool(real(volume, account, growth))


@breaks("space.always")
def deletion_needs_space() -> None:
    """On a full volume nobody can delete anything."""

    @instead_of(HeldRow, "delete")
    def delete(real: Any, held: Any, *arguments: Any, **options: Any) -> None:
        held._store.check_space(0)
        real(held, *arguments, **options)


@breaks(test="server_tests/test_space.py::test_the_file_becomes_smaller", store="file")
def file_never_becomes_smaller() -> None:
    """What strangers had and deleted is lost for the volume."""
    change(Housekeeper, "_shrink", lambda house: False)


@breaks(test="server_tests/test_space.py::test_an_attacker_does_not_stop_the_daily_backup", store="file")
def free_pages_are_counted_once() -> None:
    """What was free at the start counts as free for ever, and nothing else does."""
    change(dbm_writer, "FREE_PAGES_SECONDS", math.inf)


@breaks(test="server_tests/test_space.py::test_what_was_deleted_in_an_older_file_is_room_for_others", store="file")
def free_pages_are_no_room() -> None:
    """In a file that cannot become smaller, what strangers had and deleted is lost for everybody."""
    change(DbmStore, "free_in_file", lambda store: FreePages(0, False, 0))
