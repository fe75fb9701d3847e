"""Devices of the Python client, with a real server. An honest server raises no alarm. A server's tricks are told."""

import base64
import hashlib
import json
import random
import re
import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from clients.python.backup_client import (
    AppOutdatedError,
    BackupClient,
    DecryptionError,
    Derivation,
    Keys,
    MisfitError,
    MistypedCodeError,
    ProblemError,
    Seen,
    authorization,
    backup_bytes,
    decrypt,
    derive_keys,
    sentence,
)
from clients.python.device import (
    SIGNATURE_ACTS_SECONDS,
    SNAPSHOT_SECONDS,
    Device,
    DeviceError,
    State,
    UnsettledChangeError,
)
from contract_tests.target.process import ServerProcess

# The real derivations take a moment on purpose. These take none.
QUICK = (Derivation("v1", 1, "dailyreps/v1/storage-key", "dailyreps/v1/encryption-key"),)
QUICK_V2 = (Derivation("v2", 2, "dailyreps/v2/storage-key", "dailyreps/v2/encryption-key"), *QUICK)
NO_LIMITS = {
    "BACKUPS_PER_HOUR": 10**6,
    "BACKUPS_PER_DAY": 10**6,
    "KEY_CHANGES_PER_HOUR": 10**6,
    "KEY_CHANGES_PER_DAY": 10**6,
    "REGISTRATIONS_PER_HOUR": 10**6,
    "FAILED_CREDENTIALS_PER_5_MINUTES": 10**6,
    "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": 10**6,
}
Answer = requests.Response


def page(status: int, content: bytes, media_type: str) -> Answer:
    response = Answer()
    response.status_code, response._content = status, content
    response.headers["Content-Type"] = media_type
    return response


def problem(status: int, code: str, **members: Any) -> Answer:
    content = json.dumps({"status": status, "code": code, **members}).encode()
    return page(status, content, "application/problem+json")


class Network(requests.Session):
    """Between one device and the server. It may lose a request or its answer, or play a trick."""

    def __init__(self) -> None:
        super().__init__()
        self.fate: Callable[[], str] = lambda: "arrives"
        self.trick: Callable[[requests.PreparedRequest, Callable[[], Answer]], Answer] = lambda request, send: send()
        self.on_the_way: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, **options: Any) -> Answer:
        fate = self.fate()
        if fate == "is late":
            self.on_the_way.append(request.copy())
        if fate in ("is lost", "is late"):
            raise requests.ConnectionError
        answer = self.trick(request, lambda: super(Network, self).send(request, **options))
        if fate == "answer is lost":
            raise requests.ConnectionError
        if fate == "answer is a proxy's":
            return page(502, b"<h1>Bad Gateway</h1>", "text/html")
        return answer

    def deliver(self) -> None:
        """Let the late requests arrive, exactly as they were signed."""
        late, self.on_the_way = self.on_the_way, []
        for request in late:
            super().send(request)


def merge(mine: bytes, theirs: bytes) -> bytes:
    return log_of(*{*workouts(mine), *workouts(theirs)})


def log_of(*names: str) -> bytes:
    return json.dumps(sorted(names)).encode()


def workouts(log: bytes) -> list[str]:
    return list(json.loads(log))


class Phone:
    """A device, its network, and what it told the person. `restart` makes the device again from what it saved."""

    def __init__(self, server: ServerProcess, log: bytes = b"[]") -> None:
        self.server = server
        self.network = Network()
        self.told: list[str] = []
        self.saved = State(log=log)
        self.restart()

    def restart(self) -> None:
        self.device = Device(
            self.saved,
            lambda keys: BackupClient(
                self.server.base_url, self.server.secret, keys, keyid=self.server.keyid, session=self.network,
                clock=self.server.now,
            ),
            merge,
            save=lambda state: setattr(self, "saved", state),
            tell=self.told.append,
            pause=lambda seconds: None,
        )  # fmt: skip

    def train(self, name: str) -> None:
        self.device.update(lambda log: merge(log, log_of(name)))

    def log(self) -> list[str]:
        return workouts(self.device.log)


def keys_of(user: str, password: str) -> Keys:
    return derive_keys(user, password, QUICK[0])


# ---- No false alarm ----------------------------------------------------------------------------------------


