"""Make small faults in the server, one at a time, and see whether the tests find them: `tox run -e mutate`.

Each fault (a mutant) is first tried with the contract tests that are quick, reach its line, and are likely to catch it.
The first one that fails ends it; it has to fail again, and to pass without the mutant. Few survive. They are tried
with all other contract tests that reach them, many mutants at a time: if a test fails, halves tell with which. What
still survives, and what no client can see, is tried with the tests of this server. Then a table is printed, and each
mutant that survived. Mutants that are no faults, and places that no client can see, are in mutation/known.toml.

Which mutants are judged is random, by a seed; --mutants N judges the first N of this order. What was found is kept in a
folder: Ctrl-C ends the run, and the next run goes on. Before the first run, which test reaches which line is recorded.

exit codes: 0 the tests catch enough, 1 they do not, 2 there is nothing to judge with, 130 interrupted
"""

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import queue
import re
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import IO, Any

from mutation.copy_under_test import Broken, Copy
from mutation.line_map import MODULES
from mutation.mutants import ROOT, Mutant, mutants
from mutation.reached import EVERY_START

KNOWN = Path(__file__).with_name("known.toml")
SCREEN, CONTRACT, SERVER = SUITES = "screening", "contract tests", "server tests"  # in this order
QUICK, QUICK_OWN = 0.2, 2  # seconds; contract tests and own ones that take longer run after those that do not
MOST_SHOWN = 20  # tests that reach a survivor are kept
AGAIN = 2  # how often a test that has failed runs again, until it fails again: a failure that comes once is none


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=300, metavar="N", help="judge so many mutants (300)")
    parser.add_argument("--seed", type=int, default=17, help="the order of the mutants (17)")
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants are judged at a time (2)")
    parser.add_argument("--store", choices=["file", "postgres"], default="file", help="what the server is on (file)")
    parser.add_argument("--only", default="*", metavar="KEY", help="only mutants whose key is like this; * is any text")
    parser.add_argument("--of", choices=["visible", "hidden", "all"], default="all", help="which places (all)")
    parser.add_argument(
        "--again", action="store_true", help="judge those again that survived; new tests may catch them"
    )
    parser.add_argument(
        "--together", type=int, default=20, metavar="N", help="try so many likely survivors at once (20)"
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
    known = Known(KNOWN, arguments.store)
    chosen = sample(arguments, known)
    if arguments.list:
        for mutant in chosen:
            print(mutant.key)
        return 0
    arguments.state = arguments.state / ("" if arguments.store == "file" else arguments.store)
    arguments.state.mkdir(exist_ok=True, parents=True)
    results = Results(arguments.state / "results.jsonl")
    if not arguments.report:
        try:
            with lock(arguments.state):
                judge_all(chosen, known, results, arguments)
        except Broken as error:
            print(f"mutation: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    return report(chosen, known, results, arguments.goal)


def lock(folder: Path) -> IO[str]:
    """Return a file that is locked until it is closed, so that one run has the folder. Raise Broken."""
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Broken(f"another run uses {folder}: wait until it has ended, or name another --state") from None
    return file


def sample(arguments: argparse.Namespace, known: "Known") -> list[Mutant]:
    """Return the mutants to judge, in their random order."""
    found = [mutant for mutant in known.mutants(arguments.store) if fnmatchcase(mutant.key, arguments.only)]
    if arguments.of != "all":
        found = [mutant for mutant in found if bool(known.hidden(mutant)) == (arguments.of == "hidden")]
    return sorted(found, key=lambda mutant: mutant.rank(arguments.seed))[: arguments.mutants]


# ---- What is known ---------------------------------------------------------------------------------------------------


class Known:
    """The entries of known.toml."""

    def __init__(self, file: Path, store: str = "file") -> None:
        known = tomllib.loads(file.read_text())
        self._stores: dict[str, dict[str, str]] = known.pop("stores")
        self._entries: dict[str, list[dict[str, str]]] = {
            kind: [entry for entry in entries if entry.get("store", store) == store] for kind, entries in known.items()
        }

    def hidden(self, mutant: Mutant) -> str | None:
        """Return why no client can see a mutant, or None if one can."""
        return self._reason("hidden", mutant)

    def equivalent(self, mutant: Mutant) -> str | None:
        """Return why a mutant is no fault, or None if it is one."""
        return self._reason("equivalent", mutant)

    def mutants(self, store: str) -> list[Mutant]:
        """Return the mutants that are judged with servers on this store.

        With PostgreSQL, what no client can see is judged only of the modules that a server on a file does not have.
        """
        without = self._stores[store]["without"].split()
        found = [
            mutant
            for module in MODULES
            for mutant in mutants(module)
            if not any(fnmatchcase(f"{module}:{mutant.function}", pattern) for pattern in without)
        ]
        if store == "file":
            return found
        of_a_file = {mutant.module for mutant in self.mutants("file")}
        return [mutant for mutant in found if mutant.module not in of_a_file or not self.hidden(mutant)]

    def server_tests(self, store: str) -> list[str]:
        """Return the files of this server's own tests, for this store."""
        return [f"server_tests/test_{name}.py" for name in self._stores[store]["server_tests"].split()]

    def entries(self) -> list[dict[str, str]]:
        return [entry for kind in ("hidden", "equivalent") for entry in self._entries.get(kind, [])]

    def matches(self, entry: dict[str, str], mutant: Mutant) -> bool:
        parts = {name: text for name, text in entry.items() if name not in ("reason", "function", "store")}
        function = entry.get("function", "*")
        is_same = all(getattr(mutant, name) == text for name, text in parts.items())
        return is_same and fnmatchcase(mutant.function, function)

    def _reason(self, kind: str, mutant: Mutant) -> str | None:
        found = (entry["reason"] for entry in self._entries.get(kind, []) if self.matches(entry, mutant))
        return next(found, None)


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
        result = {"mutant": mutant.key, "suite": suite, "at": round(time.time()), **what}
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
        self.lines: dict[str, dict[str, set[int]]] = {}
        self.seconds: dict[str, float] = {}
        digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in MODULES)).hexdigest()
        self._folder = folder / digest[:16]  # in another state of the server, the lines are others
        self._folder.mkdir(parents=True, exist_ok=True)
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


