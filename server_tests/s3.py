"""A real S3 server for a test: versitygw, which keeps the objects as files in a folder.

`tox run -e bucket` installs it. Without it, the tests that need it are not run.
"""

import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from contract_tests.suite.outcomes import not_run

PROGRAM = "versitygw"
BUCKET = "copies"


def program() -> str:
    """Return the path of the server. If it is not here, the test ends as not run."""
    found = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=str(Path(sys.executable).parent))
    return found or not_run(f"needs {PROGRAM}: tox run -e bucket installs it")


class S3Server:
    """An S3 server with one empty bucket. Entering the context starts it, on a port that stays the same."""

    def __init__(self, directory: Path) -> None:
        self._program = program()
        self.folder = directory / "objects" / BUCKET
        self.folder.mkdir(parents=True)
        self._tags = directory / "tags"
        self._tags.mkdir()
        self.key_id, self.secret = secrets.token_hex(8), secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self, port: int | None = None) -> dict[str, str]:
        """Return what `fly storage create` would set. `port` is that of a proxy, if there is one."""
        return {
            "BUCKET_NAME": BUCKET,
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port or self.port}",
            "AWS_REGION": "auto",
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }

    def start(self) -> Self:
        """Start it, with the objects that it had."""
        options = ["--port", f"127.0.0.1:{self.port}", "--access", self.key_id, "--secret", self.secret]
        options += ["--region", "auto", "--keep-alive", "--quiet", "posix", "--sidecar", str(self._tags)]
        self._process = subprocess.Popen(
            [self._program, *options, str(self.folder.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.02)
        raise RuntimeError("the S3 server did not start")

    def kill(self) -> None:
        """End it at once."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def objects(self) -> dict[str, bytes]:
        """Return each object by its name, read from the files."""
        found = {}
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # it has gone since
                if not name.startswith(".") and path.is_file():
                    found[name] = path.read_bytes()
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.kill()


class Proxy:
    """Stands between a server and the S3 server. It can cut off a request after so many bytes."""

    def __init__(self, to: int) -> None:
        self.cut_after: int | None = None  # bytes of a connection that reach the S3 server
        self.cuts = 0
        self._to, self._listener = to, socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16_384):
                carried += len(data)
                if is_request and self.cut_after is not None and carried > self.cut_after:
                    self.cuts += 1
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
