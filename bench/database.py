"""Measure the store in PostgreSQL: `tox run -e bench-postgres`.

Starts a real PostgreSQL from a package, which waits for its disk, and measures beside each other, in one run:

- the server on a file, and one, two and three servers on one PostgreSQL behind HAProxy (`--only servers`),
- the bytes of versions in rows, and in a bucket with rows as the commit (`--only blobs`).

All of it shares the CPUs of this machine, so the ratios are worth more than the numbers.

exit codes: 0 measured, 1 a server gave a wrong answer, 2 it could not be measured
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg
import pytest

from bench import blobs, report
from bench.__main__ import machine
from bench.generator import drive
from bench.measure import Bench, Say
from bench.process import ROOT, Address, Measured, measured, new_secret, server
from bench.rows import ROWS, Plans
from server_tests.postgres_cluster import Cluster

WANTED = ("register", "store 3 kB", "store 300 kB", "fetch 3 kB", "fetch 300 kB")
SERVERS = (1, 2, 3)
ROUNDS = {True: 1, False: 7}
SECONDS = {True: 0.7, False: 1.0}  # for each row and turn
CONFIG = """
global
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend outside
    bind 127.0.0.1:{port}
    default_backend inside
backend inside
    balance roundrobin
    {servers}
"""
# It announces what HAProxy does not, and ends it when it is told to end.
ANNOUNCE = """
import signal, socket, subprocess, sys, time
process = subprocess.Popen([sys.argv[1], "-db", "-f", sys.argv[2]])
signal.signal(signal.SIGTERM, lambda *_: process.terminate())
while process.poll() is None:
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[3])), 1).close()
        print('{"event": "serving", "url": "http://127.0.0.1:%s"}' % sys.argv[3], flush=True)
        break
    except OSError:
        time.sleep(0.05)
