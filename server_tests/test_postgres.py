"""The store in PostgreSQL, which several servers share. A real PostgreSQL runs on a socket of its own."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
import requests

from contract_tests.target.calls import at_once, eventually, outcome, sha256
from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.process import ServerProcess
from contract_tests.target.target import RAISED_LIMITS
from server.accounts import Account, StorageUnavailable, Version
from server.guessing import Guessing
from server.postgres import database, housekeeping
from server.postgres.store import PostgresStore, hash_key
from server.refused import RefusedUploads
from server_tests import edges, test_accounts
from server_tests.postgres_cluster import Cluster
from server_tests.run_broken import Trial
from server_tests.test_broken_quick import PUT_IN
from server_tests.test_edges import contract

USER = "a" * 64
KILLED = "contract_tests/test_durability.py::test_killed_before_each_write[store a large one]"
GB = 10**9


def opened(url: str, is_new: bool | None = None) -> Any:
    return contextlib.closing(PostgresStore(url, GB, 901, b"a secret of all servers", is_new))


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`start(**settings)` starts one more server on the same database, with the same secrets."""
    with contextlib.ExitStack() as stack:
        settings = {"DATABASE_URL": url, "APP_SECRET_KEY": "k" * 40, "ADMIN_SECRET_KEY": "a" * 40}
        count = iter(range(100))

        def start(**others: Any) -> ServerProcess:
            return stack.enter_context(ServerProcess(tmp_path / f"server{next(count)}", **(settings | others)))

        yield start


# ---- The interface of a store ---------------------------------------------------------------------------------------


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    with opened(url) as store:
        yield store


# Each test of the interface, on this store.
globals().update(
    {
        f"{name}_in_postgres": test
        for name, test in vars(test_accounts).items()
        if name.startswith("test_") and "store" in getattr(test, "__code__", test).co_varnames[:2]
    }
)


# ---- The schema -----------------------------------------------------------------------------------------------------


def test_servers_that_start_at_once_make_one_schema(url):
    stores = at_once([lambda: PostgresStore(url, GB, 901, b"a secret") for _ in range(6)])
    assert sorted(store.is_made for store in stores) == [False] * 5 + [True]
    for store in stores:
        store.close()


def test_a_newer_schema_is_refused(url):
    with opened(url):
        pass
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE store_schema SET version = version + 1")
    with pytest.raises(StorageUnavailable, match="use the newer server"):
        opened(url)


def test_an_older_schema_is_brought_up_to_date(url, monkeypatch):
    with opened(url) as store, store.account(USER) as held:
        held.create(Account(1, "c" * 64))
    step = ("ALTER TABLE account ADD COLUMN more text",)
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, step))
    with opened(url) as store:
        assert store.find(USER) == Account(1, "c" * 64)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT version FROM store_schema").fetchall() == [(len(database.MIGRATIONS),)]


def test_what_an_engine_may_refuse_is_left_out(url, monkeypatch):
    (first, *others) = database.MIGRATIONS
    refused = database.IfPossible("ALTER TABLE backup SET (no_such_setting = 1)")
    monkeypatch.setattr(database, "MIGRATIONS", ((*first[:3], refused, *first[3:]), *others))
    with opened(url) as store, store.account(USER) as held:
        held.create(Account(1, "c" * 64))


def test_a_vacuum_of_versions_comes_early(url):
    """What is deleted or replaced should not wait until it is a fifth of the table."""
    with opened(url), psycopg.connect(url) as connection:
        query = (
            "SELECT reloptions FROM pg_class WHERE oid = (SELECT reltoastrelid FROM pg_class WHERE relname = 'backup')"
        )
        assert connection.execute(query).fetchall() == [(["autovacuum_vacuum_scale_factor=0.05"],)]


def test_a_store_that_has_to_be_there_is_not_made(url):
    with pytest.raises(StorageUnavailable, match="NEW_STORE"):
        opened(url, is_new=False)
    with opened(url, is_new=True) as store:
        assert store.is_made
    with opened(url, is_new=False) as store:
        assert not store.is_made


# ---- The start ------------------------------------------------------------------------------------------------------


def refusal(**settings: str) -> str:
    """Return why a server does not start."""
    usual = {"APP_SECRET_KEY": "k" * 40, "PORT": "0", "PATH": os.environ["PATH"]}
    command = [sys.executable, "backup_server.py"]
    done = subprocess.run(command, cwd=REPOSITORY, env=usual | settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:very-secret@127.0.0.1:1/db",
        "postgresql://me:very-secret@nowhere.invalid/db",
        "host=127.0.0.1 port=1 password=very-secret",
    ],
)
def test_a_database_that_cannot_be_reached(url):
    said = refusal(DATABASE_URL=url)
    assert "DATABASE_URL: the database cannot be reached" in said and "very-secret" not in said


