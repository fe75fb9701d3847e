"""What the contract tests add to pytest: requirements, outcomes, selection, expected failures, a summary, a report.

A test names the requirements that it proves (requirement_ids.py). Its outcome is passed; failed; skipped, where the
target declares that it does not have an operation; or not run, where something is missing that the run was not
given. A requirement is proven when every test that names it has passed. Tests that lie elsewhere name none.
"""

import hashlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from contract_tests.suite import report as html
from contract_tests.suite.outcomes import NotRun, not_run
from contract_tests.suite.requirement_ids import (
    CATEGORIES,
    PREFIXES,
    REQUIREMENTS,
    UnknownRequirement,
    category,
    expand,
    named_by,
)
from contract_tests.target import exchanges
from contract_tests.target.openapi import SPEC, SPEC_BYTES

HERE = Path(__file__).resolve().parents[1]  # contract_tests/
FAULT = pytest.StashKey[str]()  # why a test fails before it starts
NOT_GIVEN = pytest.StashKey[str]()  # why it is not run
ABOUT = pytest.StashKey[list[str]]()  # the ids that it is proving now
RUN = pytest.StashKey["Run"]()
EXPECTED = pytest.StashKey[dict[str, str]]()


# ---- Options -----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("contract", "the contract tests")
    group.addoption(
        "--base-url",
        default=os.environ.get("CONTRACT_BASE_URL"),
        metavar="URL",
        help="test this server; APP_SECRET_KEY, and where given ADMIN_SECRET_KEY and CONTRACT_ORIGIN, say the rest",
    )
    group.addoption(
        "--profile",
        choices=["full", "public"],
        default="full",
        help="full needs a target with raised limits; public stays inside those of the contract",
    )
    group.addoption(
        "--requirement",
        action="append",
        default=[],
        metavar="ID",
        help="only the tests that name it; * and ? may be in it",
    )
    group.addoption(
        "--category",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this, or with no-NAME all but this: {', '.join(CATEGORIES)}, or the first part of ids",
    )
    group.addoption("--expected-failures", metavar="FILE", help="ids or tests, each followed by ' # ' and the reason")
    group.addoption("--report", metavar="FILE", help="write a page about the run")
    group.addoption("--fuzz-examples", default="50", help="generated cases for each operation and phase")
    group.addoption("--fuzz-runs", default=1, type=int, help="runs of generated requests, each with the next seed")
    group.addoption("--fuzz-requests", default=0, type=int, help="where the runs send fewer, they fail")
    group.addoption("--fuzz-seed", default=secrets.randbelow(2**32), type=int, help="repeats the run that printed it")
    group.addoption("--model-examples", default=10, type=int, help="random lives in each test of test_random_lives.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requirement(*ids): the requirements of openapi.yaml that the test proves")
    config.addinivalue_line("markers", "public: the test fits the limits of a public deployment")
    config.stash[EXPECTED] = expected_failures(config.getoption("--expected-failures"))
    for pattern in config.getoption("--requirement"):
        try:
            expand(pattern, {})
        except UnknownRequirement:
            raise pytest.UsageError(f"--requirement {pattern}: openapi.yaml has no such id") from None
    for name in config.getoption("--category"):
        if name.removeprefix("no-") not in CATEGORIES.keys() | PREFIXES:
            raise pytest.UsageError(f"--category {name}: there is none of this name")
    if not is_worker(config):
        config.stash[RUN] = config.pluginmanager.getplugin("requirements of a run") or Run(config)
        config.pluginmanager.register(config.stash[RUN], "requirements of a run")


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of the processes of pytest-xdist."""
    return hasattr(config, "workerinput")


def expected_failures(file: str | None) -> dict[str, str]:
    """The reasons by id or test. Raises UsageError for a line without one."""
    found: dict[str, str] = {}
    for line in Path(file).read_text().splitlines() if file else []:
        if line.strip() and not line.startswith("#"):
            name, _, reason = (part.strip() for part in line.partition(" # "))
            if not reason or (name not in REQUIREMENTS and "::" not in name):
                raise pytest.UsageError(f"--expected-failures: {line}: not an id or a test, then ' # ' and the reason")
            found[name] = reason
    return found


def is_narrowed(config: pytest.Config) -> bool:
    """Whether the run leaves some of these tests out on purpose."""
    options = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "requirement", "category")
    directories = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args]
    whole = any(directory == HERE or directory in HERE.parents for directory in directories)
    return not whole or any(config.getoption(option, None) for option in options)


def pytest_report_header(config: pytest.Config) -> list[str]:
    target = config.getoption("--base-url") or "a server of its own"
    return [f"target: {target}, profile {config.getoption('--profile')}, --fuzz-seed {config.getoption('--fuzz-seed')}"]


# ---- The tests and what they name --------------------------------------------------------------------------


def is_of_the_contract(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HERE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    faults: list[str] = []
    named: dict[pytest.Item, list[str]] = {item: [] for item in items}
    for item in filter(is_of_the_contract, items):
        try:
            named[item] = named_by(item)
            fault = None if named[item] else "names no requirement"
        except UnknownRequirement as error:
            fault = f"names a requirement that openapi.yaml does not have: {error}"
        if fault:
            item.stash[FAULT] = fault
            faults.append(f"{item.nodeid} {fault}")
        item.user_properties += [("requirement", identifier) for identifier in named[item]]
        if config.getoption("--profile") == "public" and not item.get_closest_marker("public"):
            item.stash[NOT_GIVEN] = "does not fit the limits of a public deployment"
    if not is_narrowed(config):
        untested = REQUIREMENTS.keys() - {identifier for ids in named.values() for identifier in ids}
        faults += [f"{identifier} has no test" for identifier in sorted(untested)]
    if faults and not is_worker(config):  # where it is one, the tests themselves fail, and the summary tells the rest
        raise pytest.UsageError("\n".join(faults))
    select(config, items, named)


def select(config: pytest.Config, items: list[pytest.Item], named: dict[pytest.Item, list[str]]) -> None:
    """Keeps what --requirement and --category ask for."""
    wanted = {identifier for pattern in config.getoption("--requirement") for identifier in expand(pattern, {})}
    categories = config.getoption("--category")
    on = {name for name in categories if not name.startswith("no-")}
    off = {name.removeprefix("no-") for name in categories if name.startswith("no-")}
    if not wanted and not categories:
        return

    def is_selected(item: pytest.Item) -> bool:
        ids = named[item]
        own = {part for identifier in ids for part in (category(identifier), identifier.partition(".")[0])}
        return bool(ids) and (not wanted or bool(wanted & set(ids))) and (not on or bool(on & own)) and not off & own

    config.hook.pytest_deselected(items=[item for item in items if not is_selected(item)])
    items[:] = [item for item in items if is_selected(item)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if fault := item.stash.get(FAULT, None):
        pytest.fail(fault, pytrace=False)
    if reason := item.stash.get(NOT_GIVEN, None):
        not_run(reason)


# ---- Outcomes ----------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if not is_of_the_contract(item):
        return report
    if call.excinfo and isinstance(call.excinfo.value, NotRun):
        report.not_run = True
    if report.failed:
        report.exchanges = exchanges.last()
        redact(report)
        reasons = item.config.stash[EXPECTED]
        report.about = ids = item.stash.get(ABOUT, None) or requirements_in(item.user_properties)
        named = [name for name in (item.nodeid, item.nodeid.partition("[")[0]) if name in reasons]
        if named or (ids and reasons.keys() >= set(ids)):  # else what was not expected may have failed
            report.outcome, report.wasxfail = "skipped", reasons[(named or ids)[0]]
    return report


@pytest.fixture
def about(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`about(*ids)` says what a long test proves from here on: should it fail, these have failed, and no others."""

    def say(*ids: str) -> None:
        assert set(ids) <= set(named_by(request.node)), "a test proves what its mark names"
        request.node.stash[ABOUT] = list(ids)

    return say


