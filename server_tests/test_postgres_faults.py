"""The store in PostgreSQL, while the database hangs, breaks, or is the wrong one. A real PostgreSQL breaks."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import at_once, eventually, outcome, sha256
from contract_tests.target.process import ServerProcess
from server.accounts import Account, StorageUnavailable
from server.postgres.database import Conflict, Database
from server.postgres.store import PostgresStore
from server_tests.postgres_cluster import Cluster
from worst_day import distributed

USER = "a" * 64
WITHIN = 12  # seconds, for a request while something is broken


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(fsync="off") as cluster:
        yield cluster


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, DATABASE_URL=cluster.url()) as server:
        yield server


def configure(cluster: Cluster, setting: str) -> None:
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = local")
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET {setting}".encode())
        connection.execute("SELECT pg_reload_conf()")


def with_backup(server: ServerProcess) -> Any:
    """Return a user with the backup b"1"."""
    user = server.client()
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(b"1")) == "201"
    return user


def refused_soon(user: Any) -> None:
    began = time.monotonic()
    answer = user.store_backup(b"2", sha256(b"1"))
    assert outcome(answer) == "503 unavailable" and "Retry-After" in answer.headers
    assert time.monotonic() - began < WITHIN


def test_a_database_that_hangs(cluster, server):
    user = with_backup(server)
    postmaster = int((cluster.data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for process in (postmaster, *map(int, children)):
        os.kill(process, signal.SIGSTOP)
    try:
        refused_soon(user)
    finally:
        for process in (postmaster, *map(int, children)):
            os.kill(process, signal.SIGCONT)
    assert eventually(lambda: outcome(user.store_backup(b"2", sha256(b"1"))) in ("200", "201"), 20)


def test_a_commit_that_waits_for_a_replica_that_is_gone(cluster, server):
    user = with_backup(server)
    configure(cluster, "synchronous_standby_names = 'gone'")
    refused_soon(user)
    configure(cluster, "synchronous_standby_names = ''")
    assert eventually(lambda: outcome(user.store_backup(b"2", sha256(b"1"))) in ("200", "201"), 20)


def test_a_commit_that_somebody_has_ended_while_it_waited_for_a_replica(cluster, server):
    """PostgreSQL says that it has succeeded, and warns that the replica may not have it."""
    user = with_backup(server)
    configure(cluster, "synchronous_standby_names = 'gone'")

    def end() -> None:
        """End each such wait: the housekeeper's, too."""
        for _ in range(20):
            with psycopg.connect(cluster.url(), autocommit=True) as connection:
                connection.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            time.sleep(0.1)

    answers = at_once([lambda: outcome(user.store_backup(b"2", sha256(b"1"))), end])
    assert answers == ["503 unavailable", None]


def test_a_database_that_has_become_read_only(cluster, server, tmp_path):
    user = with_backup(server)
    configure(cluster, "default_transaction_read_only = on")
    assert eventually(lambda: outcome(user.store_backup(b"2", sha256(b"1"))) == "503 unavailable", 5)
    configure(cluster, "default_transaction_read_only = off")
    assert outcome(user.store_backup(b"2", sha256(b"1"))) == "201"
    assert "refuses a statement" not in (tmp_path / "stdout.log").read_text()


def test_broken_connections_are_replaced_before_a_client_hears_of_it(cluster, server):
    user = with_backup(server)
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        connection.execute(f"{ended} AND application_name LIKE 'dailyreps%'")
    assert outcome(user.store_backup(b"2", sha256(b"1"))) == "201"


def test_a_transaction_that_the_database_has_ended_can_be_repeated(cluster):
    store = PostgresStore(cluster.url(), 10**9, 901, b"a secret")
    with store.account(USER) as held:
        held.create(Account(1, "c" * 64))
    with pytest.raises(Conflict), store.account(USER) as held:
        with psycopg.connect(f"{cluster.url()}", autocommit=True) as connection:
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            connection.execute(ended)
        held.delete(1)
    assert isinstance(store.find(USER), Account)
    store.close()


@pytest.mark.parametrize("error", [errors.StatementCompletionUnknown(), psycopg.OperationalError()])
def test_a_commit_whose_outcome_is_not_known_is_not_repeated(cluster, error):
    database = Database(cluster.url())
    with pytest.raises(StorageUnavailable) as raised, database.translated(is_ended=True):
        raise error
    assert not isinstance(raised.value, Conflict)
    database.close()


def test_the_worst_day_in_small():
    """The whole: `python -m worst_day.distributed`."""
    if what := distributed.lacking():
        not_run(what)
    faults = (distributed.kill_server, distributed.kill_database, distributed.fail_over)
    outcome = distributed.live_through(faults, 200, 1, 300, 6, seed=1, say=lambda _: None)
    assert outcome.faults.total() == 3 and outcome.ledger.acknowledged.total() >= 200
    assert not outcome.ledger.lost and not outcome.record.wrong


def test_a_day_that_fails_ends():
    """The database stays away, and those who write do not insist for ever."""
    if what := distributed.lacking():
        not_run(what)

    def fails(world: distributed.World, chance: random.Random) -> list[distributed.Server]:
        world.primary.kill()
        raise subprocess.CalledProcessError(1, "pg_ctl")

    with pytest.raises(subprocess.CalledProcessError):
        distributed.live_through((fails,), 200, 1, 300, 2, seed=1, say=lambda _: None)