def test_what_is_no_url():
    said = refusal(DATABASE_URL="postgresql//very-secret")
    assert "DATABASE_URL: it is no URL of a database" in said and "very-secret" not in said


def test_a_bucket_is_for_a_file(url):
    bucket = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert "BUCKET_NAME is for a store in a file" in refusal(DATABASE_URL=url, BUCKET_NAME="copies", **bucket)


# ---- Several servers ------------------------------------------------------------------------------------------------


def test_one_of_two_servers_wins(start):
    """Two servers race with one base: exactly one of the uploads is stored."""
    one, other = (start(BACKUPS_PER_HOUR=1000, BACKUPS_PER_DAY=1000) for _ in range(2))
    user = one.client()
    same = other.client(user.credentials)
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(b"0")) == "201"
    latest = sha256(b"0")
    for number in range(20):
        uploads = [b"one %d" % number, b"other %d" % number]
        sent = [partial(client.store_backup, blob, latest) for client, blob in zip((user, same), uploads, strict=True)]
        answers = at_once(sent)
        assert sorted(answers) == ["201", "409 version_conflict"]
        latest = sha256(uploads[answers.index("201")])


def test_registrations_at_once_make_one_account(start):
    servers = [start(REGISTRATIONS_PER_HOUR=1000) for _ in range(3)]
    for _ in range(10):
        user = servers[0].client()
        clients = [server.client(user.credentials) for server in servers]
        assert sorted(at_once([lambda c=c: outcome(c.register_user()) for c in clients])) == ["200", "200", "201"]


def test_limits_are_those_of_all_servers_together(start):
    servers = [start(REGISTRATIONS_PER_HOUR=5) for _ in range(3)]
    clients = [servers[number % 3].client() for number in range(12)]
    answers = at_once([lambda c=c: outcome(c.register_user()) for c in clients])
    assert sorted(answers) == ["201"] * 5 + ["429 rate_limited"] * 7


def test_what_is_counted_is_under_a_key_that_all_servers_know_and_nobody_else():
    """It is made of the URL, with its password, and of the admin key."""
    keys = {hash_key(url, admin_key) for url in ("one", "two") for admin_key in (None, "first", "second")}
    assert len(keys) == 6


def test_what_is_remembered_at_once_is_all_remembered(store):
    """An account's known addresses are one row, and so are the signatures of its refused uploads."""
    guessing = Guessing(30, 50, 2, 30, 32, store.tables("guessing"))
    addresses = [f"192.0.2.{number}" for number in range(8)]
    assert at_once([lambda each=each: guessing.remember(USER, each) for each in addresses]) == [True] * 8
    assert not any(guessing.remember(USER, each) for each in addresses)
    refused = RefusedUploads(300, store.tables("refused"))
    at_once([lambda each=each: refused.add(USER, each) for each in addresses])
    assert all(refused.has(USER, each) for each in addresses)


def test_a_refused_upload_is_refused_by_all(start):
    one, other = start(), start()
    user = one.client()
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(b"1")) == "201"
    kept: list[Any] = []
    user.session.hooks["response"].append(lambda response, **options: kept.append(response.request))
    assert outcome(user.store_backup(b"3", sha256(b"2"))) == "409 version_conflict"
    assert outcome(user.store_backup(b"2", sha256(b"1"))) == "201"
    request = kept[0]
    request.url = request.url.replace(one.base_url, other.base_url)
    assert outcome(user.session.send(request)) == "409 version_conflict"


def test_a_database_that_is_gone_and_comes_back(tmp_path):
    with Cluster() as own, ServerProcess(tmp_path, DATABASE_URL=own.new_database()) as server:
        user = server.client()
        assert outcome(user.register_user()) == "201"
        assert outcome(user.store_backup(b"1")) == "201"
        own.stop("immediate")
        answer = user.store_backup(b"2", sha256(b"1"))
        assert outcome(answer) == "503 unavailable" and int(answer.headers["Retry-After"]) <= 5
        assert eventually(lambda: user.get_health().status_code == 503, 10)
        assert "cannot be reached" in user.get_health().json()["detail"]
        own.start()
        assert eventually(lambda: user.get_health().status_code == 200, 20)
        assert outcome(user.store_backup(b"2", sha256(b"1"))) == "201"
    assert "the database cannot be reached" in (tmp_path / "stdout.log").read_text()


