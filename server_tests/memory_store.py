"""A second store, in memory. It shows how little a store needs to know, and what `server/accounts.py` requires."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from server.accounts import Account, Deleted, HeldAccount, Record, Stats, Store, Version, Volume, nothing


class MemoryStore(Store):
    """Accounts in a dictionary. They are gone when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._data: dict[tuple[str, Version], bytes] = {}

    def check(self) -> None:
        pass

    def find(self, user_id: str) -> Record | None:
        return self._records.get(user_id)

    def data(self, user_id: str, version: Version) -> bytes | None:
        return self._data.get((user_id, version))

    def user_ids(self) -> Iterator[str]:
        return iter(list(self._records))

    @contextlib.contextmanager
    def account(self, user_id: str) -> Iterator[HeldAccount]:
        with self._lock:
            yield HeldEntry(self, user_id)

    def stats(self) -> Stats:
        accounts = [record for record in self._records.values() if isinstance(record, Account)]
        return Stats(
            users=len(accounts),
            backups=sum(bool(account.versions) for account in accounts),
            versions=sum(len(account.versions) for account in accounts),
            database_bytes=sum(map(len, self._data.values())),
        )

    def degraded(self) -> list[str]:
        return []

    def volume(self) -> Volume:
        return Volume(total=1 << 40, free=1 << 40)

    def close(self) -> None:
        pass

    def _keep(self, user_id: str, record: Record, data: dict[Version, bytes]) -> None:
        """Replace an account's record. Keep only the versions that the record names."""
        kept = record.versions if isinstance(record, Account) else ()
        before = {key: blob for key, blob in self._data.items() if key[0] != user_id or key[1] in kept}
        self._data = before | {(user_id, version): blob for version, blob in data.items()}
        self._records[user_id] = record


class HeldEntry(HeldAccount):
    """An account of a MemoryStore, while its lock is held."""

    def __init__(self, store: MemoryStore, user_id: str) -> None:
        self._store, self._user_id = store, user_id
        self.record = store.find(user_id)

    def create(self, account: Account) -> None:
        self._store._keep(self._user_id, account, {})

    def append(
        self, account: Account, data: bytes, on_commit: Callable[[], None] = nothing, gives_back: bool = False
    ) -> None:
        self._store._keep(self._user_id, account, {account.versions[-1]: data})
        on_commit()

    def mend(self, version: Version, data: bytes) -> None:
        pass  # nothing here can be damaged

    def delete(self, moment: int, on_commit: Callable[[], None] = nothing, by_operator: bool = False) -> None:
        if isinstance(self.record, Deleted):
            by_operator = self.record.by_operator
        self._store._keep(self._user_id, Deleted(moment, by_operator), {})
        on_commit()
