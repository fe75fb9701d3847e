"""Ctrl-C and SIGTERM, at any moment, leave no user on the target: of the contract tests, and of the demo.

Each run is a process group of its own with a real server as its target. (`tox run -e suite` runs these tests.)
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract_tests.target.calls import eventually, stats
from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.target import RAISED_LIMITS

END_SECONDS = 90
SIGNALS = {  # who gets which: Ctrl-C reaches the whole group
    "SIGINT to all": lambda process: os.killpg(process.pid, signal.SIGINT),
    "SIGINT": lambda process: process.send_signal(signal.SIGINT),
    "SIGTERM": lambda process: process.send_signal(signal.SIGTERM),
    "SIGTERM to all": lambda process: os.killpg(process.pid, signal.SIGTERM),
}
SUITE = [*(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "contract_tests")]
RUNS = {
    "demo": [sys.executable, "-m", "clients.python.demo"],
    "alone": [*SUITE, "-k", "test_statuses or test_isolation or test_replay"],
    "workers": [*SUITE, "-n", "2", "-k", "test_statuses or test_isolation or test_replay"],
    "generated": [*SUITE, "-n", "1", "-k", "test_generated_requests or test_any_server", "--model-examples", "100"],
}


def users(server: Any) -> int:
    return stats(server)["users"]


def start(command: list[str], server: Any) -> subprocess.Popen[bytes]:
    environ = os.environ | {"APP_SECRET_KEY": server.environ["APP_SECRET_KEY"], "PYTHONUNBUFFERED": "1"}
    command = [*command, "--base-url", server.base_url]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environ, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ended(process: subprocess.Popen[bytes]) -> str:
    """Return what a process has printed, after it has ended, and everything in its group with it."""
    try:
        output = process.communicate(timeout=END_SECONDS)[0].decode()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    print(output)
    return output


@pytest.fixture(scope="module")
def server(start_shared_server: Callable[..., Any]) -> Any:
    return start_shared_server(**RAISED_LIMITS)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("to_whom", SIGNALS)
@pytest.mark.parametrize("run", RUNS)
def test_a_signal_at_any_moment_leaves_no_user(server: Any, run: str, to_whom: str, number: int):
    process = start(RUNS[run], server)
    assert eventually(lambda: users(server) > 0 or process.poll() is not None, 60)
    time.sleep(random.Random(number).uniform(0, 0.5 if run == "demo" else 3))
    was_running = process.poll() is None
    if was_running:
        SIGNALS[to_whom](process)
    output = ended(process)
    assert was_running and process.returncode in (130, pytest.ExitCode.INTERRUPTED), output
    assert users(server) == 0, output
    assert server.secret not in output


def test_what_a_killed_process_noted_is_deleted_by_the_one_that_started_it(server: Any, tmp_path: Path):
    """A worker is killed, which nothing can catch. The run deletes its users nevertheless."""
    process = start(RUNS["workers"], server)
    assert eventually(lambda: users(server) > 0 and len(children(process.pid)) >= 2, 60)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    ended(process)
    assert users(server) == 0


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    if not file.exists():
        pytest.skip("not run: needs the list of a process's children in /proc")
    return [int(child) for child in file.read_text().split()]
