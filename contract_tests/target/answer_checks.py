"""Checks one answer against openapi.yaml: status, content type, headers, body. No other module does this.

An operation's answer must fit one of its declared responses, without `default`. `default` is only for requests that no
operation answers: an unknown path (404), an unknown method (405), or a request that cannot be read.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from email.message import Message
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from contract_tests.target.edge import own_etag
from contract_tests.target.openapi import FORMATS, OPERATIONS, SPEC, find_operation, resolved


def is_canonical(text: str) -> bool:
    """Return whether a text is base64 with padding, and its unused bits are zero (RFC 4648 sections 3.5 and 4)."""
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except ValueError:
        return False


def check_encoding(validator: Any, encoding: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not is_canonical(instance):
        yield ValidationError("is not canonical base64")


# Base64 has no `pattern` in an answer, because a generated client may hold the bytes against it.
Validator = extend(Draft202012Validator, {"contentEncoding": check_encoding})


@cache
def validator(operation_id: str | None, status: str) -> Draft202012Validator:
    """Return the validator for the body of a response."""
    (content,) = response_object(operation_id, status)["content"].values()
    return Validator(content["schema"], format_checker=FORMATS)


def response_object(operation_id: str | None, status: str) -> dict[str, Any]:
    """Return what the spec says about this answer. None means that no operation answered."""
    if operation_id is None:
        return resolved(SPEC["components"]["responses"]["OtherProblem"])
    responses = OPERATIONS[operation_id].responses
    assert status in responses, f"{operation_id} does not declare {status}"
    return responses[status]


Headers = Mapping[str, str] | Message
HEADERS: dict[str, Any] = resolved(SPEC["components"]["headers"])
# Every header that some answer declares. No other answer may have it.
NAMES = {
    name
    for operation in [*OPERATIONS, None]
    for status in (OPERATIONS[operation].responses if operation else ["default"])
    for name in response_object(operation, status).get("headers", {})
}


def check(method: str, path: str, status: int, headers: Headers, body: bytes) -> dict[str, Any] | None:
    """Raise AssertionError unless the spec allows this answer. If it is a problem, return it.

    `path` is the path as sent. `headers` must ignore case.
    """
    operation = find_operation(method, path.partition("?")[0])
    if method == "OPTIONS" and status == 204:  # a preflight belongs to CORS, not to an operation
        names = ("X-Request-Id", "Cache-Control")
        declared: dict[str, Any] = {"headers": {name: HEADERS[name] for name in names}}
        declared["headers"]["Access-Control-Allow-Origin"] = HEADERS["AccessControlAllowOrigin"]
    else:
        declared = response_object(operation.id if operation else None, str(status))
    check_headers(declared.get("headers", {}), headers)
    if operation is None and status != 204:
        assert (status == 405) == ("Allow" in headers), "a 405, and no other status, must have Allow"
    if "content" not in declared:
        assert body == b"", f"a {status} must not have a body"
        return None
    (media_type,) = declared["content"]
    sent = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    assert sent == media_type, f"Content-Type is {sent}, not {media_type}"
    if method == "HEAD":
        assert body == b"", "an answer to HEAD must not have a body"
        return None
    document: Any = json.loads(body) if media_type.endswith("json") else yaml.load(body, yaml.CSafeLoader)
    schema = validator(operation.id if operation else None, str(status))
    errors = [error.message[:200] for error in schema.iter_errors(document)]
    assert not errors, errors
    if media_type != "application/problem+json":
        return None
    check_problem(declared["content"][media_type], document, status, of_operation=operation is not None)
    return document


def check_headers(declared: Mapping[str, Any], headers: Headers) -> None:
    """Raise AssertionError unless the headers that the spec knows are valid and declared, and none is missing.

    A header must not stop a generated client, so none is `required`, and their schemas take any text. If a header has
    `x-always-sent`, each answer that declares it must have it, and `x-pattern` is the form of its value.
    """
    for name in NAMES | declared.keys():
        header = declared.get(name, {})
        if name not in headers:
            assert not header.get("x-always-sent"), f"the header {name} is missing"
            continue
        assert header, f"the header {name} is not declared for this answer"
        text = own_etag(headers) or "" if name == "ETag" else headers[name]
        value: str | int = text
        if header["schema"]["type"] == "integer":
            assert re.fullmatch("[0-9]+", text), f"{name} is not a number"
            value = int(text)
        Draft202012Validator(header["schema"]).validate(value)
        assert re.search(header.get("x-pattern", ""), text), f"{name} does not have its form"
    assert headers["Cache-Control"] == "no-store"


def check_problem(content: Mapping[str, Any], problem: Mapping[str, Any], status: int, *, of_operation: bool) -> None:
    """Raise AssertionError unless a problem repeats its status, and the spec has an example of its code there."""
    assert problem["status"] == status
    if of_operation:
        codes = {example["value"]["code"] for example in content["examples"].values()}
        assert problem["code"] in codes, f"{problem['code']} is not one of {codes}"
