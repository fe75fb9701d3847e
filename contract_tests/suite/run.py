"""The results of a whole run: the outcome of each test, the verdict on each requirement, the summary."""

import hashlib
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from contract_tests.suite import report
from contract_tests.suite.outcomes import OUTCOMES, VERDICTS, NotRun
from contract_tests.suite.requirement_ids import REQUIREMENTS, STAGE_NAMES, category, stage
from contract_tests.target.openapi import SPEC, SPEC_BYTES

HERE = Path(__file__).resolve().parents[1]  # contract_tests/
EXPECTED = pytest.StashKey[dict[str, str]]()  # the expected failures: their reasons, by id or test


def is_narrowed(config: pytest.Config) -> bool:
    """Return whether the run leaves some of these tests out on purpose."""
    options = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "requirement", "category", "stage")
    directories = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args]
    whole = any(directory == HERE or directory in HERE.parents for directory in directories)
    return not whole or any(config.getoption(option, None) for option in options)


def selected_stages(config: pytest.Config) -> range | None:
    """Return the stages that --stage selects, or None. Raise UsageError if there is no such stage."""
    text = config.getoption("--stage")
    if not text:
        return None
    form = re.fullmatch(r"(?:(\d)-)?(\d)", text)
    first, last = form.groups("1") if form else ("", "")
    if not {first, last} <= set(map(str, STAGE_NAMES)) or first > last:
        raise pytest.UsageError(f"--stage {text}: say 1 to {len(STAGE_NAMES)}, or two of them, as in 2-3")
    return range(int(first), int(last) + 1)


@dataclass
class Test:
    """The result of a test, and the ids that it proves."""

    name: str
    ids: list[str] = field(default_factory=list)
    outcome: str = "passed"
    about: list[str] = field(default_factory=list)  # the ids at which it failed
    seconds: float = 0
    reason: str = ""
    requests: int = 0  # how many were generated
    stage: int = 0  # 0 if it names no requirement
    answers: int = 0  # how many answers it is about, if it is no test, but what was found at every answer
    broken: int = 0  # how many of them were wrong
    exchanges: list[dict[str, str]] = field(default_factory=list)  # the last ones, if it failed
    log: str = ""  # of its servers, if it failed

    __test__ = False  # so that pytest does not collect this class

    @property
    def rank(self) -> int:
        """The position of its outcome in OUTCOMES."""
        return OUTCOMES.index(self.outcome)

    def add(self, report: Any) -> None:
        self.seconds += report.duration
        self.ids = self.ids or requirements_in(report.user_properties)
        self.requests = dict(report.user_properties).get("generated requests", 0)
        self.stage = dict(report.user_properties).get("stage", 0)
        self.answers = getattr(report, "of_answers", 0)
        self.broken = getattr(report, "broken", 0)
        outcome = "passed"
        if report.failed:
            outcome = "failed"
        elif hasattr(report, "wasxfail"):
            outcome = "expected failure"
        elif report.skipped:
            outcome = "not run" if getattr(report, "not_run", False) else "skipped"
        if OUTCOMES.index(outcome) < self.rank:
            self.outcome, self.reason = outcome, reason_of(report)
            self.exchanges, self.log = getattr(report, "exchanges", []), getattr(report, "log", "")
            self.about = getattr(report, "about", [])

    def outcome_for(self, identifier: str) -> str:
        """Return the outcome for one of its ids: "not run" if the test failed at another id, and so ended early."""
        return self.outcome if not self.about or identifier in self.about else "not run"


