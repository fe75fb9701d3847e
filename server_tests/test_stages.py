"""What the contract tests tell somebody whose server does not pass yet. test_contract_suite.py has the longer tests."""

import shlex
import subprocess
import sys

import pytest

from contract_tests.suite.requirement_ids import REQUIREMENTS, STAGE_NAMES, STAGES, stage
from contract_tests.target.openapi import OPERATIONS, REPOSITORY
from contract_tests.target.process import COMMAND

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
