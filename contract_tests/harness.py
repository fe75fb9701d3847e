"""The target of the tests, and what they ask of it: a server started here, or by --base-url any other.

What a test needs beside HTTP is a fixture: an admin key, an allowed origin, a second keyid, or a server process of
its own with a clock, faults and settings. Where that is not given the test is not run, which is not the same as
passed.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import exchanges
import pytest
import requests
import spec
from calls import sha256
from client import BackupClient, Keys
from launcher import ServerProcess
from plugin import not_run

# Limits so high that tests on one server do not meet them.
RAISED_LIMITS = {
    "REGISTRATIONS_PER_HOUR": 1_000_000,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 1_000_000,
    "BACKUPS_PER_HOUR": 1000,
    "BACKUPS_PER_DAY": 1000,
}
ALLOWED_ORIGIN = "https://app.example"
KEPT = {"KEEP_VERSIONS": spec.SPEC["x-configurable-limits"]["KEEP_VERSIONS"]}  # of the last ones at least as many
UPLOADS_NEEDED = 100  # of one account in an hour, by the full profile
PROBES = 32  # one more, and a few, than are allowed where the limits per address were not raised

Credentials = tuple[str, str]


@dataclass
class Target:
    """The server under test. `process` is None when it was not started here; the last three where not given."""

    base_url: str
    secret: str = field(repr=False)
    keyid: str = "app"
    now: Callable[[], float] = time.time
    is_public: bool = False
    process: ServerProcess | None = None
    admin_key: str | None = field(default=None, repr=False)
    allowed_origin: str | None = None
    second_keyid: tuple[str, str] | None = field(default=None, repr=False)
    users: dict[Credentials, bool] = field(default_factory=dict, repr=False)  # and whether they surely registered

    def client(self, credentials: Keys | Credentials | None = None, **options: Any) -> BackupClient:
        """A client, of a made-up user unless given; what it registers is deleted when the test ends."""
        client = spec.checked_client(self, credentials, **({"session": TargetSession(self)} | options))
        if credentials is not None:
            self.users.setdefault(client.credentials, False)
        return client

    def delete_users(self) -> None:
        """Deletes the users that registered since the last call. Raises AssertionError if one is still there."""
        users, self.users = self.users, {}
        if "deleteUser" in spec.LACKING:
            return
        left = 0
        for credentials, is_registered in users.items():
            if is_registered or not self.is_public:  # a wrong guess would be a failure that a public target counts
                client = BackupClient(self.base_url, self.secret, credentials, keyid=self.keyid, clock=self.now)
                try:
                    left += client.delete_user().status_code not in (204, 401)
                except requests.RequestException:
                    left += 1
        assert not left, f"{left} of the test's users could not be deleted"


class TargetSession(spec.CheckedSession):
    """Learns from the exchanges which users there are; `meets_limits` where an account's are met on purpose."""

    def __init__(self, target: Target) -> None:
        super().__init__()
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
    """A limit that should not have been met by this test."""
    operation = spec.find_operation(method, path)
    names = ["FAILED_CREDENTIALS_PER_5_MINUTES"]
    if operation and operation.id == "registerUser":
        names.append("REGISTRATIONS_PER_HOUR")
    if operation and operation.id in ("storeBackup", "changeStorageKey"):
        names += ["BACKUPS_PER_HOUR", "BACKUPS_PER_DAY"]
    if target.is_public:
        not_run(f"the target's limits are spent for now: {' or '.join(names)}")
    pytest.fail(f"the target's limits are too low for the full profile: raise {' or '.join(names)}", pytrace=False)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The server that most tests use: with raised limits and, where it was started here, all that a test may need."""
    if base_url := request.config.getoption("--base-url"):
        target = given_target(base_url, request.config.getoption("--profile"))
        spec.declare(requests.get(f"{target.base_url}/openapi.json", timeout=30).json())
        yield target
        return
    is_public = request.config.getoption("--profile") == "public"
    settings = {
        "APP_SECRET_KEY": f"app:{secrets.token_hex(32)},next-app_2:{secrets.token_hex(32)}",
        "ALLOWED_ORIGINS": ALLOWED_ORIGIN,
    } | ({} if is_public else RAISED_LIMITS)
    with ServerProcess(tmp_path_factory.mktemp("target"), **settings) as process:
        exchanges.SECRETS |= {process.secret, str(process.admin_key)}
        with suppress(requests.RequestException, ValueError, LookupError):  # a document that is none lacks nothing
            spec.declare(requests.get(f"{process.base_url}/openapi.json", timeout=30).json())
        (_, second) = app_secrets(process.environ["APP_SECRET_KEY"])
        yield Target(
            process.base_url,
            process.secret,
            now=process.now,
            is_public=is_public,
            process=process,
            admin_key=process.admin_key,
            allowed_origin=ALLOWED_ORIGIN,
            second_keyid=second,
        )


@pytest.fixture(autouse=True)
def no_user_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Deletes the test's users from the target, also when the test failed."""
    exchanges.LAST.clear()
    if "target" not in request.fixturenames:
        yield
        return
    target = request.getfixturevalue("target")
    yield
    target.delete_users()


