"""Accounts, their versions, and the interface of a store of accounts. It knows nothing of HTTP, files or SQL.

Times are Unix milliseconds. Digests are SHA-256 in lowercase hex.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from server.tables import MemoryTables, Tables

# --- Records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One kept backup of an account. A store finds its bytes by `number` and can check them by `sha256`."""

    number: int
    stored_at: int
    size: int
    sha256: str
    key_version: int  # the account's, right after this version was stored


@dataclass(frozen=True)
class Upload:
    """An upload that made a version. Its time counts towards the limits, and its signature is spent."""

    moment: int
    signature: str = field(repr=False)
    changes_key: bool = False  # whether it replaced the storage key, too; then it counts towards limits of its own


ESTABLISHED_DAYS = 7  # on so many different days an account has stored, until it is no longer new (server/space.py)


@dataclass(frozen=True)
class Account:
    """An account that exists. Only the digest of its storage key is kept."""

    created_at: int
    key_sha256: str = field(repr=False)
    key_version: int = 1
    versions: tuple[Version, ...] = ()  # the kept ones, oldest first
    uploads: tuple[Upload, ...] = field(default=(), repr=False)
    upload_days: int = 0  # on how many different days it has stored, as far as that matters (server/space.py)
    allotment: int = 0  # bytes that its versions may have even when it may not grow; 0: what they have now

    @property
    def latest(self) -> Version | None:
        """The newest version, or None if there is none."""
        return self.versions[-1] if self.versions else None


@dataclass(frozen=True)
class Deleted:
    """The record that a deleted account leaves. It reserves the userId for a while."""

    deleted_at: int
    by_operator: bool = False  # then a copy off the machine keeps the account for a while


Record = Account | Deleted


# --- The store --------------------------------------------------------------------------------------------------------


class StorageError(Exception):
    """The store could not do what it was asked to do."""


class StorageFull(StorageError):
    """There is not enough space left. Nothing was changed."""


