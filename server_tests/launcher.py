"""Start the real server for a test, with a clock that the test can move, and with faults.

This is the command that contract_tests/target/process.py describes. It does not change the server's code. It replaces
the server's clocks (`server.clock`), and puts faults into `dbm.sqlite3`, which the
server uses. It imports `backup_server` from the first folder of PYTHONPATH that has it.
"""

import argparse
import contextlib
import dbm.sqlite3
import functools
import os
import random
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH = 100  # at most so many bytes are in a file that controls the server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", type=Path, help="file with the offset in seconds; it is read at each call")
    parser.add_argument("--frozen", type=float, help="stop the clock at this time in Unix seconds, plus the offset")
    parser.add_argument("--jump", type=Path, help="file with how many seconds the clock was set ahead, if it is there")
    parser.add_argument("--fault", type=Path, help=f"file with a fault's name, or none: {', '.join(FAULTS)}")
    parser.add_argument("--damage", type=Path, help="damage the stored backup that has this file's bytes, and exit")
    parser.add_argument("--broken", metavar="NAME", help="break the server by this fault of server_tests/broken")
    parser.add_argument(
        "--bound", metavar="NAME=NUMBER", action="append", default=[], help="another bound of bounds.py"
    )
    parser.add_argument("--slow-reads", action="store_true", help="wait before each blob is read")
    parser.add_argument("--stall", type=Path, help="while this file exists, each read of the database waits")
    parser.add_argument("--pause", type=Path, help="file that says at which point to wait")
    parser.add_argument("--volume", type=int, help="seem to be on a volume of so many bytes, with the files beside it")
    parser.add_argument("--slow-lock", type=float, help="how many seconds seem to pass until an account is held")
    parser.add_argument("--damage-account", type=Path, help="damage the record of the userId in this file, and exit")
    parser.add_argument(
        "--maintenance", nargs=argparse.REMAINDER, help="run maintenance.py with the rest, in place of the server"
    )
    arguments = parser.parse_args()
    if arguments.damage_account:
        damage_account(Path(os.environ["DATABASE_PATH"]), arguments.damage_account.read_bytes())
        return 0
    if arguments.damage:
        damage(Path(os.environ["DATABASE_PATH"]), arguments.damage.read_bytes())
        return 0
    import backup_server  # only here, because nothing above needs it
    from server import bounds, clock

    for name, _, number in (each.partition("=") for each in arguments.bound):
        replace(bounds, name, tuple(map(int, number.split(","))) if "," in number else float(number))
    if arguments.broken:  # after the bounds, since it may take one away
        from server_tests.broken import FAULTS as BROKEN_SERVERS

        BROKEN_SERVERS[arguments.broken].put_in()
    if arguments.maintenance is not None:
        import maintenance

        return maintenance.main(arguments.maintenance)
    if arguments.slow_reads:
        slow_reads_down()
    if arguments.stall:
        stall_reads(arguments.stall)
    if arguments.pause:
        replace(bounds, "READS", (4, bounds.READS[1]))  # so that others are served while one waits
        put_in_pauses(arguments.pause)
    if arguments.clock:
        now, monotonic = settable_clocks(arguments.clock, arguments.frozen)
        replace(clock, "now", now)
        replace(clock, "monotonic", monotonic)
        replace(clock, "uptime", monotonic)
    if arguments.jump:
        replace(clock, "now", jumping_clock(clock.now, arguments.jump))
    if arguments.volume:
        pretend_volume(arguments.volume)
    if arguments.slow_lock is not None:
        from server.dbm_store import DbmStore

        slow_lock_down(arguments.slow_lock, DbmStore)
    if arguments.fault:
        put_in_faults(arguments.fault, backup_server.HANDLERS)
    return backup_server.main([])


def replace(owner: Any, name: str, value: Any) -> None:
    """Give a name of a module or a class another value. (The import of `mock` would make each start a fifth longer.)"""
    getattr(owner, name)  # there must be such a name
    setattr(owner, name, value)


