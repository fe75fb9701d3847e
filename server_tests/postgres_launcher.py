"""Start the real server on PostgreSQL for a test, with a clock that the test can move, and with faults.

    CONTRACT_SERVER_COMMAND="python -P server_tests/postgres_launcher.py --cluster URL" pytest contract_tests

Each DATABASE_PATH of a test gets a database of its own in the cluster at URL. The faults go into psycopg.
"""

import argparse
import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors

from server_tests.launcher import LENGTH, internal_error, pauser, replace, settable_clocks, slow, slow_lock_down

OF_ACCOUNTS = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM|SELECT .* FROM) (account|backup)\b")
WRITES = ("INSERT", "UPDATE", "DELETE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", required=True, help="URL of a database of the cluster, to make others")
    parser.add_argument("--clock", type=Path)
    parser.add_argument("--frozen", type=float)
    parser.add_argument("--fault", type=Path)
    parser.add_argument("--pause", type=Path)
    parser.add_argument("--volume", type=int)
    parser.add_argument("--slow-lock", type=float)
    parser.add_argument("--broken", metavar="NAME")
    parser.add_argument("--damage", type=Path)
    parser.add_argument("--damage-account", type=Path)
    arguments = parser.parse_args()
    folder = Path(os.environ["DATABASE_PATH"]).parent
    url = database_of(arguments.cluster, os.environ["DATABASE_PATH"])
    if arguments.damage:
        damage(url, arguments.damage.read_bytes())
        return 0
    if arguments.damage_account:
        damage_account(url, arguments.damage_account.read_text())
        return 0
    os.environ["DATABASE_URL"] = url
    import backup_server
    from server import clock
    from server.postgres.store import PostgresStore

    if arguments.broken:
        from server_tests.broken import FAULTS as BROKEN_SERVERS

        BROKEN_SERVERS[arguments.broken].put_in()
    if arguments.clock:
        now, monotonic = settable_clocks(arguments.clock, arguments.frozen)
        for name, function in (("now", now), ("monotonic", monotonic), ("uptime", monotonic)):
            replace(clock, name, function)
    if arguments.volume:
        os.environ["DATABASE_BYTES"] = str(arguments.volume)
        replace(backup_server, "opened_database", smallest(backup_server.opened_database))
        fill(PostgresStore, folder)
    if arguments.slow_lock is not None:
        slow_lock_down(arguments.slow_lock, PostgresStore)
    if arguments.pause:
        put_in_pauses(arguments.pause)
    if arguments.fault:
        put_in_faults(arguments.fault, backup_server.HANDLERS)
    return backup_server.main([])


def database_of(cluster: str, path: str) -> str:
    """Make the database of a path, if there is none. Return its URL."""
    name = "test_" + hashlib.sha256(path.encode()).hexdigest()[:24]
    with psycopg.connect(cluster, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            connection.execute(f"CREATE DATABASE {name}")
    return re.sub(r"(//[^/]*/)[^?]*", rf"\g<1>{name}", cluster)


# ---- Faults ------------------------------------------------------------------------------------------------


def storage_full(query: str) -> None:
    if query.startswith(("INSERT", "UPDATE")):
        raise errors.DiskFull("a fault put in on purpose")


def unavailable(query: str) -> None:
    raise psycopg.OperationalError("a fault put in on purpose")


def uncountable(query: str) -> None:
    if "sum(backups)" in query:
        raise psycopg.OperationalError("a fault put in on purpose")


FAULTS: dict[str, Callable[[str], None]] = {
    "storage_full": storage_full,
    "unavailable": unavailable,
    "internal_error": lambda query: internal_error(),
    "full_from_the_start": storage_full,
    "uncountable": uncountable,
    "slow": lambda query: slow(),
}


def before_each_statement(strike: Callable[[str], None]) -> None:
    """Let something happen before each statement."""
    execute = psycopg.Connection.execute

    def call(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        strike(query)
        return execute(self, query, *arguments, **options)

    replace(psycopg.Connection, "execute", call)


def put_in_faults(file: Path, handlers: dict[str, Callable[..., Any]]) -> None:
    """Make statements and operations fail. At each, `file` names the fault of FAULTS, or none."""
    descriptor = os.open(file, os.O_RDONLY)

    def fault() -> str:
        return os.pread(descriptor, LENGTH, 0).decode().strip()

    def strike(query: str) -> None:
        if name := fault():
            FAULTS[name](query)

    def faulty(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)  # the server reads from a handler's signature what it needs
        def call(*arguments: Any, **options: Any) -> Any:
            if fault() == "internal_error":
                internal_error()
            return handler(*arguments, **options)

        return call

    before_each_statement(strike)
    handlers.update({name: faulty(handler) for name, handler in handlers.items()})


def put_in_pauses(file: Path) -> None:
    """Wait before a write of an account's data, or before a read, as `file` says (`pauser`)."""
    wait = pauser(file)

    def pause(query: str) -> None:
        if OF_ACCOUNTS.match(query):
            wait(query.startswith(WRITES))

    before_each_statement(pause)


# ---- Space -------------------------------------------------------------------------------------------------


def smallest(opened: Callable[..., Any]) -> Callable[..., Any]:
    """Let a database be as small as a test likes."""
    from dataclasses import replace as changed

    def open_it(settings: Any, *arguments: Any) -> Any:
        return opened(changed(settings, database_bytes=int(os.environ["DATABASE_BYTES"])), *arguments)

    return open_it


def fill(store: Any, folder: Path) -> None:
    """Let what is beside DATABASE_PATH take space from the database."""
    from dataclasses import replace as changed

    volume = store.volume

    def filled(self: Any) -> Any:
        found = volume(self)
        beside = sum(path.stat().st_size for path in folder.iterdir())
        return changed(found, free=max(0, found.free - beside))

    replace(store, "volume", filled)


# ---- Damage ------------------------------------------------------------------------------------------------


def damage(url: str, blob: bytes) -> None:
    """Flip the lowest bit of a stored backup's last byte. Find it by its bytes."""
    with psycopg.connect(url) as connection:
        damaged = blob[:-1] + bytes([blob[-1] ^ 1])
        assert connection.execute("UPDATE backup SET data = %s WHERE data = %s", (damaged, blob)).rowcount == 1


def damage_account(url: str, user_id: str) -> None:
    """Flip a bit in the middle of an account's record."""
    with psycopg.connect(url) as connection:
        ((record,),) = connection.execute("SELECT record FROM account WHERE user_id = %s", (user_id,)).fetchall()
        value = bytearray(record)
        value[len(value) // 2] ^= 1
        connection.execute("UPDATE account SET record = %s WHERE user_id = %s", (bytes(value), user_id))


if __name__ == "__main__":
    sys.exit(main())