def test_a_server_stops_although_the_database_is_gone(tmp_path):
    with Cluster() as own, ServerProcess(tmp_path, DATABASE_URL=own.new_database()) as server:
        own.stop("immediate")
        assert server.stop() == 0


def test_damage_is_found(url, monkeypatch):
    """A round begins at once if none has ended for half a day, and verifies everything in a week."""
    with opened(url) as store:
        for user_id, data in ((USER, b"1"), ("b" * 64, b"2")):
            with store.account(user_id) as held:
                held.create(Account(1, "c" * 64))
            version = Version(1, 2, 1, sha256(data), 1)
            with store.account(user_id) as held:
                held.append(Account(1, "c" * 64, versions=(version,)), data)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE backup SET data = 'x' WHERE user_id = %s", (USER,))
        connection.execute("UPDATE account SET record = 'x' WHERE user_id = %s", ("b" * 64,))
        connection.execute("UPDATE scrub SET round_ended = 1")
    monkeypatch.setattr(housekeeping, "VERIFIED_EVERY", 1)
    with opened(url) as store:
        assert eventually(lambda: store.degraded() == ["scrub"] and store.stats().damaged == 2, 20)
        assert eventually(lambda: store.stats().round_seconds < 60, 20)
        assert eventually(lambda: not store.housekeeper.is_late)
        assert store.degraded() == ["scrub"]  # because of the damage alone


def test_a_database_that_is_slow(start, url):
    server = start()
    user = server.client()
    assert outcome(user.register_user()) == "201"
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE account, tally, counted IN ACCESS EXCLUSIVE MODE")
        answer = user.fetch_backup()
        assert outcome(answer) == "503 unavailable" and "takes too long" in answer.json()["detail"]
    assert outcome(user.fetch_backup()) == "404 no_backup"


def test_the_metrics_tell_of_the_connections(start):
    server = start(METRICS_PORT=0)
    assert outcome(server.client().register_user()) == "201"
    (serving,) = [line for line in server.log() if line["event"] == "serving"]
    found = dict(
        re.findall(
            r'^backup_server_database_connections\{state="(\w+)"\} ([\d.]+)$',
            requests.get(serving["metrics"], timeout=5).text,
            re.MULTILINE,
        )
    )
    assert found.keys() == {"open", "free", "waited_for"} and float(found["open"]) >= 1


# ---- Broken on purpose ----------------------------------------------------------------------------------------------


def test_each_fault_fits_this_store(url):
    command = [sys.executable, "-c", PUT_IN]
    environ = os.environ | {"DATABASE_URL": url}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_a_change_of_several_transactions_is_caught():
    trial = Trial("change-is-several-transactions", "durability.whole", [KILLED], store="postgres")
    trial.run()
    assert trial.caught_by == KILLED, trial.output


# ---- The contract ---------------------------------------------------------------------------------------------------


def rows(junit: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Return the outcome of each test, and the requirements that it is for."""
    found = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        outcomes = [(child.tag, child.get("message")) for child in case if child.tag in ("failure", "error", "skipped")]
        requirements = [each.get("value") for each in case.iter("property") if each.get("name") == "requirement"]
        found[case.attrib["classname"], case.attrib["name"]] = (outcomes, requirements)
    return found


def test_the_contract_tests_cannot_tell_three_servers_from_a_file(start, tmp_path):
    """All rows of their JUnit files are equal. HAProxy lets three servers on one database take turns."""
    settings = {
        "APP_SECRET_KEY": f"app:{'1' * 40},next:{'2' * 40}",
        "ALLOWED_ORIGINS": "https://app.example",
        "CLIENT_ADDRESS_HEADER": "X-Forwarded-For",
    } | RAISED_LIMITS
    found = []
    for name, servers in (
        ("file", [start(**settings | {"DATABASE_URL": None})]),
        ("database", [start(**settings) for _ in range(3)]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        with edges.running("haproxy", servers[0].base_url, folder, *(each.base_url for each in servers[1:])) as edge:
            done = contract(
                servers[0],
                edge.base_url,
                *("contract_tests", "-n", "2", "--ca-bundle", edge.ca_bundle, f"--junitxml={folder / 'rows.xml'}"),
            )
        assert done.returncode == 0, done.stdout
        counts = [len(server.log()) for server in servers]
        assert min(counts) > 0.5 * max(counts)
        found.append(rows(folder / "rows.xml"))
    file, database = found
    assert len(file) > 1000
    assert {name: row for name, row in database.items() if row != file.get(name)} == {}
    assert file.keys() == database.keys()
