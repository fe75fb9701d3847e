"""Hooks for Schemathesis: how to sign a request, and as which user. `test_schemathesis.py` starts Schemathesis.

A generated request should be right, or have exactly one fault. So it needs an account that fits it:

- a registration needs a user who has no account yet,
- an upload without a base needs an account without a backup,
- a key change needs an account with another key,
- a request after a deletion needs a new account.

Any other request uses the account of the step before, because the links between operations need it. A link only says
which operation comes next. The hook before_call gives an upload its base, so that a walk goes on from a stored version.
"""

import atexit
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.auth
import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.generation.meta import TestPhase
from schemathesis.openapi.checks import EnsureResourceAvailability

from clients.python.backup_client import BackupClient, SignatureAuth
from contract_tests.target import exchanges, left_behind

BASE_URL, KEYID, SECRET, ADMIN_KEY = (os.environ[f"TARGET_{name}"] for name in ("URL", "KEYID", "SECRET", "ADMIN_KEY"))
AHEAD = float(os.environ["TARGET_AHEAD"])  # how many seconds the target's clock is ahead
PARENT = os.getppid()
KEPT = 4  # how many last versions the full profile needs the target to keep


def clock() -> float:
    """Return the time of the target, in Unix seconds."""
    return time.time() + AHEAD


@dataclass
class Account:
    """Credentials that nobody else has, and the number of the latest version, or 0 if there is none, and its sha256."""

    user_id: str = field(default_factory=lambda: secrets.token_hex(32))
    storage_key: str = field(default_factory=lambda: secrets.token_hex(32))
    latest: int = 0
    sha256: str = ""

    def stored(self, receipt: Mapping[str, Any]) -> None:
        self.latest, self.sha256 = receipt["version"], receipt["sha256"]

    def sign(self, request: requests.PreparedRequest) -> None:
        SignatureAuth(self.user_id, self.storage_key, SECRET, KEYID, clock)(request)

    def client(self) -> BackupClient:
        """Return a client for requests that are not part of the run."""
        session = left_behind.NotingSession()
        credentials = self.user_id, self.storage_key
        return BackupClient(BASE_URL, SECRET, credentials, keyid=KEYID, clock=clock, session=session)

    def fits(self, request: requests.PreparedRequest) -> bool:
        """Return whether an upload may succeed.

        Without a base, it must be the first upload. The new key must not be the one that is already in force.
        """
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        return not (self.latest and body and b"baseSha256" not in body) and self.storage_key.encode() not in body

    def keeps(self, version: Any) -> bool:
        """Return whether the account certainly has this version. For None, return whether it has any."""
        return self.latest > 0 if version is None else self.latest - KEPT < int(version) <= self.latest


class Caller(requests.auth.AuthBase):
    """Adds the proofs to each request at the last moment, when its body is final."""

    def __init__(self) -> None:
        self.calls = 0  # how many were answered
        self.newcomer = Account()
        self.account: Account | None = None  # the one in use
        self.living: dict[str, Account] = {}

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if os.getppid() != PARENT:  # the tests were killed, and this run with them
            os._exit(1)
        path = urlsplit(request.url or "").path
        if path == "/admin/stats":
            request.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
        elif path == "/api/register":
            self.newcomer = Account()
            self.newcomer.sign(request)
        elif path.startswith("/api/"):
            if self.account is None or not self.account.fits(request):
                self.go_on_as(Account()).client().register_user()
            self.account.sign(request)
        left_behind.sending(*proven(request))
        return request

    def go_on_as(self, account: Account) -> Account:
        self.account = self.living[account.user_id] = account
        return account

    def learn(self, case: Any, response: Any) -> None:
        """Note what an answer changed."""
        self.calls += 1
        left_behind.answered(*proven(response.request), response.status_code)
        match case.method, case.operation.path, response.status_code:
            case "POST", "/api/register", 201:
                self.go_on_as(self.newcomer)
            case "POST", "/api/backup", 201 if self.account:
                self.account.stored(response.json())
            case "PUT", "/api/user/storage-key", 200 if self.account:
                self.account.stored(response.json())
                self.account.storage_key = case.body["storageKey"]
            case "DELETE", "/api/user", 204 if self.account:
                del self.living[self.account.user_id]
                self.account = None

    def end(self) -> None:
        """Delete all accounts. Print how many requests there were, for run_schemathesis.py to read."""
        print(f"{self.calls} requests were sent")
        for account in self.living.values():
            account.client().delete_user()


def proven(request: Any) -> tuple[str | None, str, tuple[str, str] | None, Any]:
    """Return what left_behind.py notes of a request: its method, path, credentials and body."""
    credentials = exchanges.credentials_of(request.headers.get("Authorization", ""))
    return request.method, urlsplit(request.url or "").path, credentials, request.body


caller = Caller()
schemathesis.auth.set_from_requests(caller)
atexit.register(caller.end)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Any, **kwargs: Any) -> None:
    """In a walk, give an upload that is right otherwise the base that it needs: the account's latest version."""
    meta = case.meta
    walks = meta is not None and meta.phase.name == TestPhase.STATEFUL and meta.generation.mode.is_positive
    if walks and case.operation.label == "POST /api/backup" and caller.account is not None:
        case.body = {"data": case.body["data"]}
        if caller.account.latest:
            case.body["baseSha256"] = caller.account.sha256


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: Any, response: Any) -> None:
    caller.learn(case, response)


@schemathesis.hook
def filter_failure(context: schemathesis.HookContext, failure: Failure, case: Any, response: Any) -> bool:
    """Return False for a failure that is no real one.

    A version is not missing if another account stored it, or if a later upload dropped it.
    """
    if not isinstance(failure, EnsureResourceAvailability):
        return True
    return caller.account is not None and caller.account.keeps(case.path_parameters.get("version"))
