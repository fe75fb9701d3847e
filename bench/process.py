"""A process to measure: the server as it is deployed, or something to compare it with."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from bench.box import Box

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60
STOP_SECONDS = 40
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
Address = tuple[str, int]


class Measured:
    """A process that announces with one line of JSON, {"event": "serving", "url": ...}, that it serves.

    It is in the box if there is one. Its log is read and counted, unless `reads_log` is false. `limits` is what a shell
    runs first, such as `ulimit -n 256`.
    """

    def __init__(
        self,
        command: list[str],
        environ: Mapping[str, str],
        box: Box | None = None,
        *,
        reads_log: bool = True,
        limits: str = "",
    ) -> None:
        if limits:
            command = ["sh", "-c", f'{limits} && exec "$@"', "sh", *command]
        inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        self.box = box
        self.log_lines = 0
        self.other_lines: Counter[str] = Counter()  # the log lines that are not about a request
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            box.command(command) if box else command,
            env={"PYTHONPATH": str(ROOT), **inherited, **environ},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid
        self.serving: dict[str, Any] = {}  # the line that announces that it serves
        assert self._process.stdout
        self.address = self._await(self._process.stdout)
        if reads_log:
            threading.Thread(target=self._count_lines, args=(self._process.stdout,), daemon=True).start()

    def _await(self, stdout: IO[bytes]) -> Address:
        killer = threading.Timer(START_SECONDS, self._process.kill)
        killer.start()
        line = b""
        try:
            for line in stdout:
                event = event_of(line)
                if event.get("event") == "serving":
                    self.serving = event
                    url = urlsplit(event["url"])
                    assert url.hostname and url.port
                    return url.hostname, url.port
        finally:
            killer.cancel()
        raise RuntimeError(f"the process did not start: it ended with {self._process.wait()} {line.decode()}")

    def _count_lines(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self.log_lines += 1
            event = event_of(line)
            if event.get("event") != "request":
                self.other_lines[f"{event.get('event', 'not JSON')} {event.get('at', '')}"] += 1

    def running(self) -> bool:
        """Return whether the process is running."""
        return self._process.poll() is None

    def exit_code(self) -> int | None:
        """Return how the process ended: minus the signal that killed it, or None if it is running."""
        return self._process.poll()

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> int:
        """Return the memory that the process has in RAM (RSS), in bytes. If it has ended, return 0."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            return 0

    def peak_memory(self) -> int:
        """Return the most memory that the process had in RAM since `forget_peak`, in bytes."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Measure the peak from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def read_bytes(self) -> int:
        """Return how many bytes the process has made the kernel read from a disk."""
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["read_bytes"])

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self, within: float = STOP_SECONDS) -> float:
        """Stop the process and return how many seconds that took. Kill it if it does not stop in time."""
        started = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
        return time.monotonic() - started

    def kill(self) -> None:
        """End the process at once, and release what it leaves."""
        if self.running():
            self._process.kill()
        self._process.wait()


def event_of(line: bytes) -> dict[str, Any]:
    """Return the event of a line of the log, or nothing if it is none."""
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
            return event
    return {}


@contextlib.contextmanager
def measured(*arguments: Any, **options: Any) -> Iterator[Measured]:
    """Start a process (see Measured), and end it with the block."""
    process = Measured(*arguments, **options)
    try:
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def server(
    directory: Path,
    secret: str,
    box: Box | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
    **options: Any,
) -> Iterator[Measured]:
    """Start the server as it is deployed, on a file in `directory`, with limits that no measurement reaches.

    `command` starts another server in its place, such as one that is broken on purpose.
    """
    with measured(
        list(command) or [sys.executable, str(ROOT / "backup_server.py")],
        server_environ(directory, secret) | dict(settings or {}),
        box,
        **options,
    ) as process:
        yield process


def server_environ(directory: Path, secret: str) -> dict[str, str]:
    """Return the settings of a server on a file in `directory`."""
    limits = [
        *("BACKUPS_PER_HOUR", "BACKUPS_PER_DAY", "KEY_CHANGES_PER_HOUR", "KEY_CHANGES_PER_DAY"),
        *("REGISTRATIONS_PER_HOUR", "FAILED_CREDENTIALS_PER_5_MINUTES", "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY"),
    ]
    return {
        "APP_SECRET_KEY": secret,
        "DATABASE_PATH": str(directory / "backup.db"),
        "HOST": "127.0.0.1",
        "PORT": "0",
        **dict.fromkeys(limits, "1000000"),
    }


def new_secret() -> str:
    """Return a secret for one server."""
    return secrets.token_hex(32)


def every(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    """Call `action` again and again, in a thread. Return the function that ends this."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(seconds):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join()

    return stop
