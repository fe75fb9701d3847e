"""A server of a test's own: a process. A test can move its clock and give it a fault.

    with ServerProcess(tmp_path, BACKUPS_PER_HOUR="3") as server:
        server.client().register_user()
        server.move_clock(3600)

A command, COMMAND, starts the server. It is specific to one server, so it is not part of these tests. It has two forms:

    COMMAND --clock FILE --fault FILE [--frozen SECONDS] [--volume BYTES] [--pause FILE]
        The environment has the server's settings. The command becomes the server. When it serves, it prints a line of
        JSON with "event": "serving" and "url". It may have "keepsCounts": true, if a restart does not forget what the
        limits on addresses and guessing have counted. Everything that it prints is lines of JSON. SIGTERM stops it.
        FILE of --clock contains a number: how many seconds the server's clock is ahead of the real time. If --frozen is
        given, the server's clock stands still at SECONDS (Unix seconds) plus this number. FILE of --fault contains the
        name of a fault (FAULTS), or spaces. Both files change while the server runs. The server must read them
        whenever they matter.
        If --volume is given, the folder of DATABASE_PATH seems to be a volume of so many bytes.
        FILE of --pause contains spaces, or where to wait. "write 3 abc" is right before the third write of what is
        stored of an account. "any 3 def" is the third such point or one right before or after such a read. The points
        are counted since FILE got this text. There the server creates FILE.waiting, waits until FILE has another text,
        deletes FILE.waiting and goes on. A server that cannot do so may ignore the option; then the tests find less.
        If the environment has the settings of BEHIND_A_PROXY, the server takes a client's address from its header.
    COMMAND --damage FILE
        The environment is the same. The server is stopped, or it runs. The command finds the stored backup that has the
        bytes of FILE, flips the lowest bit of its last byte, and exits with 0.
    COMMAND --damage-account FILE
        The server is stopped. The command flips a bit of what is stored of the account whose userId is in FILE.
"""

import itertools
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

from clients.python.backup_client import BackupClient, Keys, app_secrets
from contract_tests.target import dates
from contract_tests.target.checked_client import checked_client
from contract_tests.target.observer import Observer
from contract_tests.target.openapi import REPOSITORY, SERVER

# The command that starts a server of a test's own. By default, it starts the server of this repository.
COMMAND = shlex.split(os.environ.get("CONTRACT_SERVER_COMMAND", "")) or [
    *(sys.executable, "-P", str(REPOSITORY / "server_tests/launcher.py"))
]
# What a test may break on purpose while the server runs. In this order: the disk is full, the file cannot be used,
# something unforeseen happens. And, from the start on, the disk is full, or the server cannot count what is stored.
# "slow": each read and write of the store takes a few milliseconds longer, which a server may ignore.
FAULTS = ("storage_full", "unavailable", "internal_error", "full_from_the_start", "uncountable", "slow")
FROM_THE_START = {"full_from_the_start", "uncountable"}  # the server must start in spite of it
# How a server learns a client's address from its proxy, for tests that need addresses which this machine does not have.
BEHIND_A_PROXY: dict[str, Any] = {"settings": {"FLY_APP_NAME": "a-name-that-fly-sets"}, "header": "Fly-Client-IP"}
# Set if a run measures what it reaches.
COVERAGE = ("COVERAGE_PROCESS_START", "COVERAGE_FILE", "COVERAGE_BRANCH", "COVERAGE_CORE")
INHERITED = ("PATH", "BACKUP_SERVER", *COVERAGE)
ZONE = os.environ.get("TZ") or "<+1245>-12:45"  # of each server: another one than UTC, unless the run has one
START_SECONDS = 30  # how long a start may take, on a busy machine
STOP_SECONDS = 60  # how long a stop may take, while an upload is in progress
WEEKS = 5 * 7 * 86_400  # seconds; after so long, nothing counts any more, and no address is known
LENGTH = 40  # the length, in characters, of the files that control a running server


