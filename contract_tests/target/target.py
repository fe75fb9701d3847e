"""The target: the server under test, as the tests see it, and the checks whether it can be tested at all.

The run starts the target itself, or --base-url names it.
"""

import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from clients.python.backup_client import BackupClient, Keys, app_secrets
from contract_tests.suite.outcomes import not_run
from contract_tests.target import exchanges, findings, left_behind, network, openapi
from contract_tests.target.calls import sha256
from contract_tests.target.checked_client import CheckedSession, checked_client
from contract_tests.target.observer import Observer
from contract_tests.target.process import ServerProcess

# Limits so high that tests on one server do not reach them.
RAISED_LIMITS = {
    "REGISTRATIONS_PER_HOUR": 1_000_000,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 1_000_000,
    "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": 1_000_000,
    "BACKUPS_PER_HOUR": 1000,
    "BACKUPS_PER_DAY": 1000,
    "KEY_CHANGES_PER_HOUR": 1000,
    "KEY_CHANGES_PER_DAY": 1000,
}
ALLOWED_ORIGIN = "https://app.example"
# The target must keep at least as many last versions.
KEPT = {"KEEP_VERSIONS": openapi.SPEC["x-configurable-limits"]["KEEP_VERSIONS"]}
UPLOADS_NEEDED = 100  # how many uploads an hour of one account the full profile needs
PROBES = 32  # a few more than are allowed if the limits per address were not raised
PROBES_OF_ACCOUNT = 52  # the same for the limit per account

Credentials = tuple[str, str]


@dataclass
class Target:
    """The server under test. `process` is None if the run did not start it. What the run was not given is None."""

    base_url: str
    secret: str = field(repr=False)
    keyid: str = "app"
    now: Callable[[], float] = time.time
    is_public: bool = False
    process: ServerProcess | None = None
    observer: Observer = field(default_factory=Observer)
    admin_key: str | None = field(default=None, repr=False)
    allowed_origin: str | None = None
    second_keyid: tuple[str, str] | None = field(default=None, repr=False)
    users: dict[Credentials, bool] = field(default_factory=dict, repr=False)  # whether they certainly registered

    def client(self, credentials: Keys | Credentials | None = None, **options: Any) -> BackupClient:
        """Return a client. Without credentials, its user is new. Users that it registers are deleted after the test."""
        client = checked_client(self, credentials, **({"session": TargetSession(self)} | options))
        if credentials is not None:
            self.users.setdefault(client.credentials, False)
            if not self.is_public and (notes := left_behind.notes()):
                notes.may_be_there(client.credentials)  # a test may register this user by bytes on a socket
        return client

    @property
    def secrets(self) -> set[str]:
        """What the run was given and nobody may see."""
        others = {self.second_keyid[1]} if self.second_keyid else set()
        return {self.secret} | others | ({self.admin_key} if self.admin_key else set())

    def skip_without(self, *operation_ids: str) -> None:
        """Skip the test if the target declares that it does not have one of these operations."""
        self.observer.skip_without(*operation_ids)

    def delete_users(self) -> None:
        """Delete the users that registered since the last call. Report if one could not be deleted (findings.py)."""
        users, self.users = self.users, {}
        if "deleteUser" in self.observer.lacking:
            return
        left = 0
        for credentials, is_registered in users.items():
            if is_registered or not self.is_public:  # a public target would count a wrong guess as a failure
                client = BackupClient(self.base_url, self.secret, credentials, keyid=self.keyid, clock=self.now)
                try:
                    is_left = client.delete_user().status_code not in (204, 401)
                except requests.RequestException:
                    is_left = True
                left += is_left
                if not is_left and (notes := left_behind.notes()):
                    notes.is_gone(credentials)
        if users:
            findings.report(
                {"deleteUser.204": [f"{left} of a test's users could not be deleted"] if left else []}, None
            )


