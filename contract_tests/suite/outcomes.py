"""What may come of a test, and what its tests say of a requirement. Each name of an outcome stands here."""

from typing import NoReturn

import pytest

# Of a test. It has several phases: the first of these that one of them came to is the test's.
OUTCOMES = ["failed", "expected failure", "not run", "skipped", "passed"]
# Of a requirement, the worst first, and what each means.
VERDICTS = {
    "failed": "a test that names it has failed",
    "failed as expected": "failed, and the file of expected failures says why",
    "not run": "something is missing that the run was not given",
    "skipped": "the target declares that it does not do this",
    "partly proven": "tests that name it have passed, others were not run",
    "proven": "every test that names it has passed",
}


class NotRun(pytest.skip.Exception):  # type: ignore[name-defined]
    """Something is missing that the run was not given."""


def not_run(reason: str) -> NoReturn:
    """End a test, or a fixture, as not run."""
    raise NotRun(f"not run: {reason}")
