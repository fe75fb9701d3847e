"""Which client address a request has (openapi.yaml, "Limits per client address"), for the limits on an address.

Two requests come from one address if they use up one limit. Each table has pairs of texts, or of connections.
"""

import socket
from collections.abc import Callable
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import pytest
from requests.adapters import HTTPAdapter

from clients.python.backup_client import BackupClient
from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import FromAddress, outcome
from contract_tests.target.process import BEHIND_A_PROXY, ServerProcess

FROZEN = 1_795_510_800
LIMIT = 3
SETTINGS = {
    "FAILED_CREDENTIALS_PER_5_MINUTES": LIMIT,
    "REGISTRATIONS_PER_HOUR": LIMIT,
    "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": LIMIT,
}
WRONG, LIMITED = "401 credentials_invalid", "429 rate_limited"
OWN_HEADER = "X-Client-Address-Of-Our-Proxy"
FORWARDED = [  # headers that proxies set, and that anybody may send
    *("X-Forwarded-For", "X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fly-Client-IP"),
    *("X-Cluster-Client-IP", "X-Original-Forwarded-For", "Client-IP", "Remote-Addr"),
]

SAME = {  # two texts that name one client
    "the same IPv4": ("192.0.2.1", "192.0.2.1"),
    "IPv4, and mapped": ("192.0.2.1", "::ffff:192.0.2.1"),
    "mapped, in two spellings": ("::ffff:192.0.2.1", "::FFFF:C000:0201"),
    "mapped, written out": ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
    "two of a /64": ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
    "one in capitals": ("2001:db8:a:b::1", "2001:DB8:A:B::1"),
    "one with zeros": ("2001:db8:1:2::1", "2001:0db8:0001:0002:0000:0000:0000:0001"),
    "zeros in the network": ("2001:db8::1", "2001:db8:0:0:5::1"),
    "zeros at the end of the network": ("2001:db8:1::1", "2001:db8:1:0:0:0:0:2"),
    "a network of zeros": ("::1", "0:0:0:0:1::"),
    "two ports of an IPv4 address": ("192.0.2.1:1024", "192.0.2.1:65535"),
    "with a port and without": ("192.0.2.1:1024", "192.0.2.1"),
    "two ports of an IPv6 address": ("[2001:db8:1:2::1]:1024", "[2001:db8:1:2::1]:1025"),
    "in brackets and not": ("[2001:db8:1:2::1]", "2001:db8:1:2::1"),
    "a list, and its last entry": ("203.0.113.1, 192.0.2.1", "192.0.2.1"),
    "two lists with one last entry": ("203.0.113.1,192.0.2.1", "203.0.113.2, 203.0.113.3, 192.0.2.1"),
    "a list of both kinds": ("192.0.2.9, 2001:db8:1:2::1", "2001:db8:1:2::2"),
    "a list with a port": ("203.0.113.1, 192.0.2.1:99", "192.0.2.1"),
    "a list that begins with no address": ("unknown, 192.0.2.1", "192.0.2.1"),
}
OTHER = {  # two texts that name two clients
    "another last digit": ("192.0.2.1", "192.0.2.2"),
    "a longer address": ("192.0.2.1", "192.0.2.10"),
    "another first number": ("192.0.2.1", "193.0.2.1"),
    "two of a /24": ("192.0.2.1", "192.0.2.254"),
    "two that are mapped": ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
    "mapped, and another": ("::ffff:192.0.2.1", "192.0.2.2"),
    "IPv4, and the like in IPv6": ("192.0.2.1", "2002:c000:201::1"),
    "two of a /63": ("2001:db8:1:2::1", "2001:db8:1:3::1"),
    "two of a /56": ("2001:db8:1:100::1", "2001:db8:1:1ff::1"),
    "two of a /48": ("2001:db8:1:2::1", "2001:db8:1:8002::1"),
    "two of a /32": ("2001:db8:1::1", "2001:db8:2::1"),
    "zeros at another place": ("2001:db8:1::1", "2001:db8:0:1::1"),
    "two lists with one first entry": ("203.0.113.1, 192.0.2.1", "203.0.113.1, 192.0.2.2"),
    "a list the other way round": ("192.0.2.2, 192.0.2.1", "192.0.2.1, 192.0.2.2"),
    "one port of two addresses": ("192.0.2.1:1024", "192.0.2.2:1024"),
}
LIMITS: dict[str, tuple[str, Callable[[BackupClient], Any]]] = {  # what counts, and what it gets below the limit
    "failures": (WRONG, lambda client: client.list_backup_versions()),
    "registrations": ("201", lambda client: client.register_user()),
}


