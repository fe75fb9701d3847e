"""The outcomes of a test, and the verdicts on a requirement. This is the only place that lists their names."""

from typing import NoReturn

import pytest

# The outcomes of a test. A test has several phases, each with an outcome. The first in this list is the test's outcome.
OUTCOMES = ["failed", "expected failure", "not run", "skipped", "passed"]
# The verdicts on a requirement, the worst first, and what each means.
VERDICTS = {
    "failed": "a test that names it has failed",
    "failed as expected": "it failed, and the file of expected failures gives the reason",
    "not run": "the run was not given what its tests need",
    "skipped": "the target declares that it does not have the operation",
    "partly proven": "tests that name it have passed, and others were not run",
    "proven": "every test that names it has passed",
}

ABOUT = pytest.StashKey[list[str]]()  # the ids that a test is proving now, or at which it has failed


class NotRun(pytest.skip.Exception):  # type: ignore[name-defined]
    """The run was not given what a test needs."""


def not_run(reason: str) -> NoReturn:
    """End the test, from the test itself or from a fixture, with the outcome "not run"."""
    raise NotRun(f"not run: {reason}")
