"""Nobody takes the volume from the others. The whole: `python -m worst_day.space`."""

import tomllib

import pytest

from bench.process import ROOT
from bench.siege import NotRun
from contract_tests.suite.outcomes import not_run
from server import space
from server.accounts import Account, Upload, Version, Volume
from worst_day.space import attack

GB = 1_000_000_000
DAY = 86_400_000


@pytest.mark.parametrize("is_real", [False, True])
def test_an_attacker_does_not_stop_the_daily_backup(tmp_path, is_real):
    try:
        outcome = attack(tmp_path, 120_000_000, 6, 2, lambda _: None, is_real)
    except NotRun as error:
        not_run(str(error))
    assert not outcome.wrong
    assert outcome.attacker["stored 201"] >= 6 and outcome.attacker["stored 507"] >= 2


def test_the_marks_lie_beyond_the_one_at_which_fly_makes_the_volume_larger():
    (mount,) = tomllib.loads((ROOT / "fly.toml").read_text())["mounts"]
    for mark in (space.REGISTRATION_MARK, space.GROWTH_MARK):
        assert mark[0] < 1 - mount["auto_extend_size_threshold"] / 100


def test_marks_of_volumes():
    assert space.takes_accounts(Volume(GB, 150_000_000)) and not space.takes_accounts(Volume(GB, 149_999_999))
    assert space.takes_accounts(Volume(100 * GB, 2 * GB))  # a large volume needs no more than a smaller one
    old, new = Account(0, "", upload_days=7), Account(0, "", upload_days=6)
    assert space.lets_grow(Volume(GB, 100_000_000), old, 1) and not space.lets_grow(Volume(GB, 99_999_999), old, 1)
    assert space.lets_grow(Volume(GB, 0), old, 0)
    assert space.lets_grow(Volume(900, 900, 200), new, 100) and not space.lets_grow(Volume(900, 900, 201), new, 100)


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


def test_days_are_counted():
    account = Account(0, "")
    assert space.upload_days_at(account, DAY) == 1
    account = Account(0, "", uploads=(Upload(DAY, ""),), upload_days=1)
    assert [space.upload_days_at(account, moment) for moment in (DAY, 2 * DAY - 1, 2 * DAY)] == [1, 1, 2]
    assert space.upload_days_at(Account(0, "", uploads=(Upload(DAY, ""),), upload_days=7), 9 * DAY) == 7
