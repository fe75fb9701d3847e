"""The search through all interleavings (worst_day/interleavings.py): the server holds, and broken ones are found."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

import pytest

import backup_server
from server.accounts import Account, Upload
from server.dbm_store import DbmStore
from server.housekeeping import Housekeeper
from server.refused import RefusedUploads
from server_tests.memory_store import HeldEntry, MemoryStore
from worst_day import interleavings
from worst_day.interleavings import essence, explore, life_on
from worst_day.small_server import spec

STORE_NEXT = backup_server.store_next
KEEP = MemoryStore._keep


def any_base(server, request, signature, user, held, account, value, new_key_sha256):
    """Store the next version, whatever its base is."""
    value = {**value, "baseSha256": account.latest.sha256 if account.latest else None}
    return STORE_NEXT(server, request, signature, user, held, account, value, new_key_sha256)


def key_as_it_was(user, server, record):
    """Take the account as it is now, and trust the comparison from before."""
    if isinstance(record, Account):
        return record
    raise backup_server.credentials_invalid()


def without_history(store, user_id, record, data):
    """Keep nothing but the latest version."""
    if isinstance(record, Account):
        record = replace(record, versions=record.versions[-1:])
    KEEP(store, user_id, record, data)


def patched(owner: object, name: str, value: object) -> Callable[[], contextlib.AbstractContextManager]:
    return lambda: mock.patch.object(owner, name, value)


def limit(name: str, seconds: int) -> Callable[[], contextlib.AbstractContextManager]:
    return lambda: mock.patch.dict(spec().limits, {name: seconds})


# Each fault, the rule that it breaks, and at which depth that shows.
FAULTS = {
    "no signature is kept as spent": (
        patched(backup_server, "Upload", lambda moment, signature, changes_key: Upload(moment, "", changes_key)),
        "REPLAY: a request that was accepted before has changed the account again",
        4,
    ),
    "no refused upload is remembered": (
        patched(RefusedUploads, "add", lambda *_: None),
        "REPLAY: an upload that was refused for good has changed the account",
        4,
    ),
    "the base is not compared": (
        patched(backup_server, "store_next", any_base),
        "LOST UPDATE: the latest version was replaced by one that was not made from it",
        2,
    ),
    "the key is not compared again under the hold": (
        patched(backup_server.User, "again", key_as_it_was),
        "a key that is not in force changed the account",
        4,
    ),
    "a deleted userId is not reserved": (
        limit("deletedUserSeconds", 0),
        "RESURRECTION: a request from before the deletion has changed the account",
        3,
    ),
    "a signature never runs out": (limit("signatureSkewSeconds", 10**6), "has run out, but the answer is", 2),
    "an upload is acknowledged and not stored": (
        patched(HeldEntry, "append", lambda *_, **__: None),
        "the answer was 201, but nothing has changed",
        2,
    ),
    "an upload drops the history": (
        patched(MemoryStore, "_keep", without_history),
        "LOST UPDATE: an upload dropped versions that should be kept",
        1,
    ),
}
# These show in the answers alone, which the model knows, long before they do harm.
FAULTS_FOR_THE_MODEL = {
    "a deleted userId is reserved for too short a time": (limit("deletedUserSeconds", 600), "201", 3),
    "the time of a request is not limited": (patched(backup_server.Server, "check_time", lambda *_: None), "408", 4),
}


def test_the_server_holds_in_memory():
    with life_on("memory") as life:
        found = explore(life, depth=3)
    assert (found.broken, found.is_complete) == (None, True)
    assert found.levels[-1].states > 1900


def test_the_server_holds_on_its_file():
    with life_on("file") as life:
        found = explore(life, depth=3)
    assert (found.broken, found.is_complete) == (None, True)
    assert found.levels[-1].states > 1900


def forgotten_at_once(house, user_id, record):
    house._deleted.append((0, user_id, record.deleted_at))


@pytest.mark.parametrize(
    ("part", "name", "value", "broken"),
    [
        (Housekeeper, "forget_later", forgotten_at_once, "RESURRECTION: "),
        (DbmStore, "put_blob", lambda *_: None, "the bytes of version "),
    ],
)
def test_a_broken_file_is_found(part, name, value, broken):
    with mock.patch.object(part, name, value), life_on("file", has_model=False) as life:
        found = explore(life, depth=4)
    assert found.broken is not None and found.broken.startswith(broken)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_server_is_found_by_the_rules_alone(fault):
    breaks, rule, depth = FAULTS[fault]
    with breaks(), life_on("memory", has_model=False) as life:
        found = explore(life, depth)
    assert found.broken is not None and rule in found.broken
    assert len(found.history) == depth + 1  # the first of them is the start


@pytest.mark.parametrize("fault", FAULTS | FAULTS_FOR_THE_MODEL)
def test_a_broken_server_is_found_with_the_model(fault):
    breaks, _, depth = (FAULTS | FAULTS_FOR_THE_MODEL)[fault]
    with breaks(), life_on("memory") as life:
        found = explore(life, depth)
    assert found.broken is not None


def test_equal_futures_are_equal():
    """The steps of two states with the same essence come to the same. So it is enough to look at one of them."""
    with life_on("memory") as life:
        first = {essence(state): state for state in life.starts()}
        level, futures, compared = list(first.values()), {}, 0

        def future(state):
            return Counter((step.who.strip("AB"), step.outcome, step.seconds) for step, _, _ in life.steps(state))

        for _ in range(3):
            following = []
            for _, after, _ in itertools.chain.from_iterable(map(life.steps, level)):
                key = essence(after)
                if first.setdefault(key, after) is after:
                    following.append(after)
                elif after != first[key]:
                    compared += 1
                    futures.setdefault(key, future(first[key]))
                    assert future(after) == futures[key]
            level = following
    assert compared > 1000


@pytest.fixture
def no_base() -> Iterator[None]:
    with FAULTS["the base is not compared"][0]():
        yield


def test_the_command_says_how_many_states_it_has_seen(capsys):
    assert interleavings.main(["--depth", "2"]) == 0
    out, err = capsys.readouterr()
    assert "\n    2          189 " in out and "Held: " in out
    assert "depth 1: 19 states" in err


def test_the_command_shows_the_history_that_breaks_a_rule(no_base, capsys):
    assert interleavings.main(["--depth", "2"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN: " in out
    assert "start: there is " in out and " -> 201" in out


def test_the_command_says_if_it_cannot_run(capsys):
    with mock.patch.object(interleavings, "FileShelf", side_effect=OSError("the disk is full")):
        assert interleavings.main(["--on", "file"]) == 2
    assert capsys.readouterr().err == "interleavings: could not run: the disk is full\n"


def test_the_command_stops_in_time(capsys):
    assert interleavings.main(["--seconds", "0.5"]) == 0
    assert "(in part: the time was over)" in capsys.readouterr().out


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as ended:
        interleavings.main(["--help"])
    assert ended.value.code == 0 and "No resurrection." in capsys.readouterr().out


# In each of these histories, the last step stored a version before, and must not.
HISTORIES = {
    "a refused upload acts in the last second of its life": [
        "A: sends storeBackup(key 0, content 2 made from 1) -> 201",
        "A: sends storeBackup(key 0, content 0 made from 2) -> 429 rate_limited",
        "clock: 600 seconds pass",
        "stranger: delivers the head of storeBackup(key 0, content 0 made from 2)",
        "clock: 300 seconds pass",
        "stranger: delivers the end of storeBackup(key 0, content 0 made from 2)",
    ],
    "an upload that was acknowledged as a retry acts when its base is the latest again": [
        "A: sends storeBackup(key 0, content 2 made from 1), which is kept back",
        "stranger: delivers storeBackup(key 0, content 2 made from 1) -> 201",
        "clock: 300 seconds pass",
        "A: repeats storeBackup(key 0, content 2 made from 1) -> 200",
        "A: stores an older version again: storeBackup(key 0, content 1 made from 2) -> 201",
        "stranger: delivers storeBackup(key 0, content 2 made from 1)",
    ],
}


@pytest.mark.parametrize("history", HISTORIES)
def test_no_replay_takes_effect_even_in_these_histories(history):
    *steps, last = HISTORIES[history]
    with life_on("memory") as life:
        _, state = life.starts()
        for text in steps:
            state, broken = next((each.state, each.broken) for each in life.steps(state) if str(each.step) == text)
            assert broken is None
        ends = [each for each in life.steps(state) if str(each.step).startswith(last)]
        assert ends and [(str(each.step), each.broken) for each in ends if each.broken] == []
