"""Nobody takes the volume from the others. The whole: `python -m worst_day.space`."""

import contextlib
import dbm.sqlite3
import hashlib
import shutil
import time
import tomllib
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bench.process import ROOT
from bench.siege import NotRun
from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import eventually
from server import dbm_writer, housekeeping, space
from server.accounts import Account, StorageFull, Upload, Version, Volume
from server.dbm_store import DbmStore
from server.housekeeping import Housekeeper
from worst_day.space import FULL_DAYS, attack

GB = 1_000_000_000
DAY = 86_400_000


def test_an_attacker_does_not_stop_the_daily_backup(tmp_path):
    try:
        outcome = attack(tmp_path, 120_000_000, 6, 2, lambda _: None)
    except NotRun as error:
        not_run(str(error))
    assert not outcome.wrong
    assert outcome.attacker["stored 201"] >= 6 and outcome.attacker["stored 507"] >= 2


def test_the_daily_backup_goes_on_when_nobody_may_grow(tmp_path):
    outcome = attack(tmp_path, 600_000_000, 1, 1, lambda _: None, is_real=False)
    assert not outcome.wrong
    assert outcome.days_below_the_mark == FULL_DAYS and outcome.honest["stored 201"] >= FULL_DAYS


def test_the_marks_lie_beyond_the_one_at_which_fly_makes_the_volume_larger():
    (mount,) = tomllib.loads((ROOT / "fly.toml").read_text())["mounts"]
    for mark in (space.REGISTRATION_MARK, space.GROWTH_MARK):
        assert mark[0] < 1 - mount["auto_extend_size_threshold"] / 100


def test_marks_of_volumes():
    assert space.takes_accounts(Volume(GB, 150_000_000)) and not space.takes_accounts(Volume(GB, 149_999_999))
    assert space.takes_accounts(Volume(100 * GB, 2 * GB))  # a large volume needs no more than a smaller one
    old, new = Account(0, "", upload_days=7), Account(0, "", upload_days=6)
    assert space.lets_grow(Volume(GB, 100_000_000), old, 1) and not space.lets_grow(Volume(GB, 99_999_999), old, 1)
    assert space.lets_grow(Volume(900, 900, 200), new, 100) and not space.lets_grow(Volume(900, 900, 201), new, 100)


def days_to_fill(volume: dict[str, Any]) -> int:
    """Return in how many days attackers with any number of addresses make a volume as large as it may become.

    They have accounts of each day. Those of seven days ago are no longer new.
    """
    gigabytes = {name: float(str(text).removesuffix("gb")) * GB for name, text in volume.items() if "gb" in str(text)}
    total, most = int(gigabytes["initial_size"]), int(gigabytes["auto_extend_size_limit"])
    old, new, step = Account(0, "", upload_days=7), Account(0, "", upload_days=1), GB // 1000
    stored, days = [0], 0  # what the accounts of each day have; at first, those that are no longer new
    while total < most:
        days, grown = days + 1, 0
        stored.append(0)
        if len(stored) > 7:
            stored[:2] = [sum(stored[:2])]
        before = None
        while before != (before := (total, *stored)):
            if sum(stored) >= total * volume["auto_extend_size_threshold"] / 100 and total < most:
                total += int(gigabytes["auto_extend_size_increment"])
            for place, account in ((0, old), (-1, new)):
                while space.lets_grow(Volume(total, total - sum(stored), sum(stored[1:]), grown), account, step):
                    if place == 0 and not stored[0]:
                        break  # there is none
                    stored[place] += step
                    grown += step if account is old else 0
    return days


def test_the_volume_does_not_fill_in_a_day(monkeypatch):
    """The time in which an operator notices, which the runbook states."""
    (mount,) = tomllib.loads((ROOT / "fly.toml").read_text())["mounts"]
    days = days_to_fill(mount)
    assert days >= 14
    runbook = (ROOT / "docs/operations.md").read_text()
    assert f"{days} days from 1 GB to the" in runbook
    price = float(mount["auto_extend_size_limit"].removesuffix("gb")) * 0.15
    assert f"${price:.2f} a month" in runbook and f"${price:.2f} for 10 GB" in (ROOT / "fly.toml").read_text()
    monkeypatch.setattr(space, "GROWTH_A_DAY", 1e9)
    assert days_to_fill(mount) <= 8


