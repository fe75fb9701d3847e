"""The server's process: its standard streams, whoever reads them or not, and signals, whenever they come."""

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from contract_tests.suite.outcomes import not_run
from contract_tests.target import raw
from contract_tests.target.calls import eventually, outcome
from contract_tests.target.openapi import SERVER
from contract_tests.target.process import COMMAND, COVERAGE, ServerProcess
from server.dbm_store import DbmStore
from server_tests.this_server import copy_server

pytestmark = pytest.mark.usefixtures("local", "hears_sighup")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MEASURED = {name: os.environ[name] for name in COVERAGE if name in os.environ}
REQUESTS = 1_000
UNSHARE = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child")  # makes its command process 1


@pytest.fixture
def local(request):
    if request.config.getoption("--base-url"):
        not_run("needs a server process of its own, but --base-url names another server")


@pytest.fixture
def hears_sighup():
    """Let the test's processes hear SIGHUP, even if the tests run under nohup, which has it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextmanager
def started(directory: Path, *command: Any, stdout: Any = subprocess.PIPE, **environ: Any) -> Iterator[Any]:
    """Start a server on a free port. Yield its process, whose stderr is in `directory`."""
    settings = {"APP_SECRET_KEY": secrets.token_hex(32), "PORT": "0", "PATH": os.environ["PATH"]}
    settings |= {"DATABASE_PATH": str(directory / "backup.db")}
    directory.mkdir(exist_ok=True)
    with open(directory / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            command, env=MEASURED | settings | environ, stdout=stdout, stderr=stderr, start_new_session=True
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def stopped(process: Any, seconds: float = 5) -> int:
    """Send SIGTERM, and return the exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(seconds)


def get_health(port: int, times: int = 1) -> None:
    """Send requests on one connection. Each has to get its answer within 5 s."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for _ in range(times):
        connection.request("GET", "/health")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["status"]) == (200, "ok")
    connection.close()


# ---- Standard streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["comes back", "stays away"])
def test_nobody_reads_the_log(tmp_path, reader):
    """The pipe takes about 340 requests, and 200 more wait in memory. The others are lost, and counted."""
    server = ServerProcess(tmp_path, METRICS_PORT=0)
    with started(tmp_path, *COMMAND, "--bound", "LOG_BYTES=40000", **server.environment()) as process:
        line = json.loads(process.stdout.readline())
        port = urlsplit(line["url"]).port
        get_health(port, REQUESTS)
        with urllib.request.urlopen(line["metrics"], timeout=10) as metrics:
            (known,) = re.findall(r"^backup_server_log_lines_lost_total (\S+)$", metrics.read().decode(), re.MULTILINE)
        assert float(known) > 0  # while nobody reads
        if reader == "comes back":
            lines = [json.loads(process.stdout.readline()) for _ in range(400)]
            get_health(port)
            process.send_signal(signal.SIGTERM)
            lines += map(json.loads, process.stdout)
            assert process.wait(5) == 0
            requests = sum(line["event"] == "request" for line in lines)
            lost = [line["lines"] for line in lines if line["event"] == "log_lost"]
            assert requests < REQUESTS and requests + sum(lost) == REQUESTS + 1
            assert [line["event"] for line in lines[-3:]] == ["request", "stopping", "stopped"]
        else:
            assert stopped(process) == 0
    assert (tmp_path / "stderr").read_text() == ""


STREAMS = {  # how a shell runs the server
    "stdout is closed": 'exec "$@" >&-',
    "all are closed": 'exec "$@" <&- >&- 2>&-',
    "stdin is closed": 'exec "$@" <&-',
    "stdout is full": 'exec "$@" >/dev/full',
    "stdout cannot be written": 'exec "$@" 1</dev/null',
}


@pytest.mark.parametrize("shell", STREAMS.values(), ids=STREAMS)
def test_streams_that_take_nothing(tmp_path, shell):
    """The server serves and stops as ever. Its database is no standard stream, whether it is new or not."""
    DbmStore(tmp_path / "backup.db", 901).close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with started(tmp_path, "sh", "-c", shell, "sh", sys.executable, SERVER, PORT=str(port)) as process:

        def serves() -> bool:
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            with suppress(ConnectionError):
                get_health(port)
                return True
            return False

        assert eventually(serves, 30)
        if Path("/proc").exists():
            streams = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
            assert not [stream for stream in streams if "backup.db" in stream]
        assert stopped(process) == 0
    assert (tmp_path / "stderr").read_text() == ""


def test_the_reader_of_the_log_goes_away(tmp_path):
    with started(tmp_path, sys.executable, SERVER) as process:
        port = urlsplit(json.loads(process.stdout.readline())["url"]).port
        process.stdout.close()
        get_health(port, 20)
        assert stopped(process) == 0
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.parametrize("shell", ['exec "$@" 2>&-', 'exec "$@" 2>/dev/full'])
def test_a_start_that_fails_and_cannot_say_why(tmp_path, shell):
    with started(tmp_path, "sh", "-c", shell, "sh", sys.executable, SERVER, PORT="x") as process:
        assert (process.wait(30), process.stdout.read()) == (2, b"")


# ---- Signals -----------------------------------------------------------------------------------------------

PREFIXES = {"a process": (), "process 1": UNSHARE}
# In short pieces: Python does not hear of a signal that comes right before a sleep until it ends.
HANG = """
import time
def read(*_):
    print("here", flush=True)
    for _ in range(600):
        time.sleep(0.1)
