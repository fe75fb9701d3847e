"""`maintenance.py migrate`, and the other commands on a database: a real PostgreSQL and real servers."""

import contextlib
import errno
import functools
import json
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest

from contract_tests.target.calls import eventually, outcome
from contract_tests.target.process import ServerProcess
from server import bounds, clock, file_side, migration, operator, records
from server.accounts import Account, Damaged, Deleted, Record, StorageUnavailable, Upload, Version
from server.dbm_store import DbmStore
from server.inspection import Unusable
from server.migration import Changed, Impossible, Lapsed
from server.postgres import side
from server.postgres.store import PostgresStore
from server_tests.test_maintenance import MANY, TOOL, digest, environment

SECRETS = {"APP_SECRET_KEY": "k" * 40, "ADMIN_SECRET_KEY": "a" * 40}
Contents = dict[str, tuple[Record, list[bytes]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`start(store)` starts a server on a file or a URL."""
    with contextlib.ExitStack() as stack:
        count = iter(range(100))

        def start(store: Path | str, **settings: Any) -> ServerProcess:
            where = {"DATABASE_PATH" if isinstance(store, Path) else "DATABASE_URL": store}
            server = ServerProcess(tmp_path / f"server{next(count)}", **(SECRETS | MANY | where | settings))
            return stack.enter_context(server)

        yield start


# ---- Running commands -----------------------------------------------------------------------------------------------


def started(*arguments: Any, **environ: str) -> subprocess.Popen[str]:
    command = [*TOOL, *map(str, arguments)]
    known = environment(Path("nowhere.db")) | environ
    return subprocess.Popen(command, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(*arguments: Any, code: int = 0, **environ: str) -> dict[str, Any]:
    """Run a command with --json. Return what it prints."""
    process = started(*arguments, "--json", **environ)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, (out, err)
    return json.loads(out)


def refused(*arguments: Any, **environ: str) -> str:
    """Run a command that cannot be done. Return why."""
    process = started(*arguments, **environ)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, ""), (out, err)
    return err


# ---- Stores ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(store: Path | str) -> Iterator[Any]:
    made: Any = (
        DbmStore(store, 901)
        if isinstance(store, Path)
        else PostgresStore(store, 10**9, 901, b" ".join([b"a" * 40, store.encode()]))
    )
    with contextlib.closing(made) as store:
        yield store


def contents(store: Path | str) -> Contents:
    """Return each record, and the bytes of its versions, whose digests are right."""
    with opened(store) as reader:
        found = {}
        for user_id in list(reader.user_ids()):
            record = reader.find(user_id)
            versions = record.versions if isinstance(record, Account) else ()
            found[user_id] = record, [reader.data(user_id, version) for version in versions]
    return found


def user_id(number: int) -> str:
    return digest(str(number).encode())


def fill(store: Path | str, accounts: int = 20, seed: int = 1, size: int = 3000) -> None:
    """Make accounts of all kinds: with and without versions, with allotments, key changes, and deleted ones."""
    chance = random.Random(seed)
    with opened(store) as writer:
        for number in range(accounts):
            name = user_id(number)
            account = Account(clock.now() - chance.randrange(10**10), digest(b"key%d" % number))
            with writer.account(name) as held:
                held.create(account)
            for count in range(1, chance.randrange(6)):
                blob, changes = chance.randbytes(chance.randrange(size)), chance.random() < 0.3
                moment = account.created_at + count * 86_400_000
                key_version = account.key_version + changes
                version = Version(count, moment, len(blob), digest(blob), key_version)
                account = replace(
                    account,
                    key_sha256=digest(chance.randbytes(8)) if changes else account.key_sha256,
                    key_version=key_version,
                    versions=(*account.versions[-2:], version),
                    uploads=(*account.uploads, Upload(moment, f"signature {count}", changes)),
                    upload_days=min(count, 7),
                    allotment=chance.choice([0, 10**5]),
                )
                with writer.account(name) as held:
                    held.append(account, blob)
            if number % 7 == 3:
                with writer.account(name) as held:
                    held.delete(clock.now() - 1000, by_operator=number % 2 == 0)


# ---- There and back -------------------------------------------------------------------------------------------------


def test_accounts_survive_the_way_to_a_database_and_back(tmp_path, url):
    """Every record, byte for byte: versions, uploads with their signatures, limits, and what deletions reserve."""
    first, last = tmp_path / "first.db", tmp_path / "deep" / "last.db"
    fill(first, 30)
    before = contents(first)
    kinds = [type(record) for record, _ in before.values()]
    assert kinds.count(Deleted) == 4 and any(blobs for _, blobs in before.values())
    moved = result("migrate", first, url)
    blobs = [blob for _, kept in before.values() for blob in kept]
    expected = {"accounts": 26, "versions": len(blobs), "bytes": sum(map(len, blobs)), "copied": 30}
    assert moved.items() >= expected.items()
    assert not result("verify", "--database", first)["damage"] and contents(first) == before
    assert contents(url) == before
    assert not result("verify", "--database", url)["damage"]
    with psycopg.connect(url) as connection:
        reserved = connection.execute("SELECT count(*) FROM account WHERE forget_at IS NOT NULL").fetchone()
    assert reserved == (4,)
    result("migrate", url, last)
    assert contents(last) == before
    assert not result("verify", "--database", last)["damage"]
    assert last.stat().st_mode & 0o777 == 0o600


def test_what_was_moved_stays_closed_until_it_is_reopened(tmp_path, url, start):
    path = tmp_path / "first.db"
    with contextlib.closing(DbmStore(path, 901)):
        pass
    source = start(path)
    user = source.client()
    assert outcome(user.register_user()) == "201" and outcome(user.store_backup(b"1")) == "201"
    target = start(url)  # a server may wait there already
    result("migrate", path, url)
    for server in (source, source.restart()):
        user.base_url = server.base_url
        other = server.client()
        answers = [
            other.register_user(),
            user.store_backup(b"2", digest(b"1")),
            user.change_storage_key("b" * 64, b"2", digest(b"1")),
            user.delete_user(),
        ]
        assert [outcome(answer) for answer in answers] == ["503 unavailable"] * 4
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
        assert user.fetch_backup().status_code == 200
        assert user.get_health().json() == {"status": "ok", "version": user.get_health().json()["version"]}
    assert source.log()[-20:] and any(line.get("moved") for line in source.log())
    same = target.client(user.credentials)
    assert same.fetch_backup().json()["sha256"] == digest(b"1")
    assert outcome(same.store_backup(b"2", digest(b"1"))) == "201"
    assert "moved already" in refused("migrate", path, url)
    assert result("reopen", "--database", path) == {"reopened": True}
    assert outcome(user.store_backup(b"3", digest(b"1"))) == "201"
    assert result("reopen", "--database", path, code=1) == {"reopened": False}
    events = [line["event"] for line in source.log() if line["event"] in ("closed", "moved", "reopened")]
    assert events == ["closed", "moved", "reopened"]
    assert "has accounts already" in refused("migrate", path, url)
    assert same.fetch_backup().json()["sha256"] == digest(b"2")


def test_the_way_back_ends_in_the_file_that_was_left(tmp_path, url, start):
    """What was stored in the database meanwhile comes back. A database that was moved is closed for all servers."""
    path = tmp_path / "first.db"
    fill(path)
    result("migrate", path, url)
    servers = [start(url), start(url)]
    user = servers[0].client()
    assert outcome(user.register_user()) == "201" and outcome(user.store_backup(b"1")) == "201"
    moved = result("migrate", url, path)
    assert moved["copied"] == 1
    for server in servers:
        same = server.client(user.credentials)
        assert outcome(same.store_backup(b"2", digest(b"1"))) == "503 unavailable"
        assert outcome(server.client().register_user()) == "503 unavailable"
        assert outcome(same.delete_user()) == "503 unavailable"
        assert outcome(same.fetch_backup()) == "200"
        assert same.get_health().json()["status"] == "ok"
    back = start(path).client(user.credentials)
    assert outcome(back.store_backup(b"2", digest(b"1"))) == "201"
    assert result("reopen", "--database", url) == {"reopened": True}
    assert outcome(servers[1].client(user.credentials).store_backup(b"3", digest(b"1"))) == "201"


def test_a_target_that_is_not_this_ones_is_refused(tmp_path, url, cluster):
    first, other = tmp_path / "first.db", tmp_path / "other.db"
    fill(first, 3)
    fill(other, 4)
    fill(url, 2)
    before = contents(url)
    assert "has accounts already" in refused("migrate", first, url)
    assert "has accounts already" in refused("migrate", first, other)
    assert contents(url) == before
    result("migrate", first, another := cluster.new_database())
    result("migrate", another, third := tmp_path / "third.db")
    assert "another store" in refused("migrate", other, another)
    assert "moved to another store" in refused("migrate", first, fourth := tmp_path / "fourth.db")
    assert not list(tmp_path.glob(f"{fourth.name}*"))
    assert contents(third) == contents(first)


def test_a_store_that_is_half_filled_is_used_by_no_server(tmp_path, url):
    first = tmp_path / "first.db"
    fill(first, 3)
    state = f"from:{'a' * 32}:01"
    fill(url, 1)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE tally SET closed_until = 4611686018427387904, closed_by = %s", (state,))
    with pytest.raises(StorageUnavailable, match="has not ended"), opened(url):
        pass
    for command in (["migrate", url, tmp_path / "third.db"], ["reopen", "--database", url], ["migrate", first, url]):
        refused(*command)


def test_a_target_with_a_server_and_a_damaged_source_are_refused(tmp_path, url, start):
    path = tmp_path / "first.db"
    fill(path, 5)
    fill(url, 3)
    target = start(tmp_path / "used.db").database
    assert "stop the server first" in refused("migrate", url, target)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE account SET record = record || '\\x00' WHERE user_id = %s", (user_id(0),))
    assert [each["kind"] for each in result("migrate", url, tmp_path / "new.db", code=1)["damage"]] == ["record"]
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM Dict WHERE key = ?", (f"user/{user_id(1)}".encode(),))
    damage = result("migrate", path, url, code=1)["damage"]
    assert {each["kind"] for each in damage} == {"stray"} and not (tmp_path / "new.db").exists()


def test_the_url_shows_nowhere(url):
    secret = url.replace("postgres@", "postgres:very-secret@")
    process = started("accounts", "--database", secret.replace("/test", "/none"))
    out, err = process.communicate()
    assert process.returncode == 2 and "very-secret" not in out + err
    assert err.splitlines()[-1] == "maintenance: the database: the database cannot be reached"
    assert result("accounts", DATABASE_URL=fill(url, 3) or url)["total"]["accounts"] == 3
    assert "is not set" in refused("migrate", "DATABASE_URL", "x.db")


# ---- Interruptions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "number"), [(seed, number) for seed in range(3) for number in ("KILL", "INT")])
def test_a_migration_that_is_interrupted_goes_on(tmp_path, cluster, seed, number):
    """At random moments, to a database and back. Meanwhile, the source changes."""
    first = tmp_path / "first.db"
    fill(first, 150, seed)
    chance, source, kills = random.Random(f"{seed} {number}"), first, 0
    for target in (cluster.new_database(), tmp_path / "last.db"):
        before, ended = contents(source), False
        span = 0.4  # seconds, in which no run is complete; it grows
        while not ended:
            process = started("migrate", source, target)
            try:
                process.wait(0.2 + chance.random() * span)
                ended = process.returncode == 0
                assert ended or "moved already" in process.stderr.read()
                break
            except subprocess.TimeoutExpired:
                process.send_signal(getattr(signal, f"SIG{number}"))
                process.wait()
                kills += 1
                span *= 1.2
        assert contents(source) == before
        assert contents(target) == before
        assert not result("verify", "--database", target)["damage"]
        source = target
    assert kills


def test_what_changed_between_two_runs_is_copied_and_nothing_else(tmp_path, url):
    path = tmp_path / "first.db"
    fill(path, 40)
    done = 0
    while not done:  # until a run was interrupted when some accounts were there, but not all
        process = started("migrate", path, url)

        def count() -> int:
            with contextlib.suppress(psycopg.Error), psycopg.connect(url) as connection:
                return connection.execute("SELECT count(*) FROM account").fetchone()[0]
            return 0

        assert eventually(lambda process=process: count() > 3 or process.poll() is not None, 20)
        process.kill()
        process.wait()
        done = count()
    assert done < 40, "the run was too fast to be interrupted"
    with opened(path) as store:
        names = sorted(store.user_ids())
        with store.account(names[1]) as held:
            held.delete(clock.now())
        with store.turn():
            store.write(lambda: store.forget(names[0], store.row(names[0])))
    before = contents(path)
    moved = result("migrate", path, url)
    assert contents(url) == before and names[0] not in before
    assert moved["copied"] <= 40 - done + 1
    assert not result("verify", "--database", url)["damage"]


def test_what_is_gone_between_two_runs_is_removed(tmp_path):
    """Whether it is the first of the accounts, the last, or one in between."""
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    fill(first, 10)

    def copy() -> None:
        with file_side.source(first) as source, file_side.target(second) as target:
            migration.Copy(source, target).fill(lambda *stage: None)

    copy()
    assert len(contents(second)) == 10
    with opened(first) as store:
        names = sorted(store.user_ids())
        for name in (names[0], names[1], names[5], names[9]):
            with store.account(name) as held:
                held.delete(clock.now())
            with store.turn():
                store.write(functools.partial(store.forget, name, store.row(name)))
    copy()
    assert len(contents(first)) == 6 and contents(second) == contents(first)


def test_the_window_ends_by_itself(tmp_path, url, start):
    """A run that is killed while the source is closed leaves it open, after the lease.

    A run whose lease was lost cannot close the source for good.
    """
    path = tmp_path / "first.db"
    file_server = start(path)
    url_server = start(url)
    ask = {"close": {"run": "01", "seconds": 2}}
    for server in (file_server, url_server):
        user = server.client()
        assert outcome(user.register_user()) == "201"
        if server is file_server:
            assert operator.asked(path, ask) == {"done": True}
        else:
            with psycopg.connect(url) as connection:
                query = "UPDATE tally SET closed_by = '01', closed_until = %s"
                connection.execute(query, (time.time_ns() // 10**6 + 2000,))
        began = time.monotonic()
        assert outcome(user.store_backup(b"1")) == "503 unavailable"
        assert eventually(lambda user=user: user.store_backup(b"1").status_code in (200, 201), 10)
        assert time.monotonic() - began > 1
    lease = {"run": "01", "seconds": bounds.LEASE_SECONDS}
    done, lapsed = {"done": True}, {"done": False}
    move = {"move": {"run": "01", "state": "to:" + "a" * 32}}
    assert operator.asked(path, {"renew": lease}) == operator.asked(path, move) == lapsed
    assert operator.asked(path, {"close": lease}) == operator.asked(path, {"renew": lease}) == done
    assert operator.asked(path, {"close": lease | {"run": "02"}}) == done
    assert operator.asked(path, {"renew": lease}) == operator.asked(path, move) == lapsed
    assert operator.asked(path, {"close": lease}) == done
    file_server.restart()
    assert operator.asked(path, {"renew": lease}) == operator.asked(path, move) == lapsed


def test_the_lease_on_a_database(url):
    """A run that lost its lease cannot renew it, and cannot close the store for good. It may do each thing twice."""
    fill(url, 1)
    with side.opened(url, 901) as source:
        source.close_for("01", 30)
        source.close_for("01", 30)
        source.close_for("01", 1)
        source.renew("01", 30)
        time.sleep(1.2)
        source.renew("01", 30)
        source.close_for("02", 30)
        for lost in (lambda: source.renew("01", 30), lambda: source.close_for_good("01", "to:x")):
            with pytest.raises(Lapsed):
                lost()
        source.close_for("01", 1)
        time.sleep(1.2)
        for lost in (lambda: source.renew("01", 30), lambda: source.close_for_good("01", "to:x")):
            with pytest.raises(Lapsed):
                lost()
        source.close_for("01", 30)
        source.close_for_good("01", "to:x")
        source.close_for_good("01", "to:x")
        assert source.state() == "to:x"
        with pytest.raises(Impossible):
            source.close_for("01", 30)
        source.reopen()
        assert source.state() == ""


STRIKE = """\
import os, sys, maintenance
from server import bounds
from server.file_side import FileSide
from server.postgres.side import PostgresSide

step, moment, *arguments = sys.argv[1:]
bounds.LEASE_SECONDS = 2

def struck(real):
    def call(*values):
        if moment == "before":
            os._exit(9)
        real(*values)
        os._exit(9)
    return call

for side in (FileSide, PostgresSide):
    setattr(side, step, struck(getattr(side, step)))
sys.exit(maintenance.main(arguments))
"""


@pytest.mark.parametrize("way", ["to a database", "to a file"])
def test_a_migration_that_ends_at_any_step_goes_on(tmp_path, url, start, way):
    """Until the source is closed for good, it takes changes again by itself. After that, neither of the two does."""
    path = tmp_path / "first.db"
    source, target = (path, url) if way == "to a database" else (url, path)
    fill(source, 5)
    user = start(source).client()
    assert outcome(user.register_user()) == "201"
    latest, kept = None, []

    def store(blob: bytes) -> str:
        nonlocal latest
        answer = user.store_backup(blob, latest)
        if answer.status_code == 201:
            latest = digest(blob)
            kept.append(latest)
        return outcome(answer)

    steps = ("begin before", "begin after", "put after", "close_for before", "close_for after", "close_for_good before")
    for number, step in enumerate((*steps, "close_for_good after", "reopen before")):
        is_closed = number >= len(steps)
        if not is_closed:
            assert eventually(lambda number=number: store(b"%d" % number) == "201" or kept[number:], 10)
        command = [*TOOL[:-1], "-c", STRIKE, *step.split(), "migrate", str(source), str(target)]
        done = subprocess.run(command, cwd=Path(TOOL[-1]).parent, env=environment(path), capture_output=True, text=True)
        assert done.returncode == 9, done.stderr
        if is_closed:
            time.sleep(2.5)
            assert store(b"more") == "503 unavailable"
            with pytest.raises(StorageUnavailable, match="has not ended"), opened(target):
                pass
        assert outcome(user.fetch_backup()) == "200"
    result("migrate", source, target)
    there = contents(target)
    versions = there[user.credentials[0]][0].versions
    assert versions[-1].number == len(kept) and versions[-1].sha256 == kept[-1]
    assert outcome(start(target).client(user.credentials).store_backup(b"more", latest)) == "201"


@pytest.mark.parametrize("way", ["to a database", "to a file"])
def test_a_lease_that_was_lost_begins_the_end_again(tmp_path, url, start, monkeypatch, way):
    """What was acknowledged between the loss and the end is at the target."""
    monkeypatch.setattr(bounds, "LEASE_SECONDS", 2)
    path = tmp_path / "first.db"
    fill(path if way == "to a database" else url, 5)
    user = start(path if way == "to a database" else url).client()
    assert outcome(user.register_user()) == "201"
    with contextlib.ExitStack() as stack:
        if way == "to a database":
            source = stack.enter_context(file_side.source(path))
            target = stack.enter_context(side.opened(url, 901, is_made=True))
        else:
            source = stack.enter_context(side.opened(url, 901))
            target = stack.enter_context(file_side.target(path))
        real, calls = source.close_for_good, []

        def late(*values: Any) -> None:
            calls.append(values)
            if len(calls) == 1:
                assert eventually(lambda: user.store_backup(b"late").status_code in (200, 201), 10)
            real(*values)

        monkeypatch.setattr(source, "close_for_good", late)
        migration.migrate(source, target, lambda name, measure: None)
    assert len(calls) >= 2
    assert contents(url if way == "to a database" else path)[user.credentials[0]][1] == [b"late"]


def test_of_two_runs_only_the_later_one_goes_on(tmp_path, url):
    with side.opened(url, 901, is_made=True) as first, side.opened(url, 901) as second:
        account = Account(1, "c" * 64)
        first.begin("a" * 32, f"from:{'a' * 32}:01")
        first.put(user_id(1), account, lambda version: None)
        second.begin("a" * 32, f"from:{'a' * 32}:02")
        for change in (
            lambda: first.put(user_id(2), account, lambda version: None),
            lambda: first.remove(user_id(1)),
            first.reopen,
            lambda: first.begin("b" * 32, f"from:{'b' * 32}:03"),
        ):
            with pytest.raises(Impossible):
                change()
        second.put(user_id(2), account, lambda version: None)
        second.check_sums()
        second.reopen()
    assert set(contents(url)) == {user_id(1), user_id(2)}


# ---- Beside servers -------------------------------------------------------------------------------------------------


class Life(threading.Thread):
    """A client that stores all the time, deletes and registers, and writes down what was acknowledged."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        super().__init__()
        self.chance, self.server, self.stop = random.Random(seed), server, threading.Event()
        self.ledger: dict[tuple[str, str], list[str] | None] = {}  # digests of all versions; None: deleted
        self.refused, self.acknowledged, self.errors = [], 0, []  # when changes got 503

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.live()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.errors.append(error)

    def live(self) -> None:
        user = self.server.client()
        if not self.ok(user.register_user):
            return
        digests = self.ledger[user.credentials] = []
        for _ in range(self.chance.randrange(1, 6)):
            blob = self.chance.randbytes(self.chance.randrange(1, 50_000))
            if not self.ok(lambda blob=blob: user.store_backup(blob, digests[-1] if digests else None)):
                return
            digests.append(digest(blob))
        if self.chance.random() < 0.2 and self.ok(user.delete_user):
            self.ledger[user.credentials] = None

    def ok(self, call: Callable[[], Any]) -> bool:
        """Repeat a call while it gets 503. Return whether it was acknowledged before the test ended."""
        while True:
            answer = call()
            if answer.status_code in (200, 201, 204):
                self.acknowledged += 1
                return True
            assert answer.status_code == 503 and answer.headers["Retry-After"], outcome(answer)
            self.refused.append(time.monotonic())
            if self.stop.wait(0.05):
                return False


@pytest.mark.parametrize("way", ["to a database", "to a file"])
def test_nothing_that_was_acknowledged_is_lost(tmp_path, url, start, way):
    """Clients store all the time. What was acknowledged by the source is at the target, and nothing is there alone."""
    path = tmp_path / "first.db"
    source: Path | str
    source, target = (path, url) if way == "to a database" else (url, path)
    fill(source, 100)
    servers = [start(source)] if source is path else [start(source), start(source)]
    lives = [Life(servers[number % len(servers)], number) for number in range(4)]
    for life in lives:
        life.start()
    time.sleep(3)
    for _ in range(2):  # interrupted in between
        process = started("migrate", source, target)
        time.sleep(1 + random.random())  # noqa: S311
        process.kill()
        process.wait()
        if process.returncode == 0:
            break
    process = started("migrate", source, target)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 or "moved already" in err, (out, err)
    time.sleep(1)
    for life in lives:
        life.stop.set()
    for life in lives:
        life.join(30)
        assert not life.errors
    assert sum(life.acknowledged for life in lives) > 50
    for server in servers:
        server.stop()
    there = contents(target)
    assert there == contents(source)
    for life in lives:
        for (name, _), digests in life.ledger.items():
            record = there[name][0]
            if digests is None:
                assert isinstance(record, Deleted)
            else:
                assert isinstance(record, Account)
                kept = {version.number: version.sha256 for version in record.versions}
                latest = record.latest.number if record.latest else 0
                assert latest == len(digests)
                assert all(digests[number - 1] == sha256 for number, sha256 in kept.items())
    assert all(life.refused for life in lives)
    assert not result("verify", "--database", target)["damage"]


# ---- The other commands on a database -------------------------------------------------------------------------------


def test_a_snapshot_of_a_database_is_a_store_in_a_file(tmp_path, url, start):
    fill(url, 25)
    before, copy = contents(url), tmp_path / "copy.db"
    server = start(url)
    done = result("snapshot", copy, "--database", url)
    assert done["accounts"] == sum(isinstance(record, Account) for record, _ in before.values())
    assert contents(copy) == before
    assert outcome(server.client().register_user()) == "201"
    assert "exists already" in refused("snapshot", copy, "--database", url)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE backup SET data = data || '\\x00' WHERE user_id = %s", (user_id(1),))
    damage = result("snapshot", tmp_path / "other.db", "--database", url, code=1)["damage"]
    assert {each["kind"] for each in damage} == {"blob"} and not (tmp_path / "other.db").exists()
    assert result("snapshot", tmp_path / "other.db", "--database", url, "--damaged", code=1)["damage"] == damage


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE account SET record = record || '\\x00' WHERE user_id = %s", "record"),
        ("UPDATE backup SET data = '\\x00' WHERE user_id = %s", "blob"),
        ("DELETE FROM backup WHERE user_id = %s", "missing"),
        ("INSERT INTO backup VALUES (%s, 99, '\\x00')", "stray"),
        ("INSERT INTO backup VALUES ('b' || %s, 1, '\\x00')", "stray"),
        ("UPDATE tally SET versions = versions + 1 WHERE shard = 3 AND %s <> ''", "sums"),
    ],
)
def test_verify_finds_damage_in_a_database(url, statement, kind):
    fill(url, 10)
    assert not result("verify", "--database", url)["damage"]
    with psycopg.connect(url) as connection:
        name = next(name for name, (record, blobs) in contents(url).items() if blobs)
        connection.execute(statement, (name,))
    damage = result("verify", code=1, DATABASE_URL=url)["damage"]
    assert kind in {each["kind"] for each in damage}


