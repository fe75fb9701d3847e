"""The start of a store: which files it takes, which it refuses, and that only one server has a file."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from bench.siege import NotRun, small_file_system
from clients.python.backup_client import backup_bytes
from contract_tests.suite.outcomes import not_run
from contract_tests.target.calls import eventually, outcome, sha256
from contract_tests.target.openapi import REPOSITORY
from server import store_file
from server.accounts import Account, StorageUnavailable
from server.dbm_store import DbmStore
from worst_day.disks import full

USER = "a" * 64


def refusal_of(path: Path) -> str:
    with pytest.raises(StorageUnavailable) as caught:
        DbmStore(path, 901).close()
    return str(caught.value)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_second_name_of_the_file_does_not_start_a_second_server(tmp_path, link):
    path, other = tmp_path / "backup.db", tmp_path / "elsewhere" / "other.db"
    other.parent.mkdir()
    with contextlib.closing(DbmStore(path, 901)):
        link(other, path)
        assert "another server has it open" in refusal_of(other)
    DbmStore(other, 901).close()


@pytest.mark.parametrize("content", [b"", b"notes\n", b"x" * 8192])
def test_a_file_that_is_no_store_is_refused_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "backup.db"
    path.write_bytes(content)
    assert "\n" not in refusal_of(path)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_stays_as_it_is(tmp_path):
    path = tmp_path / "backup.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (id)")
    content = path.read_bytes()
    assert "not a store" in refusal_of(path)
    assert path.read_bytes() == content


def test_a_file_that_was_cut_off_is_refused_and_stays_as_it_is(tmp_path):
    path = tmp_path / "backup.db"
    with contextlib.closing(DbmStore(path, 901)) as store, store.account(USER) as account:
        account.create(Account(1, "c" * 64))
    os.truncate(path, path.stat().st_size - 4096)
    content = path.read_bytes()
    assert "restore a copy" in refusal_of(path)
    assert path.read_bytes() == content


def test_a_directory_is_refused(tmp_path):
    (tmp_path / "backup.db").mkdir()
    assert "it is not a file" in refusal_of(tmp_path / "backup.db")


def test_a_new_store_is_whole_when_it_gets_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "backup.db", []
    link = os.link

    def look(source, target):
        with contextlib.closing(sqlite3.connect(source)) as connection:
            seen.extend(connection.execute("SELECT key, value FROM Dict").fetchall())
            seen.extend(connection.execute("PRAGMA auto_vacuum").fetchone())
        link(source, target)

    monkeypatch.setattr("os.link", look)
    DbmStore(path, 901).close()
    assert seen == [(b"format", b"2"), 2]
    assert {each.name for each in tmp_path.iterdir()} - {"backup.db-ballast"} == {"backup.db"}


@pytest.mark.parametrize("what_is_left", ["nothing", "an empty file"])
def test_a_log_that_has_lost_its_store_is_no_part_of_a_new_one(tmp_path, start_server, what_is_left):
    """SQLite would bring back what is in the log, or damage the new store by it."""
    server = start_server(DATABASE_PATH=tmp_path / "volume" / "backup.db")
    assert outcome(server.client().register_user()) == "201"
    server.kill()
    log = server.database.with_name("backup.db-wal").read_bytes()
    assert log
    server.database.unlink()
    if what_is_left != "nothing":
        server.database.touch()
    with pytest.raises(StorageUnavailable, match="put the file back that belongs to it"):
        DbmStore(server.database, 901, is_new=True)
    assert server.database.with_name("backup.db-wal").read_bytes() == log
    assert server.database.exists() == (what_is_left != "nothing")


# ---- A store that should be there ----------------------------------------------------------------------------------


def test_a_missing_store_is_made_only_if_it_may_be(start_server, tmp_path):
    path = tmp_path / "volume" / "backup.db"
    with pytest.raises(RuntimeError, match="there is no store: .* NEW_STORE=1 once") as caught:
        start_server(DATABASE_PATH=path, NEW_STORE=0)
    assert str(caught.value).count("\n") <= 2 and not path.exists()
    made = start_server(DATABASE_PATH=path, NEW_STORE=1)
    assert made.log()[0]["newStore"] is True
    user = made.client()
    assert outcome(user.register_user()) == "201"
    made.stop()
    again = start_server(DATABASE_PATH=path, NEW_STORE=0, APP_SECRET_KEY=made.secret)
    assert "newStore" not in again.log()[0]
    assert outcome(again.client(user.credentials).register_user()) == "200"


@pytest.mark.parametrize("new_store", ["2", "yes"])
def test_a_value_of_new_store_that_makes_no_sense(start_server, new_store):
    with pytest.raises(RuntimeError, match="NEW_STORE must be a whole number from 0 to 1"):
        start_server(NEW_STORE=new_store)


def test_an_empty_file_is_a_new_store_only_if_somebody_says_so(tmp_path):
    path = tmp_path / "backup.db"
    path.touch()
    assert "it is empty" in refusal_of(path)
    DbmStore(path, 901, is_new=True).close()
    DbmStore(path, 901, is_new=False).close()


def test_what_a_start_that_was_killed_has_left_is_removed(tmp_path):
    path, left = tmp_path / "backup.db", tmp_path / "backup.db-new-123"
    left.touch()
    DbmStore(path, 901).close()
    assert not left.exists()


AS_ANOTHER_USER = """
import os, sys, urllib.request
from pathlib import Path
from server import store_file
from server.accounts import Account, StorageUnavailable
from server.dbm_store import DbmStore
from server.log import log