@pytest.mark.parametrize(
    ("sizes", "days", "most", "kept"),
    [
        ([5, 5, 5], [1, 1, 1], 15, [1, 2, 3]),
        ([5, 5, 5], [1, 1, 1], 14, [2, 3]),
        ([5, 5, 5], [1, 1, 1], 1, [2, 3]),
        ([5], [1], 1, [1]),
        ([5, 5, 5, 5, 5], [1, 1, 2, 2, 2], 12, [2, 4, 5]),
        ([9, 1, 9, 9, 9], [1, 1, 2, 2, 2], 19, [2, 4, 5]),
        ([5, 5, 5, 5], [1, 2, 3, 4], 12, [3, 4]),
        ([5, 5, 5, 5], [1, 9, 9, 9], 12, [1, 3, 4]),  # the clock ran ahead, or did not: the first is of an earlier day
    ],
)
def test_which_versions_go(sizes, days, most, kept):
    versions = [
        Version(number, day * DAY, size, "", 1) for number, (size, day) in enumerate(zip(sizes, days, strict=True), 1)
    ]
    assert [version.number for version in space.within(versions, most)] == kept


def account_with(sizes: list[int], **options) -> Account:
    """Return an account with a version of each size, each of another day."""
    versions = tuple(Version(number, number * DAY, size, "", 1) for number, size in enumerate(sizes, 1))
    return Account(0, "", versions=versions, **options)


@pytest.mark.parametrize(
    ("free", "before", "allotment", "stored", "kept", "left"),
    [
        (100_000_000, [5, 5, 5], 0, 9, [5, 5, 5, 9], 0),  # it may grow
        (100_000_000, [5, 5, 5], 20, 9, [5, 5, 5, 9], 0),  # it may grow again: from now on, what it has is its own
        (99_999_999, [5, 5, 5], 0, 5, [5, 5, 5], 15),
        (99_999_999, [5, 5, 5], 0, 6, [5, 6], 15),
        (99_999_999, [5, 6], 15, 4, [5, 6, 4], 15),  # what it gave up is still its own
        (99_999_999, [5, 5, 5], 0, 10, [5, 10], 15),
        (99_999_999, [5, 5, 5], 0, 11, None, None),
        (99_999_999, [], 0, 1, None, None),
        (0, [5, 5], 10, 5, [5, 5], 10),  # how little is free does not matter here
    ],
)
def test_an_account_that_may_not_grow(free, before, allotment, stored, kept, left):
    old = account_with(before, upload_days=7, allotment=allotment)
    new = account_with([*before, stored], upload_days=7)
    if kept is None:
        with pytest.raises(StorageFull):
            space.fitted(Volume(GB, free), old, new)
    else:
        fitted = space.fitted(Volume(GB, free), old, new)
        assert ([version.size for version in fitted.versions], fitted.allotment) == (kept, left)


def test_days_are_counted():
    account = Account(0, "")
    assert space.upload_days_at(account, DAY) == 1
    account = Account(0, "", uploads=(Upload(DAY, ""),), upload_days=1)
    assert [space.upload_days_at(account, moment) for moment in (DAY, 2 * DAY - 1, 2 * DAY)] == [1, 1, 2]
    assert space.upload_days_at(Account(0, "", uploads=(Upload(DAY, ""),), upload_days=7), 9 * DAY) == 7


# ---- The space in the file -----------------------------------------------------------------------------------------


def store_versions(store: DbmStore, user_id: str, sizes: list[int], **options) -> None:
    """Register an account and store versions of these sizes. The latest two are kept."""
    account = Account(1, "c" * 64)
    with store.account(user_id) as held:
        held.create(account)
    for number, size in enumerate(sizes, 1):
        data = bytes([number]) * size
        version = Version(number, number, size, hashlib.sha256(data).hexdigest(), 1)
        account = Account(
            1,
            "c" * 64,
            versions=(*account.versions, version)[-2:],
            uploads=(*account.uploads, Upload(number, "s" * 86)),
            upload_days=1,
        )
        with store.account(user_id) as held:
            held.append(account, data, **options)


