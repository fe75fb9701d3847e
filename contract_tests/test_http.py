"""HTTP itself, as bytes on a socket: framing, limits, paths, methods, the order of checks, CORS.

`raw.send` checks each answer against the spec. So X-Request-Id, Cache-Control and the form of a problem are checked on
every answer, including those of the underlying HTTP server.
"""

import base64
import contextlib
import functools
import http.client
import io
import json
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target import openapi, raw
from contract_tests.target.calls import outcome, sha256

HEADER_BYTES = openapi.LIMITS["requestHeaderBytes"]
BODY_BYTES = openapi.LIMITS["requestBodyBytes"]
DECODED_BYTES = openapi.MAX_DECODED_BYTES
PATHS = sorted({operation.path.replace("{version}", "1") for operation in openapi.OPERATIONS.values()})
UPLOADS = [("POST", "/api/backup"), ("PUT", "/api/user/storage-key")]
SIGNED = sorted((op.method, op.path.replace("{version}", "1")) for op in openapi.OPERATIONS.values() if op.signed)
HOST = raw.HOST
# A server need not read a request to its end if it is much too large. If it stops reading, it may cut off the sender
# before the sender sees the answer (RFC 9112 section 9.6).
CUT_OFF = (ConnectionError, http.client.BadStatusLine)


@dataclass
class User:
    """A registered user, for requests as bytes."""

    target: Any
    credentials: tuple[str, str]
    client: BackupClient

    def request(
        self, method: str, path: str, body: bytes | None = None, *headers: str, framed: bytes | None = None
    ) -> bytes:
        """Return a signed request. `framed` is the encoded form of the body, and is sent instead of it."""
        lines = raw.signed(self.target, self.credentials, method, path.partition("?")[0], body or b"")
        if body is not None:
            lines += ("Content-Type: application/json",)
        return raw.request(method, path, body if framed is None else framed, (*lines, *headers))

    def send(self, *arguments: Any, **options: Any) -> raw.Answer:
        return raw.send(self.target, self.request(*arguments, **options))


@pytest.fixture
def user(target, new_user) -> User:
    credentials = secrets.token_hex(32), secrets.token_hex(32)
    return User(target, credentials, new_user(credentials))


def upload(blob: bytes, base: bytes | None = None) -> bytes:
    """Return a body that stores a blob, made from the version with the blob `base`."""
    members = {"data": base64.b64encode(blob).decode()}
    if base is not None:
        members["baseSha256"] = sha256(base)
    return json.dumps(members).encode()


