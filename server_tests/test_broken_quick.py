"""The quick form of the gallery: the tests catch a broken server of each category, so that nobody refactors past it.

`python -m server_tests.run_broken` runs all of them, with all tests of the requirements that they break.
"""

import subprocess
import sys

import pytest

from contract_tests.target import process
from contract_tests.target.openapi import REPOSITORY, SPEC
from server_tests import run_broken
from server_tests.broken import CATEGORIES, FAULTS
from server_tests.run_broken import QUICK, quick_trial


@pytest.mark.parametrize("fault", QUICK)
def test_a_broken_server_is_caught(request, fault):
    if request.config.getoption("--base-url"):
        pytest.skip("not run: it is about servers that the run starts, but --base-url names another server")
    trial = quick_trial(fault).run()
    assert trial.caught_by.startswith(QUICK[fault]), trial.output


@pytest.mark.parametrize("script", ["raise SystemExit(1)", "import time; time.sleep(60)"])
def test_a_broken_server_that_does_not_serve_is_not_caught(monkeypatch, script):
    """It fails any test, and shows nothing about the tests."""
    monkeypatch.setattr(run_broken, "COMMAND", [sys.executable, "-c", script])
    monkeypatch.setattr(process, "START_SECONDS", 2)
    trial = quick_trial("new-accounts-may-take-everything").run()  # its test starts the server itself
    assert not trial.caught_by and "did not start" in trial.output


def test_each_requirement_of_the_prose_has_a_fault():
    broken = {requirement for fault in FAULTS.values() for requirement in fault.requirements}
    assert set(SPEC["info"]["x-requirements"]) - broken == set()


def test_each_category_has_a_quick_fault():
    assert {FAULTS[fault].category for fault in QUICK} == set(CATEGORIES) - {"postgres"}


PUT_IN = """
import os
import backup_server
from server_tests.broken import FAULTS
store = "postgres" if "DATABASE_URL" in os.environ else "file"
for name, fault in FAULTS.items():
    if fault.store not in (None, store):
        continue
    if not (child := os.fork()):
        try:
            fault.put_in()
        except BaseException as error:
            print(name, repr(error), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_each_fault_fits_the_server():
    """A broken server that does not start fails any test, so it would count as caught."""
    done = subprocess.run([sys.executable, "-c", PUT_IN], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == ""
