"""Broken clients. A vector or a test that is named here must notice each: so they prove something.

The Python client is broken by replacing functions, the JavaScript client by replacing text of a copy.
"""

import functools
import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clients.python import backup_client, device
from clients.python.backup_client import (
    AppOutdatedError,
    DecryptionError,
    Derivation,
    Keys,
    LostAnswerError,
    MistypedCodeError,
    ProblemError,
    Seen,
)
from clients.python.device import Device
from contract_tests.target import openapi
from contract_tests.target.openapi import REPOSITORY
from server_tests import test_client_vectors, test_devices, test_normalization, vectors
from server_tests.test_devices import Account

Put = Callable[[str, Callable[..., Any]], None]
Check = Callable[[Callable[[], Account]], None]  # it gets a function that makes an account, if it needs one
RULES = set(openapi.SPEC["info"]["x-client-requirements"])


# ---- What notices a broken client --------------------------------------------------------------------------


@functools.cache
def by_vectors(kind: str, group_type: str, *tc_ids: int) -> Check:
    """All cases of a type, or these, as test_client_vectors.py checks them."""
    tests = {
        "Username": [test_client_vectors.test_username],
        "Keys": [test_client_vectors.test_keys],
        "Blob": [test_client_vectors.test_blob, test_client_vectors.test_blob_refused],
        "Data": [test_client_vectors.test_data],
        "RecoveryCode": [test_client_vectors.test_recovery_code],
        "Password": [test_client_vectors.test_password],
        "Verdict": [test_client_vectors.test_verdict],
        "Sequence": [test_client_vectors.test_sequence],
        "SignIn": [test_client_vectors.test_derivations_to_try],
        "Request": [test_client_vectors.test_request_signed],
    }[group_type]

    def check(make_account: Callable[[], Account]) -> None:
        for group, case in vectors.cases(kind, group_type):
            if tc_ids and case["tcId"] not in tc_ids:
                continue
            if group_type == "Keys" and not tc_ids and case["tcId"] not in (1201, 1421):  # one of each derivation
                continue
            if group_type == "Request" and case["result"] == "invalid":  # a case for servers
                continue
            tests[case["result"] == "invalid" and len(tests) > 1](group, case)

    return check


def by(test: Callable[..., None], *arguments: Any) -> Check:
    """A test of test_devices.py that needs an account, or any other test that needs nothing."""
    needs_account = test.__module__ == test_devices.__name__
    return lambda make_account: test(*([make_account()] if needs_account else []), *arguments)


# ---- Broken Python clients ---------------------------------------------------------------------------------

Break = Callable[[Put], None]
BROKEN: list[tuple[str, str, Break, Check]] = []


def broken(rule: str, *checks: Check) -> Callable[[Break], Break]:
    """Register a broken client: the rule that it breaks, and the checks that must each notice it."""

    def register(put_in: Break) -> Break:
        for number, check in enumerate(checks):
            BROKEN.append((f"{put_in.__name__}-{number}", rule, put_in, check))
        return put_in

    return register


@broken("client.user-id", by_vectors("derivation", "Username"))
def user_id_has_no_prefix(put: Put) -> None:
    import hashlib

    real = backup_client.normalize_username
    put("derive_user_id", lambda username: hashlib.sha256(real(username).encode()).hexdigest())


class Unicodedata:
    """Stands for the module `unicodedata`, with a normalisation that is not quite NFKC."""

    def __init__(self, normalize: Callable[[str], str]) -> None:
        self._normalize = normalize

    def __call__(self) -> None: ...

    def normalize(self, form: str, text: str) -> str:
        assert form == "NFKC"
        return self._normalize(text)


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


BY_USERNAMES = by_vectors("derivation", "Username"), by(test_normalization.test_unicodes_strings_in_usernames)
BY_A_PASSWORD = by(test_normalization.test_unicodes_strings_in_passwords)
KANA_OR_JAMO = re.compile(
    "([\u1100-\u11ff\u3131-\u318e\uffa1-\uffdc]+|[\u30a1-\u30fa\uff66-\uff9d][\u3099\u309a\uff9e\uff9f])"
)


@broken(
    "client.user-id",
    *BY_USERNAMES,
    BY_A_PASSWORD,
    by_vectors("derivation", "Username", 1012),
    by_vectors("derivation", "Username", 1159),
    by_vectors("derivation", "Keys", 1219),
    by_vectors("derivation", "Keys", 1221),
    by_vectors("derivation", "Keys", 1222),
    by_vectors("derivation", "Password", 1632),
    by_vectors("derivation", "Password", 1634),
)
def half_width_kana_and_jamo_are_left_uncomposed(put: Put) -> None:
    """As Swift's Foundation does."""

    def normalize(text: str) -> str:
        forms = "NFKC", "NFKD"  # each other piece is kana or jamo
        return "".join(unicodedata.normalize(forms[at % 2], each) for at, each in enumerate(KANA_OR_JAMO.split(text)))

    put("unicodedata", Unicodedata(normalize))


