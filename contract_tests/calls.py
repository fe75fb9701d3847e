"""What several tests do with calls: make them at once, wait for something, name their outcome."""

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests


def sha256(blob: bytes | None) -> str | None:
    return None if blob is None else hashlib.sha256(blob).hexdigest()


def code(response: requests.Response) -> str | int:
    """The status of a success, the code of a problem."""
    return response.status_code if response.ok else response.json()["code"]


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
