"""A deployment's own numbers are those that count: lower ones and higher ones than the defaults, for each limit.

`test_limits.py`, `test_guessing.py` and `test_history.py` have the rules, mostly with the defaults. Here each limit is
met with two other numbers, by a user or an address that does nothing else.
"""

import itertools
from collections.abc import Callable
from secrets import token_hex
from typing import Any

import pytest

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.process import BEHIND_A_PROXY, ServerProcess
from contract_tests.test_history import kept

FROZEN = 1_795_510_800
HOUR, DAY = 3600, 86_400
HEADER = BEHIND_A_PROXY["header"]
ADMIN_KEY = "an-admin-key-may-be-longer-than-the-72-bytes-that-some-hashes-read-and-all-of-it-counts"
HOME, OTHER = "192.0.2.1", "192.0.2.2"
LIMITED = "429 rate_limited"
NUMBERS = {
    "lower": {
        "BACKUPS_PER_HOUR": 2,
        "BACKUPS_PER_DAY": 5,
        "KEY_CHANGES_PER_HOUR": 1,
        "KEY_CHANGES_PER_DAY": 2,
        "REGISTRATIONS_PER_HOUR": 4,
        "FAILED_CREDENTIALS_PER_5_MINUTES": 7,
        "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": 6,
    },
    "higher": {
        "BACKUPS_PER_HOUR": 9,
        "BACKUPS_PER_DAY": 25,
        "KEY_CHANGES_PER_HOUR": 5,
        "KEY_CHANGES_PER_DAY": 8,
        "REGISTRATIONS_PER_HOUR": 23,
        "FAILED_CREDENTIALS_PER_5_MINUTES": 55,
        "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": 52,
    },
    "an hour as a day": {  # the two windows have the same number, so that the day alone limits after an hour
        "BACKUPS_PER_HOUR": 3,
        "BACKUPS_PER_DAY": 3,
        "KEY_CHANGES_PER_HOUR": 4,
        "KEY_CHANGES_PER_DAY": 4,
    },
}


@pytest.fixture(scope="module", params=NUMBERS)
def shared(request, start_shared_server) -> tuple[ServerProcess, dict[str, int]]:
    numbers = NUMBERS[request.param]
    settings = numbers | {"ADMIN_SECRET_KEY": ADMIN_KEY} | BEHIND_A_PROXY["settings"]
    return start_shared_server(frozen=FROZEN, **settings), numbers


@pytest.fixture
def server(shared) -> ServerProcess:
    return shared[0].some_weeks_later()


@pytest.fixture
def numbers(shared) -> dict[str, int]:
    return shared[1]


def client_at(server: ServerProcess, address: str, credentials: tuple[str, str] | None = None) -> BackupClient:
    client = server.client(credentials)
    client.session.headers[HEADER] = address
    return client


class Device:
    """A user who stores, or changes the key, as often as the server lets it."""

    def __init__(self, server: ServerProcess) -> None:
        self.server, self.user_id, self.key, self.base = server, token_hex(32), token_hex(32), None
        assert outcome(self.client.register_user()) == "201"

    @property
    def client(self) -> BackupClient:
        return client_at(self.server, HOME, (self.user_id, self.key))

    def store(self) -> Any:
        blob = token_hex(8).encode()
        answer = self.client.store_backup(blob, self.base)
        self.base = sha256(blob) if answer.status_code == 201 else self.base
        return answer

    def change(self) -> Any:
        key, blob = token_hex(32), token_hex(8).encode()
        answer = self.client.change_storage_key(key, blob, self.base)
        if answer.status_code == 200:
            self.key, self.base = key, sha256(blob)
        return answer


@pytest.mark.requirement("limits.settings", "limits.policy", "limits.remaining", "limits.retry-after")
@pytest.mark.parametrize(
    ("act", "setting", "names"),
    [
        pytest.param(
            Device.store,
            "BACKUPS_PER",
            ("hour", "day"),
            marks=pytest.mark.requirement("limits.hour", "limits.day", "storeBackup.429"),
            id="uploads",
        ),
        pytest.param(
            Device.change,
            "KEY_CHANGES_PER",
            ("key-hour", "key-day"),
            marks=pytest.mark.requirement("limits.key-hour", "limits.key-day", "changeStorageKey.429"),
            id="key changes",
        ),
    ],
)
def test_what_an_account_may_do(server, numbers, act, setting, names):
    """Do it as often as possible, again each hour, until the day is used up. Each answer tells what is left."""
    device, hour, day = Device(server), numbers[f"{setting}_HOUR"], numbers[f"{setting}_DAY"]
    policy = f'"{names[0]}";q={hour};w=3600, "{names[1]}";q={day};w=86400'
    done = hours = 0
    while done < day:
        in_this_hour = min(hour, day - done)
        for number in range(1, in_this_hour + 1):
            answer = act(device)
            assert answer.status_code in (200, 201), (hours, number, answer.text)
            wants = (f'"{names[0]}";r={hour - number};', f'"{names[1]}";r={day - done - number};')
            assert all(each in answer.headers["RateLimit"] for each in wants), answer.headers["RateLimit"]
            assert answer.headers["RateLimit-Policy"] == policy
        done += in_this_hour
        refused = act(device)
        wait = DAY - hours * HOUR if done == day else HOUR
        assert (outcome(refused), refused.headers["Retry-After"]) == (LIMITED, str(wait))
        assert refused.headers["RateLimit-Policy"] == policy
        server.move_clock(HOUR)
        hours += 1
    assert outcome(act(device)) == LIMITED
    server.move_clock(DAY - hours * HOUR)
    assert act(device).status_code in (200, 201)