def on_a_disk(monkeypatch, total: int, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total free")(total, free))


def test_a_new_account_counts_with_its_record(tmp_path):
    """Ten bytes take some kilobytes of the file. A hundred thousand such accounts are half of a small volume."""
    with contextlib.closing(DbmStore(tmp_path / "x.db", 901)) as store:
        for number in range(300):
            store_versions(store, f"{number:064x}", [10] * (number % 10))
        counted = store.volume().new_accounts
    taken = (tmp_path / "x.db").stat().st_size
    assert 0.7 * taken < counted < 2 * taken


def test_a_third_of_the_volume_may_be_used_up_by_registrations_too():
    share = 333_333
    assert space.takes_accounts(Volume(1_000_000, 1_000_000, share - space.RECORD_BYTES))
    assert not space.takes_accounts(Volume(1_000_000, 1_000_000, share - space.RECORD_BYTES + 1))


def file_with_free_pages(path: Path) -> None:
    """Make the file of an older server, which cannot become smaller, with 60 MB that were deleted."""
    with contextlib.closing(dbm.sqlite3.open(path, "c", 0o600)) as file:
        file[b"format"] = b"2"
        for number in range(60):
            file[b"blob/%064x/0" % number] = bytes(1_000_000)
        for number in range(60):
            del file[b"blob/%064x/0" % number]


def test_what_was_deleted_in_an_older_file_is_room_for_others(start_server):
    server = start_server(volume=1)
    server.stop()
    server.database.unlink()
    file_with_free_pages(server.database)
    server.volume = server.database.stat().st_size + 35_000_000  # what is free is hardly more than the reserve
    user = server.start().client()
    assert user.register_user().status_code == 201
    assert user.store_backup(bytes(5_000_000), None).status_code == 201


def test_the_reserve_is_not_for_uploads(start_server):
    """A deletion needs room in the write-ahead log, also if there was none left for anything else."""
    server = start_server(volume=10**9)
    user = server.client()
    assert user.register_user().status_code == 201
    assert user.store_backup(b"one", None).status_code == 201
    server.stop()
    # A small volume, of which much is free: only the reserve is in the way.
    server.volume = sum(path.stat().st_size for path in server.directory.iterdir()) + 30_000_000
    user.base_url = server.start().base_url
    assert user.store_backup(b"two", hashlib.sha256(b"one").hexdigest()).status_code == 507
    assert user.delete_user().status_code == 204


def test_the_file_becomes_smaller(start_server):
    server = start_server(REGISTRATIONS_PER_HOUR=100)
    users = [server.client() for _ in range(5)]
    for user in users:
        assert user.register_user().status_code == 201
        assert user.store_backup(bytes(5_000_000), None).status_code == 201
    assert server.database.stat().st_size > 20_000_000
    for user in users:
        assert user.delete_user().status_code == 204
    assert eventually(lambda: server.database.stat().st_size < 2 * housekeeping.SPARE_BYTES)


def test_free_pages_are_no_room_for_the_log(tmp_path, monkeypatch):
    """What is written goes to the write-ahead log first, which grows on the disk."""
    file_with_free_pages(tmp_path / "x.db")
    with contextlib.closing(DbmStore(tmp_path / "x.db", 901)) as store:
        on_a_disk(monkeypatch, 100_000_000, dbm_writer.RESERVE_BYTES)
        store_versions(store, "a" * 64, [5_000_000])
        on_a_disk(monkeypatch, 100_000_000, 20_000_000)
        with pytest.raises(StorageFull):
            store_versions(store, "b" * 64, [5_000_000])


def test_what_was_deleted_is_known_to_be_free_although_housekeeping_has_other_work(tmp_path, monkeypatch):
    with mock.patch.object(Housekeeper, "_keep_house"), contextlib.closing(DbmStore(tmp_path / "x.db", 901)) as store:
        store_versions(store, "a" * 64, [2_000_000, 2_000_000])
        on_a_disk(monkeypatch, 10**9, 10**8)
        before = store.volume().free
        with store.account("a" * 64) as held:
            held.delete(1)
        time.sleep(1.1)
        assert store.volume().free > before + 3_900_000
        monkeypatch.undo()
        store_versions(store, "b" * 64, [2_000_000, 2_000_000])
        time.sleep(1.1)
        on_a_disk(monkeypatch, 10**9, 10**8)
        assert store.volume().free < before + 100_000


def test_what_an_account_gives_up_is_not_free_for_others(tmp_path, monkeypatch):
    """Otherwise, the volume would be full when the account needs its room again."""
    with mock.patch.object(Housekeeper, "_keep_house"), contextlib.closing(DbmStore(tmp_path / "x.db", 901)) as store:
        on_a_disk(monkeypatch, 10**9, 5 * 10**8)
        store_versions(store, "a" * 64, [2_000_000, 2_000_000])
        before, account = store.volume().free, store.find("a" * 64)
        version = Version(3, 3, 10, hashlib.sha256(b"9876543210").hexdigest(), 1)
        smaller = replace(account, versions=(account.latest, version), allotment=4_000_000)
        with store.account("a" * 64) as held:
            held.append(smaller, b"9876543210", gives_back=True)
        time.sleep(1.1)
        assert abs(store.volume().free - before) < 100_000
        with store.account("a" * 64) as held:
            held.delete(4)
        time.sleep(1.1)
        assert store.volume().free > before + 3_900_000


def test_an_upload_is_stored_even_if_what_it_drops_cannot_be_erased(tmp_path):
    """507 says that nothing was changed."""
    with contextlib.closing(DbmStore(tmp_path / "x.db", 901)) as store:
        with mock.patch.object(DbmStore, "erase_dropped", side_effect=StorageFull):
            store_versions(store, "a" * 64, [10, 10, 10], gives_back=True)
        assert store.find("a" * 64).latest.number == 3
