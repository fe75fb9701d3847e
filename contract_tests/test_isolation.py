"""A stranger who knows a username and the app's secret can do nothing. The limits per address stop only the stranger.

See openapi.yaml, "Two proofs" and "Limits". If addresses matter, the stranger sends from 127.0.0.2 and the user from
127.0.0.1, to a server of the test's own.
"""

import base64
import itertools
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex

import pytest

from clients.python.backup_client import authorization
from contract_tests.target.calls import FromAddress, outcome, sha256
from contract_tests.target.openapi import RESERVED

FROZEN = 1_795_510_800
STRANGER = "127.0.0.2"


def client_at(server, address, credentials=None, **options):
    client = server.client(credentials, **options)
    client.session.mount("http://", FromAddress(address))
    return client


@pytest.fixture(scope="module")
def shared(start_shared_server):
    """A server with the contract's limits and a clock that only the test moves."""
    return start_shared_server(frozen=FROZEN)


@pytest.fixture
def server(shared):
    return shared.some_weeks_later()


def with_two_versions(user):
    """Register the user and store two versions. Return the user."""
    assert user.register_user().status_code == 201
    first = user.store_backup(b"first").json()
    assert user.store_backup(b"second", first["sha256"]).status_code == 201
    return user


@pytest.fixture
def user(server):
    """A user with two versions, on that server."""
    return with_two_versions(server.client())


def fail(client) -> None:
    assert outcome(client.list_backup_versions()) == "401 credentials_invalid"


# ---- A stranger --------------------------------------------------------------------------------------------


def of_like_hash(key: str, part: slice) -> str:
    """Return another key. Its SHA-256 has the same four digits in this place."""
    digits = sha256(key.encode())[part]
    keys = (f"{number:064x}" for number in itertools.count())
    return next(key for key in keys if sha256(key.encode())[part] == digits)


GUESSES = {
    "the key of the stranger's own account": lambda user_id, key, own: (user_id, own[1]),
    "the user's own hash": lambda user_id, key, own: (user_id, sha256(key.encode())),
    "the hash of the key's bytes": lambda user_id, key, own: (user_id, sha256(bytes.fromhex(key))),
    "the userId": lambda user_id, key, own: (user_id, user_id),
    "another first digit": lambda user_id, key, own: (user_id, f"{int(key[0], 16) ^ 1:x}" + key[1:]),
    "another last digit": lambda user_id, key, own: (user_id, key[:-1] + f"{int(key[-1], 16) ^ 1:x}"),
    "another of which the hash begins the same": lambda user_id, key, own: (user_id, of_like_hash(key, slice(4))),
    "another of which the hash ends the same": lambda user_id, key, own: (user_id, of_like_hash(key, slice(60, 64))),
    "the stranger's own account": lambda user_id, key, own: own,
}


@pytest.mark.requirement(
    "isolation.read", "isolation.write", "isolation.key", "isolation.delete", "credentials.whole", "registerUser.409"
)
@pytest.mark.parametrize("guess", GUESSES.values(), ids=GUESSES)
def test_a_stranger_can_do_nothing(target, new_user, guess):
    user = with_two_versions(target.client())
    stranger = new_user((token_hex(32), "5e" * 32))
    own = stranger.store_backup(b"the stranger's").json()
    before = user.fetch_backup().json(), user.list_backup_versions().json()

    credentials = guess(*user.credentials, stranger.credentials)
    stranger = target.client(credentials)
    if credentials[0] == user.credentials[0]:
        assert outcome(stranger.register_user()) == "409 username_taken"
        for refused in (
            stranger.fetch_backup(),
            stranger.fetch_backup('"*"'),
            stranger.list_backup_versions(),
            stranger.fetch_backup_version(1),
            stranger.store_backup(b"second"),
            stranger.store_backup(b"overwritten", before[0]["sha256"]),
            stranger.change_storage_key("ab" * 32, b"changed", before[0]["sha256"]),
            stranger.change_storage_key(credentials[1], b"changed", before[0]["sha256"]),
            stranger.delete_user(),
        ):
            assert outcome(refused) == "401 credentials_invalid"
            assert "RateLimit" not in refused.headers
    else:
        assert [version["sha256"] for version in stranger.list_backup_versions().json()["versions"]] == [own["sha256"]]
        assert outcome(stranger.fetch_backup_version(2)) == "404 no_such_version"
        assert outcome(stranger.store_backup(b"overwritten", before[0]["sha256"])) == "409 version_conflict"
        assert stranger.delete_user().status_code == 204

    assert (user.fetch_backup().json(), user.list_backup_versions().json()) == before
    for version, blob in ((1, b"first"), (2, b"second")):
        assert base64.b64decode(user.fetch_backup_version(version).json()["data"]) == blob


