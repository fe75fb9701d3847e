"""What several tests do with calls: make them at once, from an address, wait for something, name their outcome."""

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
    """Return the hash by which an upload names its base; there is none of no blob."""
    return None if blob is None else hashlib.sha256(blob).hexdigest()


def outcome(answer: Any) -> str:
    """Return an answer in a word: "201", or the status and code of a problem, "409 version_conflict"."""
    status = getattr(answer, "status_code", None) or answer.status
    if answer.headers.get("Content-Type", "").lower().startswith("application/problem+json") and answer.text:
        return f"{status} {answer.json()['code']}"
    return str(status)


class FromAddress(HTTPAdapter):
    """Sends from this address. Ends the test as not run if this machine does not have it, as macOS may not."""

    def __init__(self, address: str) -> None:
        try:
            socket.create_server((address, 0)).close()
        except OSError:
            not_run(f"needs {address} as an address of this machine's loopback interface")
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, source_address=(self._address, 0), **options)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Start the calls at one moment, each in a thread of its own; return what they return, of answers the outcome."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        answer = call()
        return outcome(answer) if isinstance(answer, requests.Response) else answer

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def stats(server: Any) -> dict[str, int]:
    """Return what the operator is told. Right after a start, while it is being counted, wait as long as it is 503."""
    client, answers = server.client(), []

    def is_known() -> bool:
        answers.append(client.get_admin_stats(server.admin_key))
        return answers[-1].status_code != 503

    eventually(is_known)
    assert outcome(answers[-1]) == "200"
    return answers[-1].json()


def counts(server: Any) -> dict[str, int]:
    """Return how many users, users with a backup, and versions there are."""
    return {name: number for name, number in stats(server).items() if name in ("users", "backups", "versions")}
