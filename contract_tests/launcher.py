"""Starts the real server for a test: with a clock that can be moved and, if asked, with a fault.

    with ServerProcess(tmp_path, BACKUPS_PER_HOUR="3") as server:
        server.client().register_user()
        server.move_clock(3600)

Run as a script it is that server: `python contract_tests/launcher.py --clock FILE`. The server's code is not
changed: its one clock, `now()`, is replaced, and the faults go into `dbm.sqlite3` beneath it.
"""

import argparse
import contextlib
import dbm.sqlite3
import functools
import importlib.util
import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # the server in a process of its own starts sooner without them
    from client import BackupClient, Keys

REPOSITORY = Path(__file__).resolve().parent.parent
# The server to test: another copy can be named, with its openapi.yaml beside it.
SERVER = Path(os.environ.get("BACKUP_SERVER") or REPOSITORY / "backup_server.py").resolve()
# The fault of broken.py that every server started here has, for run_broken.py.
BROKEN = os.environ.get("CONTRACT_BROKEN")
START_SECONDS = 30  # until "serving", on a busy machine
STOP_SECONDS = 60  # until the exit, with an upload in flight


def load_server() -> ModuleType:
    """The module `backup_server`, from the file that is under test."""
    if "backup_server" not in sys.modules:
        specification = importlib.util.spec_from_file_location("backup_server", SERVER)
        assert specification and specification.loader
        sys.modules["backup_server"] = module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    return sys.modules["backup_server"]


LENGTH = 40  # of the files that steer a running server


