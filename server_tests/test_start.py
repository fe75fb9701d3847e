"""The start of a store: which files it takes, which it refuses, and that only one server has a file."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from server.accounts import StorageUnavailable
from server.dbm_store import DbmStore


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
    assert [each.name for each in tmp_path.iterdir()] == ["backup.db"]