@pytest.mark.requirement("isolation.block", "limits.account", "address.others")
def test_a_stranger_at_another_address_cannot_block_a_user(server, user):
    stranger = client_at(server, STRANGER, (user.credentials[0], "5e" * 32))
    answers = [stranger.store_backup(b"junk") for _ in range(20)]
    answers += [stranger.register_user() for _ in range(20)]
    answers += [stranger.delete_user() for _ in range(20)]
    assert {answer.status_code for answer in answers} == {401, 409, 429}
    assert user.fetch_backup().status_code == 200
    stored = user.store_backup(b"third", user.fetch_backup().json()["sha256"])
    assert stored.status_code == 201
    assert stored.headers["RateLimit"] == '"hour";r=2;t=3600, "day";r=17;t=86400'  # only the user's own three
    assert user.delete_user().status_code == 204


# ---- Failed credentials: 30 in 5 minutes from one address --------------------------------------------------


POLICIES = {"store": '"hour";q=5;w=3600, "day";q=20;w=86400', "change": '"key-hour";q=3;w=3600, "key-day";q=6;w=86400'}


@pytest.mark.requirement(
    "address.failures", "address.retry-after", "address.others", "limits.policy", "*.429", "header.Retry-After"
)
def test_30_failures_in_5_minutes_then_nobody_at_that_address(server, user):
    stranger = client_at(server, STRANGER)

    def neighbour():
        """A user with the right credentials, who has not used the stranger's address before."""
        home = server.client()
        assert home.register_user().status_code == 201
        return client_at(server, STRANGER, home.credentials)

    fail(stranger)
    server.move_clock(10)
    for _ in range(28):
        fail(stranger)
    assert neighbour().list_backup_versions().status_code == 200  # a success does not count
    fail(stranger)

    latest = user.fetch_backup().json()["sha256"]
    for client in (stranger, client_at(server, STRANGER, user.credentials)):
        answers = {
            "register": client.register_user(),
            "fetch": client.fetch_backup(),
            "list": client.list_backup_versions(),
            "one": client.fetch_backup_version(1),
            "store": client.store_backup(b"third", latest),
            "change": client.change_storage_key("ab" * 32, b"third", latest),
            "delete": client.delete_user(),
        }
        for name, answer in answers.items():
            assert (outcome(answer), answer.headers["Retry-After"]) == ("429 rate_limited", "290"), name
            assert answer.headers.get("RateLimit-Policy") == POLICIES.get(name), name
            assert "RateLimit" not in answer.headers
    assert user.fetch_backup().status_code == 200  # another address is not affected

    server.move_clock(289)
    answer = neighbour().list_backup_versions()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    server.move_clock(1)
    assert neighbour().list_backup_versions().status_code == 200
    fail(stranger)  # one failure has left the window, so the server compares one more, and not a second one
    answer = neighbour().list_backup_versions()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "10")
    server.move_clock(10)
    for _ in range(29):
        fail(client_at(server, STRANGER))  # another name each time, because a name has a limit of its own
    assert outcome(neighbour().list_backup_versions()) == "429 rate_limited"


@pytest.mark.requirement("address.failures")
def test_no_double_burst_round_the_end_of_5_minutes(server):
    stranger = client_at(server, STRANGER)
    server.move_clock(299 - FROZEN % 300)  # a counter of fixed windows would start again here
    for _ in range(30):
        fail(stranger)
    server.move_clock(2)
    assert outcome(stranger.list_backup_versions()) == "429 rate_limited"


FAILURES = {
    "an unknown user": (401, lambda client: client.list_backup_versions()),
    "a wrong key": (401, lambda client: client.delete_user()),
    "a username taken": (409, lambda client: client.register_user()),
}


@pytest.mark.requirement("address.failures")
@pytest.mark.parametrize(("status", "failure"), FAILURES.values(), ids=FAILURES)
def test_each_failure_counts(server, user, status, failure):
    stranger = client_at(server, STRANGER, (user.credentials[0], "5e" * 32))
    assert [failure(stranger).status_code for _ in range(31)] == [status] * 30 + [429]


@pytest.mark.requirement("address.failures")
@pytest.mark.parametrize("value", ["Basic !", "Bearer " + "5e" * 32, "nothing", authorization("A" * 64, "5e" * 32)])
def test_malformed_credentials_count(server, value):
    stranger = client_at(server, STRANGER)
    stranger._auth._authorization = value
    assert [stranger.register_user().status_code for _ in range(31)] == [401] * 30 + [429]


@pytest.mark.requirement("address.failures", "isolation.block")
def test_what_is_refused_before_the_credentials_does_not_count(server, user):
    """Otherwise, anybody could block the people behind one address without knowing the app's secret."""
    without_secret = client_at(server, STRANGER, secret="not-the-secret-of-this-server")
    with_old_clock = client_at(server, STRANGER, clock=lambda: server.now() - 301)
    for client in (without_secret, with_old_clock):
        assert {client.list_backup_versions().status_code for _ in range(40)} == {401}
    neighbour = client_at(server, STRANGER, user.credentials)
    assert neighbour.list_backup_versions().status_code == 200


