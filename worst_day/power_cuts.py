"""Cut the power at every write, sync and truncation of a server's life: `python -m worst_day.power_cuts`.

A server goes through every operation while strace writes down what it does to its files. Then this makes, for each
moment, the files as a power cut at that moment could have left them, opens them as a store, and compares what is in it
with what the server had acknowledged. An operation that was in progress may have happened or not, and nothing between.

exit codes: 0 nothing was lost, 1 something was, 2 not run: strace is not here, or may not trace
"""

import argparse
import contextlib
import gc
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clients.python.backup_client import BackupClient
from contract_tests.target.openapi import LIMITS
from contract_tests.target.process import COMMAND, ServerProcess
from server.accounts import Account, Store
from server.dbm_store import DbmStore
from worst_day.progress import Progress

KEEP = 2  # versions of an account, so that slots are soon used again
SETTINGS: dict[str, Any] = {
    "KEEP_VERSIONS": f"{KEEP},0,0,0",
    "BACKUPS_PER_HOUR": 1000,
    "BACKUPS_PER_DAY": 1000,
    "DEBUG": 0,
}
MOST_LOST = 20  # after that, it is clear
STRACE_SECONDS = 30  # until strace has written what it saw
CALLS = "openat,pwrite64,ftruncate,fallocate,fdatasync,fsync,link,linkat,unlink,rename,sendto"


class NotRun(Exception):
    """The power cannot be cut here. The message says why."""


# --- What the server does ---------------------------------------------------------------------------------------------

User = str  # a userId
Content = tuple[str, tuple[str, ...]]  # the SHA-256 of an account's storage key, and of each version that is kept
State = dict[User, Content]  # the accounts that live


class Life:
    """A few users, whose operations it performs. It knows what the server has to know after each."""

    def __init__(self, server: ServerProcess, blob_bytes: int) -> None:
        self._server, self._blob_bytes = server, blob_bytes
        self.states: list[State] = [{}]  # after so many answers
        self.operations: Counter[str] = Counter()

    def live(self, rounds: int) -> None:
        """Perform every operation, some of them in each of so many rounds."""
        others = self._server.client()
        self._register(others)
        for number in range(rounds):
            user = self._server.client()
            self._register(user)
            for _ in range(KEEP + 3):  # each slot is used, and then used again
                self._store(user)
                if number % 2:
                    self._store(others)
            user = self._change_key(user)
            self._store(user)
            self._delete(user)
            self._server.move_clock(LIMITS["deletedUserSeconds"])
            time.sleep(1.2)  # housekeeping forgets the deleted user meanwhile
            self._register(user)
            self._store(user)

    def _answered(
        self, operation: str, status: int, expected: int, user: BackupClient, content: Content | None
    ) -> None:
        assert status == expected, f"{operation}: {status}"
        state = dict(self.states[-1])
        if content:
            state[user.credentials[0]] = content
        else:
            del state[user.credentials[0]]
        self.states.append(state)
        self.operations[operation] += 1

    def _register(self, user: BackupClient) -> None:
        status = user.register_user().status_code
        self._answered("registerUser", status, 201, user, (hexdigest(user.credentials[1].encode()), ()))

    def _store(self, user: BackupClient) -> None:
        key, versions = self.states[-1][user.credentials[0]]
        blob = os.urandom(self._blob_bytes)
        status = user.store_backup(blob, versions[-1] if versions else None).status_code
        self._answered("storeBackup", status, 201, user, (key, (*versions, hexdigest(blob))[-KEEP:]))

    def _change_key(self, user: BackupClient) -> BackupClient:
        _, versions = self.states[-1][user.credentials[0]]
        blob, key = os.urandom(self._blob_bytes), os.urandom(32).hex()
        status = user.change_storage_key(key, blob, versions[-1]).status_code
        content = (hexdigest(key.encode()), (*versions, hexdigest(blob))[-KEEP:])
        self._answered("changeStorageKey", status, 200, user, content)
        return self._server.client((user.credentials[0], key))

    def _delete(self, user: BackupClient) -> None:
        self._answered("deleteUser", user.delete_user().status_code, 204, user, None)


def hexdigest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- What happens to the files ----------------------------------------------------------------------------------------


class Event(NamedTuple):
    """A call that changes a file: write, truncate, sync, create, link, unlink or rename. Or an answer that was sent.

    `name` is the file's name in its folder, empty for an answer. `offset` is also the size after a truncation, and
    `data` the second name.
    """

    kind: str
    name: str = ""
    offset: int = 0
    data: bytes = b""


