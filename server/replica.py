"""A copy of all accounts in a bucket, some seconds old. It is kept by threads of its own, and no request waits for it.

After each commit, the store tells which account has changed. A thread then compares the account with its folder in the
bucket, and does what the folder lacks: first the new bytes, then the record, which is the commit there, too, and then
what is no longer needed goes. A look at the folder comes before, so it does not matter what was done before a crash.
At the start and once a day, another thread compares all accounts.

Old states of living accounts, and accounts that the operator has removed, are kept for 7 days. What a user deletes goes
at once.

Only one server may write: the one whose id is in the object `owner`. The id is made at the first start, and is kept in
a file beside the database.
"""

import contextlib
import os
import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server import bounds, clock
from server.accounts import Account, Damaged, DamagedData, Deleted, Record, StoreReader, Version
from server.bucket import (
    DIGITS,
    HORIZON,
    OWNER,
    REMOVED,
    Bucket,
    BucketError,
    Folder,
    Taken,
    account_of,
    folder_of,
    identity_of,
    name_of,
    record_bytes,
)
from server.log import log
from server.store_file import sync

KEEP_OLD = 7 * clock.DAY  # the contract gives a day more, until the next comparison
COMPARE_EVERY = clock.DAY // 2
LATE_SECONDS = 300
COMPARISON_LATE_SECONDS = 2 * 86_400
QUEUED_AHEAD = 10  # by a comparison, so that a change that is made now does not wait for long
NICENESS = 10  # of these threads, so that on a busy processor the requests come first
SHARE = 0.04  # of a processor that a copier may take: Python runs one thread at a time, whatever its niceness
OTHER_OWNER = "another server writes to it: stop that one, and start this one once with BUCKET_TAKEOVER=1"
NO_ACCOUNTS = "it has accounts, and this store has none: restore them (maintenance.py restore), or empty the bucket"


@dataclass
class Change:
    """A change that the bucket may not have yet."""

    since: int  # milliseconds of the monotonic clock
    erases: bool = False  # a user has deleted the account


