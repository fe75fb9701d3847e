"""The exchanges of fixtures/exchanges.json, sent byte for byte to a server with each story's settings and clock."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from contract_tests.target import openapi, raw
from server_tests import vectors
from server_tests.this_server import problems
from server_tests.vectors import Vectors

STORIES = vectors.load("exchanges")["testGroups"]
EXCHANGES = [test for story in STORIES for test in story["tests"]]
NOT_BY_A_REQUEST = {
    "internal_error",
    "account_damaged",
    "backup_damaged",
    "unavailable",
    "storage_full",
}  # the disk must fail
NOT_BY_A_REQUEST |= {"request_timeout"}  # time must pass between its head and its body


@pytest.mark.parametrize("story", [pytest.param(story, id=story["comment"]) for story in STORIES])
def test_story(story: Vectors, start_server: Callable[..., Any]) -> None:
    server = start_server(frozen=story["tests"][0]["serverTime"], **{"ADMIN_SECRET_KEY": None} | story["settings"])
    for test in story["tests"]:
        server.move_clock(test["serverTime"] - server.now())
        answer = raw.send(server, request_bytes(test), is_exact=True)
        departures = list(compare(test["answer"], answer))
        assert not departures, f"tcId {test['tcId']} ({test['comment']}): {departures}"


def request_bytes(test: Vectors) -> bytes:
    pieces = [piece if isinstance(piece, str) else piece["text"] * piece["times"] for piece in test["request"]]
    return "".join(pieces).encode("latin-1")


def compare(expected: Vectors, answer: raw.Answer) -> Iterator[str]:
    """Yield where an answer differs from the file. What the file does not mention may be anything."""
    if answer.status != expected["status"]:
        yield f"status is {answer.status}, not {expected['status']}: {answer.text[:300]}"
        return
    for name, value in expected["headers"].items():
        sent = answer.headers.get(name)
        if name == "Content-Type" and sent is not None:
            sent = sent.partition(";")[0].strip().lower()
        if sent != value:
            yield f"{name} is {sent!r}, not {value!r}"
    if "body" in expected:
        yield from compare_value(expected["body"], answer.json(), "#")


def compare_value(expected: Any, value: Any, at: str) -> Iterator[str]:
    """Yield where a JSON value differs. Objects may have more members, but arrays may not have more items."""
    if isinstance(expected, dict) and isinstance(value, dict):
        for name, member in expected.items():
            yield from compare_value(member, value[name], f"{at}/{name}") if name in value else [f"no {at}/{name}"]
    elif isinstance(expected, list) and isinstance(value, list) and len(expected) == len(value):
        for index, pair in enumerate(zip(expected, value, strict=True)):
            yield from compare_value(*pair, f"{at}/{index}")
    elif type(expected) is not type(value) or expected != value:
        yield f"{at} is {str(value)[:200]!r}, not {str(expected)[:200]!r}"


@pytest.mark.parametrize(
    "expected, value, departs",
    [
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {"b": 2}, True),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}, False),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}, {"b": 2}]}, True),
        ({"a": []}, {"a": [1]}, True),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, True),
        ({"a": 1}, {"a": "1"}, True),
        ({"a": 1}, {"a": True}, True),
        ({}, [], True),
    ],
)
def test_compare(expected: Any, value: Any, departs: bool) -> None:
    body = json.dumps(value).encode()
    assert bool(list(compare({"status": 200, "headers": {}, "body": expected}, raw.Answer(200, {}, body)))) == departs
    assert list(compare({"status": 201, "headers": {}}, raw.Answer(200, {}, b"{}")))
    assert list(compare({"status": 200, "headers": {"ETag": '"1"'}}, raw.Answer(200, {}, b"{}")))


# ---- What is covered ---------------------------------------------------------------------------------------


def test_each_success_of_each_operation_is_there() -> None:
    shown = {(test["operationId"], test["answer"]["status"]) for test in EXCHANGES if test["result"] == "valid"}
    declared = {
        (operation.id, int(status))
        for operation in openapi.OPERATIONS.values()
        for status in operation.responses
        if status < "400"
    }
    assert shown == declared


def test_each_problem_that_a_request_can_bring_about_is_there() -> None:
    shown = {test["answer"].get("body", {}).get("code") for test in EXCHANGES if test["result"] == "invalid"}
    assert shown - {None} == set(problems()) - NOT_BY_A_REQUEST  # None: a problem for HEAD has no body


def test_the_settings_say_the_secrets() -> None:
    for story in STORIES:
        pairs = [entry.rpartition(":") for entry in story["settings"]["APP_SECRET_KEY"].split(",")]
        assert {keyid or "app": secret for keyid, _, secret in pairs} == story["secrets"]