class TargetSession(CheckedSession):
    """Learns from the exchanges which users exist. Set `meets_limits` if a test reaches account limits on purpose."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.observer)
        self._target = target
        self.meets_limits = False

    def answered(self, request: requests.PreparedRequest, response: requests.Response) -> None:
        path = urlsplit(request.url or "").path
        credentials = exchanges.credentials_of(request.headers.get("Authorization", ""))
        match request.method, path, response.status_code:
            case _ if not credentials:
                pass
            case "POST", "/api/register", 200 | 201:
                self._target.users[credentials] = True
            case "PUT", "/api/user/storage-key", 200:
                self._target.users.pop(credentials, None)
                new_key = exchanges.member_of(request.body, "storageKey")
                self._target.users[credentials[0], str(new_key)] = True
            case "DELETE", "/api/user", 204:
                self._target.users.pop(credentials, None)
            case method, _, 429 if method and not (self.meets_limits and "RateLimit" in response.headers):
                limit_met(self._target, method, path)


def limit_met(target: Target, method: str, path: str) -> None:
    """End a test that reached a limit by accident."""
    operation = openapi.find_operation(method, path)
    names = ["FAILED_CREDENTIALS_PER_5_MINUTES", "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY"]
    if operation and operation.id == "registerUser":
        names.append("REGISTRATIONS_PER_HOUR")
    if operation and operation.id == "storeBackup":
        names += ["BACKUPS_PER_HOUR", "BACKUPS_PER_DAY"]
    if operation and operation.id == "changeStorageKey":
        names += ["KEY_CHANGES_PER_HOUR", "KEY_CHANGES_PER_DAY"]
    if target.is_public:
        not_run(f"the target's limits are used up for now: {' or '.join(names)}")
    pytest.fail(f"the target's limits are too low for the full profile: raise {' or '.join(names)}", pytrace=False)


# ---- A given target ----------------------------------------------------------------------------------------


def given_target(base_url: str, profile: str) -> Target:
    """Return the target that --base-url names, with what the environment gives. Raise UsageError if it is unusable."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.query or url.username:
        raise pytest.UsageError("--base-url must be http://… or https://…, with a host but without a path or a user")
    if not os.environ.get("APP_SECRET_KEY"):
        raise pytest.UsageError("--base-url needs the app's secret in APP_SECRET_KEY")
    (keyid, secret), *more = app_secrets(os.environ["APP_SECRET_KEY"])
    target = Target(
        base_url.rstrip("/"),
        secret,
        keyid,
        is_public=profile == "public",
        admin_key=os.environ.get("ADMIN_SECRET_KEY") or None,
        allowed_origin=os.environ.get("CONTRACT_ORIGIN") or None,
        second_keyid=more[0] if more else None,
    )
    return target


def check_target(base_url: str, profile: str, *, last_stage: int | None = None) -> None:
    """Raise UsageError unless the target can be reached, accepts the secrets, and has the limits of the profile.

    If a run ends with a stage, its target is still being built. Then check only whether it can be reached, and whether
    it has a document: the tests tell what else is missing.
    """
    target = given_target(base_url, profile)
    try:
        document = requests.get(f"{target.base_url}/openapi.json", timeout=30, allow_redirects=False)
        if document.status_code != 200:
            raise pytest.UsageError(f"the target's /openapi.json gets {document.status_code}, but it must be there")
        target.observer = Observer(openapi.left_out(document.json()))
        if last_stage is not None:
            return
        check_secrets(target)
        check_admin_key_and_origin(target)
        if profile == "full" and not {"registerUser", "deleteUser"} & target.observer.lacking:
            check_raised_limits(target)
    except requests.RequestException as error:
        raise pytest.UsageError(f"the target cannot be reached at {base_url}: {network.reason(error)}") from None
    except (ValueError, LookupError, TypeError):
        raise pytest.UsageError("the target's answers do not fit openapi.yaml: is it a backup server?") from None


def a_client(target: Target, **options: Any) -> BackupClient:
    """Return a client of a new user, without checks of its answers."""
    options = {"keyid": target.keyid, "secret": target.secret} | options
    options.setdefault("session", left_behind.NotingSession())
    return BackupClient(target.base_url, credentials=(secrets.token_hex(32), secrets.token_hex(32)), **options)


def check_secrets(target: Target) -> None:
    for keyid, secret in [(target.keyid, target.secret), *([target.second_keyid] if target.second_keyid else [])]:
        # If the path exists, a server checks the signature before anything else.
        there = [each for each in openapi.OPERATIONS.values() if each.id not in target.observer.lacking]
        signed = next((each for each in there if each.signed), None)
        if signed is None:
            return
        client = a_client(target, keyid=keyid, secret=secret)
        answer = client.request(signed.method, signed.path.replace("{version}", "1"), body=b"x")
        problem = answer.json()
        match problem.get("code"):
            case "signature_invalid" | "signature_missing":
                raise pytest.UsageError(f"APP_SECRET_KEY is not the target's: keyid {keyid} gets {problem['code']}")
            case "signature_expired":
                raise pytest.UsageError("the clocks of the target and of this machine are more than 300 s apart")
            case "rate_limited":
                wait = answer.headers.get("Retry-After")
                raise pytest.UsageError(f"FAILED_CREDENTIALS_PER_5_MINUTES is used up for this address: wait {wait} s")