def record(reached: Reached, copy: Copy, tests: Iterable[str], whose: str) -> None:
    """Run tests with the healthy server, and write down which lines they reach.

    Raise Broken if they do not run, or if a contract test fails.
    """
    with tempfile.NamedTemporaryFile("w") as names:
        names.write("\n".join(tests))
        names.flush()
        print(f"recording which lines the {whose} reach, in {reached.folder}", file=sys.stderr, flush=True)
        arguments = ["-p", "mutation.reached", "-p", "xdist", "-n", "2", f"@{names.name}"]
        environ = copy.of_contract | {"MUTATION_EVERY_START": "yes"} if whose == CONTRACT else {}
        code, output = copy.pytest(*arguments, seconds=3600, MUTATION_LINES=str(reached.folder), **environ)
    for rest in reached.folder.glob("*.map"):
        rest.unlink()
    if code not in (0, 1) or (code and whose == CONTRACT):
        raise Broken(f"the {whose} fail with the healthy server:\n{output[-5000:]}")
    print("\n".join(re.findall("^(?:FAILED|ERROR) .*", output, re.MULTILINE)), file=sys.stderr, flush=True)
    reached.read()


# ---- Judging ---------------------------------------------------------------------------------------------------------


def judge_all(chosen: list[Mutant], known: Known, results: Results, arguments: argparse.Namespace) -> None:
    """Judge the mutants that were not judged yet, and keep the results."""
    faults = [mutant for mutant in chosen if not known.equivalent(mutant)]
    visible = [mutant for mutant in faults if not known.hidden(mutant)]
    begun = time.time()

    def is_open(mutant: Mutant, suite: str) -> bool:
        """Return whether a mutant has survived the suites before this one, but is not judged by it yet."""
        before = [results.get(mutant, each) for each in SUITES[: SUITES.index(suite)]]
        if any(result and result["verdict"] != "survived" for result in before):
            return False
        result = results.get(mutant, suite)
        return result is None or (arguments.again and result["at"] < begun and result["verdict"] == "survived")

    with ExitStack() as stack:
        copies = [stack.enter_context(Copy(arguments.store)) for _ in range(arguments.jobs)]
        reached, tests = Reached(arguments.state / "reached"), []
        if any(is_open(mutant, SCREEN) or is_open(mutant, CONTRACT) for mutant in visible):
            tests = [copy.load() for copy in copies][0]
            if unknown := [test for test in tests if test not in reached.lines]:
                record(reached, copies[0], unknown, CONTRACT)
        judge = Judge(results, reached, tests)
        left = [mutant for mutant in visible if is_open(mutant, SCREEN)]
        work(copies, [[mutant] for mutant in left], judge.screen, "mutants are screened")
        left = [mutant for mutant in visible if is_open(mutant, CONTRACT)]
        work(copies, groups(left, arguments.together), judge.together, "groups of those that are left")
        left = [] if arguments.contract_alone else [mutant for mutant in faults if is_open(mutant, SERVER)]
        if left:
            judge.own = copies[0].collect(known.server_tests(arguments.store))
            if unknown := [test for test in judge.own if test not in reached.lines]:
                record(reached, copies[0], unknown, SERVER)
            work(copies, [[mutant] for mutant in left], judge.by_server, "mutants are left to the server's own tests")


