"""Measure the server: `tox run -e bench`.

Starts the server as it is deployed, in a box as small as the machine on Fly if cgroups of version 1 can be made here,
and otherwise outside it. Prints one table, and writes one JSON file and one picture.

Each row stands beside its floors, measured in the same run: one thread that puts the same bytes into a dbm.sqlite3 file
or gets them ("file"), an app that does nothing under the same waitress ("empty app"), and the load generator against a
server that only counts bytes ("generator"). If the load generator's figure is near the server's, believe neither.

Beside the rows, it measures files with many accounts, what the metrics cost (`--only metrics`), and what /health takes
in several states of the server (`--only probes`).

exit codes: 0 measured, 1 the server gave a wrong answer, 2 it could not be measured
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import accounts, box, report, watching
from bench.measure import Figures, Place, measure_rows, values
from bench.process import ROOT

QUICK_SECONDS, WHOLE_SECONDS = 1.5, 8.0  # for each row
MOST_SECONDS = {True: 240, False: 1500}  # a run that takes longer fails


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take about a minute instead of some")
    parser.add_argument("--place", choices=("box", "outside", "both"), help="where the server runs")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only the rows whose name contains this; or metrics, or probes"
    )
    parser.add_argument("--directory", type=Path, default=ROOT / "data", help="the folder for files (%(default)s)")
    parser.add_argument("--json", type=Path, help="the file for the figures (DIRECTORY/bench.json)")
    parser.add_argument("--picture", type=Path, help="the file for the picture (DIRECTORY/bench.svg)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(MOST_SECONDS[arguments.quick])
    try:
        arguments.directory.mkdir(exist_ok=True)
        return run(arguments)
    except (box.NoBox, RuntimeError, TimeoutError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def out_of_time(*_: Any) -> None:
    raise TimeoutError("it took too long: this machine is too slow or too busy for the figures to mean anything")


def run(arguments: argparse.Namespace) -> int:
    results, wrong = [], False
    for name, made in places(arguments.place, arguments.directory):
        with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="bench-") as folder:
            result = measure_place(name, Place(Path(folder), made), arguments)
        results.append(result)
        wrong = wrong or any(each["wrong"] for each in result["rows"])
    json_file = arguments.json or arguments.directory / "bench.json"
    json_file.write_text(json.dumps(machine() | {"results": results}, indent=1) + "\n")
    print(f"\nThe figures are in {json_file}.")
    return 1 if wrong else 0


def places(wanted: str | None, directory: Path) -> Iterator[tuple[str, box.Box | None]]:
    """Yield where to measure. Without a wish, that is the box, or outside it if there is none: then say why."""
    if wanted != "outside":
        try:
            with box.box(directory) as made:
                yield f"in the box ({box.WHAT_IT_IS})", made
        except box.NoBox as error:
            if wanted:
                raise
            yield f"outside the box ({error})", None
    if wanted in ("outside", "both"):
        yield "outside the box", None


def measure_place(name: str, place: Place, arguments: argparse.Namespace) -> dict[str, Any]:
    seconds = QUICK_SECONDS if arguments.quick else WHOLE_SECONDS
    busy, started = os.getloadavg()[0], time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    say(f"measures {name}")
    figures: list[Figures] = list(measure_rows(place, seconds, say, lambda row: arguments.only in row))
    filled = []
    if not arguments.only:
        sizes = accounts.QUICK if arguments.quick else accounts.WHOLE
        filled = [accounts.measure(size, place, seconds / 4, say, cold=not arguments.quick) for size in sizes]
    cost, probes = None, []
    if arguments.only in ("", "metrics"):
        rounds = watching.QUICK_ROUNDS if arguments.quick else watching.ROUNDS
        cost = watching.measure_metrics(place, seconds / 4, say, rounds)
    if arguments.only in ("", "probes"):
        probes = list(watching.measure_probes(place, seconds / 2, say))
    print(f"\n{name[0].upper()}{name[1:]}, {platform.python_version()}, {os.cpu_count()} CPUs.")
    print(f"When it began, the load of the machine was {busy:.1f}: on a quiet one it is near 0.\n")
    if figures:
        print(report.rows_table(figures))
    if filled:
        print("\n" + report.accounts_table(filled))
        print("\nGoals: a start in under 600 ms, and each p50 at most 1.2 of that with 100 accounts.")
    if cost:
        print("\n" + report.metrics_table(cost))
        print(f"\nA scrape each second, beside this work: {report.number(cost.scrape_ms)} ms (median).")
    if probes:
        print("\n" + report.probes_table(probes))
        print("".join(f"\n{each.state}: {each.answer}" for each in probes))
    for each in figures:
        if each.wrong:
            print(f"\nWrong answers, so the figures mean nothing: {each.name}: {each.wrong}")
    if figures:
        picture = arguments.picture or arguments.directory / "bench.svg"
        picture.write_text(report.picture(f"Part of the floor, {name.partition(' (')[0]}", figures))
        print(f"\nThe picture is {picture}.", flush=True)
    with contextlib.suppress(AttributeError):
        sys.stdout.flush()
    watched = {"metrics": asdict(cost) if cost else None, "probes": [asdict(each) for each in probes]}
    return {
        "place": name,
        "load": busy,
        "rows": values(figures),
        "accounts": [asdict(each) for each in filled],
    } | watched


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


if __name__ == "__main__":
    sys.exit(main())
