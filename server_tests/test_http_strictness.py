"""If HTTP leaves a choice, this server is strict. These tests also cover what follows from how the server is built.

Another server may choose differently, so none of this is part of the contract.
"""

from typing import Any

import pytest

from contract_tests.target import openapi, raw
from contract_tests.target.calls import outcome
from contract_tests.target.raw import HOST

MALFORMED = {
    "two spaces": b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tab": b"GET\t/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes beyond ASCII in the path": b"GET /h\xc3\xa9alth HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /health HTTP/0.9\r\n" + HOST + b"\r\n",
    "HTTP/1.10": b"GET /health HTTP/1.10\r\n" + HOST + b"\r\n",
    "a letter for the minor version": b"GET /health HTTP/1.x\r\n" + HOST + b"\r\n",
    "HTTP/2.0": b"GET /health HTTP/2.0\r\n" + HOST + b"\r\n",
    "a bare LF after the request line": b"GET /health HTTP/1.1\n" + HOST + b"\r\n",
    "a bare LF after a header": b"GET /health HTTP/1.1\r\nX: y\n" + HOST + b"\r\n",
    "bare LFs": b"GET /health HTTP/1.1\nHost: backup.example\n\n\r\n\r\n",
    "a bare CR in a header": b"GET /health HTTP/1.1\r\nX: y\rz\r\n" + HOST + b"\r\n",
    "a NUL in a header": b"GET /health HTTP/1.1\r\nX: y\0z\r\n" + HOST + b"\r\n",
    "a folded first header": b"GET /health HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests(target, request_bytes):
    answer = raw.send(target, request_bytes)
    assert outcome(answer) == "400 malformed_request"
    assert answer.headers["Connection"] == "close"  # the server cannot know where the next request begins


def test_an_empty_line_before_a_request_is_ignored(target):
    """See RFC 9112 section 2.2."""
    assert outcome(raw.send(target, b"\r\nGET /health HTTP/1.1\r\n" + HOST + b"\r\n")) == "200"


@pytest.mark.parametrize(
    "lines",
    [
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: "],
    ],
)
def test_other_transfer_codings(target, lines):
    request_bytes = raw.request("POST", "/api/backup", headers=tuple(lines)) + b"1\r\nx\r\n0\r\n\r\n"
    assert outcome(raw.send(target, request_bytes)) == "400 malformed_request"


def chunked_upload(target: Any, client: Any, path: str, framed: bytes, *lines: str) -> Any:
    """Send a signed upload in chunks, as they are given. Return the answer."""
    proofs = raw.signed(target, client.credentials, "POST", path, b"hello")
    headers = (*proofs, "Content-Type: application/json", "Transfer-Encoding: chunked", *lines)
    return raw.send(target, raw.request("POST", path, headers=headers) + framed)


FAULTY_CHUNKS = {
    "a bare LF": (b"5\nhello\r\n0\r\n\r\n", "400 malformed_request"),
    "a space": (b" 5\r\nhello\r\n0\r\n\r\n", "400 malformed_request"),
    "a long extension": (b"5;" + b"x" * 20_000, "400 malformed_request"),
    "a long trailer": (b"5\r\nhello\r\n0\r\nX: " + b"x" * 20_000, "400 malformed_request"),
    "far too long": (b"%x\r\n" % 10**9 + b" " * (2 * openapi.LIMITS["requestBodyBytes"] + 9), "413 payload_too_large"),
}


@pytest.mark.parametrize(("framed", "wants"), FAULTY_CHUNKS.values(), ids=FAULTY_CHUNKS)
def test_faulty_chunks(target, new_user, framed, wants):
    """The head is answered first. The connection ends, because nobody knows where the next request begins."""
    client = new_user()
    for answer, first in [
        (chunked_upload(target, client, "/api/backup", framed), wants),
        (chunked_upload(target, client, "/api/backups", framed), "404 not_found"),
        (chunked_upload(target, target.client(), "/api/backup", framed), "401 credentials_invalid"),
        (chunked_upload(target, client, "/api/backup", framed, "Content-Encoding: br"), "415 unsupported_media_type"),
    ]:
        assert outcome(answer) == first
        assert answer.headers["Connection"] == "close"


def test_a_request_may_follow_one_that_was_read_to_its_end(target, new_user):
    client = new_user()
    with raw.connected(target) as connection:
        for body in (b"hello", b"x"):  # JSON that is none
            proofs = raw.signed(target, client.credentials, "POST", "/api/backup", body)
            head = raw.request("POST", "/api/backup", body, (*proofs, "Content-Type: application/json"))
            connection.sendall(head)
            assert outcome(raw.receive(target, connection, "POST", "/api/backup", head)) == "400 malformed_request"


@pytest.mark.parametrize(("size", "wants"), [(16_384, "200"), (16_385, "431 headers_too_large")])
def test_the_empty_line_after_the_headers_counts(target, size, wants):
    request_bytes = (b"GET /health HTTP/1.1\r\n" + raw.host(target) + b"X: ").ljust(size - 4, b"x") + b"\r\n\r\n"
    assert len(request_bytes) == size
    assert outcome(raw.send(target, request_bytes)) == wants


@pytest.mark.parametrize("size", [2, 4])
def test_a_sender_sees_the_answer_to_much_too_large_a_body(target, size):
    body = b" " * (size * openapi.LIMITS["requestBodyBytes"])
    assert outcome(raw.send(target, raw.request("POST", "/api/backup", body))) == "413 payload_too_large"


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_sender_sees_the_answer_to_much_too_large_headers(target, size):
    answer = raw.send(target, raw.request("GET", "/health", headers=(f"X: {'x' * size}",)))
    assert outcome(answer) == "431 headers_too_large"


@pytest.mark.parametrize("size", [2 * openapi.LIMITS["requestBodyBytes"] + 2, 10**12])
def test_a_body_that_is_too_large_is_not_asked_for(target, size):
    head = raw.request("POST", "/api/backup", headers=("Expect: 100-continue", f"Content-Length: {size}"))
    with raw.connected(target) as connection:
        connection.sendall(head)
        assert connection.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize(
    "path",
    [
        "*",
        "health",
        "http://backup.example/nothing",
        "http://backup.example//health",
        "http://backup.example/Health",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_odd_targets_are_compared_as_sent(target, method, path):
    assert outcome(raw.send(target, raw.request(method, path))) == "404 not_found"


@pytest.mark.parametrize("path", ["/health", "/api/backup"])
def test_connect_is_a_method_that_no_path_has(target, path):
    assert outcome(raw.send(target, raw.request("CONNECT", path))) == "405 method_not_allowed"


@pytest.mark.parametrize(
    "form", ["http://backup.example{path}", "HTTP://other.example:80{path}", "https://[::1]{path}"]
)
def test_absolute_form(target, new_user, form):
    """See RFC 9112 section 3.2.2. `@path` is the path of such a target (RFC 9421 section 2.2.6)."""
    assert outcome(raw.send(target, raw.request("GET", form.format(path="/health")))) == "200"
    proofs = raw.signed(target, new_user().credentials, "GET", "/api/backup/versions")
    request_bytes = raw.request("GET", form.format(path="/api/backup/versions"), headers=proofs)
    assert outcome(raw.send(target, request_bytes)) == "200"


def test_allow_names_head(target):
    assert raw.send(target, raw.request("POST", "/health")).headers["Allow"] == "GET, HEAD"


# ---- Bodies ------------------------------------------------------------------------------------------------


def store(client: Any, body: bytes, content_type: str = "application/json") -> str:
    answer = client.request("POST", "/api/backup", body=body, headers={"Content-Type": content_type})
    return outcome(answer)


def test_a_byte_order_mark_is_not_json(new_user):
    """RFC 8259 section 8.1 allows a parser to ignore it. This server does not."""
    assert store(new_user(), b'\xef\xbb\xbf{"data":"QUFB"}') == "400 malformed_request"


@pytest.mark.parametrize("value", [b"1e999", b"-1e999", b"1" * 5000, b"[" * 100_000 + b"]" * 100_000])
def test_numbers_and_nesting_beyond_this_parser(new_user, value):
    assert store(new_user(), b'{"data":' + value + b"}") == "400 malformed_request"


def test_another_charset_is_another_media_type(new_user):
    content_type = "application/json; charset=iso-8859-1"
    assert store(new_user(), b'{"data":"QUFB"}', content_type) == "415 unsupported_media_type"


def test_every_departure_from_the_schema_is_told(new_user):
    answer = new_user().request("POST", "/api/backup", body={"data": 1, "baseSha256": 1, "x": 1})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/data", "#/baseSha256", "#"]


@pytest.mark.parametrize("path", ["/api/backup", "/api/backup/versions/x"])
def test_a_body_where_none_belongs_comes_before_what_is_asked_for(new_user, path):
    answer = new_user().request("GET", path, body=b"{}")
    assert outcome(answer) == "400 malformed_request"  # neither no_backup nor no_such_version


SECONDS = openapi.LIMITS["requestBodySeconds"]


@pytest.mark.parametrize("waits", [SECONDS, SECONDS + 1])
def test_a_change_that_would_come_too_late_does_not_happen(start_server, waits):
    """The body was there in time. Then the account was held by others for too long."""
    server = start_server(frozen=1_800_000_000)
    clients = [server.client() for _ in range(4)]
    for client in clients:
        assert client.register_user().status_code == 201
        assert client.store_backup(b"any").status_code == 201
    before = clients[0].list_backup_versions().json()
    server.stop()
    server.command += ["--slow-lock", str(waits)]
    server.start()
    newcomer, base = server.client(), before["versions"][0]["sha256"]
    calls = [
        lambda client: client.store_backup(b"another", base),
        lambda client: client.change_storage_key("ab" * 32, b"another", base),
        lambda client: client.delete_user(),
        lambda client: newcomer.register_user(),
    ]
    for client, call in zip(clients, calls, strict=True):
        client.base_url = server.base_url
        if waits == SECONDS:
            assert outcome(call(client)) in ("200", "201", "204")
            continue
        assert outcome(call(client)) == "408 request_timeout"
        assert client.list_backup_versions().json() == before
        assert outcome(newcomer.list_backup_versions()) == "401 credentials_invalid"
        # What comes first in the order is told, although it is late.
        assert outcome(client.store_backup(b"any")) == "200"
        assert outcome(client.store_backup(b"another")) == "409 version_conflict"
        assert outcome(client.register_user()) == "200"


# ---- Addresses ---------------------------------------------------------------------------------------------


def fail(client: Any) -> None:
    assert outcome(client.list_backup_versions()) == "401 credentials_invalid"


def test_an_address_is_not_what_a_header_says(start_server):
    """If the server does not run on Fly, no proxy sets these headers, so anybody could send them."""
    stranger = start_server(FAILED_CREDENTIALS_PER_5_MINUTES=5).client()
    for number in range(5):
        forged = {"Fly-Client-IP": f"192.0.2.{number}", "X-Forwarded-For": f"192.0.2.{number}"}
        stranger.session.headers.update(forged)
        fail(stranger)
    assert outcome(stranger.list_backup_versions()) == "429 rate_limited"


SAME_ADDRESS = {
    "the same": ("192.0.2.1", "192.0.2.1", True),
    "other IPv4": ("192.0.2.1", "192.0.2.2", False),
    "one IPv6 /64": ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
    "another IPv6 /64": ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    "IPv4 mapped into IPv6": ("::ffff:192.0.2.1", "192.0.2.1", True),
    "IPv4 mapped into IPv6, others": ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    "no addresses": ("nobody", "[nowhere]:80", True),  # then it is the connection's
    "a list, to which the proxy has added one": ("192.0.2.1, 192.0.2.9", "192.0.2.2,192.0.2.9", True),
    "a list that ends in others": ("192.0.2.9, 192.0.2.1", "192.0.2.9, 192.0.2.2", False),
    "with a port": ("192.0.2.1:50000", "192.0.2.1:50001", True),
    "IPv6 with a port": ("[2001:db8::1]:50000", "2001:db8::1", True),
    "IPv6 with a port, others": ("[2001:db8:0:1::1]:50000", "[2001:db8:0:2::1]:50000", False),
    "two spellings": ("2001:DB8:0:1:0:0:0:1", "2001:db8:0:1::1", True),
}


@pytest.fixture(scope="module")
def on_fly(start_shared_server):
    settings = {"FLY_APP_NAME": "a-name-that-fly-sets", "FAILED_CREDENTIALS_PER_5_MINUTES": 2}
    return start_shared_server(frozen=1_800_000_000, **settings)


def test_another_proxy_has_another_header(start_server):
    """Behind another CDN, Fly-Client-IP is the address of the CDN."""
    server = start_server(
        FLY_APP_NAME="a-name-that-fly-sets", CLIENT_ADDRESS_HEADER="X-Real-IP", FAILED_CREDENTIALS_PER_5_MINUTES=2
    )
    stranger = server.client()
    for number in range(4):
        stranger.session.headers.update({"Fly-Client-IP": "192.0.2.1", "X-Real-IP": f"192.0.2.{number}"})
        fail(stranger)
    for number in range(2):
        stranger.session.headers.update({"Fly-Client-IP": f"192.0.2.{number}", "X-Real-IP": "192.0.2.9"})
        fail(stranger)
    assert outcome(stranger.list_backup_versions()) == "429 rate_limited"


@pytest.mark.parametrize(("first", "second", "same"), SAME_ADDRESS.values(), ids=SAME_ADDRESS)
def test_addresses_on_fly(on_fly, first, second, same):
    stranger = on_fly.some_weeks_later().client()
    stranger.session.headers["Fly-Client-IP"] = first
    fail(stranger)
    fail(stranger)
    stranger.session.headers["Fly-Client-IP"] = second
    assert stranger.list_backup_versions().status_code == (429 if same else 401)