@broken(
    "client.keys",
    BY_A_PASSWORD,
    by_vectors("derivation", "Keys", 1219),
    by_vectors("derivation", "Keys", 1221),
    by_vectors("derivation", "Password", 1632),
    by_vectors("derivation", "Password", 1634),
)
def each_code_point_is_normalised_by_itself(put: Put) -> None:
    """After NFC. In a username, the second NFKC would mend it."""
    put("unicodedata", Unicodedata(lambda text: "".join(map(nfkc, unicodedata.normalize("NFC", text)))))


@broken(
    "client.user-id",
    *BY_USERNAMES,
    BY_A_PASSWORD,
    by_vectors("derivation", "Username", 1164),
    by_vectors("derivation", "Keys", 1223),
    by_vectors("derivation", "Password", 1636),
)
def composition_exclusion_is_composed(put: Put) -> None:
    put("unicodedata", Unicodedata(lambda text: nfkc(text).replace("\u0915\u093c", "\u0958")))


@broken(
    "client.user-id",
    by_vectors("derivation", "Username", 1167),
    by_vectors("derivation", "Username", 1168),
    by_vectors("derivation", "Keys", 1224),
)
def marks_are_cut_after_30(put: Put) -> None:
    """As in Unicode's stream-safe text format: a combining grapheme joiner goes in between."""
    put(
        "unicodedata",
        Unicodedata(lambda text: nfkc(re.sub("([\u0300-\u0362]{30})(?=[\u0300-\u0362])", "\\1\u034f", text))),
    )


@broken("client.keys", by_vectors("derivation", "Keys"))
def encryption_key_is_the_storage_key(put: Put) -> None:
    real = backup_client.keys_of_master_key

    def keys_of_master_key(*arguments: Any) -> Keys:
        keys = real(*arguments)
        return replace(keys, encryption_key=bytes.fromhex(keys.storage_key))

    put("keys_of_master_key", keys_of_master_key)


@broken("client.signature", by_vectors("signing", "Request"))
def path_is_not_signed(put: Put) -> None:
    real = backup_client.signature_base
    put("signature_base", lambda method, path, *rest: real(method, "/", *rest))


@broken("client.header", by_vectors("encryption", "Blob"))
def header_is_not_authenticated(put: Put) -> None:
    put("associated_data", lambda user_id, header: f"dailyreps/v1/{user_id}".encode())


@broken("client.header", by_vectors("encryption", "Blob"))
def sequence_is_little_endian(put: Put) -> None:
    put(
        "blob_header",
        lambda sequence, base_sha256: (
            b"\x01" + sequence.to_bytes(8, "little") + bytes.fromhex(base_sha256 or "00" * 32)
        ),
    )


@broken("client.header", by(test_devices.test_usual_uploads_of_two_devices))
def base_is_left_out_of_the_header(put: Put) -> None:
    real = backup_client.encrypt
    put("encrypt", lambda keys, log, *, sequence, base_sha256=None: real(keys, log, sequence=sequence))


@broken("client.format", by_vectors("encryption", "Blob"), by(test_devices.test_a_newer_app_has_stored))
def unknown_format_is_taken_for_damage(put: Put) -> None:
    real = backup_client.decrypt

    def decrypt(keys: Keys, blob: bytes) -> Any:
        try:
            return real(keys, blob)
        except AppOutdatedError:
            raise DecryptionError from None

    put("decrypt", decrypt)


@broken("client.format", by_vectors("encryption", "Blob"))
def format_is_not_looked_at(put: Put) -> None:
    """A blob of another format is decrypted, if it is authentic."""
    real = backup_client.decrypt

    def decrypt(keys: Keys, blob: bytes) -> Any:
        header, nonce, sealed = blob[:41], blob[41:53], blob[53:]
        try:
            associated_data = backup_client.associated_data(keys.user_id, header)
            backup_client.AESGCM(keys.encryption_key).decrypt(nonce, sealed, associated_data)
        except Exception:
            return real(keys, blob)
        return real(keys, blob) if blob[:1] == b"\x01" else None

    put("decrypt", decrypt)


@broken(
    "client.version",
    by(test_client_vectors.test_an_answer_about_another_version),
    by(test_devices.test_another_version_than_the_one_that_was_asked_for),
)
def any_version_is_taken(put: Put) -> None:
    real = backup_client.blob_of
    put("blob_of", lambda backup, *, version=None, sha256=None: real(backup))


@broken("client.version", by_vectors("encryption", "Data"))
def receipt_is_not_compared(put: Put) -> None:
    import base64

    put("decode_data", lambda data, *, size, sha256: base64.b64decode(data, validate=True))


@broken(
    "client.sequence",
    by_vectors("devices", "Sequence"),
    by(test_devices.test_an_old_state_does_not_lower_the_next_sequence),
)
def sequence_follows_the_base_alone(put: Put) -> None:
    put("next_sequence", lambda base_sequence, highest, restored=0: (base_sequence or 0) + 1)