def work(copies: list[Copy], tasks: list[list[Mutant]], do: Callable[[Copy, list[Mutant]], None], what: str) -> None:
    """Do something with each task, one at a time for each copy."""
    print(f"{len(tasks)} {what}", file=sys.stderr, flush=True)
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)
    started = time.monotonic()

    def run(task: list[Mutant]) -> None:
        copy = free.get()
        try:
            do(copy, task)
        finally:
            copy.put([])
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        try:
            for count, future in enumerate(as_completed(pool.submit(run, task) for task in tasks), 1):
                future.result()
                left = (time.monotonic() - started) / count * (len(tasks) - count)
                print(f"{count}/{len(tasks)}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
        except BaseException:  # the threads end when their tests have ended
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
            raise


def groups(mutants: list[Mutant], most: int) -> list[list[Mutant]]:
    """Return groups of at most so many mutants, no two of the same line."""
    found: list[list[Mutant]] = []
    for mutant in mutants:
        place = (mutant.module, mutant.number)
        for group in found:
            if len(group) < most and place not in [(each.module, each.number) for each in group]:
                group.append(mutant)
                break
        else:
            found.append([mutant])
    return found


class Judge:
    """Judges mutants."""

    def __init__(self, results: Results, reached: Reached, tests: list[str]) -> None:
        """Take the names of the contract tests."""
        self._results, self._reached = results, reached
        self.own: list[str] = []  # this server's own tests
        self._failing: set[str] = set()  # those that fail here with the healthy server, too
        self._position = {test: position for position, test in enumerate(tests)}
        functions: set[str] = set()
        self._firsts: set[str] = set()  # the quick tests that are the first of their functions
        for test in tests:
            function = test.partition("[")[0]
            if function not in functions and reached.seconds[test] <= QUICK:
                self._firsts.add(test)
            functions.add(function)

    def screen(self, copy: Copy, mutants: list[Mutant]) -> None:
        """Run the quick tests that are likely to catch a mutant. Most do not survive this."""
        (mutant,) = mutants
        tests = self._screening(mutant)
        copy.put([mutant])
        while tests and (failure := copy.run(tests, self._longest)):
            if "the server did not start" in failure.how and not copy.starts():
                self._found(mutant, SCREEN, verdict="does not start")
                return
            if self._is_sure(copy, failure.test, [mutant]):
                self._found(mutant, SCREEN, verdict="caught", by=failure.test, how=failure.how[-1000:])
                return
            copy.put([mutant])
            tests = tests[tests.index(failure.test) + 1 :]
        self._found(mutant, SCREEN, verdict="survived")

    def together(self, copy: Copy, mutants: list[Mutant]) -> None:
        """Run the other tests with several mutants at once, which are likely to survive. If one fails, find out why."""
        reaching = {mutant: set(self._reached.tests(mutant)) - set(self._screening(mutant)) for mutant in mutants}
        tests = sorted(set().union(*reaching.values()) & self._position.keys(), key=self._slowness)
        copy.put(mutants)
        while mutants and tests and (failure := copy.run(tests, self._longest)):
            caught = []
            if self._is_sure(copy, failure.test, mutants):
                caught = self._culprits(copy, failure.test, mutants)
            print(f"{failure.test} fails with {len(caught)} of {len(mutants)} mutants", file=sys.stderr, flush=True)
            for mutant in caught:
                self._found(mutant, CONTRACT, verdict="caught", by=failure.test, how=failure.how[-1000:])
            mutants = [mutant for mutant in mutants if mutant not in caught]
            copy.put(mutants)
            tests = tests[tests.index(failure.test) + 1 :]
        for mutant in mutants:
            self._found(mutant, CONTRACT, verdict="survived", reaching=sorted(self._reached.tests(mutant))[:MOST_SHOWN])

    def _is_sure(self, copy: Copy, test: str, mutants: list[Mutant]) -> bool:
        """Return whether a test that failed fails again, and passes without the mutants: it may be by chance."""
        return self._fails(copy, test, mutants) and not self._fails(copy, test, [])

    def _culprits(self, copy: Copy, test: str, mutants: list[Mutant]) -> list[Mutant]:
        """Return those of these mutants with which a test fails. It fails with all of them together."""
        if len(mutants) == 1:
            return mutants
        halves = mutants[::2], mutants[1::2]
        return [each for half in halves if self._fails(copy, test, half) for each in self._culprits(copy, test, half)]

    def _fails(self, copy: Copy, test: str, mutants: list[Mutant]) -> bool:
        copy.put(mutants)
        return any(copy.run([test], self._longest) for _ in range(AGAIN if mutants else 1))

    def by_server(self, copy: Copy, mutants: list[Mutant]) -> None:
        """Run the tests of this server that reach a mutant until one fails that does so again, but not without it."""
        (mutant,) = mutants
        # What a fixture of a module reaches is written down for the first test that needs it, and is for all of them.
        functions = {test.partition("[")[0] for test in self._reached.tests(mutant)}
        reaching = [test for test in self.own if test.partition("[")[0] in functions and test not in self._failing]
        near, files = self._near(mutant), defaultdict[str, float](float)
        for test in reaching:
            files[file_of(test)] += self._reached.seconds[test]
        slow = {test for test in reaching if self._reached.seconds[test] > QUICK_OWN}
        tests = sorted(reaching, key=lambda test: (-near[test], test in slow, files[file_of(test)], file_of(test)))
        copy.put([mutant])
        while tests:
            longest = 60 + 3 * sum(self._reached.seconds[test] for test in tests)
            test, how = copy.first_failure(tests, longest)
            if not test:
                break
            is_sure = copy.fails(test)
            copy.put([])
            if is_sure and copy.fails(test):
                self._failing.add(test)
            elif is_sure:
                self._found(mutant, SERVER, verdict="caught", by=test, how=how)
                return
            copy.put([mutant])
            tests = tests[tests.index(test) + 1 :] if test in tests else [each for each in tests if test not in each]
        self._found(mutant, SERVER, verdict="survived", reaching=sorted(reaching)[:MOST_SHOWN])

    def _found(self, mutant: Mutant, suite: str, **what: Any) -> None:
        self._results.add(mutant, suite, **what)
        by = f" by {what['by']}" if what.get("by") else ""
        print(f"{suite}: {what['verdict']}{by}: {mutant.key}", flush=True)

    def _longest(self, test: str) -> float:
        """Return how many seconds a test may take on a busy machine. A mutant may make it wait for ever."""
        return 60 + 10 * self._reached.seconds.get(test, 60)

    def _slowness(self, test: str) -> tuple[bool, int]:
        return self._reached.seconds[test] > QUICK, self._position[test]

    def _screening(self, mutant: Mutant) -> list[str]:
        """Return the tests that reach a mutant and have caught others near it, and one of each function of tests."""
        near = self._near(mutant)
        tests = [
            test
            for test in self._reached.tests(mutant)
            if test in self._firsts or (near[test] and test in self._position)
        ]
        return sorted(tests, key=lambda test: (-near[test], self._slowness(test)))

    def _near(self, mutant: Mutant) -> Counter[str]:
        """Return how near to this mutant those are that each test has caught."""
        near: Counter[str] = Counter()
        for test, keys in self._results.catchers().items():
            for key in keys:
                module, function, *_ = key.split(" | ")
                near[test] += (module == mutant.module) * (1 + 100 * (function == mutant.function))
        return near


def file_of(test: str) -> str:
    return test.partition("::")[0]


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
        print(f"\n{verdict}: {mutant.key}\n{mutant.diff()}")
        for result in filter(None, (results.get(mutant, suite) for suite in (CONTRACT, SERVER))):
            if result["verdict"] == "caught":
                print(f"caught by {result['by']}")
            else:
                print(f"reached by {', '.join(result['reaching'][:5])} …")
    row = rows["all"]
    visible = row[BY_CONTRACT] + row[ONLY_SERVER] + row[SURVIVED]
    hidden = row[HIDDEN] + row[SURVIVED_HIDDEN]
    rate = 100 * row[BY_CONTRACT] / visible if visible else 100
    print(f"\nof {visible} mutants that a client can see, the contract tests catch {row[BY_CONTRACT]} ({rate:.1f} %)")
    print(f"of {hidden} others, the tests of this server catch {row[HIDDEN]}")
    return int(rate < goal or bool(row[SURVIVED] or row[SURVIVED_HIDDEN] or row[OPEN]))


BY_CONTRACT, ONLY_SERVER, SURVIVED = "by contract", "only by server", "survived"
HIDDEN, SURVIVED_HIDDEN = "hidden, caught", "hidden, survived"
EQUIVALENT, NO_START, OPEN = "equivalent", "does not start", "not judged"
COLUMNS = (BY_CONTRACT, ONLY_SERVER, SURVIVED, HIDDEN, SURVIVED_HIDDEN, EQUIVALENT, NO_START, OPEN)


def verdict_of(mutant: Mutant, known: Known, results: Results) -> str:
    """Return the column that a mutant belongs to."""
    if known.equivalent(mutant):
        return EQUIVALENT
    is_hidden = known.hidden(mutant) is not None
    for suite in SUITES:
        result = results.get(mutant, suite)
        if result and result["verdict"] == "does not start":
            return NO_START
        if result and result["verdict"] == "caught":
            return HIDDEN if is_hidden else ONLY_SERVER if suite == SERVER else BY_CONTRACT
    if is_hidden:
        return SURVIVED_HIDDEN if results.get(mutant, SERVER) else OPEN
    return SURVIVED if results.get(mutant, CONTRACT) else OPEN


if __name__ == "__main__":
    sys.exit(main())
