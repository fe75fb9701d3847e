"""The watch from outside: it finds what is wrong, and restores what it has stored."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clients.python.backup_client import derive_keys, encrypt
from contract_tests.target.calls import eventually, outcome, stats
from contract_tests.target.network import CA_BUNDLE
from contract_tests.target.openapi import REPOSITORY
from monitoring import watch as monitoring_watch
from server_tests.test_edges import NOBODY, tls_in_front_of
from server_tests.test_metrics import NO_BUCKET

PASSWORD = "correct horse battery staple"  # noqa: S105 - a vector's


@pytest.fixture
def server(start_server):
    return start_server()


def watch(server, *options, base_url=None, has_copy=False, **environ):
    settings = {
        "APP_SECRET_KEY": f"{server.keyid}:{server.secret}",
        "ADMIN_SECRET_KEY": server.admin_key,
        "WATCH_PASSWORD": PASSWORD,
    }
    command = [sys.executable, "-m", "monitoring.watch", "--base-url", base_url or server.base_url]
    command += [*map(str, options), *([] if has_copy else ["--no-copy"])]
    environ = {name: value for name, value in (settings | environ).items() if value is not None}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in (server.secret, server.admin_key, PASSWORD))
    lines = dict(line.split(maxsplit=2)[1::-1] for line in done.stdout.splitlines())
    return done.returncode, lines, done.stdout + done.stderr


def test_all_is_well(server):
    """The first run stores, the second restores, and a day later a run stores again."""
    code, _, text = watch(server, "--first")
    assert (code, "version 1 stored" in text) == (0, True)
    code, results, text = watch(server)
    assert (code, "version 1, 0.0 hours old, decrypted" in text, "stored" in text) == (0, True, False)
    assert set(results) == {"health", "clock", "statistics", "restore"}
    code, results, text = watch(server, ADMIN_SECRET_KEY=None)
    assert (code, set(results)) == (0, {"health", "clock", "restore"})
    assert "nobody looks at the statistics" in text


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


def test_a_day_later(server):
    """The backup was stored while the clock was a day behind, so it is a day old."""
    server.move_clock(-86_400)
    TestAccount(server).store()
    server.move_clock(86_400)
    code, _, text = watch(server)
    assert (code, "version 1, 24.0 hours old, decrypted; version 2 stored" in text) == (0, True), text


# ---- An old copy in the place of the store -----------------------------------------------------------------


def replaced_by(server, copy) -> None:
    """Put an old copy in the place of the store."""
    server.stop()
    for file in server.directory.glob("backup.db*"):
        file.unlink()
    server.database.write_bytes(copy)
    server.start()


class TestAccount:
    """The test account, as the watch of other days has left it."""

    __test__ = False

    def __init__(self, server) -> None:
        self._server, self._keys = server, derive_keys("watch", PASSWORD)
        assert outcome(self._client().register_user()) == "201"

    def _client(self):
        return self._server.client((self._keys.user_id, self._keys.storage_key))

    def store(self) -> None:
        """Store what the watch would store, made from the newest version."""
        latest = self._client().fetch_backup()
        number, base = (latest.json()["version"], latest.json()["sha256"]) if latest.status_code == 200 else (0, None)
        blob = encrypt(self._keys, json.dumps({"watch": number + 1}).encode(), sequence=number + 1, base_sha256=base)
        assert outcome(self._client().store_backup(blob, base)) == "201"


def test_an_old_copy_in_the_place_of_the_store(server, tmp_path):
    """The watch knows what it saw last. It does not alarm for ever: the test account gets new versions."""
    state = tmp_path / "state"
    server.move_clock(-48 * 3600)
    account = TestAccount(server)
    account.store()
    server.stop()
    copy = server.database.read_bytes()
    server.start()
    server.move_clock(24 * 3600)
    account.store()
    server.move_clock(24 * 3600)
    assert eventually(lambda: "degraded" not in server.client().get_health().json())  # by `clock`, which was set back
    code, _, text = watch(server, "--state", state)
    assert (code, "version 2, 24.0 hours old, decrypted; version 3 stored" in text) == (0, True), text
    seen = state.read_text()
    replaced_by(server, copy)
    code, results, text = watch(server, "--state", state)
    assert (code, results["restore"], "an old copy" in text, "version 3 was there" in text) == (1, "WRONG", True, True)
    assert "version 2 stored" in text
    account.store()  # now there is another version 3
    code, results, text = watch(server, "--state", state)
    assert (code, results["restore"], "an old copy" in text) == (1, "WRONG", True)
    assert state.read_text() == seen
    account.store()
    assert watch(server, "--state", state)[0] == 0
    assert json.loads(state.read_text())["version"] == 4


def test_an_old_copy_is_noticed_without_a_state(server):
    """The watch stores each day, so the newest version is never much older."""
    server.move_clock(-50 * 3600)
    TestAccount(server).store()
    server.move_clock(50 * 3600)
    code, results, text = watch(server)
    assert (code, results["restore"], "50.0 hours old" in text, "an old copy" in text) == (1, "WRONG", True, True)
    assert watch(server)[0] == 0  # a new version was stored all the same


def test_a_file_that_is_no_state(server, tmp_path):
    state = tmp_path / "state"
    for text in ("", "{}", "[1]", '{"version": "1", "sha256": 2}'):
        state.write_text(text)
        code, results, says = watch(server, "--state", state)
        assert (code, results, "is no state of this watch" in says) == (2, {}, True)
        assert state.read_text() == text
    code, results, says = watch(server, "--state", tmp_path / "nowhere" / "state")
    assert (code, results, "cannot be used" in says) == (2, {}, True)


# ---- The copy off the machine ------------------------------------------------------------------------------


def test_a_copy_that_is_missing_or_behind(start_server):
    server = start_server()
    code, results, text = watch(server, "--first", has_copy=True)
    assert (code, results["copy"], "there is none" in text) == (1, "WRONG", True)
    server = start_server(**NO_BUCKET)
    code, results, text = watch(server, "--first", has_copy=True)
    assert (code, results["copy"]) == (0, "ok") and re.search(r"copy +\d+ s behind", text)
    server.move_clock(301)
    assert eventually(lambda: stats(server)["copyLagSeconds"] > 300)  # the server looks once a second
    code, results, text = watch(server, has_copy=True)
    assert (code, results["copy"], re.search(r"copy +30\d s behind", text) is not None) == (1, "WRONG", True)


# ---- Trust and proxies -------------------------------------------------------------------------------------


def test_one_setting_for_trust_is_enough(server, tmp_path):
    with tls_in_front_of(server, tmp_path) as edge:
        at = {"base_url": edge.base_url}
        assert watch(server, "--first", "--ca-bundle", edge.ca_bundle, **at)[0] == 0
        for variable in CA_BUNDLE:
            code, results, _ = watch(server, **at, **{variable: str(edge.ca_bundle)})
            assert (code, set(results.values())) == (0, {"ok"})
        code, results, text = watch(server, **at)
        assert (code, set(results.values()), "certificate verify failed" in text) == (1, {"WRONG"}, True)
        code, results, text = watch(server, "--ca-bundle", tmp_path / "nothing", **at)
        assert (code, results, "no bundle of certificates" in text) == (2, {}, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_needs_no_proxy(server, host):
    assert watch(server, "--first", base_url=server.base_url.replace("127.0.0.1", host), **NOBODY)[0] == 0


# ---- How it is called --------------------------------------------------------------------------------------


def test_what_it_cannot_do(server):
    for url in ("backup.example", "ftp://backup.example", "https://", server.base_url + "/api"):
        code, results, text = watch(server, base_url=url)
        assert (code, results, "--base-url" in text) == (2, {}, True)
    code, results, text = watch(server, APP_SECRET_KEY="app:,")
    assert (code, results, "APP_SECRET_KEY" in text) == (2, {}, True)


def test_each_option_and_variable_is_in_the_help():
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.watch", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    source = Path(monitoring_watch.__file__).read_text()
    for name in {*re.findall(r'environ(?:\.get\(|\[)"(\w+)"', source), *CA_BUNDLE, "--state", "--no-copy", "--first"}:
        assert name in done.stdout
    assert "exit codes" in done.stdout


def test_the_scheduled_job_of_the_runbook(server, tmp_path):
    """Its command runs, with the secrets that it sets, and it keeps the file that has the state."""
    text = (REPOSITORY / "docs" / "operations.md").read_text().partition("\n## Watch\n")[2].partition("\n## ")[0]
    job = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    (steps,) = [job["jobs"][name]["steps"] for name in job["jobs"]]
    (run,) = [step for step in steps if "tox run -e watch" in step.get("run", "")]
    command = shlex.split(run["run"].splitlines()[-1])
    options = command[command.index("--") + 1 :]
    assert run["env"] == {name: f"${{{{ secrets.{name} }}}}" for name in run["env"]}
    tox = (REPOSITORY / "tox.ini").read_text().partition("[testenv:watch]")[2].partition("[testenv:")[0]
    assert {"APP_SECRET_KEY", "ADMIN_SECRET_KEY", "WATCH_PASSWORD"} == run["env"].keys()
    assert {"APP_SECRET_KEY", "ADMIN_SECRET_KEY", "WATCH_*", *CA_BUNDLE} <= set(tox.split())
    (cache,) = [step for step in steps if step.get("uses", "").startswith("actions/cache@")]
    state = options[options.index("--state") + 1]
    assert cache["with"]["path"] == state
    assert steps.index(cache) < steps.index(run)
    options[options.index("--state") + 1] = str(tmp_path / "state")
    del options[options.index("--base-url") : options.index("--base-url") + 2]
    assert watch(server, "--first", *options)[0] == 0
    assert json.loads((tmp_path / "state").read_text())["version"] == 1


def test_it_needs_its_secrets(server):
    code, results, _ = watch(server, WATCH_PASSWORD=None)
    assert (code, results) == (2, {})
