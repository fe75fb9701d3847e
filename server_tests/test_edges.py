"""The contract tests as the test after a deploy: through Caddy, HAProxy and nginx, and what makes them notice a fault.

`tox run -e edge` runs these tests. Each edge has TLS from an authority that only the test knows, HTTP/2 outside, and
compression. A test of an edge that this machine does not have is not run.
"""

import base64
import json
import os
import re
import secrets
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from clients.python.backup_client import authorization, sign
from contract_tests.target import edge as edges_seen
from contract_tests.target.calls import sha256, stats
from contract_tests.target.network import CA_BUNDLE, NO_PROXY
from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.target import RAISED_LIMITS
from server_tests import edges

HERE = Path(__file__).resolve().parent
ORIGIN = "https://app.example"
LIMITS = {"public": {}, "full": RAISED_LIMITS}
# Why a test may be not run behind an edge.
REASONS = (
    "does not fit the limits of a public deployment",
    "needs a server of its own, with a clock, faults and settings, but --base-url names another server",
    "needs a target without TLS, because it looks at the first bytes of an answer",
)
OF_AN_EDGE = re.compile(r"the edge in front of the target \(.+\) (may change what|answered a request of) this test")
FIGURES = re.compile(r"(\d+) (passed|failed|errors?|not run|skipped)")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# What a test must not get from whoever runs it.
AMBIENT = {*CA_BUNDLE, *NO_PROXY, *PROXIES, *(name.upper() for name in PROXIES), "CURL_CA_BUNDLE", "SSL_CERT_DIR"}


@pytest.fixture
def start(start_server: Callable[..., Any]) -> Callable[..., Any]:
    """`start(**settings)` starts a server that takes the client's address from its proxy."""

    def started(**settings: Any) -> Any:
        app_secret = f"app:{secrets.token_hex(32)},next:{secrets.token_hex(32)}"
        proxy = {"CLIENT_ADDRESS_HEADER": "X-Forwarded-For"}
        return start_server(APP_SECRET_KEY=app_secret, ALLOWED_ORIGINS=ORIGIN, **proxy | settings)

    return started


def contract(server: Any, base_url: str, *arguments: Any, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the contract tests."""
    inherited = {name: value for name, value in os.environ.items() if name not in AMBIENT}
    own = {"APP_SECRET_KEY": server.environ["APP_SECRET_KEY"], "CONTRACT_ORIGIN": ORIGIN}
    own["ADMIN_SECRET_KEY"] = server.admin_key
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--base-url", base_url]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=REPOSITORY, env=inherited | own | environ, capture_output=True, text=True
    )
    print(done.stdout, done.stderr)
    return done


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Return how many tests had each outcome."""
    return {name: int(count) for count, name in FIGURES.findall(done.stdout.splitlines()[-1])}


# ---- Each profile through each edge ------------------------------------------------------------------------


@pytest.mark.parametrize("profile", LIMITS)
@pytest.mark.parametrize("name", edges.PROGRAMS)
def test_a_profile_through_an_edge(start, tmp_path, capsys, name, profile):
    server = start(**LIMITS[profile])
    with edges.running(name, server.base_url, tmp_path) as edge:
        done = contract(server, edge.base_url, "contract_tests", "--profile", profile, "--ca-bundle", edge.ca_bundle)
    assert done.returncode == 0, done.stdout
    counted = figures(done)
    assert counted.keys() == {"passed", "not run"}
    assert counted["passed"] > {"public": 200, "full": 800}[profile]
    reasons = re.findall(r"^  \d+ not run: (.*)$", done.stdout, re.MULTILINE)
    assert [reason for reason in reasons if reason not in REASONS and not OF_AN_EDGE.match(reason)] == []
    assert stats(server)["users"] == 0
    with capsys.disabled():
        print(f"\n{name}, {profile}: {counted['passed']} passed, {counted['not run']} not run, 0 failed", flush=True)


@pytest.mark.parametrize("name", edges.PROGRAMS)
def test_a_whole_life_over_http_2_with_compression(start, tmp_path, name):
    server = start()
    user, key = secrets.token_hex(32), secrets.token_hex(32)
    blob = bytes(100_000)  # its base64 is easy to compress

    def request(method: str, path: str, body: bytes = b"", **headers: str) -> dict[str, Any]:
        options: dict[str, Any] = {"secret": server.secret, "keyid": server.keyid, "created": int(server.now())}
        proofs = sign(method, path, body, authorization(user, key), **options)
        media_type = {"Content-Type": "application/json"} if body else {}
        return {
            "method": method,
            "path": path,
            "headers": {"accept-encoding": "gzip", **proofs, **media_type, **headers},
            "body": base64.b64encode(body).decode(),
        }

    upload = json.dumps({"data": base64.b64encode(blob).decode()}).encode()
    etag = f'"1-{sha256(blob)}"'
    steps = [
        (request("POST", "/api/register"), 201),
        (request("POST", "/api/backup", upload), 201),
        (request("GET", "/api/backup"), 200),
        (request("GET", "/api/backup", **{"If-None-Match": etag}), 304),
        (request("GET", "/api/backup", **{"If-None-Match": f"W/{etag}"}), 304),
        (request("GET", "/api/backup/versions"), 200),
        (request("DELETE", "/api/user"), 204),
        (request("GET", "/api/backup"), 401),
    ]
    with edges.running(name, server.base_url, tmp_path) as edge:
        command = ["node", str(HERE / "http2.mjs"), edge.base_url, str(edge.ca_bundle)]
        asked = json.dumps([request for request, _ in steps])
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["status"] for answer in answers] == [status for _, status in steps]
    fetched = answers[2]
    assert fetched["headers"]["content-encoding"] == "gzip"
    assert base64.b64decode(json.loads(base64.b64decode(fetched["body"]))["data"]) == blob
    named = {"ETag": fetched["headers"]["etag"], "Content-Encoding": "gzip"}
    assert edges_seen.own_etag(named) == etag