@pytest.fixture
def new_user(target: Target) -> Callable[..., BackupClient]:
    """`new_user()` is the client of a user who has just registered; it takes what `target.client` takes."""

    def register(credentials: Keys | Credentials | None = None, **options: Any) -> BackupClient:
        client = target.client(credentials, **options)
        response = client.register_user()
        assert response.status_code == 201, response.text
        return client

    return register


# ---- What a test may need beside HTTP ----------------------------------------------------------------------


@pytest.fixture
def admin_key(target: Target) -> str:
    """The operator's key."""
    spec.skip_without("getAdminStats")
    return target.admin_key or not_run("needs the target's admin key in ADMIN_SECRET_KEY")


@pytest.fixture
def allowed_origin(target: Target) -> str:
    """An origin that the target allows."""
    return target.allowed_origin or not_run("needs an origin of the target's ALLOWED_ORIGINS in CONTRACT_ORIGIN")


@pytest.fixture
def second_keyid(target: Target) -> tuple[str, str]:
    """Another keyid and its secret."""
    return target.second_keyid or not_run("needs two secrets, keyid:secret,keyid:secret, in APP_SECRET_KEY")


NO_PROCESS = "needs a server of its own, with its clock, faults and settings, and --base-url names another's"


@pytest.fixture
def start_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`start_server(**environ)` is a server of the test's own, with the contract's limits unless given."""
    if request.config.getoption("--base-url"):
        not_run(NO_PROCESS)
    with ExitStack() as stack:
        count = iter(range(1000))

        def start(directory: Path | None = None, **options: Any) -> ServerProcess:
            process = ServerProcess(directory or tmp_path / f"server{next(count)}", **options)
            exchanges.SECRETS |= {process.secret, process.admin_key or process.secret}
            return stack.enter_context(process)

        yield start


@pytest.fixture(scope="module")
def start_shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ServerProcess]]:
    """The same, for a server that the tests of a module share."""
    if request.config.getoption("--base-url"):
        not_run(NO_PROCESS)
    with ExitStack() as stack:

        def start(**options: Any) -> ServerProcess:
            return stack.enter_context(ServerProcess(tmp_path_factory.mktemp("server"), **options))

        yield start


# ---- A target that was given -------------------------------------------------------------------------------


def app_secrets(text: str) -> list[tuple[str, str]]:
    """(keyid, secret) for each secret in APP_SECRET_KEY."""
    entries = [entry.rpartition(":") for entry in text.split(",")]
    return [(keyid or "app", secret) for keyid, _, secret in entries]


def given_target(base_url: str, profile: str) -> Target:
    """The target that --base-url names, with what the environment gives. Raises UsageError."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.query or url.username:
        raise pytest.UsageError("--base-url must be http://… or https://…, with a host and without path or user")
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
    exchanges.SECRETS |= {text for _, text in [(keyid, secret), *more]}
    exchanges.SECRETS |= {target.admin_key} if target.admin_key else set()
    return target


