"""A device that keeps one log and its backup in step. It shows what a device saves, and when.

    device = Device(State(), make_client, merge, save=save, tell=tell)
    device.sign_in("Anna", "correct horse battery staple")
    device.update(lambda log: with_workout(log))
    device.sync()

It is built on `backup_client.py`. Whatever the server refuses raises ProblemError. If its `lost` is True, call the
method again later. `sentence(error)` is what a person can be told. One thread at a time may call a device.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import requests

from clients.python.backup_client import (
    ALARMS,
    DERIVATIONS,
    RECEIPT,
    AppOutdatedError,
    BackupClient,
    Decrypted,
    DecryptionError,
    Derivation,
    Keys,
    LostAnswerError,
    MisfitError,
    MistypedCodeError,
    ProblemError,
    Seen,
    blob_of,
    decrypt,
    derivations_to_try,
    derive_user_id,
    encrypt,
    higher,
    keys_of_password,
    members,
    next_sequence,
    read_recovery_code,
    receipt_for,
    recovery_code,
    verdict,
)

SIGNATURE_ACTS_SECONDS = 901  # x-limits.deletedUserSeconds: no signature can act for longer
LONGEST_PAUSE = 60  # seconds: if the server asks for more, the app calls again later
LOST = 0  # the status of a registration whose answer is lost
SNAPSHOT_SECONDS = 60 * 86_400  # no snapshot of a server lives longer


class UnsettledChangeError(Exception):
    """A change of the password, or a deletion, may have happened or not.

    Until a change is settled, nothing is encrypted with the old keys. Tell the person that the new password is not in
    force. Call `sync`, which sends the change again, or `settle_change`.
    """

    def __init__(self, what: str = "change") -> None:
        super().__init__(f"unsettled: {what}")
        self.sentence = {
            "change": "The change of the password is not complete, and the new password is not in force. Try again "
            "when there is a connection.",
            "deletion": "This account is being deleted. Confirm the deletion to go on with it.",
        }[what]


class DeviceError(ValueError):
    """The device itself refuses a call, and nothing was sent or changed. `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sentence = {
            "not-signed-in": "Nobody is signed in.",
            "another-username": "The log on this device belongs to another username.",
            "old-password": "This was an earlier password of yours. Choose another one.",
            "not-listed": "This version is not kept any more. Choose another one.",
        }[reason]


@dataclass(frozen=True)
class Base:
    """The version that a log was made from. If it cannot be decrypted, it has a `sha256` alone.

    `version` is its number. With it, a fetch asks for what is newer, and gets 304 if nothing is.
    """

    sha256: str
    sequence: int | None = None
    log_sha256: str | None = None
    version: int | None = None

    @property
    def etag(self) -> str | None:
        return f'"{self.version}-{self.sha256}"' if self.version else None


@dataclass(frozen=True)
class Upload:
    """A blob that was sent. After a lost answer, the very same bytes are sent again.

    If it restores an older version, `restored` is its log, which then replaces the log with the digest `instead_of`.
    """

    blob: bytes = field(repr=False)
    sequence: int
    base_sha256: str | None
    log_sha256: str
    restored: bytes | None = field(default=None, repr=False)
    instead_of: str | None = None

    def as_base(self, version: int) -> Base:
        return Base(sha256_of(self.blob), self.sequence, self.log_sha256, version)


@dataclass(frozen=True)
class Change:
    """A change of the password that may have happened or not. Both keys are kept at least until `keep_until`.

    `ahead` is the greatest number of seconds that the device's clock was ahead of the server's at any attempt.
    `keep_until` has it included.
    """

    old: Keys
    new: Keys
    keep_until: float
    ahead: float = 0


@dataclass(frozen=True)
class Deletion:
    """A deletion that was begun at `first`. The userId may be registered again at `register_after`."""

    first: float
    register_after: float
    ahead: float = 0


@dataclass(frozen=True)
class State:
    """What a device saves, always as a whole. It belongs to one userId, and survives a sign-out.

    `base` is the version that `log` was made from. `highest_log` is the sha256 of the log in the version `highest`.
    `registering` are the keys of a registration that has no answer so far. `old_keys` are pairs (keys, until when they
    are kept), newest last. `succeeded` is the newest derivation that has succeeded. Times are Unix seconds.
    """

    keys: Keys | None = None
    log: bytes = field(default=b"", repr=False)
    base: Base | None = None
    highest: Seen = Seen()
    highest_log: str | None = None
    unsent: Upload | None = None
    registering: Keys | None = None
    change: Change | None = None
    deletion: Deletion | None = None
    old_keys: tuple[tuple[Keys, float], ...] = ()
    succeeded: str | None = None


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Device:
    """One device of one user.

    `make_client` returns the BackupClient of some keys. `merge(mine, theirs)` returns a log with what either has.
    `save` stores the state on the device. It is called before each request that needs the state. `tell` gets a verdict
    that the person has to know: "rollback" or "unknown-base". `pause` waits for some seconds between two attempts.
    `attempts` is how often a request without an answer is sent.
    """

    def __init__(
        self,
        state: State,
        make_client: Callable[[Keys], BackupClient],
        merge: Callable[[bytes, bytes], bytes],
        *,
        save: Callable[[State], None] = lambda state: None,
        tell: Callable[[str], None] = lambda verdict: None,
        pause: Callable[[float], None] = time.sleep,
        attempts: int = 4,
    ) -> None:
        self.state = state
        self.clock_offset = 0
        self._undone: Keys | None = None  # old keys that work again, until the person was asked
        self._make_client = make_client
        self._merge = merge
        self._on_save = save
        self._tell = tell
        self._pause = pause
        self._attempts = attempts

    @property
    def keys(self) -> Keys:
        if not self.state.keys:
            raise DeviceError("not-signed-in")
        return self.state.keys

    @property
    def log(self) -> bytes:
        """The log, with everything that was merged so far."""
        return self.state.log

    @property
    def recovery_code(self) -> str:
        """The recovery code: show it after a registration and after each change of the password."""
        return recovery_code(self.keys)

    def update(self, edit: Callable[[bytes], bytes]) -> None:
        """Change the log, and save it. `edit` returns the new log."""
        self._save(log=edit(self.state.log))

    # ---- Signing in

    def sign_in(self, username: str, password: str, derivations: Sequence[Derivation] = DERIVATIONS) -> None:
        """Find the keys that are in force, by the newest derivation first. Then move the account to the newest.

        If this raises `credentials_invalid`, say: "The username or the password is wrong, or a newer version of the app
        moved this account: update the app." Raise DeviceError if the state belongs to another username: ask whose log
        it is, and use another state. Raise ValueError for an empty username, or a lone surrogate.
        """
        user_id = self._user_id_of(username)
        tried = derivations_to_try(self.state.succeeded, derivations)
        for derivation in tried:
            keys = keys_of_password(user_id, password, derivation)
            try:
                self._list(keys)
            except ProblemError as problem:
                if problem.code != "credentials_invalid" or derivation is tried[-1]:
                    raise
                continue
            self._enter(keys)
            if derivation is not derivations[0]:
                self._change_password(keys_of_password(user_id, password, derivations[0]))
            return

    def sign_in_with_code(self, username: str, code: str) -> None:
        """Sign in with the recovery code, as it was typed. Then ask for a new password, and change to it.

        Raise MistypedCodeError if it was mistyped, belongs to another username, or is void on this device, and
        AppOutdatedError if a newer version of the app made it.
        """
        keys = read_recovery_code(username, code)
        self._user_id_of(username)
        if keys.derivation not in [derivation.name for derivation in derivations_to_try(self.state.succeeded)]:
            raise MistypedCodeError("void: a newer derivation has succeeded on this device")
        self._list(keys)
        self._enter(keys)

    def _enter(self, keys: Keys) -> None:
        """Go on with the keys that are in force."""
        before, change, deletion = self.state.keys, self.state.change, self.state.deletion
        changes: dict[str, Any] = {"keys": keys, "succeeded": keys.derivation, "registering": None}
        if deletion and self._now(keys) >= deletion.register_after:  # it did not happen
            changes["deletion"] = None
        if before and before != keys:  # another device changed the password
            still_open = change if change and change.old == keys else None
            tried_keys = () if not change or still_open or change.new == keys else (change.new,)
            old_keys = self._old_keys_with(keys, *tried_keys, before)
            changes |= {"unsent": None, "change": still_open, "old_keys": old_keys}
        self._save(**changes)

    def register(self, username: str, password: str, derivations: Sequence[Derivation] = DERIVATIONS) -> None:
        """Register. Check the password before, with `password_problem`. A repeat after a lost answer is harmless.

        In a new account, this device has seen nothing. Raise DeviceError if the state belongs to another username.
        Raise UnsettledChangeError if a delayed deletion could delete the account. Raise ValueError for an empty
        username, or a lone surrogate.
        """
        self._register(keys_of_password(self._user_id_of(username), password, derivations[0]))

    def _register(self, keys: Keys) -> None:
        """A 200 to the repeat of a lost registration means a new account, too. Any other 200 does not."""
        status, lost = -1, self.state.registering == keys

        def send(client: BackupClient) -> requests.Response:
            nonlocal status, lost
            lost = lost or status == LOST
            status = LOST  # until there is an answer
            response = client.register_user()
            status = LOST if response.status_code >= 500 else response.status_code
            return response

        if self.state.deletion and self._now(keys) < self.state.deletion.register_after:
            raise UnsettledChangeError("deletion")  # a delayed one could delete the new account
        self._save(registering=keys)
        try:
            self._repeated(send, {"createdAt": str}, keys, statuses=(200, 201))
        except ProblemError as problem:
            if not problem.lost:
                self._save(registering=None)
            raise
        seen = {"base": None, "highest": Seen(), "highest_log": None, "unsent": None}
        new = status == 201 or lost
        self._save(keys=keys, succeeded=keys.derivation, registering=None, deletion=None, **(seen if new else {}))

    def after_refusal(self, nobody_changed_it: bool = False) -> str:
        """Find out what to do about `credentials_invalid`, if nobody changed the password or deleted the account.

        Return "confirm" if an old key works: the server was restored from a snapshot, or somebody changed the password
        back. Ask the person. If nobody did, call again with `nobody_changed_it`: then the password is changed again,
        and this returns "changed". Otherwise, return "ask": ask the person, then sign in with another password, or
        register.
        """
        undone = self._undone or self._old_keys_in_force()
        if not undone:
            return "ask"
        self._undone = undone
        if not nobody_changed_it:
            return "confirm"
        self.fetch(undone)
        self._change_password(self.keys, undone)
        self._undone = None
        return "changed"

    def _old_keys_in_force(self) -> Keys | None:
        for old, until in reversed(self.state.old_keys[-2:]):  # each refusal counts as a failed credential
            try:
                if until > self._now():
                    self._list(old)
                    return old
            except ProblemError as problem:
                if problem.code != "credentials_invalid":
                    raise
        return None

    # ---- Keeping the log and its backup in step

    def sync(self) -> None:
        """Back up and restore: fetch, merge, and store the log if it differs from the fetched one.

        If the log has changed since, store it at once: a conflict tells whether another device has stored. If a change
        of the password is not settled, send the change again instead: it stores the log, too.
        """
        self._must_not_be_deleted()
        change = self.state.change
        if change and self._in_force(change) == "old":
            return self._change_password(change.new, change.old)
        if self.state.unsent:
            try:
                self._send(self.state.unsent)
            except ProblemError as problem:
                if problem.code != "version_conflict":
                    raise
                self.fetch()
        if self._is_stored():
            self.fetch()
        self._on_latest(lambda: None if self._is_stored() else self._send(self._upload(self.keys)))

    def _is_stored(self) -> bool:
        base = self.state.base
        return base is not None and base.log_sha256 == sha256_of(self.state.log)

    def fetch(self, keys: Keys | None = None) -> None:
        """Fetch the latest version, compare it with the highest seen, and merge it. Tell the person if it is older.

        If the log has not changed since the highest seen, and the latest version was made from that one, adopt it: so a
        restored version reaches this device. Raise AppOutdatedError if a newer version of the app made it,
        DecryptionError if it is damaged or was made with other keys, and MisfitError if the answer contradicts itself.
        """
        keys, state = keys or self.keys, self.state
        etag = state.base.etag if state.base and keys == state.keys else None
        try:
            backup = self._backup(
                lambda client: client.fetch_backup(etag), keys, statuses=(200, 304) if etag else (200,)
            )
        except ProblemError as problem:
            if problem.code != "no_backup":
                raise
            self._compare(0, None, None)
            self._save(base=None)
            return
        if not backup:  # 304: the latest is the base, which the log has in it already
            assert state.base
            self._compare(state.base.sequence or 0, state.base.sha256, None)
            return
        latest, sha256 = decrypt(keys, blob_of(backup)), backup["sha256"]
        found = self._compare(latest.sequence, sha256, latest.base_sha256)
        log_sha256 = sha256_of(latest.plaintext)
        adopts = found == "next" and state.highest_log == sha256_of(state.log)
        higher_now = higher(state.highest, latest.sequence, sha256)
        self._save(
            log=latest.plaintext if adopts else self._merge(state.log, latest.plaintext),
            base=Base(sha256, latest.sequence, log_sha256, backup["version"]),
            highest=higher_now,
            highest_log=log_sha256 if higher_now.sha256 == sha256 else state.highest_log,
        )

    def _compare(self, sequence: int, sha256: str | None, base_sha256: str | None) -> str:
        found = verdict(self.state.highest, sequence, sha256, base_sha256)
        if found in ALARMS:
            self._tell(found)
        return found

    def versions(self, keys: Keys | None = None) -> list[dict[str, Any]]:
        """Return the receipts of the kept versions, newest first. Tell the person if there is none any more."""
        versions = self._list(keys)
        if not versions:
            self._compare(0, None, None)
        return versions

    def _list(self, keys: Keys | None = None) -> list[dict[str, Any]]:
        answer = self._repeated(lambda client: client.list_backup_versions(), {"versions": list}, keys)
        return list(answer["versions"])

    def open_version(
        self, version: int, password: str | None = None, *, derivations: Sequence[Derivation] = DERIVATIONS
    ) -> bytes:
        """Return the log of an older version, for the person to look at. Nothing changes.

        Show the date that the log itself has: the list is the server's word. The keys in force and those that this
        device has kept are tried, then `password`, that of its keyVersion. Raise DeviceError if the version is not
        listed, and DecryptionError if it is damaged or was made with another password: ask for it.
        """
        return self._open_version(version, password, derivations).plaintext

    def _open_version(self, version: int, password: str | None, derivations: Sequence[Derivation]) -> Decrypted:
        listed = {receipt["version"]: receipt["sha256"] for receipt in self.versions()}
        if version not in listed:
            raise DeviceError("not-listed")
        asked = {"version": version, "sha256": listed[version]}
        backup = self._backup(lambda client: client.fetch_backup_version(version), self.keys, asked)
        blob = blob_of(backup, **asked)
        for keys in self._keys_to_try(password, derivations):
            with suppress(DecryptionError):
                return decrypt(keys, blob)  # it is old on purpose: no verdict
        raise DecryptionError("a damaged version, or one of another password")

    def _keys_to_try(self, password: str | None, derivations: Sequence[Derivation]) -> Iterator[Keys]:
        yield self.keys
        yield from (keys for keys, _ in reversed(self.state.old_keys))
        if password is not None:
            yield from (keys_of_password(self.keys.user_id, password, derivation) for derivation in derivations)

    def restore(
        self,
        version: int,
        password: str | None = None,
        *,
        confirmed: str = "",
        derivations: Sequence[Derivation] = DERIVATIONS,
    ) -> None:
        """Store an older version again, as the latest. When this is acknowledged, its log replaces the log.

        `password` is as in `open_version`. `confirmed` is what the person agreed to, if the latest version cannot be
        read: "damaged" to replace it, "no-newer-app" to replace one of an unknown format, because the publisher offers
        no newer app. Raise DeviceError if the version is not listed.
        """
        self._must_be_settled()
        self._fetch_to_replace(self.keys, confirmed)
        old = self._open_version(version, password, derivations)
        self._on_latest(lambda: self._send(self._upload(self.keys, old.plaintext, old.sequence)), confirmed=confirmed)

    def replace_unreadable(self) -> None:
        """Replace a latest version that cannot be fetched or decrypted by the log. Ask the person first.

        A version of an unknown format is not replaced: this raises AppOutdatedError. If the publisher offers no newer
        version of the app, and the person confirms it, call `restore` or `change_password` with
        `confirmed="no-newer-app"`.
        """
        self._must_be_settled()
        self._fetch_to_replace(self.keys, "damaged")
        self._send(self._upload(self.keys))

    def _fetch_to_replace(self, keys: Keys, confirmed: str) -> None:
        """Fetch and merge the latest version. If it cannot be read, and the person agreed, name it as the base."""
        try:
            return self.fetch(keys)
        except AppOutdatedError:
            if confirmed != "no-newer-app":
                raise
        except (DecryptionError, MisfitError):
            if not confirmed:
                raise
        except ProblemError as problem:
            if problem.code != "backup_damaged" or not confirmed:
                raise
        self._save(base=Base(self._list(keys)[0]["sha256"]))

    # ---- Changing the password

    def change_password(
        self, password: str, *, confirmed: str = "", derivations: Sequence[Derivation] = DERIVATIONS
    ) -> None:
        """Change the password. Check it before, with `password_problem`. Show the new recovery code afterwards.

        If this fails and `state.change` is there, both passwords are kept: tell the person that the new one is not in
        force, and call `sync`, which sends the change again, or `settle_change`. `confirmed` is as in `restore`. If the
        password is the one in force, there is nothing to change. Raise DeviceError if this device keeps it as an old
        one, and UnsettledChangeError if a change to another one is not settled.
        """
        self._change_password(keys_of_password(self.keys.user_id, password, derivations[0]), confirmed=confirmed)

    def _change_password(self, new: Keys, old: Keys | None = None, *, confirmed: str = "") -> None:
        """`old` are the keys in force, if they are not those of the device."""
        self._must_not_be_deleted()
        signed_by = old or self.keys
        change = self.state.change
        if change and change.new != new and self._in_force(change) == "old":
            raise UnsettledChangeError
        if new == signed_by:
            return
        if any(new == kept for kept, until in self.state.old_keys):
            raise DeviceError("old-password")
        self._on_latest(lambda: self._change(signed_by, new), signed_by, confirmed)

    def settle_change(self) -> str:
        """Find out which keys are in force: "new", "old", or "unsure" while the change may still arrive."""
        change = self.state.change
        if not change:
            return "old"
        asked = self._now()
        if self._in_force(change) == "new":
            return "new"
        change = self.state.change or change  # its time may be longer now
        if asked < change.keep_until:
            return "unsure"
        self._save(change=None)
        return "old"

    def _in_force(self, change: Change) -> str:
        """Ask with the new keys, then with the old ones.

        | new keys | old keys | |
        |---|---|---|
        | 200 | not asked | "new": go on with the new keys |
        | credentials_invalid | 200 | "old": so far, it has not happened |
        | credentials_invalid | credentials_invalid | raise: try again, then ask for username and password |
        | any other combination | | raise: ask again later |
        """
        try:
            self._list(change.new)
        except ProblemError as problem:
            if problem.code != "credentials_invalid":
                raise
            self._list(change.old)
            return "old"
        self._adopt(change.old, change.new, base=None)
        return "new"

    def _user_id_of(self, username: str) -> str:
        user_id = derive_user_id(username)
        if self.state.keys and self.state.keys.user_id != user_id:
            raise DeviceError("another-username")
        return user_id

    def _must_not_be_deleted(self) -> None:
        if self.state.deletion:
            raise UnsettledChangeError("deletion")

    def _must_be_settled(self) -> None:
        self._must_not_be_deleted()
        if self.state.change and self._in_force(self.state.change) == "old":
            raise UnsettledChangeError

    def _change(self, old: Keys, new: Keys) -> None:
        upload = self._upload(new)
        earlier = self.state.change
        ahead = max(earlier.ahead if earlier else 0, -self.clock_offset)
        keep_until = self._now() + SIGNATURE_ACTS_SECONDS + ahead
        # An upload with the old keys is sent no more.
        self._save(unsent=None, change=Change(old, new, keep_until, ahead))
        try:
            receipt = self._once(
                lambda client: client.change_storage_key(new.storage_key, upload.blob, upload.base_sha256),
                receipt_for(upload.blob),
                old,
            )
        except ProblemError as problem:
            if not problem.lost and problem.code != "credentials_invalid":
                raise
            if self.settle_change() != "new":
                raise
        else:
            self._adopt(old, new, **self._seen(upload, receipt["version"]))

    def _adopt(self, old: Keys, new: Keys, **seen: Any) -> None:
        """Go on with the new keys."""
        self._save(
            **seen,
            keys=new,
            unsent=None,
            change=None,
            old_keys=self._old_keys_with(new, old),
            succeeded=new.derivation,
        )

    def _old_keys_with(self, in_force: Keys, *old: Keys) -> tuple[tuple[Keys, float], ...]:
        now = self._now(in_force)
        kept = tuple(pair for pair in self.state.old_keys if pair[1] > now and pair[0] not in (*old, in_force))
        return (*kept, *((keys, now + SNAPSHOT_SECONDS) for keys in old))

    # ---- Deleting the account

    def delete(self, confirmed: bool = False) -> None:
        """Delete the account. After a lost answer, call it again, also after a restart.

        10 minutes after the first attempt, raise UnsettledChangeError unless the person `confirmed` the repeat:
        somebody may have registered the account again.
        """
        repeat = self.state.deletion is not None
        for attempt in range(1, self._attempts + 1):
            now, before = self._now(), self.state.deletion
            first, ahead = (before.first, before.ahead) if before else (now, 0)
            if not confirmed and now >= first + 600:
                raise UnsettledChangeError("deletion")
            ahead = max(ahead, -self.clock_offset)
            self._save(deletion=Deletion(first, now + SIGNATURE_ACTS_SECONDS + ahead, ahead))
            try:
                self._once(lambda client: client.delete_user(), {}, statuses=(204,))
                return
            except ProblemError as problem:
                if repeat and problem.code == "credentials_invalid":
                    return
                again = problem.lost or problem.status == 408
                if not again and not repeat:
                    self._save(deletion=None)  # it was refused
                if not again or attempt == self._attempts:
                    raise
                repeat = repeat or problem.lost
                self._pause_after(problem, attempt)

    # ---- One upload, one request

    def _on_latest(self, store: Callable[[], None], keys: Keys | None = None, confirmed: str = "") -> None:
        """Store on the base. After a conflict, fetch, merge and store again."""
        keys = keys or self.keys
        if not self.state.base:
            self._fetch_to_replace(keys, confirmed)
        for attempt in range(1, self._attempts + 1):
            try:
                return store()
            except ProblemError as problem:
                if problem.code != "version_conflict" or attempt == self._attempts:
                    raise
            self._fetch_to_replace(keys, confirmed)

    def _upload(self, keys: Keys, restored: bytes | None = None, restored_sequence: int = 0) -> Upload:
        base, log = self.state.base, self.state.log if restored is None else restored
        sequence = next_sequence(base.sequence if base else 0, self.state.highest, restored_sequence)
        base_sha256 = base.sha256 if base else None
        blob = encrypt(keys, log, sequence=sequence, base_sha256=base_sha256)
        instead_of = None if restored is None else sha256_of(self.state.log)
        return Upload(blob, sequence, base_sha256, sha256_of(log), restored, instead_of)

    def _send(self, upload: Upload) -> None:
        self._save(unsent=upload)
        try:
            receipt = self._repeated(
                lambda client: client.store_backup(upload.blob, upload.base_sha256),
                receipt_for(upload.blob),
                statuses=(200, 201),
            )
        except ProblemError as problem:
            if not problem.lost:
                self._save(unsent=None)
            raise
        log, restored = self.state.log, upload.restored
        if restored is not None:  # what was added while the answer was lost stays
            log = restored if sha256_of(log) == upload.instead_of else self._merge(log, restored)
        self._save(unsent=None, log=log, **self._seen(upload, receipt["version"]))

    def _seen(self, upload: Upload, version: int) -> dict[str, Any]:
        """Return what changes when the server has acknowledged an upload."""
        base = upload.as_base(version)
        highest = higher(self.state.highest, upload.sequence, base.sha256)
        highest_log = upload.log_sha256 if highest.sha256 == base.sha256 else self.state.highest_log
        return {"base": base, "highest": highest, "highest_log": highest_log}

    def _once(
        self,
        send: Callable[[BackupClient], requests.Response],
        expected: Mapping[str, Any],
        keys: Keys | None = None,
        statuses: Collection[int] = (200,),
    ) -> dict[str, Any]:
        """Send one request. If the device's clock is wrong, correct it and send the request once more."""
        client = self._make_client(keys or self.keys)
        client.clock_offset = self.clock_offset
        try:
            response = send(client)
            if client.mend_clock(response):
                self._clock_was_ahead(-client.clock_offset)
                self.clock_offset = client.clock_offset
                response = send(client)
            return members(response, expected, statuses)
        except requests.RequestException:
            raise LostAnswerError(0, "no answer came") from None

    def _clock_was_ahead(self, seconds: float) -> None:
        """An attempt to change the password may act for longer by these seconds."""
        change = self.state.change
        if change and seconds > change.ahead:
            longer = change.keep_until + seconds - change.ahead
            self._save(change=replace(change, keep_until=longer, ahead=seconds))
        deletion = self.state.deletion
        if deletion and seconds > deletion.ahead:
            longer = deletion.register_after + seconds - deletion.ahead
            self._save(deletion=replace(deletion, register_after=longer, ahead=seconds))

    def _repeated(
        self,
        send: Callable[[BackupClient], requests.Response],
        expected: Mapping[str, Any],
        keys: Keys | None = None,
        statuses: Collection[int] = (200,),
        check: Callable[[dict[str, Any]], object] = lambda found: None,
    ) -> dict[str, Any]:
        """Send a request that may be repeated, freshly signed each time, until there is an answer.

        If `check` of the answer raises ValueError, the answer is lost.
        """
        for attempt in range(1, self._attempts + 1):
            try:
                found = self._once(send, expected, keys, statuses)
                check(found)
                return found
            except ValueError as misfit:
                if attempt == self._attempts:
                    raise MisfitError(200, str(misfit)) from None
                self._pause(2 * attempt)
            except ProblemError as problem:
                if not (problem.status == 408 or problem.lost) or attempt == self._attempts:
                    raise
                self._pause_after(problem, attempt)
        raise AssertionError("there is at least one attempt")

    def _pause_after(self, problem: ProblemError, attempt: int) -> None:
        """Wait for as long as the server asks, or longer after each attempt. Raise the problem if it asks for long."""
        seconds = problem.retry_after or 2 * attempt
        if seconds > LONGEST_PAUSE:
            raise problem
        self._pause(seconds)

    def _backup(
        self,
        send: Callable[[BackupClient], requests.Response],
        keys: Keys,
        asked: Mapping[str, Any] = MappingProxyType({}),
        statuses: Collection[int] = (200,),
    ) -> dict[str, Any]:
        """Fetch a version that fits its receipt and is the one that was asked for. A 304 gives {}."""

        def check(backup: dict[str, Any]) -> None:
            if backup:
                blob_of(backup, **asked)

        return self._repeated(send, {**RECEIPT, "data": str}, keys, statuses, check)

    def _now(self, keys: Keys | None = None) -> float:
        return self._make_client(keys or self.keys).now()

    def _save(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._on_save(self.state)