class Replica:
    """Keeps a copy of a store in a bucket, until it is closed."""

    def __init__(self, store: StoreReader, connect: Callable[[], Bucket], owner_file: Path, takeover: bool) -> None:
        """Take the store, how to connect to the bucket, and the file for this server's id.

        If `takeover` is set, the bucket may be taken from another server, once.
        """
        self._store, self._connect, self._owner_file, self._may_take = store, connect, owner_file, takeover
        self._bucket: Bucket | None = None
        self._owned_at = float("-inf")  # when the owner was last seen
        self._was_empty: bool | None = None  # at the start, as far as it is known
        self._claiming = threading.Lock()
        self._condition = threading.Condition()  # guards what follows, up to the comparison
        self._waiting: dict[str, Change] = {}  # by userId, in the order in which they are to be copied
        self._in_progress: dict[str, Change] = {}
        self._unsure_since: int | None = clock.monotonic()  # until a comparison has ended; milliseconds
        self._has_dropped_changes = False  # since the comparison began
        self._next_comparison = 0
        self._compared_at = clock.monotonic()  # or the start
        self._orphans: set[str] = set()  # names without a record, as of the last comparison
        self._horizon = 0
        self._problem: BucketError | None = None
        self._is_working = False
        self._pause, self._retry_at = 0.0, 0.0
        self._lag = (float("-inf"), 0.0)  # when it was computed, and seconds
        self._large_version = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            *(threading.Thread(target=self._copy_changes, name="copier", daemon=True) for _ in range(bounds.COPIERS)),
            threading.Thread(target=self._compare_now_and_then, name="comparer", daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Copy for a moment what is left, if the bucket answers, and stop. Whatever waits for it is left behind."""
        self._stopping.set()
        with self._condition:
            self._condition.notify_all()
        deadline = time.monotonic() + bounds.BUCKET_STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))

    def changed(self, user_id: str, record: Record) -> None:
        """Hear that a change of an account is on disk."""
        self._add(user_id, Change(clock.monotonic(), is_erased(record)))

    def lag_seconds(self) -> float:
        """Return since when the bucket is behind, or may be. 0 if it has everything."""
        if time.monotonic() - self._lag[0] > 1:  # so that it costs nothing to ask more often
            with self._condition:
                moments = [change.since for each in (self._waiting, self._in_progress) for change in each.values()]
                moments += [] if self._unsure_since is None else [self._unsure_since]
            self._lag = (time.monotonic(), (clock.monotonic() - min(moments)) / 1000 if moments else 0)
        return self._lag[1]

    def compared_seconds(self) -> float:
        """Return how long ago a comparison of all accounts with the bucket ended, or this server started."""
        return (clock.monotonic() - self._compared_at) / 1000

    def is_degraded(self) -> bool:
        """Return whether the copy is late, or whether somebody has to do something about it."""
        problem = self._problem
        is_late = self.lag_seconds() > LATE_SECONDS or self.compared_seconds() > COMPARISON_LATE_SECONDS
        return is_late or (problem is not None and problem.is_lasting)

    # ---- What is to be copied ----

    def _add(self, user_id: str, change: Change) -> None:
        with self._condition:
            if before := self._waiting.get(user_id):
                before.since, before.erases = min(before.since, change.since), before.erases or change.erases
            elif len(self._waiting) < bounds.BUCKET_CHANGES:
                self._waiting[user_id] = change
                self._condition.notify()
            else:  # a comparison will find it
                self._has_dropped_changes = True
                self._unsure_since = self._unsure_since or change.since

    def _take(self) -> tuple[str, Change] | None:
        """Wait for a change of an account on which nobody works. Return None when it is time to stop."""
        with self._condition:
            while True:
                pause = self._retry_at - time.monotonic()
                if pause <= 0:
                    for user_id in self._waiting:
                        if user_id not in self._in_progress:
                            self._in_progress[user_id] = change = self._waiting.pop(user_id)
                            return user_id, change
                if self._stopping.is_set():
                    return None
                self._condition.wait(pause if pause > 0 else None)

    def _copy_changes(self) -> None:
        give_way()
        while taken := self._take():
            user_id, change = taken
            used = time.thread_time()
            try:
                self._copy(self._owned(), user_id, change)
            except Exception as error:  # whatever it is, it is tried again
                self._failed(error)
                self._add(user_id, change)  # as the last one: it may be the reason
            else:
                self._succeeded()
            with self._condition:
                del self._in_progress[user_id]
                self._condition.notify_all()  # the account may have changed meanwhile
            self._stopping.wait((time.thread_time() - used) * (1 / SHARE - 1))

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, BucketError):
            log.error(error)
            error = BucketError("this server fails to copy")
        with self._condition:
            if self._is_working or str(error) != str(self._problem or ""):
                log(event="bucket", state="failing", reason=str(error))
            self._problem, self._is_working = error, False
            first, longest = bounds.BUCKET_PAUSE_SECONDS
            self._pause = min(max(2 * self._pause, first), longest)
            self._retry_at = time.monotonic() + self._pause

    def _succeeded(self) -> None:
        with self._condition:
            if not self._is_working:
                log(event="bucket", state="copying")
                self._condition.notify_all()
            self._problem, self._is_working = None, True
            self._pause = self._retry_at = 0.0

    # ---- The copy of an account ----

    def _copy(self, bucket: Bucket, user_id: str, change: Change) -> None:
        """Do what the folder of an account lacks. Raise BucketError or StorageUnavailable."""
        name = name_of(user_id)
        folder = Folder.of(name, bucket.names(folder_of(name)))
        try:
            record = self._store.find(user_id)
        except Damaged:  # housekeeping tells; the bucket still has the record
            return
        if change.erases or is_erased(record):
            erase(bucket, folder)
            folder = Folder(folder.path)
        identity, data, versions = REMOVED, b"", {}
        if isinstance(record, Account):
            data = record_bytes(user_id, record)
            identity, versions = identity_of(data), {version.sha256: version for version in record.versions}
        elif not folder.records:
            return
        plan = folder.plan(versions, identity, clock.now(), self._horizon)
        for sha256 in plan.blobs:
            if not self._put_version(bucket, user_id, versions[sha256], folder.blob(sha256)):
                return
        if plan.record:
            bucket.put(plan.record, data)
        for mark in plan.marks:
            bucket.put(mark, b"")
        bucket.delete(plan.deletions)

    def _put_version(self, bucket: Bucket, user_id: str, version: Version, path: str) -> bool:
        """Put the bytes of a version. Return whether the account still has it."""
        is_large = version.size > bounds.SMALL_BODY_BYTES
        with self._large_version if is_large else contextlib.nullcontext():
            try:
                data = self._store.data(user_id, version)
            except DamagedData:  # the others are to be copied all the same
                return True
            if data is None:  # there is a newer record, and it is waiting
                return False
            bucket.put(path, data)
        return True

    # ---- The comparison of all accounts ----

    def _compare_now_and_then(self) -> None:
        give_way()
        while not self._stopping.is_set():
            is_due = self._unsure_since is not None or clock.monotonic() >= self._next_comparison
            if is_due and time.monotonic() >= self._retry_at:
                try:
                    self._compare(self._owned())
                except Exception as error:
                    self._failed(error)
                else:
                    self._succeeded()
            self._stopping.wait(1)

    def _compare(self, bucket: Bucket) -> None:
        """Find each account whose folder lacks something. Raise BucketError or StorageError."""
        with self._condition:
            since, self._has_dropped_changes = self._unsure_since, False
        began, now = clock.monotonic(), clock.now()
        self._set_horizon(bucket, now - KEEP_OLD)
        orphans, self._orphans = self._orphans, set()
        users = defaultdict(list)  # by the first digit of their names: 7 MB for 100,000
        for user_id in self._store.user_ids():
            users[name_of(user_id)[0]].append(bytes.fromhex(user_id))
        for digit in DIGITS:
            unseen = {name_of(user_id.hex()): user_id.hex() for user_id in users.pop(digit, ())}
            for name, folder in bucket.folders(digit):
                if lacking := self._to_copy(bucket, name, folder, unseen.pop(name, None), orphans):
                    self._copy_later(lacking, since or began)
                if self._stopping.wait(0.001):  # leave the processor to the requests
                    return
            for user_id in unseen.values():
                self._copy_later(user_id, since or began)
        with self._condition:
            self._compared_at = clock.monotonic()
            self._next_comparison = self._compared_at + COMPARE_EVERY
            if not self._has_dropped_changes:
                self._unsure_since = None

    def _set_horizon(self, bucket: Bucket, horizon: int) -> None:
        """Tell whoever restores that older states may be gone, before any of them goes."""
        if int(bucket.get(HORIZON) or 0) < horizon:
            bucket.put(HORIZON, str(horizon).encode())
        self._horizon = horizon

    def _to_copy(self, bucket: Bucket, name: str, folder: Folder, user_id: str | None, orphans: set[str]) -> str | None:
        """Return the userId of a folder if it lacks something. `user_id` is None if no user seems to have this folder.

        Delete what is left of a deletion that a crash has cut off.
        """
        if user_id is None and not folder.newest_account:
            if name in orphans:
                self._owned().delete(folder.everything())
            else:  # the record of a new account may be on its way
                self._orphans.add(name)
            return None
        identity, versions = REMOVED, []
        if user_id is not None:
            try:
                record = self._store.find(user_id)
            except Damaged:
                return None
            if isinstance(record, Account):
                identity = identity_of(record_bytes(user_id, record))
                versions = [version.sha256 for version in record.versions]
        if not any(folder.plan(versions, identity, clock.now(), self._horizon)):
            return None
        return user_id or user_of(bucket, name, folder)  # an index that is damaged may not have the user

    def _copy_later(self, user_id: str, since: int) -> None:
        while len(self._waiting) >= QUEUED_AHEAD and not self._stopping.wait(0.05):
            pass
        self._add(user_id, Change(since))

    # ---- The owner ----

    def _owned(self) -> Bucket:
        """Return the bucket if this server may write to it, as of a moment ago. Raise BucketError."""
        with self._claiming:
            if self._bucket is None:
                self._bucket = self._connect()
            if time.monotonic() - self._owned_at >= bounds.BUCKET_OWNER_SECONDS:
                self._claim(self._bucket)
                self._owned_at = time.monotonic()
            return self._bucket

    def _claim(self, bucket: Bucket) -> None:
        if self._was_empty is None:
            self._was_empty = next(self._store.user_ids(), None) is None
        own = self._own_id()
        owner, tag = bucket.get_tagged(OWNER)
        if owner not in (own, None) and not self._may_take:
            raise BucketError(OTHER_OWNER, is_lasting=True)
        if self._was_empty and has_accounts(bucket):
            raise BucketError(NO_ACCOUNTS, is_lasting=True)
        self._was_empty = False  # from here on, what is in the bucket is from this store
        if owner != own:
            with contextlib.suppress(Taken):  # the answer may have been lost, so look
                bucket.put_if(OWNER, own, tag)
            if bucket.get(OWNER) != own:
                raise BucketError(OTHER_OWNER, is_lasting=True)
            log(event="bucket", state="claimed" if owner is None else "taken over")
        self._may_take = False

    def _own_id(self) -> bytes:
        """Return this server's id. Make it at the first start."""
        try:
            if not self._owner_file.exists():
                unfinished = self._owner_file.with_name(f"{self._owner_file.name}-new")
                with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                    file.write(secrets.token_hex(16).encode())
                sync(unfinished)
                unfinished.rename(self._owner_file)
                sync(self._owner_file.parent)
            return self._owner_file.read_bytes()
        except OSError as error:
            raise BucketError(f"the file with this server's id cannot be used: {error.strerror}") from None


def has_accounts(bucket: Bucket) -> bool:
    """Return whether there is an account in a bucket that the operator has not removed."""
    folders = (folder for digit in DIGITS for _, folder in bucket.folders(digit))
    return any(folder.newest_account and not folder.is_removed for folder in folders)


def is_erased(record: Record | None) -> bool:
    """Return whether a user has deleted this account. What the operator has removed is kept for a while."""
    return isinstance(record, Deleted) and not record.by_operator


def user_of(bucket: Bucket, name: str, folder: Folder) -> str | None:
    """Return the userId in the newest record of a folder, or None if there is none, or if it is damaged."""
    moment = folder.newest_account
    data = None if moment is None else bucket.get(folder.record(moment))
    try:
        return None if data is None else account_of(name, data)[0]
    except Damaged:
        return None


def erase(bucket: Bucket, folder: Folder) -> None:
    """Delete everything in a folder. If this is cut off, what is left is the folder of an account that was removed."""
    if folder.newest_account and not folder.is_removed:
        moment = (folder.newest or 0) + 1
        folder.records[moment] = REMOVED
        bucket.put(folder.record(moment), b"")
    bucket.delete(folder.everything())


def give_way() -> None:
    """Let this thread, and those that it starts, have the processor when no other thread needs it."""
    if sys.platform == "linux":  # elsewhere, this would be the niceness of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