@broken("client.sequence", by(test_devices.test_registering_resets_the_highest_seen))
def registering_resets_nothing(put: Put) -> None:
    real = Device._save

    def save(self: Device, **changes: Any) -> None:
        if changes.get("highest") == Seen():
            del changes["highest"]
        real(self, **changes)

    put("Device._save", save)


@broken("client.sequence", by(test_devices.test_a_lost_upload_has_not_been_seen))
def lost_upload_counts_as_seen(put: Put) -> None:
    real = Device._send

    def send(self: Device, upload: device.Upload) -> None:
        self._save(highest=Seen(upload.sequence, device.sha256_of(upload.blob)))
        real(self, upload)

    put("Device._send", send)


@broken(
    "client.rollback",
    by_vectors("devices", "Verdict"),
    by(test_devices.test_an_old_state_as_the_latest, 1, 4),
    by(test_devices.test_a_false_conflict_with_an_old_state),
)
def rollback_is_not_noticed(put: Put) -> None:
    real = backup_client.verdict
    put("verdict", lambda *arguments: "same" if real(*arguments) == "rollback" else real(*arguments))


@broken("client.rollback", by_vectors("devices", "Verdict"))
def sha256_of_the_same_sequence_is_not_compared(put: Put) -> None:
    real = backup_client.verdict

    def verdict(highest: Seen, sequence: int, *rest: Any) -> str:
        return "same" if sequence == highest.sequence > 0 else real(highest, sequence, *rest)

    put("verdict", verdict)


@broken("client.rollback", by(test_devices.test_an_old_state_as_the_latest, 1, 4))
def rollback_is_adopted(put: Put) -> None:
    real = Device.fetch

    def fetch(self: Device, keys: Keys | None = None) -> None:
        told: list[str] = []
        ours, tell = self._merge, self._tell
        self._tell = lambda verdict: (told.append(verdict), tell(verdict))[1]
        self._merge = lambda mine, theirs: theirs if told else ours(mine, theirs)
        real(self, keys)

    put("Device.fetch", fetch)


@broken(
    "client.rollback",
    by_vectors("devices", "Verdict"),
    by(test_devices.test_an_old_state_as_the_latest, 1, 4),
)
def highest_seen_moves_down(put: Put) -> None:
    put("higher", lambda highest, sequence, sha256: Seen(sequence, sha256))


@broken("client.rollback", by(test_devices.test_everything_is_gone))
def nothing_stored_is_no_rollback(put: Put) -> None:
    real = Device.fetch

    def fetch(self: Device, keys: Keys | None = None) -> None:
        tell, self._tell = self._tell, lambda verdict: None
        real(self, keys)
        self._tell = tell

    put("Device.fetch", fetch)


@broken("client.base", by_vectors("devices", "Verdict"))
def base_is_not_compared(put: Put) -> None:
    real = backup_client.verdict
    put("verdict", lambda *arguments: real(*arguments).replace("unknown-base", "next"))


@broken("client.no-false-alarm", by_vectors("devices", "Verdict"))
def missed_versions_raise_an_alarm(put: Put) -> None:
    real = backup_client.verdict
    put("verdict", lambda *arguments: real(*arguments).replace("later", "unknown-base"))


@broken("client.no-false-alarm", by(test_devices.test_a_restored_version_raises_no_alarm))
def restored_version_keeps_its_old_sequence(put: Put) -> None:
    """The very bytes of the old version are uploaded again."""
    real = Device._upload

    def upload(self: Device, keys: Keys, log: bytes | None = None, sequence: int = 0) -> device.Upload:
        made = real(self, keys, log, sequence)
        if log is None:
            return made
        blob = backup_client.encrypt(keys, log, sequence=1, base_sha256=made.base_sha256)
        return replace(made, blob=blob)

    put("Device._upload", upload)


@broken(
    "client.derivations",
    by_vectors("devices", "SignIn"),
    by(test_devices.test_a_server_cannot_force_the_older_derivation),
)
def older_derivation_is_tried_again(put: Put) -> None:
    put("derivations_to_try", lambda succeeded, derivations=backup_client.DERIVATIONS: derivations)


@broken("client.derivations", by_vectors("devices", "SignIn"))
def older_derivation_is_tried_first(put: Put) -> None:
    real = backup_client.derivations_to_try
    put("derivations_to_try", lambda *arguments: list(reversed(real(*arguments))))


@broken("client.derivations", by(test_devices.test_an_account_moves_to_a_newer_derivation))
def account_stays_with_the_older_derivation(put: Put) -> None:
    real = Device.sign_in

    def sign_in(self: Device, username: str, password: str, derivations: Any = backup_client.DERIVATIONS) -> None:
        change, self._change_password = self._change_password, lambda *keys: None  # type: ignore[method-assign]
        real(self, username, password, derivations)
        self._change_password = change  # type: ignore[method-assign]

    put("Device.sign_in", sign_in)


@broken("client.recovery-code", by_vectors("derivation", "RecoveryCode"))
def checksum_is_ignored(put: Put) -> None:
    put("_recovery_checksum", AnyBytes)


