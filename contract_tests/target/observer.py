"""The observer of one server. It holds each answer against openapi.yaml, and keeps the last exchanges."""

from collections import deque
from collections.abc import Collection
from email.message import Message
from typing import Any, NoReturn, Protocol

import pytest

from contract_tests.suite.outcomes import not_run
from contract_tests.target import answer_checks, edge, findings
from contract_tests.target.exchanges import Exchange
from contract_tests.target.openapi import OPERATIONS, find_operation

KEPT = 3  # how many exchanges a failing test shows
UNREAD = (400, 431)  # the statuses of requests that cannot be read: their answers may lack Vary


class Server(Protocol):
    """A server to send requests to: its address, the secret to sign with, its clock and its observer."""

    base_url: str
    observer: "Observer"

    @property
    def secret(self) -> str: ...

    @property
    def keyid(self) -> str: ...

    @property
    def now(self) -> Any: ...


class Observer:
    """Watches the exchanges with one server, as long as it is tested.

    `lacking` has the ids of the operations that the server does not have, as its own /openapi.json declares.
    """

    def __init__(self, lacking: Collection[str] = ()) -> None:
        self.lacking = frozenset(lacking)
        self.edge: str | None = None  # the name of the edge in front of the server, if there is one
        self.edge_may_answer = False  # whether it may answer the requests of the current test
        self.allows_origins = False  # whether the server certainly has ALLOWED_ORIGINS
        self.last: deque[Exchange] = deque(maxlen=KEPT)
        self._types: dict[str, str] = {}  # the type of each problem, by code
        self._codes: dict[str, str] = {}  # the code of each problem, by type

    def forget(self) -> None:
        """Drop the exchanges so far, so that the next test shows only its own."""
        self.last.clear()

    def record(self, exchange: Exchange) -> None:
        """Keep an exchange for the report of a failing test."""
        self.last.append(exchange)

    def check(
        self,
        method: str,
        path: str,
        status: int,
        headers: answer_checks.Headers,
        body: bytes,
        exchange: Exchange | None = None,
    ) -> None:
        """Hold an answer against openapi.yaml and against earlier answers, and report what is wrong (findings.py).

        Raise AssertionError if the operation does not declare the status at all: then the test cannot go on.
        """
        if self.edge_may_answer and edge.may_be_its_own(status) and not edge.is_of_the_contract(status, headers):
            self.answered_by_the_edge(str(status))
        wrong, problem = answer_checks.judge(method, path, status, headers, body)
        if problem is not None:  # each code has one type, which the server may choose
            code, kind = problem["code"], problem["type"]
            if self._types.setdefault(code, kind) != kind:
                wrong["problem.form"].append(f"the type of {code} was another one before")
            if self._codes.setdefault(kind, code) != code:
                wrong["problem.form"].append(f"{kind} was the type of another code before")
        if self.allows_origins and status not in UNREAD:
            values = headers.get_all("Vary", []) if isinstance(headers, Message) else [headers.get("Vary", "")]
            names = {name.strip().lower() for name in ",".join(values).split(",")}
            wrong["cors.vary"] = [] if "origin" in names else ["Vary does not name Origin"]
        findings.report(wrong, exchange)

    def answered_by_the_edge(self, how: str) -> NoReturn:
        """End the test as not run: the edge kept its request from the server."""
        not_run(f"the edge in front of the target ({self.edge}) answered a request of this test itself: {how}")

    # ---- What the server does not have ---------------------------------------------------------------------

    def skip_without(self, *operation_ids: str) -> None:
        """Skip the test if the server declares that it does not have one of these operations."""
        for operation_id in operation_ids:
            if operation_id in self.lacking:
                pytest.skip(f"the target declares that it does not have {operation_id}")

    def lacks(self, path: str) -> bool:
        """Return whether the server declares that it does not have one of the operations of a path."""
        return any(operation.matches(path) for operation in OPERATIONS.values() if operation.id in self.lacking)

    def skip_without_answerer(self, method: str, path: str) -> None:
        """Skip the test if a request is for an operation that the server does not have. `path` is the path as sent."""
        if operation := self.lacking and find_operation(method, path.partition("?")[0]):
            self.skip_without(operation.id)