def reason_of(report: Any) -> str:
    """Return why a test failed, was skipped or was not run."""
    if hasattr(report, "wasxfail"):
        return report.wasxfail
    if isinstance(report.longrepr, tuple):  # file, line, and the exception with its message
        return report.longrepr[2].removeprefix("Skipped: ").removeprefix(f"{NotRun.__module__}.NotRun: not run: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash else str(report.longrepr or "")


class EveryAnswer:
    """What was found at the answers of a whole run about one requirement. It is reported like a test of its own."""

    def __init__(self, requirement: str) -> None:
        self.requirement, self.answers, self.broken = requirement, 0, 0
        self.first: dict[str, Any] = {}

    def add(self, found: dict[str, Any]) -> None:
        self.answers += found["answers"]
        self.broken += found["broken"]
        if found["broken"] and not self.first:
            self.first = found

    def report(self, expected: dict[str, str]) -> pytest.TestReport:
        """Return the report. `expected` has the reasons of the expected failures."""
        nodeid = f"{HERE.name}::every_answer[{self.requirement}]"
        properties = [("requirement", self.requirement), ("stage", stage(self.requirement)), ("answers", self.answers)]
        message = f"{self.broken:,} of {self.answers:,} answers: {self.first['what']}" if self.broken else ""
        exchanges = [self.first["exchange"]] if message and self.first["exchange"] else []
        result = pytest.TestReport(
            nodeid=nodeid,
            location=(HERE.name, None, nodeid.partition("::")[2]),
            keywords={},
            outcome="failed" if self.broken else "passed",
            longrepr=f"{message}\n{REQUIREMENTS[self.requirement]}\nFirst in {self.first['test']}" if message else None,
            when="call",
            sections=[("the first of these exchanges", f"{each['request']}\n\n{each['answer']}") for each in exchanges],
            user_properties=properties,
        )
        vars(result).update(is_of_every_answer=True, exchanges=exchanges, of_answers=self.answers, broken=self.broken)
        reason = expected.get(self.requirement) or expected.get(nodeid)
        if self.broken and reason:
            result.outcome, result.wasxfail = "skipped", reason
        return result


def requirements_in(properties: list[tuple[str, Any]]) -> list[str]:
    return [value for name, value in properties if name == "requirement"]


class Run:
    """The results of a whole run. The process that starts the workers keeps them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.started = time.time()
        self.tests: dict[str, Test] = {}
        self.faults: list[str] = []
        self.every_answer: dict[str, EveryAnswer] = {}
        self.session: pytest.Session | None = None
        self.stages = selected_stages(config) or range(1, len(STAGE_NAMES) + 1)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_runtest_logreport(self, report: Any) -> None:
        for requirement, found in getattr(report, "answers", {}).items():
            if stage(requirement) <= self.stages[-1]:
                self.every_answer.setdefault(requirement, EveryAnswer(requirement)).add(found)
        self.stop_if_enough_failed()
        if report.passed and getattr(report, "is_of_every_answer", False):
            return  # this proves nothing: only a test that asks for it does
        if Path(self.config.rootpath, report.nodeid.partition("::")[0]).is_relative_to(HERE):
            self.tests.setdefault(report.nodeid, Test(report.nodeid)).add(report)

    def stop_if_enough_failed(self) -> None:
        """End the run early if --maxfail or -x says so, counting what was found at the answers."""
        known = self.config.stash[EXPECTED]
        broken = [each for each in self.every_answer.values() if each.broken and each.requirement not in known]
        most = self.config.getoption("maxfail")
        if most and broken and self.session and len(broken) + self.session.testsfailed >= most:
            why = f"stopping after {broken[0].first['test']}, because of {broken[0].requirement}"
            self.session.shouldfail = self.session.shouldfail or why
            if workers := self.config.pluginmanager.getplugin("dsession"):  # of pytest-xdist
                workers.shouldstop = workers.shouldstop or why

    def of(self, identifier: str) -> list[Test]:
        """Return the tests that name an id, or whose set-up failed at it."""
        return [test for test in self.tests.values() if identifier in (*test.ids, *test.about)]

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
        """Count the tests that were not run, were skipped or failed as expected, by (outcome, reason)."""
        outcomes = ("not run", "skipped", "expected failure")
        return Counter((test.outcome, test.reason) for test in self.tests.values() if test.outcome in outcomes)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        is_stopped = session.shouldfail or session.shouldstop
        self.report_every_answer(session)
        if not is_stopped and exitstatus != pytest.ExitCode.INTERRUPTED:
            self.faults = self.find_faults()
        if self.faults and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if (file := self.config.getoption("--report")) and self.tests:
            Path(file).write_text(self.page(), encoding="utf-8")

    def report_every_answer(self, session: pytest.Session) -> None:
        """Report each requirement that the answers were held against, as if it were a test."""
        found, self.every_answer = self.every_answer, {}
        for identifier in sorted(found, key=list(REQUIREMENTS).index):
            result = found[identifier].report(self.config.stash[EXPECTED])
            self.config.hook.pytest_runtest_logreport(report=result)
            if result.failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def page(self) -> str:
        """Return the report as one HTML page."""
        requirements = [
            report.Requirement(each, sentence, category(each), self.verdict(each), self.of(each))
            for each, sentence in REQUIREMENTS.items()
        ]
        facts = {
            "target": self.config.getoption("--base-url") or "a server that the tests started themselves",
            "profile": self.config.getoption("--profile"),
            "contract": f"openapi.yaml {SPEC['info']['version']}",
            "its SHA-256": hashlib.sha256(SPEC_BYTES).hexdigest(),
            "started": datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "took": f"{time.time() - self.started:.0f} s",
            "selected by": " ".join(
                f"--{name} {value}" for name, values in self.selections().items() for value in values
            ),
            "seed": str(self.config.getoption("--fuzz-seed")),
        }
        return report.page(facts, requirements, list(self.tests.values()), self.faults, self.reasons())

    def selections(self) -> dict[str, list[str]]:
        """Return the values of the options that select tests."""
        stage = self.config.getoption("--stage")
        own = {name: self.config.getoption(f"--{name}") for name in ("requirement", "category")}
        return own | {"stage": [stage] if stage else []}

    def find_faults(self) -> list[str]:
        """Return what makes the run fail, apart from failed tests."""
        if not self.tests:
            return []
        faults = [f"{test.name} names no requirement" for test in self.tests.values() if not test.ids]
        if not is_narrowed(self.config):
            faults += [f"{identifier} has no test" for identifier in REQUIREMENTS if not self.of(identifier)]
            own = not self.config.getoption("--base-url") and self.config.getoption("--profile") == "full"
            if own and not any(test.outcome == "failed" for test in self.tests.values()):
                verdicts = {identifier: self.verdict(identifier) for identifier in REQUIREMENTS}
                faults += [
                    f"{identifier} is {verdict}, but a run that starts its own server must prove it"
                    for identifier, verdict in verdicts.items()
                    if verdict not in ("proven", "failed", "failed as expected") and self.of(identifier)
                ]
        for name in self.config.stash[EXPECTED]:
            tests = [test for test in self.tests.values() if is_named(name, test)]
            if not tests and not is_narrowed(self.config):
                faults.append(f"--expected-failures: there is no test {name}")
            elif tests and {test.outcome for test in tests} == {"passed"}:
                faults.append(f"--expected-failures: {name} passes now: remove it from the list")
        return faults

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.tests:
            return
        write = terminalreporter.write_line
        terminalreporter.section(f"requirements of openapi.yaml {SPEC['info']['version']}")
        verdicts = {each: self.verdict(each) for each in REQUIREMENTS if self.of(each) or not is_narrowed(self.config)}
        ids = {verdict: [each for each in verdicts if verdicts[each] == verdict] for verdict in VERDICTS}
        for identifier in sorted(ids["failed"], key=self.urgency):
            write(f"  failed: {identifier}: {REQUIREMENTS[identifier]} ({self.share(identifier)})", red=True)
        for verdict in list(VERDICTS)[1:-1]:
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
        if self.stages[-1] < len(STAGE_NAMES):
            line += " (so far: later stages have more tests of some)"
        write(f"{len(verdicts)} of {len(REQUIREMENTS)} requirements: {line}", bold=True, **{colour: True})
        for line in self.what_next(sorted(ids["failed"], key=self.urgency)):
            write(line, bold=True)

    def failed_tests(self, identifier: str) -> list[Test]:
        return [test for test in self.of(identifier) if test.outcome_for(identifier) == "failed"]

    def urgency(self, identifier: str) -> tuple[Any, ...]:
        """Return the key by which failed requirements are sorted.

        First come those that answers break, whatever a test asks for, and of these those that each answer breaks. Then
        come those of the first stage, and of these those that few tests have passed: the others may have failed at
        something else.
        """
        failed = self.failed_tests(identifier)
        at_answers = [test for test in failed if test.answers]
        is_everywhere = any(test.broken == test.answers for test in at_answers)
        passed = sum(test.outcome == "passed" for test in self.of(identifier))
        return not at_answers, not is_everywhere, min(test.stage for test in failed), passed

    def share(self, identifier: str) -> str:
        """Return how many of the answers, or of the tests, failed a requirement."""
        failed = self.failed_tests(identifier)
        answers = [f"{test.broken:,} of {test.answers:,} answers" for test in failed if test.answers]
        tests = [test for test in self.of(identifier) if not test.answers]
        count = sum(not test.answers for test in failed)
        return " and ".join([*answers, *([f"{count} of {len(tests)} tests"] if count else [])])

    def what_next(self, failed: list[str]) -> list[str]:
        """Return lines that tell somebody who builds a server what comes next. `failed` has the most urgent first."""
        if not failed and not self.config.getoption("--stage"):
            return []
        lines = []
        for number in self.stages:
            of_stage = [test for test in self.tests.values() if test.stage == number]
            tests = [test for test in of_stage if not test.answers or test.outcome == "failed"]
            counts = Counter(test.outcome for test in tests)
            shown = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
            if shown:
                lines.append(f"stage {number} ({STAGE_NAMES[number]}): {shown}")
        reasons = [test.reason for test in self.tests.values() if test.outcome == "failed"]
        for sign, hint in HINTS.items():
            count = sum(sign in reason for reason in reasons)
            if count >= FOR_A_HINT and count > len(reasons) / 3:
                lines.append(f"first: {count} tests failed because {hint}")
        if failed:
            first = failed[0]
            number = min(test.stage for test in self.failed_tests(first))
            command = f"--stage {number} --requirement {first} -x"
            test = next(test.name for test in self.failed_tests(first))
            return [*lines, f"next: {first}: {REQUIREMENTS[first]}", f"it failed in {test}", f"run it alone: {command}"]
        following = self.stages[-1] + 1
        lacking = {test.reason for test in self.tests.values() if LACKS in test.reason and test.outcome == "skipped"}
        if lacking:
            lines.append(f"next: what is left out: {', '.join(sorted(each.rpartition(' ')[2] for each in lacking))}")
        if following in STAGE_NAMES and not self.faults:
            lines.append(f"next: stage {following} ({STAGE_NAMES[following]}): --stage {following}")
        return lines


# What many tests fail for although the server may be right, by what the failures say.
HINTS = {
    "limits are too low": "the target's limits are too low: give it those of --profile full (contract_tests/README.md)",
    "signature_invalid": "signatures were refused: does the target have the secret of APP_SECRET_KEY?",
}
FOR_A_HINT = 5  # so many failures, or more
LACKS = "declares that it does not have"


def is_named(name: str, test: Test) -> bool:
    """Return whether an entry of the expected failures names this test, or one of its ids."""
    return name in (test.name, test.name.partition("[")[0], *test.ids)