def check_admin_key_and_origin(target: Target) -> None:
    if target.admin_key and "getAdminStats" not in target.observer.lacking:
        if a_client(target).get_admin_stats(target.admin_key).status_code in (401, 404):
            raise pytest.UsageError("ADMIN_SECRET_KEY is not the target's")
    if target.allowed_origin:
        headers = {"Origin": target.allowed_origin}
        answer = requests.get(f"{target.base_url}/openapi.json", headers=headers, timeout=30)
        if answer.headers.get("Access-Control-Allow-Origin") != target.allowed_origin:
            raise pytest.UsageError("CONTRACT_ORIGIN is not among the target's ALLOWED_ORIGINS")


def check_raised_limits(target: Target) -> None:
    """Raise UsageError unless the limits were raised. First check those that a header shows."""
    clients = [a_client(target) for _ in range(PROBES)]
    registered = []
    too_low: list[str] = []
    try:
        for client in clients:
            if client.register_user().status_code == 429:
                too_low.append("REGISTRATIONS_PER_HOUR")
                break
            registered.append(client)
            if client is clients[0] and (
                low := too_low_for_uploads(target, client)
                or too_low_for_key_changes(target, client)
                or too_few_kept(target, client)
            ):
                too_low += low
                break
        if not too_low:
            answers = [a_client(target).delete_user().status_code for _ in range(PROBES)]
            too_low += ["FAILED_CREDENTIALS_PER_5_MINUTES"] if 429 in answers else []
        if not too_low:
            nobody = a_client(target)
            answers = [nobody.delete_user().status_code for _ in range(PROBES_OF_ACCOUNT)]
            too_low += ["FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY"] if 429 in answers else []
    finally:
        for client in registered:
            client.delete_user()
    if too_low:
        raise pytest.UsageError(
            f"the full profile needs a target with raised limits; {', '.join(too_low)} "
            f"{'is' if len(too_low) == 1 else 'are'} not. Give it "
            + " ".join(f"{name}={number}" for name, number in (RAISED_LIMITS | KEPT).items())
            + ", or use --profile public."
        )


def too_low_for_uploads(target: Target, client: BackupClient) -> list[str]:
    if "storeBackup" in target.observer.lacking:
        return []
    return too_low_by_policy(client.store_backup(b"a probe"), "BACKUPS_PER")


def too_low_for_key_changes(target: Target, client: BackupClient) -> list[str]:
    """Change the key, and change it back."""
    if {"storeBackup", "changeStorageKey"} & target.observer.lacking:
        return []
    (user_id, key), other = client.credentials, secrets.token_hex(32)
    changed = client.change_storage_key(other, b"another probe", sha256(b"a probe"))
    options: dict[str, Any] = {"keyid": target.keyid, "session": left_behind.NotingSession()}
    with_other = BackupClient(target.base_url, target.secret, (user_id, other), **options)
    with_other.change_storage_key(key, b"a probe", sha256(b"another probe"))
    return too_low_by_policy(changed, "KEY_CHANGES_PER")


def too_low_by_policy(answer: requests.Response, setting: str) -> list[str]:
    quotas = re.findall(r'(hour|day)";q=([0-9]+)', answer.headers.get("RateLimit-Policy", ""))
    return [f"{setting}_{name.upper()}" for name, quota in quotas if int(quota) < UPLOADS_NEEDED]


def too_few_kept(target: Target, client: BackupClient) -> list[str]:
    """Store as many versions as the contract keeps, counting the probe. Return KEEP_VERSIONS if fewer are listed."""
    if {"storeBackup", "listBackupVersions"} & target.observer.lacking:
        return []
    last = int(KEPT["KEEP_VERSIONS"].partition(",")[0])
    base = b"a probe"
    for number in range(1, last):
        blob = b"probe %d" % number
        client.store_backup(blob, sha256(base))
        base = blob
    return [] if len(client.list_backup_versions().json()["versions"]) >= last else ["KEEP_VERSIONS"]
