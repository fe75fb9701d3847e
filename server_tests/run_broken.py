"""Run the tests against servers that are broken on purpose, to show that the tests find what they should find.

For each fault of broken/, and for each requirement that it breaks, run the tests that name this requirement against a
server with this fault, until one of them fails. Then print a table of which test caught what. The exit code is 1 if
anything was not caught, or if one of those tests fails on the healthy server, too. A server that does not even answer
/health shows nothing about the tests, so its fault counts as not caught.

With --postgres, the servers are on PostgreSQL, which the tests start. It runs the faults that any store can have, and
those that only PostgreSQL can have.

--quick runs one fault of each category but postgres, and only the test that is known to catch it.
"""

import argparse
import contextlib
import http.client
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from contract_tests.suite import requirement_ids
from contract_tests.target.process import COMMAND, ServerProcess
from server_tests.broken import CATEGORIES, FAULTS

REPOSITORY = Path(__file__).resolve().parents[1]
LAST = ("test_random_lives.py", "test_schemathesis.py")  # generated cases, which take longer to fail
LONGEST = 300  # how many seconds the tests of one requirement may take
OF_THIS_SERVER = "of this server"  # shown instead of a requirement if no client can see the fault
# At least one fault of each category, and the test that is known to catch it.
QUICK = {
    "any-signature-is-accepted": "contract_tests/test_signature.py::test_no_other_profile_is[the wrong secret]",
    "anyone-reads": "contract_tests/test_isolation.py::test_a_stranger_can_do_nothing",
    "one-bit-is-flipped": "contract_tests/test_durability.py::test_versions_outlive_a_restart[False]",
    "deletion-does-nothing": "contract_tests/test_operations.py::test_a_deleted_user_may_register_after_901_seconds",
    "history-is-one-short": "contract_tests/test_history.py::test_what_is_kept[the last 4 of one day]",
    "one-more-upload-an-hour": "contract_tests/test_limits.py::test_5_an_hour",
    "thief-stays-known": (
        "contract_tests/test_guessing.py::test_after_a_key_change_only_the_address_that_made_it_is_known"
    ),
    "problem-has-no-code": "contract_tests/test_problems.py::test_nothing_of_the_request_is_repeated[Zebra7-/health]",
    "any-origin-is-reflected": "contract_tests/test_http.py::test_any_other_options_is_405[lines7]",
    "statistics-need-no-key": "contract_tests/test_operations.py::test_admin_stats_need_the_key[None]",
    "restart-forgets-the-limits": "contract_tests/test_limits.py::test_the_windows_survive_a_restart",
    "new-accounts-may-take-everything": ("contract_tests/test_space.py::test_new_accounts_share_a_third_of_the_volume"),
    "bucket-without-a-key-is-accepted": (
        "server_tests/test_bucket.py::test_a_setting_that_is_missing_is_named[AWS_ACCESS_KEY_ID-None]"
    ),
    "weeks-have-no-year": "contract_tests/test_history.py::test_the_same_number_in_another_year[1,0,3,0]",
    "list-is-made-of-two-reads": "contract_tests/test_at_once.py::test_each_pair[list-store two]",
    "key-follows-its-version": "contract_tests/test_durability.py::test_killed_before_each_write[change the key]",
    "bytes-are-verified-once": "contract_tests/test_second_time.py::test_damage_after_a_good_read",
    "no-connections-of-an-address": "server_tests/test_bounds.py::test_addresses_have_places_of_their_own",
}