os.setgid(65534)
os.setuid(65534)  # from here on, this process may read and write what that user may
try:
    store = DbmStore(Path(sys.argv[1]), 901)
except StorageUnavailable as error:
    print(error)
else:
    print("served", *store.degraded())
    log.finish(1)
    store.close()
"""


@pytest.fixture
def ours(tmp_path):
    """A store in a folder that everybody can reach."""
    if os.geteuid():
        not_run("another user, which needs root")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        DbmStore(Path(name) / "data" / "backup.db", 901).close()
        yield Path(name) / "data" / "backup.db"


@pytest.mark.parametrize(
    ("owner", "folder_mode", "file_mode", "says"),
    [
        (0, 0o700, 0o600, ["data belongs to the user 0 (mode 0700)", "chown"]),
        (0, 0o777, 0o600, ["backup.db belongs to the user 0 (mode 0600)", "chown"]),
        (0, 0o777, 0o644, ["served writes", "backup.db belongs to the user 0 (mode 0644)", "chown"]),
        (0, 0o755, 0o644, ["served writes", "data belongs to the user 0 (mode 0755)", "chown"]),
        (0, 0o755, 0o666, ["served writes", "data belongs to the user 0 (mode 0755)", "chown"]),
        (65534, 0o500, 0o600, ["served writes", "data belongs to the user 65534 (mode 0500)", "chmod"]),
        (65534, 0o700, 0o400, ["served writes", "backup.db belongs to the user 65534 (mode 0400)", "chmod"]),
        (65534, 0o700, 0o600, ["served"]),
    ],
)
def test_whoever_may_not_write_hears_whose_it_is(ours, owner, folder_mode, file_mode, says):
    change(ours, owner, file_mode)
    change(ours.parent, owner, folder_mode)
    found = started_by_another(ours)
    assert all(each in found for each in says)
    assert ("served" in found, "belongs" in found) == ("served" in says[0], len(says) > 1)


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_what_sqlite_left_for_another_user(ours, suffix):
    """Whoever looks into a store as root leaves files that the server cannot open."""
    change(ours, 65534, 0o600)
    change(ours.parent, 65534, 0o700)
    left = ours.with_name(f"backup.db{suffix}")
    left.touch(0o600)
    assert f"{left} belongs to the user 0 (mode 0600)" in started_by_another(ours)


def change(path, owner, mode):
    os.chown(path, owner, owner)
    path.chmod(mode)


def started_by_another(path):
    arguments = [sys.executable, "-c", AS_ANOTHER_USER, path]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file/backup.db", "a part of the path is a file"),
        ("file/below/backup.db", "a part of the path is a file"),
        ("nowhere", "is the volume there? A link leads to nothing"),
        ("circle", "links lead in a circle"),
        ("pipe", "it is not a file"),
        ("x" * 300, "name a shorter path"),
    ],
)
def test_a_path_that_leads_to_no_file_says_what_to_do(tmp_path, name, says):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "backup.db")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    assert says in refusal_of(tmp_path / name)


# ---- A disk that cannot be written ---------------------------------------------------------------------------------


def test_a_start_on_a_disk_that_takes_nothing_serves_reads(start_server):
    server = start_server()
    user = server.client()
    assert outcome(user.register_user()) == "201"
    assert outcome(user.store_backup(b"a backup")) == "201"
    server.restart(fault="full_from_the_start")
    user.base_url = server.base_url
    health = user.get_health()
    assert (health.status_code, health.json()["status"], health.json()["degraded"]) == (200, "degraded", ["writes"])
    assert outcome(user.fetch_backup()) == "200"
    assert outcome(user.store_backup(b"another", sha256(b"a backup"))) == "507 storage_full"
    assert any("only reads are served" in line.get("reason", "") for line in server.log())
    server.fault = None
    assert outcome(user.store_backup(b"a third", sha256(b"a backup"))) == "201"
    server.move_clock(601)
    assert eventually(lambda: user.get_health().json()["status"] == "ok", 20)
    assert outcome(server.client(user.credentials).register_user()) == "200"


def test_starts_reads_and_deletions_go_on_without_a_free_byte(start_server, tmp_path):
    try:
        with small_file_system(tmp_path, 64_000_000) as disk:
            server = start_server(DATABASE_PATH=disk / "backup.db")
            user, gone = server.client(), server.client()
            for each in (user, gone):
                assert outcome(each.register_user()) == "201"
                assert outcome(each.store_backup(os.urandom(100_000))) == "201"
            assert eventually((disk / "backup.db-ballast").exists, 60)
            with full(disk):
                server.kill()
                server.start()
                user.base_url = gone.base_url = server.base_url
                assert outcome(user.fetch_backup()) == "200"
                assert outcome(gone.delete_user()) == "204"
                assert outcome(user.fetch_backup()) == "200"
            assert eventually((disk / "backup.db-ballast").exists, 60)
            assert outcome(gone.fetch_backup()) == "401 credentials_invalid"
            server.stop()
    except NotRun as error:
        not_run(str(error))


def test_the_ballast_is_kept_only_while_there_is_plenty(tmp_path, monkeypatch):
    usage, file = namedtuple("usage", "total free"), tmp_path / "backup.db-ballast"
    for total, free, size in (
        (10**9, 4 * 16 * 2**20 - 1, None),
        (10**9, 4 * 16 * 2**20, 16 * 2**20),
        (50_000_000, 3_999_999, None),
        (50_000_000, 4_000_000, 1_000_000),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, total=total, free=free: usage(total, free))
        store_file.load_ballast(tmp_path / "backup.db")
        assert (file.stat().st_size if file.exists() else None) == size
        file.unlink(missing_ok=True)
        file.write_bytes(b"it is there already")
        store_file.load_ballast(tmp_path / "backup.db")
        assert file.read_bytes() == b"it is there already"
        file.unlink()


def test_a_volume_that_others_have_filled_to_the_last_byte_is_named(tmp_path):
    """SQLite needs 32 kB beside the file to open it, and here is no ballast that could give them."""
    try:
        with small_file_system(tmp_path, 16_000_000) as disk:
            DbmStore(disk / "backup.db", 901).close()
            (disk / "backup.db-ballast").unlink(missing_ok=True)
            with full(disk):
                assert "the volume is full: delete what is not the store's" in refusal_of(disk / "backup.db")
            DbmStore(disk / "backup.db", 901).close()
    except NotRun as error:
        not_run(str(error))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_file_system_that_is_read_only_serves_reads(start_server, tmp_path, end):
    """A server that was killed leaves a write-ahead log, and one that was stopped leaves none."""
    try:
        with small_file_system(tmp_path, 64_000_000) as disk:
            server = start_server(DATABASE_PATH=disk / "backup.db")
            user = server.client()
            assert outcome(user.register_user()) == "201"
            assert outcome(user.store_backup(b"a backup")) == "201"
            getattr(server, end)()
            with read_only(disk):
                server.start()
                user.base_url = server.base_url
                health = user.get_health()
                assert (health.status_code, health.json()["degraded"]) == (200, ["writes"])
                assert fetched(user) == b"a backup"
                assert outcome(user.store_backup(b"another", sha256(b"a backup"))) == "503 unavailable"
                assert outcome(user.delete_user()) == "503 unavailable"
                assert outcome(server.client().register_user()) == "503 unavailable"
                assert fetched(user) == b"a backup"
                server.stop()
            server.start()
            user.base_url = server.base_url
            assert outcome(user.store_backup(b"another", sha256(b"a backup"))) == "201"
            assert user.get_health().json()["status"] == "ok"
            server.stop()
    except NotRun as error:
        not_run(str(error))


@pytest.mark.parametrize("log", ["-wal", "-journal"])
def test_a_log_that_cannot_be_read_is_not_passed_over(tmp_path, log):
    """Without the index beside it, SQLite cannot read a log in a folder that is read-only."""
    try:
        with small_file_system(tmp_path, 64_000_000) as disk:
            path = disk / "backup.db"
            DbmStore(path, 901).close()
            path.with_name(f"backup.db{log}").write_bytes(b"x" * 8192)
            with read_only(disk):
                assert "log beside it has to be read first" in refusal_of(path)
                command = [sys.executable, "maintenance.py", "accounts", "--database", path]
                done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
                assert (done.returncode, "log beside it has to be read first" in done.stderr) == (2, True)
    except NotRun as error:
        not_run(str(error))


LOOK_TWICE = """
import sys
from pathlib import Path
from server.dbm_reader import DbmReader
reader = DbmReader(Path(sys.argv[1]))
print(reader.find("a" * 64) is not None, flush=True)
sys.stdin.readline()
print(reader.find("a" * 64) is not None)
"""


def test_whoever_sees_a_running_store_in_a_folder_that_is_read_only_sees_its_changes(tmp_path):
    """The folder may be read-only for this user, or in this mount, but not for the server."""
    view = tmp_path / "view"
    view.mkdir()
    try:
        with small_file_system(tmp_path, 64_000_000) as disk, contextlib.closing(DbmStore(disk / "b.db", 901)) as store:
            with store.turn():
                store.write(store.empty_log)
            subprocess.run(["mount", "--bind", disk, view], check=True)
            try:
                subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
                command = [sys.executable, "-c", LOOK_TWICE, view / "b.db"]
                with subprocess.Popen(command, cwd=REPOSITORY, stdin=-1, stdout=-1, text=True) as other:
                    assert other.stdout.readline() == "False\n"
                    with store.account(USER) as account:
                        account.create(Account(1, "c" * 64))
                    assert other.communicate("\n", timeout=20)[0] == "True\n"
            finally:
                subprocess.run(["umount", view], check=True)
    except NotRun as error:
        not_run(str(error))


VERIFY_SLOWLY = """
import sys
from pathlib import Path
from server.inspection import Unusable, verify

