"""The copy off the machine, and what is restored from it. Nobody sees these faults before the day of a loss."""

import itertools
from collections.abc import Iterator
from typing import Any

from server import bounds, clock, recovery, replica
from server.accounts import Account, DamagedData, Deleted, Record, Version
from server.bucket import Address, Bucket, Folder, identity_of, record_bytes
from server.dbm_reader import DbmReader
from server.replica import Change, Replica
from server_tests.broken.fault import breaks, change, instead_of
from server_tests.s3 import PROGRAM

TESTS = "server_tests/test_bucket.py::test_"


@breaks(test=f"{TESTS}a_setting_that_is_missing_is_named[AWS_ACCESS_KEY_ID-None]", store="file")
def bucket_without_a_key_is_accepted() -> None:
    """The server starts, and there is never a copy."""
    change(Address, "__post_init__", lambda address: None)


# --- What is copied ---------------------------------------------------------------------------------------------------


@breaks(test=f"{TESTS}an_upload_that_is_cut_off_half_way", needs=PROGRAM, store="file")
def record_comes_before_its_blobs() -> None:
    """After a crash in between, the bucket names bytes that it does not have."""

    @instead_of(Replica, "_put_version")
    def put_version(real: Any, copier: Replica, bucket: Bucket, user_id: str, version: Version, path: str) -> bool:
        record = copier._store.find(user_id)
        if isinstance(record, Account):
            data = record_bytes(user_id, record)
            folder = path.partition("blob/")[0]
            bucket.put(f"{folder}record/{clock.now():013}-{identity_of(data)}", data)
        return bool(real(copier, bucket, user_id, version, path))


@breaks(test=f"{TESTS}damage_from_before_the_copy_does_not_reach_the_bucket", needs=PROGRAM, store="file")
def damaged_version_is_copied() -> None:
    """The bucket has bytes under a digest that is not theirs."""

    @instead_of(DbmReader, "data")
    def data(real: Any, store: DbmReader, user_id: str, version: Version) -> bytes | None:
        try:
            found: bytes | None = real(store, user_id, version)
        except DamagedData:
            row = store.row(user_id)
            slot = row.slot(version) if row else None
            found = None if slot is None else store.blob(user_id, slot)
        return found


@breaks(test=f"{TESTS}a_deletion_leaves_nothing", needs=PROGRAM, store="file")
def deletion_is_not_heard_of() -> None:
    """What a user has deleted stays in the bucket until the next comparison."""

    @instead_of(Replica, "changed")
    def changed(real: Any, copier: Replica, user_id: str, record: Record) -> None:
        if not isinstance(record, Deleted):
            real(copier, user_id, record)


@breaks(test=f"{TESTS}a_deletion_leaves_nothing", needs=PROGRAM, store="file")
def what_a_user_deletes_is_kept_like_an_old_state() -> None:
    """It can be restored for a week."""
    change(replica, "is_erased", lambda record: False)


@breaks(test=f"{TESTS}what_the_operator_removes_is_kept_for_7_days", needs=PROGRAM, store="file")
def what_the_operator_removes_is_gone_at_once() -> None:
    """A mistake of the operator cannot be undone."""
    change(replica, "is_erased", lambda record: isinstance(record, Deleted))


@breaks(test=f"{TESTS}old_states_are_kept_for_7_days", needs=PROGRAM, store="file")
def old_states_are_not_kept() -> None:
    """Whoever notices a day later that something is wrong finds the wrong state in the bucket, too."""
    change(replica, "KEEP_OLD", 0)


@breaks(test=f"{TESTS}old_states_are_kept_for_7_days", needs=PROGRAM, store="file")
def old_states_are_kept_for_ever() -> None:
    """What was dropped never goes."""
    change(replica, "KEEP_OLD", 1000 * clock.DAY)


@breaks(test=f"{TESTS}more_changes_than_can_wait", needs=PROGRAM, store="file")
def changes_that_cannot_wait_are_forgotten() -> None:
    """After a long time without the bucket, nobody looks for what is missing in it."""

    @instead_of(Replica, "_add")
    def add(real: Any, copier: Replica, user_id: str, change: Change) -> None:
        if len(copier._waiting) < bounds.BUCKET_CHANGES:
            real(copier, user_id, change)


@breaks(test=f"{TESTS}the_names_do_not_tell_a_userid", needs=PROGRAM, store="file")
def names_are_userids() -> None:
    """Whoever may list the bucket knows who is there."""
    change(replica, "name_of", lambda user_id: user_id)


@breaks(test=f"{TESTS}an_hour_without_the_bucket", needs=PROGRAM, store="file")
def lag_is_always_nothing() -> None:
    """Nobody hears that there has been no copy for weeks."""
    change(Replica, "lag_seconds", lambda copier: 0)


# --- Who may write ----------------------------------------------------------------------------------------------------


@breaks(test=f"{TESTS}a_second_machine_is_refused_unless_it_takes_over", needs=PROGRAM, store="file")
def takeover_needs_no_leave() -> None:
    """A machine that was started by mistake writes its state over that of the right one."""

    @instead_of(Replica, "_claim")
    def claim(real: Any, copier: Replica, bucket: Bucket) -> None:
        copier._may_take = True
        real(copier, bucket)


@breaks(test=f"{TESTS}a_second_machine_is_refused_unless_it_takes_over", needs=PROGRAM, store="file")
def owner_is_not_looked_at_again() -> None:
    """The machine that the bucket was taken from goes on writing."""
    change(bounds, "BUCKET_OWNER_SECONDS", 10**9)


@breaks(test=f"{TESTS}a_machine_without_accounts_does_not_take_over", needs=PROGRAM, store="file")
def machine_without_accounts_takes_over() -> None:
    """An empty volume empties the bucket."""
    change(replica, "has_accounts", lambda bucket: False)


# --- What is restored -------------------------------------------------------------------------------------------------


@breaks(test=f"{TESTS}old_states_are_kept_for_7_days", needs=PROGRAM, store="file")
def restoration_ignores_the_moment() -> None:
    """`--at` restores the newest state, which is the wrong one."""

    @instead_of(recovery, "fetch_record")
    def fetch_record(real: Any, bucket: Bucket, at: int | None, named: tuple[str, Folder]) -> Any:
        return real(bucket, None, named)


@breaks(test=f"{TESTS}old_states_are_kept_for_7_days", needs=PROGRAM, store="file")
def moment_before_the_oldest_state_is_accepted() -> None:
    """What is restored is a state that never was."""

    @instead_of(recovery, "check")
    def check(real: Any, bucket: Bucket, at: int | None) -> None:
        real(bucket, None)


@breaks(test=f"{TESTS}what_verify_finds_in_a_bucket", needs=PROGRAM, store="file")
def bytes_from_the_bucket_are_not_verified() -> None:
    """Rot in the bucket is found by the user."""
    change(recovery, "is_intact", lambda value, version: True)


@breaks(test=f"{TESTS}a_restoration_of_more_names_than_a_page_has", needs=PROGRAM, store="file")
def only_the_first_page_of_names_is_read() -> None:
    """Of many accounts, some are restored."""

    @instead_of(Bucket, "names")
    def names(real: Any, bucket: Bucket, prefix: str) -> Iterator[str]:
        return itertools.islice(real(bucket, prefix), 1000)
