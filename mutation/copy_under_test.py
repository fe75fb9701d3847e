"""A copy of the repository that a mutant is written to, with the contract tests loaded beside it."""

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from mutation.line_map import MODULES
from mutation.mutants import ROOT, Mutant

LEFT_OUT = shutil.ignore_patterns(".*", "node_modules", "__pycache__", "dist", "results")
LOADING = 300  # seconds that the tests may take to be loaded, on a busy machine


@dataclass(frozen=True)
class Failure:
    """A test that failed, and how."""

    test: str
    how: str


class Broken(Exception):
    """The tests did not run. The message says why."""


class Copy:
    """A copy of the repository, and a database if its server is on PostgreSQL.

    Entering the context makes it, and leaving it removes it.
    """

    def __init__(self, store: str = "file") -> None:
        self._database: Any = None
        if store == "postgres":
            from server_tests.postgres_cluster import Cluster  # its parts are installed only for this

            self._database = Cluster(fsync="off", max_connections="300")
        self._folder = Path(tempfile.mkdtemp(prefix="mutation-"))
        self.root = self._folder / "copy"
        self._writes = 0
        self._changed: set[str] = set()  # the modules that are not healthy
        self._tests: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()  # the process groups that run tests now

    def __enter__(self) -> Self:
        shutil.copytree(ROOT, self.root, ignore=LEFT_OUT)
        self._healthy = {name: (self.root / name).read_bytes() for name in MODULES}
        if self._database:
            self._database.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.unload()
        if self._database:
            self._database.__exit__(*exception)
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, mutants: Sequence[Mutant]) -> None:
        """Let the copy have these mutants, and no others. None of them may change what another one changes."""
        modules = {mutant.module: self._healthy[mutant.module] for mutant in mutants}
        for mutant in sorted(mutants, key=lambda each: -each.start):
            modules[mutant.module] = mutant.apply(modules[mutant.module])
        for module in self._changed - modules.keys():
            self._write(module, self._healthy[module])
        for module, source in modules.items():
            self._write(module, source)
        self._changed = set(modules)

    def _write(self, module: str, source: bytes) -> None:
        path = self.root / module
        path.write_bytes(source)
        # Python compares a module's time and size with those in its cache. So each write has a time of its own.
        self._writes += 1
        os.utime(path, (self._writes, self._writes))

    def _environment(self, **environ: str) -> dict[str, str]:
        """Return the environment of the tests: no server but the copy, and only the plugins of pytest they need."""
        unwanted = re.compile("CONTRACT_|BACKUP_|COVERAGE_")
        inherited = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
        return inherited | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environ

    @property
    def of_contract(self) -> dict[str, str]:
        """What the environment of contract tests has, too. This server's own tests choose a store by themselves."""
        if not self._database:
            return {}
        launcher = [sys.executable, "-P", str(self.root / "server_tests" / "postgres_launcher.py")]
        return {"CONTRACT_SERVER_COMMAND": shlex.join([*launcher, "--cluster", self._database.url()])}

    def _drop_databases(self) -> None:
        if self._database:
            self._database.drop_databases()

    # ---- The contract tests ----------------------------------------------------------------------------------------

    def load(self) -> list[str]:
        """Load the contract tests. Return their names."""
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        command = [sys.executable, "-m", "pytest", "contract_tests", "-q", "--capture=no", "-p", "no:cacheprovider"]
        with (self._folder / "pytest.log").open("wb") as log:
            self._tests = subprocess.Popen(
                [*command, "-p", "mutation.worker"],
                cwd=self.root,
                env=self._environment(MUTATION_PIPES=f"{orders},{answers}", **self.of_contract),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(orders, answers),
                start_new_session=True,  # Ctrl-C ends the driver, and the driver ends this
            )
        os.close(orders)
        os.close(answers)
        self._unread = b""
        tests: list[str] = (self._next(LOADING) or self._fail())["tests"]
        return tests

    def stop(self) -> None:
        """End the tests that run, from another thread. `run` and `pytest` then raise Broken."""
        for group in [*self._groups, *([self._tests.pid] if self._tests else [])]:
            kill_group(group)

    def unload(self) -> None:
        if self._tests:
            os.close(self._orders)
            kill_group(self._tests.pid)
            self._tests.wait()
            os.close(self._answers)
            self._tests = None

    def run(self, tests: Sequence[str], longest: Callable[[str], float]) -> Failure | None:
        """Run contract tests until one fails. Return its failure, or None. Raise Broken if the tests did not run.

        `longest` is how many seconds a test may take.
        """
        folder, test = tempfile.mkdtemp(dir=self._folder), ""
        os.write(self._orders, json.dumps({"tests": tests, "folder": folder}).encode() + b"\n")
        process: int = (self._next(LOADING) or self._fail())["process"]
        self._groups.add(process)
        try:
            while True:
                if not (answer := self._next(longest(test))):
                    return Failure(test, f"no end after {longest(test):.0f} s")
                test = answer.get("test", test)
                if "failed" in answer:
                    return Failure(test, answer["how"])
                if "passed" in answer:
                    return None
                if "broken" in answer or "ended" in answer:
                    raise Broken(f"the tests ended in {test}: {answer.get('broken', 'without a word')}")
        finally:
            kill_group(process)  # with the servers that it has started
            while (rest := self._next(LOADING)) and "ended" not in rest:
                pass
            self._groups.discard(process)
            shutil.rmtree(folder, ignore_errors=True)
            self._drop_databases()

    def _fail(self) -> NoReturn:
        code = self._tests and self._tests.wait(LOADING)
        said = (self._folder / "pytest.log").read_text(errors="replace")[-2000:]
        raise Broken(f"the loaded tests do not answer (exit code {code}): {said}")

    def starts(self) -> bool:
        """Return whether a server starts, with the settings that most tests give it."""
        start = "import sys, pathlib; from contract_tests.target.process import ServerProcess as S\n"
        start += "with S(pathlib.Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", start, tempfile.mkdtemp(dir=self._folder)]
        done = subprocess.run(
            command, cwd=self.root, env=self._environment(**self.of_contract), capture_output=True, timeout=LOADING
        )
        return done.returncode == 0

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """Return the next answer of the loaded tests, or None if there is none after so many seconds.

        Raise Broken if they have ended.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                return None
            if not (part := os.read(self._answers, 65536)):
                self._fail()
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    # ---- Other tests -----------------------------------------------------------------------------------------------

    def pytest(self, *arguments: str, seconds: float = 1800, **environ: str) -> tuple[int, str]:
        """Run pytest in the copy. Return its exit code, -1 if it takes too long, and its output so far."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(**environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._groups.add(process.pid)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill_group(process.pid)
            return -1, process.communicate()[0]
        finally:
            kill_group(process.pid)
            process.wait()
            self._groups.discard(process.pid)
            self._drop_databases()
        if process.returncode == -signal.SIGKILL:
            raise Broken("the tests were killed")
        return process.returncode, output

    def collect(self, files: Sequence[str]) -> list[str]:
        """Return the names of the tests in these files. Raise Broken if they cannot be collected."""
        code, output = self.pytest("--collect-only", *files)
        if code:
            raise Broken(f"the tests cannot be collected:\n{output[-2000:]}")
        return re.findall(r"^server_tests/\S+::.*$", output, re.MULTILINE)

    def first_failure(self, tests: Sequence[str], seconds: float) -> tuple[str, str]:
        """Run tests until one fails. Return its name, or that of its file, and the output; or empty texts.

        They may take so many seconds. If they take longer, the last one that began has failed.
        """
        names = self._folder / "names"
        names.write_text("\n".join(tests))
        code, output = self.pytest("-x", "-vv", "-rfE", f"@{names}", seconds=seconds)
        if code == 0:
            return "", ""
        if code == -1:
            output += f"\nno end after {seconds:.0f} s"
            found = re.findall(r"^(server_tests/.+?) *(?:(?:PASSED|SKIPPED)\b.*)?$", output, re.MULTILINE)[-1:]
        else:
            found = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", output, re.MULTILINE)
        return found[0] if found else tests[0], output[-1000:]

    def fails(self, test: str) -> bool:
        """Return whether a test of this server fails, or does not end."""
        return self.pytest(test, seconds=LOADING)[0] != 0


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
