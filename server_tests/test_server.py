"""The server as a process: settings, boot, signals, log, files. The contract says nothing about these."""

import base64
import hashlib
import http.client
import json
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from clients.python.backup_client import authorization, backup_bytes, content_digest
from contract_tests.suite.outcomes import not_run
from contract_tests.target import openapi, raw
from contract_tests.target.calls import eventually, outcome
from contract_tests.target.openapi import SERVER
from contract_tests.target.process import COVERAGE, ServerProcess
from server import http_server, origins
from server_tests.test_bounds import preceded_by
from server_tests.this_server import copy_server

SECRET = "an-example-secret-for-the-tests-alone"
SETTINGS = [
    "APP_SECRET_KEY",
    "RETIRED_KEYIDS",
    "ADMIN_SECRET_KEY",
    "ALLOWED_ORIGINS",
    "CLIENT_ADDRESS_HEADER",
    "DATABASE_PATH",
    "HOST",
    "PORT",
    "METRICS_PORT",
    "BUCKET_NAME",
    "BUCKET_TAKEOVER",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "BACKUPS_PER_HOUR",
    "BACKUPS_PER_DAY",
    "KEY_CHANGES_PER_HOUR",
    "KEY_CHANGES_PER_DAY",
    "REGISTRATIONS_PER_HOUR",
    "FAILED_CREDENTIALS_PER_5_MINUTES",
    "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY",
    "KEEP_VERSIONS",
    "REVISION",
]
MEASURED = {name: os.environ[name] for name in COVERAGE if name in os.environ}
pytestmark = pytest.mark.usefixtures("local")


@pytest.fixture
def local(request):
    if request.config.getoption("--base-url"):
        pytest.skip("not run: needs a server process of its own, but --base-url names another server")


