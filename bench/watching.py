"""What it costs to be watched: the metrics, and whoever asks for /health.

Both sides of each comparison are measured by turns, in one run, so that what else the machine does meets both.
"""

import contextlib
import itertools
import sqlite3
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.generator import Result, drive
from bench.measure import Bench, Place, Say
from bench.process import Measured, every, new_secret, server
from bench.rows import ROWS
from bench.wire import Uploads, health

ROUNDS, QUICK_ROUNDS = 7, 2
SCRAPE_SECONDS = 1.0  # Fly's Prometheus asks every 15 seconds
WORK = ("health", "fetch 3 kB", "store 3 kB")  # the names of rows
LOCKED_SECONDS = 4.0  # SQLite waits 5 seconds for another's lock


@dataclass
class Side:
    """What one of two servers did: requests a second, and CPU milliseconds for each. Or how two compare."""

    per_second: float
    cpu_ms: float


@dataclass
class MetricsCost:
    """What was measured without METRICS_PORT, and with it. Memory is in bytes."""

    work: dict[str, tuple[Side, Side, Side]] = field(default_factory=dict)  # medians; the last has those of the ratios
    start_bytes: tuple[int, int] = (0, 0)  # when nothing was asked yet
    peak_bytes: tuple[int, int] = (0, 0)
    scrape_ms: float = 0.0  # the median time of a scrape, beside the work


@dataclass
class ProbeCost:
    """What /health took in one state of the server, in milliseconds."""

    state: str
    answer: str  # what it said
    count: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the server, for each, with all that it does beside


def measure_metrics(place: Place, seconds: float, say: Say, rounds: int) -> MetricsCost:
    """Send the same requests to a server without metrics and to one with them. Each turn takes `seconds`."""
    cost, scrapes = MetricsCost(), list[float]()
    with contextlib.ExitStack() as stack:
        sides = []
        for settings in ({}, {"METRICS_PORT": "0"}):
            folder, secret = stack.enter_context(tempfile.TemporaryDirectory(dir=place.directory)), new_secret()
            process = stack.enter_context(server(Path(folder), secret, place.box, settings=settings))
            sides.append(Bench(process, secret))
        time.sleep(1)
        cost.start_bytes = (sides[0].process.memory(), sides[1].process.memory())
        url = sides[1].process.serving["metrics"]
        stack.callback(every(SCRAPE_SECONDS, lambda: scrapes.append(scrape(url))))
        for row in (row for row in ROWS if row.name in WORK):
            say(f"metrics: {row.name}, {rounds} times without and with them")
            found: tuple[list[Side], list[Side]] = ([], [])
            for number in range(rounds):
                for side in (0, 1) if number % 2 else (1, 0):
                    bench = sides[side]
                    plans = row.plans(row, bench, int(row.fastest * seconds))
                    cpu = bench.process.cpu_seconds()
                    result = right(drive(bench.process.address, plans, seconds))
                    cpu = bench.process.cpu_seconds() - cpu
                    found[side].append(Side(result.per_second, cpu / result.count * 1000))
            ratios = [
                Side(beside.per_second / without.per_second, beside.cpu_ms / without.cpu_ms)
                for without, beside in zip(*found, strict=True)
            ]
            cost.work[row.name] = (median(found[0]), median(found[1]), median(ratios))
        cost.peak_bytes = (sides[0].process.peak_memory(), sides[1].process.peak_memory())
        cost.scrape_ms = statistics.median(scrapes) * 1000
    return cost


def median(sides: list[Side]) -> Side:
    return Side(statistics.median(each.per_second for each in sides), statistics.median(each.cpu_ms for each in sides))


def scrape(url: str) -> float:
    """Ask for the metrics. Return the seconds that it took."""
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - a server started here
        answer.read()
    return time.perf_counter() - began


def right(result: Result) -> Result:
    """Return a result without wrong answers."""
    if result.wrong or not result.count:
        raise RuntimeError(f"wrong answers: {dict(result.wrong)}")
    return result


def measure_probes(place: Place, seconds: float, say: Say) -> Iterator[ProbeCost]:
    """Ask for /health, one after the other, while the server is well, while a write stalls, and after it has failed."""
    secret = new_secret()
    with tempfile.TemporaryDirectory(dir=place.directory) as folder, server(Path(folder), secret, place.box) as process:
        bench = Bench(process, secret)
        (user,) = bench.fresh(1)
        yield probes("well", process, seconds, say)
        store = bench.signer.store(user, Uploads.of(300_000), 0)._replace(right=(503,))
        with contextlib.closing(sqlite3.connect(Path(folder) / "backup.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            upload = threading.Thread(target=drive, args=(process.address, [[store]], 1, 20))
            upload.start()
            yield probes("a write stalls", process, min(seconds, LOCKED_SECONDS), say)
            upload.join()
            connection.execute("ROLLBACK")
        yield probes("a write has failed", process, seconds, say)


def probes(state: str, process: Measured, seconds: float, say: Say) -> ProbeCost:
    say(f"probes: {state}")
    cpu = process.cpu_seconds()
    result = right(drive(process.address, [itertools.repeat(health())], seconds))
    cpu = process.cpu_seconds() - cpu
    host, port = process.address
    with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=10) as answer:  # noqa: S310
        text = answer.read().decode()
    return ProbeCost(
        state, text, result.count, result.quantile(0.5) * 1000, result.quantile(0.99) * 1000, cpu / result.count * 1000
    )