def requirements_in(properties: list[tuple[str, Any]]) -> list[str]:
    return [value for name, value in properties if name == "requirement"]


def redact(report: Any) -> None:
    """Takes what is secret out of what a failure says, which quotes values and captured output."""
    report.sections = [(name, exchanges.redacted(text)) for name, text in report.sections]
    longrepr = report.longrepr
    if isinstance(longrepr, str):
        report.longrepr = exchanges.redacted(longrepr)
    for traceback, crash, _ in getattr(longrepr, "chain", []):
        if crash:
            crash.message = exchanges.redacted(crash.message)
        for entry in traceback.reprentries:
            entry.lines = [exchanges.redacted(line) for line in getattr(entry, "lines", [])]
            if arguments := getattr(entry, "reprfuncargs", None):
                arguments.args = [(name, exchanges.redacted(value)) for name, value in arguments.args]
            if variables := getattr(entry, "reprlocals", None):
                variables.lines = [exchanges.redacted(line) for line in variables.lines]
    if crash := getattr(longrepr, "reprcrash", None):
        crash.message = exchanges.redacted(crash.message)


def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    if report.skipped and getattr(report, "not_run", False):
        return "not run", "n", ("NOT RUN", {"yellow": True})
    return None


# ---- The run -----------------------------------------------------------------------------------------------

