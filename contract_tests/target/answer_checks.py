"""Holds one answer against openapi.yaml: status, content type, headers, body. No other module does this.

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
    assert status in responses, f"{operation_id} does not declare {status}, but only {' '.join(sorted(responses))}"
    return responses[status]


Headers = Mapping[str, str] | Message
PROBLEM = "application/problem+json"
HEADERS: dict[str, Any] = resolved(SPEC["components"]["headers"])
# Every header that some answer declares. No other answer may have it.
NAMES = {
    name
    for operation in [*OPERATIONS, None]
    for status in (OPERATIONS[operation].responses if operation else ["default"])
    for name in response_object(operation, status).get("headers", {})
}

# The requirements of the headers that have none of their own.
OF_HEADERS = {"Access-Control-Allow-Origin": "cors.exposed"}


def judge(
    method: str, path: str, status: int, headers: Headers, body: bytes
) -> tuple[dict[str, list[str]], dict[str, Any] | None]:
    """Hold an answer against the spec. Return what is wrong by requirement, and the problem if the answer is one.

    Each requirement that the answer was held against is in the result, with an empty list if nothing is wrong. `path`
    is the path as sent. `headers` must ignore case. Raise AssertionError if the operation does not declare the status.
    A page at a path that the document does not have is no part of the contract.
    """
    operation = find_operation(method, path.partition("?")[0])
    if operation is None and status == 200:
        return {}, None
    if method == "OPTIONS" and status == 204:  # a preflight belongs to CORS, not to an operation
        names = ("X-Request-Id", "Cache-Control")
        declared: dict[str, Any] = {"headers": {name: HEADERS[name] for name in names}}
        declared["headers"]["Access-Control-Allow-Origin"] = HEADERS["AccessControlAllowOrigin"]
        own = "cors.preflight"
    else:
        declared = response_object(operation.id if operation else None, str(status))
        own = f"{operation.id}.{status}" if operation else "problem.form"
    wrong = judge_headers(declared.get("headers", {}), headers)
    if operation is None and status != 204 and (status == 405) != ("Allow" in headers):
        wrong.setdefault("header.Allow", []).append("a 405, and no other status, must have Allow")
    if operation is None and status not in (429, 503) and "Retry-After" in headers:
        wrong.setdefault("header.Retry-After", []).append(f"a {status} must not have Retry-After")
    if "content" not in declared:
        wrong[own] = [f"a {status} must not have a body"] if body else []
        return wrong, None
    (media_type,) = declared["content"]
    if media_type == PROBLEM:
        own = "problem.form"
    sent = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    wrong[own] = [] if sent == media_type else [f"Content-Type is {sent or 'missing'}, not {media_type}"]
    if method == "HEAD":
        wrong["http.head"] = ["an answer to HEAD must not have a body"] if body else []
        return wrong, None
    try:
        document: Any = json.loads(body) if media_type.endswith("json") else yaml.load(body, yaml.CSafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        wrong[own].append(
            f"the body is not {'JSON' if media_type.endswith('json') else 'YAML'}: {type(error).__name__}"
        )
        return wrong, None
    errors = sorted(validator(operation.id if operation else None, str(status)).iter_errors(document), key=str)
    wrong[own] += [f"the body does not fit the schema at {error.json_path}: {error.message[:200]}" for error in errors]
    if media_type != PROBLEM:
        return wrong, None
    if errors:
        return wrong, None
    if document["status"] != status:
        wrong[own].append(f"the member status is {document['status']}, not {status}")
    if operation:
        codes = {example["value"]["code"] for example in declared["content"][PROBLEM]["examples"].values()}
        other = f"{document['code']} is not a code of this answer, but only {', '.join(sorted(codes))}"
        wrong[f"{operation.id}.{status}"] = [] if document["code"] in codes else [other]
    return wrong, document


def judge_headers(declared: Mapping[str, Any], headers: Headers) -> dict[str, list[str]]:
    """Return what is wrong, by requirement, if a header that the spec knows is invalid, not declared or missing.

    A header must not stop a generated client, so none is `required`, and their schemas take any text. If a header has
    `x-always-sent`, each answer that declares it must have it, and `x-pattern` is the form of its value.
    """
    wrong: dict[str, list[str]] = {}
    for name in NAMES | declared.keys():
        header = declared.get(name, {})
        requirement = OF_HEADERS.get(name, f"header.{name}")
        if name in headers:
            faults = [fault] if (fault := fault_of_header(name, header, headers)) else []
        elif header.get("x-always-sent"):
            faults = [f"the header {name} is missing"]
        else:
            continue
        wrong[requirement] = faults
    return wrong


def fault_of_header(name: str, header: Mapping[str, Any], headers: Headers) -> str:
    """Return what is wrong with a header that is there, or an empty string."""
    if not header:
        return f"the header {name} is not declared for this answer"
    text = own_etag(headers) or "" if name == "ETag" else headers[name]
    value: str | int = text
    if header["schema"]["type"] == "integer":
        if not re.fullmatch("[0-9]+", text):
            return f"{name} is not a number"
        value = int(text)
    if not Draft202012Validator(header["schema"]).is_valid(value):
        return f"{name} does not fit its schema"
    return "" if re.search(header.get("x-pattern", ""), text) else f"{name} is not of the form {header['x-pattern']}"
