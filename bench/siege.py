"""Attack the server in every way that is known: `tox run -e siege`.

For each attack, starts a server as it is deployed, in a box as small as the machine on Fly if cgroups of version 1 can
be made here. An honest client at another address lives beside the attack, and every request of it has to succeed.
A check asks /health all the time, which has to answer within a second. The server has to stay alive, keep below 128 MB,
and stop when it is told to. Prints one table, and writes one JSON file and a picture of the memory.

exit codes: 0 the server held, 1 it fell, 2 the siege could not be laid
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import box, report
from bench.attacks import ATTACKS, Attack, Seen, Size, Target
from bench.generator import quantile
from bench.honest import CHECK_SECONDS, Life, Phone, check_health
from bench.process import ROOT, Measured, every, new_secret, server

MOST_MEMORY = 128_000_000
MOST_HEALTH_SECONDS = 1.0
MOST_LINES_A_SECOND = 20  # of the log, besides those of requests
SAMPLE_SECONDS = 0.1
PATIENCE = 30  # seconds, as the reference client
MOST_SECONDS = 570  # after that, no attack begins
GRACE_SECONDS = 10  # how much longer than its time a process may take
FORK = multiprocessing.get_context("fork")


class NotRun(Exception):
    """An attack cannot be run here. The message says why."""


@dataclass
class Outcome:
    """What an attack did. Times are in seconds, memory in bytes. `fell` says what is wrong; if it is empty, it held."""

    name: str
    what: str
    size: Size
    fell: list[str] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)  # by the attacker
    honest: Life = field(default_factory=Life)
    health: Life = field(default_factory=Life)
    idle_memory: int = 0
    peak_memory: int = 0
    memory: list[int] = field(default_factory=list)  # a sample every SAMPLE_SECONDS
    log_lines: int = 0
    other_lines: Counter[str] = field(default_factory=Counter)
    stop_seconds: float = 0.0
    not_run: str = ""


def lay(
    attack: Attack,
    size: Size,
    directory: Path,
    made: box.Box | None = None,
    patience: float = PATIENCE,
    most_health_seconds: float = MOST_HEALTH_SECONDS,
    command: Sequence[str] = (),
) -> Outcome:
    """Run one attack of this size, in the box if there is one.

    The honest client waits `patience` seconds for an answer. `command` starts another server in place of this one.

    Raise NotRun if something that the attack needs cannot be had here.
    """
    outcome, secret = Outcome(attack.name, attack.what, size), new_secret()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        settings = {}
        if attack.tmp_bytes:
            settings["TMPDIR"] = str(stack.enter_context(small_file_system(folder, attack.tmp_bytes)))
        process = stack.enter_context(
            server(
                *(folder, secret, made),
                settings=settings,
                command=command,
                reads_log=attack.reads_log,
                limits=attack.limits,
            )
        )
        killed_before = made.killed() if made else 0
        phone = Phone(process.address, secret, attack.blob_bytes, patience)
        phone.begin()
        outcome.idle_memory = process.memory()
        sample = every(SAMPLE_SECONDS, lambda: outcome.memory.append(process.memory()))
        target = Target(process.address, secret, folder / "backup.db", size.count, size.seconds)
        over = FORK.Event()
        honest = beside(lambda: phone.live(attack.operations, over), Life())
        health = beside(lambda: check_health(process.address, over), Life())
        attacker = beside(lambda: attack.run(target), Seen())
        outcome.seen = attacker(size.seconds + patience + GRACE_SECONDS)
        over.set()
        outcome.honest, outcome.health = honest(patience + GRACE_SECONDS), health(CHECK_SECONDS + GRACE_SECONDS)
        with contextlib.suppress(OSError):
            outcome.peak_memory = process.peak_memory()
        sample()
        outcome.peak_memory = max(outcome.peak_memory, *outcome.memory, 0)
        killed = made.killed() - killed_before if made else 0
        judge(outcome, attack, process, killed, most_health_seconds)
    return outcome


def beside(action: Callable[[], Any], otherwise: Any) -> Callable[[float], Any]:
    """Run `action` in a process of its own. Return a function that waits for its result, so many seconds at most."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run() -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            sender.send(action())
        except Exception:
            traceback.print_exc()

    process = FORK.Process(target=run, daemon=True)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        process.start()  # it warns of locks that a thread may hold; the child touches none of them
    sender.close()

    def result(seconds: float) -> Any:
        try:
            return receiver.recv() if receiver.poll(seconds) else otherwise
        except EOFError:
            return otherwise
        finally:
            process.kill()
            process.join()

    return result


