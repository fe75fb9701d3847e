"""Calls as requests, and answers as the model gives them."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.generated.model import Answer, Call
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.edge import own_etag

OPERATIONS: dict[str, Callable[[BackupClient, Call], Any]] = {
    "registerUser": lambda client, call: client.register_user(),
    "storeBackup": lambda client, call: client.store_backup(call.blob, call.base),
    "changeStorageKey": lambda client, call: client.change_storage_key(str(call.new_key), call.blob, call.base),
    "fetchBackup": lambda client, call: client.fetch_backup(call.if_none_match or None),
    "fetchBackupVersion": lambda client, call: client.fetch_backup_version(call.version, call.if_none_match or None),
    "listBackupVersions": lambda client, call: client.list_backup_versions(),
    "deleteUser": lambda client, call: client.delete_user(),
}


@dataclass
class Exchange:
    """A call for the model, its request, and its answer, or None if there was none.

    `began` and `ended` say when the request was sent and when the answer was there, in seconds of one clock.
    """

    call: Call
    request: requests.PreparedRequest = field(repr=False)
    answer: Answer | None = None
    began: float = 0
    ended: float = math.inf


class Preparing(requests.Session):
    """Sends nothing. The client gets the request that it would have sent as its answer."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> Any:
        return request


# What is compared besides status and code.
RECEIPT = ("version", "updatedAt", "size", "sha256", "keyVersion")
MEMBERS = ("createdAt", "currentVersion", "serverTime", *RECEIPT)
HEADERS = ("ETag", "RateLimit", "RateLimit-Policy", "Retry-After")


def seen(response: requests.Response) -> Answer:
    """Return a response as an answer of the model."""
    body = json.loads(response.content or b"{}")
    facts: dict[str, Any] = {name: body[name] for name in MEMBERS if name in body}
    facts |= {name: response.headers[name] for name in HEADERS if name in response.headers}
    if etag := own_etag(response.headers):
        facts["ETag"] = etag
    if "Retry-After" in facts:
        facts["Retry-After"] = int(facts["Retry-After"])
    if "data" in body:
        facts["data"] = sha256(backup_bytes(response))
    if "versions" in body:
        facts["versions"] = [{name: receipt[name] for name in RECEIPT} for receipt in body["versions"]]
    return Answer(outcome(response), facts)


def timeless(answer: Answer) -> Answer:
    """Return an answer without everything that depends on a clock."""
    times = ("createdAt", "updatedAt", "serverTime", "Retry-After")
    facts = {name: value for name, value in answer.facts.items() if name not in times}
    if "versions" in facts:
        facts["versions"] = [{**receipt, "updatedAt": ""} for receipt in facts["versions"]]
    if "RateLimit" in facts:
        facts["RateLimit"] = re.sub(";t=[0-9]+", "", facts["RateLimit"])
    return Answer(answer.outcome, facts)


def of_contract(answer: Answer, expected: Answer) -> Answer:
    """Return an answer with only the expected members. A server may send more members."""
    return Answer(answer.outcome, {n: v for n, v in answer.facts.items() if n in expected.facts or n in HEADERS})
