"""Many share a volume, and nobody takes it from the others: see openapi.yaml, "Space".

The volume is as large as the test says. A file without content, beside the database, fills a part of it.
"""

import os

import pytest

from contract_tests.target.calls import eventually, outcome, sha256
from contract_tests.target.openapi import MAX_DECODED_BYTES, SPEC
from contract_tests.target.process import ServerProcess

FROZEN = 1_795_510_800
DAY = 86_400
GB = 1_000_000_000
MANY = {"BACKUPS_PER_HOUR": 1000, "BACKUPS_PER_DAY": 1000, "REGISTRATIONS_PER_HOUR": 1000}
ESTABLISHED = 7  # days


class Account:
    """An account that remembers what it has stored."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = server.client()
        self.base: str | None = None

    def register(self) -> "Account":
        assert outcome(self.client.register_user()) == "201"
        return self

    def store(self, size: int) -> str:
        blob = os.urandom(size)
        answer = self.client.store_backup(blob, self.base)
        if answer.status_code == 201:
            self.base = sha256(blob)
        return outcome(answer)

    def versions(self) -> list[int]:
        """Return the numbers of the kept versions, newest first."""
        return [each["version"] for each in self.client.list_backup_versions().json()["versions"]]

    def bytes(self) -> int:
        return sum(each["size"] for each in self.client.list_backup_versions().json()["versions"])


def established(server: ServerProcess, size: int) -> Account:
    """Return an account that has stored so many bytes on each of 7 days."""
    account = Account(server).register()
    for _ in range(ESTABLISHED):
        assert account.store(size) == "201"
        server.move_clock(DAY)
    return account


def fill(server: ServerProcess, free: int) -> None:
    """Fill the volume until so many bytes are free."""
    filler = server.directory / "filler"
    filler.unlink(missing_ok=True)
    with open(filler, "wb") as file:
        file.truncate(max(0, free_bytes(server) - free))


def free_bytes(server: ServerProcess) -> int:
    return server.client().get_admin_stats(server.admin_key).json()["freeBytes"]


# ---- The quota of an account ---------------------------------------------------------------------------------------


@pytest.mark.requirement("space.account")
def test_an_account_has_a_quota(start_server):
    server = start_server(frozen=FROZEN, ACCOUNT_BYTES=30_000, **MANY)
    account = Account(server).register()
    for _ in range(3):
        assert account.store(10_000) == "201"
    assert account.versions() == [3, 2, 1]
    assert account.store(10_000) == "201"
    assert account.versions() == [4, 3, 2]
    assert account.store(10_001) == "201"
    assert account.versions() == [5, 4]
    assert account.store(29_000) == "201"
    assert account.versions() == [6, 5]  # the last two, even if they have more


@pytest.mark.requirement("space.account")
def test_junk_does_not_drive_out_what_was_there_before_today(start_server):
    server = start_server(frozen=FROZEN, ACCOUNT_BYTES=30_000, **MANY)
    account = Account(server).register()
    for day in range(3):
        assert account.store(9_000) == "201"
        server.move_clock(DAY)
        assert account.versions()[0] == day + 1
    for _ in range(12):
        assert account.store(20_000) == "201"
    assert account.versions() == [15, 14, 3]


@pytest.mark.requirement("space.account")
def test_the_default_quota(start_server):
    """Six of the largest backups fit, a seventh drives out the first."""
    assert SPEC["x-configurable-limits"]["ACCOUNT_BYTES"] // MAX_DECODED_BYTES == 6
    server = start_server(frozen=FROZEN, KEEP_VERSIONS="20,0,0,0", **MANY)
    account = Account(server).register()
    for _ in range(7):
        assert account.store(MAX_DECODED_BYTES) == "201"
    assert account.versions() == [7, 6, 5, 4, 3, 2]


# ---- New accounts --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("space.new", "storeBackup.507", "order.answers")
def test_new_accounts_share_a_third_of_the_volume(start_server):
    server = start_server(frozen=FROZEN, volume=120_000_000, **MANY)
    old = established(server, 3000)
    accounts = [Account(server).register() for _ in range(8)]
    outcomes = [account.store(MAX_DECODED_BYTES) for account in accounts]
    assert outcomes == ["201"] * 7 + ["507 storage_full"]
    assert accounts[0].store(MAX_DECODED_BYTES) == "507 storage_full"
    assert accounts[7].store(3000) == "201"  # there is room for a smaller one
    assert old.store(MAX_DECODED_BYTES) == "201"
    # What is deleted is room for others.
    assert outcome(accounts[0].client.delete_user()) == "204"
    assert accounts[7].store(MAX_DECODED_BYTES) == "201"


@pytest.mark.requirement("space.new")
def test_after_seven_days_an_account_is_no_longer_new(start_server):
    server = start_server(frozen=FROZEN, volume=120_000_000, **MANY)
    account = Account(server).register()
    others = [Account(server).register() for _ in range(7)]
    for _ in range(ESTABLISHED - 1):
        assert account.store(3000) == "201"
        assert account.store(3000) == "201"  # twice on a day is one day
        server.move_clock(DAY)
    for other in others:
        assert other.store(MAX_DECODED_BYTES) == "201"
    server.restart()
    for each in (account, *others):
        each.client.base_url = server.base_url
    assert eventually(lambda: others[0].store(MAX_DECODED_BYTES) == "507 storage_full")
    assert account.store(MAX_DECODED_BYTES) == "201"  # this is the seventh day


# ---- The other accounts --------------------------------------------------------------------------------------------


@pytest.mark.requirement("space.day", "storeBackup.507")
def test_the_other_accounts_grow_by_a_tenth_of_the_volume_a_day(start_server):
    server = start_server(frozen=FROZEN, volume=120_000_000, **MANY)
    accounts = [established(server, 50_000) for _ in range(4)]
    new = Account(server).register()
    assert [account.store(MAX_DECODED_BYTES) for account in accounts] == ["201", "201", "507 storage_full"] + (
        ["507 storage_full"]
    )
    before = accounts[2].bytes()
    for size in (1_400_000, 50_000, 60_000):
        assert accounts[2].store(size) == "201"
    assert accounts[3].store(1_000_000) == "507 storage_full"
    assert accounts[3].store(50_000) == "201" and accounts[3].bytes() <= before
    assert new.store(MAX_DECODED_BYTES) == "201"  # new accounts have a part of their own
    # What is deleted is room for others, and each day has its own.
    assert outcome(accounts[0].client.delete_user()) == "204"
    assert accounts[3].store(MAX_DECODED_BYTES) == "201"
    assert accounts[2].store(MAX_DECODED_BYTES) == "507 storage_full"
    server.move_clock(DAY)
    assert accounts[2].store(MAX_DECODED_BYTES) == "201"


# ---- A volume that is nearly full ----------------------------------------------------------------------------------


@pytest.mark.requirement("space.registrations", "registerUser.507")
def test_registrations_stop_first(start_server):
    server = start_server(frozen=FROZEN, volume=GB, **MANY)
    old, new = established(server, 3000), Account(server).register()
    fill(server, GB * 15 // 100 + 1_000_000)
    Account(server).register()
    fill(server, GB * 15 // 100 - 1_000_000)
    stranger = Account(server)
    assert outcome(stranger.client.register_user()) == "507 storage_full"
    assert [old.store(5000), new.store(5000)] == ["201", "201"]
    fill(server, GB // 2)
    stranger.register()


@pytest.mark.requirement("space.registrations", "space.new", "registerUser.507")
def test_registrations_stop_when_new_accounts_have_their_third(start_server):
    server = start_server(frozen=FROZEN, volume=75_000_000, **MANY)
    accounts, size = [Account(server).register() for _ in range(25)], MAX_DECODED_BYTES
    for account in accounts:
        while size and account.store(size) != "201":
            size //= 2
            server.move_clock(1)
    stranger = Account(server)
    assert outcome(stranger.client.register_user()) == "507 storage_full"
    assert outcome(accounts[0].client.delete_user()) == "204"
    stranger.register()


@pytest.mark.requirement("space.own", "storeBackup.507")
def test_an_account_makes_room_for_itself(start_server):
    server = start_server(frozen=FROZEN, volume=GB, **MANY)
    old, new = established(server, 50_000), Account(server).register()
    assert new.store(1000) == "201"
    fill(server, GB // 10 - 1_000_000)
    before = old.bytes()
    for size in (50_000, 60_000, 40_000):
        assert old.store(size) == "201"
        assert old.bytes() <= before
    assert old.store(before) == "507 storage_full"  # the version before has to stay, too
    assert new.store(1000) == "507 storage_full"
    assert Account.store(new, 1) == "507 storage_full"
    fill(server, GB // 2)
    server.move_clock(1)  # or the signature would be that of a refused upload
    assert [old.store(60_000), new.store(1000)] == ["201", "201"]


@pytest.mark.requirement("space.own")
def test_a_log_that_grows_is_stored_every_day(start_server):
    """An account that drops two versions for a slightly larger one may have the rest of their room later."""
    server = start_server(frozen=FROZEN, volume=GB, **MANY)
    old = established(server, 50_000)
    fill(server, GB // 10 - 20_000_000)
    before = old.bytes()
    for day in range(30):
        assert old.store(50_500 + 500 * day) == "201"
        assert old.bytes() <= before
        server.move_clock(DAY)
    assert len(old.versions()) >= before // 65_000


@pytest.mark.requirement("space.own")
def test_what_an_account_gave_up_is_not_free_for_others(start_server):
    server = start_server(frozen=FROZEN, volume=GB, **MANY)
    old = established(server, 1_000_000)
    fill(server, GB // 10 - 5_000_000)
    before, free = old.bytes(), free_bytes(server)
    assert old.store(100_000) == "201"
    assert old.bytes() < before - 500_000
    assert not eventually(lambda: free_bytes(server) > free + 200_000, 2)


@pytest.mark.requirement("space.own")
def test_what_an_account_gave_up_is_reserved_only_until_it_may_grow_again(start_server):
    server = start_server(frozen=FROZEN, volume=GB, KEEP_VERSIONS="2,0,0,0", **MANY)
    old = established(server, 50_000)
    fill(server, GB // 10 - 20_000_000)
    assert old.store(40_000) == "201"
    assert old.store(50_000) == "201"  # it has given up 10,000 bytes, and now it has less again
    fill(server, GB // 2)
    assert [old.store(1000), old.store(1000)] == ["201", "201"]  # these are all that it keeps
    fill(server, GB // 10 - 20_000_000)
    assert old.store(50_000) == "507 storage_full"
    server.move_clock(1)  # or the signature would be that of a refused upload
    assert old.store(1000) == "201"


@pytest.mark.requirement("space.own", "changeStorageKey.507")
def test_a_key_change_makes_room_too(start_server):
    server = start_server(frozen=FROZEN, volume=GB, **MANY)
    old, new = established(server, 50_000), Account(server).register()
    assert new.store(1000) == "201"
    fill(server, GB // 10 - 1_000_000)
    before, key = old.bytes(), os.urandom(32).hex()
    assert outcome(old.client.change_storage_key(key, os.urandom(50_000), old.base)) == "200"
    changed = server.client((old.client.credentials[0], key))
    assert sum(each["size"] for each in changed.list_backup_versions().json()["versions"]) <= before
    assert outcome(new.client.change_storage_key(key, os.urandom(1000), new.base)) == "507 storage_full"


@pytest.mark.requirement("space.always")
def test_a_full_volume_is_read_and_deleted_from(start_server):
    server = start_server(frozen=FROZEN, volume=GB, **MANY)
    old, new = established(server, 50_000), Account(server).register()
    assert new.store(200_000) == "201"
    fill(server, 0)
    assert old.store(1000) == "507 storage_full"
    assert outcome(old.client.fetch_backup()) == "200"
    assert outcome(old.client.fetch_backup_version(7)) == "200"
    before = free_bytes(server)
    assert outcome(new.client.delete_user()) == "204"
    assert outcome(new.client.fetch_backup()) == "401 credentials_invalid"
    assert eventually(lambda: free_bytes(server) > before + 150_000)
