"""What limits have counted, in the database that all servers share.

A row is for a group of tables and a key. Its value is JSON: what each table has under this key. Whoever changes
something locks the rows of certain keys first, so servers that count under the same key take turns. Who only looks
locks nothing.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from server import clock
from server.accounts import StorageFull
from server.limits import Limit
from server.postgres.database import Connection, Database, again
from server.tables import Tables

AHEAD = 1000  # milliseconds: by so much may the clocks of two servers differ for a moment
NOTED = 60_000  # milliseconds: what was noted so lately is not noted again, since that would cost a write
READ = "SELECT key, value FROM counted WHERE tables = %s AND key = ANY(%s)"
LOCK = (
    "INSERT INTO counted (tables, key, value, until) VALUES (%s, %s, '{}', %s)"
    " ON CONFLICT (tables, key) DO UPDATE SET key = excluded.key RETURNING key, value"
)
WRITE = (
    "INSERT INTO counted (tables, key, value, until) VALUES (%s, %s, %s, %s)"
    " ON CONFLICT (tables, key) DO UPDATE SET value = excluded.value, until = greatest(counted.until, excluded.until)"
)
EXPIRE = (
    "DELETE FROM counted WHERE (tables, key) IN (SELECT tables, key FROM counted WHERE until < %s LIMIT %s) RETURNING 1"
)


class Rows:
    """The rows of one piece of work, by key. `until` has those that were changed, and how long each is of use."""

    def __init__(self, found: Iterable[tuple[bytes, str]]) -> None:
        self.values: dict[bytes, dict[str, Any]] = {bytes(key): json.loads(value) for key, value in found}
        self.until: dict[bytes, int] = {}

    def change(self, key: bytes, table: str, value: Any, until: int) -> None:
        self.values.setdefault(key, {})[table] = value
        self.until[key] = max(until, self.until.get(key, 0))

    def newest(self, moment: int) -> int:
        """Return the last of all times that are not far ahead of `moment`."""
        values = [value for row in self.values.values() for value in row.values()]
        times = [time for value in values for time in (value.values() if isinstance(value, dict) else value)]
        return max((time for time in times if time <= moment + AHEAD), default=0)


class PostgresTables(Tables):
    """A group of tables. They go by the Unix time of the database."""

    MOST_UNWRITTEN = 10_000

    def __init__(self, database: Database, group: str) -> None:
        self._database, self._group = database, group
        self._local = threading.local()
        # Rows that a full disk did not take. Until it takes them, this server alone knows them.
        self._unwritten: dict[bytes, dict[str, Any]] = {}

    @property
    def rows(self) -> Rows:
        """The rows of the work that this thread does now."""
        rows: Rows = self._local.rows
        return rows

    def events(self, name: str, limit: Limit, keeps_fullest: bool = True) -> "Events":
        return Events(self, name, limit)

    def recent(self, name: str, most_of_an_account: int, most: int, seconds: int) -> "Recent":
        return Recent(self, name, most_of_an_account, seconds)

    def run[Result](
        self, work: Callable[[int], Result], keys: Iterable[bytes], changes: Sequence[bytes] = ()
    ) -> Result:
        keys = list(keys)
        self._local.rows = rows = Rows(self._database.read(READ, (self._group, keys)))
        rows.values.update(self._unwritten_of(keys))
        result = work(clock.now())
        if not rows.until:
            return result
        try:
            return again(lambda: self._change(work, keys, changes))
        except StorageFull:  # it is logged
            for key in list(rows.until)[: max(0, self.MOST_UNWRITTEN - len(self._unwritten))]:
                self._unwritten[key] = rows.values[key]
            return result

    def _change[Result](self, work: Callable[[int], Result], keys: list[bytes], changes: Sequence[bytes]) -> Result:
        with self._database.transaction() as connection:
            self._local.rows = rows = Rows(self._locked(connection, keys, set(changes)))
            rows.values.update(self._unwritten_of(keys))
            # What another server has just counted is not in the future.
            time.sleep(max(0, rows.newest(clock.now()) - clock.now()) / 1000)
            result = work(clock.now())
            with connection.pipeline():
                for key, until in rows.until.items():
                    value = {table: value for table, value in rows.values[key].items() if value}
                    connection.execute(WRITE, (self._group, key, json.dumps(value), until))
        for key in rows.until:
            self._unwritten.pop(key, None)
        return result

    def _unwritten_of(self, keys: list[bytes]) -> dict[bytes, dict[str, Any]]:
        return {key: dict(self._unwritten[key]) for key in keys if key in self._unwritten}

    def _locked(self, connection: Connection, keys: list[bytes], locked: set[bytes]) -> list[tuple[bytes, str]]:
        until = clock.now() + clock.DAY
        found = []
        for key in sorted(locked):  # everybody in the same order, so that nobody waits in a circle
            found += connection.execute(LOCK, (self._group, key, until)).fetchall()
        found += connection.execute(READ, (self._group, [key for key in keys if key not in locked])).fetchall()
        return found


class Events:
    """The last events of each key, as many as one limit needs."""

    def __init__(self, tables: PostgresTables, name: str, limit: Limit) -> None:
        self._tables, self._name, self.limit = tables, name, limit

    def times(self, key: bytes) -> list[int]:
        """Return the times of a key's last events, sorted."""
        return sorted(self._times(key))

    def add(self, key: bytes, moment: int) -> None:
        """Add an event. It is the last one of all, whatever the clock says."""
        self._put(key, [*self._times(key), moment][-self.limit.quota :], moment)

    def take_back(self, key: bytes) -> None:
        """Remove the event that was added last for this key, if there is one."""
        if times := self._times(key):
            self._put(key, times[:-1], clock.now())

    def _times(self, key: bytes) -> list[int]:
        times: list[int] = self._tables.rows.values.get(key, {}).get(self._name, [])
        return times

    def _put(self, key: bytes, times: list[int], moment: int) -> None:
        self._tables.rows.change(key, self._name, times, moment + self.limit.seconds * 1000)


class Recent:
    """Things of accounts, each with a time: the last ones of each account."""

    def __init__(self, tables: PostgresTables, name: str, most: int, seconds: int) -> None:
        self._tables, self._name, self._most, self._milliseconds = tables, name, most, seconds * 1000

    def time(self, account: bytes, thing: bytes) -> int | None:
        """Return the time that was added last with this thing, or None if it is not remembered."""
        return self._things(account).get(thing.hex())

    def add(self, account: bytes, thing: bytes, time: int) -> None:
        """Add a thing, or add it again with another time."""
        things = self._things(account)
        if list(things)[-1:] != [thing.hex()] or not 0 <= time - things[thing.hex()] < NOTED:
            things = {each: at for each, at in things.items() if each != thing.hex()} | {thing.hex(): time}
            self._put(account, dict(list(things.items())[-self._most :]))

    def forget(self, account: bytes, thing: bytes) -> None:
        """Forget a thing, if it is remembered."""
        things = self._things(account)
        if thing.hex() in things:
            self._put(account, {each: at for each, at in things.items() if each != thing.hex()})

    def forget_all(self, account: bytes) -> None:
        """Forget all things of an account."""
        if self._things(account):
            self._put(account, {})

    def _things(self, account: bytes) -> dict[str, int]:
        things: dict[str, int] = self._tables.rows.values.get(account, {}).get(self._name, {})
        return things

    def _put(self, account: bytes, things: dict[str, int]) -> None:
        self._tables.rows.change(account, self._name, things, clock.now() + self._milliseconds)