@pytest.mark.parametrize("read", [side.record_of, file_side.row_of])
@pytest.mark.parametrize("text", [b"no JSON", b'{"format": %d}' % records.RECORD_FORMAT, b"[]"])
def test_a_record_whose_form_is_wrong_is_damaged_although_its_checksum_is_right(read, text):
    with pytest.raises(Damaged):
        read(user_id(1), records.checksum(user_id(1), text) + b"\n" + text)


def test_the_progress_of_verify_counts_the_accounts(url):
    fill(url, 3)
    seen: list[tuple[int, int]] = []
    assert not side.verify(url, lambda *progress: seen.append(progress)).damage
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_accounts_are_listed_and_removed(url, start):
    server = start(url)
    user, other = server.client(), server.client()
    for each in (user, other):
        assert outcome(each.register_user()) == "201" and outcome(each.store_backup(b"1" * 1000)) == "201"
    listed = result("accounts", "--full", "--database", url)["accounts"]
    assert {each["user"] for each in listed} == {user.credentials[0], other.credentials[0]}
    assert [each["bytes"] for each in listed] == [1000, 1000]
    with psycopg.connect(url) as connection:
        known = connection.execute("SELECT count(*) FROM counted WHERE value LIKE '%known%'").fetchone()
        assert known == (2,)
    environ = {"DATABASE_URL": url, "ADMIN_SECRET_KEY": SECRETS["ADMIN_SECRET_KEY"]}
    assert result("remove", "--yes", "--user", user.credentials[0], **environ)["removed"] == 1
    with psycopg.connect(url) as connection:
        known = connection.execute("SELECT count(*) FROM counted WHERE value LIKE '%known%'").fetchone()
        assert known == (1,)
        assert connection.execute("SELECT count(*) FROM backup").fetchone() == (1,)
    assert outcome(user.fetch_backup()) == "401 credentials_invalid"
    assert outcome(other.fetch_backup()) == "200"
    assert outcome(user.register_user()) == "409 recently_deleted"
    with opened(url) as store:
        assert store.find(user.credentials[0]).by_operator
    assert not result("verify", "--database", url)["damage"]