"""
PLACES = {  # what a start waits in: a file of the server, and what is added to it
    "imports": ("bottle.py", f"{HANG}\nread()"),
    "an open database": ("server/reference_page.py", HANG),
}


def server_process(process: Any, prefix: tuple[str, ...]) -> int:
    """Return the id of the server that a process is, or that it runs as process 1."""
    if not prefix:
        return process.pid
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if children.exists() and (child := children.read_text()):
            return int(child)
        time.sleep(0.001)
    not_run("needs a Linux on which this user may run a process 1, by `unshare`")


def hears(pid: int) -> bool:
    """Return whether a process handles SIGTERM itself. Then it has executed the server's first lines."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize(("file", "code"), PLACES.values(), ids=PLACES)
def test_a_signal_ends_a_start_that_hangs(tmp_path, prefix, file, code):
    server = copy_server(tmp_path / "copy")
    with open(server.parent / file, "a") as module:
        module.write(code)
    with ExitStack() as stack:
        starts = {
            number: stack.enter_context(started(tmp_path / number.name, *prefix, sys.executable, server))
            for number in SIGNALS
        }
        for number, process in starts.items():
            pid = server_process(process, prefix)
            assert process.stdout.readline() == b"here\n"
            os.kill(pid, number)
            assert (process.wait(5), process.stdout.read()) == (0, b""), number
            assert (tmp_path / number.name / "stderr").read_text() == ""


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_a_signal_ends_each_start(tmp_path, prefix):
    """A signal that comes before the first line may end a process in another way. Process 1 ignores it."""

    def end(process: Any, number: signal.Signals, delay: float) -> tuple[bool, int]:
        pid = server_process(process, prefix)
        time.sleep(delay)
        was_heard = hears(pid)
        os.kill(pid, number)
        if prefix and not was_heard:
            assert eventually(lambda: process.poll() is not None or hears(pid))
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return was_heard, process.wait(10)

    with ExitStack() as stack, ThreadPoolExecutor(10) as pool:
        ends = []
        for place in range(10):
            process = stack.enter_context(started(tmp_path / str(place), *prefix, sys.executable, SERVER))
            ends.append(pool.submit(end, process, SIGNALS[place % 3], place / 10))
        for place, (was_heard, code) in enumerate(each.result() for each in ends):
            assert code == 0 or not was_heard, place
            assert not was_heard or (tmp_path / str(place) / "stderr").read_text() == ""


def test_a_signal_while_python_ends_is_too_late(tmp_path):
    """Python ends with the exit code that the server chose: here 2, because it has no settings."""
    late = f"""
import os, runpy
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), numbers={list(map(int, SIGNALS))}):
        for number in numbers:
            kill(pid, number)  # when Python has restored the default actions
late = Late()
runpy.run_path({str(SERVER)!r}, run_name="__main__")
"""
    environ = {"APP_SECRET_KEY": "", "PYTHONPATH": str(SERVER.parent)}
    with started(tmp_path, sys.executable, "-c", late, **environ) as process:
        assert process.wait(30) == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_a_stop_at_once(start_server, number):
    """The server waits for the rest of an upload. The log is whole all the same."""
    server = start_server()
    user = server.client()
    assert outcome(user.register_user()) == "201"
    head = raw.signed(server, user.credentials, "POST", "/api/backup", b"{}")
    with raw.connected(server) as upload:
        upload.sendall(raw.request("POST", "/api/backup", b"{}", (*head, "Content-Type: application/json"))[:-1])
        assert outcome(user.get_health()) == "200"  # answered after the upload has begun
        server.send_signal(number)
        assert eventually(lambda: server.log()[-1]["event"] == "stopping")
        time.sleep(0.2)
        assert server.running()
        server.send_signal(number)
        assert server.process.wait(2) == 0
    assert [line["event"] for line in server.log()] == ["serving", "request", "request", "stopping"]
    assert server.stderr.read_text() == ""


def test_sighup_under_nohup_does_nothing(tmp_path):
    shell = 'trap "" HUP; exec "$@"'
    with started(tmp_path, "sh", "-c", shell, "sh", sys.executable, SERVER) as process:
        port = urlsplit(json.loads(process.stdout.readline())["url"]).port
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        get_health(port)
        assert stopped(process) == 0
