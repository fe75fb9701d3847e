"""The watch over a store's health. What a client sees of it is tested in test_store.py and in the contract tests."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from contract_tests.target.calls import eventually
from server import bounds, health
from server.accounts import StorageUnavailable
from server.health import Watch
from server_tests.memory_store import MemoryStore


class SickStore(MemoryStore):
    """A store whose check fails or waits if a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()

    def check(self) -> None:
        assert self.goes_on.wait(30)
        if self.failure:
            raise self.failure


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SickStore]:
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(bounds, "HEALTH_SECONDS", 0.5)
    store = SickStore()
    yield store
    store.goes_on.set()


def is_well(watch: Watch) -> bool:
    try:
        watch.check()
    except StorageUnavailable:
        return False
    return True


@pytest.mark.parametrize("failure", [StorageUnavailable("for the test"), ZeroDivisionError()])
def test_a_store_that_fails_and_recovers(store, failure):
    """Even an error that nobody foresaw does not end the watch."""
    with contextlib.closing(Watch(store)) as watch:
        assert is_well(watch)  # the first look has ended
        store.failure = failure
        assert eventually(lambda: not is_well(watch))
        store.failure = None
        assert eventually(lambda: is_well(watch))


def test_a_look_that_does_not_end(store):
    with contextlib.closing(Watch(store)) as watch:
        store.goes_on.clear()
        assert eventually(lambda: not is_well(watch))
        store.goes_on.set()
        assert eventually(lambda: is_well(watch))


def test_a_store_that_stalls_from_the_start(store):
    """The server starts all the same, and stops."""
    store.goes_on.clear()
    started = time.monotonic()
    with contextlib.closing(Watch(store)) as watch:
        assert not is_well(watch)
    assert time.monotonic() - started < 5


def test_a_watch_that_is_closed_looks_no_more(store):
    watch = Watch(store)
    watch.close()
    assert not watch._thread.is_alive()
