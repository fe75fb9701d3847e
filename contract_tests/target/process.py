"""A server of a test's own: a process with a clock that can be moved and, if asked, with a fault.

    with ServerProcess(tmp_path, BACKUPS_PER_HOUR="3") as server:
        server.client().register_user()
        server.move_clock(3600)

What starts it is a command, COMMAND, which is about one server and so lies outside these tests. It is called

    COMMAND --clock FILE --fault FILE [--frozen SECONDS]
        with the server's settings as its environment. It becomes the server, and prints a line of JSON with
        "event": "serving" and "url" once it serves. It prints nothing but such lines. SIGTERM stops it.
        FILE of --clock holds a number: the seconds by which the server's clock is ahead of the real time, or of
        --frozen, at which it otherwise stands still (Unix seconds). FILE of --fault holds the name of a fault (FAULTS)
        or spaces. Both change while the server runs, and are read whenever it matters.
    COMMAND --damage FILE
        with the same environment, while the server is stopped. It flips the lowest bit of the last byte of the stored
        backup that has the bytes of FILE, and exits with 0.
"""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from clients.python.backup_client import BackupClient, Keys
from contract_tests.target.checked_client import checked_client
from contract_tests.target.observer import Observer
from contract_tests.target.openapi import REPOSITORY, SERVER

# What starts a server of a test's own: by default, this repository's.
COMMAND = shlex.split(os.environ.get("CONTRACT_SERVER_COMMAND", "")) or [
    *(sys.executable, "-P", str(REPOSITORY / "server_tests/launcher.py"))
]
# What may be broken on purpose, while the server runs: its disk is full; its file cannot be used; something that
# nobody foresaw happens; or, from the start on, what is stored cannot be counted.
FAULTS = ("storage_full", "unavailable", "internal_error", "uncountable")
FROM_THE_START = {"uncountable"}  # the server starts all the same
# Set if a run measures what it reaches.
COVERAGE = ("COVERAGE_PROCESS_START", "COVERAGE_FILE", "COVERAGE_BRANCH", "COVERAGE_CORE")
INHERITED = ("PATH", "BACKUP_SERVER", *COVERAGE)
START_SECONDS = 30  # until "serving", on a busy machine
STOP_SECONDS = 60  # until the exit, with an upload in flight
LENGTH = 40  # of the files that steer a running server