OUTCOMES = ["failed", "expected failure", "not run", "skipped", "passed"]  # the first of its phases' is a test's
VERDICTS = ["failed", "failed as expected", "not run", "skipped", "partly proven", "proven"]


@dataclass
class Test:
    """A test that was reported: what it proves, and what came of it."""

    name: str
    ids: list[str] = field(default_factory=list)
    outcome: str = "passed"
    about: list[str] = field(default_factory=list)  # of the ids, those that it failed at
    seconds: float = 0
    reason: str = ""
    requests: int = 0  # that were generated
    exchanges: list[dict[str, str]] = field(default_factory=list)

    __test__ = False  # no test of pytest's

    def add(self, report: Any) -> None:
        self.seconds += report.duration
        self.ids = self.ids or requirements_in(report.user_properties)
        self.requests = dict(report.user_properties).get("generated requests", 0)
        outcome = "passed"
        if report.failed:
            outcome = "failed"
        elif hasattr(report, "wasxfail"):
            outcome = "expected failure"
        elif report.skipped:
            outcome = "not run" if getattr(report, "not_run", False) else "skipped"
        if OUTCOMES.index(outcome) < OUTCOMES.index(self.outcome):
            self.outcome, self.reason = outcome, reason_of(report)
            self.exchanges, self.about = getattr(report, "exchanges", []), getattr(report, "about", [])

    def outcome_for(self, identifier: str) -> str:
        """What it says of one of its ids: where it failed at others, what came after them was not run."""
        return self.outcome if not self.about or identifier in self.about else "not run"