def overwrite(file: Path, text: str) -> None:
    """Replaces the text of a file that steers a running server, at one length, so that nobody reads half."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        stream.write(text.ljust(LENGTH))


# ---- The server as a process -------------------------------------------------------------------------------


class ServerProcess:
    """The server in a process of its own, on 127.0.0.1 and a free port, its database and log in `directory`.

    `environ` are the server's settings; one that is None is left out. APP_SECRET_KEY and ADMIN_SECRET_KEY are
    made up unless given. `frozen` (Unix seconds) makes time stand still, but for `move_clock`. Entering the
    context starts the server, leaving it stops it. The port is another after each start. `fault`, a name in
    FAULTS, makes the database fail once the server serves; it can be set, or cleared (None), at any time.
    """

    def __init__(
        self, directory: Path | str, *, fault: str | None = None, frozen: float | None = None, **environ: Any
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.frozen = frozen
        settings = {
            "APP_SECRET_KEY": secrets.token_hex(32),
            "ADMIN_SECRET_KEY": secrets.token_hex(32),
            "DATABASE_PATH": self.directory / "backup.db",
            "HOST": "127.0.0.1",
            "PORT": 0,
            **environ,
        }
        self.environ = {name: str(value) for name, value in settings.items() if value is not None}
        self.database = Path(self.environ["DATABASE_PATH"])
        self.base_url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.stdout = self.directory / "stdout.log"
        self.stderr = self.directory / "stderr.log"
        self._clock = self.directory / "clock"
        self._fault_file = self.directory / "fault"
        self._set_offset(0.0)
        self.fault = fault

    @property
    def secret(self) -> str:
        """The first, or only, secret of APP_SECRET_KEY."""
        return self.environ["APP_SECRET_KEY"].partition(",")[0].rpartition(":")[2]

    @property
    def keyid(self) -> str:
        """The keyid of that secret."""
        return self.environ["APP_SECRET_KEY"].partition(",")[0].rpartition(":")[0] or "app"

    @property
    def admin_key(self) -> str | None:
        """ADMIN_SECRET_KEY, if there is one."""
        return self.environ.get("ADMIN_SECRET_KEY")

    def client(self, credentials: "Keys | tuple[str, str] | None" = None, **options: Any) -> "BackupClient":
        """A client on the server's clock, of a made-up user unless given; the spec checks each answer."""
        from spec import checked_client

        return checked_client(self, credentials, **options)

    def now(self) -> float:
        """The server's clock, in Unix seconds."""
        return (time.time() if self.frozen is None else self.frozen) + self._offset

    def move_clock(self, seconds: float) -> None:
        """Moves the server's clock, at once, also backwards."""
        self._set_offset(self._offset + seconds)

    def _set_offset(self, offset: float) -> None:
        self._offset = offset
        overwrite(self._clock, f"{offset:.6f}")

    @property
    def fault(self) -> str | None:
        """What is broken on purpose."""
        return self._fault

    @fault.setter
    def fault(self, name: str | None) -> None:
        assert name is None or name in FAULTS, name
        self._fault = name
        if name is None or self.running():
            overwrite(self._fault_file, name or "")

    def start(self) -> Self:
        """Starts the server and waits until it serves. Raises RuntimeError with its stderr if it does not."""
        overwrite(self._fault_file, self._fault or "" if self._fault in FROM_THE_START else "")
        command = [sys.executable, __file__, "--clock", str(self._clock), "--fault", str(self._fault_file)]
        command += ["--frozen", repr(self.frozen)] if self.frozen is not None else []
        command += ["--broken", BROKEN] if BROKEN else []
        inherited = {name: os.environ[name] for name in ("PATH", "BACKUP_SERVER") if name in os.environ}
        inherited["PYTHONPATH"] = str(SERVER.parent)
        before = len(self.log())
        with open(self.stdout, "ab") as stdout, open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                command,
                env=inherited | self.environ,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log()[before:]:
                if line.get("event") == "serving":
                    self.base_url = line["url"]
                    self.fault = self.fault
                    return self
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the server did not start: {self.stderr.read_text()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal and returns at once; `wait()` tells how it ended."""
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        """Waits for the exit; the exit code."""
        assert self.process
        return self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Stops the server by SIGTERM and waits; its exit code."""
        self.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kills the server by SIGKILL, as a crash would."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def restart(self, *, fault: str | None = None) -> Self:
        """Stops the server and starts it again on the same file, with this fault or none."""
        if self.running():
            self.stop()
        self.fault = fault
        return self.start()

    def damage(self, blob: bytes) -> None:
        """Flips the lowest bit of a stored blob's last byte, wherever the file has it, and starts the server again."""
        self.stop()
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            rows = connection.execute("SELECT key, value FROM Dict WHERE instr(value, ?)", (blob,)).fetchall()
            assert len(rows) == 1
            for key, value in rows:
                value = value.replace(blob, blob[:-1] + bytes([blob[-1] ^ 1]))
                connection.execute("UPDATE Dict SET value = ? WHERE key = ?", (value, key))
        self.start()

    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def log(self) -> list[dict[str, Any]]:
        """The log lines so far, those before a restart included."""
        if not self.stdout.exists():
            return []
        lines = self.stdout.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is not a whole line

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        if self.running():
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise


# ---- What that process runs --------------------------------------------------------------------------------


def clock(file: Path, frozen: float | None) -> Callable[[], int]:
    """A `now()` in milliseconds: the real time, or the frozen one, moved by the seconds that `file` holds."""
    descriptor = os.open(file, os.O_RDONLY)

    def now() -> int:
        offset = float(os.pread(descriptor, LENGTH, 0))
        return int(((time.time() if frozen is None else frozen) + offset) * 1000)

    return now


def storage_full() -> None:
    """Raises what dbm.sqlite3 raises when the disk is full: SQLite's own error."""
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 1")
    try:
        database.execute("CREATE TABLE fills_the_second_page (x)")
    except sqlite3.Error as exception:
        raise dbm.sqlite3.error(str(exception))  # noqa: B904 - just as dbm.sqlite3 does it


def unavailable() -> None:
    """Raises what dbm.sqlite3 raises when the file cannot be used: SQLite's own error, from a directory."""
    try:
        sqlite3.connect("/")
    except sqlite3.Error as exception:
        raise dbm.sqlite3.error(str(exception))  # noqa: B904 - just as dbm.sqlite3 does it


def internal_error() -> None:
    """Raises what nobody foresaw."""
    raise ZeroDivisionError("a fault put in on purpose")


WRITING, ALL, LISTING = ["__setitem__"], ["__getitem__", "__setitem__", "__delitem__"], ["__iter__"]
FAULTS = {
    "storage_full": (storage_full, WRITING),
    "unavailable": (unavailable, ALL),
    "internal_error": (internal_error, [*ALL, "handler"]),
    "uncountable": (unavailable, LISTING),
}
FROM_THE_START = {"uncountable"}  # the server starts all the same


def put_in_faults(file: Path, server: ModuleType) -> None:
    """Makes the database's handles and the operations fail as `file` says at each call: as in FAULTS, or not at all."""
    descriptor = os.open(file, os.O_RDONLY)
    handle = dbm.sqlite3._Database

    def faulty(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            fault = os.pread(descriptor, LENGTH, 0).decode().strip()
            if fault and name in FAULTS[fault][1]:
                FAULTS[fault][0]()
            return method(*arguments, **options)

        return call

    for name in ALL + LISTING:
        setattr(handle, name, faulty(name, getattr(handle, name)))
    for operation_id, handler in server.HANDLERS.items():
        server.HANDLERS[operation_id] = faulty("handler", handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", type=Path, required=True, help="file with the offset in seconds, read at each call")
    parser.add_argument("--frozen", type=float, help="Unix seconds at which time stands still, but for the offset")
    parser.add_argument("--fault", type=Path, help=f"file with a fault's name, or none: {', '.join(FAULTS)}")
    parser.add_argument("--broken", help="break the server by this fault of broken.py")
    arguments = parser.parse_args()
    server = load_server()
    if arguments.broken:
        from server_tests.broken import FAULTS as BROKEN_SERVERS

        BROKEN_SERVERS[arguments.broken].put_in()
    from unittest import mock
    from server import clock as the_clock

    mock.patch.object(the_clock, "now", clock(arguments.clock, arguments.frozen)).start()
    if arguments.fault:
        put_in_faults(arguments.fault, server)
    return server.main([])


if __name__ == "__main__":
    sys.exit(main())