def test_what_is_not_for_a_database_says_what_to_do_instead(tmp_path, url):
    assert "migrate" in refused("restore", tmp_path / "x.db", "--database", url)
    assert "VACUUM" in refused("compact", "--database", url)
    assert "no store in this database" in refused("verify", "--database", url)


def test_a_change_of_a_file_is_made_completely_or_not_at_all(tmp_path):
    """A version is dropped by the source while it is read. Then the account is read, and put, once more."""
    data = b"a version"
    version = Version(1, 1_795_510_800_000, len(data), digest(data), key_version=1)
    account = Account(version.stored_at, digest(b"a key"), versions=(version,))
    with file_side.target(tmp_path / "backup.db") as target:
        with pytest.raises(Changed):
            target.put(user_id(1), account, lambda version: None)
        assert target.find(user_id(1)) is None
        target.put(user_id(1), account, lambda version: data)
        assert (target.find(user_id(1)), target.data(user_id(1), version)) == (account, data)
        assert target.data(user_id(1), replace(version, number=2)) is None  # it is not damaged: it is not there
        target._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(Impossible, match=f"^{tmp_path / 'backup.db'}: "):
            target.remove(user_id(1))


def test_a_store_that_is_half_filled_is_not_reopened(tmp_path):
    path, state = tmp_path / "backup.db", f"from:{'a' * 32}:{'b' * 16}"
    with file_side.target(path) as side:
        side.begin("a" * 32, state)
    with pytest.raises(Impossible, match="only a part of the accounts"):
        file_side.reopen(path)
    with file_side.source(path) as side:
        assert side.state() == state


def test_a_file_that_cannot_be_locked_is_named(tmp_path, monkeypatch):
    path = tmp_path / "backup.db"
    monkeypatch.setattr("server.store_file.lock", mock.Mock(side_effect=OSError(errno.ENOLCK, "no locks here")))
    with pytest.raises(Unusable, match=f"^{path}: no locks here$"), file_side.target(path):
        pass


def test_a_file_needs_no_driver(tmp_path):
    path = tmp_path / "first.db"
    fill(path, 1)
    script = "import sys, maintenance as m; sys.exit(m.main(sys.argv[1:]) or 'psycopg' in str(sys.modules))"
    for command in (["verify"], ["migrate", path, tmp_path / "other.db"]):
        arguments = [*map(str, command), "--database", str(path)]
        done = subprocess.run(
            [*TOOL[:-1], "-c", script, *arguments], cwd=Path(TOOL[-1]).parent, env={"PATH": os.environ["PATH"]}
        )
        assert done.returncode == 0
