"""The limits of an account, as exact sliding windows (openapi.yaml, "Limits").

New versions: 5 an hour and 20 a day. Key changes: 3 an hour and 6 a day. The server's clock moves only if a test moves
it, so each number is exact. A history of uploads is a list of the seconds at which they were made.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from secrets import token_hex

import pytest
import requests

from contract_tests.target.calls import outcome, sha256
from contract_tests.target.openapi import RESERVED
from contract_tests.target.process import ServerProcess

FROZEN = 1_795_510_800  # 2026-11-24T09:00:00Z, the start of an hour
HOUR, DAY = 3600, 86_400
MIDNIGHT = 15 * HOUR  # after the test began
POLICIES = {  # by the method of the operation
    "POST": '"hour";q=5;w=3600, "day";q=20;w=86400',
    "PUT": '"key-hour";q=3;w=3600, "key-day";q=6;w=86400',
}


class Device:
    """A user with one device, which always knows the base. `at` is the time in seconds after the test began."""

    def __init__(self, server: ServerProcess) -> None:
        self.server, self.begin = server, server.now()
        self.credentials = token_hex(32), token_hex(32)
        self.base: str | None = None
        self.made = 0
        assert self.client.register_user().status_code == 201

    @property
    def client(self):
        return self.server.client(self.credentials)

    def upload(self, at: float) -> requests.Response:
        """Try to store a new version at this time."""
        self.server.move_clock(self.begin + at - self.server.now())
        self.made += 1
        blob = f"backup {self.made}".encode()
        response = self.client.store_backup(blob, self.base)
        if response.status_code == 201:
            self.base = sha256(blob)
        return response

    def uploads(self, times: Iterable[float]) -> None:
        for at in times:
            assert self.upload(at).status_code == 201, at

    def change_key(self, at: float | None = None) -> requests.Response:
        """Try to change the key, with a new version, at this time or now."""
        if at is not None:
            self.server.move_clock(self.begin + at - self.server.now())
        user_id, new_key = self.credentials[0], token_hex(32)
        response = self.client.change_storage_key(new_key, new_key.encode(), self.base)
        if response.status_code == 200:
            self.credentials, self.base = (user_id, new_key), sha256(new_key.encode())
        return response


@pytest.fixture(scope="module")
def shared(start_shared_server) -> ServerProcess:
    return start_shared_server(frozen=FROZEN)


@pytest.fixture
def server(shared) -> ServerProcess:
    return shared.some_weeks_later()


@pytest.fixture
def device(server) -> Device:
    return Device(server)


def limits(response: requests.Response) -> tuple[int, str | None, str | None]:
    """Return the status, RateLimit and Retry-After of a response."""
    assert response.headers["RateLimit-Policy"] == POLICIES[response.request.method]
    return response.status_code, response.headers.get("RateLimit"), response.headers.get("Retry-After")


# ---- The two windows ---------------------------------------------------------------------------------------


@pytest.mark.requirement(
    "limits.hour",
    "limits.sliding",
    "limits.remaining",
    "limits.policy",
    "limits.retry-after",
    "storeBackup.429",
    "header.RateLimit",
    "header.RateLimit-Policy",
    "header.Retry-After",
)
def test_5_an_hour(device):
    assert limits(device.upload(0)) == (201, '"hour";r=4;t=3600, "day";r=19;t=86400', None)
    assert limits(device.upload(10)) == (201, '"hour";r=3;t=3590, "day";r=18;t=86390', None)
    assert limits(device.upload(20)) == (201, '"hour";r=2;t=3580, "day";r=17;t=86380', None)
    assert limits(device.upload(30)) == (201, '"hour";r=1;t=3570, "day";r=16;t=86370', None)
    assert limits(device.upload(40)) == (201, '"hour";r=0;t=3560, "day";r=15;t=86360', None)
    assert limits(device.upload(50)) == (429, '"hour";r=0;t=3550, "day";r=15;t=86350', "3550")
    assert limits(device.upload(3599)) == (429, '"hour";r=0;t=1, "day";r=15;t=82801', "1")
    assert limits(device.upload(3600)) == (201, '"hour";r=0;t=10, "day";r=14;t=82800', None)
    assert limits(device.upload(3609)) == (429, '"hour";r=0;t=1, "day";r=14;t=82791', "1")
    assert limits(device.upload(3610)) == (201, '"hour";r=0;t=10, "day";r=13;t=82790', None)
    assert limits(device.upload(7219)) == (201, '"hour";r=4;t=3600, "day";r=12;t=79181', None)


@pytest.mark.requirement("limits.day", "limits.sliding", "limits.remaining", "limits.retry-after", "storeBackup.429")
def test_20_a_day(device):
    device.uploads(hour * HOUR for hour in range(20))
    refused = (429, '"hour";r=5, "day";r=0;t=14400', "14400")  # the last hour has no upload
    assert limits(device.upload(20 * HOUR)) == refused
    assert limits(device.upload(DAY - 1)) == (429, '"hour";r=5, "day";r=0;t=1', "1")
    assert limits(device.upload(DAY)) == (201, '"hour";r=4;t=3600, "day";r=0;t=3600', None)
    assert limits(device.upload(DAY + 1)) == (429, '"hour";r=4;t=3599, "day";r=0;t=3599', "3599")
    assert limits(device.upload(DAY + HOUR)) == (201, '"hour";r=4;t=3600, "day";r=0;t=3600', None)


# The times of uploads that are all accepted, the time of one more that is refused, and its Retry-After.
REFUSED = {
    "the hour": ([0, 1, 2, 3, 4], 5, 3595),
    "the day": ([hour * HOUR for hour in range(20)], 23 * HOUR, HOUR),
    "both, the hour is longer": (
        [hour * HOUR for hour in range(15)] + [DAY - 60 + n for n in range(5)],
        DAY - 30,
        3570,
    ),
    "both, the day is longer": (
        [hour * HOUR + 1 for hour in range(15)] + [15 * HOUR + n for n in range(5)],
        15 * HOUR + 9,
        8 * HOUR + 3592,
    ),
    "round midnight": ([MIDNIGHT - 2, MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + 1, MIDNIGHT + 2], MIDNIGHT + 3, 3595),
    "fractions are rounded up": ([0.9, 1, 2, 3, 4], 5.3, 3596),
    "a millisecond": ([0, 1, 2, 3, 4], 3599.999, 1),
}


@pytest.mark.requirement("limits.retry-after", "storeBackup.429", "header.Retry-After")
@pytest.mark.parametrize(("accepted", "at", "retry_after"), REFUSED.values(), ids=REFUSED)
def test_retry_after_is_right_to_the_second(device, accepted, at, retry_after):
    device.uploads(accepted)
    refused = device.upload(at)
    assert outcome(refused) == "429 rate_limited"
    assert refused.headers["Retry-After"] == str(retry_after)
    early = device.upload(at + retry_after - 1)
    assert (early.status_code, early.headers["Retry-After"]) == (429, "1")
    assert device.upload(at + retry_after).status_code == 201


@pytest.mark.requirement("limits.sliding", "limits.hour")
@pytest.mark.parametrize("boundary", [HOUR, MIDNIGHT, DAY])
def test_no_double_burst_round_a_boundary(device, boundary):
    device.uploads([boundary - 1] * 5)
    assert {device.upload(boundary + seconds).status_code for seconds in (0, 1, HOUR - 2)} == {429}
    device.uploads([boundary + HOUR - 1] * 5)


@pytest.mark.requirement("limits.sliding")
def test_exactly_an_hour_old_no_longer_counts_a_millisecond_less_does(device):
    device.uploads([0.5] * 5)
    assert device.upload(HOUR + 0.499).status_code == 429
    assert device.upload(HOUR + 0.5).status_code == 201


@pytest.mark.requirement("limits.remaining")
def test_t_is_rounded_up(device):
    device.uploads([0.9])
    assert limits(device.upload(5.3)) == (201, '"hour";r=3;t=3596, "day";r=18;t=86396', None)


# ---- What counts -------------------------------------------------------------------------------------------


@pytest.mark.requirement("limits.free", "retry.first", "retry.receipt", "storeBackup.200")
def test_a_retry_does_not_count_and_is_answered_past_the_limit(device):
    device.uploads([0])
    for _ in range(30):
        retry = device.client.store_backup(b"backup 1", device.base)
        assert limits(retry) == (200, '"hour";r=4;t=3600, "day";r=19;t=86400', None)
    device.uploads([1, 2, 3, 4])
    retry = device.client.store_backup(b"backup 5")  # a retry may have any base
    assert limits(retry) == (200, '"hour";r=0;t=3596, "day";r=15;t=86396', None)
    device.server.move_clock(HOUR)
    retry = device.client.store_backup(b"backup 5")
    assert limits(retry) == (200, '"hour";r=5, "day";r=15;t=82796', None)
    device.server.move_clock(DAY)
    assert limits(device.client.store_backup(b"backup 5")) == (200, '"hour";r=5, "day";r=20', None)


@pytest.mark.requirement("limits.free")
def test_refused_uploads_do_not_count(device):
    device.uploads([0])
    client = device.client
    for _ in range(10):
        assert client.store_backup(b"stale", "0" * 64).status_code == 409
        assert client.change_storage_key("ab" * 32, b"stale", "0" * 64).status_code == 409
        assert client.change_storage_key(device.credentials[1], b"the key in force", device.base).status_code == 422
        assert client.request("POST", "/api/backup", body={"data": "!"}).status_code == 422
        assert client.request("POST", "/api/backup", body=b"{}").status_code == 415
    device.uploads([1, 2, 3, 4])
    for at in range(5, 25):
        assert device.upload(at).status_code == 429  # an upload that the limit refused does not count either
    assert device.upload(HOUR).status_code == 201


@pytest.mark.requirement("order.answers", "base.conflict")
def test_a_stale_base_is_told_before_the_limit(device):
    device.uploads([0] * 5)
    assert device.client.store_backup(b"stale", "0" * 64).status_code == 409


# ---- Changes of the key ------------------------------------------------------------------------------------


@pytest.mark.requirement(
    "limits.key-hour",
    "limits.sliding",
    "limits.remaining",
    "limits.policy",
    "limits.retry-after",
    "changeStorageKey.429",
    "key.both",
    "header.RateLimit",
    "header.RateLimit-Policy",
)
def test_3_key_changes_an_hour(device):
    assert limits(device.change_key(0)) == (200, '"key-hour";r=2;t=3600, "key-day";r=5;t=86400', None)
    assert limits(device.change_key(10)) == (200, '"key-hour";r=1;t=3590, "key-day";r=4;t=86390', None)
    assert limits(device.change_key(20)) == (200, '"key-hour";r=0;t=3580, "key-day";r=3;t=86380', None)
    assert limits(device.change_key(30)) == (429, '"key-hour";r=0;t=3570, "key-day";r=3;t=86370', "3570")
    assert device.client.list_backup_versions().json()["versions"][0]["keyVersion"] == 4  # nothing has changed
    assert limits(device.change_key(3599)) == (429, '"key-hour";r=0;t=1, "key-day";r=3;t=82801', "1")
    assert limits(device.change_key(3600)) == (200, '"key-hour";r=0;t=10, "key-day";r=2;t=82800', None)
    assert limits(device.change_key(3601)) == (429, '"key-hour";r=0;t=9, "key-day";r=2;t=82799', "9")


@pytest.mark.requirement("limits.key-day", "limits.sliding", "limits.remaining", "limits.retry-after")
def test_6_key_changes_a_day(device):
    for hour in range(6):
        assert device.change_key(hour * HOUR).status_code == 200
    assert limits(device.change_key(6 * HOUR)) == (429, '"key-hour";r=3, "key-day";r=0;t=64800', "64800")
    assert limits(device.change_key(DAY - 1)) == (429, '"key-hour";r=3, "key-day";r=0;t=1', "1")
    assert limits(device.change_key(DAY)) == (200, '"key-hour";r=2;t=3600, "key-day";r=0;t=3600', None)
    assert limits(device.change_key(DAY + 1)) == (429, '"key-hour";r=2;t=3599, "key-day";r=0;t=3599', "3599")


@pytest.mark.requirement("limits.key-own", "limits.hour", "limits.policy", "key.emergency")
def test_uploads_do_not_stop_a_change_of_the_key(device):
    """A thief may upload as often as an account may. The owner still changes the password at once."""
    device.uploads([0] * 5)
    assert device.upload(1).status_code == 429
    assert limits(device.change_key(1)) == (200, '"key-hour";r=2;t=3600, "key-day";r=5;t=86400', None)
    device.uploads(hour * HOUR for hour in range(2, 17))
    assert device.upload(17 * HOUR).status_code == 429  # 20 a day
    assert limits(device.change_key(17 * HOUR)) == (200, '"key-hour";r=2;t=3600, "key-day";r=4;t=25201', None)


@pytest.mark.requirement("limits.key-own", "limits.key-hour", "limits.policy")
def test_changes_of_the_key_do_not_stop_uploads(device):
    for at in range(3):
        assert device.change_key(at).status_code == 200
    assert device.change_key(3).status_code == 429
    assert limits(device.upload(3)) == (201, '"hour";r=4;t=3600, "day";r=19;t=86400', None)
    device.uploads([4, 5, 6, 7])
    assert limits(device.upload(8)) == (429, '"hour";r=0;t=3595, "day";r=15;t=86395', "3595")
    assert limits(device.change_key(8)) == (429, '"key-hour";r=0;t=3592, "key-day";r=3;t=86392', "3592")


@pytest.mark.requirement("limits.free", "limits.key-hour", "limits.key-own")
def test_refused_changes_of_the_key_do_not_count(device):
    device.uploads([0])
    for number in range(10):
        stale = device.client.change_storage_key(f"{number:064x}", b"stale", "0" * 64)
        assert stale.status_code == 409
    for at in range(1, 4):
        assert device.change_key(at).status_code == 200
    for at in range(4, 14):
        assert device.change_key(at).status_code == 429
    assert device.change_key(HOUR + 1).status_code == 200


# ---- Accounts and clocks -----------------------------------------------------------------------------------


@pytest.mark.requirement("limits.account")
def test_each_account_has_its_own(device, server):
    device.uploads([0] * 5)
    assert device.upload(0).status_code == 429
    other = Device(server)
    other.uploads([0] * 5)
    assert [device.change_key(0).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert other.change_key(0).status_code == 200


@pytest.mark.requirement("limits.sliding")
def test_a_clock_that_ran_ahead_costs_nothing(device):
    device.uploads([10 * DAY + second for second in range(5)])
    assert device.upload(10 * DAY + 5).status_code == 429
    assert limits(device.upload(0)) == (201, '"hour";r=4;t=3600, "day";r=19;t=86400', None)
    device.uploads([1, 2, 3, 4])
    assert limits(device.upload(5)) == (429, '"hour";r=0;t=3595, "day";r=15;t=86395', "3595")
    assert device.upload(HOUR).status_code == 201


@pytest.mark.requirement("limits.sliding", "limits.retry-after")
def test_a_clock_that_ran_ahead_by_less_than_the_window(device):
    """Uploads dated in the future count again when their time comes. Retry-After includes them."""
    device.uploads([HOUR // 2 + second for second in range(5)])
    device.uploads([0, 1, 2, 3, 4])
    refused = device.upload(5)
    assert refused.status_code == 429
    assert device.upload(5 + int(refused.headers["Retry-After"]) - 1).status_code == 429
    assert device.upload(5 + int(refused.headers["Retry-After"])).status_code == 201


@pytest.mark.requirement("limits.sliding", "limits.hour", "limits.day", "limits.retry-after")
@pytest.mark.parametrize("begins", ["2026-11-01T05:30", "2026-03-08T06:30"])
def test_the_windows_when_the_clocks_change(start_server, begins):
    """In the zone of this server, the clocks are put back, or forward, half an hour later."""
    at = int(datetime.fromisoformat(begins).replace(tzinfo=UTC).timestamp())
    device = Device(start_server(frozen=at, TZ="EST5EDT,M3.2.0,M11.1.0"))
    device.uploads([0] * 5)
    assert limits(device.upload(1799)) == (429, '"hour";r=0;t=1801, "day";r=15;t=84601', "1801")
    assert limits(device.upload(1800)) == (429, '"hour";r=0;t=1800, "day";r=15;t=84600', "1800")
    assert limits(device.upload(HOUR - 1)) == (429, '"hour";r=0;t=1, "day";r=15;t=82801', "1")
    device.uploads([HOUR] * 5)
    device.uploads([2 * HOUR] * 5 + [3 * HOUR] * 5)
    assert limits(device.upload(DAY - 1)) == (429, '"hour";r=5, "day";r=0;t=1', "1")
    assert device.upload(DAY).status_code == 201


@pytest.mark.requirement("limits.sliding", "limits.hour", "limits.remaining")
def test_uploads_that_are_not_in_the_order_of_their_times(device):
    """The clock was put back twice. What counts at a moment is what the window holds, in whatever order it came."""
    device.uploads([100, 100, 50, 50])
    assert limits(device.upload(10)) == (201, '"hour";r=4;t=3600, "day";r=19;t=86400', None)
    assert limits(device.upload(60)) == (201, '"hour";r=1;t=3550, "day";r=16;t=86350', None)
    assert limits(device.upload(99)) == (201, '"hour";r=0;t=3511, "day";r=15;t=86311', None)
    assert limits(device.upload(100)) == (429, '"hour";r=0;t=3510, "day";r=13;t=86310', "3550")
    assert limits(device.upload(HOUR + 60)) == (201, '"hour";r=1;t=39, "day";r=12;t=82750', None)


@pytest.mark.requirement("limits.fresh", "limits.account", "delete.fresh")
def test_a_new_account_of_a_name_counts_from_zero(device):
    device.uploads([0] * 5)
    for _ in range(3):
        assert device.change_key(0).status_code == 200
    assert device.client.delete_user().status_code == 204
    device.server.move_clock(RESERVED)
    assert device.client.register_user().status_code == 201
    device.base = None
    assert limits(device.change_key()) == (200, '"key-hour";r=2;t=3600, "key-day";r=5;t=86400', None)
    assert limits(device.upload(RESERVED)) == (201, '"hour";r=4;t=3600, "day";r=19;t=86400', None)
    device.server.restart()
    device.uploads([RESERVED] * 4)
    assert device.upload(RESERVED).status_code == 429


# ---- A restart ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("durability.restart", "limits.hour", "limits.day", "limits.key-hour", "limits.key-own")
def test_the_windows_survive_a_restart(device, server):
    for _ in range(3):
        assert device.change_key(0).status_code == 200
    server.restart()
    assert limits(device.change_key(0)) == (429, '"key-hour";r=0;t=3600, "key-day";r=3;t=86400', "3600")
    device.uploads(hour * HOUR for hour in range(15))
    device.uploads([15 * HOUR] * 4)
    server.restart()
    assert limits(device.upload(15 * HOUR)) == (201, '"hour";r=0;t=3600, "day";r=0;t=32400', None)
    server.kill()
    server.start()
    assert limits(device.upload(15 * HOUR)) == (429, '"hour";r=0;t=3600, "day";r=0;t=32400', "32400")


@pytest.mark.requirement("limits.retry-after", "limits.policy")
def test_a_limit_lowered_by_the_operator(start_server):
    """Then Retry-After is the time until more than one upload has left the window."""
    server = start_server(frozen=FROZEN)
    device = Device(server)
    device.uploads([0, 10, 20, 30, 40])
    server.environ |= {"BACKUPS_PER_HOUR": "2"}
    server.restart()
    refused = device.upload(50)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, str(HOUR + 30 - 50))
    assert refused.headers["RateLimit"] == '"hour";r=0;t=3550, "day";r=15;t=86350'
    assert refused.headers["RateLimit-Policy"] == '"hour";q=2;w=3600, "day";q=20;w=86400'
    assert device.upload(HOUR + 29).status_code == 429
    assert device.upload(HOUR + 30).status_code == 201


@pytest.mark.requirement("limits.policy", "limits.key-hour", "limits.key-day", "limits.retry-after")
def test_limits_on_key_changes_set_by_the_operator(start_server):
    device = Device(start_server(frozen=FROZEN, KEY_CHANGES_PER_HOUR=1, KEY_CHANGES_PER_DAY=2))
    changes = [device.change_key(at) for at in (0, 1, HOUR, 2 * HOUR)]
    assert {change.headers["RateLimit-Policy"] for change in changes} == {
        '"key-hour";q=1;w=3600, "key-day";q=2;w=86400'
    }
    assert [(change.status_code, change.headers.get("Retry-After")) for change in changes] == [
        (200, None),
        (429, "3599"),
        (200, None),
        (429, "79200"),
    ]
    assert changes[3].headers["RateLimit"] == '"key-hour";r=1, "key-day";r=0;t=79200'
