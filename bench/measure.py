"""Measures the rows, their floors and the load generator itself, and the server with many accounts."""

import contextlib
import gc
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import rows
from bench.box import Box
from bench.generator import Result, drive
from bench.process import ROOT, Measured, measured, new_secret, server
from bench.rows import MIXED_DAY, Plans, Row
from bench.wire import Prepared, Signer, Uploads, User

SETUP_SECONDS = 300  # how long it may take to register users or store their backups
Say = Callable[[str], None]  # shows progress


@dataclass
class Floor:
    """How much something simpler does with the same bytes: requests a second, and its p50 in milliseconds."""

    per_second: float
    p50_ms: float


@dataclass
class Figures:
    """What was measured of a row. Times are in milliseconds, memory in bytes."""

    name: str
    connections: int
    count: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the server, for each request
    peak_bytes: int
    generator_per_second: float  # what the load generator could do
    floors: dict[str, Floor] = field(default_factory=dict)  # by "file" and "empty"
    ratio: float | None = None
    goal: float | None = None
    goal_is: str = ""
    wrong: dict[str, int] = field(default_factory=dict)


class Bench:
    """A server that is being measured, and the users that it has."""

    def __init__(self, process: Measured, secret: str) -> None:
        self.process = process
        self.signer = Signer(secret)
        self._fresh: list[User] = []
        self._uploads: dict[int, Uploads] = {}
        self._with_backup: dict[int, list[User]] = {}

    def fresh(self, count: int) -> list[User]:
        missing = [User.new() for _ in range(count - len(self._fresh))]
        self._send([self.signer.register(user) for user in missing])
        self._fresh += missing
        taken, self._fresh = self._fresh[:count], self._fresh[count:]
        return taken

    def uploads(self, size: int) -> Uploads:
        if size not in self._uploads:
            self._uploads[size] = Uploads.of(size)
        return self._uploads[size]

    def with_backup(self, size: int, count: int) -> list[User]:
        users = self._with_backup.setdefault(size, [])
        more = self.fresh(max(0, count - len(users)))
        self._send([self.signer.store(user, self.uploads(size), 0) for user in more])
        users += more
        return users[:count]

    def _send(self, requests: list[Prepared]) -> None:
        """Send what has to be there before a row is measured."""
        result = drive(self.process.address, [requests[i::8] for i in range(8)], SETUP_SECONDS)
        if result.wrong or result.count < len(requests):
            raise RuntimeError(f"the users could not be made: {dict(result.wrong)}")


@dataclass(frozen=True)
class Place:
    """Where the measured processes run: in the box or outside it, with their files in `directory`."""

    directory: Path
    box: Box | None

    def peer(self, *arguments: str, in_box: bool = True) -> contextlib.AbstractContextManager[Measured]:
        """Start something to compare with."""
        return measured([sys.executable, "-m", "bench.peers", *arguments], {}, self.box if in_box else None)

    def file(self, what: str, size: int, count: int, seconds: float) -> Result:
        """Put or get the bytes of `count` requests with one thread, within `seconds`."""
        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            path = str(Path(folder) / "floor.db")
            if what == "get":
                self._file("put", path, size, 16, SETUP_SECONDS)
            return self._file(what, path, size, count, seconds)

    def _file(self, what: str, path: str, size: int, count: int, seconds: float) -> Result:
        command = [sys.executable, "-m", "bench.peers", what, path, str(size), str(count), str(seconds)]
        done = subprocess.run(
            self.box.command(command) if self.box else command, cwd=ROOT, capture_output=True, text=True, check=True
        )
        value = json.loads(done.stdout)
        return Result(value["seconds"], {what: value["latencies"]})


def floor(result: Result) -> Floor:
    return Floor(result.per_second, result.quantile(0.5) * 1000)


def measure_rows(place: Place, seconds: float, say: Say, wanted: Callable[[str], bool]) -> Iterator[Figures]:
    """Measure each wanted row for `seconds`, on one server."""
    secret = new_secret()
    done: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(dir=place.directory) as folder, server(Path(folder), secret, place.box) as process:
        bench = Bench(process, secret)
        for row in rows.ROWS:
            if wanted(row.name):
                done[row.name] = measure_row(row, bench, place, seconds, say)
                if row.name == "mixed day":
                    add_floor_of_mixed_day(done)
                yield done[row.name]


def measure_row(row: Row, bench: Bench, place: Place, seconds: float, say: Say) -> Figures:
    say(f"{row.name}: prepares its requests")
    plans = row.plans(row, bench, int(row.fastest * seconds))
    sample = next(iter(plans[0]))
    gc.collect()
    say(f"{row.name}: sends them for {seconds:g} s, {row.connections} at a time")
    bench.process.forget_peak()
    cpu = bench.process.cpu_seconds()
    result = drive(bench.process.address, plans, seconds)
    cpu = bench.process.cpu_seconds() - cpu
    peak = bench.process.peak_memory()
    del plans
    say(f"{row.name}: {result.per_second:,.0f} a second; now its floors")
    figures = Figures(
        name=row.name,
        connections=row.connections,
        count=result.count,
        per_second=result.per_second,
        p50_ms=result.quantile(0.5) * 1000,
        p99_ms=result.quantile(0.99) * 1000,
        cpu_ms=cpu / result.count * 1000 if result.count else 0.0,
        peak_bytes=peak,
        generator_per_second=ceiling(sample, result.answer_bytes, row.connections, place),
        wrong=dict(result.wrong),
    )
    if row.file:
        figures.floors["file"] = floor(place.file(row.file, row.size, max(result.count, 16), seconds))
    # An app that does nothing has the same bytes to receive and to send.
    with place.peer("empty", str(result.answer_bytes)) as peer:
        repeated: Plans = [itertools.repeat(sample._replace(right=(200,)))] * row.connections
        figures.floors["empty"] = floor(drive(peer.address, repeated, min(seconds, 3)))
    judge(row, figures, place.box is not None)
    return figures


def ceiling(sample: Prepared, answer_bytes: int, connections: int, place: Place) -> float:
    """Return how many such requests a second the load generator sends to a server that only counts bytes."""
    request_bytes = len(sample.head) + len(sample.body)
    with place.peer("trivial", str(request_bytes), str(answer_bytes), in_box=False) as peer:
        plans: Plans = [itertools.repeat(sample._replace(right=(200,)))] * connections
        return drive(peer.address, plans, 0.5).per_second


def judge(row: Row, figures: Figures, in_box: bool) -> None:
    """Compare a row with its floor, and note its goal."""
    if not row.goal:
        return
    beside = figures.floors[row.goal.beside]
    if row.goal.what == "p50":
        figures.ratio = figures.p50_ms / beside.p50_ms if beside.p50_ms else None
    else:
        figures.ratio = figures.per_second / beside.per_second if beside.per_second else None
    figures.goal = row.goal.inside if in_box else row.goal.outside
    figures.goal_is = row.goal.text.format(figures.goal)


def add_floor_of_mixed_day(done: dict[str, Figures]) -> None:
    """Compute the floor of the mixed day from those of its parts: their times add up."""
    beside = {"304": "empty", "store 300 kB": "file", "fetch 300 kB": "empty"}
    if MIXED_DAY.keys() <= done.keys():
        time = sum(share / done[name].floors[beside[name]].per_second for name, share in MIXED_DAY.items())
        done["mixed day"].floors = {"parts": Floor(1 / time, 0.0)}
        done["mixed day"].ratio = done["mixed day"].per_second * time


def values(figures: list[Figures]) -> list[dict[str, Any]]:
    """Return figures as JSON values."""
    return [asdict(each) for each in figures]
