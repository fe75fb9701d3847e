"""Housekeeping in a database: forget what may go, look for damage, and see how the store does.

Each server does so. What needs to be done once is done by whoever locks it first. How far the search for damage is
stands in the database, so another server goes on if the one that searches ends.
"""

import contextlib
import math
import secrets
import time
import zlib
from collections.abc import Callable

from server import bounds, clock, space
from server.accounts import Account, Damaged, DamagedData, StorageUnavailable, Volume
from server.health import Writes
from server.log import log
from server.postgres.database import Thread
from server.postgres.reader import PostgresReader
from server.postgres.tables import EXPIRE
from server.space import GROWTH_MARK

LOOK_SECONDS = 1
EXPIRE_SECONDS = 10
AT_ONCE = 1000  # rows
# As in a file (server/housekeeping.py): two rounds a day, and in each week everything is verified.
ROUND_EVERY = clock.DAY // 2
ROUND_LATE = 3 * clock.DAY
VERIFIED_EVERY = 7
VERIFIED_BYTES_A_SECOND = 1024 * 1024
VISITED_AT_ONCE = 20  # accounts
LEASE = 300_000  # milliseconds: longer than these accounts take
FORGET = (
    "DELETE FROM account WHERE user_id IN (SELECT user_id FROM account WHERE forget_at <= %s LIMIT %s FOR UPDATE)"
    " RETURNING 1"
)
CLAIM = "UPDATE scrub SET server = %s, leased_until = %s WHERE server = %s OR leased_until < %s RETURNING place"
VISIT = "SELECT user_id FROM account WHERE user_id > %s ORDER BY user_id LIMIT %s"


class Housekeeper:
    """Keeps house for a store, in threads of its own, until it is closed."""

    def __init__(self, store: PostgresReader, volume: Callable[[], Volume], writes: Writes) -> None:
        """Begin. `volume` returns how much space there is, and `writes` hears whether a write succeeds."""
        self._store, self._volume, self._writes = store, volume, writes
        self._name = secrets.token_hex(8)
        self.clock = clock.ClockCheck(0)
        self.is_tight = self.is_late = False
        self.damaged = 0
        self._next_probe = self._next_expiry = -math.inf
        self._change("UPDATE scrub SET round_ended = %s WHERE round_ended = 0", clock.now())
        self.look()
        self._threads = (
            Thread("housekeeper", self._keep_house, LOOK_SECONDS),
            Thread("scrub", self._scrub, LOOK_SECONDS),
        )
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop."""
        for thread in self._threads:
            thread.close()
        with contextlib.suppress(StorageUnavailable):  # then the lease ends by itself
            self._change("UPDATE scrub SET leased_until = 0 WHERE server = %s", self._name)

    def look(self) -> None:
        """See how the store does. Raise StorageUnavailable."""
        was_off, ahead = self.clock.is_off, self.clock.look()
        if self.clock.is_off != was_off:
            log(event="clock", state="off" if self.clock.is_off else "right", aheadSeconds=ahead // 1000)
        self.is_tight = space.is_below(self._volume(), GROWTH_MARK)
        ((round_ended, self.damaged),) = self._store.database.read(
            "SELECT round_ended, (SELECT count(*) FROM damage) FROM scrub"
        )
        self.is_late = clock.now() - round_ended > ROUND_LATE

    def _keep_house(self) -> None:
        if time.monotonic() >= self._next_probe:
            self._next_probe = time.monotonic() + bounds.PROBE_SECONDS
            self._probe()
        self.look()
        while self._change(FORGET, clock.now(), AT_ONCE) == AT_ONCE:
            pass
        if time.monotonic() >= self._next_expiry:
            self._next_expiry = time.monotonic() + EXPIRE_SECONDS
            while self._change(EXPIRE, clock.now(), AT_ONCE) == AT_ONCE:
                pass

    def _probe(self) -> None:
        try:
            self._change("UPDATE tally SET day = day WHERE shard = 0")
        except StorageUnavailable:
            self._writes.failed()
            raise
        self._writes.succeeded()

    def _change(self, query: str, *values: object) -> int:
        """Run a statement in a transaction of its own. Return how many rows it has changed."""
        with self._store.database.transaction() as connection:
            return connection.execute(query, values).rowcount

    # ---- The search for damage

    def _scrub(self) -> None:
        """Visit the next accounts, if it is time for that, and if no other server does."""
        now = clock.now()
        ((place, round_ended),) = self._store.database.read("SELECT place, round_ended FROM scrub")
        if place == "" and now - round_ended < ROUND_EVERY:
            return  # without a write each second
        with self._store.database.transaction() as connection:
            rows = connection.execute(CLAIM, (self._name, now + LEASE, self._name, now)).fetchall()
        if not rows:
            return
        ((place,),) = rows
        for (user_id,) in (users := self._store.database.read(VISIT, (place, VISITED_AT_ONCE))):
            self._look_after(user_id)
        if users:
            self._change("UPDATE scrub SET place = %s WHERE server = %s", users[-1][0], self._name)
        else:
            self._change("UPDATE scrub SET place = '', round_ended = %s WHERE server = %s", clock.now(), self._name)

    def _look_after(self, user_id: str) -> None:
        """Verify the record of a user, and everything of a part of the users each day."""
        had_damage = self._change("DELETE FROM damage WHERE what = %s", user_id)
        try:
            record = self._store.find(user_id)
            day = clock.now() // clock.DAY
            if zlib.crc32(user_id.encode()) % VERIFIED_EVERY == day % VERIFIED_EVERY or had_damage:
                for version in record.versions if isinstance(record, Account) else ():
                    self._store.data(user_id, version)
                    time.sleep(version.size / VERIFIED_BYTES_A_SECOND)
        except Damaged as error:
            kind = "backup" if isinstance(error, DamagedData) else "record"
            self._change("INSERT INTO damage VALUES (%s, %s) ON CONFLICT (what) DO NOTHING", user_id, kind)
            log(event="damage", kind=kind, damaged=self.damaged + 1)
