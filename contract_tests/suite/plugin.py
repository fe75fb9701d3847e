"""What the contract tests add to pytest: requirements, outcomes, selection, expected failures, a summary, a report.

A test names the requirements that it proves (requirement_ids.py). It is skipped if the target declares that it does not
have an operation. It is not run if the run was not given what the test needs (outcomes.py). A requirement is proven if
every test that names it has passed (run.py). Tests in other folders name no requirements. Any test that fails shows
what the contract says, what its servers were sent, and what they logged. What is wrong with every answer fails no test,
but is reported once for each requirement, at the end of the run (run.py).
"""

import os
import secrets
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from contract_tests.suite import due
from contract_tests.suite.outcomes import ABOUT, NotRun, not_run
from contract_tests.suite.requirement_ids import (
    CATEGORIES,
    PREFIXES,
    REQUIREMENTS,
    STAGE_NAMES,
    UnknownRequirement,
    category,
    expand,
    named_by,
    stage_of,
)
from contract_tests.suite.run import EXPECTED, HERE, Run, is_narrowed, requirements_in, selected_stages
from contract_tests.target import findings
from contract_tests.target.calls import Outcome
from contract_tests.target.openapi import find_operation
from contract_tests.target.used_servers import SERVERS, UsedServers

FAULT = pytest.StashKey[str]()  # why a test fails before it starts
NOT_GIVEN = pytest.StashKey[str]()  # why a test is not run
RUN = pytest.StashKey["Run"]()
FINDINGS = pytest.StashKey[findings.Findings]()  # what was wrong with answers, since the last report of a test
MOST_SENTENCES = 12  # how many sentences of the contract a failing test shows


# ---- Options -----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("contract", "the contract tests")
    group.addoption(
        "--base-url",
        default=os.environ.get("CONTRACT_BASE_URL"),
        metavar="URL",
        help="test this server; needs APP_SECRET_KEY, and uses ADMIN_SECRET_KEY and CONTRACT_ORIGIN if they are set",
    )
    group.addoption(
        "--profile",
        choices=["full", "public"],
        default="full",
        help="full needs a target with raised limits; public fits the limits of the contract",
    )
    group.addoption(
        "--ca-bundle",
        default=os.environ.get("CONTRACT_CA_BUNDLE"),
        metavar="FILE",
        help="trust the certificates in this PEM file; without it, SSL_CERT_FILE or REQUESTS_CA_BUNDLE counts",
    )
    group.addoption(
        "--direct",
        action="store_true",
        help="nothing stands in front of the server, so no answer is excused as one of a proxy",
    )
    group.addoption(
        "--requirement",
        action="append",
        default=[],
        metavar="ID",
        help="run only the tests that name this id, which may contain * and ?",
    )
    group.addoption(
        "--category",
        action="append",
        default=[],
        metavar="NAME",
        help=f"run only this category, or with no-NAME all others: {', '.join(CATEGORIES)}, or the first part of ids",
    )
    group.addoption(
        "--stage",
        metavar="N",
        help="run the stages 1 to N, or M-N: "
        + ", ".join(f"{number} ({name})" for number, name in STAGE_NAMES.items()),
    )
    group.addoption("--expected-failures", metavar="FILE", help="ids or tests, each followed by ' # ' and the reason")
    group.addoption("--report", metavar="FILE", help="write a page about the run")
    group.addoption("--fuzz-examples", default="50", help="how many cases to generate for each operation and phase")
    group.addoption("--fuzz-runs", default=1, type=int, help="how many runs generate requests, each with the next seed")
    group.addoption("--fuzz-requests", default=0, type=int, help="fail if the runs send fewer requests than this")
    group.addoption("--fuzz-seed", default=secrets.randbelow(2**32), type=int, help="repeat the run that printed this")
    group.addoption("--model-examples", default=6, type=int, help="how many lives each test of random lives generates")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requirement(*ids): the requirements of openapi.yaml that the test proves")
    config.addinivalue_line(
        "markers", "stage(number): the test belongs to this stage, not to an earlier one of its ids"
    )
    config.addinivalue_line("markers", "public: the test fits the limits of a public deployment")
    selected_stages(config)
    config.stash[SERVERS] = UsedServers()
    config.stash[FINDINGS] = findings.begin()
    config.stash[EXPECTED] = expected_failures(config.getoption("--expected-failures"))
    for pattern in config.getoption("--requirement"):
        try:
            expand(pattern, {})
        except UnknownRequirement:
            raise pytest.UsageError(f"--requirement {pattern}: openapi.yaml has no such id") from None
    for name in config.getoption("--category"):
        if name.removeprefix("no-") not in CATEGORIES.keys() | PREFIXES:
            raise pytest.UsageError(f"--category {name}: there is no such category")
    if not is_worker(config):
        config.stash[RUN] = config.pluginmanager.getplugin("requirements of a run") or Run(config)
        config.pluginmanager.register(config.stash[RUN], "requirements of a run")


