"""The copy in a bucket: it follows the store, survives what may happen, keeps old states, and is a whole store again.

`tox run -e bucket` installs the S3 server that most of these tests need.
"""

import contextlib
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from contract_tests.target.calls import eventually, outcome
from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.process import COMMAND
from server import bounds, clock, replica
from server.accounts import Account, Damaged, Deleted, Version
from server.bucket import REMOVED, Address, Bucket, BucketError, Folder, identity_of, name_of, record_bytes
from server.dbm_reader import DbmReader
from server.replica import Change, Replica
from server_tests.memory_store import MemoryStore
from server_tests.s3 import Proxy, S3Server
from server_tests.test_maintenance import TOOL, Filled, contents, digest, environment
from server_tests.test_metrics import values_of

DAY = 86_400_000
SECONDS = 10  # how far behind the bucket may be
MANY = {"BACKUPS_PER_HOUR": 100_000, "BACKUPS_PER_DAY": 100_000, "REGISTRATIONS_PER_HOUR": 100_000}
USER = digest(b"a user")


@pytest.fixture
def s3(tmp_path):
    with S3Server(tmp_path) as server:
        yield server


@pytest.fixture
def start(start_server, s3):
    """`start(**settings)` starts a server that copies to the bucket. None of the servers may tell a secret."""
    servers = []

    def started(**settings):
        servers.append(start_server(**(s3.settings() | MANY | settings)))
        return servers[-1]

    yield started
    for server in servers:
        said = server.stdout.read_text() + server.stderr.read_text()
        assert s3.key_id not in said and s3.secret not in said and "accounts/" not in said


def accounts_in(database):
    """Return what a store has of each living account: its record, and its versions' bytes."""
    with contextlib.closing(DbmReader(database)) as reader:
        records = {user_id: reader.find(user_id) for user_id in reader.user_ids()}
        living = {user_id: record for user_id, record in records.items() if isinstance(record, Account)}
        return {
            user_id: (record, [reader.data(user_id, version) for version in record.versions])
            for user_id, record in living.items()
        }


def accounts_of(s3):
    """Return the same of the bucket. This reads the files of the S3 server, and knows the names by itself."""
    objects, found = s3.objects(), {}
    newest = {}
    for name in sorted(objects):
        if match := re.fullmatch(r"accounts/[0-9a-f]/([0-9a-f]{64})/record/([0-9]{13})-(\w+)", name):
            newest[match[1]] = (name, match[3])
    for folder, (name, identity) in newest.items():
        if identity == "removed":
            continue
        checksum, text = objects[name].split(b"\n")
        value = json.loads(text)
        user_id = value["userId"]
        assert hashlib.sha256(f"{user_id}\n".encode() + text).hexdigest().encode() == checksum
        assert folder == hashlib.sha256(f"dailyreps-backup-server bucket 1\n{user_id}".encode()).hexdigest()
        path = f"accounts/{folder[0]}/{folder}/blob/"
        found[user_id] = (value, [objects.get(path + version["sha256"]) for version in value["versions"]])
    return found


def is_copied(server, s3):
    """Return whether the bucket has all living accounts of the store, and no others, byte for byte."""
    there, here = accounts_of(s3), accounts_in(server.database)
    return there.keys() == here.keys() and all(
        value["createdAt"] == record.created_at
        and value["storageKeySha256"] == record.key_sha256
        and [version["version"] for version in value["versions"]] == [version.number for version in record.versions]
        and blobs == data
        for (value, blobs), (record, data) in ((there[user_id], here[user_id]) for user_id in here)
    )


def soon_copied(server, s3, seconds=SECONDS):
    return eventually(lambda: is_copied(server, s3), seconds)


def health(server):
    return server.client().get_health().json()


def user_of(server, blobs=()):
    user = server.client()
    assert outcome(user.register_user()) == "201"
    store(user, *blobs)
    return user


def store(user, *blobs):
    for blob in blobs:
        latest = user.fetch_backup()
        base = json.loads(latest.content)["sha256"] if latest.status_code == 200 else None
        assert outcome(user.store_backup(blob, base)) == "201"