class AnyBytes(bytes):
    """Two bytes that are equal to any others."""

    def __new__(cls, user_id: str, content: bytes) -> "AnyBytes":
        return super().__new__(cls, bytes(2))

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = bytes.__hash__


@broken("client.recovery-code", by_vectors("derivation", "RecoveryCode"))
def checksum_does_not_cover_the_username(put: Put) -> None:
    real = backup_client._recovery_checksum
    put("_recovery_checksum", lambda user_id, content: real("", content))


@broken("client.recovery-code", by_vectors("derivation", "RecoveryCode"))
def look_alikes_are_read(put: Put) -> None:
    real = backup_client.read_recovery_code
    put("read_recovery_code", lambda username, code: real(username, code.upper()))


@broken("client.recovery-code", by_vectors("derivation", "RecoveryCode"))
def newer_recovery_code_is_called_mistyped(put: Put) -> None:
    real = backup_client.read_recovery_code

    def read_recovery_code(username: str, code: str) -> Keys:
        try:
            return real(username, code)
        except AppOutdatedError:
            raise MistypedCodeError from None

    put("read_recovery_code", read_recovery_code)


@broken("client.recovery-code", by_vectors("derivation", "RecoveryCode"))
def o_is_no_zero(put: Put) -> None:
    real = backup_client.read_recovery_code
    put("read_recovery_code", lambda username, code: real(username, re.sub("[Oo]", "U", code)))


@broken("client.password-floor", by(test_client_vectors.test_a_sign_in_checks_no_password))
def floor_is_checked_at_the_sign_in(put: Put) -> None:
    real = backup_client.derive_keys

    def derive_keys(username: str, password: str, derivation: Derivation = backup_client.V1) -> Keys:
        if backup_client.password_problem(password, ()):
            raise ValueError("too short")
        return real(username, password, derivation)

    put("derive_keys", derive_keys)


@broken("client.password-floor", by_vectors("derivation", "Password"))
def password_is_counted_in_bytes(put: Put) -> None:
    real = backup_client.password_problem
    put(
        "password_problem",
        lambda text, common: "too-short" if len(text.encode()) < 10 else real(text + " " * 9, common),
    )


@broken("client.password-floor", by_vectors("derivation", "Password"))
def common_password_is_compared_as_it_is_typed(put: Put) -> None:
    real = backup_client.password_problem

    def password_problem(password: str, common: Any) -> str | None:
        return None if (found := real(password, common)) == "too-common" and password not in common else found

    put("password_problem", password_problem)


@broken("client.snapshot", by(test_devices.test_old_keys_are_kept_for_60_days))
def old_keys_are_forgotten(put: Put) -> None:
    put("Device._old_keys_with", lambda self, *old: ())


@broken("client.snapshot", by(test_devices.test_old_keys_are_kept_for_60_days))
def old_keys_are_kept_for_ever(put: Put) -> None:
    put("Device.after_refusal", lambda self: "confirm" if self.state.old_keys else "ask")


@broken(
    "client.lost-answer",
    by(test_client_vectors.test_a_success_that_is_none, "text/html", b"<p>Welcome to this network</p>"),
    by(test_client_vectors.test_a_success_that_is_none, "application/json", b"{}"),
)
def any_200_is_a_success(put: Put) -> None:
    put("members", lambda response, expected, statuses=(): {})


@broken(
    "client.lost-answer",
    by(test_client_vectors.test_checked_without_a_problem, 502, "text/html", b"<h1>Bad Gateway</h1>"),
    by(test_devices.test_after_a_lost_answer_the_same_bytes_are_sent_again, "answer is a proxy's"),
)
def page_of_a_proxy_is_a_refusal(put: Put) -> None:
    real = backup_client.checked

    def checked(response: Any) -> Any:
        try:
            return real(response)
        except LostAnswerError as error:
            refusal = ProblemError(None, error.status, {})
            refusal.lost = False
            raise refusal from None

    put("checked", checked)


@broken(
    "client.receipt",
    by(test_devices.test_a_receipt_of_other_bytes_is_a_lost_answer, {"sha256": "ab" * 32}),
    by(test_devices.test_a_receipt_of_other_bytes_is_a_lost_answer, {"size": 1}),
)
def receipt_of_an_upload_is_not_compared(put: Put) -> None:
    put("receipt_for", lambda blob: backup_client.RECEIPT)


@broken(
    "client.forward",
    by(test_devices.test_nothing_is_encrypted_with_the_old_keys_of_a_change, "is lost"),
    by(test_devices.test_nothing_is_encrypted_with_the_old_keys_of_a_change, "answer is lost"),
)
def unsettled_change_is_given_up(put: Put) -> None:
    put("Device._in_force", lambda self, change: (self._save(change=None), "none")[1])


@broken("client.idle", by(test_devices.test_a_sync_without_changes_stores_nothing))
def each_sync_stores(put: Put) -> None:
    put("Device._is_stored", lambda self: False)


