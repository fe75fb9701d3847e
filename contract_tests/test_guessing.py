"""Guessing storage keys: what an account, an address, and the two together may get wrong (openapi.yaml, "Limits").

The servers of these tests take a client's address from their proxy, so that there can be as many as a test needs. Their
clocks move only if a test moves them, so each number is exact.
"""

import http.client
from secrets import token_hex
from urllib.parse import urlsplit

import pytest

from clients.python.backup_client import authorization, sign
from contract_tests.target.calls import at_once, outcome, sha256
from contract_tests.target.openapi import LIMITS, RESERVED, SPEC
from contract_tests.target.process import BEHIND_A_PROXY, ServerProcess

FROZEN = 1_795_510_800  # 2026-11-24T09:00:00Z
MINUTE, HOUR, DAY = 60, 3600, 86_400
HOME, WORK, THIEF, NEW = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"
PER_ADDRESS = SPEC["x-configurable-limits"]["FAILED_CREDENTIALS_PER_5_MINUTES"]
PER_ACCOUNT = SPEC["x-configurable-limits"]["FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY"]
KNOWN_DAYS, ATTEMPTS = LIMITS["knownAddressDays"], LIMITS["newAddressAttempts"]
MOST_KNOWN = LIMITS["knownAddresses"]  # how many addresses are known to an account at most
WRONG, LIMITED = "401 credentials_invalid", "429 rate_limited"


