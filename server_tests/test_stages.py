"""What the contract tests tell somebody whose server does not pass yet. test_contract_suite.py has the longer tests."""

import re
import shlex
import subprocess
import sys

import pytest

from contract_tests.suite.requirement_ids import REQUIREMENTS, STAGE_NAMES, STAGES, stage
from contract_tests.target.openapi import OPERATIONS, REPOSITORY
from contract_tests.target.process import COMMAND, ServerProcess

TEST = "contract_tests/test_operations.py::test_health"


def test_each_requirement_has_one_stage_and_no_stage_names_another():
    assert {stage(identifier) for identifier in REQUIREMENTS} == STAGE_NAMES.keys() == STAGES.keys()
    names = [name for listed in STAGES.values() for name in listed.split()]
    assert len(set(names)) == len(names)
    prefixes = {identifier.partition(".")[0] for identifier in REQUIREMENTS}
    assert set(names) <= REQUIREMENTS.keys() | prefixes
    assert prefixes - OPERATIONS.keys() <= {name.partition(".")[0] for name in names}


def test_a_fault_of_every_answer_is_told_first_and_fails_no_test(request):
    if request.config.getoption("--base-url"):
        pytest.skip("not run: it is about servers that the run starts, but --base-url names another server")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST]
    environ = {"PATH": "/bin", "CONTRACT_SERVER_COMMAND": shlex.join([*COMMAND, "--broken", "answers-may-be-cached"])}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "1 failed, 1 passed" in done.stdout
    first = done.stdout.partition("requirements of openapi.yaml")[2].splitlines()[1]
    assert first.startswith("  failed: header.Cache-Control: Every answer carries Cache-Control with no-store. (")
    assert "stage 1 (health, documents, 404, 405, problems): 1 failed, 1 passed" in done.stdout


def staged(server: ServerProcess, *arguments: str, secret: str) -> str:
    """Run stages of the contract tests against a server. Return what was printed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--base-url",
        server.base_url,
        "--direct",
    ]
    environ = {"PATH": "/bin", "APP_SECRET_KEY": secret}
    done = subprocess.run([*command, *arguments], cwd=REPOSITORY, env=environ, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    return done.stdout


def test_limits_that_are_too_low_are_told_first(start_server):
    server = start_server(REGISTRATIONS_PER_HOUR=1)
    said = staged(server, "contract_tests/test_values.py", "--stage", "3", secret=server.secret)
    assert re.search(r"^first: \d+ tests failed because the target's limits are too low", said, re.MULTILINE)


def test_another_secret_is_told_first(start_server):
    server = start_server()
    said = staged(
        server, "contract_tests/test_signature.py", "-k", "accepts or accepted", "--stage", "2", secret="0" * 40
    )
    assert re.search(r"^first: \d+ tests failed because signatures were refused: does the", said, re.MULTILINE)