@contextlib.contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system in memory that has `size` bytes. Raise NotRun if that is not allowed."""
    path = folder / "tmp"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mount.returncode:
        raise NotRun("a file system cannot be mounted")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def judge(outcome: Outcome, attack: Attack, process: Measured, killed: int, most_health_seconds: float) -> None:
    """Write down everything that is wrong after an attack, and stop the server."""
    fell, honest, health = outcome.fell, outcome.honest, outcome.health
    if not process.running():
        fell.append("killed for memory" if killed else f"the server ended with {process.exit_code()}")
    if honest.failures or not honest.count:
        fell.append(f"honest client: {honest.failures.total()} of {honest.count} failed {words(honest.failures)}")
    if health.failures or not health.count:
        fell.append(f"/health: {health.failures.total()} of {health.count} failed {words(health.failures)}")
    elif max(health.latencies) > most_health_seconds:
        fell.append(f"/health took {max(health.latencies):.1f} s")
    if outcome.peak_memory > MOST_MEMORY:
        fell.append(f"{outcome.peak_memory // 1_000_000} MB of memory")
    growth = outcome.peak_memory - outcome.idle_memory
    if attack.most_growth is not None and growth > attack.most_growth:
        fell.append(f"{growth // 1_000_000} MB more memory than when idle")
    outcome.log_lines, outcome.other_lines = process.log_lines, process.other_lines
    if (others := outcome.other_lines.total()) > MOST_LINES_A_SECOND * outcome.size.seconds:
        fell.append(f"{others} log lines that are not about requests")
    if process.running():
        outcome.stop_seconds = process.stop(2 * attack.most_stop_seconds)
        if process.exit_code() != 0 or outcome.stop_seconds > attack.most_stop_seconds:
            fell.append(f"the stop took {outcome.stop_seconds:.1f} s and ended with {process.exit_code()}")


def verdict(outcome: Outcome) -> str:
    return f"not run: {outcome.not_run}" if outcome.not_run else "; ".join(outcome.fell) or "held"


def words(counts: Counter[str]) -> str:
    """Return counts as text."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common(5))


# ---- The command -------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.siege", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="only the attacks whose name contains this")
    parser.add_argument("--times", type=float, default=1, help="how many times as long each attack lasts (%(default)s)")
    parser.add_argument("--scaled", action="store_true", help="the small form, as in the tests")
    parser.add_argument("--outside", action="store_true", help="outside the box even if it can be made")
    parser.add_argument("--directory", type=Path, default=ROOT / "data", help="the folder for files (%(default)s)")
    arguments = parser.parse_args()
    try:
        arguments.directory.mkdir(exist_ok=True)
        return run(arguments)
    except (RuntimeError, OSError) as error:
        print(f"siege: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    busy, started, outcomes = os.getloadavg()[0], time.monotonic(), []

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        made, where = None, "outside the box"
        if not arguments.outside:
            try:
                made = stack.enter_context(box.box(arguments.directory))
                where = f"in the box ({box.WHAT_IT_IS})"
            except box.NoBox as error:
                where = f"outside the box, which is *not run*: {error}"
        say(where)
        for attack in ATTACKS:
            if arguments.only in attack.name:
                size = attack.scaled if arguments.scaled else attack.whole
                if not size:
                    continue
                size = Size(size.count, size.seconds * arguments.times)
                say(f"{attack.name}: {attack.what}, {size.count}, for {size.seconds:g} s")
                try:
                    if time.monotonic() - started + size.seconds > MOST_SECONDS * arguments.times:
                        raise NotRun("the time was over")
                    outcome = lay(attack, size, arguments.directory, made)
                    say(f"{attack.name}: {'; '.join(outcome.fell) or 'held'}")
                    outcomes.append(outcome)
                except NotRun as error:
                    outcomes.append(Outcome(attack.name, attack.what, size, not_run=str(error)))
    print(f"\nThe siege, {where}. When it began, the load of the machine was {busy:.1f}.\n")
    print(outcomes_table(outcomes))
    for outcome in outcomes:
        seen = f"the attacker saw {words(outcome.seen)}" if outcome.seen else "the attacker saw nothing"
        print(f"\n{outcome.name}: {verdict(outcome)}")
        print(f"  {seen}; other log lines: {words(outcome.other_lines) or 'none'}")
    (arguments.directory / "siege.json").write_text(json.dumps([values(each) for each in outcomes], indent=1) + "\n")
    curves = {outcome.name: outcome.memory for outcome in outcomes if outcome.memory}
    title = "Memory of the server (RSS) under each attack; dashed: 128 MB"
    (arguments.directory / "siege.svg").write_text(report.curves(title, curves, MOST_MEMORY, box.MEMORY_BYTES))
    print(f"\nThe figures are in {arguments.directory}/siege.json, the memory is in siege.svg.")
    return 1 if any(outcome.fell for outcome in outcomes) else 0


def outcomes_table(outcomes: list[Outcome]) -> str:
    """Return the table of the siege."""

    def times(life: Life) -> list[str]:
        return [report.number(1000 * quantile(life.latencies, part)) for part in (0.5, 0.99, 1.0)]

    return report.table(
        (
            *("", "result", "honest requests", "failed", "delayed", "p50 ms", "p99 ms", "max ms"),
            *("/health failed", "p50 ms", "p99 ms", "max ms", "idle MB", "peak MB", "log lines", "stop s"),
        ),
        [
            (
                outcome.name,
                "not run" if outcome.not_run else "fell" if outcome.fell else "held",
                str(outcome.honest.count),
                str(outcome.honest.failures.total()),
                str(outcome.honest.delayed),
                *times(outcome.honest),
                f"{outcome.health.failures.total()} of {outcome.health.count}",
                *times(outcome.health),
                report.number(outcome.idle_memory / 1e6),
                report.number(outcome.peak_memory / 1e6),
                str(outcome.log_lines),
                f"{outcome.stop_seconds:.1f}",
            )
            for outcome in outcomes
        ],
    )


def values(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a JSON value."""
    value = vars(outcome) | {"size": vars(outcome.size)}
    return value | {"honest": vars(outcome.honest), "health": vars(outcome.health)}


if __name__ == "__main__":
    sys.exit(main())