class Somebody:
    """Somebody who uses an account, with the right key or a wrong one, from any address."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.user_id, self.key = token_hex(32), token_hex(32)

    def client(self, address, key=None):
        client = self.server.client((self.user_id, key or self.key))
        client.session.headers.update({BEHIND_A_PROXY["header"]: address})
        return client

    def register(self, address=HOME):
        assert outcome(self.client(address).register_user()) == "201"
        return self

    def comes_in(self, address) -> str:
        return outcome(self.client(address).list_backup_versions())

    def guess(self, address, key="5e" * 32):
        return self.client(address, key).list_backup_versions()

    def guesses(self, address, times) -> list[str]:
        return [outcome(self.guess(address)) for _ in range(times)]

    def is_guessed_at(self, times=PER_ACCOUNT) -> None:
        """Strangers try keys, each from an address of their own, until the limit of the account is reached."""
        for number in range(times):
            assert outcome(self.guess(f"198.51.{number // 256}.{number % 256}")) == WRONG, number


@pytest.fixture(scope="module")
def shared(start_shared_server) -> ServerProcess:
    return start_shared_server(frozen=FROZEN, **BEHIND_A_PROXY["settings"])


@pytest.fixture
def server(shared) -> ServerProcess:
    return shared.some_weeks_later()


@pytest.fixture
def owner(server) -> Somebody:
    return Somebody(server).register()


# ---- Past the limit of an account --------------------------------------------------------------------------


@pytest.mark.requirement("guessing.account", "guessing.unknown", "guessing.retry-after")
@pytest.mark.parametrize("exists", [True, False])
def test_past_the_limit_of_an_account_each_address_has_two_attempts(server, exists):
    owner = Somebody(server)
    if exists:
        owner.register()
    owner.is_guessed_at(PER_ACCOUNT - 1)
    assert owner.guesses(NEW, 3) == [WRONG, WRONG, LIMITED]
    assert owner.guesses(WORK, 4) == [WRONG, WRONG, LIMITED, LIMITED]
    for call in (
        owner.client(WORK).fetch_backup,  # not even with the right key: it is not compared
        owner.client(WORK).register_user,
        owner.client(WORK).delete_user,
        lambda: owner.client(WORK).store_backup(b"a backup"),
    ):
        assert outcome(call()) == LIMITED
    assert Somebody(server).guesses(WORK, 3) == [WRONG] * 3  # another account is not affected


@pytest.mark.requirement("guessing.account")
def test_the_last_failure_before_the_limit(owner):
    """Below the limit of the account, an address that is not known has more than two attempts."""
    assert owner.guesses(NEW, 20) == [WRONG] * 20
    owner.is_guessed_at(PER_ACCOUNT - 21)
    assert owner.guesses(NEW, 2) == [WRONG, LIMITED]


# When strangers reach the account's limit, when the attempts are made, and how long to wait at 2000, all in seconds.
WAITS = {
    "until the account is below its limit": ([0], [100, 200], DAY - 2000),
    "until the older attempt leaves its window": ([1000], [0, 200], DAY - 2000),
    "fractions are rounded up": ([0.25], [100, 200], DAY - 1999),
}


@pytest.mark.requirement("guessing.retry-after", "guessing.account", "header.Retry-After")
@pytest.mark.parametrize(("strangers", "attempts", "wait"), WAITS.values(), ids=WAITS)
def test_retry_after_is_right_to_the_second(server, owner, strangers, attempts, wait):
    now = 0.0
    for at in sorted([*strangers, *attempts, 2000]):
        server.move_clock(at - now)
        now = at
        if at in strangers:
            owner.is_guessed_at()
        elif at in attempts:
            assert owner.guesses(NEW, 1) == [WRONG]
    refused = owner.guess(NEW)
    assert (outcome(refused), refused.headers["Retry-After"]) == (LIMITED, str(wait))
    server.move_clock(wait - 1)
    refused = owner.guess(NEW)
    assert (outcome(refused), refused.headers["Retry-After"]) == (LIMITED, "1")
    server.move_clock(1)
    assert owner.comes_in(NEW) == "200"


@pytest.mark.requirement("guessing.retry-after", "address.retry-after")
def test_retry_after_if_the_address_and_the_account_are_limited(server, owner):
    """Then it is the later of the two."""
    owner.is_guessed_at()
    server.move_clock(DAY - 100)
    assert owner.guesses(NEW, 2) == [WRONG] * 2
    assert {outcome(Somebody(server).guess(NEW)) for _ in range(PER_ADDRESS - 2)} == {WRONG}
    refused = owner.guess(NEW)
    assert (outcome(refused), refused.headers["Retry-After"]) == (LIMITED, "300")  # the account: 100 s
    server.move_clock(299)
    assert owner.guess(NEW).headers["Retry-After"] == "1"
    server.move_clock(1)
    assert owner.comes_in(NEW) == "200"


@pytest.mark.requirement("guessing.account", "guessing.network", "guessing.new-address", "guessing.known-address")
def test_1_050_wrong_keys_from_as_many_addresses_are_not_all_compared(server, owner):
    """They come from 100 networks. So 200 of them are compared, and the owner is not stopped."""
    url = urlsplit(server.base_url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    by = {"secret": server.secret, "keyid": server.keyid, "created": int(server.now())}
    compared = 0
    for number in range(1_050):
        proof = authorization(owner.user_id, f"{number:064x}")
        headers = sign(method="GET", path="/api/backup", body=b"", authorization=proof, **by)
        address = {BEHIND_A_PROXY["header"]: f"2001:db8:{number % 100:x}:{number:x}::1"}
        connection.request("GET", "/api/backup", headers={"Authorization": proof, **headers, **address})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (401, 429)
        compared += answer.status == 401
    connection.close()
    assert compared == 100 * ATTEMPTS
    assert owner.comes_in(HOME) == owner.comes_in(NEW) == "200"


@pytest.mark.requirement("guessing.account", "guessing.pair")
def test_no_more_by_asking_at_once(owner):
    owner.is_guessed_at()
    answers = at_once([lambda: owner.guess(NEW) for _ in range(12)])
    assert sorted(answers) == [WRONG] * ATTEMPTS + [LIMITED] * (12 - ATTEMPTS)
    answers = at_once([lambda: owner.guess(HOME) for _ in range(PER_ADDRESS + 10)])
    assert sorted(answers) == [WRONG] * PER_ADDRESS + [LIMITED] * 10


# ---- The owner ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("guessing.new-address", "guessing.known-address", "isolation.block")
def test_strangers_do_not_stop_the_owner(server, owner):
    """Neither at an address that is known, nor at a new one: on none of five days, and whatever the strangers try."""
    for day in range(5):
        owner.is_guessed_at(PER_ACCOUNT if day == 0 else 0)
        for number in range(40):
            stranger = f"203.0.113.{number}"
            assert set(owner.guesses(stranger, 2)) <= {WRONG, LIMITED}
            assert outcome(owner.client(stranger, "5e" * 32).register_user()) in (LIMITED, "409 username_taken")
            assert outcome(owner.client(stranger, "5e" * 32).delete_user()) in (LIMITED, WRONG)
        assert owner.comes_in(HOME) == owner.comes_in(f"192.0.2.{100 + day}") == "200"
        server.move_clock(DAY - 1)


@pytest.mark.requirement("guessing.known-address")
def test_a_known_address_tries_as_before(owner):
    owner.is_guessed_at()
    assert owner.comes_in(WORK) == "200"  # from now on it is known
    for address in (HOME, WORK):
        assert owner.guesses(address, 5) == [WRONG] * 5
        assert owner.comes_in(address) == "200"


@pytest.mark.requirement("guessing.known-address")
@pytest.mark.parametrize("call", ["register_user", "fetch_backup", "list_backup_versions"])
def test_an_address_is_known_for_30_days(server, owner, call):
    server.move_clock(DAY)
    assert outcome(getattr(owner.client(HOME), call)()) in ("200", "404 no_backup")
    server.move_clock(KNOWN_DAYS * DAY - 1)
    owner.is_guessed_at()
    assert owner.guesses(HOME, 3) == [WRONG] * 3
    server.move_clock(1)
    assert owner.guesses(HOME, 3) == [WRONG, WRONG, LIMITED]


@pytest.mark.requirement("guessing.known-address", "credentials.whole")
def test_a_wrong_key_makes_no_address_known(owner):
    assert owner.guesses(WORK, 3) == [WRONG] * 3
    assert outcome(owner.client(WORK, "5e" * 32).register_user()) == "409 username_taken"
    owner.is_guessed_at(PER_ACCOUNT - 4)
    assert owner.guesses(WORK, 1) == [LIMITED]


@pytest.mark.requirement("guessing.neighbour", "address.failures")
def test_wrong_keys_of_others_at_the_same_address(server, owner):
    """31 wrong keys from one address, for others, for nobody or malformed, do not stop an owner who is known there."""
    other = Somebody(server).register(WORK)
    malformed = owner.client(HOME)
    malformed._auth._authorization = "Basic !"
    for _ in range(PER_ADDRESS // 3):
        assert outcome(other.guess(HOME)) == WRONG
        assert outcome(Somebody(server).guess(HOME)) == WRONG
        assert outcome(malformed.list_backup_versions()) == WRONG
    assert outcome(other.guess(HOME)) == LIMITED
    assert outcome(malformed.list_backup_versions()) == LIMITED
    assert other.comes_in(HOME) == LIMITED  # the address is not known to this account
    assert owner.comes_in(HOME) == "200"
    assert owner.guesses(HOME, 3) == [WRONG] * 3


@pytest.mark.requirement("guessing.pair", "guessing.retry-after")
def test_a_known_address_and_its_account_have_a_limit_of_their_own(server, owner):
    assert owner.guesses(HOME, 1) == [WRONG]
    server.move_clock(10)
    assert owner.guesses(HOME, PER_ADDRESS - 1) == [WRONG] * (PER_ADDRESS - 1)
    refused = owner.guess(HOME)
    assert (outcome(refused), refused.headers["Retry-After"]) == (LIMITED, "290")
    assert owner.comes_in(HOME) == LIMITED  # before the credentials are compared
    # These failures do not count for the address.
    other = Somebody(server)
    assert other.guesses(HOME, PER_ADDRESS + 1) == [WRONG] * PER_ADDRESS + [LIMITED]
    server.move_clock(289)
    assert owner.guess(HOME).headers["Retry-After"] == "1"
    server.move_clock(1)
    assert owner.comes_in(HOME) == "200"


@pytest.mark.requirement("guessing.pair", "guessing.account")
def test_failures_from_a_known_address_count_for_the_account(server, owner):
    for times in (PER_ADDRESS, PER_ACCOUNT - PER_ADDRESS):
        assert owner.guesses(HOME, times) == [WRONG] * times
        server.move_clock(5 * MINUTE)
    assert owner.guesses(NEW, 3) == [WRONG, WRONG, LIMITED]


@pytest.mark.requirement("guessing.bound", "guessing.known-address")
def test_32_addresses_are_known_to_an_account(server, owner):
    other = Somebody(server).register(HOME)
    addresses = [HOME, *(f"203.0.113.{number}" for number in range(1, MOST_KNOWN))]
    for address in addresses:
        assert owner.comes_in(address) == "200"
    assert owner.comes_in(HOME) == "200"  # so the second one was not used for the longest time now
    owner.is_guessed_at()
    assert owner.guesses(addresses[1], 3) == [WRONG] * 3  # all 32 are known
    assert owner.comes_in(NEW) == "200"  # the 33rd
    assert owner.guesses(addresses[1], 3) == [WRONG, WRONG, LIMITED]
    for address in (HOME, addresses[2], addresses[-1], NEW):
        assert owner.guesses(address, 3) == [WRONG] * 3, address
    other.is_guessed_at()
    assert other.guesses(HOME, 3) == [WRONG] * 3  # another account has 32 of its own


# ---- What makes addresses unknown --------------------------------------------------------------------------


@pytest.mark.requirement("guessing.key-change")
def test_after_a_key_change_only_the_address_that_made_it_is_known(owner):
    old_key, owner.key = owner.key, token_hex(32)
    for address in (THIEF, WORK):
        assert outcome(owner.client(address, old_key).list_backup_versions()) == "200"
    assert outcome(owner.client(HOME, old_key).change_storage_key(owner.key, b"a backup")) == "200"
    owner.is_guessed_at()
    for address in (THIEF, WORK):
        answers = [outcome(owner.client(address, old_key).list_backup_versions()) for _ in range(3)]
        assert answers == [WRONG, WRONG, LIMITED], address
    assert owner.guesses(HOME, 3) == [WRONG] * 3
    assert owner.comes_in(HOME) == "200"


@pytest.mark.requirement("guessing.key-change", "problem.unchanged")
def test_a_refused_key_change_makes_nothing_unknown(server, owner):
    assert owner.comes_in(WORK) == "200"
    refused = owner.client(HOME).change_storage_key(token_hex(32), b"a backup", sha256(b"another"))
    assert outcome(refused) == "409 version_conflict"
    server.fault = "storage_full"
    refused = owner.client(HOME).change_storage_key(token_hex(32), b"a backup")
    server.fault = None
    assert outcome(refused) == "507 storage_full"
    owner.is_guessed_at()
    assert owner.guesses(WORK, 3) == [WRONG] * 3


@pytest.mark.requirement("guessing.key-change", "delete.fresh")
def test_after_a_deletion_no_address_is_known(server, owner):
    assert outcome(owner.client(HOME).delete_user()) == "204"
    server.move_clock(RESERVED)
    owner.register(WORK)
    owner.is_guessed_at()
    assert owner.guesses(HOME, 3) == [WRONG, WRONG, LIMITED]
    assert owner.guesses(WORK, 3) == [WRONG] * 3


@pytest.mark.requirement("limits.fresh", "guessing.account", "guessing.unknown")
def test_a_deletion_gives_no_new_attempts(server, owner):
    owner.is_guessed_at()
    assert outcome(owner.client(HOME).delete_user()) == "204"
    assert owner.guesses(THIEF, 3) == [WRONG, WRONG, LIMITED]
    server.move_clock(RESERVED)
    assert owner.guesses(THIEF, 1) == [LIMITED]
    owner.register()
    assert owner.guesses(THIEF, 1) == [LIMITED]
    assert owner.guesses(NEW, 3) == [WRONG, WRONG, LIMITED]
    server.move_clock(DAY - RESERVED)
    assert owner.guesses(THIEF, 3) == [WRONG] * 3


# ---- Networks ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("guessing.network")
def test_an_ipv6_address_counts_by_its_48_for_the_two_attempts(owner):
    owner.is_guessed_at()
    assert owner.guesses("2001:db8:1:1::1", 1) == [WRONG]
    assert owner.guesses("2001:db8:1:2::1", 2) == [WRONG, LIMITED]
    assert owner.guesses("2001:db8:1:ffff::1", 1) == [LIMITED]
    assert owner.guesses("2001:db8:2:1::1", 3) == [WRONG, WRONG, LIMITED]
    assert owner.comes_in("2001:db8:3:1::1") == "200"


@pytest.mark.requirement("guessing.network", "guessing.known-address")
def test_an_ipv6_address_is_known_by_its_64(owner):
    assert owner.comes_in("2001:db8:1:1::1") == "200"
    owner.is_guessed_at()
    assert owner.guesses("2001:db8:1:1::2", 3) == [WRONG] * 3
    assert owner.guesses("2001:db8:1:2::1", 3) == [WRONG, WRONG, LIMITED]
