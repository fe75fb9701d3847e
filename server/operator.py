"""The operator's socket: how maintenance.py asks the running server to delete accounts.

Only the server writes to its file, and on Fly nobody has a shell beside a stopped server. So the server listens on a
Unix socket beside the file, `{file}.sock`. Its mode is 0600: only the server's own user and root can connect.

A connection carries one request and one answer, each a line of JSON. Connections are served one after the other.

    {"remove": [{"userId": "…", "createdAt": 1764147600000, "version": 3}, …]}
    {"outcomes": ["removed", …]}

A run of `migrate` closes the store for a while, keeps it closed, and then closes it for good. `reopen` undoes that. If
`done` is false, the run has not kept the store closed until now, and nothing was changed.

    {"close": {"run": "…", "seconds": 30}}                  {"done": true}
    {"renew": {"run": "…", "seconds": 30}}                  {"done": true}
    {"move": {"run": "…", "state": "to:…"}}                 {"done": true}
    {"reopen": true}                                        {"done": true}

`createdAt` and `version` (the latest version, or 0) are what the operator has seen. If the account is another by now,
or has a newer version, it stays. A request that is malformed gets {"error": "…"}.
"""

import contextlib
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from server import bounds, i_json, migration
from server.accounts import StorageError
from server.log import log

USER_ID = re.compile(r"[0-9a-f]{64}")
REMOVED, CHANGED, GONE, FAILED = "removed", "changed", "gone", "failed"  # the outcomes


class Refused(Exception):
    """The server does not do what it was asked. The message says why, and repeats nothing of the request."""


@dataclass(frozen=True)
class Listed:
    """An account as the operator has seen it."""

    user_id: str = field(repr=False)
    created_at: int
    version: int  # the latest, or 0

    @classmethod
    def of(cls, value: Any) -> "Listed":
        """Return what the JSON value says. Raise Refused."""
        match value:
            case {"userId": str(user_id), "createdAt": int(created_at), "version": int(version)} if len(
                value
            ) == 3 and USER_ID.fullmatch(user_id):
                return cls(user_id, created_at, version)
        raise Refused("an account needs userId, createdAt and version")

    def to_json(self) -> dict[str, Any]:
        return {"userId": self.user_id, "createdAt": self.created_at, "version": self.version}


def socket_path(database: Path) -> Path:
    """Return where the server of this file listens. A link to the file leads to the same socket."""
    return Path(f"{os.path.realpath(database)}.sock")


# --- The server's side ------------------------------------------------------------------------------------------------


class Closable(Protocol):
    """A store that `migrate` can close for changes (server/dbm_writer.py)."""

    def close_for(self, run: str, seconds: float) -> None: ...

    def renew(self, run: str, seconds: float) -> bool: ...

    def close_for_good(self, run: str, state: str) -> bool: ...

    def reopen(self) -> None: ...