# ---- What is an edge ---------------------------------------------------------------------------------------


@contextmanager
def listening(serve: Callable[[socket.socket, socket.socket], None], server: Any) -> Iterator[int]:
    """Accept connections on a port, which this yields. `serve` gets each one, with a new one to the server."""
    host, port = server.base_url.removeprefix("http://").split(":")

    def served(outside: socket.socket) -> None:
        with suppress(OSError), outside, socket.create_connection((host, int(port))) as inside:
            serve(outside, inside)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=served, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def hand_on(outside: socket.socket, inside: socket.socket) -> None:
    """Hand on each byte as it is, both ways."""

    def one_way(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    there = threading.Thread(target=one_way, args=(outside, inside), daemon=True)
    there.start()
    one_way(inside, outside)
    there.join(5)


@contextmanager
def tls_in_front_of(server: Any, folder: Path) -> Iterator[edges.Edge]:
    """Run what ends TLS, and hands on each byte as it is."""
    ca_bundle = edges.certificates(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    def serve(outside: socket.socket, inside: socket.socket) -> None:
        with context.wrap_socket(outside, server_side=True) as secure:
            hand_on(secure, inside)

    with listening(serve, server) as port:
        yield edges.Edge(f"https://localhost:{port}", ca_bundle)


def test_a_server_alone_is_no_edge(start):
    assert edges_seen.find(start().base_url) is None


def test_what_only_ends_tls_is_no_edge(start, tmp_path):
    """So the tests that send malformed requests run, and pass."""
    server = start(**RAISED_LIMITS)
    with tls_in_front_of(server, tmp_path) as edge:
        done = contract(
            server, edge.base_url, "contract_tests/test_http.py", "-k", "test_malformed", "--ca-bundle", edge.ca_bundle
        )
    assert (done.returncode, figures(done).keys()) == (0, {"passed"})


@pytest.mark.parametrize("name", edges.PROGRAMS)
def test_without_leniency_an_edge_fails(start, tmp_path, name):
    """--direct says that nobody but the server may answer."""
    server = start(**RAISED_LIMITS)
    tests = ("contract_tests/test_http.py", "-k", "test_malformed_requests")
    with edges.running(name, server.base_url, tmp_path) as edge:
        excused = contract(server, edge.base_url, *tests, "--ca-bundle", edge.ca_bundle)
        failed = contract(server, edge.base_url, *tests, "--ca-bundle", edge.ca_bundle, "--direct")
    assert (excused.returncode, figures(excused).keys()) == (0, {"not run"})
    assert failed.returncode == 1 and figures(failed)["failed"] > 10


def test_an_edge_that_refuses_what_the_contract_allows_fails(start, tmp_path, monkeypatch):
    """By default, nginx refuses a body of more than a megabyte."""
    small = edges.NGINX.replace("client_max_body_size 20m;", "")
    monkeypatch.setitem(edges.PROGRAMS, "nginx", (small, edges.PROGRAMS["nginx"][1]))
    server = start(**RAISED_LIMITS)
    tests = ("contract_tests/test_http.py", "-k", "test_size_of_the_backup")
    with edges.running("nginx", server.base_url, tmp_path) as edge:
        done = contract(server, edge.base_url, *tests, "--ca-bundle", edge.ca_bundle)
    assert done.returncode == 1 and figures(done)["failed"] >= 2


def test_an_edge_without_a_server_fails(start, tmp_path):
    server = start()
    with edges.running("nginx", server.base_url, tmp_path) as edge:
        server.stop()
        done = contract(server, edge.base_url, "contract_tests", "--profile", "public", "--ca-bundle", edge.ca_bundle)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "gets 502" in done.stdout + done.stderr


# ---- Trust and proxies -------------------------------------------------------------------------------------

FEW = ("contract_tests/test_whole_life.py", "contract_tests/test_http.py", "--profile", "public")


@pytest.mark.parametrize("how", ["--ca-bundle", *CA_BUNDLE, "CONTRACT_CA_BUNDLE"])
def test_one_setting_for_trust_is_enough(start, tmp_path, how):
    """It reaches the library that most tests use, and the sockets of the others."""
    server = start()
    with tls_in_front_of(server, tmp_path) as edge:
        option = ("--ca-bundle", edge.ca_bundle) if how.startswith("--") else ()
        environ = {} if option else {how: str(edge.ca_bundle)}
        done = contract(server, edge.base_url, *FEW, *option, **environ)
    assert done.returncode == 0 and "failed" not in figures(done)


def test_without_it_nobody_is_trusted(start, tmp_path):
    server = start()
    with tls_in_front_of(server, tmp_path) as edge:
        done = contract(server, edge.base_url, *FEW)
        assert (done.returncode, "cannot be reached" in done.stdout + done.stderr) == (4, True)
        done = contract(server, edge.base_url, *FEW, "--ca-bundle", tmp_path / "nothing")
        assert (done.returncode, "no bundle of certificates" in done.stdout + done.stderr) == (4, True)


@pytest.mark.parametrize("how", CA_BUNDLE)
def test_one_setting_for_trust_is_enough_for_the_demo(start, tmp_path, how):
    server = start()
    with tls_in_front_of(server, tmp_path) as edge:
        done = demo(server, edge.base_url, **{how: str(edge.ca_bundle)})
    assert done.returncode == 0, done.stderr


def demo(server: Any, base_url: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in AMBIENT}
    own = {"APP_SECRET_KEY": server.environ["APP_SECRET_KEY"]}
    command = [sys.executable, "-m", "clients.python.demo", "--base-url", base_url]
    return subprocess.run(command, cwd=REPOSITORY, env=inherited | own | environ, capture_output=True, text=True)


NOBODY = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy")}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_needs_no_proxy(start, host):
    server = start()
    base_url = server.base_url.replace("127.0.0.1", host)
    assert demo(server, base_url, **NOBODY).returncode == 0
    assert contract(server, base_url, *FEW, **NOBODY).returncode == 0


def test_any_other_target_is_reached_through_the_proxy(start):
    """The name of the target is one that only the proxy knows."""
    server, seen = start(), []
    with proxy_to(server, seen) as proxy:
        environ = {"HTTP_PROXY": proxy, "http_proxy": proxy}
        assert demo(server, "http://backup.invalid", **environ).returncode == 0
        done = contract(server, "http://backup.invalid", *FEW, "contract_tests/test_statuses.py", **environ)
        assert done.returncode == 0 and "failed" not in figures(done)
    assert {line.split(" ")[0] for line in seen} >= {"CONNECT", "GET"}


@contextmanager
def proxy_to(server: Any, seen: list[str]) -> Iterator[str]:
    """Run a proxy that takes each target for the server. `seen` gets the request lines."""

    def serve(outside: socket.socket, inside: socket.socket) -> None:
        data = outside.recv(65_536)
        line = data.partition(b"\r\n")[0].decode("latin-1")
        seen.append(line)
        if line.startswith("CONNECT "):
            outside.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            inside.sendall(data)  # the server understands the absolute form
        hand_on(outside, inside)

    with listening(serve, server) as port:
        yield f"http://127.0.0.1:{port}"