class ServerProcess:
    """A server process on 127.0.0.1 and a free port. Its database and its log are in `directory`.

    `environ` has the server's settings. A setting of None is left out. APP_SECRET_KEY and ADMIN_SECRET_KEY are random
    unless given. DEBUG is 1 unless given, so that the server's log explains why a test fails.

    If `frozen` (Unix seconds) is given, the server's clock stands still until `move_clock` moves it. `fault`, one of
    FAULTS, makes the server fail as soon as it serves. You can set the attribute, or clear it (None), at any time.
    `command` starts the server. `volume` is the size of the volume that the server seems to be on, in bytes. If
    `pauses`, the test may stop the server in the middle of an operation (`pause_at`).

    Entering the context starts the server, and leaving it stops the server. Each start picks another port.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        fault: str | None = None,
        frozen: float | None = None,
        command: Sequence[str] = COMMAND,
        volume: int | None = None,
        pauses: bool = False,
        **environ: Any,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.frozen, self.volume = frozen, volume
        self.command = list(command)
        settings = {
            "APP_SECRET_KEY": secrets.token_hex(32),
            "ADMIN_SECRET_KEY": secrets.token_hex(32),
            "DATABASE_PATH": self.directory / "backup.db",
            "HOST": "127.0.0.1",
            "PORT": 0,
            "DEBUG": 1,
            "TZ": ZONE,
            **environ,
        }
        self.environ = {name: str(value) for name, value in settings.items() if value is not None}
        self._settings = self.environ.copy()
        self.database = Path(self.environ["DATABASE_PATH"])
        self.base_url, self.keeps_counts = "", False
        self.observer = Observer()
        self.process: subprocess.Popen[bytes] | None = None
        self.stdout = self.directory / "stdout.log"
        self.stderr = self.directory / "stderr.log"
        self._mark: dict[Path, int] = {}
        self._clock = self.directory / "clock"
        self._fault_file = self.directory / "fault"
        self._pause = self.directory / "pause" if pauses else None
        self._pauses = itertools.count()
        self._periods = 0  # of WEEKS, see `some_weeks_later`
        self._set_offset(0.0)
        if frozen is None:
            dates.come_near(self, START_SECONDS)  # and closer when it runs
        self.fault = fault

    @property
    def secret(self) -> str:
        """The first, or only, secret of APP_SECRET_KEY."""
        return app_secrets(self.environ["APP_SECRET_KEY"])[0][1]

    @property
    def secrets(self) -> set[str]:
        """The settings that nobody may see."""
        found = {secret for _, secret in app_secrets(self.environ["APP_SECRET_KEY"])}
        return found | ({self.admin_key} if self.admin_key else set())

    @property
    def keyid(self) -> str:
        """The keyid of that secret."""
        return app_secrets(self.environ["APP_SECRET_KEY"])[0][0]

    @property
    def admin_key(self) -> str | None:
        """ADMIN_SECRET_KEY, if there is one."""
        return self.environ.get("ADMIN_SECRET_KEY")

    def client(self, credentials: Keys | tuple[str, str] | None = None, **options: Any) -> BackupClient:
        """Return a client that uses the server's clock and checks each answer. Without credentials, its user is new."""
        return checked_client(self, credentials, **options)

    def now(self) -> float:
        """Return the server's clock, in Unix seconds."""
        return (time.time() if self.frozen is None else self.frozen) + self._offset

    def move_clock(self, seconds: float) -> None:
        """Move the server's clock at once, backwards if `seconds` is negative."""
        self._set_offset(self._offset + seconds)

    def some_weeks_later(self) -> Self:
        """Make a frozen server ready for the next test: running, without a fault, and at the same time of a later day.

        By then, what the test before has done limits nobody any more.
        """
        assert self.frozen is not None
        assert self.environ == self._settings, "a test that changes the settings needs a server of its own"
        self.fault = None
        if not self.running():
            self.start()
        self._periods = max(self._periods, int(self._offset // WEEKS)) + 1
        self._set_offset(self._periods * WEEKS)
        return self

    def _set_offset(self, offset: float) -> None:
        self._offset = offset
        overwrite(self._clock, f"{offset:.6f}")

    @property
    def fault(self) -> str | None:
        """The fault that the server has now, or None."""
        return self._fault

    @fault.setter
    def fault(self, name: str | None) -> None:
        assert name is None or name in FAULTS, name
        self._fault = name
        if name is None or self.running():
            overwrite(self._fault_file, name or "")

    def pause_at(self, number: int, what: str = "any") -> None:
        """Let the server wait at the n-th point from now, before or after a read or before a write of what is stored.

        If `what` is "write", only those before a write count. See `is_waiting`.
        """
        assert self._pause
        overwrite(self._pause, f"{what} {number} {next(self._pauses)}")

    def is_waiting(self) -> bool:
        """Return whether the server waits where `pause_at` said."""
        return Path(f"{self._pause}.waiting").exists()

    def go_on(self) -> None:
        """Let the server wait no longer, and nowhere."""
        assert self._pause
        overwrite(self._pause, "")

    def start(self) -> Self:
        """Start the server and wait until it serves. Raise RuntimeError with its stderr if it does not."""
        overwrite(self._fault_file, self._fault or "" if self._fault in FROM_THE_START else "")
        command = [*self.command, "--clock", str(self._clock), "--fault", str(self._fault_file)]
        command += ["--frozen", repr(self.frozen)] if self.frozen is not None else []
        command += ["--volume", str(self.volume)] if self.volume is not None else []
        self.observer.allows_origins = bool(self.environ.get("ALLOWED_ORIGINS"))
        if self._pause:
            self.go_on()
            Path(f"{self._pause}.waiting").unlink(missing_ok=True)
            command += ["--pause", str(self._pause)]
        before = len(self.log())
        with open(self.stdout, "ab") as stdout, open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                command, env=self.environment(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log()[before:]:
                if line.get("event") == "serving":
                    self.base_url, self.keeps_counts = line["url"], line.get("keepsCounts", False)
                    self.fault = self.fault
                    if self.frozen is None and not before:
                        dates.come_near(self)
                    return self
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the server did not start: {self.stderr.read_text()}")

    def environment(self) -> dict[str, str]:
        """Return the environment of the command: the settings, and the path on which Python finds its modules."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environ = inherited | self.environ
        folder = Path(environ.get("BACKUP_SERVER", SERVER)).resolve().parent
        return {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])} | environ

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal and return at once. `wait()` returns how the process ended."""
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the process to end. Return its exit code."""
        assert self.process
        return self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Stop the server with SIGTERM, and wait. Return its exit code."""
        self.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill the server with SIGKILL, like a crash."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def restart(self, *, fault: str | None = None) -> Self:
        """Stop the server and start it again on the same file, with this fault, or with none."""
        if self.running():
            self.stop()
        self.fault = fault
        return self.start()

    def damage(self, blob: bytes, *, is_running: bool = False) -> None:
        """Flip the lowest bit of a stored blob's last byte.

        Stop the server before and start it again, unless it is to run on.
        """
        self._damage("--damage", blob, is_running)

    def damage_account(self, user_id: str) -> None:
        """Stop the server, flip a bit of the record of an account, and start the server again."""
        self._damage("--damage-account", user_id.encode())

    def _damage(self, option: str, what: bytes, is_running: bool = False) -> None:
        if not is_running:
            self.stop()
        file = self.directory / "damage"
        file.write_bytes(what)
        subprocess.run([*self.command, option, str(file)], env=self.environment(), check=True, timeout=START_SECONDS)
        if not is_running:
            self.start()

    def running(self) -> bool:
        """Return whether the process is running."""
        return self.process is not None and self.process.poll() is None

    def log(self) -> list[dict[str, Any]]:
        """Return the log lines so far, including those from before a restart."""
        if not self.stdout.exists():
            return []
        lines = self.stdout.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]  # after the last newline, a line may be incomplete

    def mark(self) -> None:
        """Remember where the log and stderr end now, for `since_mark`."""
        self._mark = {file: file.stat().st_size for file in (self.stdout, self.stderr) if file.exists()}

    def since_mark(self) -> tuple[str, str]:
        """Return what the log and stderr contain since the last mark, or everything if there is no mark."""

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
    """Replace the text of a file that controls a running server. Keep its length, so that nobody reads half of it."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        stream.write(text.ljust(LENGTH))