def record(directory: Path, rounds: int, blob_bytes: int, command: Sequence[str] = COMMAND) -> tuple[Life, list[Event]]:
    """Let a server live and stop, and return what it did to its files. `command` starts it. Raise NotRun."""
    trace = directory / "trace"
    tracer = ["strace", "-D", "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", str(trace)]
    if not shutil.which("strace"):
        raise NotRun("there is no strace")
    probe = subprocess.run([*tracer, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise NotRun(f"strace may not trace: {probe.stderr.strip()}")
    files = directory / "files"
    files.mkdir()
    server = ServerProcess(directory, command=[*tracer, *command], DATABASE_PATH=files / "backup.db", **SETTINGS)
    with server:
        life = Life(server, blob_bytes)
        life.live(rounds)
        number = server.process.pid if server.process else 0
    deadline = time.monotonic() + STRACE_SECONDS
    while not re.search(rf"^{number} +\+\+\+ exited", trace.read_text()[-10_000:], re.MULTILINE):
        if time.monotonic() > deadline:
            raise NotRun("strace does not end")
        time.sleep(0.1)
    return life, list(events(trace, files))


LINE = re.compile(r"(\d+) +(.*)")
CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
DESCRIPTOR = re.compile(r"(\d+)<([^>]*)>")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def events(trace: Path, files: Path) -> Iterator[Event]:
    """Read what strace wrote. Only the files in the folder `files` matter, and of these not SQLite's shared memory."""
    begun: dict[str, str] = {}  # by thread, calls that another thread's call has interrupted in the trace
    with open(trace) as lines:
        for line in lines:
            if not (match := LINE.match(line)):
                continue
            thread, text = match.groups()
            if text.endswith("<unfinished ...>"):
                begun[thread] = text.removesuffix("<unfinished ...>")
                continue
            if text.startswith("<... "):
                text = begun.pop(thread, "") + text.partition("resumed>")[2]
            if (call := CALL.match(text)) and int(call[3]) >= 0:
                yield from event_of(call[1], call[2], int(call[3]), files)


def event_of(call: str, arguments: str, result: int, files: Path) -> Iterator[Event]:
    """Yield what a call of the system did, if it matters."""

    def inside(path: str) -> str | None:
        folder, _, name = path.rpartition("/")
        return name if folder == str(files) and not name.endswith("-shm") else None

    strings = [plain(each) for each in STRING.findall(arguments)]
    if call == "sendto":
        if strings and strings[0].startswith(b"HTTP/1."):
            yield Event("answer")
        return
    if call in ("link", "linkat", "unlink", "rename"):
        names = [inside(each.decode()) for each in strings]
        if names[0]:
            yield Event(call.removesuffix("at"), names[0], data=(names[1] or "").encode() if names[1:] else b"")
        return
    if call == "openat":
        if "O_CREAT" in arguments and (name := inside(strings[0].decode())):
            yield Event("create", name)
        return
    descriptor = DESCRIPTOR.match(arguments)
    name = inside(plain(descriptor[2]).decode()) if descriptor else None
    if not name:
        return
    numbers = [int(each) for each in re.findall(r", (\d+)", STRING.sub("", arguments))]
    if call == "pwrite64":
        yield Event("write", name, numbers[-1], strings[0][:result])
    elif call == "ftruncate":
        yield Event("truncate", name, numbers[-1])
    elif call in ("fdatasync", "fsync"):
        yield Event("sync", name)


def plain(text: str) -> bytes:
    """Return the bytes of a string as strace writes it with -xx."""
    return bytes.fromhex(text.replace("\\x", ""))


# --- What a power cut leaves ------------------------------------------------------------------------------------------


@dataclass
class File:
    """A file: what is certainly on disk, and what was done to it since the last sync."""

    synced: bytes = b""
    unsynced: list[Event] = field(default_factory=list)

    def after(self, done: Iterable[Event]) -> bytes:
        """Return the content if only these of the unsynced calls reached the disk."""
        content = bytearray(self.synced)
        for event in done:
            if event.kind == "truncate":
                content[event.offset :] = bytes(max(0, event.offset - len(content)))
            else:
                content.extend(bytes(max(0, event.offset - len(content))))
                content[event.offset : event.offset + len(event.data)] = event.data
        return bytes(content)


def torn(done: list[Event]) -> list[Event]:
    """Return the calls with only half of the last write."""
    *before, last = done
    return [*before, last._replace(data=last.data[: len(last.data) // 2])]


# Which of the unsynced calls reached the disk. A crash of the server alone leaves "all".
CUTS: dict[str, Callable[[list[Event]], list[Event]]] = {
    "all": lambda done: done,
    "none": lambda done: [],
    "all but the last": lambda done: done[:-1],
    "only the last": lambda done: done[-1:],
    "each second one": lambda done: done[::2],
    "half of the last": lambda done: torn(done) if done else [],
}


class Disk:
    """The files, as the calls have left them so far."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}

    def do(self, event: Event) -> None:
        file = self.files.setdefault(event.name, File()) if event.name else File()
        if event.kind in ("write", "truncate"):
            file.unsynced.append(event)
        elif event.kind == "sync":
            file.synced, file.unsynced = file.after(file.unsynced), []
        elif event.kind in ("link", "unlink", "rename"):
            if event.kind != "link":
                del self.files[event.name]
            if event.data:
                self.files[event.data.decode()] = file

    def images(self) -> dict[str, dict[str, bytes]]:
        """Return what a power cut could leave now, by what it did to the unsynced calls, each image once."""
        images: dict[str, dict[str, bytes]] = {}
        for name, cut in CUTS.items():
            image = {path: file.after(cut(file.unsynced)) for path, file in self.files.items()}
            if image not in images.values():
                images[name] = image
        return images


# --- What is in the files ---------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What was tried, and what was lost: one line each."""

    events: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)


def cut_everywhere(
    life: Life,
    recorded: list[Event],
    directory: Path,
    opened: Callable[[Path], Store],
    say: Callable[[str], None],
    every: int = 1,
) -> Outcome:
    """Cut the power after each event, in each way, and look at what `opened` finds. End if enough is lost.

    If `every` is more than 1, cut it only after every so many events.
    """
    gc.freeze()  # a store that is closed collects garbage: it need not look at what is here now
    outcome, disk, answers = Outcome(operations=life.operations), Disk(), 0
    users = sorted({user for state in life.states for user in state})
    for number, event in enumerate(recorded, 1):
        if len(outcome.lost) >= MOST_LOST:
            return outcome
        say(f"{number} of {len(recorded)} calls, {outcome.images.total()} images, {len(outcome.lost)} lost")
        outcome.events[event.kind] += 1
        if event.kind == "answer":
            answers += 1
            continue
        disk.do(event)
        if number % every or event.kind == "create" or "backup.db" not in disk.files:
            continue  # left out, or nothing has changed, or nothing can have been acknowledged yet
        right = life.states[answers : answers + 2]
        for name, image in disk.images().items():
            outcome.images[name] += 1
            try:
                found = look(image, users, directory, opened)
            except Exception as error:  # whatever it is, this image cannot be used
                found = None
                problem = f"{type(error).__name__}: {error}"
            else:
                problem = "another state" if found not in right else ""
            if problem:
                outcome.lost.append(f"after call {number} ({event.kind} {event.name}), {name}: {problem}")
    assert answers == len(life.states) - 1, "each answer was seen"
    gc.unfreeze()
    return outcome


def look(image: dict[str, bytes], users: Iterable[User], directory: Path, opened: Callable[[Path], Store]) -> State:
    """Return what a store finds in these files. Each backup's bytes are verified. Also change something."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        for name, content in image.items():
            Path(folder, name).write_bytes(content)
        with contextlib.closing(opened(Path(folder, "backup.db"))) as store:
            state: State = {}
            for user in users:
                if isinstance(account := store.find(user), Account):
                    for version in account.versions:
                        assert store.data(user, version) is not None, "a version's bytes are gone"
                    state[user] = account.key_sha256, tuple(version.sha256 for version in account.versions)
            with store.account("f" * 64) as held:
                held.create(Account(created_at=0, key_sha256=hexdigest(b"")))
        return state


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day.power_cuts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4, help="how many users live and are deleted (%(default)s)")
    parser.add_argument("--blob-bytes", type=int, default=60_000, help="of each backup (%(default)s)")
    arguments = parser.parse_args()
    say = Progress()
    shared_memory = Path("/dev/shm")
    directory = shared_memory if shared_memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        try:
            say("a server lives, and strace watches")
            life, recorded = record(Path(folder), arguments.rounds, arguments.blob_bytes)
        except NotRun as error:
            print(f"not run: {error}")
            return 2
        outcome = cut_everywhere(life, recorded, Path(folder), open_store, say)
    print_outcome(outcome)
    return 1 if outcome.lost else 0


def open_store(path: Path) -> Store:
    """Open files as the server does."""
    return DbmStore(path, LIMITS["deletedUserSeconds"])


def print_outcome(outcome: Outcome) -> None:
    for title, counts in [
        ("operations", outcome.operations),
        ("calls", outcome.events),
        ("power cuts, by which unsynced calls reached the disk", outcome.images),
    ]:
        print(f"{title}: {counts.total():,} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})")
    print(f"acknowledged and lost, or half there: {len(outcome.lost)}")
    for line in outcome.lost:
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
