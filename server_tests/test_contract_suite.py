"""The contract tests as a program: what they do if a test is wrong, and if a target is wrong.

Each run is a pytest process, on a copy of the harness with a few small tests, or on the contract tests themselves.
"""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
import requests

from contract_tests.suite import due
from contract_tests.suite.requirement_ids import CATEGORIES, REQUIREMENTS, category
from contract_tests.target import answer_checks, findings, raw
from contract_tests.target.observer import Observer
from contract_tests.target.openapi import OPERATIONS, REPOSITORY, SERVER, SPEC, is_timestamp, resolved
from contract_tests.target.process import COMMAND
from contract_tests.target.target import RAISED_LIMITS
from contract_tests.target.used_servers import readable
from server_tests.this_server import copy_server

CONTRACT_TESTS = REPOSITORY / "contract_tests"
COUNT = len(REQUIREMENTS)
SUMMARY = re.compile(r"^\d+ of \d+ requirements: .*$", re.MULTILINE)

HEAD = """
import pytest

"""
PASSES = """
@pytest.mark.requirement("getHealth.200")
def test_that_passes(target):
    assert target.client().get_health().status_code == 200

"""
FAILS = """
@pytest.mark.requirement("getHealth.200", "storeBackup.201")
def test_that_fails(target, new_user):
    user, secret = new_user(), target.secret
    user.store_backup(b"a blob that nobody shall see" * 10)
    user.change_storage_key("ab" * 32, b"another blob that nobody shall see" * 10)
    assert user._auth._authorization == secret

"""
UNMARKED = """
def test_without_a_requirement():
    pass

"""
UNKNOWN = """
@pytest.mark.requirement("getHealth.299")
def test_of_nothing():
    pass

"""
WITHOUT_PARAMETER = """
@pytest.mark.requirement("{operation}.200")
def test_of_a_parameter_that_is_not_there():
    pass

"""
NEEDS = """
@pytest.mark.requirement("admin.proof")
def test_that_needs_a_key(admin_key):
    pass

@pytest.mark.requirement("cors.preflight")
def test_that_needs_an_origin(allowed_origin):
    pass

@pytest.mark.requirement("signature.rotation")
def test_that_needs_a_keyid(second_keyid):
    pass

@pytest.mark.requirement("durability.whole")
def test_that_needs_a_process(start_server):
    pass

"""