class ServerProcess:
    """The server in a process of its own, on 127.0.0.1 and a free port, its database and log in `directory`.

    `environ` are the server's settings; one that is None is left out. APP_SECRET_KEY and ADMIN_SECRET_KEY are made up
    unless given. DEBUG is 1 unless given, so that the server's log tells what a failing test needs.

    `frozen` (Unix seconds) makes time stand still, but for `move_clock`. `fault`, one of FAULTS, makes the server fail
    once it serves; it can be set, or cleared (None), at any time. `command` starts the server.

    Entering the context starts the server, leaving it stops it. The port is another after each start.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        fault: str | None = None,
        frozen: float | None = None,
        command: Sequence[str] = COMMAND,
        **environ: Any,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.frozen = frozen
        self.command = list(command)
        settings = {
            "APP_SECRET_KEY": secrets.token_hex(32),
            "ADMIN_SECRET_KEY": secrets.token_hex(32),
            "DATABASE_PATH": self.directory / "backup.db",
            "HOST": "127.0.0.1",
            "PORT": 0,
            "DEBUG": 1,
            **environ,
        }
        self.environ = {name: str(value) for name, value in settings.items() if value is not None}
        self.database = Path(self.environ["DATABASE_PATH"])
        self.base_url = ""
        self.observer = Observer()
        self.process: subprocess.Popen[bytes] | None = None
        self.stdout = self.directory / "stdout.log"
        self.stderr = self.directory / "stderr.log"
        self._mark: dict[Path, int] = {}
        self._clock = self.directory / "clock"
        self._fault_file = self.directory / "fault"
        self._set_offset(0.0)
        self.fault = fault

    @property
    def secret(self) -> str:
        """The first, or only, secret of APP_SECRET_KEY."""
        return self.environ["APP_SECRET_KEY"].partition(",")[0].rpartition(":")[2]

    @property
    def secrets(self) -> set[str]:
        """All that nobody may see of the settings."""
        entries = self.environ["APP_SECRET_KEY"].split(",")
        return {entry.rpartition(":")[2] for entry in entries} | ({self.admin_key} if self.admin_key else set())

    @property
    def keyid(self) -> str:
        """The keyid of that secret."""
        return self.environ["APP_SECRET_KEY"].partition(",")[0].rpartition(":")[0] or "app"

    @property
    def admin_key(self) -> str | None:
        """ADMIN_SECRET_KEY, if there is one."""
        return self.environ.get("ADMIN_SECRET_KEY")

    def client(self, credentials: Keys | tuple[str, str] | None = None, **options: Any) -> BackupClient:
        """Return a client on the server's clock, of a made-up user unless given; the spec checks each answer."""
        return checked_client(self, credentials, **options)

    def now(self) -> float:
        """Return the server's clock, in Unix seconds."""
        return (time.time() if self.frozen is None else self.frozen) + self._offset

    def move_clock(self, seconds: float) -> None:
        """Move the server's clock, at once, also backwards."""
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
        """Start the server and wait until it serves. Raises RuntimeError with its stderr if it does not."""
        overwrite(self._fault_file, self._fault or "" if self._fault in FROM_THE_START else "")
        command = [*self.command, "--clock", str(self._clock), "--fault", str(self._fault_file)]
        command += ["--frozen", repr(self.frozen)] if self.frozen is not None else []
        before = len(self.log())
        with open(self.stdout, "ab") as stdout, open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                command, env=self.environment(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
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

    def environment(self) -> dict[str, str]:
        """Return the environment of the command: the settings, and where a server in Python finds its modules."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environ = inherited | self.environ
        folder = Path(environ.get("BACKUP_SERVER", SERVER)).resolve().parent
        return {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])} | environ

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal and return at once; `wait()` tells how it ended."""
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the exit; return the exit code."""
        assert self.process
        return self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Stop the server by SIGTERM and wait; return its exit code."""
        self.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill the server by SIGKILL, as a crash would."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def restart(self, *, fault: str | None = None) -> Self:
        """Stop the server and start it again on the same file, with this fault or none."""
        if self.running():
            self.stop()
        self.fault = fault
        return self.start()

    def damage(self, blob: bytes) -> None:
        """Flip the lowest bit of a stored blob's last byte, and start the server again."""
        self.stop()
        file = self.directory / "damage"
        file.write_bytes(blob)
        subprocess.run(
            [*self.command, "--damage", str(file)], env=self.environment(), check=True, timeout=START_SECONDS
        )
        self.start()

    def running(self) -> bool:
        """Return whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def log(self) -> list[dict[str, Any]]:
        """Return the log lines so far, those before a restart included."""
        if not self.stdout.exists():
            return []
        lines = self.stdout.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is not a whole line

    def mark(self) -> None:
        """Remember where the log and stderr end by now, for `since_mark`."""
        self._mark = {file: file.stat().st_size for file in (self.stdout, self.stderr) if file.exists()}

    def since_mark(self) -> tuple[str, str]:
        """Return what the log and stderr have beyond the last mark, or all that they have."""

        def text(file: Path) -> str:
            return file.read_bytes()[self._mark.get(file, 0) :].decode("utf-8", "replace") if file.exists() else ""

        return text(self.stdout), text(self.stderr)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        if self.running():
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise


def overwrite(file: Path, text: str) -> None:
    """Replace the text of a file that steers a running server, at one length, so that nobody reads half."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        stream.write(text.ljust(LENGTH))