def tool(s3, database, *arguments, code=0):
    """Run a command of maintenance.py that prints JSON. Return the value, or the message if it cannot be done."""
    command = [*TOOL, *map(str, arguments), "--json"]
    environ = environment(database) | s3.settings()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert s3.secret not in done.stderr + done.stdout
    return done.stderr if code == 2 else json.loads(done.stdout)


def bucket_lines(server):
    return [(line["state"], line.get("reason")) for line in server.log() if line["event"] == "bucket"]


# ---- The copy follows the store ----------------------------------------------------------------------------


def test_every_commit_is_in_the_bucket_within_seconds(s3, start):
    server = start(METRICS_PORT=0)
    user = user_of(server)
    assert soon_copied(server, s3)
    for number in range(3):
        store(user, bytes([number]) * 100_000)
        assert soon_copied(server, s3)
    store(user, b"large" * 1_000_000)
    assert soon_copied(server, s3)
    assert eventually(lambda: server.client().get_admin_stats(server.admin_key).json()["copyLagSeconds"] == 0)
    assert eventually(lambda: values_of(server)["bucket_lag_seconds{}"] == 0)
    assert values_of(server)["degraded{part=copies}"] == 0
    assert health(server)["status"] == "ok"
    assert bucket_lines(server) == [("claimed", None), ("copying", None)]


def test_the_names_do_not_tell_a_userid(s3, start):
    server = start()
    user = user_of(server, [b"x"])
    assert soon_copied(server, s3)
    assert not any(user.credentials[0] in name for name in s3.objects())


def test_what_the_store_had_before_there_was_a_bucket(s3, start, tmp_path):
    filled = Filled(tmp_path / "backup.db", accounts=30)
    server = start(DATABASE_PATH=filled.path)
    assert soon_copied(server, s3, 30)


def test_a_deletion_leaves_nothing(s3, start):
    server = start()
    users = [user_of(server, [b"%d" % number, b"more"]) for number in range(2)]
    assert soon_copied(server, s3)
    # The comparison at the start is over, so it does not find the deletion.
    assert eventually(lambda: server.client().get_admin_stats(server.admin_key).json()["copyLagSeconds"] == 0)
    assert outcome(users[0].delete_user()) == "204"
    name = name_of(users[0].credentials[0])
    assert eventually(lambda: not any(name in each for each in s3.objects()), SECONDS)
    assert not any(users[0].credentials[0].encode() in data for data in s3.objects().values())
    assert soon_copied(server, s3)


def test_a_deletion_that_a_crash_cuts_off(s3, start):
    server = start()
    user = user_of(server, [b"x"])
    assert soon_copied(server, s3)
    s3.kill()
    assert outcome(user.delete_user()) == "204"
    server.kill()
    s3.start()
    server.start()
    assert eventually(lambda: not any(name_of(user.credentials[0]) in each for each in s3.objects()), SECONDS)


# ---- What may happen ---------------------------------------------------------------------------------------


def test_an_hour_without_the_bucket(s3, start):
    server = start()
    user = user_of(server, [b"before"])
    gone = user_of(server, [b"gone"])
    assert soon_copied(server, s3)
    s3.kill()
    began = time.monotonic()
    store(user, *(b"%d" % number for number in range(20)))
    assert outcome(gone.delete_user()) == "204"
    assert time.monotonic() - began < 10  # nobody waits
    assert health(server)["status"] == "ok"
    server.move_clock(3600)
    assert eventually(lambda: health(server).get("degraded") == ["copies"])
    assert server.client().get_admin_stats(server.admin_key).json()["copyLagSeconds"] >= 3600
    s3.start()
    assert soon_copied(server, s3, 70)  # the longest pause, and some seconds
    assert not any(name_of(gone.credentials[0]) in each for each in s3.objects())
    assert eventually(lambda: health(server)["status"] == "ok")
    assert bucket_lines(server)[2:] == [("failing", "it cannot be reached"), ("copying", None)]


