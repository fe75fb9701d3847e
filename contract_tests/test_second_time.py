"""The second time: what was right once has to be right again, after each change of what a server may remember."""

from secrets import token_bytes, token_hex

import pytest

from clients.python.backup_client import backup_bytes
from contract_tests.generated.model import Settings
from contract_tests.generated.witness import Witness
from contract_tests.target.calls import outcome, sha256
from contract_tests.target.openapi import RESERVED

FROZEN = 1_795_510_800  # 2026-11-24T09:00:00Z
MANY = 100_000
LIMITS = ("BACKUPS_PER_HOUR", "BACKUPS_PER_DAY", "KEY_CHANGES_PER_HOUR", "KEY_CHANGES_PER_DAY")
LIMITS += ("REGISTRATIONS_PER_HOUR", "FAILED_CREDENTIALS_PER_5_MINUTES", "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY")
SIZE = 300  # bytes; all versions have the same, so that only their bytes tell them apart


class Life:
    """A user who asks everything twice after each step, under keys that are in force, were so, or will be."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self.user_id, self.keys = token_hex(32), [token_hex(32) for _ in range(3)]
        self.etags: list[str] = []  # of all versions so far, oldest first

    def step(self, operation: str, key: int = 0, *, new_key: int | None = None) -> None:
        arguments = {}
        if operation in ("storeBackup", "changeStorageKey"):
            account = self.witness.account(self.user_id)
            latest = account.latest if account else None
            arguments = {"blob": token_bytes(SIZE), "base": latest and latest.sha256}
        if new_key is not None:
            arguments["new_key"] = self.keys[new_key]
        self.witness.call(operation, self.user_id, self.keys[key], **arguments)
        account = self.witness.account(self.user_id)
        if account and account.latest and account.latest.etag not in self.etags:
            self.etags.append(account.latest.etag)
        self.ask()
        self.ask()

    def ask(self) -> None:
        account = self.witness.account(self.user_id)
        count = account.latest.number if account and account.latest else 0
        for key in self.keys:
            ask = lambda operation, key=key, **more: self.witness.call(operation, self.user_id, key, **more)  # noqa: E731
            ask("listBackupVersions")
            for etag in self.etags[-2:]:
                ask("fetchBackup", if_none_match=etag)
            if account and key == account.key:
                ask("fetchBackup")
                for number in range(max(1, count - 2), count + 2):
                    ask("fetchBackupVersion", version=number)
                for number in range(max(1, count - 3), count + 1):
                    ask("fetchBackupVersion", version=number, if_none_match=self.etags[number - count - 1])
        if account is None and self.user_id in self.witness.model.deleted:
            now, freed = self.witness.now(), self.witness.model.deleted[self.user_id] + RESERVED * 1000
            if now < freed:
                self.witness.call("registerUser", self.user_id, self.keys[0])


@pytest.mark.requirement(
    "version.list",
    "version.latest",
    "version.count",
    "version.key",
    "etag.match",
    "etag.other",
    "key.old",
    "key.new",
    "delete.all",
    "delete.fresh",
    "delete.refused",
    "delete.reserved",
    "history.dropped",
    "backup.bytes",
    "fetchBackupVersion.404",
    "registerUser.201",
    "credentials.whole",
)
def test_each_answer_twice_after_each_step(start_server):
    """The user deletes the account twice. Each account of the name has as many versions of the same size."""
    server = start_server(frozen=FROZEN, KEEP_VERSIONS="2,0,0,0", **dict.fromkeys(LIMITS, MANY))
    life = Life(Witness(server, Settings(*[MANY] * 7, keep=(2, 0, 0, 0))))
    life.ask()
    for in_force in (0, 2):
        other = 2 - in_force
        life.step("registerUser", in_force)
        for _ in range(3):
            life.step("storeBackup", in_force)
        life.step("changeStorageKey", in_force, new_key=1)
        life.step("changeStorageKey", 1, new_key=in_force)  # back to a former key
        life.step("storeBackup", in_force)
        life.step("changeStorageKey", in_force, new_key=other)
        life.step("deleteUser", other)
        server.move_clock(1)
        life.ask()
        server.move_clock(RESERVED - 1)
        life.ask()
    life.step("registerUser")
    life.step("storeBackup")


@pytest.mark.requirement("backup.damaged", "retry.mends", "backup.bytes")
def test_damage_after_a_good_read(start_server):
    """The server runs on when its disk changes the bytes. It may still have the right ones, but never sends others."""
    server = start_server()
    user, blobs = server.client(), [token_bytes(SIZE) for _ in range(2)]
    user.register_user()
    for number, blob in enumerate(blobs):
        assert outcome(user.store_backup(blob, sha256(blobs[number - 1]) if number else None)) == "201"
    for _ in range(2):  # when it has been repaired, too
        for number, blob in enumerate(blobs, start=1):
            for _ in range(2):
                assert backup_bytes(user.fetch_backup_version(number)) == blob
        assert backup_bytes(user.fetch_backup()) == blobs[1]
        server.damage(blobs[1], is_running=True)
        for _ in range(2):
            for answer in (user.fetch_backup(), user.fetch_backup_version(2)):
                assert outcome(answer) == "500 backup_damaged" or backup_bytes(answer) == blobs[1]
            assert backup_bytes(user.fetch_backup_version(1)) == blobs[0]
        assert outcome(user.store_backup(blobs[1])) == "200"
    assert backup_bytes(user.fetch_backup()) == blobs[1]
