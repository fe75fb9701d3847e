"""Holds answers against openapi.yaml: status, content type, headers, body. The one place that does so.

An operation's answer is held against its own responses, without `default`. `default` is for what no operation
answers: an unknown path (404), an unknown method (405), a request that cannot be read.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from jsonschema import Draft202012Validator

from clients.python.backup_client import BackupClient, Keys
from contract_tests.target import exchanges
from contract_tests.target.openapi import FORMATS, OPERATIONS, SPEC, find_operation, resolved

# ---- What the target declares ------------------------------------------------------------------------------

LACKING: set[str] = set()  # the operations that the target leaves out of its /openapi.json


def declare(document: Mapping[str, Any]) -> None:
    """Takes over which operations a target has, from its /openapi.json."""
    LACKING.clear()
    for operation in OPERATIONS.values():
        if operation.method.lower() not in document["paths"].get(operation.path, {}):
            LACKING.add(operation.id)


def skip_without(*operation_ids: str) -> None:
    """Skips the test where the target declares that it does not have one of these operations."""
    for operation_id in operation_ids:
        if operation_id in LACKING:
            pytest.skip(f"the target declares that it does not have {operation_id}")


def skip_without_answerer(method: str, path: str) -> None:
    """Skips the test where a request, its path as sent, is for an operation that the target does not have."""
    if operation := LACKING and find_operation(method, path.partition("?")[0]):
        skip_without(operation.id)


# ---- The checks --------------------------------------------------------------------------------------------


@cache
def validator(operation_id: str | None, status: str) -> Draft202012Validator:
    """The validator of a response's body."""
    (content,) = response_object(operation_id, status)["content"].values()
    return Draft202012Validator(content["schema"], format_checker=FORMATS)


def response_object(operation_id: str | None, status: str) -> dict[str, Any]:
    """What the spec says of this answer; None stands for no operation."""
    if operation_id is None:
        return resolved(SPEC["components"]["responses"]["OtherProblem"])
    responses = OPERATIONS[operation_id].responses
    assert status in responses, f"{operation_id} does not declare {status}"
    return responses[status]


HEADERS: dict[str, Any] = resolved(SPEC["components"]["headers"])


def check(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raises AssertionError unless the spec allows this answer. `path` is as sent; `headers` ignore case."""
    operation = find_operation(method, path.partition("?")[0])
    if method == "OPTIONS" and status == 204:  # a preflight, which is CORS and no operation
        declared: dict[str, Any] = {"headers": {name: HEADERS[name] for name in ("X-Request-Id", "Cache-Control")}}
    else:
        declared = response_object(operation and operation.id, str(status))
    check_headers(declared.get("headers", {}), headers)
    if operation is None and status != 204:
        assert (status == 405) == ("Allow" in headers), "Allow belongs to 405"
    if "content" not in declared:
        assert body == b"", f"{status} has no body"
        return
    (media_type,) = declared["content"]
    sent = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    assert sent == media_type, f"Content-Type is {sent}, not {media_type}"
    if method == "HEAD":
        assert body == b"", "HEAD has no body"
        return
    document = json.loads(body) if media_type.endswith("json") else body.decode()
    errors = [error.message[:200] for error in validator(operation and operation.id, str(status)).iter_errors(document)]
    assert not errors, errors
    if media_type == "application/problem+json":
        check_problem(declared["content"][media_type], document, status, of_operation=operation is not None)


def check_headers(declared: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    """Each header that the spec knows is there if it must be, absent if it is not declared, and valid."""
    for name in HEADERS.keys() | declared.keys():
        header = declared.get(name, {})
        if name not in headers:
            assert not header.get("required"), f"{name} is missing"
            continue
        assert header, f"{name} is not declared here"
        value: str | int = headers[name]
        if header["schema"]["type"] == "integer":
            assert re.fullmatch("[0-9]+", headers[name]), f"{name} is not a number"
            value = int(headers[name])
        Draft202012Validator(header["schema"]).validate(value)
    assert headers["Cache-Control"] == "no-store"


TYPES: dict[str, str] = {}  # the types of problems that were seen, by code
CODES: dict[str, str] = {}  # and the other way round


def check_problem(content: Mapping[str, Any], problem: Mapping[str, Any], status: int, *, of_operation: bool) -> None:
    """A problem repeats its status, and its code is one of those that the spec shows for this answer."""
    assert problem["status"] == status
    # One type for each code; which one, is the server's own choice.
    assert TYPES.setdefault(problem["code"], problem["type"]) == problem["type"]
    assert CODES.setdefault(problem["type"], problem["code"]) == problem["code"]
    if of_operation:
        codes = {example["value"]["code"] for example in content["examples"].values()}
        assert problem["code"] in codes, f"{problem['code']} is not one of {codes}"


class CheckedSession(requests.Session):
    """Holds each answer against the spec, and keeps it for the report of a failing test."""

    def __init__(self) -> None:
        super().__init__()
        self.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True  # `send` alone does not look there

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        assert request.method and request.url
        path = urlsplit(request.url).path or "/"
        skip_without_answerer(request.method, path)
        response = None
        try:
            response = super().send(request, **options)
        finally:
            exchanges.record(exchange_of(request, response))
        self.answered(request, response)
        check(request.method, path, response.status_code, response.headers, response.content)
        return response

    def answered(self, request: requests.PreparedRequest, response: requests.Response) -> None:
        """Called with each answer, before it is checked."""


def exchange_of(request: requests.PreparedRequest, response: requests.Response | None) -> exchanges.Exchange:
    assert request.method and request.url
    body = request.body or b""
    answer = None
    if response is not None:
        answer = (response.status_code, exchanges.headers_of(response.headers.items()), response.content)
    headers = exchanges.headers_of(request.headers.items())
    return exchanges.Exchange(
        request.url, request.method, headers, body.encode() if isinstance(body, str) else body, answer
    )


def checked_client(target: Any, credentials: Keys | tuple[str, str] | None = None, **options: Any) -> BackupClient:
    """A client of a target (base_url, secret, keyid, now), each answer held against the spec.

    Its user is made up unless `credentials` are given; `options` are BackupClient's.
    """
    options = {
        "secret": target.secret,
        "keyid": target.keyid,
        "clock": target.now,
        "session": CheckedSession(),
    } | options
    credentials = credentials or (secrets.token_hex(32), secrets.token_hex(32))
    return BackupClient(target.base_url, credentials=credentials, **options)