# ---- The clock ---------------------------------------------------------------------------------------------


def settable_clocks(file: Path, frozen: float | None) -> tuple[Callable[[], int], Callable[[], int]]:
    """Return the functions `now()` and `monotonic()`.

    They return the real or frozen time, plus the seconds in `file`, in milliseconds.
    """
    descriptor = os.open(file, os.O_RDONLY)

    def moved(clock: Callable[[], float]) -> Callable[[], int]:
        def read() -> int:
            offset = float(os.pread(descriptor, LENGTH, 0))
            return int(((clock() if frozen is None else frozen) + offset) * 1000)

        return read

    return moved(time.time), moved(time.monotonic)


def jumping_clock(now: Callable[[], int], file: Path) -> Callable[[], int]:
    """Return `now()` of a clock that somebody sets, while the monotonic one goes on."""

    def read() -> int:
        return now() + (int(float(file.read_text()) * 1000) if file.exists() else 0)

    return read


# ---- Faults ------------------------------------------------------------------------------------------------


def storage_full() -> None:
    """Raise the error that dbm.sqlite3 raises if the disk is full, with SQLite's own error."""
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 1")
    try:
        database.execute("CREATE TABLE fills_the_second_page (x)")
    except sqlite3.Error as exception:
        raise dbm.sqlite3.error(str(exception))  # noqa: B904 - just as dbm.sqlite3 does it


def unavailable() -> None:
    """Raise the error that dbm.sqlite3 raises if the file cannot be used, with SQLite's own error for a directory."""
    try:
        sqlite3.connect("/")
    except sqlite3.Error as exception:
        raise dbm.sqlite3.error(str(exception))  # noqa: B904 - just as dbm.sqlite3 does it


def internal_error() -> None:
    """Raise an error that the server does not expect."""
    raise ZeroDivisionError("a fault put in on purpose")


def slow() -> None:
    """Wait for up to 10 ms, so that whatever happens at once happens in many orders."""
    time.sleep(random.random() / 100)


@dataclass(frozen=True)
class Fault:
    """What happens, and before which methods of a database connection. "handler" means every operation."""

    strike: Callable[[], None]
    before: tuple[str, ...]


ALL = ("__getitem__", "__setitem__", "__delitem__")
FAULTS = {
    "storage_full": Fault(storage_full, ("__setitem__",)),
    "unavailable": Fault(unavailable, ALL),
    "internal_error": Fault(internal_error, (*ALL, "handler")),
    "full_from_the_start": Fault(storage_full, ("__setitem__",)),
    "uncountable": Fault(unavailable, ("__iter__",)),
    "slow": Fault(slow, ALL),
}


def put_in_faults(file: Path, handlers: dict[str, Callable[..., Any]]) -> None:
    """Make database connections and operations fail. At each call, `file` names the fault of FAULTS, or none."""
    descriptor = os.open(file, os.O_RDONLY)
    handle = dbm.sqlite3._Database

    def faulty(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)  # the server reads from a handler's signature what it needs
        def call(*arguments: Any, **options: Any) -> Any:
            fault = os.pread(descriptor, LENGTH, 0).decode().strip()
            if fault and name in FAULTS[fault].before:
                FAULTS[fault].strike()
            return method(*arguments, **options)

        return call

    for name in (*ALL, "__iter__"):
        replace(handle, name, faulty(name, getattr(handle, name)))
    handlers.update({name: faulty("handler", handler) for name, handler in handlers.items()})


def slow_reads_down() -> None:
    """Wait before each read of a blob, long enough for its slot to be overwritten."""
    handle = dbm.sqlite3._Database
    read = handle.__getitem__

    def slow(self: Any, key: bytes) -> bytes:
        time.sleep(0.01 if key.startswith(b"blob/") else 0)
        return read(self, key)

    replace(handle, "__getitem__", slow)