@broken(
    "client.restore",
    by(test_devices.test_a_restored_log_replaces_the_log_when_it_is_acknowledged, "is lost", False),
    by(test_devices.test_a_refused_restore_leaves_the_log),
)
def restored_log_replaces_the_log_at_once(put: Put) -> None:
    real = Device._send

    def send(self: Device, upload: device.Upload) -> None:
        if upload.restored is not None:
            self._save(log=upload.restored)
        real(self, upload)

    put("Device._send", send)


@broken(
    "client.restore",
    by(test_devices.test_a_restored_log_replaces_the_log_when_it_is_acknowledged, "answer is lost", False),
    by(test_devices.test_a_restored_version_raises_no_alarm),
)
def restored_log_is_never_taken(put: Put) -> None:
    real = Device._send
    put("Device._send", lambda self, upload: real(self, replace(upload, restored=None)))


@broken(
    "client.restore", by(test_devices.test_a_restored_log_replaces_the_log_when_it_is_acknowledged, "is lost", True)
)
def restored_log_drops_what_was_added_meanwhile(put: Put) -> None:
    put("sha256_of", lambda data: "the same")


@broken("client.restore", by(test_devices.test_a_restored_version_raises_no_alarm))
def next_version_is_always_merged(put: Put) -> None:
    real = Device._save
    put("Device._save", lambda self, **changes: real(self, **changes | {"highest_log": None}))


@broken("client.restore", by(test_devices.test_a_restored_version_raises_no_alarm))
def next_version_is_always_adopted(put: Put) -> None:
    real = Device.fetch

    def fetch(self: Device, keys: Keys | None = None) -> None:
        self._save(highest_log=device.sha256_of(self.state.log))
        real(self, keys)

    put("Device.fetch", fetch)


@broken(
    "client.sequence",
    by_vectors("devices", "Sequence"),
    by(test_devices.test_the_version_below_junk_is_restored, True),
)
def restored_sequence_does_not_count(put: Put) -> None:
    real = backup_client.next_sequence
    put("next_sequence", lambda base_sequence, highest, restored=0: real(base_sequence, highest))


@broken(
    "client.sequence",
    by_vectors("devices", "Sequence"),
    by(test_devices.test_an_unreadable_version_is_replaced),
)
def unreadable_base_counts_as_none(put: Put) -> None:
    real = backup_client.next_sequence
    put("next_sequence", lambda base_sequence, *rest: real(base_sequence or 0, *rest))


@broken(
    "client.no-false-alarm",
    by(test_devices.test_the_repeat_of_a_lost_registration_resets_the_highest_seen, False),
    by(test_devices.test_the_repeat_of_a_lost_registration_resets_the_highest_seen, True),
)
def repeat_of_a_lost_registration_resets_nothing(put: Put) -> None:
    real = Device._save

    def save(self: Device, **changes: Any) -> None:
        if self.state.registering and "highest" in changes:
            changes = {name: changes[name] for name in ("keys", "succeeded", "registering")}
        real(self, **changes)

    put("Device._save", save)


@broken("client.rollback", by_vectors("devices", "Verdict"), by(test_devices.test_everything_is_gone))
def no_version_is_no_rollback(put: Put) -> None:
    real = backup_client.verdict
    put("verdict", lambda highest, sequence, *rest: real(highest, sequence, *rest) if sequence else "same")


@broken("client.lost-answer", by(test_client_vectors.test_problems_that_say_what_to_do, 507, "storage_full", False))
def full_storage_is_a_lost_answer(put: Put) -> None:
    real = ProblemError.__init__

    def init(self: ProblemError, code: str | None, status: int, problem: Any, *more: Any) -> None:
        real(self, code, status, problem, *more)
        self.lost = status >= 500

    put("ProblemError.__init__", init)


@broken("client.lost-answer", by(test_client_vectors.test_another_success_than_that_of_the_operation, 202))
def each_success_is_taken(put: Put) -> None:
    real = backup_client.members
    put("members", lambda response, expected, statuses=(): real(response, expected, range(200, 300)))


@broken(
    "client.version",
    by(test_devices.test_another_version_than_the_one_that_was_asked_for),
)
def failed_check_of_a_fetch_is_no_lost_answer(put: Put) -> None:
    class Misfit(LostAnswerError):
        def __init__(self, status: int, why: str) -> None:
            super().__init__(status, why)
            self.lost = False

    put("MisfitError", Misfit)


@broken("client.format", by(test_devices.test_the_person_confirms_that_there_is_no_newer_app, True))
def unknown_format_is_replaced_like_damage(put: Put) -> None:
    real = Device._fetch_to_replace
    put(
        "Device._fetch_to_replace",
        lambda self, keys, confirmed: real(self, keys, confirmed and "no-newer-app"),
    )


@broken("client.forward", by(test_devices.test_a_sign_in_with_other_credentials_settles_a_change))
def change_stays_pending_after_a_sign_in(put: Put) -> None:
    real = Device._save

    def save(self: Device, **changes: Any) -> None:
        real(self, **({"change": self.state.change} | changes if changes.get("change") else without_change(changes)))

    def without_change(changes: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in changes.items() if name != "change"}

    put("Device._save", save)


