"""A pytest plugin that keeps the contract tests loaded, and runs them again and again, in a process for each time.

Two pipes, whose numbers are in the environment variable MUTATION_PIPES, connect it with the program that started it. It
reads lines of JSON: the names of the tests to run, in this order. For each line, it forks. The new process says by
lines of JSON who it is, which test begins, and which one failed and how. It stops at the first failure.
"""

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

import pytest


def pytest_runtestloop(session: pytest.Session) -> bool:
    reading, writing = map(int, os.environ["MUTATION_PIPES"].split(","))
    items = {item.nodeid: item for item in session.items}
    with open(reading) as orders, open(writing, "w", buffering=1) as answers:
        say(answers, tests=list(items))
        for line in orders:
            order = json.loads(line)
            if child := os.fork():
                os.waitpid(child, 0)
                say(answers, ended=True)
            else:
                run([items[name] for name in order["tests"]], Path(order["folder"]), answers)
    return True


def run(items: list[pytest.Item], folder: Path, answers: IO[str]) -> None:
    """Run tests until one fails, and end this process. Whoever started it ends the servers that are left."""
    try:
        os.setsid()  # the tests' servers are in this group, too
        say(answers, process=os.getpid())
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)  # so that nothing of one run is left for another
        failures = Failures()
        items[0].config.pluginmanager.register(failures)
        for item, following in zip(items, [*items[1:], None], strict=True):
            say(answers, test=item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if failures.found:
                say(answers, failed=item.nodeid, how=failures.found)
                break
        else:
            say(answers, passed=True)
    except BaseException as error:
        say(answers, broken=repr(error))
    finally:
        sys.stdout.flush()
        os._exit(0)


class Failures:
    def __init__(self) -> None:
        self.found = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.found:
            self.found = f"in its {report.when}: {report.longreprtext}"


def say(answers: IO[str], **what: Any) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()
