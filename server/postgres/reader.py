"""Reads accounts from a database that speaks the protocol of PostgreSQL. `store.py` says what is there."""

import hashlib
from collections.abc import Iterator

from server import clock, records
from server.accounts import Account, DamagedData, Record, StoreReader, Version
from server.postgres.database import FOR_GOOD, Database

FIND = "SELECT record FROM account WHERE user_id = %s"
DATA = "SELECT data FROM backup WHERE user_id = %s AND version = %s"
PAGE = "SELECT user_id FROM account WHERE user_id > %s ORDER BY user_id LIMIT 1000"


class PostgresReader(StoreReader):
    """Accounts in a database, to read."""

    def __init__(self, url: str) -> None:
        """Connect as soon as something is read. Raise StorageUnavailable if `url` is none."""
        self.database = Database(url)

    def close(self) -> None:
        self.database.close()

    def check(self) -> None:
        clock.follow(self.database.look())

    def find(self, user_id: str) -> Record | None:
        rows = self.database.read(FIND, (user_id,))
        return records.from_bytes(user_id, rows[0][0])[0] if rows else None

    def data(self, user_id: str, version: Version) -> bytes | None:
        rows = self.database.read(DATA, (user_id, version.number))
        if rows and hashlib.sha256(rows[0][0]).hexdigest() == version.sha256:
            data: bytes = rows[0][0]
            return data
        record = self.find(user_id)
        if isinstance(record, Account) and version in record.versions:
            raise DamagedData("the digest of a version's bytes is wrong")
        return None

    def state(self) -> str:
        """Return the state of the store, as `server/migration.py` has it. Raise StorageUnavailable."""
        states = self.database.read("SELECT DISTINCT closed_by FROM tally WHERE closed_until = %s", (FOR_GOOD,))
        return str(states[0][0]) if states else ""

    def user_ids(self) -> Iterator[str]:
        last = ""
        while page := self.database.read(PAGE, (last,)):
            yield from (user_id for (user_id,) in page)
            last = page[-1][0]