@broken("client.snapshot", by(test_devices.test_keys_are_kept_for_longer_if_the_clock_was_ahead))
def clock_that_was_ahead_is_forgotten(put: Put) -> None:
    put("Device._clock_was_ahead", lambda self, seconds: None)


@broken("client.snapshot", by(test_devices.test_a_restored_snapshot_of_one_server))
def undone_change_is_repeated_without_asking(put: Put) -> None:
    real = Device.after_refusal
    put("Device.after_refusal", lambda self, nobody_changed_it=False: real(self, True))


@broken("client.forward", by(test_devices.test_nothing_is_encrypted_with_the_old_keys_of_a_change, "is lost"))
def restores_during_an_unsettled_change(put: Put) -> None:
    put("Device._must_be_settled", lambda self: None)


@broken("client.sequence", by(test_devices.test_registering_again_resets_nothing))
def retry_of_a_registration_resets_the_highest_seen(put: Put) -> None:
    real = Device._register

    def register(self: Device, keys: Keys) -> None:
        real(self, keys)
        self._save(highest=Seen())

    put("Device._register", register)


@broken("client.lost-answer", by(test_devices.test_after_a_lost_answer_the_same_bytes_are_sent_again, "answer is lost"))
def lost_upload_is_encrypted_again(put: Put) -> None:
    real = Device._send

    def send(self: Device, upload: device.Upload) -> None:
        attempts, self._attempts = self._attempts, 1
        for attempt in range(attempts):
            try:
                return real(self, upload)
            except ProblemError as error:
                if not error.lost or attempt == attempts - 1:
                    raise
            finally:
                self._attempts = attempts if attempt == attempts - 1 else 1
            upload = self._upload(self.keys)

    put("Device._send", send)


@broken("client.rollback", by(test_devices.test_a_304_of_an_older_version))
def older_304_is_believed(put: Put) -> None:
    real = Device._compare
    put("Device._compare", lambda self, sequence, sha256, base: real(self, sequence, sha256, base) if base else "same")


@broken("client.lost-answer", by(test_devices.test_with_other_keys_no_304_is_asked_for))
def base_of_other_keys_is_asked_for(put: Put) -> None:
    real = Device.fetch

    def fetch(self: Device, keys: Keys | None = None) -> None:
        real(self)

    put("Device.fetch", fetch)


@broken("client.lost-answer", by(test_devices.test_a_pause_is_as_long_as_the_server_asks_for))
def pause_is_not_what_the_server_asks_for(put: Put) -> None:
    put("Device._pause_after", lambda self, problem, attempt: self._pause(2 * attempt))


@broken("client.lost-answer", by(test_devices.test_no_error_shows_a_key_or_a_blob))
def error_has_the_servers_words(put: Put) -> None:
    real = ProblemError.__init__

    def init(self: ProblemError, code: str | None, status: int, problem: Any, *more: Any) -> None:
        real(self, code, status, problem, *more)
        self.args = (problem.get("detail"),)

    put("ProblemError.__init__", init)


@broken("client.clock", by(test_client_vectors.test_mend_clock))
def clock_is_not_corrected(put: Put) -> None:
    put("BackupClient.mend_clock", lambda self, response: False)


# ---- The tests ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(start_shared_server: Callable[..., Any]) -> Any:
    return start_shared_server(**test_devices.NO_LIMITS)


@pytest.fixture
def put_in() -> Iterator[Put]:
    """`put(name, function)` replaces a function of the client, or a method of a class, wherever it was imported."""
    with pytest.MonkeyPatch.context() as patch:

        def put(name: str, function: Callable[..., Any]) -> None:
            owner, _, attribute = name.rpartition(".")
            modules = [backup_client, device, test_devices, test_client_vectors]
            owners = [getattr(module, owner, None) for module in modules] if owner else modules
            found = [each for each in owners if each is not None and hasattr(each, attribute)]
            assert found, f"the client has no {name}"
            for each in found:
                patch.setattr(each, attribute, function)

        yield put
    test_client_vectors.derived.cache_clear()


@pytest.mark.parametrize("put_in_the_fault, check", [pytest.param(*row[2:], id=f"{row[0]}") for row in BROKEN])
def test_broken_client_is_noticed(server: Any, put_in: Put, put_in_the_fault: Break, check: Check) -> None:
    account = functools.cache(lambda: Account(server))
    if check not in VECTORS:
        account()  # made by the real client
    test_client_vectors.derived.cache_clear()
    put_in_the_fault(put_in)
    with pytest.raises(NOTICED):
        check(account)


ONCE = {check: name for name, _, _, check in reversed(BROKEN)}
VECTORS = [check for check in ONCE if check.__qualname__.startswith("by_vectors")]

# What a test raises if it notices something. A fault that is itself in error raises something else.
NOTICED = (
    AssertionError,
    pytest.fail.Exception,
    ProblemError,
    DecryptionError,
    AppOutdatedError,
    MistypedCodeError,
    ValueError,
    AttributeError,
    LookupError,
)


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for check, name in ONCE.items()])
def test_the_real_client_passes(server: Any, check: Check) -> None:
    check(lambda: Account(server))


