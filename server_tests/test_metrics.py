"""What Prometheus reads: the numbers are right, no label has a secret, and nobody pays for what is switched off."""

import contextlib
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract_tests.target import raw
from contract_tests.target.calls import eventually, outcome
from contract_tests.target.openapi import REPOSITORY
from server.health import PARTS
from server.log import log
from server.metrics import MetricsServer
from server_tests.test_bounds import bounded, descriptors, upload_head

COUNTED = {"requests", "problems", "request_body_bytes", "response_body_bytes", "events", "log_lines_lost"}
STATES = {
    "info",
    "healthy",
    "degraded",
    "connections",
    "waiting_requests",
    "body_bytes",
    "round_seconds",
    "accounts",
    "accounts_with_backup",
    "versions",
    "database_bytes",
    "free_bytes",
    "damaged",
}
OF_A_BUCKET = {"bucket_lag_seconds", "bucket_compared_seconds"}
NO_BUCKET = {  # a bucket that cannot be reached
    "BUCKET_NAME": "copies",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
}


@pytest.fixture
def server(start_server):
    return start_server(METRICS_PORT=0)


def text_of(server):
    (url,) = [line["metrics"] for line in server.log() if line["event"] == "serving"][-1:]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def values_of(server):
    """Return each value by its name and labels, without the prefix."""
    found = {}
    for family in text_string_to_metric_families(text_of(server)):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name.removeprefix('backup_server_')}{{{labels}}}"] = sample.value
    return found


def test_what_is_counted(server):
    user = server.client()
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(b"x" * 3000)) == "201"
    assert outcome(user.fetch_backup()) == "200"
    assert outcome(user.fetch_backup_version(7)) == "404 no_such_version"
    assert outcome(server.client().fetch_backup()) == "401 credentials_invalid"
    assert outcome(raw.send(server, b"nonsense\r\n\r\n")) == "400 malformed_request"
    found = values_of(server)
    assert found["requests_total{method=POST,route=/api/backup,status=201}"] == 1
    assert found["requests_total{method=GET,route=/api/backup,status=200}"] == 1
    assert found["requests_total{method=GET,route=/api/backup/versions/{version},status=404}"] == 1
    assert found["requests_total{method=none,route=none,status=400}"] == 1
    assert found["problems_total{code=credentials_invalid}"] == 1
    assert found["request_seconds_count{method=GET,route=/api/backup}"] == 2
    assert 4000 < found["request_body_bytes_total{}"] < 4200
    assert found["response_body_bytes_total{}"] > 4000
    assert found["events_total{event=request}"] == 6


def test_an_answer_without_a_body_has_no_bytes_of_one(server):
    assert server.client().request("HEAD", "/openapi.yaml").status_code == 200
    assert values_of(server)["response_body_bytes_total{}"] == 0


def test_the_states(server):
    user = server.client()
    assert outcome(user.register_user()) == "201"
    assert eventually(lambda: "accounts{}" in values_of(server))
    assert outcome(user.store_backup(b"x")) == "201"
    found = values_of(server)
    assert found["problems_total{code=internal_error}"] == 0  # not missing: Prometheus has to see an increase
    names = ("healthy", "accounts", "accounts_with_backup", "versions", "damaged")
    assert [found[f"{name}{{}}"] for name in names] == [1, 1, 1, 1, 0]
    assert [found[f"degraded{{part={part}}}"] for part in PARTS] == [0] * len(PARTS)
    assert found["connections{}"] >= 1
    assert found["waiting_requests{lane=large writes}"] == found["body_bytes{place=disk}"] == 0
    assert found["free_bytes{}"] > found["database_bytes{}"] > 0
    assert found["info{version=2.0.0}"] == 1
    assert found["process_resident_memory_bytes{}"] > 1_000_000


def test_every_name_is_in_the_runbook_and_no_label_has_what_a_client_sent(start_server):
    server = start_server(METRICS_PORT=0, **NO_BUCKET)
    user = server.client()
    assert outcome(user.register_user()) == "201"
    user.request("ZEBRA", "/zebra/{zebra}", headers={"X-Zebra": "zebra"})
    text = text_of(server)
    assert "zebra" not in text.lower()
    assert not any(secret in text for secret in user.credentials)
    families = {family.name for family in text_string_to_metric_families(text)}
    ours = {name.removeprefix("backup_server_") for name in families if name.startswith("backup_server_")}
    assert ours == COUNTED | STATES | OF_A_BUCKET | {"request_seconds"}
    runbook = (REPOSITORY / "docs" / "operations.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+)[^|]*\|", runbook, re.MULTILINE)
    assert {name for names in listed for name in re.findall(r"`(\w+)`", names)} == ours
    assert ", ".join(f"`{part}`" for part in PARTS) in runbook