class Life:
    """Two devices of one account, and all that may happen to them, in an order that a seed decides."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self.random = random.Random(seed)
        self.user = f"life {seed} {server.now()}"
        self.passwords = ["password 0"]
        self.restored = False
        self.junked = 0
        self.trained: set[str] = set()
        self.phones = [Phone(server), Phone(server)]
        lost = iter(["answer is lost"] if seed % 2 else [])
        self.phones[0].network.fate = lambda: next(lost, "arrives")
        self.phones[0].device.register(self.user, self.passwords[0], QUICK)
        self.phones[1].device.sign_in(self.user, self.passwords[0], QUICK)
        self.calm()

    def calm(self) -> None:
        for phone in self.phones:
            phone.network.fate = lambda: "arrives"

    def rough(self) -> None:
        fates = ["arrives"] * 6 + ["is lost", "is late", "answer is lost", "answer is a proxy's"]
        for phone in self.phones:
            phone.network.fate = lambda: self.random.choice(fates)

    def step(self) -> None:
        phone = self.random.choice(self.phones)
        do = self.random.choice(
            [self.train, self.train, self.train, self.sync, self.fetch, self.restart, self.restore, self.change,
             self.settle, self.deliver, self.junk, self.register_again]
        )  # fmt: skip
        self.careful(phone, lambda: do(phone))

    def careful(self, phone: Phone, do: Callable[[], None]) -> None:
        """Do what an app does. After a refusal, find out about a pending change, or ask the person for the password."""
        try:
            do()
        except ProblemError as error:
            if error.code == "credentials_invalid":
                self.find_out(phone)
            else:
                assert error.lost, error
        except UnsettledChangeError:
            pass

    def find_out(self, phone: Phone) -> None:
        try:
            if phone.device.state.change and phone.device.settle_change() == "new":
                return
        except ProblemError as error:
            if error.lost:
                return
        for password in reversed(self.passwords):
            try:
                return phone.device.sign_in(self.user, password, QUICK)
            except ProblemError as error:
                if error.lost:
                    return

    def train(self, phone: Phone) -> None:
        name = f"workout {len(self.trained)}"
        self.trained.add(name)
        phone.train(name)
        phone.device.sync()

    def sync(self, phone: Phone) -> None:
        phone.device.sync()

    def fetch(self, phone: Phone) -> None:
        phone.device.fetch()

    def restart(self, phone: Phone) -> None:
        phone.restart()

    def restore(self, phone: Phone) -> None:
        listed = phone.device.versions()
        if not listed:
            return
        version = self.random.choice(listed)["version"]
        self.restored = True
        for password in self.passwords:
            try:
                return phone.device.restore(version, password, derivations=QUICK)
            except (DecryptionError, DeviceError):
                continue

    def junk(self, phone: Phone) -> None:
        """Somebody with the storage key stores junk. A device restores the version below, as the person says."""
        listed = phone.device.versions()
        if not listed or any(each.device.state.change for each in self.phones):
            return
        self.calm()
        client = phone.device._make_client(phone.device.keys)
        assert client.store_backup(b"\x01 junk", listed[0]["sha256"]).status_code == 201
        self.junked += 1
        for each in self.random.sample(self.phones, 2):
            try:
                self.restore_below_junk(each, listed[0]["version"])
                break
            except ProblemError as error:
                assert error.code == "credentials_invalid", error  # it does not know the new password
        self.rough()

    def restore_below_junk(self, phone: Phone, version: int) -> None:
        self.restored = True
        for password in self.passwords:
            try:
                return phone.device.restore(version, password, derivations=QUICK, confirmed="damaged")
            except DecryptionError:
                continue

    def register_again(self, phone: Phone) -> None:
        """Its answer is 200, perhaps to the repeat of a lost one."""
        if not phone.device.state.base:
            phone.device._register(phone.device.keys)

    def change(self, phone: Phone) -> None:
        self.passwords.append(f"password {len(self.passwords)}")
        phone.device.change_password(self.passwords[-1], derivations=QUICK)

    def settle(self, phone: Phone) -> None:
        phone.device.settle_change()

    def deliver(self, phone: Phone) -> None:
        phone.network.deliver()

    def end(self) -> None:
        """Let everything arrive. Then both devices get in step."""
        self.calm()
        for phone in self.phones:
            phone.network.deliver()
        for phone in self.phones * 3:
            self.careful(phone, phone.device.sync)
        for phone in self.phones:
            self.careful(phone, phone.device.fetch)


@pytest.mark.client("client.no-false-alarm", "client.sequence", "client.lost-answer")
@pytest.mark.parametrize("first_seed", [0, 10, 20])
def test_an_honest_server_raises_no_alarm(start_server: Callable[..., ServerProcess], first_seed: int) -> None:
    server = start_server(**NO_LIMITS)
    conflicts = changes = restores = junked = 0
    for seed in range(first_seed, first_seed + 10):
        life = Life(server, seed)
        life.rough()
        for _ in range(20):
            life.step()
            assert [phone.told for phone in life.phones] == [[], []], f"a false alarm with seed {seed}"
        life.end()
        one, other = life.phones
        assert (one.told, other.told) == ([], []), f"a false alarm with seed {seed}"
        assert one.log() == other.log(), f"the devices are out of step with seed {seed}"
        assert life.restored or life.trained <= set(one.log()), f"a workout is lost with seed {seed}"
        assert one.device.state.highest == other.device.state.highest
        changes += one.device.versions()[0]["keyVersion"] > 1
        restores += life.restored
        conflicts += one.device.state.highest.sequence > 3
        junked += life.junked > 0
        # Nothing has changed, so nothing is stored. A restored log then replaces the log of the other device.
        latest = one.device.versions()[0]
        for phone in life.phones:
            phone.device.sync()
        assert one.device.versions()[0] == latest, f"an upload for nothing with seed {seed}"
        life.restore(one)
        for phone in (other, one, other):
            phone.device.sync()
        assert one.log() == other.log() and (one.told, other.told) == ([], []), f"a restore with seed {seed}"
        assert other.device.state.highest.sequence == one.device.state.highest.sequence
    assert min(changes, restores, conflicts, junked) >= 3  # the lives were lively


def base_of(request: requests.PreparedRequest) -> str | None:
    assert request.body
    return json.loads(request.body).get("baseSha256")


@pytest.mark.client("client.no-false-alarm", "client.header", "client.sequence")
def test_usual_uploads_of_two_devices(account: "Account") -> None:
    """Sequences count up by one, and the base in the header is that of the request."""
    phone, tablet = account.phone, account.other_phone()
    uploads: list[tuple[int, str | None]] = []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        answer = send()
        if request.method == "POST" and answer.status_code == 201:
            latest = decrypt(phone.device.keys, backup_bytes(account.raw("/api/backup")))
            assert latest.base_sha256 == base_of(request)
            uploads.append((latest.sequence, latest.base_sha256))
        return answer

    phone.network.trick = tablet.network.trick = trick
    for number, device in enumerate([tablet, phone, phone, tablet, tablet, phone], 4):
        device.train(f"workout {number}")
        device.device.sync()
    assert [sequence for sequence, base in uploads] == [4, 5, 6, 7, 8, 9]
    assert (phone.told, tablet.told) == ([], [])
    assert len(phone.log()) == 9


@pytest.mark.client("client.lost-answer")
@pytest.mark.parametrize("fate", ["answer is lost", "answer is a proxy's", "is lost"])
def test_after_a_lost_answer_the_same_bytes_are_sent_again(account: "Account", fate: str) -> None:
    phone = account.phone
    sent: list[bytes] = []
    phone.network.fate = lambda: fate if len(sent) < 2 else "arrives"
    real_send = phone.network.send

    def send(request: requests.PreparedRequest, **options: Any) -> Answer:
        try:
            return real_send(request, **options)
        finally:
            sent.append(bytes(request.body or b""))

    phone.network.send = send  # type: ignore[method-assign]
    phone.train("workout 4")
    phone.device.sync()
    assert len(sent) == 3 and len(set(sent)) == 1
    assert phone.device.versions()[0]["version"] == 4
    assert phone.device.state.highest.sequence == 4 and not phone.device.state.unsent


@pytest.mark.client("client.sequence", "client.no-false-alarm")
def test_a_lost_upload_has_not_been_seen(account: "Account") -> None:
    """The upload never arrives, and another device stores instead."""
    phone, tablet = account.phone, account.other_phone()
    phone.network.fate = lambda: "is lost"
    phone.train("workout 4")
    with pytest.raises(ProblemError) as caught:
        phone.device.sync()
    assert caught.value.lost and phone.device.state.highest.sequence == 3 and phone.device.state.unsent
    tablet.train("workout 5")
    tablet.device.sync()
    phone.network.fate = lambda: "arrives"
    phone.restart()  # it goes on with what it saved
    phone.device.sync()
    assert (phone.told, tablet.told) == ([], []) and len(phone.log()) == 5


@pytest.mark.client("client.no-false-alarm", "client.restore")
def test_a_restored_version_raises_no_alarm(account: "Account") -> None:
    """It replaces the log of another device that has not changed. One with changes merges."""
    phone, tablet, watch = account.phone, account.other_phone(), account.other_phone()
    watch.train("workout 4")
    phone.device.restore(1)
    assert phone.log() == ["workout 1"] and phone.device.state.highest.sequence == 4
    phone.device.sync()
    tablet.restart()
    tablet.device.sync()
    assert phone.log() == tablet.log() == ["workout 1"]
    watch.device.sync()
    assert watch.log() == [f"workout {number}" for number in (1, 2, 3, 4)]
    phone.device.sync()
    assert phone.log() == watch.log()
    assert (phone.told, tablet.told, watch.told) == ([], [], [])


@pytest.mark.client("client.restore")
@pytest.mark.parametrize("fate", ["answer is lost", "is lost"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_restored_log_replaces_the_log_when_it_is_acknowledged(account: "Account", fate: str, trained: bool) -> None:
    phone = account.phone
    uploads: list[bytes] = []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        if request.method == "GET":
            return send()
        uploads.append(bytes(request.body or b""))
        if fate == "answer is lost":
            send()
        raise requests.ConnectionError

    phone.network.trick = trick
    with pytest.raises(ProblemError) as caught:
        phone.device.restore(1)
    assert caught.value.lost and len(phone.log()) == 3 and len(set(uploads)) == 1
    phone.restart()
    if trained:
        phone.train("workout 4")
    phone.network.trick = lambda request, send: send()
    phone.device.sync()
    assert phone.log() == (["workout 1", "workout 2", "workout 3", "workout 4"] if trained else ["workout 1"])
    assert phone.told == []


@pytest.mark.client("client.restore")
def test_a_refused_restore_leaves_the_log(account: "Account") -> None:
    phone = account.phone
    refuse = lambda request, send: problem(507, "storage_full") if request.method == "POST" else send()  # noqa: E731
    phone.network.trick = refuse
    with pytest.raises(ProblemError, match="storage_full"):
        phone.device.restore(1)
    assert len(phone.log()) == 3 and not phone.device.state.unsent


@pytest.mark.client("client.idle")
def test_a_sync_without_changes_stores_nothing(account: "Account") -> None:
    phone, tablet = account.phone, account.other_phone()
    for device in (phone, tablet, phone):
        device.device.sync()
    assert phone.device.versions()[0]["version"] == 3
    tablet.train("workout 4")
    tablet.device.sync()
    phone.device.sync()  # it fetches, and has nothing to add
    assert len(phone.log()) == 4 and phone.device.versions()[0]["version"] == 4
    fresh = Phone(account.server)
    fresh.device.sign_in(account.user, "the password", QUICK)
    fresh.device.sync()
    assert fresh.device.versions()[0]["version"] == 4


@pytest.mark.client("client.sequence", "client.no-false-alarm")
@pytest.mark.parametrize("missed", [False, True])
def test_the_version_below_junk_is_restored(account: "Account", missed: bool) -> None:
    """By a device that has seen the version below, or only lower ones. The others have seen more, and are not told."""
    phone, tablet = account.phone, account.other_phone()
    if missed:
        for number in (4, 5):
            phone.train(f"workout {number}")
            phone.device.sync()
    versions = phone.device.versions()
    client = phone.device._make_client(phone.device.keys)
    assert client.store_backup(b"\x01 junk", versions[0]["sha256"]).status_code == 201
    with pytest.raises(DecryptionError):
        tablet.device.restore(versions[0]["version"])
    tablet.device.restore(versions[0]["version"], confirmed="damaged")
    assert tablet.device.state.highest.sequence == phone.device.state.highest.sequence + 2
    phone.device.sync()
    assert (phone.told, tablet.told) == ([], []) and phone.log() == tablet.log()


@pytest.mark.client("client.format")
@pytest.mark.parametrize("change", [False, True])
def test_the_person_confirms_that_there_is_no_newer_app(account: "Account", change: bool) -> None:
    phone, new = account.phone, keys_of(account.user, "another password")
    client = phone.device._make_client(phone.device.keys)
    assert client.store_backup(b"\x02 junk", phone.device.versions()[0]["sha256"]).status_code == 201

    def do(confirmed: str) -> None:
        if change:
            phone.device._change_password(new, confirmed=confirmed)
        else:
            phone.device.restore(3, confirmed=confirmed)

    with pytest.raises(AppOutdatedError):
        do("damaged")
    do("no-newer-app")
    assert [each["version"] for each in phone.device.versions()] == [5, 4, 3, 2]
    assert len(phone.log()) == 3 and phone.told == []


def test_a_new_password_that_is_none(account: "Account") -> None:
    phone, old = account.phone, account.phone.device.keys
    phone.device._change_password(old)
    assert phone.device.versions()[0]["keyVersion"] == 1
    phone.device.change_password("another password", derivations=QUICK)
    with pytest.raises(ValueError):
        phone.device._change_password(old)


@pytest.mark.client("client.forward")
def test_a_sign_in_with_other_credentials_settles_a_change(account: "Account") -> None:
    phone, tablet = account.phone, account.other_phone()
    phone.network.fate = lambda: "is lost"
    with pytest.raises(ProblemError):
        phone.device.change_password("another password", derivations=QUICK)
    tablet.device.change_password("a third one", derivations=QUICK)
    phone.network.fate = lambda: "arrives"
    phone.device.sign_in(account.user, "a third one", QUICK)
    assert not phone.device.state.change
    assert [pair[0] for pair in phone.device.state.old_keys] == [
        keys_of(account.user, text) for text in ("another password", "the password")
    ]
    phone.device.sync()
    assert phone.told == []


@pytest.mark.client("client.lost-answer")
def test_a_lost_deletion(account: "Account") -> None:
    """It is repeated for 10 minutes, then the person is asked. The userId is free when no attempt can act any more."""
    phone = account.phone
    phone.network.fate = lambda: "answer is lost"
    with pytest.raises(ProblemError):
        phone.device.delete()
    deletion = phone.saved.deletion
    assert deletion and 0 <= account.server.now() - (deletion.register_after - SIGNATURE_ACTS_SECONDS) < 60
    phone.network.fate = lambda: "arrives"
    phone.saved = replace(phone.saved, deletion=replace(deletion, first=deletion.first - 600))
    phone.restart()
    keys = phone.device.keys
    for attempt in (phone.device.delete, phone.device.sync, lambda: phone.device._register(keys)):
        with pytest.raises(UnsettledChangeError):
            attempt()
    phone.device.delete(confirmed=True)  # credentials_invalid to a repeat: it is done


@pytest.mark.client("client.snapshot")
def test_keys_are_kept_for_longer_if_the_clock_was_ahead(account: "Account") -> None:
    phone = account.phone
    late = iter([problem(401, "signature_expired", serverTime=int(account.server.now()) - 500)])

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        if request.method == "PUT":
            for answer in late:
                return answer
            raise requests.ConnectionError
        if request.headers["Authorization"] == authorization(phone.device.keys.user_id, phone.device.keys.storage_key):
            return json_page(b'{"versions": []}')
        return problem(401, "credentials_invalid")

    phone.network.trick = trick
    with pytest.raises(ProblemError):
        phone.device.change_password("another password", derivations=QUICK)
    change = phone.saved.change
    assert change and 499 <= change.ahead <= 501
    assert 0 <= account.server.now() - (change.keep_until - SIGNATURE_ACTS_SECONDS - change.ahead) < 60


@pytest.mark.client("client.lost-answer")
@pytest.mark.parametrize("fate", ["answer is lost", "is late"])
def test_a_lost_answer_to_a_key_change(account: "Account", fate: str) -> None:
    phone, new = account.phone, keys_of(account.user, "another password")
    old = phone.device.keys
    fates = iter([fate])
    phone.network.fate = lambda: next(fates, "arrives")
    if fate == "is late":
        with pytest.raises(ProblemError):
            phone.device._change_password(new)
        assert phone.device.settle_change() == "unsure"
        assert phone.saved.change and (phone.saved.change.old, phone.saved.change.new) == (old, new)
        phone.network.deliver()
        phone.restart()
        assert phone.device.settle_change() == "new"
    else:
        phone.device._change_password(new)
    assert phone.device.keys == new and not phone.device.state.change
    phone.device.sync()
    assert phone.told == []


@pytest.mark.client("client.forward")
@pytest.mark.parametrize("fate", ["is lost", "answer is lost"])
def test_nothing_is_encrypted_with_the_old_keys_of_a_change(account: "Account", fate: str) -> None:
    """A server that hides the answer cannot keep a person on a password that a thief knows."""
    phone, new, third = account.phone, *(keys_of(account.user, text) for text in ("another password", "a third one"))
    old = phone.device.keys
    blobs: list[bytes] = []
    hide = True

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        if request.method == "GET":
            if hide and request.headers["Authorization"] == authorization(new.user_id, new.storage_key):
                return problem(401, "credentials_invalid")
            return send()
        blobs.append(base64.b64decode(json.loads(request.body or b"")["data"]))
        if hide and fate == "is lost":
            raise requests.ConnectionError
        answer = send()
        if hide:
            raise requests.ConnectionError
        return answer

    phone.network.trick = trick
    with pytest.raises(ProblemError):
        phone.device._change_password(new)
    phone.restart()
    phone.train("workout 4")
    for attempt in (lambda: phone.device.restore(1), lambda: phone.device._change_password(third), phone.device.sync):
        with pytest.raises((ProblemError, UnsettledChangeError)):
            attempt()
    hide = False
    phone.device.sync()
    if phone.device.keys == new:
        phone.device.sync()
    for blob in blobs:
        assert decrypt(new, blob)  # never with the old keys
    assert phone.device.keys == new and "workout 4" in phone.log() and phone.told == []
    with pytest.raises(ProblemError, match="credentials_invalid"):
        phone.device.versions(old)


@pytest.mark.client("client.receipt")
@pytest.mark.parametrize("changed", [{"sha256": "ab" * 32}, {"size": 1}])
def test_a_receipt_of_other_bytes_is_a_lost_answer(account: "Account", changed: dict[str, Any]) -> None:
    phone = account.phone
    bodies: list[bytes] = []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        answer = send()
        if request.method == "POST":
            bodies.append(bytes(request.body or b""))
            if len(bodies) == 1:
                return json_page(answer.content, **changed)
        return answer

    phone.network.trick = trick
    phone.train("workout 4")
    phone.device.sync()
    assert len(bodies) == 2 and bodies[0] == bodies[1]
    assert phone.device.versions()[0]["sha256"] == phone.device.state.highest.sha256


@pytest.mark.client("client.snapshot")
def test_a_refused_key_change_may_still_arrive_for_901_seconds(account: "Account") -> None:
    phone = account.phone
    fates = iter(["is lost"])
    phone.network.fate = lambda: next(fates, "arrives")
    with pytest.raises(ProblemError):
        phone.device.change_password("another password", derivations=QUICK)
    change = phone.saved.change
    assert change and 0 <= account.server.now() - (change.keep_until - SIGNATURE_ACTS_SECONDS) < 60
    phone.device._save(change=replace(change, keep_until=account.server.now() - 1))
    assert phone.device.settle_change() == "old" and not phone.saved.change


@pytest.mark.client("client.idle")
def test_a_fetch_of_what_is_there_already_gets_304(account: "Account") -> None:
    phone = account.phone
    answers: list[Answer] = []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        answers.append(send())
        return answers[-1]

    phone.network.trick = trick
    phone.restart()  # the ETag is part of what it saves
    phone.device.sync()
    assert [answer.status_code for answer in answers] == [304] and phone.told == [] and len(phone.log()) == 3
    other = account.other_phone()
    other.train("workout 4")
    other.device.sync()
    phone.device.sync()
    assert [answer.status_code for answer in answers] == [304, 200] and len(phone.log()) == 4


@pytest.mark.client("client.rollback", "client.lost-answer")
def test_a_304_of_an_older_version(account: "Account") -> None:
    """It is a rollback. A 304 that nobody asked for is a lost answer."""
    phone = account.phone
    not_modified = page(304, b"", "application/json")
    phone.network.trick = on_fetch(lambda: json_page(account.answers[1], version=4))
    phone.device.fetch()
    phone.network.trick = on_fetch(lambda: not_modified)
    phone.device.fetch()
    assert phone.told == ["rollback"] * 2
    fresh = Phone(account.server)
    fresh.device.sign_in(account.user, "the password", QUICK)
    fresh.network.trick = on_fetch(lambda: not_modified)
    with pytest.raises(ProblemError) as caught:
        fresh.device.fetch()
    assert caught.value.lost


def test_with_other_keys_no_304_is_asked_for(account: "Account") -> None:
    phone, asked = account.phone, []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        asked.append("If-None-Match" in request.headers)
        return send()

    phone.network.trick = trick
    phone.device.fetch(replace(phone.device.keys, derivation="another"))
    phone.device.fetch()
    assert asked == [False, True]


@pytest.mark.client("client.lost-answer")
def test_a_pause_is_as_long_as_the_server_asks_for(account: "Account") -> None:
    phone, pauses = account.phone, []
    phone.device._pause = pauses.append

    def busy(seconds: int) -> Answer:
        answer = problem(503, "unavailable")
        answer.headers["Retry-After"] = str(seconds)
        return answer

    answers = [busy(7), busy(0)]
    phone.network.trick = lambda request, send: answers.pop(0) if answers else send()
    phone.device.versions()
    assert pauses == [7, 4]
    answers = [busy(3600)]
    with pytest.raises(ProblemError) as caught:
        phone.device.versions()
    assert caught.value.retry_after == 3600 and caught.value.lost and len(pauses) == 2


def test_an_older_version_is_opened_and_nothing_changes(account: "Account") -> None:
    phone, before = account.phone, account.phone.saved
    assert workouts(phone.device.open_version(2)) == ["workout 1", "workout 2"]
    assert phone.saved == before
    with pytest.raises(DeviceError):
        phone.device.open_version(9)


def test_an_older_version_of_another_password(account: "Account") -> None:
    """The keys that the device has kept are tried, then the password that the person types."""
    phone = account.phone
    phone.device.change_password("another password", derivations=QUICK)
    assert workouts(phone.device.open_version(1)) == ["workout 1"]
    fresh = Phone(account.server)
    fresh.device.sign_in(account.user, "another password", QUICK)
    for password in (None, "a third one"):
        with pytest.raises(DecryptionError):
            fresh.device.open_version(1, password, derivations=QUICK)
    assert workouts(fresh.device.open_version(1, "the password", derivations=QUICK)) == ["workout 1"]
    fresh.device.restore(1, "the password", derivations=QUICK)
    assert fresh.log() == ["workout 1"]


def test_a_device_that_is_not_signed_in(account: "Account") -> None:
    for attempt in (Phone(account.server).device.sync, lambda: Phone(account.server).device.recovery_code):
        with pytest.raises(DeviceError, match="not-signed-in"):
            attempt()


@pytest.mark.client("client.recovery-code")
def test_a_recovery_code_signs_in(account: "Account") -> None:
    fresh, code = Phone(account.server), account.phone.device.recovery_code
    fresh.device.sign_in_with_code(f" {account.user}", code.lower())
    fresh.device.fetch()
    assert len(fresh.log()) == 3 and fresh.device.state.succeeded == "v1"
    with pytest.raises(MistypedCodeError):
        fresh.device.sign_in_with_code("somebody else", code)
    fresh.saved = replace(fresh.saved, succeeded="v2")
    fresh.restart()
    with pytest.raises(AppOutdatedError):  # this app does not know v2
        fresh.device.sign_in_with_code(account.user, code)
    account.phone.device.change_password("another password", derivations=QUICK)
    with pytest.raises(ProblemError, match="credentials_invalid"):
        Phone(account.server).device.sign_in_with_code(account.user, code)


def test_a_state_belongs_to_one_username(account: "Account") -> None:
    phone = account.phone
    phone.network.trick = lambda request, send: pytest.fail("nothing may be sent")
    with pytest.raises(ValueError):
        phone.device.sign_in("somebody else", "the password", QUICK)
    with pytest.raises(ValueError):
        phone.device.register("somebody else", "the password", QUICK)


def test_a_sign_in_ends_a_deletion_that_did_not_happen(account: "Account") -> None:
    phone = account.phone
    phone.network.fate = lambda: "is lost"
    with pytest.raises(ProblemError):
        phone.device.delete()
    phone.network.fate = lambda: "arrives"
    phone.device.sign_in(account.user, "the password", QUICK)
    assert phone.saved.deletion  # it could still arrive
    phone.saved = replace(phone.saved, deletion=replace(phone.saved.deletion, register_after=account.server.now() - 1))
    phone.restart()
    phone.device.sign_in(account.user, "the password", QUICK)
    assert not phone.saved.deletion
    phone.device.sync()


def test_no_error_shows_a_key_or_a_blob(account: "Account") -> None:
    """The server sends back whatever it got."""
    phone, new = account.phone, keys_of(account.user, "another password")
    old, sent = phone.device.keys, []

    def echo(request: requests.PreparedRequest, status: int, code: str) -> Answer:
        told = f"{dict(request.headers)} {(request.body or b'').decode()}"
        sent.append(request.headers["Authorization"].removeprefix("Basic "))
        sent.extend(json.loads(request.body or b"{}").values())
        return problem(status, code, title=told, detail=told, type=told, errors=[told])

    shown = ""
    for status, code in ((400, "malformed_request"), (503, "unavailable"), (400, old.storage_key), (401, "new_code")):
        phone.network.trick = lambda request, send, answer=(status, code): echo(request, *answer)
        for call in (phone.device.sync, phone.device.versions, lambda: phone.device._change_password(new)):
            phone.train(f"workout {len(sent)}")
            with pytest.raises((ProblemError, UnsettledChangeError)) as caught:
                call()
            error = caught.value
            assert re.fullmatch("[A-Z][^\n]{10,160}[.]", sentence(error)), sentence(error)
            shown += f"{error} {error!r} {sentence(error)} {''.join(traceback.format_exception(error))}"
    hidden = [phone.server.secret, *sent]
    for keys in (old, new):
        hidden += [keys.storage_key, keys.encryption_key.hex(), repr(keys.encryption_key), keys.master_key.hex()]
    assert [each for each in hidden if each[:24] in shown] == []


# ---- Tricks ------------------------------------------------------------------------------------------------


class Account:
    """An account with three versions of one device, and the bodies of the answers that the server gave."""

    def __init__(self, server: ServerProcess, name: str = "Anna") -> None:
        self.server = server
        self.user = f"{name} {server.now()}"
        self.phone = Phone(server)
        self.phone.device.register(self.user, "the password", QUICK)
        self.answers: dict[int, bytes] = {}
        for number in (1, 2, 3):
            self.phone.train(f"workout {number}")
            self.phone.device.sync()
            self.answers[number] = self.raw("/api/backup").content

    def raw(self, path: str) -> Answer:
        keys = self.phone.device.keys
        client = BackupClient(
            self.server.base_url, self.server.secret, keys, keyid=self.server.keyid, clock=self.server.now
        )
        return client.request("GET", path)

    def other_phone(self) -> Phone:
        phone = Phone(self.server)
        phone.device.sign_in(self.user, "the password", QUICK)
        phone.device.fetch()
        return phone


@pytest.fixture(scope="module")
def server(start_shared_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_shared_server(**NO_LIMITS)


@pytest.fixture
def account(server: ServerProcess, request: pytest.FixtureRequest) -> Account:
    return Account(server, request.node.name)


def on_fetch(answer: Callable[[], Answer]) -> Callable[[requests.PreparedRequest, Callable[[], Answer]], Answer]:
    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        return answer() if (request.method, request.path_url) == ("GET", "/api/backup") else send()

    return trick


def json_page(content: bytes, **changed: Any) -> Answer:
    return page(200, json.dumps(json.loads(content) | changed).encode(), "application/json")


@pytest.mark.client("client.rollback")
@pytest.mark.parametrize("number, version", [(1, 4), (2, 3), (1, 1)])
def test_an_old_state_as_the_latest(account: Account, number: int, version: int) -> None:
    phone = account.phone
    phone.network.trick = on_fetch(lambda: json_page(account.answers[number], version=version))
    phone.device.fetch()
    assert phone.told == ["rollback"]
    assert phone.log() == ["workout 1", "workout 2", "workout 3"]  # merged, not adopted
    assert phone.device.state.highest.sequence == 3  # it never moves down


@pytest.mark.client("client.sequence", "client.rollback")
def test_an_old_state_does_not_lower_the_next_sequence(account: Account) -> None:
    """The server really goes back to version 1. What the device stores then is higher than all that it has seen."""
    phone = account.phone
    phone.network.trick = on_fetch(lambda: json_page(account.answers[1], version=4))
    phone.device.fetch()
    sequences: list[int] = []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        if request.method == "POST":
            blob = base64.b64decode(json.loads(request.body or b"")["data"])
            sequences.append(decrypt(phone.device.keys, blob).sequence)
            sha256 = hashlib.sha256(blob).hexdigest()
            receipt = json.loads(account.answers[3]) | {"version": 5, "size": len(blob), "sha256": sha256}
            return page(201, json.dumps(receipt).encode(), "application/json")
        return send()

    phone.network.trick = trick
    phone.device.sync()
    assert sequences == [4]


@pytest.mark.client("client.rollback")
def test_a_false_conflict_with_an_old_state(account: Account) -> None:
    """The server answers 409, then gives out version 1 as the latest, to make the device store an old log."""
    phone = account.phone

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        if request.method == "POST" and not phone.told:
            return problem(409, "version_conflict", currentVersion=4)
        if request.path_url == "/api/backup" and request.method == "GET":
            return json_page(account.answers[1], version=4)
        return send()

    phone.network.trick = trick
    phone.train("workout 4")
    with pytest.raises(ProblemError, match="version_conflict"):  # its base is version 1 now
        phone.device.sync()
    assert phone.told[0] == "rollback" and set(phone.told) == {"rollback"}
    phone.network.trick = lambda request, send: send()
    phone.device.sync()
    assert phone.log() == [f"workout {number}" for number in (1, 2, 3, 4)]
    assert phone.device.state.highest.sequence == 4


@pytest.mark.client("client.version")
def test_another_version_than_the_one_that_was_asked_for(account: Account) -> None:
    phone = account.phone
    one, three = (json.loads(account.answers[number]) for number in (1, 3))
    receipt = {name: three[name] for name in three if name != "data"}
    answers = [
        json.dumps(one).encode(),  # version 1, and it says so
        json.dumps(one | {"version": 3}).encode(),  # version 1, called version 3
        json.dumps(one | receipt).encode(),  # the bytes of version 1 with the receipt of version 3
    ]
    for answer in answers:

        def trick(request: requests.PreparedRequest, send: Callable[[], Answer], answer: bytes = answer) -> Answer:
            return page(200, answer, "application/json") if request.path_url.endswith("/3") else send()

        phone.network.trick = trick
        with pytest.raises(MisfitError) as caught:
            phone.device.restore(3)
        assert caught.value.lost
    phone.network.trick = lambda request, send: send()
    assert [receipt["version"] for receipt in phone.device.versions()] == [3, 2, 1]  # nothing was stored


@pytest.mark.client("client.rollback")
def test_everything_is_gone(account: Account) -> None:
    phone = account.phone
    phone.network.trick = on_fetch(lambda: problem(404, "no_backup"))
    phone.device.fetch()
    assert phone.told == ["rollback"] and len(phone.log()) == 3
    phone.network.trick = lambda request, send: json_page(b'{"versions": []}')
    assert phone.device.versions() == []
    assert phone.told == ["rollback"] * 2


@pytest.mark.client("client.base", "client.rollback")
@pytest.mark.parametrize("uploads, told", [(1, ["rollback"]), (2, ["unknown-base"]), (3, [])])
def test_two_histories(
    start_server: Callable[..., ServerProcess], tmp_path: Path, uploads: int, told: list[str]
) -> None:
    """The server shows each device a history of its own. Then the tablet meets the phone's history.

    If that one is two versions ahead, the tablet cannot tell it from uploads that it has missed. It loses nothing.
    """
    first = start_server(tmp_path / "one", **NO_LIMITS)
    account = Account(first)
    phone, tablet = account.phone, account.other_phone()
    first.stop()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    phone.server, tablet.server = (start_server(tmp_path / name, **NO_LIMITS) for name in ("one", "two"))
    for device, names in ((phone, [f"phone {number}" for number in range(uploads)]), (tablet, ["tablet"])):
        device.restart()
        for name in names:
            device.train(name)
            device.device.sync()
    assert (phone.told, tablet.told) == ([], [])  # nobody can know it yet
    tablet.server = phone.server
    tablet.restart()
    tablet.device.fetch()
    assert tablet.told == told
    tablet.device.sync()
    phone.device.fetch()
    assert set(phone.log()) == set(tablet.log()) > {"phone 0", "tablet"}


@pytest.mark.client("client.rollback")
def test_a_fresh_device_cannot_know(account: Account) -> None:
    """It takes an old state for the latest. The next device that has seen more is told, and nothing is lost."""
    fresh = Phone(account.server)
    fresh.network.trick = on_fetch(lambda: json_page(account.answers[1], version=4))
    fresh.device.sign_in(account.user, "the password", QUICK)
    fresh.device.fetch()
    assert fresh.told == [] and fresh.log() == ["workout 1"]
    fresh.network.trick = lambda request, send: send()
    fresh.device.fetch()
    assert fresh.told == [] and len(fresh.log()) == 3


@pytest.mark.client("client.format")
def test_a_newer_app_has_stored(account: Account) -> None:
    """An older app neither reads nor overwrites what a newer app has stored."""
    phone = account.phone
    latest = phone.device.versions()[0]["sha256"]
    client = phone.device._make_client(phone.device.keys)
    assert client.store_backup(b"\x02 another format", latest).status_code == 201
    phone.train("workout 4")
    for attempt in (phone.device.sync, phone.device.fetch, phone.device.replace_unreadable):
        with pytest.raises(AppOutdatedError):
            attempt()
    assert [receipt["version"] for receipt in phone.device.versions()] == [4, 3, 2, 1]
    with pytest.raises(AppOutdatedError):
        phone.device.restore(3)
    assert "workout 4" in phone.log()
    with pytest.raises(AppOutdatedError):
        phone.device.change_password("another password", derivations=QUICK)


@pytest.mark.client("client.sequence")
def test_an_unreadable_version_is_replaced(account: Account) -> None:
    phone = account.phone
    latest = phone.device.versions()[0]["sha256"]
    client = phone.device._make_client(phone.device.keys)
    assert client.store_backup(b"\x01 junk", latest).status_code == 201
    phone.train("workout 4")
    with pytest.raises(DecryptionError):
        phone.device.sync()
    phone.device.replace_unreadable()  # the person was asked
    assert phone.device.state.highest.sequence == 5 and phone.told == []  # the junk counts as 4
    tablet = account.other_phone()
    assert tablet.log() == [f"workout {number}" for number in (1, 2, 3, 4)]


@pytest.mark.client("client.sequence")
def test_registering_resets_the_highest_seen(account: Account) -> None:
    phone = account.phone
    keys = phone.device.keys
    assert phone.device._make_client(keys).delete_user().status_code == 204
    account.server.move_clock(SIGNATURE_ACTS_SECONDS)
    phone.device._register(keys)
    assert phone.device.state.highest == Seen()
    assert not phone.device.state.base
    phone.device.sync()
    assert phone.device.state.highest.sequence == 1
    phone.device.fetch()
    assert phone.told == []


@pytest.mark.client("client.sequence", "client.no-false-alarm")
@pytest.mark.parametrize("restarted", [False, True])
def test_the_repeat_of_a_lost_registration_resets_the_highest_seen(account: Account, restarted: bool) -> None:
    phone, keys = account.phone, account.phone.device.keys
    assert phone.device._make_client(keys).delete_user().status_code == 204
    account.server.move_clock(SIGNATURE_ACTS_SECONDS)
    fates = iter(["answer is lost"] * (4 if restarted else 1))
    phone.network.fate = lambda: next(fates, "arrives")
    if restarted:
        with pytest.raises(ProblemError):
            phone.device._register(keys)
        phone.restart()
    phone.device._register(keys)  # 200
    assert phone.device.state.highest == Seen() and not phone.saved.registering
    phone.device.sync()
    assert phone.told == [] and phone.device.state.highest.sequence == 1


@pytest.mark.client("client.sequence")
def test_registering_again_resets_nothing(account: Account) -> None:
    """A server could answer 200 to make a device forget what it has seen."""
    phone = account.phone
    phone.device._register(phone.device.keys)
    assert phone.device.state.highest.sequence == 3


# ---- Restored snapshots ------------------------------------------------------------------------------------


@pytest.mark.client("client.snapshot")
@pytest.mark.parametrize("other_password", [False, True])
def test_a_restored_snapshot(start_server: Callable[..., ServerProcess], tmp_path: Path, other_password: bool) -> None:
    first = start_server(tmp_path / "now", **NO_LIMITS)
    account = Account(first)
    phone = account.phone
    first.stop()
    shutil.copytree(tmp_path / "now", tmp_path / "snapshot")
    phone.server = start_server(tmp_path / "now", **NO_LIMITS)
    phone.restart()
    if other_password:
        phone.device.change_password("another password", derivations=QUICK)
        assert [pair[0] for pair in phone.device.state.old_keys] == [keys_of(account.user, "the password")]
    phone.train("workout 4")
    phone.device.sync()
    phone.server.stop()
    phone.server = start_server(tmp_path / "snapshot", **NO_LIMITS)
    phone.restart()
    phone.train("workout 5")
    if other_password:
        with pytest.raises(ProblemError, match="credentials_invalid"):
            phone.device.sync()
        assert phone.device.after_refusal() == "confirm"
        assert not phone.device.versions(keys_of(account.user, "the password"))[0]["keyVersion"] > 1  # so far
        assert phone.device.after_refusal(nobody_changed_it=True) == "changed"
        receipts = phone.device.versions(keys_of(account.user, "another password"))
        assert receipts[0]["keyVersion"] == 2
        with pytest.raises(ProblemError, match="credentials_invalid"):
            phone.device.versions(keys_of(account.user, "the password"))
    else:
        phone.device.fetch()
    assert phone.told == ["rollback"]
    phone.device.sync()
    assert phone.log() == [f"workout {number}" for number in (1, 2, 3, 4, 5)]
    phone.device.fetch()
    assert phone.told == ["rollback"]  # once


@pytest.mark.client("client.snapshot")
def test_a_restored_snapshot_of_one_server(account: Account) -> None:
    """An old key works again. Perhaps a thief has changed it back: the person is asked before anything is sent."""
    phone, old = account.phone, account.phone.device.keys
    phone.device.change_password("another password", derivations=QUICK)
    client = account.phone.device._make_client(phone.device.keys)
    latest = phone.device.versions()[0]["sha256"]
    assert client.change_storage_key(old.storage_key, b"\x01 by a thief", latest).status_code == 200
    sent: list[str | None] = []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        sent.append(request.method)
        return send()

    phone.network.trick = trick
    assert phone.device.after_refusal() == "confirm"
    assert set(sent) == {"GET"}


@pytest.mark.client("client.snapshot")
def test_old_keys_are_kept_for_60_days(account: Account) -> None:
    phone = account.phone
    now = account.server.now()
    phone.device.change_password("another password", derivations=QUICK)
    ((keys, until),) = phone.device.state.old_keys
    assert keys == keys_of(account.user, "the password") and 0 <= until - now - SNAPSHOT_SECONDS < 60
    assert SNAPSHOT_SECONDS == 60 * 24 * 3600
    phone.saved = replace(phone.saved, old_keys=((keys, account.server.now() - 1),))
    phone.restart()
    phone.network.trick = lambda request, send: problem(401, "credentials_invalid")
    assert phone.device.after_refusal() == "ask"  # the old keys are too old to be tried


@pytest.mark.client("client.snapshot")
def test_the_account_is_newer_than_the_snapshot(start_server: Callable[..., ServerProcess]) -> None:
    account = Account(start_server(**NO_LIMITS))
    phone = account.phone
    phone.server = start_server(**NO_LIMITS)  # it knows no account
    phone.restart()
    with pytest.raises(ProblemError, match="credentials_invalid"):
        phone.device.sync()
    assert phone.device.after_refusal() == "ask"
    phone.device._register(phone.device.keys)  # the person agreed
    phone.device.sync()
    assert phone.told == [] and len(phone.device.versions()) == 1


# ---- Other derivations -------------------------------------------------------------------------------------


@pytest.mark.client("client.derivations")
def test_an_account_moves_to_a_newer_derivation(account: Account) -> None:
    tablet = Phone(account.server)
    tablet.device.sign_in(account.user, "the password", QUICK_V2)
    assert tablet.device.keys == derive_keys(account.user, "the password", QUICK_V2[0])
    assert tablet.device.state.succeeded == "v2" and len(tablet.log()) == 3
    assert tablet.device.versions()[0]["keyVersion"] == 2
    with pytest.raises(ProblemError, match="credentials_invalid"):  # an app that knows only v1
        account.phone.device.sync()
    account.phone.device.sign_in(account.user, "the password", QUICK_V2)
    account.phone.device.sync()
    assert (account.phone.told, tablet.told) == ([], [])


@pytest.mark.client("client.derivations")
def test_a_server_cannot_force_the_older_derivation(account: Account) -> None:
    """It refuses every key. A device that has succeeded with v2 sends no key of v1."""
    phone = account.phone
    phone.device.sign_in(account.user, "the password", QUICK_V2)
    phone.restart()
    sent: list[str] = []

    def trick(request: requests.PreparedRequest, send: Callable[[], Answer]) -> Answer:
        sent.append(request.headers["Authorization"])
        return problem(401, "credentials_invalid")

    phone.network.trick = trick
    with pytest.raises(ProblemError, match="credentials_invalid"):
        phone.device.sign_in(account.user, "the password", QUICK_V2)
    newest = derive_keys(account.user, "the password", QUICK_V2[0])
    assert sent == [authorization(newest.user_id, newest.storage_key)]