def chunked(*chunks: bytes) -> bytes:
    """Return a body in the chunked transfer coding (RFC 9112 section 7.1)."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


# ---- Request line and headers ------------------------------------------------------------------------------


# Requests that every server must reject (RFC 9112). The tests leave out requests that a server may accept or reject.
MALFORMED = {
    "no version": b"GET /health\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a fourth word": b"GET /health HTTP/1.1 x\r\n" + HOST + b"\r\n",
    "a space in the path": b"GET /hea lth HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in the path": b"GET /health\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no name of a protocol": b"GET /health 1.1\r\n" + HOST + b"\r\n",
    "another protocol": b"GET /health HTTPS/1.1\r\n" + HOST + b"\r\n",
    "lower-case http": b"GET /health http/1.1\r\n" + HOST + b"\r\n",
    "HTTP/1.10": b"GET /health HTTP/1.10\r\n" + HOST + b"\r\n",
    "HTTP/1": b"GET /health HTTP/1\r\n" + HOST + b"\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "two different Hosts": b"GET /health HTTP/1.1\r\n" + HOST + b"Host: other.example\r\n\r\n",
    "a header without a colon": b"GET /health HTTP/1.1\r\n" + HOST + b"X\r\n\r\n",
    "a header without a name": b"GET /health HTTP/1.1\r\n" + HOST + b": x\r\n\r\n",
    "a space before the colon": b"GET /health HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n",
    "a space in a header's name": b"GET /health HTTP/1.1\r\n" + HOST + b"X Y: z\r\n\r\n",
}


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.framing", "getHealth.400", "header.Retry-After")
@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests(target, request_bytes):
    assert outcome(raw.send(target, request_bytes)) == "400 malformed_request"


@pytest.mark.requirement("http.framing", "getHealth.200")
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n",
        pytest.param(b"GET /health HTTP/1.1\r\nhOST:backup.example\r\n\r\n", marks=pytest.mark.edge_may_change),
        # RFC 9112 section 3.2: it may be empty
        pytest.param(b"GET /health HTTP/1.1\r\nHost:\r\n\r\n", marks=pytest.mark.edge_may_change),
        pytest.param(b"GET /health HTTP/1.0\r\n\r\n", marks=pytest.mark.edge_may_change),
    ],
)
def test_well_formed_requests(target, request_bytes):
    assert outcome(raw.send(target, request_bytes)) == "200"


NO_HOSTS = [
    "a b",
    "a/b",
    "a@b",
    "user:password@a",
    "a:b:c",
    "a:b",
    "a:-1",
    "a: 80",
    "<x>",
    "{x}",
    "a?b",
    "a#b",
    "a\\b",
    'a"b',
    "a^b",
    "a|b",
    "%",
    "%4",
    "%zz",
    "b\xfccher.example",
    "[::1",
    "::1",
    "::1]",
    "[]",
    "[::1]x",
    "[::1]:x",
    "[::1]]",
    "a[::1]",
    "[1]",
    "[a.example]",
    "[127.0.0.1]",
    "[:::1]",
    "[1::2::3]",
    "[1:2:3:4:5:6:7]",
    "[1:2:3:4:5:6:7:8:9]",
    "[12345::]",
    "[g::]",
    "[::256.0.0.1]",
    "[::1.2.3]",
    "[::1.2.3.4:5]",
    "[fe80::1%eth0]",
    "[fe80::1%25eth0]",
    "[v.x]",
    "[vg.x]",
    "[v1.]",
    "[v1.@]",
]
HOSTS = [
    "a",
    "a:",
    "a:8080",
    "A.Example.",
    "a_b-c~d!$&'()*+;=",
    "%41%2e",
    "127.0.0.1:80",
    "999.1",
    "[::]",
    "[::1]",
    "[::1]:443",
    "[2001:DB8::a:1]:",
    "[1:2:3:4:5:6:7:8]",
    "[1:2:3:4:5:6:7::]",
    "[::2:3:4:5:6:7:8]",
    "[::ffff:192.0.2.1]",
    "[1:2:3:4:5:6:192.0.2.1]",
    "[v1.a:b]",
    "[vF.x]:1",
]


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.host", "getHealth.400")
@pytest.mark.parametrize("host", NO_HOSTS)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_what_is_no_host(target, host, version):
    request_bytes = f"GET /health {version}\r\nHost: {host}\r\n\r\n".encode("latin-1")
    assert outcome(raw.send(target, request_bytes)) == "400 malformed_request"


@pytest.mark.requirement("http.host", "getHealth.200")
@pytest.mark.parametrize("host", HOSTS)
def test_what_is_a_host(own_server, host):
    """A proxy in front of a deployment may refuse other hosts than its own, so this needs a server of its own."""
    assert outcome(raw.send(own_server, f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())) == "200"
    target_form = f"http://{host}/health"
    assert outcome(raw.send(own_server, raw.request("GET", target_form))) == "200"


@pytest.fixture(scope="module")
def own_server(start_shared_server):
    return start_shared_server()


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.host")
@pytest.mark.parametrize("authority", ["", ":80", *(host for host in NO_HOSTS if not set(host) & set("/?#"))])
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_what_is_no_authority(target, authority, scheme):
    """See RFC 9110 section 4.2: such a target names a host, and no user."""
    assert outcome(raw.send(target, raw.request("GET", f"{scheme}://{authority}/health"))) == "400 malformed_request"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.host", "http.framing")
def test_both_the_authority_and_host_must_be_valid(target):
    for path, host in [("http://a/health", "b c"), ("http://b c/health", "a"), ("http://a@b/health", "")]:
        request_bytes = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert outcome(raw.send(target, request_bytes)) == "400 malformed_request"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.minor", "getHealth.200", "http.framing")
@pytest.mark.parametrize("minor", range(2, 10))
def test_a_higher_minor_version_is_read_as_http_1_1(target, minor):
    with raw.connected(target) as connection:  # it stays open, as with HTTP/1.1
        for _ in range(2):
            connection.sendall(raw.request("GET", "/health", version=f"HTTP/1.{minor}").replace(HOST, raw.host(target)))
            assert outcome(raw.receive(target, connection, "GET", "/health")) == "200"
    chunks = raw.request("GET", "/health", None, ("Transfer-Encoding: chunked",), f"HTTP/1.{minor}") + b"0\r\n\r\n"
    assert outcome(raw.send(target, chunks)) == "200"
    no_host = f"GET /health HTTP/1.{minor}\r\n\r\n".encode()
    assert outcome(raw.send(target, no_host)) == "400 malformed_request"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.keep-alive", "fetchBackup.304", "deleteUser.204")
def test_a_connection_stays_open_after_answers_without_a_body(user):
    sha = user.client.store_backup(b"any").json()["sha256"]
    same = f'If-None-Match: "1-{sha}"'
    steps = [
        ("GET", "/api/backup", (), 200),
        ("GET", "/api/backup", (same,), 304),
        ("GET", "/api/backup/versions/1", (same,), 304),
        ("HEAD", "/health", (), 200),
        ("DELETE", "/api/user", (), 204),
        ("GET", "/health", (), 200),
    ]
    with raw.connected(user.target) as connection:
        for method, path, lines, status in steps:
            proofs = raw.signed(user.target, user.credentials, method, path)
            head = raw.request(method, path, headers=(*proofs, *lines))
            connection.sendall(head.replace(HOST, raw.host(user.target)))
            answer = raw.receive(user.target, connection, method, path, head)
            assert answer.status == status
            assert answer.headers.get("Connection", "").lower() != "close"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.keep-alive", "cors.preflight")
def test_so_it_does_after_a_preflight(target, allowed_origin):
    lines = (f"Origin: {allowed_origin}", "Access-Control-Request-Method: GET")
    with raw.connected(target) as connection:
        for method, status in [("OPTIONS", 204), ("GET", 200), ("OPTIONS", 204)]:
            connection.sendall(raw.request(method, "/health", headers=lines).replace(HOST, raw.host(target)))
            assert raw.receive(target, connection, method, "/health").status == status


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.keep-alive")
@pytest.mark.parametrize("options", ["close", "Close", "te, close", "close,te"])  # RFC 9110 section 7.6.1
def test_a_connection_is_closed_if_the_client_says_so(user, options):
    etag = f'"1-{user.client.store_backup(b"any").json()["sha256"]}"'
    with raw.connected(user.target) as connection:
        head = user.request("GET", "/api/backup", None, f"If-None-Match: {etag}", f"Connection: {options}")
        connection.sendall(head.replace(HOST, raw.host(user.target)))
        assert raw.receive(user.target, connection, "GET", "/api/backup", head).status == 304
        assert connection.recv(1) == b""


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.header-limit", "getHealth.431")
@pytest.mark.parametrize(
    ("size", "wants"),
    [
        (HEADER_BYTES - 1, "200"),
        (HEADER_BYTES, "200"),
        (HEADER_BYTES + len(b"\r\n") + 1, "431 headers_too_large"),  # a server need not count the empty line
        (10 * HEADER_BYTES, "431 headers_too_large"),
        (1_000_000, "431 headers_too_large"),
    ],
)
@pytest.mark.parametrize("where", ["one header", "many headers", "the path"])
def test_size_of_request_line_and_headers(target, size, wants, where):
    if where == "the path":
        wants = wants.replace("200", "404 not_found")
    request_bytes = head_of(size, where, raw.host(target))
    assert len(request_bytes) == size
    with contextlib.suppress(*(CUT_OFF if size > 2 * HEADER_BYTES else ())):
        assert outcome(raw.send(target, request_bytes)) == wants


def head_of(size: int, where: str, host: bytes) -> bytes:
    """Return a request of `size` bytes for /health, or for a longer path, without a body."""
    head = b"GET /health HTTP/1.1\r\n" + host
    missing = size - len(head + b"X: \r\n\r\n")
    if where == "one header":
        return head + b"X: " + b"x" * missing + b"\r\n\r\n"
    if where == "the path":
        return head.replace(b"/health", b"/health" + b"x" * missing, 1) + b"X: \r\n\r\n"
    lines, rest = divmod(missing + len(b"X: \r\n"), 10)
    return head + b"X: " + b"x" * (5 + rest) + b"\r\n" + b"X: yyyyy\r\n" * (lines - 1) + b"\r\n"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.framing", "problem.path", "problem.method")
def test_requests_follow_each_other_on_one_connection(target):
    with raw.connected(target) as connection:
        for path, wants in [("/health", "200"), ("/nothing", "404 not_found"), ("/health", "200")]:
            connection.sendall(raw.request("GET", path).replace(HOST, raw.host(target)))
            assert outcome(raw.receive(target, connection, "GET", path)) == wants
        connection.sendall(raw.request("POST", "/health", b"x").replace(HOST, raw.host(target)))
        assert outcome(raw.receive(target, connection, "POST", "/health")) == "405 method_not_allowed"


# ---- Framing of the body -----------------------------------------------------------------------------------


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.framing", "storeBackup.400")
@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: x"],
        ["Content-Length: "],
        ["Content-Length: -1"],
        ["Content-Length: +1"],
        ["Content-Length: 1_0"],
        ["Content-Length: 1.0"],
        ["Content-Length: 0x1"],
        ["Content-Length: 1 1"],
        ["Content-Length: \xb2"],  # "²".isdigit() is true
        ["Content-Length: 1e0"],
        ["Content-Length: 1,x"],
        ["Content-Length: 1,2"],
        ["Content-Length: 1;"],
        ["Content-Length: '1'"],
        ["Content-Length: --1"],
        ["Content-Length: 0b1"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: chunked;q=1"],
        ["Transfer-Encoding: 'chunked'"],
        ["Transfer-Encoding: \x0bchunked"],
        ["Transfer-Encoding: chunked\xa0"],
        ["Transfer-Encoding: chunk"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: gzip"],
        ["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"],
        ["Content-Length: 1", "Content-Length: 2"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked, gzip"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer_Encoding: chunked", "Content-Length: x"],
    ],
)
def test_malformed_framing(target, lines):
    request_bytes = raw.request("POST", "/api/backup", headers=tuple(lines)) + b"1\r\nx\r\n0\r\n\r\n"
    assert outcome(raw.send(target, request_bytes)) == "400 malformed_request"


TWO_LENGTHS = {
    "both": ("HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked"),
    "both, in the other order": ("HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 1"),
    "the length of the chunks": ("HTTP/1.1", "Content-Length: 11", "Transfer-Encoding: chunked"),
    "chunked twice in a line": ("HTTP/1.1", "Transfer-Encoding: chunked, chunked"),
    "chunked in two lines": ("HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunks in HTTP/1.0": ("HTTP/1.0", "Transfer-Encoding: chunked"),
    "the same length twice": ("HTTP/1.1", "Content-Length: 11", "Content-Length: 11"),
    "a list of lengths": ("HTTP/1.1", "Content-Length: 11, 11"),
}


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.one-length", "http.framing")
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/backup"), ("GET", "/health"), ("GET", "/nothing")])
@pytest.mark.parametrize("lines", TWO_LENGTHS.values(), ids=TWO_LENGTHS)
def test_a_request_has_one_length(target, lines, method, path):
    """Otherwise, a proxy may see another end of it than the server, and take the rest for another request."""
    version, *headers = lines
    request_bytes = raw.request(method, path, headers=tuple(headers), version=version) + b"1\r\nx\r\n0\r\n\r\n"
    assert outcome(raw.send(target, request_bytes)) == "400 malformed_request"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.framing")
def test_a_content_length_of_5000_digits(target):
    answer = raw.send(target, raw.request("POST", "/api/backup", headers=("Content-Length: " + "9" * 5000,)))
    assert outcome(answer) in ("400 malformed_request", "413 payload_too_large")


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.framing", "storeBackup.400")
@pytest.mark.parametrize(
    "framed",
    [
        b"x\r\nhello\r\n0\r\n\r\n",
        b"-1\r\nh\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"1_0\r\nhellohellohelloh\r\n0\r\n\r\n",
        b"5 5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"5h\r\nhello\r\n0\r\n\r\n",
        b"5,0\r\nhello\r\n0\r\n\r\n",
        b"\xb5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_malformed_chunks(user, framed):
    answer = user.send("POST", "/api/backup", b"hello", "Transfer-Encoding: chunked", framed=framed)
    assert outcome(answer) == "400 malformed_request"


@pytest.mark.requirement("http.chunked", "storeBackup.201")
@pytest.mark.parametrize(
    ("coding", "frame"),
    [
        ("chunked", lambda body: chunked(body)),
        ("Chunked", lambda body: chunked(body)),
        ("chunked", lambda body: chunked(*(body[i : i + 1] for i in range(len(body))))),
        ("chunked", lambda body: b"%X;name=value\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        ("chunked", lambda body: b"000%x\r\n%b\r\n00\r\n\r\n" % (len(body), body)),
        ("chunked", lambda body: b"%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), body)),
    ],
)
def test_chunked_bodies(user, coding, frame):
    body = upload(b"in chunks")
    answer = user.send("POST", "/api/backup", body, f"Transfer-Encoding: {coding}", framed=frame(body))
    assert outcome(answer) == "201"
    assert backup_bytes(user.client.fetch_backup()) == b"in chunks"


@pytest.mark.requirement("http.no-body", "digest.empty")
@pytest.mark.parametrize("line", ["Content-Length: 0", "Transfer-Encoding: chunked"])
def test_a_body_without_bytes_is_none(target, user, line):
    framed = b"0\r\n\r\n" if "chunked" in line else b""
    for method, path in [("GET", "/health"), ("HEAD", "/health")]:
        assert outcome(raw.send(target, raw.request(method, path, headers=(line,)) + framed)) == "200"
    lines = (*raw.signed(target, user.credentials, "POST", "/api/register"), line)
    assert outcome(raw.send(target, raw.request("POST", "/api/register", headers=lines) + framed)) == "200"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.continue", "storeBackup.201")
def test_expect_100_continue(target, user):
    body = upload(b"asked for")
    head = user.request("POST", "/api/backup", body, "Expect: 100-continue").removesuffix(body)
    asked, answer = raw.expect(target, head, body, "POST", "/api/backup")
    assert (asked, outcome(answer)) == (True, "201")
    assert backup_bytes(user.client.fetch_backup()) == b"asked for"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.continue", "storeBackup.201")
def test_nobody_is_asked_for_a_body_who_does_not_wait_for_that(target, user):
    body = upload(b"sent in two parts")
    head = user.request("POST", "/api/backup", body).removesuffix(body)
    with raw.connected(target) as connection:
        connection.sendall(head.replace(HOST, raw.host(target)))
        time.sleep(0.3)  # time enough to ask
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 201 ")


@pytest.mark.requirement("http.continue")
def test_expect_100_continue_without_a_body(target):
    head = raw.request("GET", "/health", headers=("Expect: 100-continue",))
    _, answer = raw.expect(target, head, b"", "GET", "/health")
    assert outcome(answer) == "200"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.continue", "storeBackup.413")
@pytest.mark.parametrize("size", [BODY_BYTES + 1, 2 * BODY_BYTES + 2, 10**12])
def test_expect_100_continue_of_too_large_a_body(target, size):
    head = raw.request("POST", "/api/backup", headers=("Expect: 100-continue", f"Content-Length: {size}"))
    _, answer = raw.expect(target, head, b"", "POST", "/api/backup")
    assert outcome(answer) == "413 payload_too_large"


REFUSED_BY_THE_HEAD = {  # the answer: method, path, Content-Type, and what to sign in place of what is sent
    "401 signature_missing": ("POST", "/api/backup", "application/json", None),
    "401 signature_invalid": ("POST", "/api/backup", "application/json", {"secret": "another secret"}),
    "401 signature_expired": ("POST", "/api/backup", "application/json", {"created": 0}),
    "401 credentials_invalid": ("POST", "/api/backup", "application/json", {}),
    "404 not_found": ("POST", "/api/nothing", "application/json", None),
    "405 method_not_allowed": ("PUT", "/api/backup", "application/json", None),
    "415 unsupported_media_type": ("POST", "/api/backup", "text/plain", {}),
    "400 malformed_request": ("DELETE", "/api/user", "application/json", {}),
}


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.continue")
@pytest.mark.parametrize("wants", REFUSED_BY_THE_HEAD)
def test_a_body_that_the_head_refuses_is_not_asked_for(target, new_user, wants):
    method, path, media_type, signed = REFUSED_BY_THE_HEAD[wants]
    credentials = new_user().credentials
    if wants == "401 credentials_invalid":
        credentials = (credentials[0], "0" * 64)
    body = upload(b"not asked for")
    proofs = () if signed is None else raw.signed(target, credentials, method, path, body, **signed)
    lines = (f"Content-Type: {media_type}", f"Content-Length: {len(body)}", "Expect: 100-continue")
    asked, answer = raw.expect(target, raw.request(method, path, headers=(*proofs, *lines)), b"", method, path)
    assert (asked, outcome(answer)) == (False, wants)


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.refused-body", "problem.unchanged")
@pytest.mark.parametrize("wants", REFUSED_BY_THE_HEAD)
@pytest.mark.parametrize("sent", ["nothing", "a part", "all"])
def test_a_body_that_the_head_refuses_is_not_waited_for(target, new_user, wants, sent):
    """The answer comes whether the body comes or not. What comes of it is discarded, and the connection ends."""
    method, path, media_type, signed = REFUSED_BY_THE_HEAD[wants]
    client = new_user()
    credentials = client.credentials
    if wants == "401 credentials_invalid":
        credentials = (credentials[0], "0" * 64)
    body = upload(bytes(100_000))
    proofs = () if signed is None else raw.signed(target, credentials, method, path, body, **signed)
    head = raw.request(method, path, headers=(*proofs, f"Content-Type: {media_type}", f"Content-Length: {len(body)}"))
    with raw.connected(target) as connection:
        raw.send_all(connection, head.replace(HOST, raw.host(target)))
        raw.send_all(connection, body[: {"nothing": 0, "a part": 50_000, "all": None}[sent]])
        assert outcome(raw.receive(target, connection, method, path, head)) == wants
        raw.send_all(connection, body[: {"nothing": None, "a part": 50_000, "all": 0}[sent]])
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert outcome(client.fetch_backup()) == "404 no_backup"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.sent-ahead", "http.framing")
@pytest.mark.parametrize("more", [0, 1, 250])
def test_of_requests_that_are_sent_ahead_two_are_answered(target, more):
    """The two answers are complete and in order. The third request has no effect, and the connection ends."""
    client, health = target.client((secrets.token_hex(32), secrets.token_hex(32))), raw.request("GET", "/health")
    register, delete = (
        raw.request(method, path, headers=raw.signed(target, client.credentials, method, path))
        for method, path in [("POST", "/api/register"), ("DELETE", "/api/user")]
    )
    with raw.connected(target) as connection:
        raw.send_all(connection, (health + register + delete + more * health).replace(HOST, raw.host(target)))
        received = to_the_end(connection)
    for method, path, wants in [("GET", "/health", "200"), ("POST", "/api/register", "201")]:
        assert outcome(raw.receive(target, received, method, path)) == wants
    assert received.read() == b""
    assert outcome(client.list_backup_versions()) == "200"


class Received(io.BytesIO):
    """Everything that arrived on a connection up to its end. Answers can be read from it instead of the connection."""

    def makefile(self, _: str) -> "Received":
        return self

    def close(self) -> None:
        """Do nothing, because each answer closes what it was read from."""


def to_the_end(connection: socket.socket) -> Received:
    """Read until the server ends the connection. Raise TimeoutError after 5 s of silence."""
    connection.settimeout(5)
    with connection.makefile("rb") as stream:
        return Received(stream.read())


# ---- The time of a body ------------------------------------------------------------------------------------

BODY_SECONDS = openapi.LIMITS["requestBodySeconds"]


@pytest.fixture(scope="module")
def frozen(start_shared_server):
    """A server whose clock only moves if a test moves it."""
    return start_shared_server(frozen=1_800_000_000, REGISTRATIONS_PER_HOUR=1000)


@pytest.mark.requirement("http.body-time", "storeBackup.408", "storeBackup.201")
@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize(
    ("seconds", "wants"), [(BODY_SECONDS, "201"), (BODY_SECONDS + 1, "408 request_timeout"), (-5, "201")]
)
def test_how_long_a_body_may_take(frozen, seconds, wants, coding):
    client = frozen.client()
    assert outcome(client.register_user()) == "201"
    body = upload(b"slow")
    lines = ("Content-Type: application/json", "Expect: 100-continue")
    lines += ("Transfer-Encoding: chunked" if coding == "chunked" else f"Content-Length: {len(body)}",)
    proofs = raw.signed(frozen, client.credentials, "POST", "/api/backup", body)
    head = raw.request("POST", "/api/backup", headers=(*proofs, *lines))
    framed = chunked(body) if coding == "chunked" else body
    asked, answer = raw.expect(frozen, head, framed, "POST", "/api/backup", lambda: frozen.move_clock(seconds))
    assert (asked, outcome(answer)) == (True, wants)
    assert outcome(client.fetch_backup()) == ("200" if wants == "201" else "404 no_backup")


@pytest.mark.requirement("order.answers", "storeBackup.413")
def test_a_chunked_body_that_is_too_long_and_late(frozen):
    client = frozen.client()
    assert outcome(client.register_user()) == "201"
    lines = ("Content-Type: application/json", "Transfer-Encoding: chunked", "Expect: 100-continue")
    proofs = raw.signed(frozen, client.credentials, "POST", "/api/backup")
    head = raw.request("POST", "/api/backup", headers=(*proofs, *lines))
    begun = f"{BODY_BYTES + 2:x}\r\n".encode() + bytes(BODY_BYTES + 1)  # a byte of the chunk is missing
    with raw.connected(frozen) as connection:
        connection.sendall(head)
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.send_all(connection, begun)
        time.sleep(0.5)
        frozen.move_clock(BODY_SECONDS + 1)
        assert outcome(raw.receive(frozen, connection, "POST", "/api/backup", head)) == "413 payload_too_large"


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.chunked", "backup.body")
def test_the_framing_of_chunks_does_not_count(user):
    """The chunks take more bytes than twice the limit, but the body in them is small."""
    extended = b"1;" + b"x" * 16_000 + b"\r\n"  # a chunk of one byte, with an extension
    body = upload(b"small") + b" " * (2 * BODY_BYTES // 16_000 + 10)
    framed = b"".join(extended + body[at : at + 1] + b"\r\n" for at in range(len(body))) + b"0\r\n\r\n"
    assert len(framed) > 2 * BODY_BYTES
    answer = user.send("POST", "/api/backup", body, "Transfer-Encoding: chunked", framed=framed)
    assert outcome(answer) == "201"


@pytest.mark.requirement("http.body-time", "{operation}.408", "problem.unchanged")
@pytest.mark.parametrize("operation", sorted(openapi.OPERATIONS))
def test_a_body_that_does_not_come_is_given_up(frozen, operation):
    """The answer comes although the body is incomplete, and the connection ends."""
    client = frozen.client()
    assert outcome(client.register_user()) == "201"
    declared = openapi.OPERATIONS[operation]
    method, path = declared.method, declared.path.replace("{version}", "1")
    lines = ("Content-Type: application/json", "Transfer-Encoding: chunked", "Expect: 100-continue")
    if operation == "getAdminStats":
        lines += (f"Authorization: Bearer {frozen.admin_key}",)
    proofs = raw.signed(frozen, client.credentials, method, path, b"x") if declared.signed else ()
    head = raw.request(method, path, headers=(*proofs, *lines)).replace(HOST, raw.host(frozen))
    with raw.connected(frozen) as connection:
        connection.sendall(head)
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        frozen.move_clock(BODY_SECONDS + 1)
        assert outcome(raw.receive(frozen, connection, method, path, head)) == "408 request_timeout"
        assert connection.recv(1) == b""
    assert outcome(client.list_backup_versions()) == "200"


@pytest.mark.requirement("http.body-time", "order.answers")
@pytest.mark.parametrize(
    ("change", "wants"),
    [
        ({"secret": "another secret"}, "401 signature_invalid"),
        ({"created": 0}, "401 signature_expired"),
        ({}, "415 unsupported_media_type"),
    ],
)
def test_what_the_head_tells_comes_before_the_time(frozen, change, wants):
    credentials = secrets.token_hex(32), secrets.token_hex(32)
    assert outcome(frozen.client(credentials).register_user()) == "201"
    proofs = raw.signed(frozen, credentials, "POST", "/api/backup", b"x", **change)
    head = raw.request("POST", "/api/backup", headers=(*proofs, "Content-Length: 1", "Expect: 100-continue"))
    _, answer = raw.expect(frozen, head, b"", "POST", "/api/backup", lambda: frozen.move_clock(BODY_SECONDS + 1))
    assert outcome(answer) == wants


# ---- Sizes -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("backup.body", "storeBackup.413", "storeBackup.201")
@pytest.mark.parametrize(
    ("size", "wants"),
    [(BODY_BYTES - 1, "201"), (BODY_BYTES, "201"), (BODY_BYTES + 1, "413 payload_too_large")],
)
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_size_of_the_body(user, size, wants, coding):
    body = upload(b"short, but padded with white space").ljust(size)
    if coding == "chunked":
        frames = chunked(*(body[start : start + 1_000_000] for start in range(0, size, 1_000_000)))
        answer = user.send("POST", "/api/backup", body, "Transfer-Encoding: chunked", framed=frames)
    else:
        answer = user.send("POST", "/api/backup", body)
    assert outcome(answer) == wants


@pytest.mark.edge_may_answer
@pytest.mark.requirement("backup.body", "problem.unchanged")
@pytest.mark.parametrize("size", [2 * BODY_BYTES, 4 * BODY_BYTES])
def test_much_too_large_a_body_sent_all_the_same(target, user, size):
    with contextlib.suppress(*CUT_OFF):
        assert outcome(user.send("POST", "/api/backup", b" " * size)) == "413 payload_too_large"
    assert outcome(user.client.fetch_backup()) == "404 no_backup"


@pytest.mark.requirement("backup.largest", "backup.too-large", "backup.bytes", "storeBackup.413", "storeBackup.201")
@pytest.mark.parametrize(
    ("size", "wants"),
    [
        (1, "201"),
        (DECODED_BYTES - 1, "201"),
        (DECODED_BYTES, "201"),
        (DECODED_BYTES + 1, "413 payload_too_large"),
        (DECODED_BYTES + 2, "413 payload_too_large"),
    ],
)
def test_size_of_the_backup(user, size, wants):
    blob = secrets.token_bytes(size)
    stored = user.client.store_backup(blob)
    assert outcome(stored) == wants
    if wants == "201":
        assert stored.json()["size"] == size
        assert backup_bytes(user.client.fetch_backup()) == blob
    else:
        assert outcome(user.client.fetch_backup()) == "404 no_backup"


@pytest.mark.requirement("backup.largest", "backup.too-large", "changeStorageKey.413", "changeStorageKey.200")
@pytest.mark.parametrize(("size", "wants"), [(DECODED_BYTES, "200"), (DECODED_BYTES + 1, "413 payload_too_large")])
def test_size_of_the_backup_at_a_key_change(user, size, wants):
    assert outcome(user.client.change_storage_key(user.credentials[1][::-1], bytes(size))) == wants


@pytest.mark.requirement("backup.largest", "backup.body", "backup.bytes")
def test_the_largest_backup_with_each_slash_escaped(user):
    blob = b"\xff\xff\xff" * 300_000 + secrets.token_bytes(DECODED_BYTES - 900_000)
    body = upload(blob).replace(b"/", rb"\/")
    assert BODY_BYTES * 0.9 < len(body) <= BODY_BYTES
    assert outcome(user.send("POST", "/api/backup", body)) == "201"
    assert backup_bytes(user.client.fetch_backup()) == blob


# ---- Paths, queries, methods -------------------------------------------------------------------------------


PATHS_OF_NOTHING = [
    *("/nothing", "/health/", "/Health", "/HEALTH", "/health;x", "/health.json"),
    *("/api", "/api/backup/", "/api/backup/versions/", "/api/backup/versions/1/", "/api/user/", "/user"),
    *("/openapi.yml", "/openapi", "/openapi.JSON", "/admin", "/admin/stats/"),
]
# An edge may refuse these, or bring them into another form (RFC 3986 section 6.2.2).
PATHS_IN_ANOTHER_FORM = [
    *("//", "//health", "/health//", "/%68ealth", "/health%00", "/health%0A", "/health%20", "/health%3F"),
    *("/./health", "/health/.", "/api/../health", "/api//backup", "//api/backup", "/api/./backup"),
    *("/api%2Fbackup", "/api/backup%2Fversions", "/api/backup/versions//1", "/http://backup.example/health"),
]


@pytest.mark.requirement("problem.path")
@pytest.mark.parametrize(
    "path",
    [*PATHS_OF_NOTHING, *(pytest.param(path, marks=pytest.mark.edge_may_change) for path in PATHS_IN_ANOTHER_FORM)],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_path_is_compared_as_sent(target, method, path):
    for headers in ((), raw.signed(target, NOBODY, method, path)):
        assert outcome(raw.send(target, raw.request(method, path, headers=headers))) == "404 not_found"


@pytest.mark.edge_may_change
@pytest.mark.requirement("problem.path", "http.framing")
@pytest.mark.parametrize("path", ["/h\xe9alth", "*", "health"])
def test_a_target_that_http_does_not_allow(target, path):
    assert outcome(raw.send(target, raw.request("GET", path))) in ("400 malformed_request", "404 not_found")


@pytest.mark.requirement("signature.query")
@pytest.mark.parametrize(("method", "path"), SIGNED)
@pytest.mark.parametrize("query", ["?", "?x=1", "??", "?%00"])
def test_a_signed_operation_has_no_query(user, method, path, query):
    assert outcome(user.send(method, path + query)) == "400 malformed_request"
    assert outcome(user.client.fetch_backup()) == "404 no_backup"


@pytest.mark.requirement("problem.path")
@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/openapi.yaml"])
@pytest.mark.parametrize("query", ["?", "?x=1", "?/../api/backup"])
def test_an_unsigned_operation_ignores_a_query(target, path, query):
    assert outcome(raw.send(target, raw.request("GET", path + query))) == "200"


ABSOLUTE = ["http://{host}", "HTTP://{host}", "https://{host}", "http://other.example", "http://other.example:8080"]


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.absolute", "signature.path", "signature.query")
@pytest.mark.parametrize(("method", "path"), SIGNED)
@pytest.mark.parametrize("origin", ABSOLUTE)
def test_an_absolute_target_is_answered_like_its_path(user, origin, method, path):
    """See RFC 9112 section 3.2.2. The path is what is signed."""
    target_form = origin.format(host=raw.host(user.target).split()[1].decode()) + path
    body = upload(b"any") if (method, path) == UPLOADS[0] else None
    lines = raw.signed(user.target, user.credentials, method, path, body or b"")
    lines += ("Content-Type: application/json",)

    def sent(target_form: str, *proofs: str) -> str:
        return outcome(raw.send(user.target, raw.request(method, target_form, body, proofs or lines)))

    assert sent(target_form + "?x") == sent(target_form + "?") == "400 malformed_request"
    assert sent(target_form + "/") == sent(target_form.replace("/api", "//api", 1)) == "404 not_found"
    whole = raw.signed(user.target, user.credentials, method, target_form, body or b"")
    assert sent(target_form, *whole, "Content-Type: application/json") == "401 signature_invalid"
    refused = "415 unsupported_media_type" if (method, path) == UPLOADS[1] else None
    lines = lines[:-1] if refused else lines
    wants = {"/api/register": "200", "/api/backup/versions": "200", "/api/user": "204"}
    expected = refused or wants.get(path, "201" if body else "404 no_backup" if path == "/api/backup" else None)
    assert sent(target_form) == (expected or "404 no_such_version")


@pytest.mark.edge_may_change
@pytest.mark.requirement("http.absolute", "problem.path", "problem.method")
@pytest.mark.parametrize("origin", ABSOLUTE)
def test_an_absolute_target_without_a_proof(target, origin):
    origin = origin.format(host=raw.host(target).split()[1].decode())
    for method, path, wants in [
        ("GET", "/health", "200"),
        ("GET", "/health?x", "200"),
        ("GET", "/health/", "404 not_found"),
        ("GET", "//health", "404 not_found"),
        ("GET", "", "404 not_found"),
        ("GET", "/nothing", "404 not_found"),
        ("PUT", "/health", "405 method_not_allowed"),
        ("GET", "/api/backup", "401 signature_missing"),
    ]:
        answer = raw.send(target, raw.request(method, origin + path))
        assert outcome(answer) == wants or (path == "" and answer.status == 200)  # a server may have a page at /


NEED_NOT_BE_NAMED = {"HEAD", "OPTIONS"}
ALLOW = {
    "/api/register": {"POST"},
    "/api/backup": {"GET", "POST"},
    "/api/backup/versions": {"GET"},
    "/api/backup/versions/1": {"GET"},
    "/api/user/storage-key": {"PUT"},
    "/api/user": {"DELETE"},
    "/health": {"GET", "HEAD"},
    "/admin/stats": {"GET"},
    "/openapi.yaml": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
}
METHODS = "GET HEAD POST PUT DELETE OPTIONS PATCH".split()
RARE_METHODS = "TRACE QUERY PROPFIND LINK get Get post M-SEARCH FOO GETX GE".split()  # an edge may refuse them


def skip_unless_there(request: pytest.FixtureRequest, path: str) -> None:
    """Skip the test if the target lacks an operation of this path."""
    target = request.getfixturevalue("target")
    target.skip_without(*(each.id for each in openapi.OPERATIONS.values() if each.matches(path)))
    if path == "/admin/stats":  # it does not exist if no admin key is configured
        request.getfixturevalue("admin_key")


@pytest.mark.requirement("problem.method", "header.Allow", "http.head")
@pytest.mark.parametrize("path", PATHS)
def test_methods(request, target, path):
    skip_unless_there(request, path)
    for method in set(METHODS) - ALLOW[path]:
        assert_method_not_allowed(target, NOBODY, method, path)


@pytest.mark.requirement("problem.method", "problem.unchanged")
@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/api/")])
def test_a_method_that_is_not_allowed_changes_nothing(target, user, path):
    target.skip_without(*(each.id for each in openapi.OPERATIONS.values() if each.matches(path)))
    for method in set(METHODS) - ALLOW[path]:
        assert_method_not_allowed(target, user.credentials, method, path)
    assert outcome(user.client.register_user()) == "200"


@pytest.mark.edge_may_answer
@pytest.mark.requirement("problem.method", "header.Allow")
@pytest.mark.parametrize("method", RARE_METHODS)
def test_rare_methods(target, method):
    for path in PATHS:
        if path != "/admin/stats" and not target.observer.lacks(path):
            assert_method_not_allowed(target, NOBODY, method, path)


@pytest.mark.edge_may_answer
@pytest.mark.requirement("problem.method", "header.Allow")
@pytest.mark.parametrize("method", RARE_METHODS)
def test_rare_methods_of_the_statistics(request, target, method):
    skip_unless_there(request, "/admin/stats")
    assert_method_not_allowed(target, NOBODY, method, "/admin/stats")


NOBODY = secrets.token_hex(32), secrets.token_hex(32)  # credentials of no account


def assert_method_not_allowed(target: Any, credentials: tuple[str, str], method: str, path: str) -> None:
    for headers in ((), raw.signed(target, credentials, method, path)):
        answer = raw.send(target, raw.request(method, path, headers=headers))
        assert answer.status == 405, method
        assert set(answer.headers["Allow"].split(", ")) - NEED_NOT_BE_NAMED == ALLOW[path] - {"HEAD"}, method
        assert method == "HEAD" or answer.json()["code"] == "method_not_allowed"


@pytest.mark.edge_may_answer
@pytest.mark.requirement("problem.path")
@pytest.mark.parametrize("method", [*METHODS, *RARE_METHODS])
def test_methods_of_a_path_that_is_not_there(target, method):
    assert raw.send(target, raw.request(method, "/nothing")).status == 404


@pytest.mark.public
@pytest.mark.requirement("http.head")
@pytest.mark.parametrize("path", ["/health", "/openapi.yaml", "/openapi.json"])
def test_head_is_get_without_the_body(target, path):
    got, head = (raw.send(target, raw.request(method, path)) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert int(head.headers.get("Content-Length", len(got.body))) == len(got.body)


@pytest.mark.edge_may_answer
@pytest.mark.requirement("etag.match", "fetchBackup.304")
def test_if_none_match_may_stand_on_two_lines(user):
    """Two lines mean the same as one line with a comma (RFC 9110 section 5.3)."""
    etag = user.client.store_backup(b"any").json()
    etag = f'"1-{etag["sha256"]}"'
    lines = ('If-None-Match: "other"', f"If-None-Match: {etag}")
    proofs = raw.signed(user.target, user.credentials, "GET", "/api/backup")
    answer = raw.send(user.target, raw.request("GET", "/api/backup", headers=(*proofs, *lines)))
    assert (answer.status, answer.headers["ETag"]) == (304, etag)


# ---- The order of checks -----------------------------------------------------------------------------------


@dataclass
class Draft:
    """An upload that is not sent yet. Each of the faults below spoils one thing about it."""

    server: Any
    user_id: str
    storage_key: str
    method: str = "POST"
    path: str = "/api/backup"
    query: str = ""
    content_type: str = "application/json"
    lines: list[str] = field(default_factory=list)
    members: dict[str, Any] = field(default_factory=dict)
    trailing: bytes = b""
    unsigned: bytes = b""
    sign: dict[str, Any] = field(default_factory=dict)
    left_out: str = "none"  # a header of the signature
    label: str = "app"
    length: int | None = None
    framed: bytes | None = None  # sent chunked, instead of the body
    seconds: int = 0  # how long the body takes

    def send(self) -> raw.Answer:
        body = json.dumps(self.members).encode() + self.trailing
        credentials = (self.user_id, self.storage_key)
        headers = raw.signed(self.server, credentials, self.method, self.path, body, **self.sign)
        headers = tuple(
            line.replace(": app=", f": {self.label}=") for line in headers if not line.startswith(self.left_out)
        )
        body += self.unsigned
        headers += (f"Content-Type: {self.content_type}", *self.lines)
        if self.length is not None:
            headers, body = (*headers, f"Content-Length: {self.length}"), b""
        elif self.framed is not None:
            headers, body = (*headers, "Transfer-Encoding: chunked"), self.framed
        else:
            headers = (*headers, f"Content-Length: {len(body)}")
        path = self.path + self.query
        if not self.seconds:
            return raw.send(self.server, raw.request(self.method, path, None, headers) + body)
        head = raw.request(self.method, path, None, (*headers, "Expect: 100-continue"))
        wait = functools.partial(self.server.move_clock, self.seconds)
        return raw.expect(self.server, head, body, self.method, path, wait)[1]


LATEST, BASE = b"the latest version", sha256(b"the latest version")


def fail_credentials(draft: Draft) -> None:
    """Use up the failures that the user may have at this address, which is one."""
    assert outcome(draft.server.client((draft.user_id, "0" * 64)).fetch_backup()) == "401 credentials_invalid"


def spend_uploads(draft: Draft) -> None:
    """Use up the uploads that the account may make in an hour."""
    client = draft.server.client((draft.user_id, draft.storage_key))
    stored = client.store_backup(secrets.token_bytes(8), BASE)
    assert outcome(stored) == "201"
    again = client.store_backup(LATEST, stored.json()["sha256"])
    assert outcome(again) == "201"


def fill_the_disk(draft: Draft) -> None:
    draft.server.fault = "storage_full"


# What to prepare before the request is sent. Uploads come before failures.
PREPARE: dict[str, Callable[[Draft], None]] = {
    "429 rate_limited (account)": spend_uploads,
    "429 rate_limited (address)": fail_credentials,
    "507 storage_full": fill_the_disk,
}
# In the order of the spec: the first check that fails decides the answer.
SPOIL: dict[str, Callable[[Draft], None]] = {
    "400 malformed_request": lambda draft: draft.lines.append("Host: other.example"),
    "413 payload_too_large": lambda draft: setattr(draft, "length", 10**9),
    "404 not_found": lambda draft: setattr(draft, "path", "/api/backups"),
    "405 method_not_allowed": lambda draft: setattr(draft, "method", "PATCH"),
    "400 malformed_request (query)": lambda draft: setattr(draft, "query", "?x"),
    "401 signature_missing": lambda draft: setattr(draft, "left_out", "Content-Digest"),
    "401 signature_invalid (form)": lambda draft: setattr(draft, "label", "sig1"),
    "403 app_outdated": lambda draft: draft.sign.update(keyid="retired"),
    "401 signature_invalid": lambda draft: draft.sign.update(secret="another secret"),
    "401 signature_expired": lambda draft: draft.sign.update(created=1),
    "429 rate_limited (address)": lambda draft: None,
    "401 credentials_invalid": lambda draft: setattr(draft, "storage_key", "ab" * 32),
    "415 unsupported_media_type": lambda draft: setattr(draft, "content_type", "text/plain"),
    "413 payload_too_large (chunked)": lambda draft: setattr(draft, "framed", chunked(b" " * (BODY_BYTES + 1))),
    "400 malformed_request (chunks)": lambda draft: setattr(draft, "framed", b"x\r\n"),
    "408 request_timeout": lambda draft: setattr(draft, "seconds", BODY_SECONDS + 1),
    "400 digest_mismatch": lambda draft: setattr(draft, "unsigned", b" "),
    "400 malformed_request (JSON)": lambda draft: setattr(draft, "trailing", b"x"),
    "422 validation_failed": lambda draft: draft.members.update(unknown=1),
    "413 payload_too_large (decoded)": lambda draft: draft.members.update(
        data=base64.b64encode(bytes(DECODED_BYTES + 1)).decode()
    ),
    "200": lambda draft: draft.members.update(data=base64.b64encode(LATEST).decode()),
    "409 version_conflict": lambda draft: draft.members.update(baseSha256="ab" * 32),
    "429 rate_limited (account)": lambda draft: None,
    "507 storage_full": lambda draft: None,
}


OF_THE_BODY = {
    "413 payload_too_large (chunked)",
    "400 malformed_request (chunks)",
    "408 request_timeout",
}
NO_PAIRS = [
    {"413 payload_too_large (decoded)", "200"},  # no upload can be both
    {"429 rate_limited (address)", "408 request_timeout"},  # when the body is late, the address may try again
    *({first, second} for first in OF_THE_BODY for second in OF_THE_BODY if first != second),  # they have one step
]


@pytest.mark.requirement("order.answers")
@pytest.mark.parametrize("first", SPOIL)
def test_the_first_that_fails_answers(ordered, first):
    """Try each pair of faults in one request."""
    rest = list(SPOIL)[list(SPOIL).index(first) :]
    server = ordered
    for second in rest:
        if {first, second} in NO_PAIRS:
            continue
        server.move_clock(86_400)
        draft = Draft(server, secrets.token_hex(32), secrets.token_hex(32))
        client = server.client((draft.user_id, draft.storage_key))
        assert outcome(client.register_user()) == "201"
        assert outcome(client.store_backup(LATEST)) == "201"
        server.move_clock(3600)
        draft.members = {"data": base64.b64encode(secrets.token_bytes(8)).decode(), "baseSha256": BASE}
        for name, prepare in PREPARE.items():
            if name in (first, second):
                prepare(draft)
        for name in (second, first):
            SPOIL[name](draft)
        answer = draft.send()
        server.fault = None
        assert outcome(answer) == first.partition(" (")[0], f"{first} before {second}"


@pytest.fixture(scope="module")
def ordered(start_shared_server):
    """A server on which an account may upload twice an hour, a user may fail once, and a keyid is retired."""
    return start_shared_server(
        frozen=1_800_000_000, BACKUPS_PER_HOUR=2, FAILED_CREDENTIALS_PER_5_MINUTES=1, RETIRED_KEYIDS="retired"
    )


@pytest.mark.requirement("order.answers", "http.no-body")
@pytest.mark.parametrize("coding", ["length", "chunked", "late"])
@pytest.mark.parametrize(("method", "path"), [each for each in SIGNED if each not in UPLOADS])
def test_where_a_needless_body_stands_in_the_order(frozen, method, path, coding):
    """It comes after the credentials, and before what is asked for and anything that the body tells."""
    lines, body = {
        "length": (("Content-Length: 1",), b"x"),
        "chunked": (("Transfer-Encoding: chunked",), chunked(b"x")),
        "late": (("Transfer-Encoding: chunked",), b"1\r\nx\r\n"),
    }[coding]
    path = path.replace("/1", "/x")
    credentials = secrets.token_hex(32), secrets.token_hex(32)
    client = frozen.client(credentials)
    assert outcome(client.register_user()) == "201"
    for known, wants in [
        (credentials, "400 malformed_request"),
        ((secrets.token_hex(32), credentials[1]), "401 credentials_invalid"),
    ]:
        if path == "/api/register" and known != credentials:
            continue  # there, any credentials are right
        proofs = raw.signed(frozen, known, method, path, b"")
        head = raw.request(method, path, headers=(*proofs, *lines, "Expect: 100-continue"))
        wait = functools.partial(frozen.move_clock, BODY_SECONDS + 1 if coding == "late" else 0)
        assert outcome(raw.expect(frozen, head, body, method, path, wait)[1]) == wants
    assert outcome(client.fetch_backup()) == "404 no_backup"


@pytest.mark.requirement("order.answers", "digest.empty")
@pytest.mark.parametrize(("method", "path"), [each for each in SIGNED if each not in UPLOADS])
def test_the_digest_of_no_body_comes_before_what_is_asked_for(user, method, path):
    path = path.replace("/1", "/x")
    headers = raw.signed(user.target, user.credentials, method, path, b"{}")
    answer = raw.send(user.target, raw.request(method, path, headers=headers))
    assert outcome(answer) == "400 digest_mismatch"


@pytest.mark.requirement("order.answers", "registerUser.507")
def test_the_order_at_registration(start_server):
    server = start_server(frozen=1_800_000_000, REGISTRATIONS_PER_HOUR=3)
    user_id = secrets.token_hex(32)
    living, deleted, newcomer = (
        server.client((user_id, secrets.token_hex(32))),
        server.client(),
        server.client(),
    )
    other = server.client((user_id, secrets.token_hex(32)))
    for client in (living, deleted):
        assert outcome(client.register_user()) == "201"
    assert outcome(deleted.delete_user()) == "204"

    def answers() -> list[str]:
        server.fault = "storage_full"
        told = [outcome(client.register_user()) for client in (living, other, deleted, newcomer)]
        server.fault = None
        return told

    assert answers() == ["200", "409 username_taken", "409 recently_deleted", "507 storage_full"]
    assert outcome(server.client().register_user()) == "201"  # the third
    assert answers() == ["200", *["429 rate_limited"] * 3]
    server.move_clock(3600)
    assert outcome(newcomer.register_user()) == "201"


@pytest.mark.requirement("version.canonical", "order.answers")
def test_a_version_is_looked_at_after_the_credentials(target):
    for path in ("/api/backup/versions/x", "/api/backup/versions/0"):
        proofs = raw.signed(target, (secrets.token_hex(32), secrets.token_hex(32)), "GET", path)
        assert outcome(raw.send(target, raw.request("GET", path, headers=proofs))) == "401 credentials_invalid"
        assert outcome(raw.send(target, raw.request("GET", path))) == "401 signature_missing"


# ---- CORS --------------------------------------------------------------------------------------------------


EXPOSED = {"ETag", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"}
SENT = {"Authorization", "Content-Digest", "Content-Type", "If-None-Match", "Signature", "Signature-Input"}
OTHER_ORIGINS = [  # `filled` makes them from the allowed origin
    "https://other.example",
    "{other_scheme}://{host}",
    "{origin}:8443",
    "{origin}.other",
    "{origin}/",
    "{scheme}://{capital_host}",
    "{scheme}://sub.{host}",
    "{shorter}",
    "null",
    "*",
    "",
    "{origin}, {origin}",
]


def filled(text: str, origin: str) -> str:
    """Fill in a text with the allowed origin and its parts."""
    scheme, _, host = origin.partition("://")
    other_scheme = "http" if scheme == "https" else "https"
    names = {"origin": origin, "scheme": scheme, "host": host, "other_scheme": other_scheme, "shorter": origin[:-1]}
    return text.format(capital_host=host.upper(), **names)


def listed(answer: raw.Answer, name: str) -> set[str]:
    """Return the names in a header that is a list, in lowercase."""
    return set(filter(None, answer.headers.get(name, "").replace(" ", "").lower().split(",")))


def small(names: set[str]) -> set[str]:
    return {name.lower() for name in names}


def cors(answer: raw.Answer) -> list[str]:
    """Return the headers of an answer that tell a browser about CORS."""
    return [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.public
@pytest.mark.requirement("cors.preflight", "cors.vary")
@pytest.mark.parametrize("path", PATHS)
def test_preflight(request, target, allowed_origin, path):
    skip_unless_there(request, path)
    lines = (
        f"Origin: {allowed_origin}",
        "Access-Control-Request-Method: GET",
        "Access-Control-Request-Headers: x",
    )
    answer = raw.send(target, raw.request("OPTIONS", path, headers=lines))
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == allowed_origin
    assert listed(answer, "Access-Control-Allow-Headers") == small(SENT)
    assert listed(answer, "Access-Control-Allow-Methods") - small(NEED_NOT_BE_NAMED) == small(ALLOW[path]) - {"head"}
    assert "origin" in listed(answer, "Vary")


@pytest.mark.public
@pytest.mark.requirement("cors.others", "problem.method")
@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Origin: {origin}",),
        ("Access-Control-Request-Method: GET",),
        *((f"Origin: {origin}", "Access-Control-Request-Method: GET") for origin in OTHER_ORIGINS),
    ],
)
def test_any_other_options_is_405(target, allowed_origin, lines):
    lines = tuple(filled(line, allowed_origin) for line in lines)
    answer = raw.send(target, raw.request("OPTIONS", "/api/backup", headers=lines))
    assert outcome(answer) == "405 method_not_allowed"
    assert "Access-Control-Allow-Methods" not in answer.headers


CORS_REQUESTS = {
    "200": raw.request("GET", "/health"),
    "404": raw.request("GET", "/nothing"),
    "405": raw.request("POST", "/health"),
    "401": raw.request("GET", "/api/backup"),
    "400": raw.request("GET", "/api/backup?"),
    "413": raw.request("POST", "/api/backup", headers=("Content-Length: 1000000000",)),
}


@pytest.mark.requirement("cors.exposed", "cors.vary")
@pytest.mark.parametrize(
    "status",
    # An edge may wait for the body before it hands on the answer.
    [
        pytest.param(status, marks=pytest.mark.edge_may_change) if status == "413" else status
        for status in CORS_REQUESTS
    ],
)
def test_an_allowed_origin_may_read_every_answer(target, allowed_origin, status):
    line = f"{HOST.decode()}Origin: {allowed_origin}\r\n".encode()
    answer = raw.send(target, CORS_REQUESTS[status].replace(HOST, line))
    assert answer.status == int(status)
    assert answer.headers["Access-Control-Allow-Origin"] == allowed_origin
    assert listed(answer, "Access-Control-Expose-Headers") == small(EXPOSED)
    assert "origin" in listed(answer, "Vary")


@pytest.mark.requirement("cors.others", "cors.vary")
@pytest.mark.parametrize("origin", [None, *OTHER_ORIGINS])
@pytest.mark.parametrize("status", ["200", "404", "401", "400"])
def test_any_other_origin_is_told_nothing(target, allowed_origin, status, origin):
    line = HOST if origin is None else f"{HOST.decode()}Origin: {filled(origin, allowed_origin)}\r\n".encode()
    answer = raw.send(target, CORS_REQUESTS[status].replace(HOST, line))
    assert cors(answer) == []
    assert "origin" in listed(answer, "Vary")


@pytest.mark.requirement("cors.others")
def test_without_allowed_origins_there_is_no_cors(start_server):
    server = start_server()
    lines = ("Origin: https://app.example", "Access-Control-Request-Method: GET")
    for method, wants in [("OPTIONS", "405 method_not_allowed"), ("GET", "200")]:
        answer = raw.send(server, raw.request(method, "/health", headers=lines))
        assert outcome(answer) == wants
        assert cors(answer) == []
