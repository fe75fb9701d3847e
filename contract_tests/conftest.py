"""The target of the contract tests: a server started here, or by --base-url any other."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from client import BackupClient, Keys
from launcher import ServerProcess
from spec import checked_client

# Limits so high that tests on one server do not meet them.
RAISED_LIMITS = {
    "REGISTRATIONS_PER_HOUR": 1_000_000,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 1_000_000,
    "BACKUPS_PER_HOUR": 1000,
    "BACKUPS_PER_DAY": 1000,
}
ALLOWED_ORIGIN = "https://app.example"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--base-url",
        default=os.environ.get("CONTRACT_BASE_URL"),
        help="test this server, with APP_SECRET_KEY (and ADMIN_SECRET_KEY) from the environment",
    )
    parser.addoption("--fuzz-examples", default="50", help="generated cases for each operation and phase")
    parser.addoption("--fuzz-seed", default=str(secrets.randbelow(2**32)), help="repeats the run that printed it")


def pytest_report_header(config: pytest.Config) -> str:
    base_url, seed = config.getoption("--base-url"), config.getoption("--fuzz-seed")
    return f"target: {base_url or 'a server of its own'}, --fuzz-seed {seed}"


@dataclass
class Target:
    """The server under test. `process` is None when it was not started here."""

    base_url: str
    secret: str = field(repr=False)
    admin_key: str | None = field(repr=False)
    keyid: str = "app"
    now: Callable[[], float] = time.time
    process: ServerProcess | None = None
    clients: list[BackupClient] = field(default_factory=list)

    def client(self, credentials: Keys | tuple[str, str] | None = None, **options: Any) -> BackupClient:
        """A client, of a made-up user unless given; what it registers is deleted when the test ends."""
        client = checked_client(self, credentials, **options)
        self.clients.append(client)
        return client

    def delete_users(self) -> None:
        """Deletes what the clients since the last call left behind."""
        while self.clients:
            assert self.clients.pop().delete_user().status_code in (204, 401)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The server that most tests use: with raised limits, an admin key, and one allowed origin."""
    if base_url := request.config.getoption("--base-url"):
        secret = os.environ.get("APP_SECRET_KEY")
        if not secret:
            pytest.fail("--base-url needs the app's secret in APP_SECRET_KEY")
        keyid, _, secret = secret.partition(",")[0].rpartition(":")
        yield Target(base_url.rstrip("/"), secret, os.environ.get("ADMIN_SECRET_KEY"), keyid or "app")
        return
    directory = tmp_path_factory.mktemp("target")
    with ServerProcess(directory, ALLOWED_ORIGINS=ALLOWED_ORIGIN, **RAISED_LIMITS) as process:
        yield Target(process.base_url, process.secret, process.admin_key, now=process.now, process=process)


@pytest.fixture(autouse=True)
def no_user_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Deletes the test's users from the target, also when the test failed."""
    if "target" not in request.fixturenames:
        yield
        return
    target = request.getfixturevalue("target")
    yield
    target.delete_users()


@pytest.fixture
def new_user(target: Target) -> Callable[..., BackupClient]:
    """`new_user()` is the client of a user who has just registered; it takes what `target.client` takes."""

    def register(credentials: Keys | tuple[str, str] | None = None, **options: Any) -> BackupClient:
        client = target.client(credentials, **options)
        response = client.register_user()
        assert response.status_code == 201, response.text
        return client

    return register


@pytest.fixture
def start_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`start_server(**environ)` is a server of the test's own, with the contract's limits unless given."""
    if request.config.getoption("--base-url"):
        pytest.skip("not run: needs a server process of its own, and --base-url names another's")
    with ExitStack() as stack:
        count = iter(range(1000))

        def start(directory: Path | None = None, **options: Any) -> ServerProcess:
            return stack.enter_context(ServerProcess(directory or tmp_path / f"server{next(count)}", **options))

        yield start