def times_until_limited(call: Callable[[int], Any], wants: str) -> int:
    """Return how often a call gets this before it is limited."""
    for number in itertools.count():
        if (answer := outcome(call(number))) == LIMITED:
            return number
        assert answer == wants
    raise AssertionError


@pytest.mark.requirement(
    *("limits.settings", "address.registrations", "address.failures", "guessing.account", "guessing.pair"),
    *("guessing.unknown", "address.others"),
)
def test_what_an_address_may_do(server, numbers):
    registrations = numbers.get("REGISTRATIONS_PER_HOUR", 20)
    failures = numbers.get("FAILED_CREDENTIALS_PER_5_MINUTES", 30)
    of_account = numbers.get("FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY", 50)
    user = client_at(server, HOME)
    assert outcome(user.register_user()) == "201"
    wrong, known = "401 credentials_invalid", (user.credentials[0], "5e" * 32)

    def create(number: int) -> Any:
        return client_at(server, OTHER).register_user()

    assert times_until_limited(create, "201") == registrations
    server.move_clock(HOUR)
    assert times_until_limited(lambda _: client_at(server, OTHER).fetch_backup(), wrong) == failures
    assert times_until_limited(lambda _: client_at(server, HOME, known).fetch_backup(), wrong) == failures
    server.move_clock(DAY)
    for credentials in (known, (token_hex(32), "5e" * 32)):  # an account that exists, and one that does not
        for number in range(of_account - 1):
            answer = client_at(server, f"2001:db8:{number:x}::1", credentials).fetch_backup()
            assert outcome(answer) == wrong, number
        last = client_at(server, "2001:db8:ffff::1", credentials)
        assert [outcome(last.fetch_backup()) for _ in range(3)] == [wrong, wrong, LIMITED]
        for number in (0, 1):  # each has made one attempt, and has another one
            answers = [client_at(server, f"2001:db8:{number:x}::1", credentials).fetch_backup() for _ in range(2)]
            assert [outcome(answer) for answer in answers] == [wrong, LIMITED]


@pytest.mark.requirement("admin.whole", "admin.proof", "getAdminStats.200", "getAdminStats.401")
def test_a_long_admin_key(server):
    wrong = [ADMIN_KEY[:64], ADMIN_KEY[:72], ADMIN_KEY[:-1], ADMIN_KEY[:-1] + "x", ADMIN_KEY + "x", ADMIN_KEY.title()]
    answers = [outcome(server.client().get_admin_stats(key)) for key in [*wrong, ADMIN_KEY]]
    assert answers == ["401 admin_key_invalid"] * len(wrong) + ["200"]


# ---- Other numbers of versions than before -----------------------------------------------------------------

AFTERWARDS = ["4,3,2,2", "1,0,0,2", "2,2,1,0"]  # KEEP_VERSIONS, each after a restart


@pytest.mark.requirement(
    *("limits.settings", "history.dropped", "history.listed", "history.last", "history.days", "history.weeks"),
    "history.months",
)
def test_versions_are_kept_by_the_numbers_of_now(start_server):
    """With the first upload after the restart, all that the new numbers do not keep is dropped, and nothing else."""
    settings = {"BACKUPS_PER_HOUR": 1000, "BACKUPS_PER_DAY": 1000, "KEEP_VERSIONS": "9,9,9,9"}
    server = start_server(frozen=FROZEN, **settings)
    devices, history = [Device(server) for _ in AFTERWARDS], []

    def versions(device: Device) -> list[int]:
        return [each["version"] for each in device.client.list_backup_versions().json()["versions"]]

    for days in (0, 0, 1, 1, 2, 5, 1, 8, 1, 20, 1, 33, 1, 0, 1, 0):
        server.move_clock(days * DAY)
        history.append(int(server.now()))
        assert {outcome(device.store()) for device in devices} == {"201"}
    before = kept(history, (9, 9, 9, 9))
    for device, numbers in zip(devices, AFTERWARDS, strict=True):
        server.environ["KEEP_VERSIONS"] = numbers
        server.restart()
        assert versions(device) == before  # a listed version can be fetched until a later upload drops it
        assert outcome(device.store()) == "201"
        left = [each for each in kept([*history, int(server.now())], numbers_of(numbers)) if each in {*before, 17}]
        assert versions(device) == left, numbers
        assert all(backup_bytes(device.client.fetch_backup_version(number)) for number in left)
        for number in {*before} - {*left}:
            assert outcome(device.client.fetch_backup_version(number)) == "404 no_such_version"


def numbers_of(setting: str) -> tuple[int, int, int, int]:
    last, days, weeks, months = map(int, setting.split(","))
    return last, days, weeks, months