def test_each_rule_has_a_broken_client() -> None:
    assert {rule for _, rule, _, _ in BROKEN} == RULES


# ---- Broken JavaScript clients -----------------------------------------------------------------------------

BROKEN_JAVASCRIPT = {  # what is wrong: (the right text, which is once in the package, and the wrong one)
    "user id has no prefix": (
        "`dailyreps/v1/user-id/${normalizeUsername(username)}`",
        "normalizeUsername(username)",
    ),
    "header is not authenticated": (
        "concat(inUtf8(`dailyreps/v1/${userId}`), header)",
        "inUtf8(`dailyreps/v1/${userId}`)",
    ),
    "unknown format is taken for damage": (
        "if (blob.length && blob[0] !== 1) throw new AppOutdatedError()",
        "if (blob.length && blob[0] !== 1) throw new DamagedError()",
    ),
    "sequence is read from 4 bytes": (
        "toHex(blob.slice(1, 9))",
        "toHex(blob.slice(5, 9))",
    ),
    "sequence follows the base alone": (
        "Math.max(baseSequence ?? others + 1, others)",
        "baseSequence",
    ),
    "rollback is not noticed": (
        "? 'same' : 'rollback'",
        "? 'same' : 'same'",
    ),
    "rollback is adopted": (
        "found === 'next' && before === await sha256Hex(mine)",
        "ALARMS.includes(found) || before === await sha256Hex(mine)",
    ),
    "base is not compared": (
        "? 'next' : 'unknown-base'",
        "? 'next' : 'next'",
    ),
    "registering resets nothing": (
        "base: undefined, highest: NOTHING_SEEN, highestLog",
        "base: undefined, highestLog",
    ),
    "older derivation is tried again": (
        "derivations.slice(0, at + 1)",
        "derivations",
    ),
    "checksum is ignored": (
        "!== toHex(bytes.slice(33))",
        "=== 'none'",
    ),
    "look-alikes are read": (
        ".replace(/[a-z]/g, letter => letter.toUpperCase())",
        ".toUpperCase()",
    ),
    "receipt of an upload is not compared": (
        "({ ...RECEIPT, size: [blob.length], sha256: [sha256] })",
        "RECEIPT",
    ),
    "unsettled change is given up": (
        "      return this.#changePassword(change.newKeys, { oldKeys: change.oldKeys })\n",
        "",
    ),
    "304 is always believed": (
        "(status === 204 || status === 304) && statuses.includes(status)",
        "status === 304 || (status === 204 && statuses.includes(status))",
    ),
    "304 of an older version is not told": (
        "await this.#compare(base?.sequence ?? 0, base?.sha256)",
        "",
    ),
    "base of other keys is asked for": (
        "base?.version && sameKeys(keys, this.#state.keys)",
        "base?.version",
    ),
    "retry of a registration resets": (
        "...(status === 201 || lost ? seen : {})",
        "...seen",
    ),
    "no second NFKC": (
        "lower(stripped).normalize('NFKC')",
        "lower(stripped)",
    ),
    "password is counted in UTF-16": (
        "Array.from(normalized).length < 10",
        "normalized.length < 10",
    ),
    "any version is taken": (
        "(asked.version ?? version) !== version || ",
        "",
    ),
    "old keys are forgotten": (
        "oldKeys: this.#oldKeysWith(newKeys, oldKeys)",
        "oldKeys: []",
    ),
    "page of a proxy is a refusal": (
        "if (!fits) throw",
        "if (status < 400 && !fits) throw",
    ),
    "both keys are kept for 601 s only": (
        "const SIGNATURE_ACTS = 901",
        "const SIGNATURE_ACTS = 601",
    ),
    "restored sequence does not count": (
        "const others = Math.max(highest.sequence, restored)",
        "const others = highest.sequence",
    ),
    "repeat of a lost registration resets nothing": (
        "...(status === 201 || lost ? seen : {})",
        "...(status === 201 ? seen : {})",
    ),
    "each backup stores": (
        "return !!base && base.logSha256 === await sha256Hex(log)",
        "return false",
    ),
    "restored log is never taken": (
        "if (!restored) return",
        "if (true) return",
    ),
    "restored log drops what was added": (
        "await sha256Hex(log) === upload.insteadOf ?",
        "true ?",
    ),
    "next version is always adopted": (
        "found === 'next' && before === await sha256Hex(mine)",
        "found === 'next'",
    ),
    "next version is always merged": (
        "found === 'next' && before === await sha256Hex(mine)",
        "false",
    ),
    "full storage is a lost answer": (
        "status >= 500 && !CERTAIN.includes(problem.code)",
        "status >= 500",
    ),
    "each success is taken": (
        "? statuses.includes(status) && Object",
        "? Object",
    ),
    "failed check of a fetch is no lost answer": (
        "throw new MisfitError('a version",
        "throw new DamagedError('a version",
    ),
    "unknown format is replaced like damage": (
        "newer ? confirmed === 'no-newer-app' :",
        "newer ? confirmed :",
    ),
    "clock that was ahead is forgotten": (
        "      await this.#clock.corrected?.()\n",
        "",
    ),
    "clock is corrected again and again": (
        "      return send()\n",
        "      return this.#signed(method, path, expected, statuses, { headers, body })\n",
    ),
    "old password is taken again": (
        "if (this.#state.oldKeys.some(",
        "if ([].some(",
    ),
    "undone change is repeated without asking": (
        "if (!undone || !nobodyChangedIt)",
        "if (!undone)",
    ),
    "lost deletion is repeated for ever": (
        "if (!confirmed && now >= first + 600)",
        "if (false)",
    ),
    "kana and jamo of a username are left uncomposed": (
        "lower(stripped).normalize('NFKC')",
        "lower(stripped).normalize('NFKC').replace(/[\\u30ac-\\u30fe\\uac00-\\ud7a3]/g, c => c.normalize('NFD'))",
    ),
    "each code point of a password is normalised by itself": (
        "source(inUtf8(password.normalize('NFKC')))",
        "source(inUtf8(Array.from(password.normalize('NFC'), c => c.normalize('NFKC')).join('')))",
    ),
    "each code point of a new password is normalised by itself": (
        "const normalized = password.normalize('NFKC')",
        "const normalized = Array.from(password.normalize('NFC'), c => c.normalize('NFKC')).join('')",
    ),
    "lone surrogate is hashed": (
        "if (/\\p{Surrogate}/u.test(text)) throw",
        "if (false) throw",
    ),
    "calls run at once": (
        "const done = this.#turn.then(call)",
        "const done = call()",
    ),
    "an edit is lost in a merge": (
        "if (this.#state.log === log) return",
        "if (true) return",
    ),
    "request is sent before the state is saved": (
        "    await saved\n",
        "",
    ),
    "pause is not what the server asks for": (
        "await this.#pause(retryAfter ?? 2 * attempt)",
        "await this.#pause(2 * attempt)",
    ),
    "a long pause is waited for": (
        "if ((retryAfter ?? 0) > LONGEST_PAUSE) throw error",
        "",
    ),
    "old keys of a lost change are given up": (
        "      await this.#list(oldKeys)\n",
        "",
    ),
    "error has the server's words": (
        "super(sentence(problem.code, status))",
        "super(`${problem.code}: ${problem.detail}`)",
    ),
    "error shows the problem": (
        "    this.#problem = problem\n",
        "    this.#problem = problem\n    this.members = problem\n",
    ),
    "lost answer shows the request": (
        "throw new LostAnswerError(reasonOf(error))",
        "throw Object.assign(new LostAnswerError(reasonOf(error)), { cause: error })",
    ),
    "code may be a key": (
        "(?!.*[0-9a-f]{24})",
        "",
    ),
    "void code signs in": (
        "      await this.#list(keys)\n      await this.#enter(keys)\n    })",
        "      await this.#enter(keys)\n    })",
    ),
    "log may be anything": (
        "if (!(log instanceof Uint8Array)) throw",
        "if (false) throw",
    ),
    "etag is not sent": (
        "etag ? { 'If-None-Match': etag } : {}",
        "{}",
    ),
    "base of an upload is left out": (
        "inJson({ data: toBase64(blob), baseSha256 })",
        "inJson({ data: toBase64(blob) })",
    ),
    "state of another username is used": (
        "if (keys && keys.userId !== userId) throw",
        "if (false) throw",
    ),
}