def test_a_copy_that_is_behind(start_server):
    server = start_server(METRICS_PORT=0, **NO_BUCKET)
    assert eventually(lambda: "bucket_lag_seconds{}" in values_of(server))
    before = values_of(server)
    server.move_clock(200)
    assert eventually(lambda: values_of(server)["bucket_lag_seconds{}"] > before["bucket_lag_seconds{}"] + 190)
    found = values_of(server)
    assert found["bucket_compared_seconds{}"] > before["bucket_compared_seconds{}"] + 190
    assert found["degraded{part=copies}"] == 0
    server.move_clock(200)
    assert eventually(lambda: values_of(server)["degraded{part=copies}"] == 1)


def test_a_body_that_arrives(server):
    user = server.client()
    assert outcome(user.register_user()) == "201"
    body = b'{"data": "' + b"A" * 400_000 + b'"}'
    head = upload_head(server, user, body)
    with raw.connected(server) as connection:
        connection.sendall(head + body[:1000])
        assert eventually(lambda: values_of(server)["body_bytes{place=memory}"] == len(body))


def test_whoever_says_nothing_takes_nothing(start_server):
    """A connection that is never used, or that is reset, is neither kept beside the others nor an error."""
    server = start_server(METRICS_PORT=0)
    text_of(server)
    before = len(descriptors(server))
    url = urlsplit(server.log()[0]["metrics"])
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((url.hostname, url.port)))
        assert "backup_server_info" in text_of(server)  # all others were accepted before
        assert len(descriptors(server)) < before + 10  # the store opens some of its own
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(b"GET /met")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at its end
    assert "backup_server_info" in text_of(server)
    server.stop()
    assert server.stderr.read_text() == ""


def test_whoever_says_nothing_does_not_hold_up_a_stop(start_server):
    server = start_server(METRICS_PORT=0, command=bounded(METRICS_SECONDS=600))
    url = urlsplit(server.log()[0]["metrics"])
    with socket.create_connection((url.hostname, url.port)):
        text_of(server)  # the silent connection was accepted before
        server.process.terminate()
        assert server.process.wait(20) == 0


def test_a_fault_of_the_metrics_is_in_the_log(capfd):
    server = MetricsServer("127.0.0.1", 0)
    for error in (ZeroDivisionError("private"), ConnectionResetError()):
        try:
            raise error
        except Exception:
            server.handle_error(None, None)
    server.server_close()
    log.finish(5)
    said = capfd.readouterr().out
    assert said.count('"event": "error"') == said.count("ZeroDivisionError") == 1 and "private" not in said


@pytest.mark.parametrize("sends", [b"", b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\nX-Slow: "])
def test_whoever_is_slow_holds_up_nobody(server, sends):
    """Not even one who sends a byte now and then, which is no silence."""
    url = urlsplit(server.log()[0]["metrics"])
    text_of(server)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((url.hostname, url.port))) for _ in range(10)]
        for _ in range(3):
            for each in slow:
                with contextlib.suppress(OSError):
                    each.sendall(sends)
            began = time.perf_counter()
            assert "backup_server_info" in text_of(server)
            assert time.perf_counter() - began < 1
            sends = b"x"


def test_a_request_that_drips_is_cut_off(start_server):
    """There is a time for all of it, not for each byte."""
    server = start_server(METRICS_PORT=0, command=bounded(METRICS_SECONDS=1))
    url = urlsplit(server.log()[0]["metrics"])
    began = time.monotonic()
    with socket.create_connection((url.hostname, url.port)) as connection, contextlib.suppress(OSError):
        connection.settimeout(0.2)
        while time.monotonic() - began < 10:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    break
    assert time.monotonic() - began < 4


def test_the_public_port_has_no_metrics(server):
    assert outcome(server.client().request("GET", "/metrics")) == "404 not_found"


def test_who_wants_no_metrics_does_not_load_them(start_server):
    server = start_server()
    assert "metrics" not in server.log()[0]
    script = "import backup_server, sys; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_port_that_is_taken(start_server):
    first = start_server()
    port = int(first.base_url.rpartition(":")[2])
    with pytest.raises(RuntimeError, match="METRICS_PORT"):
        start_server(METRICS_PORT=port)
