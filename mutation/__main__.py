"""Make small faults in the server, one at a time, and see whether the tests find them: `tox run -e mutate`.

For each fault (a mutant), run the contract tests that reach its line, until one fails. It has to fail again, and to pass
without the mutant. If none fails, run the tests of this server that are for the module. Then print a table, and each mutant that survived. Mutants that are
no faults, and places that no client can see, are in mutation/known.toml with the reasons.

Which mutants are judged is random, by a seed; --mutants N judges the first N of this order. What was found is kept in a
folder: Ctrl-C ends the run, and the next run goes on. Before the first run, which test reaches which line is recorded.

exit codes: 0 the tests catch enough, 1 they do not, 2 there is nothing to judge with, 130 interrupted
"""

import argparse
import ast
import contextlib
import hashlib
import json
import math
import queue
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import tomllib
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from mutation.copy_under_test import Broken, Copy
from mutation.line_map import MODULES
from mutation.mutants import ROOT, Mutant, mutants
from mutation.reached import EVERY_START

KNOWN = Path(__file__).with_name("known.toml")
SLOW = (0.2, 1.5, 5)  # seconds; a test that takes longer runs after those that do not
AGAIN = 2  # how often a test that has failed runs again, until it fails again: a failure that comes once is none


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=300, metavar="N", help="judge so many mutants (300)")
    parser.add_argument("--seed", type=int, default=17, help="the order of the mutants (17)")
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants are judged at a time (2)")
    parser.add_argument("--only", default="*", metavar="KEY", help="only mutants whose key is like this; * is any text")
    parser.add_argument("--of", choices=["visible", "hidden", "all"], default="all", help="which places (all)")
    parser.add_argument(
        "--again", action="store_true", help="judge those again that survived; new tests may catch them"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="contract tests for one mutant take no longer (no limit)"
    )
    parser.add_argument("--contract-alone", action="store_true", help="leave the tests of this server out for now")
    parser.add_argument("--goal", type=float, default=95, help="percent of the visible mutants to catch (95)")
    parser.add_argument("--list", action="store_true", help="list the mutants of the sample, and run nothing")
    parser.add_argument("--report", action="store_true", help="print what was found so far, and run nothing")
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".mutation", metavar="FOLDER", help="where the results are kept"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends a run like Ctrl-C
    known = Known(KNOWN)
    chosen = sample(arguments, known)
    if arguments.list:
        for mutant in chosen:
            print(mutant.key)
        return 0
    arguments.state.mkdir(exist_ok=True)
    results = Results(arguments.state / "results.jsonl")
    if not arguments.report:
        try:
            judge_all(chosen, known, results, arguments)
        except Broken as error:
            print(f"mutation: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    return report(chosen, known, results, arguments.goal)


def sample(arguments: argparse.Namespace, known: "Known") -> list[Mutant]:
    """Return the mutants to judge, in their random order."""
    found = [mutant for module in MODULES for mutant in mutants(module) if fnmatchcase(mutant.key, arguments.only)]
    if arguments.of != "all":
        found = [mutant for mutant in found if bool(known.hidden(mutant)) == (arguments.of == "hidden")]
    return sorted(found, key=lambda mutant: mutant.rank(arguments.seed))[: arguments.mutants]


# ---- What is known ---------------------------------------------------------------------------------------------------


class Known:
    """The entries of known.toml."""

    def __init__(self, file: Path) -> None:
        known = tomllib.loads(file.read_text())
        self._entries: dict[str, list[dict[str, str]]] = known
        self._server_tests: dict[str, str] = known["server_tests"]

    def hidden(self, mutant: Mutant) -> str | None:
        """Return why no client can see a mutant, or None if one can."""
        return self._reason("hidden", mutant)

    def equivalent(self, mutant: Mutant) -> str | None:
        """Return why a mutant is no fault, or None if it is one."""
        return self._reason("equivalent", mutant)

    def server_tests(self, module: str) -> list[str]:
        """Return the files of tests of this server that are for a module."""
        names = self._server_tests.get(module, self._server_tests["*"])
        return [f"server_tests/test_{name}.py" for name in names.split()]

    def _reason(self, kind: str, mutant: Mutant) -> str | None:
        for entry in self._entries.get(kind, []):
            parts = {name: pattern for name, pattern in entry.items() if name not in ("reason", "function")}
            if fnmatchcase(mutant.function, entry.get("function", "*")) and all(
                getattr(mutant, name) == text for name, text in parts.items()
            ):
                return entry["reason"]
        return None


class Results:
    """What was found, by mutant and suite. It is in a file, a line of JSON for each result; the last one counts."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        for line in file.read_text().splitlines() if file.exists() else []:
            with contextlib.suppress(ValueError):  # the last line may be cut off
                result = json.loads(line)
                self._found[result["mutant"], result["suite"]] = result

    def get(self, mutant: Mutant, suite: str) -> dict[str, Any] | None:
        return self._found.get((mutant.key, suite))

    def add(self, mutant: Mutant, suite: str, **what: Any) -> dict[str, Any]:
        result = {"mutant": mutant.key, "suite": suite, **what}
        with self._lock:
            self._found[mutant.key, suite] = result
            with self._file.open("a") as file:
                file.write(json.dumps(result) + "\n")
        return result

    def catchers(self) -> dict[str, list[str]]:
        """Return the keys of the mutants that each test has caught."""
        with self._lock:
            caught = defaultdict(list)
            for result in self._found.values():
                if result["verdict"] == "caught":
                    caught[result["by"]].append(result["mutant"])
            return caught


# ---- Which test reaches which line -----------------------------------------------------------------------------------


class Reached:
    """Which test reaches which line, in how many seconds, in the state of the server that is recorded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lines: dict[str, dict[str, set[int]]] = {}
        self.seconds: dict[str, float] = {}
        digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in MODULES)).hexdigest()
        if self._folder.exists() and (self._folder / "digest").read_text() != digest:
            shutil.rmtree(self._folder)  # the lines have moved
        self._folder.mkdir(exist_ok=True)
        (self._folder / "digest").write_text(digest)
        self.read()

    def read(self) -> None:
        """Read what is recorded."""
        for file in self._folder.glob("*.jsonl"):
            for line in file.read_text().splitlines():
                entry = json.loads(line)
                self.lines[entry["test"]] = {name: set(lines) for name, lines in entry["lines"].items()}
                self.seconds[entry["test"]] = entry["seconds"]

    @property
    def folder(self) -> Path:
        return self._folder

    def tests(self, mutant: Mutant) -> list[str]:
        """Return the tests that reach a mutant. For a constant of a module, they reach a line that uses it."""
        places = uses(mutant.name) if mutant.name else {mutant.module: set(mutant.lines)}

        def reaches(test: str) -> bool:
            return any(self.lines[test].get(module, set()) & numbers for module, numbers in places.items())

        always = EVERY_START in self.lines and reaches(EVERY_START)
        return [test for test in self.lines if test != EVERY_START and (always or reaches(test))]


