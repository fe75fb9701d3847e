"""The users that a run may have left on a given target, even if a signal ends it, or one of its processes is killed.

Each process of a run notes the users that it registers, before it sends the request, and the users that are deleted.
The notes are in a folder that only this user can read. The process that started the run reads them when all others
have ended, deletes who is left, and removes the folder.
"""

import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from clients.python.backup_client import BackupClient
from contract_tests.target import exchanges

FOLDER = "CONTRACT_NOTES"  # the variable by which the other processes of the run find the folder
END_SECONDS = 30  # how long to wait for the others to end
AGAIN_SECONDS = 1  # after how long a request whose sender was killed has been carried out
TIMEOUT = 10  # seconds

Credentials = tuple[str, str]


# ---- Notes -------------------------------------------------------------------------------------------------


class Notes:
    """The notes of this process: a file that it holds locked while it lives."""

    def __init__(self, folder: str) -> None:
        self.pid = os.getpid()
        self._file = os.open(Path(folder, f"{self.pid}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._lock = threading.Lock()
        self._there: dict[Credentials, bool] = {}  # whether an answer has said so

    def may_be_there(self, credentials: Credentials, *, is_sure: bool = False) -> None:
        with self._lock:
            if credentials not in self._there:
                self._write(True, credentials)
            self._there[credentials] = is_sure or self._there.get(credentials, False)

    def is_gone(self, credentials: Credentials, *, unless_sure: bool = False) -> None:
        with self._lock:
            if credentials in self._there and not (unless_sure and self._there[credentials]):
                del self._there[credentials]
                self._write(False, credentials)

    def _write(self, is_there: bool, credentials: Credentials) -> None:
        os.write(self._file, json.dumps([is_there, *credentials]).encode() + b"\n")


_notes: Notes | None = None


def notes() -> Notes | None:
    """Return the notes of this process. None means that the run tests no given target, so nobody needs notes."""
    global _notes
    folder = os.environ.get(FOLDER)
    if folder and (_notes is None or _notes.pid != os.getpid()):
        _notes = Notes(folder)
    return _notes if folder else None


def sending(method: str | None, path: str, credentials: Credentials | None, body: str | bytes | None) -> None:
    """Note what a request may do, before it is sent."""
    if (own := notes()) and credentials:
        match method, path:
            case "POST", "/api/register":
                own.may_be_there(credentials)
            case "PUT", "/api/user/storage-key" if key := exchanges.member_of(body, "storageKey"):
                own.may_be_there((credentials[0], str(key)))


def answered(
    method: str | None, path: str, credentials: Credentials | None, body: str | bytes | None, status: int
) -> None:
    """Note what a request has done. An answer of 5xx leaves that open."""
    if not (own := notes()) or not credentials:
        return
    match method, path:
        case "POST", "/api/register" if status in (200, 201):
            own.may_be_there(credentials, is_sure=True)
        case "POST", "/api/register" if status < 500:
            own.is_gone(credentials, unless_sure=True)
        case "PUT", "/api/user/storage-key" if key := exchanges.member_of(body, "storageKey"):
            new = (credentials[0], str(key))
            if status == 200:
                own.may_be_there(new, is_sure=True)
                own.is_gone(credentials)
            elif status < 500:
                own.is_gone(new, unless_sure=True)
        case "DELETE", "/api/user" if status == 204:
            own.is_gone(credentials)


class NotingSession(requests.Session):
    """Notes the users that its requests register and delete."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        path = (request.path_url or "").partition("?")[0]
        credentials = exchanges.credentials_of(request.headers.get("Authorization", ""))
        sending(request.method, path, credentials, request.body)
        response = super().send(request, **options)
        answered(request.method, path, credentials, request.body, response.status_code)
        return response


# ---- The run -----------------------------------------------------------------------------------------------


def begin() -> None:
    """Make the folder for the notes of this run."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="contract-")  # its mode is 0700


def is_begun() -> bool:
    return FOLDER in os.environ


def end(base_url: str, secret: str, keyid: str) -> str | None:
    """Delete the users that are left. Return what there is to say about it, or None if nobody was left."""
    left = set(read(Path(os.environ[FOLDER])))
    statuses = delete(left, base_url, secret, keyid)
    # Who is unknown never came to be, or is yet to come: the last request of a killed process may be on its way.
    if unknown := {credentials for credentials, status in statuses.items() if status == 401}:
        time.sleep(AGAIN_SECONDS)
        statuses |= delete(unknown, base_url, secret, keyid)
    if failed := [status for status in statuses.values() if status not in (204, 401)]:
        return f"{len(failed)} of the run's users could not be deleted"
    count = list(statuses.values()).count(204)
    return f"{count} users that the run had left are deleted" if count else None


def forget() -> None:
    """Remove the folder."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def read(folder: Path) -> Iterator[Credentials]:
    """Yield who may be left, as all processes have noted. Wait until each of them has ended."""
    deadline = time.monotonic() + END_SECONDS
    for path in folder.glob("*.jsonl"):
        there: set[Credentials] = set()
        with open(path) as file:
            while path.name != f"{os.getpid()}.jsonl" and not locked(file.fileno()) and time.monotonic() < deadline:
                time.sleep(0.05)
            for line in file:
                is_there, user_id, storage_key = json.loads(line)
                (there.add if is_there else there.discard)((user_id, storage_key))
        yield from there


def locked(descriptor: int) -> bool:
    """Return whether the lock of a file could be taken, because whoever held it has ended."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def delete(users: set[Credentials], base_url: str, secret: str, keyid: str) -> dict[Credentials, int]:
    """Delete users. Return the status of each answer, 0 for none."""
    statuses = dict.fromkeys(users, 0)
    with requests.Session() as session:
        for credentials in users:
            client = BackupClient(base_url, secret, credentials, keyid=keyid, session=session, timeout=TIMEOUT)
            try:
                statuses[credentials] = client.delete_user().status_code
            except requests.RequestException:
                pass
    return statuses
