"""Helpers for calls: make several at once, send from an address, wait for something, name an outcome."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

import requests
from requests.adapters import HTTPAdapter

from contract_tests.suite.outcomes import not_run


@overload
def sha256(blob: bytes) -> str: ...
@overload
def sha256(blob: None) -> None: ...
@overload
def sha256(blob: bytes | None) -> str | None: ...
def sha256(blob: bytes | None) -> str | None:
    """Return the hash by which an upload names its base, or None if there is no blob."""
    return None if blob is None else hashlib.sha256(blob).hexdigest()


class Outcome(str):
    """The outcome of an answer. A failing comparison can tell it from what was due (suite/due.py)."""


def outcome(answer: Any) -> Outcome:
    """Return a short name of an answer: its status, "201", with the code if it is a problem, "409 version_conflict".

    The Content-Type does not matter: a wrong one is found at every answer, and does not fail each test.
    """
    status = getattr(answer, "status_code", None) or answer.status
    try:
        return Outcome(f"{status} {answer.json()['code']}" if status >= 400 else status)
    except (ValueError, LookupError, TypeError, RecursionError):  # no JSON, or no object with a code
        return Outcome(status)


class FromAddress(HTTPAdapter):
    """Sends from this address. If the machine does not have it, as on macOS, the test ends as not run."""

    def __init__(self, address: str) -> None:
        try:
            socket.create_server((address, 0)).close()
        except OSError:
            not_run(f"needs the address {address} on this machine's loopback interface")
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, source_address=(self._address, 0), **options)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make the calls at the same moment, each in its own thread. Return their results, for an answer its outcome."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        answer = call()
        return outcome(answer) if isinstance(answer, requests.Response) else answer

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def eventually(condition: Callable[[], bool], seconds: float = 10, pause: float = 0.05) -> bool:
    """Wait until the condition is true, but not longer than this. Return whether it is true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(pause)
    return condition()


def stats(server: Any) -> dict[str, Any]:
    """Return the statistics. Right after a start, the server is still counting: wait while it answers 503."""
    client, answers = server.client(), []

    def is_known() -> bool:
        answers.append(client.get_admin_stats(server.admin_key))
        return answers[-1].status_code != 503

    eventually(is_known)
    assert outcome(answers[-1]) == "200"
    return answers[-1].json()


def counts(server: Any) -> dict[str, int]:
    """Return the numbers of users, of users with a backup, and of versions."""
    return {name: number for name, number in stats(server).items() if name in ("users", "backups", "versions")}
