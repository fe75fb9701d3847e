"""Calls as signed requests, sent alone or at once, and answers as the model gives them."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests

from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.generated.model import Answer, Call
from contract_tests.target.calls import at_once, outcome, sha256
from contract_tests.target.edge import own_etag
from contract_tests.target.process import ServerProcess
from contract_tests.target.target import Target

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


def signed(server: ServerProcess | Target, call: Call, make: Callable[[BackupClient, Call], Any]) -> Exchange:
    """Return a call as a signed request that is not sent yet. `make` lets a client send it, as in OPERATIONS."""
    client = BackupClient(
        server.base_url,
        server.secret,
        (call.user_id, call.key),
        keyid=server.keyid,
        clock=lambda: call.created,
        session=Preparing(),
    )
    request = make(client, call)
    return Exchange(replace(call, signature=request.headers["Signature"]), request)


def request_to(server: ServerProcess | Target, exchange: Exchange) -> requests.PreparedRequest:
    """Return a copy of a request. Since it was prepared, its server may have moved to another port."""
    request = exchange.request.copy()
    request.url = server.base_url + urlsplit(request.url or "").path
    return request


def send_all(send: Callable[[Exchange], Any], exchanges: tuple[Exchange, ...]) -> None:
    """Send requests, at once if there are several."""
    if len(exchanges) == 1:
        send(exchanges[0])
    else:
        at_once([partial(send, exchange) for exchange in exchanges])


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
