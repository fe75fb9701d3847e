"""The benchmark: that it measures, and that it says so if it cannot."""

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from bench import report
from bench.box import NoBox, disk_of
from bench.generator import drive, quantile
from bench.process import measured, new_secret, server
from bench.rows import ROWS
from bench.wire import Prepared, Signer, Uploads, User, head, health
from server_tests.postgres_cluster import binaries

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, module: str = "bench", timeout: int = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def test_one_row_from_end_to_end(tmp_path):
    """The table, the JSON file and the picture have the row, its floor and its goal."""
    done = run("--quick", "--only", "health", "--place", "outside", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| health")]
    assert "at least 0.7" in line
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    (row,) = result["rows"]
    assert result["place"] == "outside the box"
    assert row["ratio"] == pytest.approx(row["per_second"] / row["floors"]["empty"]["per_second"])
    assert row["count"] > 0 and row["p99_ms"] >= row["p50_ms"] > 0
    assert row["generator_per_second"] > row["per_second"]
    assert xml.etree.ElementTree.parse(tmp_path / "bench.svg").getroot().tag.endswith("svg")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["bench.json", "bench.svg"]


def test_the_metrics_and_the_probes(tmp_path):
    """Both are measured on both sides, in one run, and nothing else is."""
    options = ("--quick", "--place", "outside", "--directory", str(tmp_path))
    done = run("--only", "metrics", *options)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert (result["rows"], result["accounts"], result["probes"]) == ([], [], [])
    for without, beside, ratio in result["metrics"]["work"].values():
        assert without["per_second"] > 0 < beside["per_second"] and ratio["cpu_ms"] > 0
    assert "| fetch 3 kB " in done.stdout and "| most memory " in done.stdout
    done = run("--only", "probes", *options)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    answers = {each["state"]: json.loads(each["answer"]).get("degraded") for each in result["probes"]}
    assert answers == {"well": None, "a write stalls": None, "a write has failed": ["writes"]}
    assert "| a write stalls " in done.stdout


def test_the_store_in_postgresql(tmp_path):
    """All servers answer, and each way to keep blobs is measured."""
    binaries()
    done = run("--quick", "--directory", str(tmp_path), module="bench.database", timeout=400)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench-postgres.json").read_text())
    assert [each["name"] for each in result["servers"]] == [
        "file, 1 server",
        *(f"PostgreSQL, {count}" for count in ("1 server", "2 servers", "3 servers")),
    ]
    for each in result["servers"]:
        assert not each["wrong"] and min(min(rates) for rates in each["per_second"].values()) > 0
    for each in result["blobs"]:
        in_rows = each["name"].startswith("rows")
        assert in_rows == (min(each["wal"]) > each["blob_bytes"])
        assert each["reclaimed"] < each["stored"]
    assert "| fetch 300 kB: PostgreSQL, 3 servers " in done.stdout and "| rows, EXTERNAL, 300,000 bytes " in done.stdout


def test_a_missing_folder_for_its_files_is_an_error(tmp_path):
    done = run("--quick", "--only", "health", "--directory", str(tmp_path / "a" / "b"))
    assert done.returncode == 2
    assert done.stderr.startswith("bench: ")


def test_no_box_without_a_disk():
    with pytest.raises(NoBox, match="/proc is not on a disk"):
        disk_of(Path("/proc"))


def test_wrong_answers_are_counted(tmp_path):
    """They are no part of the rate."""
    with server(tmp_path, new_secret()) as process:
        wrong = Prepared("nothing", head("GET", "/nothing", {}), b"", (200,))
        result = drive(process.address, [[health(), wrong, health()]], 10)
    assert result.wrong == {"nothing: 404": 1}
    assert result.count == 2


def test_each_account_stores_its_backups_in_turn(tmp_path):
    """The uploads that are signed ahead are accepted, however often their bytes return."""
    secret = new_secret()
    signer, users, uploads = Signer(secret), [User.new() for _ in range(2)], Uploads.of(1000)
    with server(tmp_path, secret) as process:
        plan = [*(signer.register(user) for user in users), *signer.stores(users, uploads)]
        result = drive(process.address, [plan], 30)
    assert not result.wrong
    assert len(result.latencies["store"]) == 32


def test_the_load_generator_repeats_after_a_503():
    """The peer says 503 once and then 200."""
    code = (
        "import socket; from bench.peers import serving; l = socket.create_server(('127.0.0.1', 0));"
        "serving(l.getsockname()); c, _ = l.accept(); c.recv(9999);"
        "c.sendall(b'HTTP/1.1 503 x\\r\\nRetry-After: 1\\r\\nContent-Length: 0\\r\\n\\r\\n'); c.recv(9999);"
        "c.sendall(b'HTTP/1.1 200 x\\r\\nContent-Length: 0\\r\\n\\r\\n'); c.recv(1)"
    )
    with measured([sys.executable, "-c", code], {}) as peer:
        result = drive(peer.address, [[health()]], 10)
    assert (result.delayed, result.count, dict(result.wrong)) == (1, 1, {})
    assert result.quantile(0.5) >= 1


@pytest.mark.parametrize(("part", "expected"), [(0.0, 1), (0.5, 3), (0.99, 4), (1.0, 4)])
def test_quantile(part, expected):
    assert quantile([4, 2, 1, 3], part) == expected


def test_the_table_is_aligned():
    lines = report.table(("", "a number"), [("one", "1"), ("eleven", "11")]).splitlines()
    assert lines == [
        "|        | a number |",
        "| ------ | -------: |",
        "| one    |        1 |",
        "| eleven |       11 |",
    ]


def test_the_rows_differ():
    assert len({row.name for row in ROWS}) == len(ROWS)