class Collector:
    """A pytest plugin that collects which tests name which requirement."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in sorted(items, key=lambda item: item.path.name in LAST):
            for requirement in requirement_ids.named_by(item):
                self.tests.setdefault(requirement, []).append(item.nodeid)


def collect() -> dict[str, list[str]]:
    """Return the node ids of the contract tests, by requirement."""
    collector, output = Collector(), io.StringIO()
    with contextlib.redirect_stdout(output):
        status = pytest.main(["--collect-only", "-q", str(REPOSITORY / "contract_tests")], plugins=[collector])
    if status != pytest.ExitCode.OK:
        sys.exit(f"the tests cannot be collected:\n{output.getvalue()}")
    return collector.tests


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    """End a run at the first test that fails. (The runs that this file starts load it as a plugin.)

    A failure does not count if it is in set-up or tear-down, or if the test was proving another requirement then. What
    is wrong with an answer fails no test, but counts here, whatever requirement it is charged to.
    """
    from contract_tests.suite.outcomes import ABOUT  # pytest has loaded these before
    from contract_tests.suite.plugin import FINDINGS

    report = yield
    requirement = os.environ.get("CONTRACT_REQUIREMENT")
    is_about = requirement in [None, *item.stash.get(ABOUT, [str(requirement)])]
    if report.when == "call" and ((report.failed and is_about) or item.config.stash[FINDINGS].of_test):
        item.session.shouldstop = f"failed: {item.nodeid}"  # pytest prints it between exclamation marks
    return report


def run(tests: Iterable[str], **environ: str) -> tuple[int, str, str]:
    """Run tests, by node id, until one fails. Return pytest's exit code, the test that failed, and the output."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CONTRACT_")} | environ
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest starts four times as fast
    with tempfile.NamedTemporaryFile("w") as arguments:
        arguments.write("\n".join(tests))
        arguments.flush()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "server_tests.run_broken", "-p", "no:cacheprovider"]
        command.append(f"@{arguments.name}")
        try:
            done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return -1, "", f"the tests took more than {LONGEST} s"
    failed = re.search("failed: (.+) !+$", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else "", done.stdout + done.stderr


def obstacle(command: list[str]) -> str:
    """Return why a server that this command starts does not serve, or an empty text."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with ServerProcess(folder, command=command) as server:
                connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc, timeout=30)
                connection.request("GET", "/health")
                status = connection.getresponse().status
                return "" if status == 200 and server.running() else f"/health is {status}"
        except (RuntimeError, OSError, http.client.HTTPException) as error:
            return str(error)


@dataclass
class Trial:
    """A fault, one of the requirements that it breaks, and the result of the run."""

    fault: str
    requirement: str
    tests: list[str]
    caught_by: str = ""
    seconds: float = 0
    output: str = ""
    store: str = "file"

    def run(self) -> "Trial":
        with launcher(self.store) as start:
            self._run([*start, "--broken", self.fault])
        return self

    def _run(self, command: list[str]) -> None:
        if reason := obstacle(command):
            self.output = f"the server does not serve with this fault: {reason}"
        elif self.tests:
            if self.requirement == OF_THIS_SERVER:  # its test gives it a database, if it needs one
                command = [*COMMAND, "--broken", self.fault]
            started = time.monotonic()
            _, self.caught_by, self.output = run(
                self.tests,
                CONTRACT_SERVER_COMMAND=shlex.join(command),
                MAINTENANCE_COMMAND=shlex.join(["env", f"PYTHONPATH={REPOSITORY}", *command, "--maintenance"]),
                CONTRACT_REQUIREMENT=self.requirement,
            )
            self.seconds = time.monotonic() - started
        else:
            self.output = f"no test names {self.requirement}"


@contextlib.contextmanager
def launcher(store: str) -> Iterator[list[str]]:
    """Give the command that starts a server on this kind of store. Start a database, if it needs one."""
    if store == "file":
        yield COMMAND
        return
    from server_tests.postgres_cluster import Cluster  # its parts are installed only for this

    with Cluster(fsync="off", max_connections="300") as cluster:
        script = Path(__file__).with_name("postgres_launcher.py")
        yield [sys.executable, "-P", str(script), "--cluster", cluster.url()]


def is_here(program: str | None) -> bool:
    """Return whether a program is on PATH, or beside this Python. None needs no program."""
    return not program or any(shutil.which(program, path=path) for path in (None, str(Path(sys.executable).parent)))


def quick_trial(fault: str) -> Trial:
    """Return the trial of a fault in QUICK."""
    requirement, *_ = *FAULTS[fault].requirements, OF_THIS_SERVER
    return Trial(fault, requirement, [QUICK[fault]])


def trials(faults: Iterable[str], store: str) -> list[Trial]:
    """Return a trial for each requirement that these faults break, if a server on this store can have them.

    Tests of this server alone are about a file, if nothing else is said.
    """
    tests, result = collect(), []
    for name in faults:
        fault = FAULTS[name]
        if fault.store in (None, store):
            result += [Trial(name, each, tests.get(each, []), store=store) for each in fault.requirements]
        if fault.test and store == (fault.store or "file"):
            result.append(Trial(name, OF_THIS_SERVER, [fault.test], store=store))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="run only these faults, and show how they fail")
    parser.add_argument("--quick", action="store_true", help="run one fault per category with the test that catches it")
    parser.add_argument("--category", choices=CATEGORIES, help="run only the faults of this module of broken/")
    parser.add_argument("--postgres", action="store_true", help="run the servers on PostgreSQL")
    parser.add_argument("-n", type=int, default=2, metavar="WORKERS", help="how many to run at a time (2)")
    parser.add_argument("--list", action="store_true", help="list the faults, and run nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends a run like Ctrl-C, and the databases with it
    if arguments.quick and arguments.postgres:
        parser.error("--quick is about servers on a file")
    if unknown := set(arguments.faults) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; --list shows them")
    if arguments.list:
        for name, fault in FAULTS.items():
            only = f" only on {fault.store}:" if fault.store else ""
            print(f"{name}:{only} {fault.description} ({', '.join(fault.requirements) or fault.test})")
        return 0

    started, done, store = time.monotonic(), [], "postgres" if arguments.postgres else "file"
    names = [name for name, fault in FAULTS.items() if arguments.category in (None, fault.category)]
    chosen = [name for name in names if name in (arguments.faults or names) and FAULTS[name].store in (None, store)]
    for name in set(arguments.faults) - set(chosen):
        print(f"{name}: not run, because only a server on {FAULTS[name].store} can have it")
    if not chosen:
        parser.error(f"a server on {store} can have none of these faults (--postgres: servers on PostgreSQL)")
    for name in [name for name in chosen if not arguments.quick and not is_here(FAULTS[name].needs)]:
        chosen.remove(name)
        print(f"{name}: not run, because it needs {FAULTS[name].needs}: tox run -e {FAULTS[name].category} installs it")
    with ThreadPoolExecutor(arguments.n) as pool:
        waiting = list(map(quick_trial, QUICK)) if arguments.quick else trials(chosen, store)
        for trial in pool.map(Trial.run, waiting):
            done.append(trial)
            outcome = f"caught in {trial.seconds:.1f} s" if trial.caught_by else "NOT CAUGHT"
            print(f"{len(done)}/{len(waiting)} {trial.fault}, {trial.requirement}: {outcome}", flush=True)
            if arguments.faults or not trial.caught_by:
                print(trial.output)

    if not done:
        return 0
    width, other = (max(len(getattr(trial, column)) for trial in done) for column in ("fault", "requirement"))
    print(f"\n{'fault':{width}}  {'requirement':{other}}  seconds  caught by")
    for trial in done:
        row = f"{trial.fault:{width}}  {trial.requirement:{other}}  {trial.seconds:7.1f}"
        print(f"{row}  {trial.caught_by.removeprefix('contract_tests/') or 'NOT CAUGHT'}")

    caught = [trial for trial in done if trial.caught_by]
    print(f"\n{len(caught)} of {len(done)} caught; {time.monotonic() - started:.0f} s")
    if not caught:
        return 1
    tests = dict.fromkeys(trial.caught_by for trial in caught)
    of_any_server = [test for test in tests if test.startswith("contract_tests/")]
    others = [test for test in tests if test not in of_any_server]
    status, failed, output = 0, "", ""
    if of_any_server:
        with launcher(store) as start:
            status, failed, output = run(of_any_server, CONTRACT_SERVER_COMMAND=shlex.join(start))
    if others and not status:
        status, failed, output = run(others)
    print(f"the healthy server fails {failed}:\n{output}" if status else "the healthy server passes those tests")
    return int(bool(status) or len(caught) < len(done))


if __name__ == "__main__":
    sys.exit(main())
