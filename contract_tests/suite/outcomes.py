"""What may come of a test beside passed and failed: it was skipped, or it was not run."""

from typing import NoReturn

import pytest


class NotRun(pytest.skip.Exception):
    """Something is missing that the run was not given."""


def not_run(reason: str) -> NoReturn:
    """End a test, or a fixture, as not run."""
    raise NotRun(f"not run: {reason}")