class StorageUnavailable(StorageError):
    """The store cannot be read or written now. A change may have happened, or not. `retry_after` is in seconds."""

    what = "cannot be read or written now"  # what a client is told of the database

    def __init__(self, message: str = "", retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(StorageUnavailable):
    """The store is elsewhere, and is not to be reached."""

    what = "cannot be reached now"


class TooSlow(StorageUnavailable):
    """The store does not answer in time."""

    what = "takes too long now"


class Closed(StorageUnavailable):
    """The accounts are being moved to another store, or have been. Nothing was changed."""

    what = "takes no changes now, because it moves to another place"


class Damaged(StorageError):
    """Stored bytes have changed: their digest says so."""


class DamagedData(Damaged):
    """The bytes of a version are damaged. The account's record is intact, and other versions may be intact."""


@dataclass(frozen=True)
class Stats:
    """The number of accounts, of accounts with a backup, and of versions, and the size of the database.

    `free_bytes` is what is free on the volume and in the database. `damaged` is how many damaged accounts, versions and
    keys are known. `round_seconds` is how long ago a round through all accounts ended, or the store was opened.
    `copy_lag_seconds` is for how long the copy off the machine has been behind, and `copy_compared_seconds` how long
    ago it was compared with all accounts; None if there is no such copy.
    """

    users: int
    backups: int
    versions: int
    database_bytes: int
    free_bytes: int = 0
    damaged: int = 0
    round_seconds: float = 0
    copy_lag_seconds: float | None = None
    copy_compared_seconds: float | None = None


@dataclass(frozen=True)
class Volume:
    """Where the accounts are: its size, what is free there for all, and what new accounts together have, in bytes.

    `grown_today` is by how many bytes the other accounts together have grown since the day (UTC) began.
    """

    total: int
    free: int
    new_accounts: int = 0
    grown_today: int = 0


def nothing() -> None:
    """Do nothing. This is what happens when a change is on disk, unless somebody wants to know."""


class HeldAccount(ABC):
    """An account that nobody else can change now. `record` is its current record, or None if it never existed.

    A block makes at most one change, as its last step. When the block has ended, the change is on disk. If a
    store commits as the block ends and this fails, the block raises StorageUnavailable.

    If the disk stalls, a change raises StorageUnavailable after a while, and may still happen later. Nobody else gets
    the account before that. `on_commit` is called when the change is on disk, even if that is later, and perhaps right
    before that, too. It is quick, raises nothing, and may run in another thread.
    """

    record: Record | None

    @abstractmethod
    def create(self, account: Account) -> None:
        """Create an account. Nothing of a deleted account with the same userId comes back.

        Raise StorageFull or StorageUnavailable.
        """

    @abstractmethod
    def append(
        self, account: Account, data: bytes, on_commit: Callable[[], None] = nothing, gives_back: bool = False
    ) -> None:
        """Replace the account with `account`, whose latest version is new and has the bytes `data`.

        The account and the bytes are stored together, or not at all. Versions that `account` does not have are
        forgotten. If `gives_back`, the space that the account does not need is free for others at once. Raise
        StorageFull or StorageUnavailable.
        """

    @abstractmethod
    def mend(self, version: Version, data: bytes) -> None:
        """Write a version's bytes again if the stored ones are damaged.

        `data` has the right bytes: their SHA-256 is that of the version. Raise StorageFull or StorageUnavailable.
        """

    @abstractmethod
    def delete(self, moment: int, on_commit: Callable[[], None] = nothing, by_operator: bool = False) -> None:
        """Delete the account and all its versions. Reserve the userId from `moment` on (Unix milliseconds).

        If the account is deleted already, only its userId is reserved from another moment on. `by_operator` says that
        this is not the user's own wish. It stays as it was if the account is deleted already.

        It asks for no space of its own, so it should work on a full disk, too. Raise StorageUnavailable.
        """


class StoreReader(ABC):
    """Read access to a store. It may be used while a server is running on the store."""

    @abstractmethod
    def check(self) -> None:
        """Read something from the store. Raise StorageUnavailable if that fails."""

    @abstractmethod
    def find(self, user_id: str) -> Record | None:
        """Return a user's record, or None if there is none. Raise StorageUnavailable or Damaged."""

    @abstractmethod
    def data(self, user_id: str, version: Version) -> bytes | None:
        """Return a version's bytes, or None if the account no longer has this version.

        `version` comes from the user's record. The bytes are verified: they have its SHA-256. Raise DamagedData,
        StorageUnavailable or Damaged.
        """

    @abstractmethod
    def user_ids(self) -> Iterator[str]:
        """Yield the userId of each record, including those of deleted accounts. Raise StorageUnavailable."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing and close the store. No other call may be in progress or follow."""


class Store(StoreReader):
    """Accounts by userId.

    A store may forget a deleted account when its userId is no longer reserved. `is_made` says that there was none
    before, `erases` that no bytes of what is deleted stay in its file, and `keeps_counts` that no restart forgets what
    limits have counted. `is_moved` says that the accounts were moved to another store when this one was opened, so that
    it takes no changes.
    """

    is_made, erases, keeps_counts, is_moved = False, True, False, False

    @abstractmethod
    def account(self, user_id: str) -> AbstractContextManager[HeldAccount]:
        """Hold an account, or a userId that has none yet, for one change.

            with store.account(user_id) as account:
                ...
                account.append(changed, data)

        The block looks at `account.record` to decide what to do. If it raises an error before the change, nothing has
        changed. Do not nest such blocks: a store may hold all accounts at once. Raise StorageUnavailable or Damaged.
        """

    def tables(self, group: str) -> Tables:
        """Return the tables in which limits of this group count. If several servers use a store, they share them."""
        return MemoryTables()

    def run[Result](self, work: Callable[[], Result]) -> Result:
        """Do some work that holds an account, and return its result. A store may call it again if others were faster.

        Then nothing of it has happened.
        """
        return work()

    def connections(self) -> dict[str, float]:
        """Return figures of the connections to a database, for the metrics. A file has none."""
        return {}

    @abstractmethod
    def degraded(self) -> list[str]:
        """Return the parts that do not work, as the schema Health names them. It does not wait for a disk."""

    @abstractmethod
    def volume(self) -> Volume:
        """Return how much space there is. Raise StorageUnavailable."""

    @abstractmethod
    def stats(self) -> Stats:
        """Return the counts. Raise StorageUnavailable, also while a store that was just opened is still counting."""