@pytest.mark.requirement("address.failures")
def test_a_clock_that_ran_ahead_blocks_nobody(server):
    server.move_clock(86400)
    stranger = client_at(server, STRANGER)
    for _ in range(30):
        fail(stranger)
    server.move_clock(-86400)
    fail(stranger)


# ---- Accounts created: 20 an hour from one address ---------------------------------------------------------


@pytest.mark.requirement("address.registrations", "address.retry-after", "address.others", "registerUser.429")
def test_20_accounts_created_in_an_hour_from_one_address(server, user):
    created = [client_at(server, STRANGER) for _ in range(20)]
    assert created[0].register_user().status_code == 201
    server.move_clock(600)
    assert {client.register_user().status_code for client in created[1:]} == {201}

    one_more = client_at(server, STRANGER)
    for _ in range(3):
        answer = one_more.register_user()
        assert (outcome(answer), answer.headers["Retry-After"]) == ("429 rate_limited", "3000")
    # A retry with the right key still works, and so does all that is no registration.
    assert created[0].register_user().status_code == 200
    assert created[0].store_backup(b"a backup").status_code == 201
    assert created[1].delete_user().status_code == 204
    taken, reserved = client_at(server, STRANGER, (user.credentials[0], "5e" * 32)), created[1]
    for client in (taken, reserved, one_more):  # a deletion does not give back a registration
        answer = client.register_user()
        assert (outcome(answer), answer.headers["Retry-After"]) == ("429 rate_limited", "3000")
    # Another address has its own limit.
    answer = client_at(server, "127.0.0.3", reserved.credentials).register_user()
    assert (outcome(answer), answer.headers["Retry-After"]) == ("409 recently_deleted", str(RESERVED))
    assert client_at(server, "127.0.0.3").register_user().status_code == 201

    server.move_clock(2999)
    answer = one_more.register_user()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    server.move_clock(1)
    assert one_more.register_user().status_code == 201
    assert outcome(client_at(server, STRANGER).register_user()) == "429 rate_limited"


@pytest.mark.requirement("address.registrations")
def test_registrations_refused_or_repeated_do_not_count(server, user):
    stranger = client_at(server, STRANGER)
    assert [stranger.register_user().status_code for _ in range(40)] == [201] + [200] * 39
    taken = client_at(server, STRANGER, (user.credentials[0], "5e" * 32))
    assert {taken.register_user().status_code for _ in range(29)} == {409}
    assert {client_at(server, STRANGER).register_user().status_code for _ in range(19)} == {201}
    assert client_at(server, STRANGER).register_user().status_code == 429


@pytest.mark.requirement("address.registrations", "registerUser.507")
def test_registrations_refused_for_space_do_not_count(server):
    server.fault = "storage_full"
    refused = [client_at(server, STRANGER).register_user() for _ in range(25)]
    assert {outcome(answer) for answer in refused} == {"507 storage_full"}
    server.fault = None
    assert {client_at(server, STRANGER).register_user().status_code for _ in range(20)} == {201}
    assert client_at(server, STRANGER).register_user().status_code == 429


@pytest.mark.requirement("address.registrations", "address.failures")
def test_no_more_by_asking_at_once(server):
    """Each failure counts once, even if requests race."""
    clients = [client_at(server, STRANGER) for _ in range(40)]
    with ThreadPoolExecutor(len(clients)) as pool:
        registered = list(pool.map(lambda client: client.register_user().status_code, clients))
        assert sorted(registered) == [201] * 20 + [429] * 20
        clients = [client_at(server, "127.0.0.3") for _ in range(40)]
        failed = list(pool.map(lambda client: client.list_backup_versions().status_code, clients))
        assert sorted(failed) == [401] * 30 + [429] * 10


# ---- Names that somebody tries to register -----------------------------------------------------------------


def all_of(answer) -> tuple:
    """Return everything that an answer tells, without what is different in each: its time and its id."""
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in ("Date", "X-Request-Id"))
    return answer.status_code, headers, answer.content


def names(server, user) -> dict:
    """Return credentials that are not right, for userIds that are taken, reserved and free."""
    deleted = server.client()
    assert deleted.register_user().status_code == 201
    assert deleted.delete_user().status_code == 204
    return {
        "taken": (user.credentials[0], "5e" * 32),
        "reserved": (deleted.credentials[0], "5e" * 32),
        "reserved, with its last key": deleted.credentials,
        "free": (token_hex(32), "5e" * 32),
    }