def somebody(server: ServerProcess, **headers: str) -> BackupClient:
    client = server.client()
    client.session.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return client


def use_up(kind: str, client: Callable[[], BackupClient]) -> None:
    """Use up a limit of an address. Each request is of another user."""
    below, call = LIMITS[kind]
    assert [outcome(call(client())) for _ in range(LIMIT + 1)] == [below] * LIMIT + [LIMITED]


def is_limited(kind: str, client: BackupClient) -> bool:
    below, call = LIMITS[kind]
    answer = outcome(call(client))
    assert answer in (below, LIMITED)
    return answer == LIMITED


@pytest.fixture(scope="module")
def own_proxy(start_shared_server) -> ServerProcess:
    return start_shared_server(frozen=FROZEN, CLIENT_ADDRESS_HEADER=OWN_HEADER, **SETTINGS)


@pytest.fixture(scope="module")
def of_the_platform(start_shared_server) -> ServerProcess:
    return start_shared_server(frozen=FROZEN, **BEHIND_A_PROXY["settings"], **SETTINGS)


@pytest.fixture(params=[OWN_HEADER, BEHIND_A_PROXY["header"]])
def proxied(request) -> tuple[ServerProcess, str]:
    """A server behind a proxy, and the header in which the proxy sends the address."""
    name = "own_proxy" if request.param == OWN_HEADER else "of_the_platform"
    return request.getfixturevalue(name).some_weeks_later(), request.param


@pytest.fixture(scope="module")
def unproxied(start_shared_server) -> ServerProcess:
    return start_shared_server(frozen=FROZEN, **SETTINGS)


# ---- Behind a proxy ----------------------------------------------------------------------------------------


@pytest.mark.requirement("address.proxy", "address.ipv6", "address.failures", "address.registrations")
@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize(("first", "second"), SAME.values(), ids=SAME)
def test_two_texts_for_one_address(own_proxy, kind, first, second):
    server = own_proxy.some_weeks_later()
    use_up(kind, lambda: somebody(server, **{OWN_HEADER: first}))
    assert is_limited(kind, somebody(server, **{OWN_HEADER: second}))


@pytest.mark.requirement("address.proxy", "address.ipv6", "address.others")
@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize(("first", "second"), OTHER.values(), ids=OTHER)
def test_two_texts_for_two_addresses(own_proxy, kind, first, second):
    server = own_proxy.some_weeks_later()
    use_up(kind, lambda: somebody(server, **{OWN_HEADER: first}))
    assert not is_limited(kind, somebody(server, **{OWN_HEADER: second}))


@pytest.mark.requirement("guessing.known-address", "guessing.account", "address.ipv6", "address.proxy")
@pytest.mark.parametrize(
    ("first", "second", "is_known"),
    [
        pytest.param(*pair, is_known, id=name)
        for table, is_known in ((SAME, True), (OTHER, False))
        for name, pair in table.items()
    ],
)
def test_by_which_texts_an_address_is_known(own_proxy, first, second, is_known):
    """Past the limit of an account, a known address tries as before, and another one has two attempts."""
    server = own_proxy.some_weeks_later()
    credentials = token_hex(32), token_hex(32)

    def client(address: str, key: str = "5e" * 32) -> BackupClient:
        client = server.client((credentials[0], key))
        client.session.headers[OWN_HEADER] = address
        return client

    assert outcome(client(first, credentials[1]).register_user()) == "201"
    strangers = [client(f"2001:db8:ff{number:02x}::1").list_backup_versions() for number in range(LIMIT)]
    assert [outcome(answer) for answer in strangers] == [WRONG] * LIMIT
    answers = [outcome(client(second).list_backup_versions()) for _ in range(3)]
    assert answers == [WRONG, WRONG, WRONG if is_known else LIMITED]