Suite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """`suite(tests, *arguments, **environ)` runs these tests, the text of a module, in a copy of the harness."""
    directory = tmp_path / "contract_tests"
    shutil.copytree(CONTRACT_TESTS, directory, ignore=shutil.ignore_patterns("test_*.py", "__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    (tmp_path / "clients").symlink_to(REPOSITORY / "clients")
    own = {"BACKUP_SERVER": str(SERVER), "CONTRACT_SERVER_COMMAND": shlex.join(COMMAND)}

    def run(tests: str, *arguments: Any, narrowed: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        (directory / "test_some.py").write_text(HEAD + tests)
        what = directory / "test_some.py" if narrowed else directory
        return pytest_run(tmp_path, what, *arguments, **own | environ)

    return run


def pytest_run(directory: Path, *arguments: Any, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    done = subprocess.run(command, cwd=directory, env={"PATH": "/bin"} | environ, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return done


def text(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


# ---- Requirements and tests --------------------------------------------------------------------------------


def test_what_is_in_order_passes(suite):
    done = suite(PASSES)
    assert done.returncode == 0
    assert SUMMARY.search(done.stdout)[0] == f"1 of {COUNT} requirements: 1 proven"


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        (UNMARKED, "test_without_a_requirement names no requirement"),
        (UNKNOWN, "does not have: getHealth.299"),
        (WITHOUT_PARAMETER, "there is no parameter 'operation'"),
    ],
    ids=["no mark", "an unknown id", "an unknown parameter"],
)
def test_a_test_with_a_wrong_mark_fails_the_run(suite, tests, says):
    done = suite(PASSES + tests)
    assert (done.returncode, says in text(done)) == (pytest.ExitCode.USAGE_ERROR, True)
    assert "passed" not in done.stdout
    # If workers collect the tests, the test itself fails.
    done = suite(PASSES + tests, "-n", "1")
    assert (done.returncode, says in text(done)) == (pytest.ExitCode.TESTS_FAILED, True)


def test_a_requirement_without_a_test_fails_a_whole_run(suite):
    done = suite(PASSES, narrowed=False)
    assert (done.returncode, "storeBackup.201 has no test" in text(done)) == (pytest.ExitCode.USAGE_ERROR, True)
    done = suite(PASSES, "-n", "1", narrowed=False)
    assert (done.returncode, "storeBackup.201 has no test" in text(done)) == (pytest.ExitCode.TESTS_FAILED, True)


def test_a_requirement_that_is_not_proven_fails_a_whole_run_against_a_server_of_its_own(suite):
    all_of_them = '@pytest.mark.requirement("*")\ndef test_all(target):\n    pass\n\n'
    assert suite(all_of_them, narrowed=False).returncode == 0
    done = suite(
        all_of_them + 'from contract_tests.suite.outcomes import not_run\n@pytest.mark.requirement("key.old")\n'
        'def test_one():\n    not_run("for once")\n',
        narrowed=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "key.old is partly proven" in done.stdout
    assert SUMMARY.search(done.stdout)[0] == f"{COUNT} of {COUNT} requirements: {COUNT - 1} proven, 1 partly proven"


def test_each_requirement_has_a_category():
    assert {category(identifier) for identifier in REQUIREMENTS} == CATEGORIES.keys()


def test_selection(suite):
    tests = PASSES + '@pytest.mark.requirement("history.last")\ndef test_other():\n    pass\n'
    for arguments, passed in [
        (["--requirement", "history.last"], "test_other"),
        (["--requirement", "getHealth.*"], "test_that_passes"),
        (["--category", "history"], "test_other"),
        (["--category", "getHealth"], "test_that_passes"),
        (["--category", "no-service"], "test_other"),
    ]:
        done = suite(tests, *arguments, "-v")
        assert (done.returncode, re.findall(r"::(\w+) PASSED", done.stdout)) == (0, [passed]), arguments
    for arguments in (["--requirement", "nothing"], ["--category", "nothing"]):
        assert suite(tests, *arguments).returncode == pytest.ExitCode.USAGE_ERROR


# ---- Expected failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "entry", "code", "says"),
    [
        (FAILS, "getHealth.200 # also\nstoreBackup.201 # also", 0, "1 expected failure: also"),
        (FAILS, "storeBackup.201 # one of the two that may have failed", 1, "1 failed"),
        (FAILS, "contract_tests/test_some.py::test_that_fails # known", 0, "1 xfailed"),
        (FAILS, "registerUser.201 # another", 1, "1 failed"),
        (PASSES, "getHealth.200 # mended since", 1, "getHealth.200 passes now: remove it from the list"),
        (PASSES, "contract_tests/test_some.py::test_that_passes # mended", 1, "passes now: remove it from the list"),
        (PASSES, "getHealth.200", 4, "not an id or a test, then ' # ' and the reason"),
        (PASSES, "getWealth.200 # a typing error", 4, "not an id or a test"),
    ],
    ids=["ids", "one id", "test", "another id", "stale id", "stale test", "no reason", "no id"],
)
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "by a worker"])
def test_expected_failures(suite, tmp_path, tests, entry, code, says, workers):
    (tmp_path / "known").write_text(f"# what this target does not do yet\n\n{entry}\n")
    done = suite(tests, "--expected-failures", tmp_path / "known", *workers)
    assert (done.returncode, says in text(done)) == (code, True)


def test_an_expected_failure_of_a_test_that_is_not_there_fails_a_whole_run(suite, tmp_path):
    (tmp_path / "known").write_text("contract_tests/test_some.py::test_that_was_renamed # known\n")
    tests = '@pytest.mark.requirement("*")\ndef test_all():\n    pass\n'
    done = suite(tests, "--expected-failures", tmp_path / "known", narrowed=False)
    assert (done.returncode, "there is no test contract_tests/test_some.py::test_that_was_renamed" in text(done)) == (
        1,
        True,
    )


# ---- Answers -----------------------------------------------------------------------------------------------


def test_each_header_that_is_always_sent_is_demanded_of_each_answer_that_declares_it():
    """No header is `required`, so that a client can live without it. The suite demands them nevertheless."""
    of_each_answer, of_some = {"X-Request-Id", "Cache-Control"}, {"ETag", "Location", "Retry-After", "WWW-Authenticate"}
    demanded = set()
    for operation in OPERATIONS.values():
        for response in operation.responses.values():
            declared = response["headers"]
            sent = {name: str(header["schema"]["examples"][0]) for name, header in declared.items()}
            assert not any(answer_checks.judge_headers(declared, sent).values())
            for name, header in declared.items():
                assert not header.get("required")
                if header.get("x-always-sent"):
                    demanded.add(name)
                    wrong = answer_checks.judge_headers(
                        declared, {other: sent[other] for other in sent if other != name}
                    )
                    assert wrong[f"header.{name}"] == [f"the header {name} is missing"]
            extra = sorted(answer_checks.NAMES - declared.keys())[0]
            wrong = answer_checks.judge_headers(declared, sent | {extra: "1"})
            assert wrong[f"header.{extra}"] == [f"the header {extra} is not declared for this answer"]
    assert demanded == of_each_answer | of_some | {"RateLimit-Policy"}


def test_a_timestamp_has_all_its_digits():
    assert is_timestamp("2026-01-02T03:04:05Z") and not is_timestamp("2026-1-2T3:4:5Z")


UNDUE = """
from contract_tests.target.calls import outcome

@pytest.mark.requirement("storeBackup.409", "base.conflict")
def test_that_is_refused_too_early(target, new_user):
    stranger = target.client((new_user().credentials[0], "ab" * 32))
    assert outcome(stranger.store_backup(b"a backup")) == "409 version_conflict"

@pytest.mark.requirement("listBackupVersions.200")
def test_that_compares_a_status(target):
    assert target.client().list_backup_versions().status_code == 200

@pytest.mark.requirement("getHealth.200")
def test_that_takes_one_of_two(target):
    assert outcome(target.client().get_health()) in ("404 not_found", "413 payload_too_large")

"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "by a worker"])
def test_a_failing_test_says_what_was_due_and_which_rule_answered(suite, workers):
    done = suite(UNDUE, *workers)
    first, second, third = re.split(
        "_ test_that_compares_a_status|_ test_that_takes_one_of_two", done.stdout, maxsplit=2
    )
    for said in (
        "base.conflict: If an upload is not a retry, and it has another base,",
        "due: 409 version_conflict",
        "rule 22: The base is not the latest version, or the signature is spent (409 `version_conflict`).",
        "but 401 credentials_invalid came",
        "rule 11: The credentials are wrong (401 `credentials_invalid`).",
        "curl --include --path-as-is --request POST",
    ):
        assert said in first, said
    for said in (
        "listBackupVersions.200: The answer lists",
        "due: 200",
        "but 401 credentials_invalid came",
        "rule 11:",
    ):
        assert said in second, said
    assert "due: 404 not_found or 413 payload_too_large" in third
    assert "no rule of the order gives this: the request was accepted" in third


def test_each_problem_that_the_order_names_has_its_rule():
    """The rules are read from the prose."""
    outcomes = {outcome for rule in [*due.COMMON, *due.OF_REGISTRATION] for outcome in rule.outcomes}
    assert [rule.place for rule in due.COMMON] == list(range(1, 27))
    assert [rule.place for rule in due.OF_REGISTRATION] == list(range(21, 27))
    every = {
        f"{example['value']['status']} {example['value']['code']}"
        for response in SPEC["components"]["responses"].values()
        for content in response.get("content", {}).values()
        for example in resolved(content["examples"]).values()
    }
    apart = {
        "401 admin_key_invalid",
        "500 internal_error",
        "500 account_damaged",
        "500 backup_damaged",
        "503 unavailable",
    }
    assert outcomes == every - apart


# ---- What is wrong with every answer -----------------------------------------------------------------------

# Faults of the gallery that every answer shows, or every problem, and the requirement that each breaks.
UNIVERSAL = {
    "answers-may-be-cached": "header.Cache-Control",
    "problem-is-plain-json": "problem.form",
    "problem-has-no-detail": "problem.form",
    "vary-is-missing": "cors.vary",
}
SEVERAL = """
import pytest
from contract_tests.target.calls import outcome

@pytest.mark.requirement("getHealth.200")
def test_health(target):
    assert outcome(target.client().get_health()) == "200"

@pytest.mark.requirement("signature.missing")
def test_a_proof(target):
    assert outcome(target.client().request("GET", "/api/backup", signed=False)) == "401 signature_missing"

@pytest.mark.requirement("fetchBackup.404")
def test_a_fetch(new_user):
    assert outcome(new_user().fetch_backup()) == "404 no_backup"

"""


def broken(fault: str) -> dict[str, str]:
    """Return the environment in which a run starts servers with a fault of the gallery."""
    return {"CONTRACT_SERVER_COMMAND": shlex.join([*COMMAND, "--broken", fault])}


@pytest.mark.parametrize(
    ("fault", "workers"), [*((fault, ()) for fault in UNIVERSAL), ("answers-may-be-cached", ("-n", "2"))], ids=str
)
def test_what_is_wrong_with_every_answer_fails_once_and_no_test(suite, tmp_path, fault, workers):
    requirement, junit = UNIVERSAL[fault], tmp_path / "junit.xml"
    done = suite(SEVERAL, "--junit-xml", junit, *workers, **broken(fault))
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 3 passed" in done.stdout
    assert f"FAILED contract_tests::every_answer[{requirement}]" in done.stdout
    assert re.search(r"^\d+ of \d+ answers: ", done.stdout, re.MULTILINE)
    assert "curl --include --path-as-is" in done.stdout.partition("the first of these exchanges")[2]
    cases = {case.get("name"): case for case in ElementTree.parse(junit).iter("testcase")}
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {f"every_answer[{requirement}]"}
    assert cases.keys() > {"test_health", "test_a_proof", "test_a_fetch", "every_answer[header.X-Request-Id]"}


def test_the_rows_of_junit_are_the_same_for_a_healthy_server(suite, tmp_path):
    rows = []
    for environ in ({}, broken("answers-may-be-cached")):
        suite(SEVERAL, "--junit-xml", tmp_path / "junit.xml", **environ)
        rows.append([case.get("name") for case in ElementTree.parse(tmp_path / "junit.xml").iter("testcase")])
    assert rows[0] == rows[1]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "by a worker"])
def test_one_test_alone_fails_the_run_and_x_ends_it(suite, workers):
    one = suite(SEVERAL, "-k", "test_health", *workers, **broken("answers-may-be-cached"))
    assert one.returncode == pytest.ExitCode.TESTS_FAILED
    done = suite(SEVERAL, "-x", *workers, **broken("answers-may-be-cached"))
    assert done.returncode != 0
    assert "every_answer[header.Cache-Control]" in done.stdout
    if not workers:  # a worker has begun with the others by then
        assert "1 failed, 1 passed" in done.stdout


def test_what_is_wrong_with_every_answer_may_be_expected(suite, tmp_path):
    (tmp_path / "known").write_text("header.Cache-Control # the proxy drops it\n")
    arguments = ("--expected-failures", tmp_path / "known")
    assert suite(SEVERAL, *arguments, "-x", **broken("answers-may-be-cached")).returncode == 0


def test_without_a_run_the_first_fault_of_an_answer_raises(monkeypatch):
    monkeypatch.setattr(findings, "collected", None)
    with pytest.raises(AssertionError, match="header.Cache-Control: the header Cache-Control is missing"):
        Observer().check("GET", "/nothing", 404, {"X-Request-Id": "1"}, b"{}")


# ---- Stages ------------------------------------------------------------------------------------------------

STAGE_1 = CONTRACT_TESTS / "examples" / "stage_1.py"


@pytest.fixture
def first_server():
    """The address of the example of a server that passes stage 1."""
    with subprocess.Popen([sys.executable, STAGE_1, "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_a_server_of_60_lines_passes_stage_1_and_learns_what_is_next(first_server):
    code = [line for line in STAGE_1.read_text().partition('"""\n\n')[2].splitlines() if line.strip()]
    assert len(code) <= 60
    given = ("--base-url", first_server, "--direct", "-q", "-n", "2")
    secret = {"APP_SECRET_KEY": "any-secret-of-at-least-32-characters"}
    done = pytest_run(REPOSITORY, CONTRACT_TESTS, *given, "--stage", "1", **secret)
    assert done.returncode == 0
    assert re.search(r"stage 1 \(health, .*\): 12 not run, \d+ passed\n", done.stdout)
    assert "next: stage 2 (proofs): --stage 2\n" in done.stdout
    done = pytest_run(REPOSITORY, CONTRACT_TESTS, *given, "--stage", "2", **secret)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"stage 1 \(health, .*\): 12 not run, \d+ passed\n", done.stdout)
    assert re.search(r"stage 2 \(proofs\): \d+ failed, \d+ passed\n", done.stdout)
    ending = r"\nnext: signature\.twice: If .*\nit failed in .*\nrun it alone: --stage 2 --requirement signature\.twice"
    assert re.search(ending, done.stdout)


def test_a_failed_registration_is_charged_to_the_registration(suite, first_server):
    given = ("--base-url", first_server, "--direct", "--stage", "3")
    done = suite(SEVERAL, *given, APP_SECRET_KEY="any-secret-of-at-least-32-characters")
    assert "1 failed, 2 passed" in done.stdout
    assert "  failed: registerUser.201: If the userId is free, " in done.stdout
    assert "  not run: fetchBackup.404\n" in done.stdout


@pytest.mark.parametrize(
    ("stages", "passed"), [("1", 1), ("2", 2), ("3", 3), ("2-3", 2), ("3-3", 1)], ids=lambda value: str(value)
)
def test_which_stages_run(suite, stages, passed):
    done = suite(SEVERAL, "--stage", stages)
    assert f"{passed} passed" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("stages", ["0", "6", "3-2", "x", "1-"])
def test_a_stage_that_there_is_not(suite, stages):
    assert suite(SEVERAL, "--stage", stages).returncode == pytest.ExitCode.USAGE_ERROR


def test_what_belongs_to_a_later_stage_does_not_fail_an_earlier_one(suite):
    given = broken("vary-is-missing")  # a rule of stage 4, which every answer breaks
    assert suite(SEVERAL, "--stage", "3", **given).returncode == 0
    assert suite(SEVERAL, "--stage", "4", **given).returncode == pytest.ExitCode.TESTS_FAILED


# ---- The target --------------------------------------------------------------------------------------------


def of(server: Any, **more: str) -> dict[str, str]:
    """Return the environment that a run against this target needs."""
    return {"CONTRACT_BASE_URL": server.base_url, "APP_SECRET_KEY": server.environ["APP_SECRET_KEY"], **more}


def test_a_target_that_is_not_there(suite):
    done = suite(PASSES, "--base-url", "http://127.0.0.1:9", APP_SECRET_KEY="s" * 32)
    says = "cannot be reached at http://127.0.0.1:9: ConnectionRefusedError: "
    assert (done.returncode, says in text(done)) == (4, True)


@pytest.mark.parametrize("url", ["127.0.0.1", "ftp://127.0.0.1", "http://127.0.0.1/api", "http://a:b@127.0.0.1"])
def test_a_target_that_is_none(suite, url):
    done = suite(PASSES, "--base-url", url, APP_SECRET_KEY="s" * 32)
    assert (done.returncode, "--base-url must be" in text(done)) == (4, True)


def test_what_is_not_the_targets(suite, start_server):
    server = start_server(ALLOWED_ORIGINS="https://app.example", **RAISED_LIMITS)
    wrong = "not-the-secret-of-this-server-but-as-long"
    for environ, says in [
        ({"APP_SECRET_KEY": ""}, "--base-url needs the app's secret in APP_SECRET_KEY"),
        ({"APP_SECRET_KEY": wrong}, "APP_SECRET_KEY is not the target's: keyid app gets signature_invalid"),
        ({"APP_SECRET_KEY": f"{server.secret},b:{server.secret}"}, "keyid b gets signature_invalid"),
        ({"ADMIN_SECRET_KEY": wrong}, "ADMIN_SECRET_KEY is not the target's"),
        ({"CONTRACT_ORIGIN": "https://other.example"}, "CONTRACT_ORIGIN is not among the target's ALLOWED_ORIGINS"),
    ]:
        done = suite(PASSES, **of(server) | environ)
        assert (done.returncode, says in text(done)) == (4, True), says
        assert server.secret not in text(done) and wrong not in text(done)
    given = of(server, ADMIN_SECRET_KEY=server.admin_key, CONTRACT_ORIGIN="https://app.example")
    assert suite(PASSES, **given).returncode == 0


@pytest.mark.parametrize(
    ("name", "value"), [*((name, None) for name in RAISED_LIMITS), ("KEEP_VERSIONS", "3,0,0,0")], ids=str
)
def test_limits_that_were_not_raised(suite, start_server, name, value):
    server = start_server(**RAISED_LIMITS | {name: value})
    done = suite(PASSES, **of(server))
    assert done.returncode == 4
    assert re.search(rf"needs a target with raised limits; {name} is not\. Give it ", text(done))
    assert "passed" not in done.stdout


def test_what_was_not_given_is_not_run_and_not_passed(suite, start_server):
    server = start_server(**RAISED_LIMITS)
    done = suite(PASSES + NEEDS, "-rs", **of(server))
    assert done.returncode == 0
    assert "1 passed, 4 not run" in done.stdout
    assert SUMMARY.search(done.stdout)[0] == f"5 of {COUNT} requirements: 1 proven, 4 not run"
    for name in ("ADMIN_SECRET_KEY", "CONTRACT_ORIGIN", "two secrets", "a server of its own"):
        assert f"1 not run: needs {name}" in done.stdout.replace("the target's admin key in ", "").replace(
            "an origin of the target's ALLOWED_ORIGINS in ", ""
        )


@pytest.mark.parametrize("absent", ["listBackupVersions", "getAdminStats"])
def test_a_target_without_an_operation(start_server, tmp_path, absent):
    """The target leaves it out of its /openapi.json. Tests that need it are skipped, and all others run."""
    server_text, main, end = SERVER.read_text().rpartition("\nif __name__")
    copy_server(tmp_path).write_text(f'{server_text}\ndel HANDLERS["{absent}"]\n{main}{end}')
    document = (SERVER.parent / "openapi.yaml").read_text()
    path = {"listBackupVersions": "/api/backup/versions", "getAdminStats": "/admin/stats"}[absent]
    without = re.sub(rf"\n  {path}:\n.*?\n(?=\n  /)", "\n", document, count=1, flags=re.DOTALL)
    assert f"operationId: {absent}\n      tags" not in without
    (tmp_path / "openapi.yaml").write_text(without)
    server = start_server(BACKUP_SERVER=tmp_path / "backup_server.py", **RAISED_LIMITS)
    done = pytest_run(REPOSITORY, CONTRACT_TESTS / "test_operations.py", "-q", **of(server))
    assert done.returncode == 0
    assert f"skipped: the target declares that it does not have {absent}" in done.stdout
    skipped = int(re.search(r"(\d+) skipped", done.stdout)[1])
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert 2 <= skipped < 30 and passed > 30


def test_the_public_profile_stays_inside_the_limits_of_the_contract(start_server):
    server = start_server(ALLOWED_ORIGINS="https://app.example")  # the limits are for an hour, so run it twice
    given = of(server, ADMIN_SECRET_KEY=server.admin_key, CONTRACT_ORIGIN="https://app.example")
    for _ in range(2):
        done = pytest_run(REPOSITORY, CONTRACT_TESTS, "-q", "--profile", "public", **given)
        assert done.returncode == 0
        passed, not_run = re.search(r"^(\d+) passed, (\d+) not run", done.stdout, re.MULTILINE).groups()
        assert int(passed) > 150 and int(not_run) > 500
        assert "limits are used up" not in done.stdout
    counts = server.client().get_admin_stats(server.admin_key).json()
    assert (counts["users"], counts["versions"]) == (0, 0)


# ---- What is left behind, and what is shown ----------------------------------------------------------------


def test_users_are_deleted_also_when_a_test_fails(suite, start_server):
    server = start_server(**RAISED_LIMITS)
    assert suite(FAILS, **of(server)).returncode == 1
    assert server.client().get_admin_stats(server.admin_key).json()["users"] == 0
    assert requests.get(f"{server.base_url}/health", timeout=10).status_code == 200


def test_a_report_shows_what_happened_and_nothing_private(suite, start_server, tmp_path):
    server = start_server(**RAISED_LIMITS)
    page, junit = tmp_path / "report.html", tmp_path / "junit.xml"
    for workers in ((), ("-n", "1")):
        done = suite(FAILS + PASSES, "--showlocals", "--report", page, "--junit-xml", junit, *workers, **of(server))
        assert done.returncode == 1
        html, xml = page.read_text(), junit.read_text()
        assert "test_that_fails" in html and "The server does not keep the contract." in html
        assert "curl --include --path-as-is --request PUT" in html
        assert '--header "Authorization: $AUTHORIZATION"' in unescape(html)
        assert '<property name="requirement" value="storeBackup.201"' in xml
        for shown in (html, xml, text(done)):
            assert server.secret not in shown
            assert not re.search(r"Basic [A-Za-z0-9+/]{6}", shown)
            assert not re.search(r"app=:[A-Za-z0-9+/]{6}", shown)
            assert "YSBibG9iIHRoYXQ" not in shown and "YW5vdGhlciBibG9i" not in shown
            assert "ab" * 32 not in shown
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", html)  # the page needs no other file


FAULTY = """
@pytest.mark.requirement("registerUser.201")
def test_before(new_user):
    new_user()

@pytest.mark.requirement("getHealth.500")
def test_of_a_faulty_server(target, start_server):
    server = start_server()
    server.fault = "internal_error"
    secret = server.secret
    target.client().get_health()
    assert server.client().get_health().status_code == 200

"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "by a worker"])
def test_a_failing_test_shows_the_servers_side(suite, workers):
    done = suite(FAULTY, *workers)
    assert "1 failed, 1 passed" in done.stdout
    _, exchanges, log = re.split("-+ the (?:last exchanges|servers' log since the test began) -+", done.stdout)
    assert "curl --include --path-as-is --request GET" in exchanges and "internal_error" in exchanges
    assert "ZeroDivisionError" in log and "/health" in log
    assert "/api/register" not in log  # that was in the test before


def test_a_traceback_stands_below_its_line():
    line = json.dumps({"event": "error", "error": "KeyError", "traceback": ["Traceback\n", f"  {REPOSITORY}/a.py\n"]})
    assert readable(line) == '{"event": "error", "error": "KeyError"}\nTraceback\n  a.py'
    assert readable("no JSON") == "no JSON"


def test_an_answer_that_comes_while_the_body_is_sent():
    """The server answers, and closes the connection before it has read the body. So the connection is reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        target: Any = SimpleNamespace(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", observer=Mock())

        def answer_early() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

        served = pool.submit(answer_early)
        head = raw.request("POST", "/", headers=("Expect: 100-continue", "Content-Length: 50000000"))
        asked, answer = raw.expect(target, head, bytes(50_000_000), "POST", "/")
        served.result()
    assert (asked, answer.status) == (True, 408)
