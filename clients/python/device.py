"""A device that keeps one log and its backup in step. It shows what a device saves, and when.

    device = Device(State(log=b""), make_client, merge, save=save, tell=tell)
    device.sign_in("Anna", "correct horse battery staple")
    device.sync()

It is built on `backup_client.py`. Whatever the server refuses raises ProblemError. If its `lost` is True, call the
method again later.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import requests

from clients.python.backup_client import (
    ALARMS,
    DERIVATIONS,
    RECEIPT,
    BackupClient,
    DecryptionError,
    Derivation,
    Keys,
    LostAnswerError,
    ProblemError,
    Seen,
    blob_of,
    decrypt,
    derivations_to_try,
    derive_keys,
    encrypt,
    higher,
    members,
    next_sequence,
    receipt_for,
    verdict,
)

SIGNATURE_ACTS_SECONDS = 901  # x-limits.deletedUserSeconds: no signature can act for longer
SNAPSHOT_SECONDS = 60 * 86_400  # no snapshot of a server lives longer


class UnsettledChangeError(Exception):
    """A change of the password may have happened or not. Until it is settled, nothing is encrypted with the old keys.

    Tell the person that the new password is not in force. Call `sync`, which sends the change again, or
    `settle_change`.
    """


@dataclass(frozen=True)
class Upload:
    """A blob that was sent. After a lost answer, the very same bytes are sent again."""

    blob: bytes = field(repr=False)
    sequence: int
    base_sha256: str | None

    @property
    def seen(self) -> Seen:
        return Seen(self.sequence, hashlib.sha256(self.blob).hexdigest())


@dataclass(frozen=True)
class Change:
    """A change of the password that may have happened or not. Both keys are kept at least until `keep_until`."""

    old: Keys
    new: Keys
    keep_until: float


@dataclass(frozen=True)
class State:
    """What a device saves, always as a whole.

    `base` is the version that `log` was made from. `old_keys` are pairs (keys, until when they are kept), newest last.
    `succeeded` is the newest derivation that has succeeded. Times are Unix seconds.
    """

    keys: Keys | None = None
    log: bytes = field(default=b"", repr=False)
    base: Seen | None = None
    highest: Seen = Seen()
    unsent: Upload | None = None
    change: Change | None = None
    old_keys: tuple[tuple[Keys, float], ...] = ()
    succeeded: str | None = None


class Device:
    """One device of one user.

    `make_client` returns the BackupClient of some keys. `merge(mine, theirs)` returns a log with what either has.
    `save` stores the state on the device. It is called before each request that needs the state. `tell` gets a verdict
    that the person has to know: "rollback" or "unknown-base". `pause` waits for some seconds between two attempts.
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
        self._make_client = make_client
        self._merge = merge
        self._on_save = save
        self._tell = tell
        self._pause = pause
        self._attempts = attempts

    @property
    def keys(self) -> Keys:
        assert self.state.keys, "sign in first"
        return self.state.keys

    # ---- Signing in

    def sign_in(self, username: str, password: str, derivations: Sequence[Derivation] = DERIVATIONS) -> None:
        """Find the keys that are in force, by the newest derivation first. Then move the account to the newest.

        If this raises `credentials_invalid`, say: "The username or the password is wrong, or a newer version of the app
        moved this account: update the app."
        """
        tried = derivations_to_try(self.state.succeeded, derivations)
        for derivation in tried:
            keys = derive_keys(username, password, derivation)
            try:
                self.list_versions(keys)
            except ProblemError as problem:
                if problem.code != "credentials_invalid" or derivation is tried[-1]:
                    raise
                continue
            before, change = self.state.keys, self.state.change
            self._save(keys=keys, succeeded=derivation.name)
            if before and before != keys:  # another device changed the password
                still_open = change if change and change.old == keys else None
                self._save(unsent=None, change=still_open, old_keys=self._old_keys_with(before))
            if derivation is not derivations[0]:
                self.change_password(derive_keys(username, password, derivations[0]))
            return

    def register(self, keys: Keys) -> None:
        """Register. A repeat after a lost answer is harmless. In a new account, this device has seen nothing."""
        statuses: list[int] = []

        def send(client: BackupClient) -> requests.Response:
            response = client.register_user()
            statuses.append(response.status_code)
            return response

        self._repeated(send, {"createdAt": str}, keys)
        seen = {"base": None, "highest": Seen(), "unsent": None} if statuses[-1] == 201 else {}
        self._save(keys=keys, succeeded=keys.derivation, **seen)

    def after_refusal(self) -> str:
        """Find out what to do about `credentials_invalid`, if nobody changed the password or deleted the account.

        Return "changed" if an old key worked: the server was restored from a snapshot, and the password is changed
        again now. Otherwise, return "ask": ask the person, then sign in with another password, or register.
        """
        new = self.keys
        for old, until in reversed(self.state.old_keys[-2:]):  # each refusal counts as a failed credential
            try:
                if until < self._now():
                    continue
                self.fetch(old)
            except ProblemError as problem:
                if problem.code != "credentials_invalid":
                    raise
                continue
            self.change_password(new, old)
            return "changed"
        return "ask"

    # ---- Keeping the log and its backup in step

    def sync(self) -> None:
        """Store the log. If another device has stored since, fetch, merge and store again.

        If a change of the password is not settled, send the change again instead: it stores the log, too.
        """
        change = self.state.change
        if change and self._in_force(change) == "old":
            return self.change_password(change.new, change.old)
        if self.state.unsent:
            try:
                self._send(self.state.unsent)
            except ProblemError as problem:
                if problem.code != "version_conflict":
                    raise
        self._on_latest(lambda: self._send(self._upload(self.keys)))

    def fetch(self, keys: Keys | None = None) -> None:
        """Fetch the latest version, compare it with the highest seen, and merge it. Tell the person if it is older.

        Raise AppOutdatedError if a newer version of the app made it, DecryptionError if it is damaged or was made with
        other keys, and ValueError if the answer contradicts itself.
        """
        keys = keys or self.keys
        highest = self.state.highest
        try:
            backup = self._repeated(lambda client: client.fetch_backup(), {**RECEIPT, "data": str}, keys)
        except ProblemError as problem:
            if problem.code != "no_backup":
                raise
            self._expect_versions([])
            self._save(base=None)
            return
        latest, sha256 = decrypt(keys, blob_of(backup)), backup["sha256"]
        found = verdict(highest, latest.sequence, sha256, latest.base_sha256)
        if found in ALARMS:
            self._tell(found)
        self._save(
            log=self._merge(self.state.log, latest.plaintext),
            base=Seen(latest.sequence, sha256),
            highest=higher(highest, latest.sequence, sha256),
        )

    def list_versions(self, keys: Keys | None = None) -> list[dict[str, Any]]:
        """Return the receipts of the kept versions, newest first."""
        answer = self._repeated(lambda client: client.list_backup_versions(), {"versions": list}, keys)
        self._expect_versions(answer["versions"])
        return list(answer["versions"])

    def _expect_versions(self, versions: list[Any]) -> None:
        if not versions and self.state.highest.sequence:  # this device has seen a version, and now there is none
            self._tell("rollback")

    def restore(self, version: int, keys: Keys | None = None) -> None:
        """Store an older version again, as the latest.

        `keys` are those of its keyVersion, if the password changed since. Raise LookupError if it is not listed.
        """
        self._must_be_settled()
        listed = {receipt["version"]: receipt for receipt in self.list_versions()}
        expected = {**RECEIPT, "data": str}
        backup = self._repeated(lambda client: client.fetch_backup_version(version), expected)
        blob = blob_of(backup, version=version, sha256=listed[version]["sha256"])
        log = decrypt(keys or self.keys, blob).plaintext  # it is old on purpose: no verdict

        def store() -> None:
            before = self.state.log
            upload = self._upload(self.keys, log)
            try:
                self._save(log=log)
                self._send(upload)
            except ProblemError as problem:
                if not problem.lost:  # after a lost answer, the version may be restored
                    self._save(log=before)
                raise

        self._on_latest(store)

    def replace_unreadable(self) -> None:
        """Replace a latest version that cannot be fetched or decrypted. Ask the person first.

        A version of an unknown format is never replaced: this raises AppOutdatedError.
        """
        self._must_be_settled()
        try:
            self.fetch()
        except (DecryptionError, ValueError, ProblemError) as error:
            if isinstance(error, ProblemError) and error.code != "backup_damaged":
                raise
            # Its sequence counts as one more than the highest seen.
            self._save(base=Seen(self.state.highest.sequence + 1, self.list_versions()[0]["sha256"]))
        self._send(self._upload(self.keys))

    # ---- Changing the password

    def change_password(self, new: Keys, old: Keys | None = None) -> None:
        """Change the password. If the answer is lost, keep both keys and call `settle_change` later.

        `old` are the keys in force, if they are not those of the device. Show the new recovery code afterwards. Raise
        UnsettledChangeError if a change to other keys is not settled.
        """
        signed_by = old or self.keys
        change = self.state.change
        if change and change.new != new and self._in_force(change) == "old":
            raise UnsettledChangeError
        self._on_latest(lambda: self._change(signed_by, new), signed_by)

    def settle_change(self) -> str:
        """Find out which keys are in force: "new", "old", or "unsure" while the change may still arrive."""
        change = self.state.change
        if not change:
            return "old"
        asked = self._now()
        if self._in_force(change) == "new":
            return "new"
        if asked < change.keep_until:
            return "unsure"
        self._save(change=None)
        return "old"

    def _in_force(self, change: Change) -> str:
        """Ask with the new keys, then with the old ones. If the new ones are in force, go on with them."""
        try:
            self.list_versions(change.new)
        except ProblemError as problem:
            if problem.code != "credentials_invalid":
                raise
            self.list_versions(change.old)
            return "old"
        self._adopt(change.old, change.new, None)
        return "new"

    def _must_be_settled(self) -> None:
        if self.state.change and self._in_force(self.state.change) == "old":
            raise UnsettledChangeError

    def _change(self, old: Keys, new: Keys) -> None:
        upload = self._upload(new)
        ahead = self.clock_offset
        earlier = self.state.change.keep_until if self.state.change else 0
        # An upload with the old keys is sent no more.
        self._save(unsent=None, change=Change(old, new, max(earlier, self._now() + SIGNATURE_ACTS_SECONDS)))
        try:
            self._once(
                lambda client: client.change_storage_key(new.storage_key, upload.blob, upload.base_sha256),
                receipt_for(upload.blob),
                old,
            )
        except ProblemError as problem:
            # If the device's clock was ahead when it signed, the signature acts for longer.
            change = self.state.change
            assert change
            longer = max(0, ahead - self.clock_offset)
            self._save(change=replace(change, keep_until=change.keep_until + longer))
            if not problem.lost and problem.code != "credentials_invalid":
                raise
            if self.settle_change() != "new":
                raise
        else:
            self._adopt(old, new, upload)

    def _adopt(self, old: Keys, new: Keys, upload: Upload | None) -> None:
        highest = self.state.highest
        self._save(
            keys=new,
            base=upload.seen if upload else None,
            highest=higher(highest, upload.sequence, upload.seen.sha256 or "") if upload else highest,
            unsent=None,
            change=None,
            old_keys=self._old_keys_with(old),
            succeeded=new.derivation,
        )

    def _old_keys_with(self, old: Keys) -> tuple[tuple[Keys, float], ...]:
        now = self._now()
        kept = tuple(pair for pair in self.state.old_keys if pair[1] > now and pair[0] != old)
        return (*kept, (old, now + SNAPSHOT_SECONDS))

    # ---- One upload, one request

    def _on_latest(self, store: Callable[[], None], keys: Keys | None = None) -> None:
        """Store on the base. After a conflict, fetch, merge and store again."""
        if not self.state.base:
            self.fetch(keys)
        for attempt in range(1, self._attempts + 1):
            try:
                return store()
            except ProblemError as problem:
                if problem.code != "version_conflict" or attempt == self._attempts:
                    raise
            self.fetch(keys)

    def _upload(self, keys: Keys, log: bytes | None = None) -> Upload:
        base = self.state.base
        sequence = next_sequence(base.sequence if base else 0, self.state.highest)
        base_sha256 = base.sha256 if base else None
        blob = encrypt(keys, self.state.log if log is None else log, sequence=sequence, base_sha256=base_sha256)
        return Upload(blob, sequence, base_sha256)

    def _send(self, upload: Upload) -> None:
        self._save(unsent=upload)
        try:
            self._repeated(
                lambda client: client.store_backup(upload.blob, upload.base_sha256), receipt_for(upload.blob)
            )
        except ProblemError as problem:
            if not problem.lost:
                self._save(unsent=None)
            raise
        seen = upload.seen
        assert seen.sha256
        self._save(unsent=None, base=seen, highest=higher(self.state.highest, seen.sequence, seen.sha256))

    def _once(
        self, send: Callable[[BackupClient], requests.Response], expected: Mapping[str, Any], keys: Keys | None = None
    ) -> dict[str, Any]:
        """Send one request. If the device's clock is wrong, correct it and send the request once more."""
        client = self._make_client(keys or self.keys)
        client.clock_offset = self.clock_offset
        try:
            response = send(client)
            if client.mend_clock(response):
                self.clock_offset = client.clock_offset
                response = send(client)
            return members(response, expected)
        except requests.RequestException:
            raise LostAnswerError(0, "no answer came") from None

    def _repeated(
        self, send: Callable[[BackupClient], requests.Response], expected: Mapping[str, Any], keys: Keys | None = None
    ) -> dict[str, Any]:
        """Send a request that may be repeated, freshly signed each time, until there is an answer."""
        for attempt in range(1, self._attempts):
            try:
                return self._once(send, expected, keys)
            except ProblemError as problem:
                again = problem.status == 408 or problem.lost and problem.code != "backup_damaged"
                if not again:
                    raise
            self._pause(2 * attempt)
        return self._once(send, expected, keys)

    def _now(self) -> float:
        return self._make_client(self.keys).now()

    def _save(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._on_save(self.state)