sys.exit(process.wait())
"""


@dataclass
class Setting:
    """A store, and how many servers it has. `per_second` has what each turn of each row has shown."""

    name: str
    per_second: dict[str, list[float]] = field(default_factory=dict)
    p50_ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)  # of the servers, for each request
    wrong: dict[str, int] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.database", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take about a minute instead of some")
    parser.add_argument("--only", choices=("servers", "blobs"), help="measure nothing else")
    parser.add_argument("--directory", type=Path, default=ROOT / "data", help="the folder for files (%(default)s)")
    parser.add_argument("--json", type=Path, help="the file for the figures (DIRECTORY/bench-postgres.json)")
    arguments = parser.parse_args()
    try:
        arguments.directory.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="bench-") as folder:
            return run(arguments, Path(folder))
    except (RuntimeError, TimeoutError, OSError, psycopg.Error, pytest.skip.Exception) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace, folder: Path) -> int:
    busy, started = os.getloadavg()[0], time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    print(f"When it begins, the load of the machine is {busy:.1f}: on a quiet one it is near 0.", flush=True)
    costs, settings = [], []
    if arguments.only != "servers":
        with blobs.s3_server(folder, say) as s3:
            costs = blobs.measure(folder, arguments.quick, say, s3)
        print("\n" + blobs.blobs_table(costs))
        print("".join(f"\n{each.name}, {each.blob_bytes:,} bytes: {'; '.join(each.found)}" for each in costs))
        sys.stdout.flush()
    if arguments.only != "blobs":
        settings = measure_servers(folder, arguments.quick, say)
        print("\n" + servers_table(settings))
    json_file = arguments.json or arguments.directory / "bench-postgres.json"
    figures = {"load": busy, "blobs": [asdict(each) for each in costs], "servers": [asdict(each) for each in settings]}
    json_file.write_text(json.dumps(machine() | figures, indent=1) + "\n")
    print(f"\nThe figures are in {json_file}.")
    wrong = [f"{each.name}: {each.wrong}" for each in settings if each.wrong]
    print("".join(f"\nWrong answers, so the figures mean nothing: {each}" for each in wrong), end="")
    return 1 if wrong else 0


def measure_servers(folder: Path, is_quick: bool, say: Say) -> list[Setting]:
    """Measure each row with each number of servers. All wait while one is measured, and they take turns."""
    settings = [Setting("file, 1 server"), *(Setting(f"PostgreSQL, {n} server{'s' * (n > 1)}") for n in SERVERS)]
    seconds = SECONDS[is_quick]
    with Cluster(max_connections="150", max_wal_size="4GB") as cluster, contextlib.ExitStack() as stack:
        benches = []
        for number, setting in zip((0, *SERVERS), settings, strict=True):
            here, secret = folder / str(number), new_secret()
            here.mkdir()
            say(f"{setting.name}: starts")
            entry, processes = stack.enter_context(running(number, here, secret, cluster))
            benches.append((setting, Bench(entry, secret), processes))
        for row in (row for row in ROWS if row.name in WANTED):
            for turn in range(ROUNDS[is_quick]):
                say(f"{row.name}, turn {turn + 1} of {ROUNDS[is_quick]}")
                prepared = [row.plans(row, bench, int(min(row.fastest, 800) * seconds)) for _, bench, _ in benches]
                for (setting, bench, processes), plans in zip(benches, prepared, strict=True):
                    measure(row.name, setting, bench, processes, plans, seconds)
    return settings


def measure(name: str, setting: Setting, bench: Bench, processes: list[Measured], plans: Plans, seconds: float) -> None:
    """Send what was prepared, and note what comes of it."""
    cpu = sum(process.cpu_seconds() for process in processes)
    result = drive(bench.process.address, plans, seconds)
    cpu = sum(process.cpu_seconds() for process in processes) - cpu
    setting.per_second.setdefault(name, []).append(result.per_second)
    setting.p50_ms.setdefault(name, []).append(1000 * result.quantile(0.5))
    setting.cpu_ms.setdefault(name, []).append(1000 * cpu / max(1, result.count))
    setting.wrong |= dict(result.wrong)


@contextlib.contextmanager
def running(number: int, folder: Path, secret: str, cluster: Cluster) -> Iterator[tuple[Measured, list[Measured]]]:
    """Start a server on a file, or so many on a database. All are behind HAProxy. Yield HAProxy and the servers."""
    settings = {"DATABASE_URL": cluster.new_database(), "ADMIN_SECRET_KEY": new_secret()} if number else {}
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(max(1, number)):
            processes.append(stack.enter_context(server(folder, secret, settings=settings)))
        entry = stack.enter_context(haproxy(folder, [each.address for each in processes]))
        yield entry, processes


@contextlib.contextmanager
def haproxy(folder: Path, servers: list[Address]) -> Iterator[Measured]:
    """Let servers take turns behind HAProxy."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if not program:
        raise RuntimeError("needs haproxy (Debian: apt-get install haproxy)")
    from server_tests.edges import free_port

    port, file = free_port(), folder / "haproxy"
    lines = (f"server server{i} {host}:{number}" for i, (host, number) in enumerate(servers))
    file.write_text(CONFIG.format(port=port, servers="\n    ".join(lines)))
    with measured([sys.executable, "-c", ANNOUNCE, program, str(file), str(port)], {}) as process:
        try:
            yield process
        finally:
            process.stop()


def servers_table(settings: list[Setting]) -> str:
    """Return the table: the medians of each row's turns, and of its part of the file's rate in the same turn."""
    (file, *_), lines = settings, []
    for each in settings:
        for row, rates in each.per_second.items():
            ratios = [rate / beside for rate, beside in zip(rates, file.per_second[row], strict=True)]
            lines.append(
                (
                    f"{row}: {each.name}",
                    *(report.number(statistics.median(values)) for values in (rates, each.p50_ms[row])),
                    report.number(statistics.median(each.cpu_ms[row])),
                    f"{statistics.median(ratios):.2f}",
                )
            )
    lines.sort(key=lambda line: WANTED.index(line[0].partition(":")[0]))
    return report.table(("", "per second", "p50 ms", "CPU ms", "file = 1"), lines)


if __name__ == "__main__":
    sys.exit(main())