def is_worker(config: pytest.Config) -> bool:
    """Return whether this is one of the processes of pytest-xdist."""
    return hasattr(config, "workerinput")


def expected_failures(file: str | None) -> dict[str, str]:
    """Return the reasons in `file` by id or test. Raise UsageError for a line without a reason, or without an id."""
    found: dict[str, str] = {}
    for line in Path(file).read_text().splitlines() if file else []:
        if line.strip() and not line.startswith("#"):
            name, _, reason = (part.strip() for part in line.partition(" # "))
            if not reason or (name not in REQUIREMENTS and "::" not in name):
                raise pytest.UsageError(f"--expected-failures: {line}: not an id or a test, then ' # ' and the reason")
            found[name] = reason
    return found


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
        item.user_properties.append(("stage", stage_of(item, named[item])))
        if config.getoption("--profile") == "public" and not item.get_closest_marker("public"):
            item.stash[NOT_GIVEN] = "does not fit the limits of a public deployment"
    if not is_narrowed(config):
        untested = REQUIREMENTS.keys() - {identifier for ids in named.values() for identifier in ids}
        faults += [f"{identifier} has no test" for identifier in sorted(untested)]
    if faults and not is_worker(config):  # in a worker, the tests themselves fail, and the summary lists the rest
        raise pytest.UsageError("\n".join(faults))
    select(config, items, named)