def reason_of(report: Any) -> str:
    """Why a test failed, was skipped or not run."""
    if hasattr(report, "wasxfail"):
        return report.wasxfail
    if isinstance(report.longrepr, tuple):  # file, line, and the exception with its message
        return report.longrepr[2].removeprefix("Skipped: ").removeprefix(f"{NotRun.__module__}.NotRun: not run: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash else str(report.longrepr or "")


class Run:
    """What the tests of a whole run came to; kept by the process that starts the others."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.started = time.time()
        self.tests: dict[str, Test] = {}
        self.faults: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if Path(self.config.rootpath, report.nodeid.partition("::")[0]).is_relative_to(HERE):
            self.tests.setdefault(report.nodeid, Test(report.nodeid)).add(report)

    def of(self, identifier: str) -> list[Test]:
        """The tests that name an id."""
        return [test for test in self.tests.values() if identifier in test.ids]

    def verdict(self, identifier: str) -> str:
        outcomes = {test.outcome_for(identifier) for test in self.of(identifier)}
        if "failed" in outcomes:
            return "failed"
        if "expected failure" in outcomes:
            return "failed as expected"
        if "passed" in outcomes:
            return "proven" if outcomes == {"passed"} else "partly proven"
        return "skipped" if outcomes == {"skipped"} else "not run"

    def reasons(self) -> Counter[tuple[str, str]]:
        """How many tests were not run, were skipped or failed as expected, and why."""
        outcomes = ("not run", "skipped", "expected failure")
        return Counter((test.outcome, test.reason) for test in self.tests.values() if test.outcome in outcomes)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not session.shouldfail and not session.shouldstop and exitstatus != pytest.ExitCode.INTERRUPTED:
            self.faults = self.find_faults()
        if self.faults and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if (file := self.config.getoption("--report")) and self.tests:
            Path(file).write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """The report as one HTML page."""
        requirements = [
            html.Requirement(identifier, sentence, category(identifier), self.verdict(identifier), self.of(identifier))
            for identifier, sentence in REQUIREMENTS.items()
        ]
        facts = {
            "target": self.config.getoption("--base-url") or "a server that the tests started themselves",
            "profile": self.config.getoption("--profile"),
            "contract": f"openapi.yaml {SPEC['info']['version']}",
            "its SHA-256": hashlib.sha256(SPEC_BYTES).hexdigest(),
            "started": datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "took": f"{time.time() - self.started:.0f} s",
            "selected by": " ".join(
                f"--{name} {value}"
                for name in ("requirement", "category")
                for value in self.config.getoption(f"--{name}")
            ),
            "seed": str(self.config.getoption("--fuzz-seed")),
        }
        return html.page(facts, requirements, list(self.tests.values()), self.faults, self.reasons())

    def find_faults(self) -> list[str]:
        """What makes the run fail beside failed tests."""
        if not self.tests:
            return []
        faults = [f"{test.name} names no requirement" for test in self.tests.values() if not test.ids]
        if not is_narrowed(self.config):
            faults += [f"{identifier} has no test" for identifier in REQUIREMENTS if not self.of(identifier)]
            if not self.config.getoption("--base-url") and self.config.getoption("--profile") == "full":
                verdicts = {identifier: self.verdict(identifier) for identifier in REQUIREMENTS}
                faults += [
                    f"{identifier} is {verdict}, and has to be proven against a server of its own"
                    for identifier, verdict in verdicts.items()
                    if verdict not in ("proven", "failed", "failed as expected") and self.of(identifier)
                ]
        for name in self.config.stash[EXPECTED]:
            tests = [test for test in self.tests.values() if is_named(name, test)]
            if not tests and not is_narrowed(self.config):
                faults.append(f"--expected-failures: there is no test {name}")
            elif tests and {test.outcome for test in tests} == {"passed"}:
                faults.append(f"--expected-failures: {name} does not fail any more: take it out")
        return faults

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.tests:
            return
        write = terminalreporter.write_line
        terminalreporter.section(f"requirements of openapi.yaml {SPEC['info']['version']}")
        verdicts = {each: self.verdict(each) for each in REQUIREMENTS if self.of(each) or not is_narrowed(self.config)}
        ids = {verdict: [each for each in verdicts if verdicts[each] == verdict] for verdict in VERDICTS}
        for identifier in ids["failed"]:
            write(f"  failed: {identifier}: {REQUIREMENTS[identifier]}", red=True)
        for verdict in VERDICTS[1:-1]:
            if ids[verdict]:
                write(f"  {verdict}: {' '.join(ids[verdict])}", yellow=True)
        for (outcome, reason), count in sorted(self.reasons().items()):
            write(f"  {count} {outcome}: {reason}")
        for fault in self.faults:
            write(f"  fault: {fault}", red=True)
        if sent := sum(test.requests for test in self.tests.values()):
            write(f"{sent:,} generated requests")
        line = ", ".join(f"{len(ids[verdict])} {verdict}" for verdict in reversed(VERDICTS) if ids[verdict])
        colour = "red" if ids["failed"] or self.faults else "green"
        write(f"{len(verdicts)} of {len(REQUIREMENTS)} requirements: {line}", bold=True, **{colour: True})


def is_named(name: str, test: Test) -> bool:
    """Whether an entry of the expected failures names a test, or a requirement of it."""
    return name in (test.name, test.name.partition("[")[0], *test.ids)
