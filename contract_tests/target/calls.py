"""What several tests do with calls: make them at once, from an address, wait for something, name their outcome."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from contract_tests.suite.outcomes import not_run


def sha256(blob: bytes | None) -> str | None:
    return None if blob is None else hashlib.sha256(blob).hexdigest()


def code(response: requests.Response) -> str | int:
    """The status of a success, the code of a problem."""
    return response.status_code if response.ok else response.json()["code"]


class FromAddress(HTTPAdapter):
    """Sends from this address; ends the test as not run where this machine does not have it, as macOS may not."""

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
    """What the calls return, of answers the code; they start at one moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        answer = call()
        return code(answer) if isinstance(answer, requests.Response) else answer

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