def test_broken_javascript_clients_are_noticed(tmp_path: Path) -> None:
    """All of them, some at a time: most of the time passes with the start of Node."""
    folders = {}
    for number, (name, (right, wrong)) in enumerate(BROKEN_JAVASCRIPT.items()):
        folders[name] = copy_javascript(tmp_path / str(number))
        sources = list((folders[name] / "src").iterdir())
        assert [source.read_text().count(right) for source in sources if right in source.read_text()] == [1], name
        for source in sources:
            source.write_text(source.read_text().replace(right, wrong))
    with ThreadPoolExecutor(os.process_cpu_count()) as pool:
        done = dict(zip(folders, pool.map(check_javascript, folders.values()), strict=True))
    assert [name for name in done if done[name].returncode != 1 or "FAILED" not in done[name].stdout] == []


def test_the_real_javascript_client_passes(tmp_path: Path) -> None:
    done = check_javascript(copy_javascript(tmp_path / "copy"))
    assert done.returncode == 0, done.stdout


def copy_javascript(folder: Path) -> Path:
    for part in ("src", "test"):
        shutil.copytree(REPOSITORY / "clients/javascript" / part, folder / part)
    return folder


def check_javascript(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check a client with everything but the cases of PBKDF2, which take their time."""
    options = ["--fixtures", str(REPOSITORY / "fixtures"), "--quick", "--first"]
    return subprocess.run(
        ["node", str(folder / "test/check.mjs"), *options], capture_output=True, text=True, timeout=60
    )