@pytest.mark.requirement("address.silent", "address.registrations")
def test_2005_names_tried_past_the_limit_tell_nothing(start_server):
    server = start_server(frozen=FROZEN, REGISTRATIONS_PER_HOUR=2, FAILED_CREDENTIALS_PER_5_MINUTES=1_000_000)
    tried = names(server, with_two_versions(server.client()))
    stranger = client_at(server, STRANGER)
    for _ in range(2):
        assert client_at(server, STRANGER).register_user().status_code == 201
    answers = set()
    for credentials in [*tried.values(), *((token_hex(32), "5e" * 32) for _ in range(2001))]:
        client = server.client(credentials, session=stranger.session)
        answers.add(str(all_of(client.register_user())))
    assert len(answers) == 1
    assert '"code":"rate_limited"' in answers.pop()


@pytest.mark.requirement("address.registrations")
def test_a_registration_without_space_changes_nothing_of_the_limit(start_server):
    """It is not counted itself, and those that were accepted before it stay counted."""
    server = start_server(frozen=FROZEN, REGISTRATIONS_PER_HOUR=3)
    assert outcome(server.client().register_user()) == "201"
    server.fault = "storage_full"
    assert outcome(server.client().register_user()) == "507 storage_full"
    server.fault = None
    outcomes = [outcome(server.client().register_user()) for _ in range(3)]
    assert outcomes == ["201", "201", "429 rate_limited"]


@pytest.mark.requirement("address.silent", "address.registrations", "address.failures")
def test_names_of_any_kind_count_alike(start_server):
    """The same name is tried until its address is limited, and longer. Each kind of name gets the same answers."""
    server = start_server(frozen=FROZEN, REGISTRATIONS_PER_HOUR=2, FAILED_CREDENTIALS_PER_5_MINUTES=6)
    told = {}
    for number, (kind, credentials) in enumerate(names(server, with_two_versions(server.client())).items()):
        address = f"127.0.1.{number}"
        for _ in range(2):
            assert client_at(server, address).register_user().status_code == 201
        answers = [all_of(client_at(server, address, credentials).register_user()) for _ in range(8)]
        answers.append(all_of(client_at(server, address, credentials).list_backup_versions()))
        told[kind] = answers
        assert {status for status, _, _ in answers} == {429}
    assert told["taken"] == told["reserved"] == told["reserved, with its last key"] == told["free"]


@pytest.mark.requirement("address.silent")
def test_a_name_that_is_known_at_the_address_tells_nothing(start_server):
    """Behind the same NAT, its owner signs in. Past the limit, strangers there learn nothing, not even of that."""
    told = []
    for is_taken in (True, False):
        settings = {"REGISTRATIONS_PER_HOUR": 2, "FAILED_CREDENTIALS_PER_5_MINUTES": 6}
        server = start_server(frozen=FROZEN, **settings)
        users = [client_at(server, STRANGER) for _ in range(2)]
        for user in users:
            assert user.register_user().status_code == 201
        user_id = users[0].credentials[0] if is_taken else token_hex(32)
        told.append([all_of(client_at(server, STRANGER, (user_id, "5e" * 32)).register_user()) for _ in range(9)])
        assert {status for status, _, _ in told[-1]} == {429}
    assert told[0] == told[1]


@pytest.mark.requirement("address.failures", "address.registrations")
def test_past_both_limits_not_even_a_right_key_is_compared(start_server):
    """For a registration past its limit, no address is known. For other calls, this one still is."""
    server = start_server(frozen=FROZEN, REGISTRATIONS_PER_HOUR=1, FAILED_CREDENTIALS_PER_5_MINUTES=2)
    user = client_at(server, STRANGER)
    assert user.register_user().status_code == 201
    assert user.register_user().status_code == 200  # a retry
    for _ in range(2):
        assert client_at(server, STRANGER).register_user().headers["Retry-After"] == "3600"
    refused = user.register_user()
    assert (outcome(refused), refused.headers["Retry-After"]) == ("429 rate_limited", "300")
    assert outcome(user.fetch_backup()) == "404 no_backup"


@pytest.mark.requirement("address.retry-after", "address.registrations", "header.Retry-After")
def test_retry_after_of_a_registration_that_uses_up_the_failures(start_server):
    """Each 429 counts as a failure. So it may be the address that has to wait longest, then."""
    server = start_server(frozen=FROZEN, REGISTRATIONS_PER_HOUR=1, FAILED_CREDENTIALS_PER_5_MINUTES=2)
    assert client_at(server, STRANGER).register_user().status_code == 201
    server.move_clock(3590)
    one_more = client_at(server, STRANGER)
    answers = [one_more.register_user() for _ in range(3)]
    assert [answer.headers["Retry-After"] for answer in answers] == ["10", "300", "300"]
    server.move_clock(299)
    assert one_more.register_user().headers["Retry-After"] == "1"
    server.move_clock(1)
    assert one_more.register_user().status_code == 201