class Operator:
    """Listens on the socket, in a thread of its own, until it is closed."""

    def __init__(self, database: Path, remove: Callable[[Listed], str], store: Closable) -> None:
        """Begin. `remove` deletes an account and returns the outcome, and `store` can be closed.

        The caller holds the lock on the file, so a socket that is there already is one that a killed server has left.
        If the socket cannot be made, the log says so, and the server does without.
        """
        self._path, self._store, self._remove = socket_path(database), store, remove
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(1)  # on some systems, nothing else ends a wait for a connection
        try:
            self._listen()
        except OSError as error:  # also if the path is too long: a socket's may have about 100 bytes
            self._listener.close()
            log(event="operator_socket", reason=f"maintenance.py cannot reach this server: {error.strerror or error}")
            self._thread = None
            return
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise OSError(0, "something else has the name of the socket")
            self._path.unlink()
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)  # before it listens, so nobody else can have connected
        self._listener.listen(bounds.OPERATOR_WAITING)

    def close(self) -> None:
        """Listen no more. Wait for the deletion in progress, and begin no other."""
        if not self._thread:
            return
        self._stopping.set()
        with contextlib.suppress(OSError):  # the file system may be read-only by now
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(bounds.TURN_SECONDS + bounds.DISK_SECONDS)
        self._listener.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:  # no descriptor is free, or the listener is shut down
                self._stopping.wait(1)
                continue
            with connection:
                try:
                    answer = i_json.encode(self._answer(connection)) + b"\n"
                    connection.settimeout(bounds.OPERATOR_SECONDS)
                    connection.sendall(answer)
                except OSError:  # whoever asked is gone, or does not read
                    pass
                except Exception as error:  # the next one is served
                    log.error(error)

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            request = i_json.decode(read_line(connection, bounds.OPERATOR_SECONDS))
            match request:
                case {"remove": list(values)} if len(request) == 1 and len(values) <= bounds.OPERATOR_ACCOUNTS:
                    return {"outcomes": self._remove_all([Listed.of(value) for value in values])}
                case {"close": {"run": str(run), "seconds": int(seconds)}} if 0 <= seconds <= bounds.LEASE_SECONDS:
                    self._store.close_for(run, seconds)
                    log(event="closed", seconds=seconds)
                    return {"done": True}
                case {"renew": {"run": str(run), "seconds": int(seconds)}} if 0 <= seconds <= bounds.LEASE_SECONDS:
                    return {"done": self._store.renew(run, seconds)}
                case {"move": {"run": str(run), "state": str(state)}} if migration.MOVED.fullmatch(state):
                    if done := self._store.close_for_good(run, state):
                        log(event="moved")
                    return {"done": done}
                case {"reopen": True}:
                    self._store.reopen()
                    log(event="reopened")
                    return {"done": True}
            raise Refused(f"the request is not known, or names more than {bounds.OPERATOR_ACCOUNTS} accounts")
        except (Refused, i_json.NotIJson, StorageError) as error:
            return {"error": str(error)}

    def _remove_all(self, accounts: list[Listed]) -> list[str]:
        outcomes = [self._remove_one(account) for account in accounts]
        log(event="operator_removed", accounts=outcomes.count(REMOVED), asked=len(accounts))
        return outcomes

    def _remove_one(self, account: Listed) -> str:
        if self._stopping.is_set():
            return FAILED
        try:
            return self._remove(account)
        except StorageError as error:
            log.error(error)
            return FAILED


def read_line(connection: socket.socket, seconds: float) -> bytes:
    """Read a line that ends within so many seconds, without its end. Raise Refused or OSError."""
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        if len(line) > bounds.OPERATOR_LINE_BYTES:
            raise Refused(f"a line may have {bounds.OPERATOR_LINE_BYTES} bytes")
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(bounds.OPERATOR_LINE_BYTES)
        if not part:
            raise ConnectionResetError("the other side has ended the connection")
        line += part
    return line[:-1]


# --- The side of maintenance.py ---------------------------------------------------------------------------------------


def remove(database: Path, accounts: list[Listed]) -> list[str]:
    """Ask the server of this file to delete these accounts, at most OPERATOR_ACCOUNTS. Return each outcome.

    Raise OSError if no server answers, and Refused if it does not do so.
    """
    answer = asked(database, {"remove": [account.to_json() for account in accounts]}, len(accounts))
    match answer:
        case {"outcomes": list(outcomes)} if len(outcomes) == len(accounts):
            return outcomes
    raise Refused(str(answer.get("error", "the answer is not known")))


def asked(database: Path, request: dict[str, Any], changes: int = 1) -> dict[str, Any]:
    """Send a request that makes so many changes. Return the answer. Raise OSError if no server answers, and Refused."""
    # The server waits so long for each at worst, on a disk that stalls.
    seconds = bounds.OPERATOR_SECONDS + changes * (bounds.TURN_SECONDS + bounds.DISK_SECONDS)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(str(socket_path(database)))
        connection.sendall(i_json.encode(request) + b"\n")
        answer: dict[str, Any] = i_json.decode(read_line(connection, seconds))
    if "error" in answer:
        raise Refused(str(answer["error"]))
    return answer