@pytest.mark.requirement("address.proxy", "address.others")
@pytest.mark.parametrize("other", FORWARDED)
def test_no_other_header_counts_behind_a_proxy(own_proxy, other):
    server = own_proxy.some_weeks_later()
    use_up("failures", lambda: somebody(server, **{OWN_HEADER: "192.0.2.1", other: f"2001:db8:{token_hex(2)}::1"}))
    assert not is_limited("failures", somebody(server, **{OWN_HEADER: "192.0.2.2", other: "192.0.2.1"}))


@pytest.mark.requirement("address.proxy", "address.connection", "address.others")
@pytest.mark.parametrize(
    "text", [None, "", "unknown", "192.0.2", "192.0.2.256", "2001:db8::1::1", "localhost", "-", ","]
)
def test_without_an_address_in_the_header_it_is_that_of_the_connection(proxied, text):
    server, header = proxied

    def client(connection: str) -> BackupClient:
        client = somebody(server, **({} if text is None else {header: text}))
        client.session.mount("http://", FromAddress(connection))
        return client

    use_up("failures", lambda: client("127.0.0.2"))
    assert not is_limited("failures", client("127.0.0.3"))
    # If the proxy names the address of the other connection, it is the same client.
    assert is_limited("failures", somebody(server, **{header: "127.0.0.2"}))


# ---- Without a proxy ---------------------------------------------------------------------------------------


@pytest.mark.requirement("address.connection", "address.failures", "address.others")
@pytest.mark.parametrize("name", [*FORWARDED, "Forwarded", "Via", "X-Forwarded-Host", "Host", OWN_HEADER])
def test_no_header_names_an_address(unproxied, name):
    server = unproxied.some_weeks_later()

    def client(connection: str) -> BackupClient:
        address = f"198.51.100.{int(token_hex(1), 16)}"
        client = somebody(server, **{name: f"for={address}" if name == "Forwarded" else address})
        client.session.mount("http://", FromAddress(connection))
        return client

    use_up("failures", lambda: client("127.0.0.2"))
    assert not is_limited("failures", client("127.0.0.3"))


# ---- Connections over IPv6 ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_both(start_shared_server) -> ServerProcess:
    """A server that listens on IPv6 and on IPv4."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        not_run("needs IPv6 on this machine's loopback interface")
    return start_shared_server(frozen=FROZEN, HOST="::", **SETTINGS)


@pytest.mark.requirement("address.connection", "address.ipv6", "address.others", "address.failures")
@pytest.mark.parametrize("kind", LIMITS)
def test_connections_over_ipv4_and_ipv6(on_both, kind):
    """To a server that listens on both, a connection over IPv4 comes from an IPv4-mapped address."""
    server, port = on_both.some_weeks_later(), urlsplit(on_both.base_url).port

    def client(connection: str) -> BackupClient:
        client = server.client()
        client.base_url = f"http://[::1]:{port}" if connection == "::1" else f"http://127.0.0.1:{port}"
        client.session.mount("http://", HTTPAdapter() if connection == "::1" else FromAddress(connection))
        return client

    use_up(kind, lambda: client("127.0.0.2"))
    assert not is_limited(kind, client("127.0.0.3"))
    assert not is_limited(kind, client("::1"))
    server.some_weeks_later()
    use_up(kind, lambda: client("::1"))
    assert not is_limited(kind, client("127.0.0.2"))
