"""Which versions are kept (openapi.yaml, "Backups and versions"), over days, weeks and months of a moved clock."""

import base64
import random
from datetime import UTC, datetime
from secrets import token_hex

import pytest

from contract_tests.target.calls import outcome, sha256
from contract_tests.target.process import ServerProcess

HOUR, DAY = 3600, 86_400
MANY = {"BACKUPS_PER_HOUR": 1000, "BACKUPS_PER_DAY": 1000, "REGISTRATIONS_PER_HOUR": 1000}


def unix(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def kept(history: list[float], keep: tuple[int, int, int, int]) -> list[int]:
    """Return the versions that must be kept, newest first. Version n was stored at history[n - 1], in Unix seconds.

    This is a plain reading of the contract: the last versions, and the newest of each of the last days, ISO weeks and
    months.
    """
    newest_first = list(range(len(history), 0, -1))
    moments = {version: datetime.fromtimestamp(history[version - 1], UTC) for version in newest_first}
    periods = (lambda at: at.date(), lambda at: at.isocalendar()[:2], lambda at: (at.year, at.month))
    versions = set(newest_first[: keep[0]])
    for period, count in zip(periods, keep[1:], strict=True):
        newest_of: dict = {}
        for version in newest_first:
            newest_of.setdefault(period(moments[version]), version)
        versions |= set(list(newest_of.values())[:count])
    return sorted(versions, reverse=True)


class Device:
    """A user who moves the server's clock to date the uploads, and who remembers them all."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.history: list[float] = []
        self.client = server.client()
        assert self.client.register_user().status_code == 201

    @staticmethod
    def blob(version: int) -> bytes:
        return f"version {version}".encode()

    def store_at(self, moment: float) -> None:
        """Store the next version at this time, in Unix seconds."""
        self.server.move_clock(moment - self.server.now())
        self.history.append(moment)
        version = len(self.history)
        base = sha256(self.blob(version - 1)) if version > 1 else None
        response = self.client.store_backup(self.blob(version), base)
        assert (response.status_code, response.json()["version"]) == (201, version)

    def listed(self) -> list[int]:
        return [receipt["version"] for receipt in self.client.list_backup_versions().json()["versions"]]

    def assert_listed_is_fetchable_and_all_else_is_not(self) -> None:
        receipts = self.client.list_backup_versions().json()["versions"]
        for receipt in receipts:
            backup = self.client.fetch_backup_version(receipt["version"]).json()
            assert base64.b64decode(backup.pop("data")) == self.blob(receipt["version"])
            assert backup == receipt
            at = datetime.fromtimestamp(self.history[receipt["version"] - 1], UTC)
            assert receipt["updatedAt"] == at.strftime("%Y-%m-%dT%H:%M:%SZ")
        for version in {*range(1, len(self.history) + 2)} - {receipt["version"] for receipt in receipts}:
            response = self.client.fetch_backup_version(version)
            assert outcome(response) == "404 no_such_version"


@pytest.fixture(scope="module")
def shared(start_shared_server):
    return start_shared_server(frozen=unix("2026-11-24T09"), **MANY)


@pytest.fixture
def start(start_server, request):
    """`start(at, KEEP_VERSIONS=...)` returns a new user's device. The clock of its server shows this time."""

    def start(at: str, **environ) -> Device:
        if environ:
            return Device(start_server(frozen=unix(at), **MANY, **environ))
        server = request.getfixturevalue("shared")  # each history is that of a user, whatever others did at which time
        server.move_clock(unix(at) - server.now())
        return Device(server)

    return start


# ---- Written out -------------------------------------------------------------------------------------------

# When each version was stored, and which versions are listed afterwards.
HISTORIES = {
    "fewer than are kept": (["2026-11-24T09"] * 3, [3, 2, 1]),
    "the last 4 of one day": (["2026-11-24T09"] * 7, [7, 6, 5, 4]),
    "the newest of 3 days": (
        ["2026-11-21T09", "2026-11-22T09", "2026-11-22T10", "2026-11-23T09", "2026-11-24T09"]
        + ["2026-11-24T10", "2026-11-24T11", "2026-11-24T12"],
        [8, 7, 6, 5, 4, 3],  # version 3 is the newest of the 22nd, and of its week
    ),
    "days begin at midnight UTC": (
        ["2026-11-22T23:59:59", "2026-11-23T00:00:00", "2026-11-23T23:59:59", "2026-11-24T00:00:00"]
        + ["2026-11-24T00:00:01"] * 3,
        [7, 6, 5, 4, 3, 1],
    ),
    "days without a version do not count": (
        ["2026-11-02T09", "2026-11-10T09", "2026-11-18T09"] + ["2026-11-24T09"] * 4,
        [7, 6, 5, 4, 3, 2],
    ),
    "2 months": (
        ["2026-08-31T09", "2026-09-30T23:59:59", "2026-11-01T00:00:00"] + ["2026-11-24T09"] * 4 + ["2026-11-25T09"] * 4,
        [11, 10, 9, 8, 7, 3, 2],
    ),
    "2026-W53 holds days of two years": (
        ["2026-12-20T09", "2026-12-27T23:59:59", "2026-12-28T00:00:00", "2027-01-01T09"] + ["2027-01-03T09"] * 4,
        [8, 7, 6, 5, 4, 3, 2],  # 2 is of 2026-W52; 3 is of December and of the 3rd day; all from 3 on are of W53
    ),
    "2027-W01 begins on the 4th": (
        ["2026-12-27T09", "2026-12-31T09", "2027-01-03T23:59:59", "2027-01-04T00:00:00"] + ["2027-01-04T09"] * 4,
        [8, 7, 6, 5, 3, 2],
    ),
    "2025-12-29 is of 2026-W01": (
        ["2025-12-21T09", "2025-12-28T09", "2025-12-29T09", "2025-12-30T09"] + ["2026-01-02T09"] * 4,
        [8, 7, 6, 5, 4, 3, 2],
    ),
    "29 February is a day of its month": (
        ["2028-01-31T23:59:59.999", "2028-02-28T09", "2028-02-29T00:00:00", "2028-02-29T23:59:59.999"]
        + ["2028-03-01T00:00:00", "2028-03-01T09", "2028-03-01T10", "2028-03-01T11"],
        [8, 7, 6, 5, 4, 2, 1],  # 2 is the newest of the 3rd day; all from 2 on are of one week
    ),
    "the 31st day, and months that have none": (
        ["2026-08-31T09", "2026-10-31T09", "2026-10-31T10", "2026-12-31T09", "2026-12-31T10", "2026-12-31T11"]
        + ["2026-12-31T12"],
        [7, 6, 5, 4, 3, 1],  # 1 is the newest of the 3rd day
    ),
    "a clock that ran ahead": (
        ["2026-11-20T09", "2029-05-05T09"] + ["2026-11-21T09"] * 3 + ["2026-11-22T09"] * 2,
        [7, 6, 5, 4, 2],
    ),
}


ABOUT = {"day": "history.days", "week": "history.weeks", "W0": "history.weeks", "W5": "history.weeks"}
ABOUT |= {"month": "history.months", "ahead": "history.clock", "fewer": "history.last", "last 4": "history.last"}


@pytest.mark.requirement("history.dropped", "history.listed", "history.last")
@pytest.mark.parametrize(
    ("moments", "versions"),
    [
        pytest.param(
            *case,
            marks=[pytest.mark.requirement(identifier) for word, identifier in ABOUT.items() if word in name],
            id=name,
        )
        for name, case in HISTORIES.items()
    ],
)
def test_what_is_kept(start, moments, versions):
    device = start(moments[0])
    for moment in moments:
        device.store_at(unix(moment))
    assert kept(device.history, (4, 3, 2, 2)) == versions  # the model and the example agree
    assert device.listed() == versions
    device.assert_listed_is_fetchable_and_all_else_is_not()


# The same day, week or month of another month or year is another one. Whatever is listed here is kept.
OTHERS = {
    "1,3,0,0": ["2025-11-24T09", "2026-10-24T09", "2026-11-24T09"],
    "1,0,3,0": ["2024-11-19T09", "2025-11-18T09", "2026-11-17T09"],  # Tuesdays of W47
    "1,0,0,3": ["2024-11-30T09", "2025-11-30T09", "2026-11-01T09"],
}


@pytest.mark.requirement("history.days", "history.weeks", "history.months")
@pytest.mark.parametrize(("keep", "moments"), OTHERS.items(), ids=OTHERS)
def test_the_same_number_in_another_year(start, keep, moments):
    device = start(moments[0], KEEP_VERSIONS=keep)
    for moment in moments:
        device.store_at(unix(moment))
    assert device.listed() == [3, 2, 1]


# A zone far behind UTC, and one with summer time. All other tests have one ahead (target/process.py).
ZONES = {"behind": "<-12>12", "summer time": "EST5EDT,M3.2.0,M11.1.0"}


@pytest.mark.requirement("history.days", "history.weeks", "history.months", "version.time")
@pytest.mark.parametrize("zone", ZONES.values(), ids=ZONES)
def test_the_zone_of_the_server_does_not_matter(start_server, zone):
    server = start_server(frozen=unix("2026-11-24T09"), TZ=zone, **MANY)
    for moments, versions in HISTORIES.values():
        server.move_clock(unix(moments[0]) - server.now())
        device = Device(server)
        for moment in moments:
            device.store_at(unix(moment))
        assert device.listed() == versions
        device.assert_listed_is_fetchable_and_all_else_is_not()
        created = device.client.register_user().json()["createdAt"]
        assert created == datetime.fromtimestamp(unix(moments[0]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.requirement("version.time")
@pytest.mark.parametrize("drift", [-299, 299])
def test_a_version_has_the_time_of_the_server(start, drift):
    device = start("2026-11-24T09")
    phone = device.server.client(device.client.credentials, clock=lambda: device.server.now() + drift)
    assert phone.store_backup(b"a backup").json()["updatedAt"] == "2026-11-24T09:00:00Z"
    assert phone.list_backup_versions().json()["versions"][0]["updatedAt"] == "2026-11-24T09:00:00Z"


@pytest.mark.requirement("storeBackup.201", "history.days", "history.months", "limits.day")
def test_each_end_of_a_month_and_a_year(start):
    """Before and after each midnight, an upload is as any other. The years have 365 and 366 days."""
    device = start("2027-01-01T00", KEEP_VERSIONS="2,2,1,1")
    for year in (2027, 2028):
        for month in range(1, 13):
            end = unix(f"{year + month // 12}-{month % 12 + 1:02}-01T00")
            for moment in (end - DAY, end - 0.001, end):
                device.store_at(moment)
                assert device.listed() == kept(device.history, (2, 2, 1, 1))


@pytest.mark.requirement("history.clock")
def test_a_clock_that_ran_ahead_costs_nothing(start):
    """Otherwise, three versions dated years ahead would count as the newest days, weeks and months for years."""
    device = start("2026-11-01T09")
    first = unix("2026-11-01T09")
    for moment in [first + day * DAY for day in range(20)] + [first + (1000 + 40 * n) * DAY for n in range(3)]:
        device.store_at(moment)
    for day in range(20, 60):
        device.store_at(first + day * DAY)
    assert len(device.listed()) == len(kept(device.history[:20] + device.history[23:], (4, 3, 2, 2)))
    assert not {21, 22, 23} & set(device.listed())


# ---- Against the model -------------------------------------------------------------------------------------

STEPS = [0, 1, 60, HOUR, 5 * HOUR, 12 * HOUR, DAY, DAY, 2 * DAY, 6 * DAY, 7 * DAY, 20 * DAY, 31 * DAY]


@pytest.mark.requirement("history.last", "history.days", "history.weeks", "history.months", "history.clock")
@pytest.mark.parametrize("keep", ["4,3,2,2", "1,0,0,0", "1,1,1,1", "2,0,3,0", "1,0,0,3", "1,10,5,3", "40,0,0,0"])
def test_random_histories(start, keep):
    device = start("2026-12-20T00", KEEP_VERSIONS=keep)
    moment, chance = int(device.server.now()), random.Random(keep)
    for _ in range(60):
        step = chance.choice(STEPS)
        moment += step if chance.random() < 0.9 else -step  # sometimes, the clock is put back
        device.store_at(moment)
        assert device.listed() == kept(device.history, tuple(map(int, keep.split(",")))), device.history
    device.assert_listed_is_fetchable_and_all_else_is_not()


@pytest.mark.requirement("history.dropped", "history.listed")
def test_another_number_of_versions_takes_effect_with_the_next_upload(start):
    device = start("2026-11-24T09", KEEP_VERSIONS="4,0,0,0")
    for _ in range(5):
        device.store_at(unix("2026-11-24T09"))
    for keep, before, after in [("2,0,0,0", [5, 4, 3, 2], [6, 5]), ("6,0,0,0", [6, 5], [7, 6, 5])]:
        device.server.environ["KEEP_VERSIONS"] = keep
        device.server.restart()
        device.client.base_url = device.server.base_url
        assert device.listed() == before  # a listed version can be fetched until a later upload drops it
        device.store_at(unix("2026-11-24T09"))
        assert device.listed() == after
        device.assert_listed_is_fetchable_and_all_else_is_not()


@pytest.mark.requirement("history.listed", "problem.unchanged", "durability.restart")
def test_a_refused_upload_a_retry_and_a_restart_drop_nothing(start):
    device = start("2026-11-24T09")
    for _ in range(6):
        device.store_at(unix("2026-11-24T09"))
    device.server.move_clock(400 * DAY)
    assert device.client.store_backup(b"stale", "0" * 64).status_code == 409
    assert device.client.store_backup(device.blob(6)).status_code == 200
    device.server.restart()
    device.client.base_url = device.server.base_url
    assert device.listed() == [6, 5, 4, 3]
    device.assert_listed_is_fetchable_and_all_else_is_not()


@pytest.mark.requirement("history.last", "version.key", "key.new")
def test_a_changed_key_leaves_the_history(start):
    device = start("2026-11-24T09")
    for _ in range(3):
        device.store_at(unix("2026-11-24T09"))
    key = token_hex(32)
    base = sha256(device.blob(3))
    assert device.client.change_storage_key(key, device.blob(4), base).json()["keyVersion"] == 2
    device.history.append(unix("2026-11-24T09"))
    device.client = device.server.client((device.client.credentials[0], key))
    device.store_at(unix("2026-11-24T10"))
    assert device.listed() == [5, 4, 3, 2]
    versions = device.client.list_backup_versions().json()["versions"]
    assert [receipt["keyVersion"] for receipt in versions] == [2, 2, 1, 1]
    device.assert_listed_is_fetchable_and_all_else_is_not()


# ---- On any server -----------------------------------------------------------------------------------------


@pytest.mark.requirement("history.last", "history.listed", "history.dropped", "fetchBackupVersion.404", "version.count")
def test_the_last_4_of_today(new_user):
    """The clock and the deployment decide how many older versions are kept. These 4 are always kept."""
    client, blobs = new_user(), [f"version {number}".encode() for number in range(1, 8)]
    for number, blob in enumerate(blobs):
        base = sha256(blobs[number - 1]) if number else None
        assert client.store_backup(blob, base).json()["version"] == number + 1
    listed = [receipt["version"] for receipt in client.list_backup_versions().json()["versions"]]
    assert listed[:4] == [7, 6, 5, 4] and listed == sorted(listed, reverse=True)
    for version, blob in enumerate(blobs, start=1):
        answer = client.fetch_backup_version(version)
        if version in listed:
            assert base64.b64decode(answer.json()["data"]) == blob
        else:
            assert outcome(answer) == "404 no_such_version"