def check_target(base_url: str, profile: str) -> None:
    """Raises UsageError unless the target can be reached, proven to, and tested as much as the profile wants."""
    target = given_target(base_url, profile)
    try:
        document = requests.get(f"{target.base_url}/openapi.json", timeout=30, allow_redirects=False)
        if document.status_code != 200:
            raise pytest.UsageError(f"the target's /openapi.json answers {document.status_code}: it has to be there")
        spec.declare(document.json())
        check_secrets(target)
        check_admin_key_and_origin(target)
        if profile == "full" and not {"registerUser", "deleteUser"} & spec.LACKING:
            check_raised_limits(target)
    except requests.RequestException as error:
        raise pytest.UsageError(f"the target cannot be reached at {base_url}: {type(error).__name__}") from None
    except (ValueError, LookupError, TypeError):
        raise pytest.UsageError("the target's answers are not those of openapi.yaml: is it a backup server?") from None


def a_client(target: Target, **options: Any) -> BackupClient:
    """A client of a made-up user, whose answers are not held against the spec."""
    options = {"keyid": target.keyid, "secret": target.secret} | options
    return BackupClient(target.base_url, credentials=(secrets.token_hex(32), secrets.token_hex(32)), **options)


def check_secrets(target: Target) -> None:
    for keyid, secret in [(target.keyid, target.secret), *([target.second_keyid] if target.second_keyid else [])]:
        # A signature is looked at before anything else of a request to a path that is there.
        signed = next((each for each in spec.OPERATIONS.values() if each.signed and each.id not in spec.LACKING), None)
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
                raise pytest.UsageError(f"FAILED_CREDENTIALS_PER_5_MINUTES is spent for this address: wait {wait} s")


def check_admin_key_and_origin(target: Target) -> None:
    if target.admin_key and "getAdminStats" not in spec.LACKING:
        if a_client(target).get_admin_stats(target.admin_key).status_code in (401, 404):
            raise pytest.UsageError("ADMIN_SECRET_KEY is not the target's")
    if target.allowed_origin:
        headers = {"Origin": target.allowed_origin}
        answer = requests.get(f"{target.base_url}/openapi.json", headers=headers, timeout=30)
        if answer.headers.get("Access-Control-Allow-Origin") != target.allowed_origin:
            raise pytest.UsageError("CONTRACT_ORIGIN is not among the target's ALLOWED_ORIGINS")


def check_raised_limits(target: Target) -> None:
    """Tries whether the limits were raised, those that a header tells first."""
    clients = [a_client(target) for _ in range(PROBES)]
    registered = []
    too_low: list[str] = []
    try:
        for client in clients:
            if client.register_user().status_code == 429:
                too_low.append("REGISTRATIONS_PER_HOUR")
                break
            registered.append(client)
            if client is clients[0] and (low := too_low_for_uploads(client) or too_few_kept(client)):
                too_low += low
                break
        if not too_low:
            answers = [a_client(target).delete_user().status_code for _ in range(PROBES)]
            too_low += ["FAILED_CREDENTIALS_PER_5_MINUTES"] if 429 in answers else []
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


def too_low_for_uploads(client: BackupClient) -> list[str]:
    if "storeBackup" in spec.LACKING:
        return []
    policy = client.store_backup(b"a probe").headers.get("RateLimit-Policy", "")
    quotas = dict(re.findall(r'"(hour|day)";q=([0-9]+)', policy))
    return [f"BACKUPS_PER_{name.upper()}" for name, quota in quotas.items() if int(quota) < UPLOADS_NEEDED]


def too_few_kept(client: BackupClient) -> list[str]:
    """Stores, after the probe, as many versions as the contract's last ones, and counts those that are listed."""
    if {"storeBackup", "listBackupVersions"} & spec.LACKING:
        return []
    last = int(KEPT["KEEP_VERSIONS"].partition(",")[0])
    base = b"a probe"
    for number in range(1, last):
        blob = b"probe %d" % number
        client.store_backup(blob, sha256(base))
        base = blob
    return [] if len(client.list_backup_versions().json()["versions"]) >= last else ["KEEP_VERSIONS"]
