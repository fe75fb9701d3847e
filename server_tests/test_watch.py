"""The watch from outside: it finds what is wrong, and restores what it has stored."""

import subprocess
import sys

import pytest

from clients.python.backup_client import derive_keys, encrypt
from contract_tests.target.calls import outcome
from contract_tests.target.openapi import REPOSITORY

PASSWORD = "correct horse battery staple"  # noqa: S105 - a vector's


@pytest.fixture
def server(start_server):
    return start_server()


def watch(server, *options, **environ):
    settings = {
        "APP_SECRET_KEY": f"{server.keyid}:{server.secret}",
        "ADMIN_SECRET_KEY": server.admin_key,
        "WATCH_PASSWORD": PASSWORD,
    }
    command = [sys.executable, "-m", "monitoring.watch", "--base-url", server.base_url, *options]
    environ = {name: value for name, value in (settings | environ).items() if value is not None}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in (server.secret, server.admin_key, PASSWORD))
    return done.returncode, dict(line.split(maxsplit=2)[1::-1] for line in done.stdout.splitlines()), done.stdout


def test_all_is_well(server):
    """The first run stores, the second restores, and a day later a run stores again."""
    code, _, text = watch(server, "--first")
    assert (code, "version 1 stored" in text) == (0, True)
    code, results, text = watch(server)
    assert (code, "version 1, 0.0 hours old, decrypted" in text, "stored" in text) == (0, True, False)
    assert set(results) == {"health", "clock", "statistics", "restore"}
    assert watch(server, ADMIN_SECRET_KEY=None)[0] == 0


@pytest.mark.parametrize(
    ("environ", "wrong"),
    [
        ({"APP_SECRET_KEY": "x" * 32}, {"clock", "restore"}),
        ({"ADMIN_SECRET_KEY": "x" * 32}, {"statistics"}),
        ({"WATCH_PASSWORD": "another password"}, {"restore"}),
    ],
)
def test_a_wrong_secret_is_told(server, environ, wrong):
    assert watch(server, "--first")[0] == 0
    code, results, _ = watch(server, **environ)
    assert (code, {name for name, result in results.items() if result == "WRONG"}) == (1, wrong)


def test_an_account_or_a_backup_that_is_gone_is_told(server):
    """The watch does not mend what it is there to find: a store that is another one, or has lost something."""
    code, results, text = watch(server)
    assert (code, results["restore"], "does not know the test account" in text) == (1, "WRONG", True)
    keys = derive_keys("watch", PASSWORD)
    assert outcome(server.client((keys.user_id, keys.storage_key)).register_user()) == "201"
    code, results, text = watch(server)
    assert (code, results["restore"], "has no backup any more" in text) == (1, "WRONG", True)
    assert watch(server, "--first")[0] == 0
    assert watch(server)[0] == 0


def test_a_server_that_is_degraded_or_gone(server):
    assert watch(server, "--first")[0] == 0
    server.restart(fault="full_from_the_start")
    code, _, text = watch(server)
    assert (code, "degraded: writes" in text) == (1, True)
    server.stop()
    code, results, _ = watch(server)
    assert (code, set(results.values())) == (1, {"WRONG"})


def test_a_clock_that_is_off(server):
    server.move_clock(90)
    code, results, _ = watch(server)
    assert (code, results["clock"]) == (1, "WRONG")


def test_a_day_later(start_server):
    """The backup was stored while the clock was a day behind, so it is a day old."""
    server = start_server()
    server.move_clock(-86_400)
    keys = derive_keys("watch", PASSWORD)
    client = server.client((keys.user_id, keys.storage_key))
    assert outcome(client.register_user()) == "201"
    assert outcome(client.store_backup(encrypt(keys, b'{"watch": 1}', sequence=1))) == "201"
    server.move_clock(86_400)
    code, _, text = watch(server)
    assert (code, "version 1, 24.0 hours old, decrypted; version 2 stored" in text) == (0, True), text


def test_it_needs_its_secrets(server):
    code, results, _ = watch(server, WATCH_PASSWORD=None)
    assert (code, results) == (2, {})
