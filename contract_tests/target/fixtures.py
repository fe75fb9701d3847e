"""The fixtures: the target, a user of it, and what a test may need besides HTTP.

That can be an admin key, an allowed origin, a second keyid, or a server process of the test's own with a clock, faults
and settings. If the run was not given what a test needs, the test is "not run", which is not the same as "passed".
"""

import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from clients.python.backup_client import BackupClient, Keys, app_secrets
from contract_tests.suite.outcomes import ABOUT, not_run
from contract_tests.suite.run import selected_stages
from contract_tests.target import dates, edge, left_behind, network
from contract_tests.target.calls import outcome
from contract_tests.target.observer import Observer
from contract_tests.target.openapi import left_out
from contract_tests.target.process import ServerProcess
from contract_tests.target.target import (
    ALLOWED_ORIGIN,
    RAISED_LIMITS,
    Credentials,
    Target,
    check_target,
    given_target,
)
from contract_tests.target.used_servers import SERVERS

SAME_SIGNAL = 1.0  # seconds. Ctrl-C reaches each process of a terminal, and a program in between may pass it on


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in edge.MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    network.set_up(config.getoption("--ca-bundle"))
    if is_run_against_given_target(config):
        left_behind.begin()
        end_gently()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Delete the users that are left on the target. All workers have ended."""
    if is_run_against_given_target(config) and left_behind.is_begun():
        with suppress(pytest.UsageError):  # then nobody was registered
            target = given_target(config.getoption("--base-url"), config.getoption("--profile"))
            if said := left_behind.end(target.base_url, target.secret, target.keyid):
                print(said, file=sys.stderr)
        left_behind.forget()


def is_run_against_given_target(config: pytest.Config) -> bool:
    """Return whether this is the process that started a run, not a worker of pytest-xdist, and has a given target."""
    return bool(
        config.getoption("--base-url") and not hasattr(config, "workerinput") and not config.getoption("collectonly")
    )


def end_gently() -> None:
    """Let SIGINT and SIGTERM end the run so that the users are deleted. Let a second signal end it at once."""
    first: list[float] = []

    def interrupt(number: int, frame: object) -> None:
        if first and time.monotonic() < first[0] + SAME_SIGNAL:
            return
        if first:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        first.append(time.monotonic())
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run here if the target cannot be tested."""
    config = session.config
    if is_run_against_given_target(config):
        stages = selected_stages(config)
        check_target(
            config.getoption("--base-url"), config.getoption("--profile"), last_stage=stages[-1] if stages else None
        )


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The server that most tests use, with raised limits. If the run starts it, it has everything that a test needs."""
    if base_url := request.config.getoption("--base-url"):
        target = given_target(base_url, request.config.getoption("--profile"))
        target.observer = Observer(left_out(requests.get(f"{target.base_url}/openapi.json", timeout=30).json()))
        target.observer.edge = None if request.config.getoption("--direct") else edge.find(target.base_url)
        target.observer.allows_origins = bool(target.allowed_origin)
        request.config.stash[SERVERS].add(target, shared=True)
        yield target
        return
    is_public = request.config.getoption("--profile") == "public"
    settings: dict[str, Any] = {
        "APP_SECRET_KEY": f"app:{secrets.token_hex(32)},next-app_2:{secrets.token_hex(32)}",
        "ALLOWED_ORIGINS": ALLOWED_ORIGIN,
    } | ({} if is_public else RAISED_LIMITS)
    with ServerProcess(tmp_path_factory.mktemp("target"), **settings) as process:
        request.config.stash[SERVERS].add(process, shared=True)
        (_, second) = app_secrets(process.environ["APP_SECRET_KEY"])
        yield Target(
            process.base_url,
            process.secret,
            now=process.now,
            is_public=is_public,
            process=process,
            observer=process.observer,
            admin_key=process.admin_key,
            allowed_origin=ALLOWED_ORIGIN,
            second_keyid=second,
        )


@pytest.fixture(autouse=True)
def no_user_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Delete the test's users from the target, even if the test failed."""
    if "target" not in request.fixturenames:
        yield
        return
    target = request.getfixturevalue("target")
    yield
    target.delete_users()


@pytest.fixture(autouse=True)
def at_the_dates_of_the_run(request: pytest.FixtureRequest) -> None:
    """Move the target's clock to shortly before midnight, if the run has dates."""
    if "target" in request.fixturenames and (process := request.getfixturevalue("target").process):
        dates.come_near(process)


@pytest.fixture(autouse=True)
def behind_an_edge(request: pytest.FixtureRequest) -> None:
    """Do not run what an edge in front of the target makes meaningless (edge.py)."""
    if "target" not in request.fixturenames:
        return
    observer = request.getfixturevalue("target").observer
    if observer.edge and request.node.get_closest_marker("edge_may_change"):
        not_run(f"the edge in front of the target ({observer.edge}) may change what this test looks at")
    observer.edge_may_answer = bool(observer.edge and request.node.get_closest_marker("edge_may_answer"))


@pytest.fixture
def new_user(request: pytest.FixtureRequest, target: Target) -> Callable[..., BackupClient]:
    """`new_user()` is the client of a user who has just registered. It takes the arguments of `target.client`.

    If the registration fails, it is not the requirement of the test that has failed.
    """

    def register(credentials: Keys | Credentials | None = None, **options: Any) -> BackupClient:
        client = target.client(credentials, **options)
        registered = outcome(client.register_user())
        if registered != "201":
            request.node.stash[ABOUT] = ["registerUser.201"]
        assert registered == "201"
        return client

    return register


# ---- What a test may need besides HTTP ---------------------------------------------------------------------


@pytest.fixture
def admin_key(target: Target) -> str:
    """The operator's key."""
    target.skip_without("getAdminStats")
    return target.admin_key or not_run("needs the target's admin key in ADMIN_SECRET_KEY")


@pytest.fixture
def allowed_origin(target: Target) -> str:
    """A web origin that the target allows."""
    return target.allowed_origin or not_run("needs an origin of the target's ALLOWED_ORIGINS in CONTRACT_ORIGIN")


@pytest.fixture
def second_keyid(target: Target) -> tuple[str, str]:
    """Another keyid and its secret."""
    return target.second_keyid or not_run("needs two secrets, keyid:secret,keyid:secret, in APP_SECRET_KEY")


NO_PROCESS = "needs a server of its own, with a clock, faults and settings, but --base-url names another server"


@pytest.fixture
def start_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`start_server(**environ)` starts a server of the test's own. Its limits are the contract's, unless given."""
    if request.config.getoption("--base-url"):
        not_run(NO_PROCESS)
    with ExitStack() as stack:
        count = iter(range(1000))

        def start(directory: Path | None = None, **options: Any) -> ServerProcess:
            process = ServerProcess(directory or tmp_path / f"server{next(count)}", **options)
            request.config.stash[SERVERS].add(process)
            return stack.enter_context(process)

        yield start


@pytest.fixture(scope="module")
def start_shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ServerProcess]]:
    """`start_shared_server(**environ)` starts a server like `start_server`, which the tests of a module share."""
    if request.config.getoption("--base-url"):
        not_run(NO_PROCESS)
    with ExitStack() as stack:

        def start(**options: Any) -> ServerProcess:
            process = ServerProcess(tmp_path_factory.mktemp("server"), **options)
            request.config.stash[SERVERS].add(process, shared=True)
            return stack.enter_context(process)

        yield start