@cache
def uses(name: str) -> dict[str, set[int]]:
    """Return the lines, by module, that use the constant of this name."""
    found = defaultdict(set)
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / module).read_bytes())):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                if name == (node.id if isinstance(node, ast.Name) else node.attr):
                    found[module].add(node.lineno)
    return found


def record(reached: Reached, copy: Copy, tests: Iterable[str]) -> None:
    """Run contract tests with the healthy server, and write down which lines they reach. Raise Broken if one fails."""
    with tempfile.NamedTemporaryFile("w") as names:
        names.write("\n".join(tests))
        names.flush()
        print(f"recording which lines the contract tests reach, in {reached.folder}", file=sys.stderr, flush=True)
        arguments = ["-p", "mutation.reached", "-p", "xdist", "-n", "2", f"@{names.name}"]
        code, output = copy.pytest(*arguments, seconds=3600, MUTATION_LINES=str(reached.folder))
    for rest in reached.folder.glob("*.map"):
        rest.unlink()
    if code:
        raise Broken(f"the contract tests fail with the healthy server:\n{output[-5000:]}")
    reached.read()


# ---- Judging ---------------------------------------------------------------------------------------------------------


def judge_all(chosen: list[Mutant], known: Known, results: Results, arguments: argparse.Namespace) -> None:
    """Judge the mutants that were not judged yet, and keep the results."""
    reached = Reached(arguments.state / "reached")
    with ExitStack() as stack:
        copies = [stack.enter_context(Copy()) for _ in range(arguments.jobs)]
        tests = copies[0].load()
        if unknown := [test for test in tests if test not in reached.lines]:
            record(reached, copies[0], unknown)
        for copy in copies[1:]:
            copy.load()
        judge = Judge(known, results, reached, tests, arguments)
        waiting = [mutant for mutant in chosen if judge.is_open(mutant)]
        print(f"{len(chosen)} mutants, {len(waiting)} of them not judged yet", file=sys.stderr, flush=True)
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            free.put(copy)
        started = time.monotonic()

        def run(mutant: Mutant) -> None:
            copy = free.get()
            try:
                judge(copy, mutant)
            finally:
                free.put(copy)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            try:
                for count, future in enumerate(as_completed(pool.submit(run, mutant) for mutant in waiting), 1):
                    future.result()
                    left = (time.monotonic() - started) / count * (len(waiting) - count)
                    print(f"{count}/{len(waiting)}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
            except BaseException:  # the threads end when their tests have ended
                pool.shutdown(wait=False, cancel_futures=True)
                for copy in copies:
                    copy.stop()
                raise


class Judge:
    """Judges one mutant at a time for each copy."""

    def __init__(
        self, known: Known, results: Results, reached: Reached, tests: list[str], arguments: argparse.Namespace
    ) -> None:
        self._known, self._results, self._reached = known, results, reached
        self._position = {test: position for position, test in enumerate(tests)}
        self._contract_alone, self._again = arguments.contract_alone, arguments.again
        self._seconds = arguments.seconds
        self._failing: set[str] = set()  # tests of this server that fail here with the healthy server, too

    def is_open(self, mutant: Mutant) -> bool:
        """Return whether a suite has yet to judge a mutant."""
        return not self._known.equivalent(mutant) and next(self._open(mutant), None) is not None

    def _open(self, mutant: Mutant) -> Iterator[str]:
        suites = [] if self._known.hidden(mutant) else ["contract"]
        for suite in suites + ([] if self._contract_alone else ["server"]):
            result = self._results.get(mutant, suite)
            if result is None or (self._again and result["verdict"] == "survived"):
                yield suite
            elif result["verdict"] != "survived":
                return

    def __call__(self, copy: Copy, mutant: Mutant) -> None:
        copy.put(mutant)
        try:
            for suite in self._open(mutant):
                started = time.monotonic()
                what = (self._by_contract if suite == "contract" else self._by_server)(copy, mutant)
                seconds = round(time.monotonic() - started, 1)
                self._results.add(mutant, suite, **what, seconds=seconds)
                by = f" by {what['by']}" if what.get("by") else ""
                print(f"{what['verdict']} ({suite}, {seconds} s){by}: {mutant.key}", flush=True)
                if what["verdict"] != "survived":
                    break
        finally:
            copy.put_back(mutant)

    def _by_contract(self, copy: Copy, mutant: Mutant) -> dict[str, Any]:
        """Run the contract tests that reach a mutant until one fails, and does so again."""
        tests, flukes = self._ordered(mutant), []
        numbers = {"reaching": len(self._reached.tests(mutant)), "chosen": len(tests)}
        while tests and (failure := copy.run(tests, self._longest)):
            if "the server did not start" in failure.how and not copy.starts():
                return {"verdict": "does not start"}
            test = failure.test
            fails_again = any(copy.run([test], self._longest) for _ in range(AGAIN))
            if fails_again and without(copy, mutant, lambda: copy.run([test], self._longest) is None):
                return {"verdict": "caught", "by": test, "how": failure.how[-1000:], **numbers}
            flukes.append(test)
            tests = tests[tests.index(test) + 1 :]
        return {"verdict": "survived", "flukes": flukes, **numbers}

    def _longest(self, test: str) -> float:
        """Return how many seconds a test may take on a busy machine. A mutant may make it wait for ever."""
        return 60 + 10 * self._reached.seconds.get(test, 60)

    def _ordered(self, mutant: Mutant) -> list[str]:
        """Return the contract tests that reach a mutant: first those that caught others in its function and module.

        Then the quick ones, one of each function of tests first, and the slow ones last. All together take no more
        seconds than a mutant may have, on a machine that has nothing else to do.
        """
        near: Counter[str] = Counter()
        for test, keys in self._results.catchers().items():
            for key in keys:
                module, function, *_ = key.split(" | ")
                near[test] += (module == mutant.module) * (1 + 100 * (function == mutant.function))
        variants: Counter[str] = Counter()
        variant = {}
        for test in self._position:
            variant[test] = variants[test.partition("[")[0]]
            variants[test.partition("[")[0]] += 1

        def order(test: str) -> tuple[Any, ...]:
            slowness = bisect(SLOW, self._reached.seconds[test])
            return (0 if near[test] else slowness + 1), -near[test], variant[test] > 0, self._position[test]

        tests = sorted((test for test in self._reached.tests(mutant) if test in self._position), key=order)
        ends = accumulate(self._reached.seconds[test] for test in tests)
        return [test for test, end in zip(tests, ends, strict=True) if end <= self._seconds]

    def _by_server(self, copy: Copy, mutant: Mutant) -> dict[str, Any]:
        """Run the tests of this server for a module until one fails that does so again, and not without the mutant."""
        files = self._known.server_tests(mutant.module)
        while True:
            code, output = copy.pytest("-x", "-rfE", *files, *(f"--deselect={test}" for test in self._failing))
            found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", output, re.MULTILINE)
            if code == 0 or not found:
                return {"verdict": "survived" if code == 0 else "caught", "by": f"no end of {' '.join(files)}"}
            fails_again = copy.pytest(found[1])[0]
            if fails_again and without(copy, mutant, lambda: copy.pytest(found[1])[0] == 0):
                return {"verdict": "caught", "by": found[1], "how": output[-1000:]}
            self._failing.add(found[1])


def without(copy: Copy, mutant: Mutant, passes: Callable[[], bool]) -> bool:
    """Return whether a test passes without the mutant. It may not: a test may need a quiet machine."""
    copy.put_back(mutant)
    try:
        return passes()
    finally:
        copy.put(mutant)


# ---- The report ------------------------------------------------------------------------------------------------------


def report(chosen: list[Mutant], known: Known, results: Results, goal: float) -> int:
    """Print the table and the survivors. Return the exit code."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for mutant in chosen:
        verdict = verdict_of(mutant, known, results)
        rows[mutant.module][verdict] += 1
        rows["all"][verdict] += 1
        if verdict in (SURVIVED, SURVIVED_HIDDEN, ONLY_SERVER):
            survivors.append((verdict, mutant))
    print(f"\n{'module':24}{'mutants':>9}" + "".join(f"{name:>{max(12, len(name) + 2)}}" for name in COLUMNS))
    for module in [*sorted(rows.keys() - {"all"}), "all"]:
        row = rows[module]
        cells = "".join(f"{row[name] or '·':>{max(12, len(name) + 2)}}" for name in COLUMNS)
        print(f"{module:24}{row.total():>9}{cells}")
    for verdict, mutant in survivors:
        result = results.get(mutant, "contract") or {}
        print(f"\n{verdict}: {mutant.key}\n{mutant.diff()}")
        server = results.get(mutant, "server") or {}
        if server.get("by"):
            print(f"caught by {server['by']}")
        print(f"{result.get('chosen', 0)} of {result.get('reaching', 0)} contract tests that reach it ran")
    row = rows["all"]
    visible = row[CONTRACT] + row[ONLY_SERVER] + row[SURVIVED]
    hidden = row[HIDDEN] + row[SURVIVED_HIDDEN]
    rate = 100 * row[CONTRACT] / visible if visible else 0
    print(
        f"\nof {visible} mutants that a client can see, the contract suite alone catches {row[CONTRACT]}: {rate:.1f} %"
    )
    print(f"of {hidden} others, the tests of this server catch {row[HIDDEN]}")
    return int(rate < goal or bool(row[SURVIVED] or row[SURVIVED_HIDDEN] or row[OPEN]))


CONTRACT, ONLY_SERVER, SURVIVED = "by contract", "only by server", "survived"
HIDDEN, SURVIVED_HIDDEN = "hidden, caught", "hidden, survived"
EQUIVALENT, NO_START, OPEN = "equivalent", "does not start", "not judged"
COLUMNS = (CONTRACT, ONLY_SERVER, SURVIVED, HIDDEN, SURVIVED_HIDDEN, EQUIVALENT, NO_START, OPEN)


def verdict_of(mutant: Mutant, known: Known, results: Results) -> str:
    """Return the column that a mutant belongs to."""
    if known.equivalent(mutant):
        return EQUIVALENT
    is_hidden = known.hidden(mutant) is not None
    contract, server = (results.get(mutant, suite) for suite in ("contract", "server"))
    if contract and contract["verdict"] != "survived":
        return {"caught": HIDDEN if is_hidden else CONTRACT, "does not start": NO_START}[contract["verdict"]]
    if server and server["verdict"] == "caught":
        return HIDDEN if is_hidden else ONLY_SERVER
    if is_hidden:
        return SURVIVED_HIDDEN if server else OPEN
    return SURVIVED if contract else OPEN


if __name__ == "__main__":
    sys.exit(main())
