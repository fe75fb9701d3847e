"""What is seen of one server while it is tested: each answer is held against openapi.yaml, the last ones are kept."""

from collections import deque
from collections.abc import Collection
from typing import Any, Protocol

import pytest

from contract_tests.target import answer_checks
from contract_tests.target.exchanges import Exchange
from contract_tests.target.openapi import find_operation

KEPT = 3  # exchanges that a failing test shows


class Server(Protocol):
    """A server that requests are sent to: where it is, how to sign for it, its clock, and who observes it."""

    base_url: str
    observer: "Observer"

    @property
    def secret(self) -> str: ...

    @property
    def keyid(self) -> str: ...

    @property
    def now(self) -> Any: ...


class Observer:
    """Watches the exchanges with one server, for as long as that server is tested.

    `lacking` are the ids of the operations that the server declares that it does not have.
    """

    def __init__(self, lacking: Collection[str] = ()) -> None:
        self.lacking = frozenset(lacking)
        self.last: deque[Exchange] = deque(maxlen=KEPT)
        self._types: dict[str, str] = {}  # of problems, by code
        self._codes: dict[str, str] = {}  # and the other way round

    def forget(self) -> None:
        """Drop the exchanges so far: the next test shows its own."""
        self.last.clear()

    def record(self, exchange: Exchange) -> None:
        """Keep an exchange for the report of a failing test."""
        self.last.append(exchange)

    def check(self, method: str, path: str, status: int, headers: answer_checks.Headers, body: bytes) -> None:
        """Raise AssertionError unless openapi.yaml allows this answer, and it agrees with those before."""
        problem = answer_checks.check(method, path, status, headers, body)
        if problem is not None:  # one type for each code; which one, is the server's own choice
            code, kind = problem["code"], problem["type"]
            assert self._types.setdefault(code, kind) == kind, f"{code} had another type before"
            assert self._codes.setdefault(kind, code) == code, f"{kind} was the type of another code"

    # ---- What the server does not have ---------------------------------------------------------------------

    def skip_without(self, *operation_ids: str) -> None:
        """Skip the test if the server declares that it does not have one of these operations."""
        for operation_id in operation_ids:
            if operation_id in self.lacking:
                pytest.skip(f"the target declares that it does not have {operation_id}")

    def skip_without_answerer(self, method: str, path: str) -> None:
        """Skip the test if a request, its path as sent, is for an operation that the server does not have."""
        if operation := self.lacking and find_operation(method, path.partition("?")[0]):
            self.skip_without(operation.id)