def stall_reads(file: Path) -> None:
    """Let each read wait while `file` exists, like a disk that stalls."""
    handle = dbm.sqlite3._Database
    read = handle.__getitem__

    def stalled(self: Any, key: bytes) -> bytes:
        while file.exists():
            time.sleep(0.02)
        return read(self, key)

    replace(handle, "__getitem__", stalled)


def pauser(file: Path) -> Callable[[bool], None]:
    """Return what to call, with whether it is a write, at each point where a test may let the server wait.

    `file` says at which of them: "any 3 abc", or spaces.
    """
    descriptor, waiting, lock = os.open(file, os.O_RDONLY), Path(f"{file}.waiting"), threading.Lock()
    seen: dict[str, int] = {}  # at how many such points it was since `file` got this text

    def text() -> str:
        return os.pread(descriptor, LENGTH, 0).decode().strip()

    def pause(is_write: bool) -> None:
        if not (wanted := text()) or (wanted.startswith("write") and not is_write):
            return
        with lock:
            seen[wanted] = seen.get(wanted, 0) + 1
            is_there = seen[wanted] == int(wanted.split()[1])
        if is_there:
            waiting.touch()
            while text() == wanted:
                time.sleep(0.001)
            waiting.unlink()

    return pause


def put_in_pauses(file: Path) -> None:
    """Wait before a write of an account's data, or before or after a read, as `file` says (`pauser`)."""
    handle, wait = dbm.sqlite3._Database, pauser(file)

    def pause(key: bytes, is_write: bool = False) -> None:
        if isinstance(key, bytes) and key.startswith((b"user/", b"blob/")):
            wait(is_write)

    def read(self: Any, key: bytes) -> bytes:
        pause(key)
        try:
            return get(self, key)
        finally:
            pause(key)

    def writing(method: Callable[..., None]) -> Callable[..., None]:
        def write(self: Any, key: bytes, *value: bytes) -> None:
            pause(key, is_write=True)
            method(self, key, *value)

        return write

    get: Callable[[Any, bytes], bytes] = handle.__getitem__
    replace(handle, "__getitem__", read)
    for name in ("__setitem__", "__delitem__"):
        replace(handle, name, writing(getattr(handle, name)))


def pretend_volume(size: int) -> None:
    """Let the folder of the database seem to be a volume of its own."""
    usage = type(shutil.disk_usage("/"))

    def disk_usage(folder: Path) -> Any:
        used = 0
        for path in Path(folder).iterdir():
            with contextlib.suppress(OSError):  # it has gone since
                used += path.stat().st_size
        return usage(size, used, max(0, size - used))

    replace(shutil, "disk_usage", disk_usage)


def slow_lock_down(seconds: float, store: Any) -> None:
    """Let so many seconds of the monotonic clock pass whenever the server waits until it holds an account."""
    from server import clock

    hold, monotonic, waited = store.account, clock.monotonic, [0.0]

    @contextlib.contextmanager
    def held(self: Any, user_id: str) -> Any:
        waited[0] += seconds
        with hold(self, user_id) as account:
            yield account

    replace(store, "account", held)
    replace(clock, "monotonic", lambda: monotonic() + int(waited[0] * 1000))


def damage(database: Path, blob: bytes) -> None:
    """Flip the lowest bit of a stored blob's last byte. Find the blob by its bytes."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        ((key, value),) = connection.execute("SELECT key, value FROM Dict WHERE instr(value, ?)", (blob,)).fetchall()
        value = value.replace(blob, blob[:-1] + bytes([blob[-1] ^ 1]))
        connection.execute("UPDATE Dict SET value = ? WHERE key = ?", (value, key))


def damage_account(database: Path, user_id: bytes) -> None:
    """Flip a bit in the middle of an account's record."""
    with contextlib.closing(dbm.sqlite3.open(database, "w")) as file:
        value = bytearray(file[b"user/" + user_id])
        value[len(value) // 2] ^= 1
        file[b"user/" + user_id] = bytes(value)


if __name__ == "__main__":
    sys.exit(main())