def run(directory: Path, server: Path = SERVER, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the server's file itself, as a user does, until it ends."""
    return subprocess.run(
        [sys.executable, server, *arguments],
        cwd=directory,
        env=MEASURED | environ,
        capture_output=True,
        text=True,
        timeout=30,
    )


@contextmanager
def serving(
    directory: Path, server: Path = SERVER, **environ: str
) -> Iterator[tuple[subprocess.Popen, dict[str, Any]]]:
    """Run the server's file itself. Yield the process, and the log line that says where it serves."""
    command = [sys.executable, server]
    with subprocess.Popen(command, cwd=directory, env=MEASURED | environ, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


# ---- Settings ----------------------------------------------------------------------------------------------


def test_help(tmp_path):
    done = run(tmp_path, SERVER, "--help")
    assert done.returncode == 0
    for name in SETTINGS:
        assert name in done.stdout
    assert list(tmp_path.iterdir()) == []


REFUSED_SETTINGS = [
    ("APP_SECRET_KEY", None),
    ("APP_SECRET_KEY", ""),
    ("APP_SECRET_KEY", "s" * 31),
    ("APP_SECRET_KEY", " " * 40),
    ("APP_SECRET_KEY", f"{SECRET},"),
    ("APP_SECRET_KEY", f",{SECRET}"),
    ("APP_SECRET_KEY", f":{SECRET}"),
    ("APP_SECRET_KEY", f"a b:{SECRET}"),
    ("APP_SECRET_KEY", f"é:{SECRET}"),
    ("APP_SECRET_KEY", f"{'k' * 65}:{SECRET}"),
    ("APP_SECRET_KEY", f"a:b:{SECRET}"),
    ("APP_SECRET_KEY", f"a:{SECRET},a:{SECRET}x"),
    ("APP_SECRET_KEY", f"a:{SECRET},b:short"),
    ("RETIRED_KEYIDS", "a b"),
    ("RETIRED_KEYIDS", "old,"),
    ("RETIRED_KEYIDS", "old, older"),
    ("RETIRED_KEYIDS", "k" * 65),
    ("RETIRED_KEYIDS", "old:secret"),
    ("RETIRED_KEYIDS", "app"),  # then no keyid would be left
    ("RETIRED_KEYIDS", "older,app"),
    ("ADMIN_SECRET_KEY", "short"),
    ("ALLOWED_ORIGINS", "*"),
    ("ALLOWED_ORIGINS", "app.example"),
    ("ALLOWED_ORIGINS", "https://app.example/path"),
    ("ALLOWED_ORIGINS", "https://app.example/"),
    ("ALLOWED_ORIGINS", "https://app.example:443"),
    ("ALLOWED_ORIGINS", "http://app.example:80"),
    ("ALLOWED_ORIGINS", "http://app.example:0080"),
    ("ALLOWED_ORIGINS", "http://app.example:99999"),
    ("ALLOWED_ORIGINS", "https://App.example"),
    ("ALLOWED_ORIGINS", "HTTPS://app.example"),
    ("ALLOWED_ORIGINS", "https://*.example"),
    ("ALLOWED_ORIGINS", "https://bücher.example"),
    ("ALLOWED_ORIGINS", "https://user@app.example"),
    ("ALLOWED_ORIGINS", "http://[0:0:0:0:0:0:0:1]:5173"),
    ("ALLOWED_ORIGINS", "http://[::g]"),
    ("ALLOWED_ORIGINS", "null"),
    ("ALLOWED_ORIGINS", "file://"),
    ("ALLOWED_ORIGINS", "https://app.example https://b.example"),
    ("CLIENT_ADDRESS_HEADER", "X Real IP"),
    ("CLIENT_ADDRESS_HEADER", "X-Real-IP:"),
    ("CLIENT_ADDRESS_HEADER", "X_Real_IP"),
    ("CLIENT_ADDRESS_HEADER", "Forwarded"),
    ("PORT", "x"),
    ("PORT", "-1"),
    ("PORT", "65536"),
    ("PORT", "80 80"),
    ("HOST", "nowhere.invalid"),
    ("METRICS_PORT", "x"),
    ("METRICS_PORT", "65536"),
    ("BACKUPS_PER_HOUR", "0"),
    ("BACKUPS_PER_HOUR", "-5"),
    ("BACKUPS_PER_HOUR", "1.5"),
    ("BACKUPS_PER_DAY", "many"),
    ("KEY_CHANGES_PER_HOUR", "0"),
    ("KEY_CHANGES_PER_DAY", "3 a day"),
    ("REGISTRATIONS_PER_HOUR", "0"),
    ("FAILED_CREDENTIALS_PER_5_MINUTES", "0x10"),
    ("FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY", "1e3"),
    ("KEEP_VERSIONS", "0,3,2,2"),
    ("KEEP_VERSIONS", "4,3,2"),
    ("KEEP_VERSIONS", "4,3,2,2,1"),
    ("KEEP_VERSIONS", "4,3,-2,2"),
    ("KEEP_VERSIONS", "four"),
    ("REVISION", "a commit"),
    ("REVISION", "1" * 65),
    ("DATABASE_PATH", "/dev/null/backup.db"),
    ("DATABASE_PATH", "."),
]


# Calls main() in each of the environments that it reads. For so many, a process of each would take a quarter minute.
MAIN_IN_EACH = """
import contextlib, io, json, os, sys
import backup_server
backup_server.HttpServer.run = lambda *_, **__: print("serving")
for environ in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environ)
    streams = {1: io.StringIO(), 2: io.StringIO()}
    os.write = lambda number, data: streams[number].write(data.decode())
    with contextlib.redirect_stdout(streams[1]), contextlib.redirect_stderr(streams[2]):
        code = backup_server.main([])
    print(json.dumps([code, streams[1].getvalue(), streams[2].getvalue()]))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The exit code, stdout and stderr of a start with each of REFUSED_SETTINGS."""
    directory = tmp_path_factory.mktemp("refused")
    usual = {"APP_SECRET_KEY": SECRET, "PORT": "0", "DATABASE_PATH": str(directory / "backup.db")}
    environs = [usual | {name: value} for name, value in REFUSED_SETTINGS]
    environs = [{name: value for name, value in each.items() if value is not None} for each in environs]
    done = subprocess.run(
        [sys.executable, "-c", MAIN_IN_EACH],
        cwd=directory,
        env=MEASURED | {"PYTHONPATH": str(SERVER.parent)},
        input=json.dumps(environs),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(REFUSED_SETTINGS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("name", "value"), REFUSED_SETTINGS)
def test_refused_settings_are_named(started, name, value):
    code, stdout, stderr = started[name, value]
    assert code == 2
    assert name in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert SECRET not in stderr
    if name == "APP_SECRET_KEY" and not value:
        assert "token_urlsafe" in stderr  # how to make one


def test_a_refused_setting_ends_the_process(tmp_path):
    done = run(tmp_path, APP_SECRET_KEY=SECRET, PORT="65536")
    assert (done.returncode, done.stdout, "PORT" in done.stderr, "Traceback" in done.stderr) == (2, "", True, False)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "backup.db").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    done = run(tmp_path, APP_SECRET_KEY=SECRET, PORT="0", DATABASE_PATH="backup.db")
    assert (done.returncode, "DATABASE_PATH" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_a_second_server_on_the_same_file_is_refused(start_server, tmp_path):
    server = start_server()
    user = server.client()
    assert outcome(user.register_user()) == "201"
    done = run(tmp_path, APP_SECRET_KEY=SECRET, PORT="0", DATABASE_PATH=str(server.database))
    assert (done.returncode, "DATABASE_PATH" in done.stderr) == (2, True)
    assert outcome(user.store_backup(b"not disturbed")) == "201"
    server.kill()
    server.start()  # a lock ends with its server
    user.base_url = server.base_url
    assert backup_bytes(user.fetch_backup()) == b"not disturbed"


def test_a_taken_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(tmp_path, APP_SECRET_KEY=SECRET, PORT=port, DATABASE_PATH="backup.db")
    assert (done.returncode, "PORT" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("[127.0.0.1]", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("[::1]", ["::1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::", ["127.0.0.1", "::1"]),
        ("localhost", ["127.0.0.1"]),
    ],
)
def test_the_addresses_that_are_listened_on(tmp_path, host, reached):
    """`::` is every address, of IPv4 and of IPv6. The metrics are at the same ones."""
    if "::1" in reached and not has_ipv6():
        not_run("this machine has no IPv6")
    with serving(tmp_path, APP_SECRET_KEY=SECRET, PORT="0", METRICS_PORT="0", HOST=host) as (process, line):
        urls = [urlsplit(line[name]) for name in ("url", "metrics")]
        assert urls[0].hostname == urls[1].hostname
        for address in reached:
            for url, path in zip(urls, ("/health", "/metrics"), strict=True):
                connection = http.client.HTTPConnection(address, url.port)
                connection.request("GET", path)
                assert connection.getresponse().status == 200
                connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_name_that_has_no_ipv4_address(monkeypatch):
    """Such as fly-local-6pn. No such name is sure to be known here, so the look-up is changed."""
    if not has_ipv6():
        not_run("this machine has no IPv6")
    found = socket.getaddrinfo("::1", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with http_server.listen("fly-local-6pn", 0) as listener:
        assert listener.getsockname()[0] == "::1"


HINTS = {
    "https://app.example:443": "write https://app.example.",
    "http://App.example:08080/path": "write http://app.example:8080.",
    "capacitor://localhost/": "write capacitor://localhost.",
    "http://[0:0::1]": "write http://[::1].",
    "app.example": "such as https://app.example",
    "null": "every page",
    "https://user@app.example": "such as https://app.example",
    "https://app.example;https://b.example": "Commas separate several",
    "https://app.example https://b.example": "Commas separate several",
    'https://app.example"': "such as https://app.example",
    f"https://app.example:{'9' * 5000}": "such as https://app.example",
    "http://[::ffff:192.0.2.1]": "write http://[::ffff:c000:201].",
    "http://[::FFFF:C000:0201]:8080": "write http://[::ffff:c000:201]:8080.",
    "http://[1:0:0:2:0:0:0:3]": "write http://[1:0:0:2::3].",
    "http://[0:0:1:2:3:0:0:4]": "write http://[::1:2:3:0:0:4].",
    "http://[1:2:3:4:5:6:7::]": "write http://[1:2:3:4:5:6:7:0].",
    "http://[::1%25eth0]": "such as https://app.example",
    "http://127.1": "write http://127.0.0.1.",
    "http://127.0.0.1.": "write http://127.0.0.1.",
    "http://0177.0.0.1:8080": "write http://127.0.0.1:8080.",
    "http://0x7F000001": "write http://127.0.0.1.",
    "http://2130706433": "write http://127.0.0.1.",
    "http://192.168.0.256": "the address in it is none",
    "http://app.example.7": "the address in it is none",
    "http://1.2.3.08": "the address in it is none",
    "wss://app.example": "write https://app.example.",
    "ws://app.example:81": "write http://app.example:81.",
}


@pytest.mark.parametrize("text", HINTS)
def test_an_origin_that_no_browser_sends(text):
    with pytest.raises(origins.NoOrigin) as caught:
        origins.checked(text)
    assert HINTS[text] in f"{caught.value}."


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example",
        "http://localhost:5173",
        "http://127.0.0.1:8080",
        "http://[::1]:5173",
        "https://app.example:8443",
        "http://app.example:443",
        "https://xn--bcher-kva.example",
        "https://app.example.",  # the name from the root; it is another origin
        "http://[::ffff:c000:201]",
        "http://[::102:304]",
        "http://[1:0:0:2::3]",
        "https://7.example",
        "https://1.0x7g",
        "app://127.1",  # only the names of the web can be addresses
        "capacitor://localhost",
        "ionic://localhost",
        "chrome-extension://mhjfbmdgcfjbbpaeojofohoefgiehjai",
    ],
)
def test_an_origin_that_a_browser_sends(origin):
    assert origins.checked(origin) == origin


def test_a_web_view_may_call(start_server):
    """It has a scheme of its own. Here, it is the second of two origins, after a space."""
    server = start_server(ALLOWED_ORIGINS="https://app.example, capacitor://localhost")
    for origin in ("https://app.example", "capacitor://localhost"):
        answer = server.client().request("GET", "/health", headers={"Origin": origin})
        assert answer.headers["Access-Control-Allow-Origin"] == origin
    other = server.client().request("GET", "/health", headers={"Origin": "capacitor://localhost:1"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_yaml_without_libyaml(tmp_path):
    """PyYAML that was built where libyaml is missing has no CSafeLoader."""
    script = "import sys, yaml; del yaml.CSafeLoader; import backup_server; sys.exit(backup_server.main(['--help']))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=MEASURED | {"PYTHONPATH": str(SERVER.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "APP_SECRET_KEY" in done.stdout, done.stderr) == (0, True, "")


def test_defaults(tmp_path):
    """Run the server's own file, without the launcher. One line says where it serves and how many operations it has."""
    with serving(tmp_path, APP_SECRET_KEY=SECRET, PORT="0") as (process, line):
        assert (line["event"], line["operations"]) == ("serving", 11)
        assert line["version"] == openapi.SPEC["info"]["version"] and "revision" not in line
        url = urlsplit(line["url"])
        assert url.port
        connection = http.client.HTTPConnection(url.hostname or "", url.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert (tmp_path / "data" / "backup.db").exists()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_two_secrets_are_valid_at_once(start_server):
    old, new = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    server = start_server(APP_SECRET_KEY=f"ios-1:{old},ios_2:{new}")
    credentials = secrets.token_hex(32), secrets.token_hex(32)

    def fetch(keyid: str, secret: str) -> str:
        return outcome(server.client(credentials, keyid=keyid, secret=secret).fetch_backup())

    assert outcome(server.client(credentials, keyid="ios-1", secret=old).register_user()) == "201"
    assert fetch("ios-1", old) == fetch("ios_2", new) == "404 no_backup"
    for keyid, secret in [("ios-1", new), ("ios_2", old), ("app", old), ("IOS-1", old), ("ios-3", new)]:
        assert fetch(keyid, secret) == "401 signature_invalid"
    server.environ["APP_SECRET_KEY"] = f"ios_2:{new}"  # the old one is retired
    server.restart()
    assert fetch("ios_2", new) == "404 no_backup"
    assert fetch("ios-1", old) == fetch("ios_2", old) == "401 signature_invalid"


def test_the_secret_is_its_characters(start_server):
    """The key is not decoded from hex or base64, and it may contain characters that are not ASCII."""
    for secret in ("é" * 32, "ab" * 32, base64.b64encode(b"thirty-two bytes, in base64 here").decode()):
        server = start_server(APP_SECRET_KEY=secret)
        assert outcome(server.client().register_user()) == "201"


# ---- The spec at boot --------------------------------------------------------------------------------------


FAULTY_SPECS = {  # what to replace, the replacement, and what the message must name
    "no handler": ("operationId: getHealth", "operationId: getWealth", "getWealth"),
    "no operation": ("operationId: deleteUser", "operationId: getHealth", "deleteUser"),
    "an unknown security scheme": ("- adminKey: []", "- adminKeys: []", "adminKeys"),
    "an unknown schema keyword": ("contentEncoding: base64", "contentCoding: base64", "contentCoding"),
    "an unknown keyword deep down": ("examples: ['#/data']", "minLenght: 1", "minLenght"),
    "another content encoding": ("contentEncoding: base64", "contentEncoding: base32", "contentEncoding"),
    "a keyword of the wrong type": ("pattern: ^[0-9a-f]{64}$", "pattern: 64", "openapi.yaml"),
    "a reference to nothing": ("#/components/schemas/Receipt'", "#/components/schemas/Recipe'", "Recipe"),
    "no limits": ("x-limits:", "y-limits:", "x-limits"),
    "a limit is missing": ("signatureSkewSeconds: ", "signatureSkew: ", "signatureSkewSeconds"),
    "alternatives in security": ("        - adminKey: []\n", "        - adminKey: []\n        - {}\n", "getAdminStats"),
    "limits that are not shown": ("responses/TooManyKeyChanges'", "responses/TooManyRequests'", "changeStorageKey"),
    "something beside a reference": ("schemas/Receipt'}", "schemas/Receipt', maxLength: 1}", "maxLength"),
    "no YAML": ("openapi: 3.1.0", "openapi: [", "openapi.yaml"),
}


@pytest.mark.parametrize("fault", FAULTY_SPECS)
def test_faulty_specs_are_refused(tmp_path, fault):
    good, bad, named = FAULTY_SPECS[fault]
    text = openapi.SPEC_BYTES.decode()
    assert good in text
    server = copy_server(tmp_path / "copy")
    server.with_name("openapi.yaml").write_text(text.replace(good, bad))
    done = run(tmp_path, server, APP_SECRET_KEY=SECRET, PORT="0", DATABASE_PATH="backup.db")
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_limits_are_read_from_the_spec(tmp_path):
    """If the spec beside a server has other limits, the server uses them."""
    text = openapi.SPEC_BYTES.decode()
    for good, bad in [
        ("x-maxDecodedBytes: 5242880", "x-maxDecodedBytes: 10"),
        ("requestBodyBytes: 8388608", "requestBodyBytes: 300"),
        ("requestHeaderBytes: 16384", "requestHeaderBytes: 1000"),
        ("signatureSkewSeconds: 300", "signatureSkewSeconds: 30"),
        ("deletedUserSeconds: 901", "deletedUserSeconds: 61"),
        ("BACKUPS_PER_HOUR: 5", "BACKUPS_PER_HOUR: 7"),
    ]:
        assert good in text
        text = text.replace(good, bad)
    server, environ = copy_server(tmp_path), {"APP_SECRET_KEY": SECRET, "PORT": "0"}
    (tmp_path / "openapi.yaml").write_text(text)
    with serving(tmp_path, server, **environ) as (process, line):
        target = ServerProcess(tmp_path / "unused", APP_SECRET_KEY=SECRET)
        target.base_url = line["url"]
        user = target.client()
        early = target.client(clock=lambda: target.now() - 40)
        assert outcome(early.register_user()) == "401 signature_expired"
        assert outcome(user.register_user()) == "201"
        stored = user.store_backup(bytes(10))
        assert outcome(stored) == "201"
        assert stored.headers["RateLimit-Policy"].startswith('"hour";q=7')
        assert outcome(user.store_backup(bytes(11), hashlib.sha256(bytes(10)).hexdigest())) == "413 payload_too_large"
        padded = user.request("POST", "/api/backup", body=b"{}".ljust(301))
        assert outcome(padded) == "413 payload_too_large"
        assert outcome(raw.send(target, raw.request("GET", f"/{'x' * 1000}"))) == "431 headers_too_large"
        assert outcome(user.delete_user()) == "204"
        assert 60 <= int(user.register_user().headers["Retry-After"]) <= 61
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


# ---- Stopping ----------------------------------------------------------------------------------------------


def accepts(server):
    try:
        with raw.connected(server):
            return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_is_in_flight_is_finished(start_server, number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("not run: this signal is ignored, as under nohup, and so a server that is started here ignores it")
    server = start_server()
    credentials = secrets.token_hex(32), secrets.token_hex(32)
    user = server.client(credentials)
    assert outcome(user.register_user()) == "201"
    body = json.dumps({"data": base64.b64encode(b"stored while the server stops" * 10_000).decode()}).encode()
    headers = (*raw.signed(server, credentials, "POST", "/api/backup", body), "Content-Type: application/json")
    request = raw.request("POST", "/api/backup", body, headers)
    with raw.connected(server) as slow:
        slow.sendall(request[: len(request) // 2])
        assert outcome(user.get_health()) == "200"  # answered after the first half has arrived
        server.send_signal(number)
        assert eventually(lambda: not accepts(server))
        assert server.process.poll() is None
        slow.sendall(request[len(request) // 2 :])
        assert outcome(raw.receive(server, slow, "POST", "/api/backup")) == "201"
    assert server.wait() == 0
    assert not Path(f"{server.database}-wal").exists()  # SQLite has merged it
    assert server.stderr.read_text() == ""
    server.start()
    user.base_url = server.base_url
    assert backup_bytes(user.fetch_backup()) == b"stored while the server stops" * 10_000


def test_an_idle_connection_does_not_delay_the_stop(start_server):
    server = start_server()
    with raw.connected(server) as idle, raw.connected(server):
        idle.sendall(raw.request("GET", "/health"))
        assert outcome(raw.receive(server, idle, "GET", "/health")) == "200"
        server.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0


# ---- Log and files -----------------------------------------------------------------------------------------


def test_the_log_tells_what_happened_and_no_secret(start_server):
    secret = f"ios:{secrets.token_urlsafe(32)}"
    server = start_server(APP_SECRET_KEY=secret, ALLOWED_ORIGINS="https://app.example", DEBUG=None)
    user_id, storage_key, new_key = (secrets.token_hex(32) for _ in range(3))
    user, blob = server.client((user_id, storage_key)), secrets.token_bytes(300)
    digest = hashlib.sha256(blob).hexdigest()
    answers = [
        user.register_user(),
        user.store_backup(blob),
        user.fetch_backup(),
        user.list_backup_versions(),
        user.fetch_backup_version(1),
        user.fetch_backup_version("private"),
        user.change_storage_key(new_key, blob, digest),
        user.fetch_backup(),
        server.client((user_id, new_key)).delete_user(),
        user.get_health(),
        user.get_admin_stats(server.admin_key),
        user.get_admin_stats("a wrong admin key, and a private one"),
        raw.send(server, raw.request("GET", "/private?private", headers=("Private: private",))),
        raw.send(server, raw.request("PRIVATE", "/health")),
        raw.send(server, raw.request("GET", "/health", headers=("Content-Length: private",))),
        raw.send(server, raw.request("GET", "/health", headers=("Private: " + "private" * 5000,))),
        raw.send(server, raw.request("POST", "/api/backup", headers=("Content-Length: 99999999",))),
    ]
    server.fault = "internal_error"
    answers.append(user.get_health())
    server.fault = "unavailable"
    answers.append(user.fetch_backup())
    server.fault = None
    assert server.stop() == 0

    lines = server.log()  # each line is JSON
    requests = {line["requestId"]: line for line in lines if line["event"] == "request"}
    assert len(requests) == len([line for line in lines if line["event"] == "request"])
    for answer in answers:
        line = requests[answer.headers["X-Request-Id"]]
        assert line["status"] == int(outcome(answer)[:3])
    expected = {
        "event": "request",
        "method": "POST",
        "route": "/api/backup",
        "status": 201,
        "requestBytes": int(answers[1].request.headers["Content-Length"]),
        "responseBytes": len(answers[1].content),
    }
    stored = requests[answers[1].headers["X-Request-Id"]]
    assert stored.items() >= expected.items()
    assert 0 < stored["milliseconds"] < 10_000
    assert requests[answers[4].headers["X-Request-Id"]]["route"] == "/api/backup/versions/{version}"
    # Requests that the HTTP server refuses are logged in the same way.
    refused = [line for line in requests.values() if line["method"] is None]
    codes = sorted((line["status"], line["code"]) for line in refused)
    assert codes == [(400, "malformed_request"), (413, "payload_too_large"), (431, "headers_too_large")]

    log = server.stdout.read_text() + server.stderr.read_text()
    private = [user_id, storage_key, new_key, digest, base64.b64encode(blob).decode()[:60], server.secret]
    private += [str(server.admin_key), "private", "PRIVATE", hashlib.sha256(storage_key.encode()).hexdigest()]
    private += [authorization(user_id, key).removeprefix("Basic ")[:60] for key in (storage_key, new_key)]
    private += [content_digest(answers[1].request.body)[9:40]]
    for answer in answers:
        if hasattr(answer, "request") and "Signature" in answer.request.headers:
            private.append(answer.request.headers["Signature"][5:40])
    for text in private:
        assert text not in log
    # The log of a fault does not have it either, but shows where the fault is.
    assert any(line["event"] == "error" and line["error"] == "ZeroDivisionError" for line in lines)


STUMBLING = """
from server import http_server
serve = http_server.AppTask.service

def stumble(task):
    return 1 / 0 if task.request.path == "/private" else serve(task)

http_server.AppTask.service = stumble
"""


def test_a_fault_outside_the_app_gets_an_answer_too(start_server):
    server = start_server(command=preceded_by(STUMBLING), DEBUG=None)
    assert outcome(server.client().request("GET", "/private")) == "500 internal_error"
    assert outcome(server.client().get_health()) == "200"
    assert [line["error"] for line in server.log() if line["event"] == "error"] == ["ZeroDivisionError"]
    assert "private" not in server.stdout.read_text()


SPEAKING = """
import logging, threading, time

def speak():
    while True:
        logging.getLogger("waitress").error("private")
        time.sleep(0.1)

threading.Thread(target=speak, daemon=True).start()
"""


def test_what_waitress_says_is_in_the_log(start_server):
    server = start_server(command=preceded_by(SPEAKING), DEBUG=None)
    assert eventually(lambda: any(line["event"] == "http_server" for line in server.log()))
    assert "private" not in server.stdout.read_text()


def test_no_secret_is_in_the_file(start_server):
    server = start_server()
    user_id, storage_key = secrets.token_hex(32), secrets.token_hex(32)
    user = server.client((user_id, storage_key))
    user.register_user()
    user.store_backup(b"opaque")
    server.stop()
    content = b"".join(path.read_bytes() for path in server.database.parent.glob("backup.db*"))
    assert user_id.encode() in content or bytes.fromhex(user_id) in content
    for secret in (storage_key.encode(), bytes.fromhex(storage_key), server.secret.encode(), b"127.0.0.1"):
        assert secret not in content


def test_files_are_for_their_owner_alone(start_server, tmp_path):
    umask = os.umask(0)  # this would make the files readable for everybody
    try:
        server = start_server(DATABASE_PATH=tmp_path / "data" / "backup.db")
        assert outcome(server.client().register_user()) == "201"
    finally:
        os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in server.database.parent.glob("backup.db*")}
    assert {"backup.db", "backup.db-wal", "backup.db-shm"} <= modes.keys()
    assert {modes[name] for name in ("backup.db", "backup.db-wal", "backup.db-shm")} == {0o600}
    assert stat.S_IMODE(server.database.parent.stat().st_mode) == 0o700