def test_more_changes_than_can_wait(s3, start_server, tmp_path):
    """Once the bucket is back, a comparison finds what could not wait."""
    server = start_server(command=[*COMMAND, "--bound", "BUCKET_CHANGES=3"], **s3.settings(), **MANY)
    assert soon_copied(server, s3)
    assert eventually(lambda: server.client().get_admin_stats(server.admin_key).json()["copyLagSeconds"] == 0)
    s3.kill()
    for number in range(8):
        user_of(server, [b"%d" % number])
    s3.start()
    assert soon_copied(server, s3, 30)


def test_an_upload_that_is_cut_off_half_way(s3, start):
    with Proxy(s3.port) as proxy:
        server = start(**s3.settings(proxy.port))
        user = user_of(server, [b"before"])
        assert soon_copied(server, s3)
        proxy.cut_after = 100_000
        store(user, random.Random(1).randbytes(400_000))
        assert eventually(lambda: proxy.cuts > 1)
        (before,) = accounts_of(s3).values()  # a whole state, from before
        assert before[1] == [b"before"]
        assert {len(data) for name, data in s3.objects().items() if "/blob/" in name} == {6}
        proxy.cut_after = None
        assert soon_copied(server, s3, 30)


@pytest.mark.parametrize(
    ("setting", "value", "status"),
    [
        ("AWS_SECRET_ACCESS_KEY", "another-secret", "it answers 403"),
        ("AWS_ACCESS_KEY_ID", "another-key", "it answers 4"),
        ("BUCKET_NAME", "another-bucket", "it answers 404 NoSuchBucket"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1", "it cannot be reached"),
    ],
)
def test_a_bucket_that_cannot_be_used(s3, start, setting, value, status):
    """One line says so, and the server serves."""
    server = start(**{setting: value})
    assert eventually(lambda: bucket_lines(server))
    user_of(server, [b"x"])
    time.sleep(3)
    ((state, reason),) = bucket_lines(server)
    assert state == "failing" and reason.startswith(status)
    if setting != "AWS_ENDPOINT_URL_S3":  # what may mend itself is given some minutes
        assert health(server)["degraded"] == ["copies"]
    assert s3.objects() == {}
    assert value not in str(server.log()) or setting == "AWS_ENDPOINT_URL_S3"


def test_kills_at_random_moments(s3, start):
    server, chance = start(), random.Random(16)
    users = [user_of(server).credentials for _ in range(3)]
    for number in range(6):
        for user in chance.sample(users, 2):
            store(server.client(user), *(chance.randbytes(chance.choice([10, 300_000])) for _ in range(3)))
        if number == 3:
            assert outcome(server.client(users.pop()).delete_user()) == "204"
        time.sleep(chance.random() / 4)
        server.kill()
        server.start()
    assert soon_copied(server, s3, 30)


def test_a_full_disk(s3, start, tmp_path):
    filled = Filled(tmp_path / "backup.db")
    server = start(DATABASE_PATH=filled.path, fault="full_from_the_start")
    assert soon_copied(server, s3)


def test_damage_does_not_reach_the_bucket(s3, start, tmp_path):
    server = start()
    blobs = [random.Random(number).randbytes(5000) for number in range(3)]
    users = [user_of(server, [blob]) for blob in blobs]
    assert soon_copied(server, s3)
    before = {name: data for name, data in s3.objects().items() if name != "horizon"}
    server.damage(blobs[0])
    server.damage_account(users[1].credentials[0])
    store(server.client(users[2].credentials), b"more")
    assert eventually(lambda: b"more" in s3.objects().values(), SECONDS)
    time.sleep(2)
    assert before.items() <= s3.objects().items()
    tool(s3, tmp_path / "new.db", "restore", "s3://copies")
    assert sorted(data[0] for _, data in accounts_in(tmp_path / "new.db").values()) == sorted(blobs)


def test_damage_from_before_the_copy_does_not_reach_the_bucket(s3, start):
    server = start()
    s3.kill()
    blobs = [random.Random(number).randbytes(5000) for number in range(2)]
    for blob in blobs:
        user_of(server, [blob])
    server.damage(blobs[0])
    s3.start()
    assert eventually(lambda: blobs[1] in s3.objects().values(), 30)
    assert eventually(lambda: len(accounts_of(s3)) == 2, 30)
    copied = {name.rpartition("/")[2]: data for name, data in s3.objects().items() if "/blob/" in name}
    assert copied == {digest(blobs[1]): blobs[1]}


# ---- Old states --------------------------------------------------------------------------------------------


def rfc3339(server):
    return clock.rfc3339(int(server.now() * 1000) + 1000)


def test_old_states_are_kept_for_7_days(s3, start, tmp_path):
    server = start(KEEP_VERSIONS="1,0,0,0")
    user = user_of(server, [b"first"])
    assert soon_copied(server, s3)
    first = rfc3339(server)
    server.move_clock(86_400)
    store(user, b"second")
    assert soon_copied(server, s3)
    assert eventually(lambda: any("/dropped/" in name for name in s3.objects()))
    server.move_clock(5 * 86_400)
    store(user, b"third")
    assert soon_copied(server, s3)
    for at, blob in ((first, b"first"), (rfc3339(server), b"third")):
        tool(s3, tmp_path / "new.db", "restore", "s3://copies", "--at", at)
        assert [data for _, data in accounts_in(tmp_path / "new.db").values()] == [[blob]]
        assert tool(s3, tmp_path / "new.db", "verify", "s3://copies", "--at", at)["versions"] == 1
    server.move_clock(3 * 86_400)
    assert eventually(lambda: b"first" not in s3.objects().values(), SECONDS)
    assert b"second" in s3.objects().values()
    assert "are gone" in tool(s3, tmp_path / "new.db", "restore", "s3://copies", "--at", first, code=2)
    server.move_clock(8 * 86_400)
    assert eventually(lambda: b"second" not in s3.objects().values(), SECONDS)
    assert eventually(lambda: len(s3.objects()) == 4, SECONDS)  # owner, horizon, record and blob


def test_what_the_operator_removes_is_kept_for_7_days(s3, start, tmp_path):
    server = start()
    user = user_of(server, [b"x"])
    stays = user_of(server, [b"y"])
    assert soon_copied(server, s3)
    before = rfc3339(server)
    time.sleep(2)
    tool(s3, server.database, "remove", "--user", user.credentials[0], "--yes")
    assert soon_copied(server, s3)
    server.restart()  # the record of the deletion tells whose wish it was
    assert soon_copied(server, s3)
    server.move_clock(6 * 86_400)
    time.sleep(3)
    tool(s3, tmp_path / "now.db", "restore", "s3://copies")
    assert accounts_in(tmp_path / "now.db").keys() == {stays.credentials[0]}
    tool(s3, tmp_path / "then.db", "restore", "s3://copies", "--at", before)
    assert accounts_in(tmp_path / "then.db").keys() == {stays.credentials[0], user.credentials[0]}
    server.move_clock(2 * 86_400)
    assert eventually(lambda: not any(name_of(user.credentials[0]) in each for each in s3.objects()), 2 * SECONDS)
    assert soon_copied(server, s3)


# ---- Two machines ------------------------------------------------------------------------------------------


def test_a_second_machine_is_refused_unless_it_takes_over(s3, start, tmp_path):
    first = start(BUCKET_TAKEOVER="1")  # counts once, so it does not take the bucket back
    user = user_of(first, [b"x"])
    assert soon_copied(first, s3)
    tool(s3, tmp_path / "new.db", "restore", "s3://copies")
    before = s3.objects()
    second = start(DATABASE_PATH=tmp_path / "new.db")
    assert eventually(lambda: bucket_lines(second))
    ((state, reason),) = bucket_lines(second)
    assert state == "failing" and "BUCKET_TAKEOVER" in reason
    user_of(second, [b"y"])
    time.sleep(2)
    assert s3.objects() == before
    assert health(second)["degraded"] == ["copies"]
    second.environ["BUCKET_TAKEOVER"] = "1"
    second.restart()
    assert soon_copied(second, s3)
    store(user, b"on the first machine")
    assert eventually(lambda: health(first).get("degraded") == ["copies"], SECONDS)
    assert soon_copied(second, s3)
    assert bucket_lines(second)[-2:] == [("taken over", None), ("copying", None)]


def test_a_machine_without_accounts_does_not_take_over(s3, start):
    first = start()
    user_of(first, [b"x"])
    assert soon_copied(first, s3)
    first.stop()
    before = s3.objects()
    second = start(BUCKET_TAKEOVER="1")
    assert eventually(lambda: bucket_lines(second))
    assert "restore them" in bucket_lines(second)[0][1]
    user_of(second)
    time.sleep(2)
    assert s3.objects() == before


# ---- A restoration -----------------------------------------------------------------------------------------


def test_a_restoration_on_an_empty_machine_is_equal(s3, start, tmp_path):
    filled = Filled(tmp_path / "backup.db", accounts=200, versions=3, size=2000)
    server = start(DATABASE_PATH=filled.path)
    assert soon_copied(server, s3, 60)
    expected = accounts_in(filled.path)
    server.stop()
    new = tmp_path / "empty machine" / "backup.db"
    new.parent.mkdir()
    result = tool(s3, new, "restore", "s3://copies")
    assert (result["accounts"], result["versions"], result["damage"]) == (200, 600, [])
    assert filled.intact(new) and contents(new) == contents(filled.path)
    assert accounts_in(new) == expected
    assert tool(s3, new, "verify")["damage"] == []
    again = start(DATABASE_PATH=new, BUCKET_TAKEOVER="1")
    assert soon_copied(again, s3, 30)


def test_a_time_before_the_first_account_does_not_empty_a_store(s3, start, tmp_path):
    server = start()
    assert soon_copied(server, s3)
    assert "there is no account in it" in tool(s3, tmp_path / "new.db", "restore", "s3://copies", code=2)
    before = rfc3339(server)
    time.sleep(2)
    user_of(server, [b"a backup"])
    assert soon_copied(server, s3)
    server.stop()
    kept = contents(server.database)
    said = tool(s3, server.database, "restore", "s3://copies", "--at", before, code=2)
    assert f"there was no account in it at {before[:19]}" in said
    assert contents(server.database) == kept
    assert tool(s3, tmp_path / "new.db", "verify", "s3://copies", "--at", before)["accounts"] == 0


def test_a_restoration_of_more_names_than_a_page_has(s3, tmp_path):
    """An S3 server lists a thousand names at a time."""
    named_0 = (user for user in (f"{number:064x}" for number in itertools.count()) if name_of(user).startswith("0"))
    objects = {"owner": b"somebody", "horizon": b"0"}
    for user in itertools.islice(named_0, 1100):
        data = record_bytes(user, Account(1, "0" * 64))
        objects[f"accounts/0/{name_of(user)}/record/{1:013}-{identity_of(data)}"] = data
    for name, data in objects.items():
        (s3.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (s3.folder / name).write_bytes(data)
    assert tool(s3, tmp_path / "new.db", "restore", "s3://copies")["accounts"] == 1100


def test_what_verify_finds_in_a_bucket(s3, start, tmp_path):
    filled = Filled(tmp_path / "backup.db", accounts=4)
    server = start(DATABASE_PATH=filled.path)
    assert soon_copied(server, s3)
    server.stop()
    result = tool(s3, tmp_path / "none.db", "verify", "s3://copies")
    assert (result["accounts"], result["versions"], result["damage"]) == (4, 8, [])
    names = sorted(s3.objects())
    blobs = [name for name in names if "/blob/" in name]
    records = [name for name in names if "/record/" in name]
    owner = blobs[0].split("/")[2]
    record = next(name for name in records if owner not in name)
    (s3.folder / blobs[0]).unlink()
    (s3.folder / blobs[1]).write_bytes(b"rot" * 1000)
    data = (s3.folder / record).read_bytes()
    (s3.folder / record).write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    result = tool(s3, tmp_path / "none.db", "verify", "s3://copies", code=1)
    assert sorted(each["kind"] for each in result["damage"]) == ["blob", "missing", "record"]
    result = tool(s3, tmp_path / "none.db", "restore", "s3://copies", code=1)
    assert not (tmp_path / "none.db").exists()
    assert sorted(each["kind"] for each in result["damage"]) == ["blob", "missing", "record"]
    tool(s3, tmp_path / "none.db", "restore", "s3://copies", "--damaged", code=1)
    assert len(accounts_in_spite(tmp_path / "none.db")) == 3


def accounts_in_spite(database):
    with contextlib.closing(DbmReader(database)) as reader:
        return list(reader.user_ids())


def test_a_bucket_that_has_no_copy(s3, tmp_path):
    assert "there is no copy" in tool(s3, tmp_path / "new.db", "restore", "s3://copies", code=2)
    assert "NoSuchBucket" in tool(s3, tmp_path / "new.db", "restore", "s3://another", code=2)
    assert not (tmp_path / "new.db").exists()


# ---- A crash at every step ---------------------------------------------------------------------------------


class Crash(Exception):
    """The process ends here."""


class BucketThatEnds(Bucket):
    """A bucket, of a process that ends before its next change if `left` changes are made."""

    left: float = float("inf")

    def _count(self):
        if self.left <= 0:
            raise Crash
        self.left -= 1

    def put(self, name, data):
        self._count()
        super().put(name, data)

    def delete(self, names):
        for name in names:
            self._count()
            super().delete([name])


def version(number, data):
    return Version(number, number * DAY, len(data), digest(data), 1)


BLOBS = [b"first", b"second", b"third"]
VERSIONS = [version(number, blob) for number, blob in enumerate(BLOBS, 1)]
BEFORE = Account(1, "0" * 64, versions=(VERSIONS[0], VERSIONS[1]))


def stored(record):
    """Return a store that has this record of a user."""
    memory = MemoryStore()
    memory._keep(USER, record, {(USER, each): None for each in ()})
    memory._data.update({(USER, each): blob for each, blob in zip(VERSIONS, BLOBS, strict=True)})
    return memory


@pytest.mark.parametrize(
    ("after", "horizon"),
    [
        (replace(BEFORE, versions=(VERSIONS[1], VERSIONS[2])), 0),
        (replace(BEFORE, versions=(VERSIONS[1], VERSIONS[2])), 1 << 60),
        (Deleted(5), 0),
        (Deleted(5, by_operator=True), 0),
        (Deleted(5, by_operator=True), 1 << 60),
    ],
)
def test_a_crash_at_every_step(s3, tmp_path, after, horizon):
    """After each step, the bucket has a whole state, from before or after. The next look brings it up to date."""
    address = Address("copies", f"http://127.0.0.1:{s3.port}", "auto", s3.key_id, s3.secret)
    folder = s3.folder / f"accounts/{name_of(USER)[0]}/{name_of(USER)}"

    def look(record, bucket):
        copier = Replica(stored(record), lambda: bucket, tmp_path / "id", takeover=False)
        copier._horizon = horizon
        copier._copy(bucket, USER, Change(0))

    def state():
        return [value["versions"] for value, blobs in accounts_of(s3).values() if None not in blobs]

    for steps in range(20):
        bucket = BucketThatEnds(address)
        bucket.delete([name for name in s3.objects() if name.startswith("accounts/")])
        look(BEFORE, bucket)
        first = state()
        bucket.left = steps
        try:
            look(after, bucket)
        except Crash:
            is_ended = True
        else:
            is_ended = False
        found = state()
        for _ in range(3):  # a dropped blob is marked, and the next look finds that it is old
            look(after, Bucket(address))
        last = state()
        assert found in (first, last), steps
        assert last == ([] if isinstance(after, Deleted) else state())
        assert (last == []) == isinstance(after, Deleted)
        if after == Deleted(5) or (horizon and isinstance(after, Deleted)):
            assert not [path for path in folder.rglob("*") if path.is_file()]
        elif horizon:
            assert len([path for path in folder.rglob("*") if path.is_file()]) == 3  # a record and two blobs
        if not is_ended:
            break
    assert steps > 1 and not is_ended


class StoreWithDamage(MemoryStore):
    def find(self, user_id):
        raise Damaged("for the test")


def test_a_record_that_is_damaged_changes_nothing(s3, tmp_path):
    """Also if it is damaged after its account has changed."""
    bucket = Bucket(Address("copies", f"http://127.0.0.1:{s3.port}", "auto", s3.key_id, s3.secret))
    for store_of in (lambda: stored(BEFORE), StoreWithDamage):
        before = s3.objects()
        Replica(store_of(), lambda: bucket, tmp_path / "id", takeover=False)._copy(bucket, USER, Change(0))
    assert before and s3.objects() == before


# ---- Without a bucket --------------------------------------------------------------------------------------


def folder_with(records=None, blobs=(), dropped=()):
    return Folder("a/", dict(records or {}), set(blobs), list(dropped))


@pytest.mark.parametrize(
    ("folder", "wanted", "identity", "plan"),
    [
        (folder_with(), ["b"], "i", (("b",), "a/record/0000000001000-i", (), ())),
        (folder_with({900: "i"}, ["b"]), ["b"], "i", ((), None, (), ())),
        (folder_with({900: "i"}), ["b"], "i", (("b",), None, (), ())),
        # A version was dropped: its blob stays for a while.
        (folder_with({900: "h"}, ["b"]), [], "i", ((), "a/record/0000000001000-i", ("a/dropped/0000000001000-b",), ())),
        (folder_with({900: "i"}, ["b"], [(501, "b")]), [], "i", ((), None, (), ())),
        (
            folder_with({900: "i"}, ["b"], [(500, "b")]),
            [],
            "i",
            ((), None, (), ("a/blob/b", "a/dropped/0000000000500-b")),
        ),
        # It came back, as after a restored snapshot.
        (folder_with({900: "i"}, ["b"], [(400, "b")]), ["b"], "i", ((), None, (), ("a/dropped/0000000000400-b",))),
        # What is older than the horizon is the state of the record before, if that one was still the current one then.
        (folder_with({300: "h", 500: "i"}), [], "i", ((), None, (), ("a/record/0000000000300-h",))),
        (folder_with({300: "h", 501: "i"}), [], "i", ((), None, (), ())),
        # The clock was set back: the record is still the newest one.
        (folder_with({2000: "h"}), [], "i", ((), "a/record/0000000002001-i", (), ())),
        # The operator has removed the account.
        (folder_with({900: "i"}), [], REMOVED, ((), "a/record/0000000001000-removed", (), ())),
        (folder_with({300: "i", 501: REMOVED}), [], REMOVED, ((), None, (), ())),
        (
            folder_with({300: "i", 500: REMOVED}, ["b"]),
            [],
            REMOVED,
            ((), None, (), ("a/blob/b", "a/record/0000000000300-i", "a/record/0000000000500-removed")),
        ),
    ],
)
def test_what_is_to_be_done(folder, wanted, identity, plan):
    """It is 1000, and old states are kept since 500."""
    assert tuple(folder.plan(wanted, identity, 1000, 500)) == plan


def test_what_was_the_current_record():
    folder = folder_with({300: "h", 500: "i", 700: REMOVED, 800: "j"})
    expected = {299: None, 300: 300, 499: 300, 500: 500, 699: 500, 700: None, 799: None, 800: 800, 9999: 800}
    assert {moment: folder.as_of(moment) for moment in expected} == expected


def test_what_a_comparison_finds_keeps_its_old_states(tmp_path):
    """Only a deletion by the user erases them."""
    copier = Replica(MemoryStore(), BrokenBucket, tmp_path / "id", takeover=False)
    copier._copy_later(USER, 0)
    assert copier._take() == (USER, Change(0, erases=False))


def test_a_folder_that_lacks_nothing_is_left_alone(tmp_path):
    store, account = MemoryStore(), Account(1, "0" * 64)
    with store.account(USER) as held:
        held.create(account)
    copier = Replica(store, BrokenBucket, tmp_path / "id", takeover=False)

    def to_copy(records):
        return copier._to_copy(BrokenBucket(), name_of(USER), folder_with(records), USER, set())

    assert to_copy({1: identity_of(record_bytes(USER, account))}) is None
    assert to_copy({1: "another"}) == to_copy({}) == USER


class BrokenBucket:
    def get_tagged(self, name):
        raise BucketError("for the test")


def test_many_changes_while_the_bucket_is_out_of_reach(tmp_path, monkeypatch):
    """What waits is bounded. The rest is left to a comparison, and the lag tells of both."""
    monkeypatch.setattr(bounds, "BUCKET_CHANGES", 100)
    copier = Replica(MemoryStore(), BrokenBucket, tmp_path / "id", takeover=False)
    copier._unsure_since = None
    for number in range(1000):
        copier.changed(digest(b"%d" % number), Account(1, "0" * 64))
    assert len(copier._waiting) == 100
    assert copier._unsure_since is not None and copier._has_dropped_changes
    copier._unsure_since -= 301_000
    assert copier.lag_seconds() > replica.LATE_SECONDS and copier.is_degraded()


def test_a_comparison_that_does_not_end(tmp_path):
    copier = Replica(MemoryStore(), BrokenBucket, tmp_path / "id", takeover=False)
    copier._unsure_since = None
    assert copier.compared_seconds() < 10 and not copier.is_degraded()
    copier._compared_at -= 2 * 86_400_000 + 1000
    assert copier.lag_seconds() == 0 and copier.is_degraded()


def test_a_change_is_heard_at_once(tmp_path):
    """Whoever stores waits less than a thousandth of a second for it, even if nothing can be copied."""
    copier = Replica(MemoryStore(), BrokenBucket, tmp_path / "id", takeover=False)
    copier.start()
    began = time.monotonic()
    for number in range(1000):
        copier.changed(digest(b"%d" % (number % 50)), Deleted(1))
    assert time.monotonic() - began < 1
    copier.close()


def test_a_bucket_that_fails_is_left_alone_for_a_while(tmp_path, monkeypatch):
    """Whoever has begun to try may still fail. Nobody begins."""
    monkeypatch.setattr(bounds, "BUCKET_PAUSE_SECONDS", (60, 60))
    attempts, fail = [], BrokenBucket().get_tagged
    monkeypatch.setattr(BrokenBucket, "get_tagged", lambda *name: attempts.append(name) or fail(name))
    copier = Replica(MemoryStore(), BrokenBucket, tmp_path / "id", takeover=False)
    copier.start()
    for number in range(50):
        copier.changed(digest(b"%d" % number), Deleted(1))
    time.sleep(1)
    copier.close()
    assert 1 <= len(attempts) <= bounds.COPIERS + 1


def test_a_stop_waits_for_what_is_being_copied(tmp_path, monkeypatch):
    copied = []
    monkeypatch.setattr(Replica, "_owned", lambda copier: None)
    monkeypatch.setattr(Replica, "_compare", lambda copier, bucket: None)
    monkeypatch.setattr(Replica, "_copy", lambda copier, *change: (time.sleep(1), copied.append(change)))
    copier = Replica(MemoryStore(), BrokenBucket, tmp_path / "id", takeover=False)
    copier.start()
    copier.changed(USER, Deleted(1))
    copier.close()
    assert len(copied) == 1


def test_a_stop_waits_for_nobody_who_has_nothing_to_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "BUCKET_STOP_SECONDS", 60)
    copier = Replica(MemoryStore(), BrokenBucket, tmp_path / "id", takeover=False)
    copier.start()
    stop = threading.Thread(target=copier.close, daemon=True)
    stop.start()
    stop.join(10)
    assert not stop.is_alive()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None), ("AWS_ENDPOINT_URL_S3", "storage.example")],
)
def test_a_setting_that_is_missing_is_named(start_server, setting, value):
    settings = {
        "BUCKET_NAME": "copies",
        "AWS_ENDPOINT_URL_S3": "https://storage.example",
        "AWS_ACCESS_KEY_ID": "a key",
        "AWS_SECRET_ACCESS_KEY": "a secret",
    }
    with pytest.raises(RuntimeError, match=f"{setting} "):
        start_server(**settings | {setting: value})


def test_who_wants_no_copy_does_not_load_the_library():
    script = "import backup_server, maintenance, sys; print('obstore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_a_bucket_nothing_tells_of_copies(start_server):
    server = start_server()
    assert eventually(lambda: server.client().get_admin_stats(server.admin_key).status_code == 200)
    assert "copyLagSeconds" not in server.client().get_admin_stats(server.admin_key).json()
    assert not list(Path(server.directory).glob("*-bucket"))