def select(config: pytest.Config, items: list[pytest.Item], named: dict[pytest.Item, list[str]]) -> None:
    """Keep only the tests that --requirement, --category and --stage select."""
    wanted = {identifier for pattern in config.getoption("--requirement") for identifier in expand(pattern, {})}
    categories = config.getoption("--category")
    on = {name for name in categories if not name.startswith("no-")}
    off = {name.removeprefix("no-") for name in categories if name.startswith("no-")}
    stages = selected_stages(config)
    if not wanted and not categories and not stages:
        return

    def is_selected(item: pytest.Item) -> bool:
        ids = named[item]
        if stages and (not is_of_the_contract(item) or stage_of(item, ids) not in stages):
            return False
        own = {part for identifier in ids for part in (category(identifier), identifier.partition(".")[0])}
        return bool(ids) and (not wanted or bool(wanted & set(ids))) and (not on or bool(on & own)) and not off & own

    config.hook.pytest_deselected(items=[item for item in items if not is_selected(item)])
    items[:] = [item for item in items if is_selected(item)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[SERVERS].begin_test()
    item.config.stash[FINDINGS].of_test.clear()
    if fault := item.stash.get(FAULT, None):
        pytest.fail(fault, pytrace=False)
    if reason := item.stash.get(NOT_GIVEN, None):
        not_run(reason)


# ---- Outcomes ----------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    servers = item.config.stash[SERVERS]
    report.answers = answers(item, servers)
    about = item.stash.get(ABOUT, None) or requirements_in(item.user_properties)
    if report.failed and call.when == "setup" and (needed := needed_by_set_up(servers)):
        about = [needed]
    if report.failed:
        show_the_servers_side(report, servers)
        show_the_contract(report, about)
    if not is_of_the_contract(item):
        return report
    if call.excinfo and isinstance(call.excinfo.value, NotRun):
        report.not_run = True
    if report.failed:
        reasons = item.config.stash[EXPECTED]
        report.about = about
        named = [name for name in (item.nodeid, item.nodeid.partition("[")[0]) if name in reasons]
        if named or (about and reasons.keys() >= set(about)):  # otherwise, it may have failed at something else
            report.outcome, report.wasxfail = "skipped", reasons[(named or about)[0]]
    return report


def needed_by_set_up(servers: UsedServers) -> str | None:
    """Return the requirement at which a set-up failed: that of the success of the operation that it called last."""
    last = servers.last()
    operation = find_operation(last.method, last.path) if last else None
    if operation is None:
        return None
    created = [status for status in ("201", "200", "204") if status in operation.responses]
    return f"{operation.id}.{created[0]}"


def answers(item: pytest.Item, servers: UsedServers) -> dict[str, dict[str, Any]]:
    """Return what was found at the answers since the last report, by requirement, as data that a worker can send."""
    return {
        requirement: {
            "answers": finding.answers,
            "broken": finding.broken,
            "what": servers.redacted(finding.what),
            "exchange": servers.shown(finding.exchange) if finding.exchange else None,
            "test": item.nodeid,
        }
        for requirement, finding in item.config.stash[FINDINGS].take().items()
    }


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    """If an answer's outcome was not the one that was due, say which rule of the contract's order gave it."""
    if not (compared := due.came_and_due(op, left, right)):
        return None
    came, wanted = compared
    last = config.stash[SERVERS].last()
    status = str(last.answer[0]) if last and last.answer else None
    if status != came[:3] and not isinstance(left, Outcome):
        return None  # these are other numbers than statuses
    if last and last.answer and status == came[:3]:
        came = due.outcome_of(last.answer[0], last.answer[2])
    return [f"{left!r} {op} {right!r}", *due.explain(came, wanted, last.path if last else "")]


@pytest.fixture
def about(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return `about`. A long test calls `about(*ids)` to say what it proves next: if it fails, only these ids fail."""

    def say(*ids: str) -> None:
        assert set(ids) <= set(named_by(request.node)), "a test proves only ids that its mark names"
        request.node.stash[ABOUT] = list(ids)

    return say


def show_the_servers_side(report: Any, servers: UsedServers) -> None:
    """Add the last exchanges and the servers' log to the report of a failure. Remove secrets from the report."""
    redact(report, servers.redacted)
    report.exchanges, report.log = servers.exchanges(), servers.log()
    texts = [f"{each['request']}\n\n{each['answer']}" for each in reversed(report.exchanges)]
    if texts:
        report.sections.append(("the last exchanges", "\n\n".join(texts)))
    if report.log:
        report.sections.append(("the servers' log since the test began", report.log))


def show_the_contract(report: Any, ids: list[str]) -> None:
    """Add the sentences of the contract that a failing test was proving to its report, above everything else."""
    if ids:
        lines = [f"{identifier}: {REQUIREMENTS[identifier]}" for identifier in ids[:MOST_SENTENCES]]
        lines += [f"and {len(ids) - MOST_SENTENCES} more"] if len(ids) > MOST_SENTENCES else []
        report.sections.insert(0, ("what the contract says", "\n".join(lines)))


def redact(report: Any, redacted: Callable[[str], str]) -> None:
    """Remove secrets from the report of a failure, which quotes values and captured output."""
    report.sections = [(name, redacted(text)) for name, text in report.sections]
    longrepr = report.longrepr
    if isinstance(longrepr, str):
        report.longrepr = redacted(longrepr)
    for traceback, crash, _ in getattr(longrepr, "chain", []):
        if crash:
            crash.message = redacted(crash.message)
        for entry in traceback.reprentries:
            entry.lines = [redacted(line) for line in getattr(entry, "lines", [])]
            if arguments := getattr(entry, "reprfuncargs", None):
                arguments.args = [(name, redacted(value)) for name, value in arguments.args]
            if variables := getattr(entry, "reprlocals", None):
                variables.lines = [redacted(line) for line in variables.lines]
    if crash := getattr(longrepr, "reprcrash", None):
        crash.message = redacted(crash.message)


def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    if report.skipped and getattr(report, "not_run", False):
        return "not run", "n", ("NOT RUN", {"yellow": True})
    if report.passed and getattr(report, "is_of_every_answer", False):
        return "", "", ("", {})  # it is no test of its own, so it is not counted
    return None