def seen(done, of):
    print(done, flush=True)
    sys.stdin.readline()

try:
    print(verify(Path(sys.argv[1]), seen))
except Unusable as error:
    print(error)
"""


@pytest.mark.parametrize("changes", [None, "starts", "starts and stops"])
def test_whoever_reads_a_store_that_nobody_seemed_to_write_notices_a_server(tmp_path, changes):
    """SQLite heard that the file does not change (`immutable`), so what it has read may be of several moments."""
    view = tmp_path / "view"
    view.mkdir()
    try:
        with small_file_system(tmp_path, 64_000_000) as disk:
            DbmStore(disk / "b.db", 901).close()
            subprocess.run(["mount", "--bind", disk, view], check=True)
            try:
                subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
                command = [sys.executable, "-c", VERIFY_SLOWLY, view / "b.db"]
                process = subprocess.Popen(command, cwd=REPOSITORY, stdin=-1, stdout=-1, text=True)
                with process as other, contextlib.ExitStack() as stack:
                    assert other.stdout.readline() == "1\n"
                    if changes:
                        store = stack.enter_context(contextlib.closing(DbmStore(disk / "b.db", 901)))
                        with store.account(USER) as account:
                            account.create(Account(1, "c" * 64))
                    if changes == "starts and stops":
                        stack.pop_all().close()
                    said = other.communicate("\n", timeout=20)[0]
                assert ("a server has begun to use it meanwhile" in said) == bool(changes), said
                assert ("damage=[]" in said) == (not changes)
            finally:
                subprocess.run(["umount", view], check=True)
    except NotRun as error:
        not_run(str(error))


def fetched(user):
    return backup_bytes(user.fetch_backup())


@contextlib.contextmanager
def read_only(disk):
    """Remount a file system, so that nobody can write."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
