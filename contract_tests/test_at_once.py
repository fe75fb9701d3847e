"""Two things at once on one account. An order of the requests has to explain all answers, and what is stored then.

The server waits at each read and write of the first request, one after the other, while the second is carried out. So a
race is met each time. A server that does not wait gets both at the same moment, a few times.
"""

import itertools
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from secrets import token_bytes, token_hex
from typing import Any

import pytest

from clients.python.backup_client import backup_bytes
from contract_tests.generated.exchanges import OPERATIONS, Exchange
from contract_tests.generated.model import Settings
from contract_tests.generated.witness import Witness
from contract_tests.target.calls import at_once, eventually, outcome, sha256
from contract_tests.target.process import ServerProcess

FROZEN = 1_795_510_800  # 2026-11-24T09:00:00Z
MANY = 100_000
LIMITS = {
    "BACKUPS_PER_HOUR": MANY,
    "BACKUPS_PER_DAY": MANY,
    "KEY_CHANGES_PER_HOUR": MANY,
    "KEY_CHANGES_PER_DAY": MANY,
    "REGISTRATIONS_PER_HOUR": MANY,
    "FAILED_CREDENTIALS_PER_5_MINUTES": MANY,
    "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY": MANY,
}
SETTINGS = Settings(*[MANY] * 7, keep=(2, 0, 0, 0))
FIRST, BLOCKED = 1.0, 0.1  # seconds; a request that takes longer waits for the other one
LONGEST = 2.0  # seconds; on a busy machine, too, no server has to answer 503 because another request takes too long
MOST = 16  # points of one request; what a server does after so many of them is cleaning up
SMALL, LARGE = 300, 300_000  # bytes


@pytest.fixture(scope="module")
def server(start_shared_server) -> ServerProcess:
    """It keeps two versions, so that an upload soon drops one."""
    return start_shared_server(frozen=FROZEN, pauses=True, KEEP_VERSIONS="2,0,0,0", **LIMITS)


@dataclass
class User:
    """A user with two versions, or one who has not registered, and the calls that the user's devices make."""

    witness: Witness
    user_id: str = field(default_factory=lambda: token_hex(32))
    keys: list[str] = field(default_factory=lambda: [token_hex(32) for _ in range(3)])
    blobs: list[bytes] = field(default_factory=lambda: [token_bytes(SMALL) for _ in range(2)])
    new: list[bytes] = field(default_factory=lambda: [token_bytes(SMALL), token_bytes(SMALL), token_bytes(LARGE)])

    def call(self, operation: str, key: int = 0, **arguments: Any) -> Exchange:
        return self.witness.prepare(operation, self.user_id, self.keys[key], **arguments)

    def store(self, blob: int, base: int, key: int = 0) -> Exchange:
        """Store a new blob. `base` is the number of the blob that is the base, of all."""
        return self.call("storeBackup", key, blob=self.new[blob], base=sha256([*self.blobs, *self.new][base]))

    def calls(self, name: str) -> list[Exchange]:
        """Return the calls that a name means. The second is made when the first has its answer."""
        latest = sha256(self.blobs[-1])
        match name:
            case "register":
                return [self.call("registerUser")]
            case "register with another key":
                return [self.call("registerUser", 1)]
            case "register and store":
                return [self.call("registerUser"), self.call("storeBackup", blob=self.new[1])]
            case "store":
                return [self.store(0, 1)]
            case "list and store":  # made from what was there, and then from what "store" has stored
                return [self.call("listBackupVersions"), self.store(1, 1), self.store(1, 2)]
            case "store a large one":
                return [self.store(2, 1)]
            case "store the next":
                return [self.store(1, 2)]
            case "store two":
                return [self.store(0, 1), self.store(1, 2)]
            case "store the latest":
                return [self.call("storeBackup", blob=self.blobs[-1])]
            case "change the key":
                return [self.call("changeStorageKey", new_key=self.keys[1], blob=self.new[1], base=latest)]
            case "change it to another":
                return [self.call("changeStorageKey", new_key=self.keys[2], blob=self.new[0], base=latest)]
            case "delete":
                return [self.call("deleteUser")]
            case "fetch":
                return [self.call("fetchBackup")]
            case "fetch the first":
                return [self.call("fetchBackupVersion", version=1)]
            case "list":
                return [self.call("listBackupVersions")]
        raise AssertionError(name)

    def begin(self, *, is_registered: bool) -> None:
        if is_registered:
            self.witness.do(self.call("registerUser"))
            for number, blob in enumerate(self.blobs):
                base = sha256(self.blobs[number - 1]) if number else None
                self.witness.do(self.call("storeBackup", blob=blob, base=base))

    def look(self) -> None:
        self.witness.look(self.user_id, self.keys)
        self.witness.do(self.call("registerUser"))


WRITES = ("store two", "change it to another", "delete")
READS = ("fetch", "fetch the first", "list")
LATER = ("list and store", "change it to another", "delete")
# The first request, and what comes while the server works on it.
PAIRS = {
    **dict.fromkeys(READS, WRITES),
    **dict.fromkeys(("store", "store a large one", "store the latest", "change the key", "delete"), LATER),
    "register": ("register", "register with another key", "register and store"),
}


class Pair:
    """Two requests of new users. The second comes when the first is at some point of its work.

    `patience` is how long the second may take, in seconds, until it is clear that it waits for the first.
    """

    def __init__(self, witness: Witness, first: str, second: str) -> None:
        self.witness, self.first, self.second, self.patience = witness, first, second, FIRST

    def begin(self) -> tuple[User, Exchange, list[Exchange]]:
        user = User(self.witness)
        user.begin(is_registered=self.first != "register")
        (first,) = user.calls(self.first)
        return user, first, user.calls(self.second)

    def meet(self, server: ServerProcess, point: int) -> bool:
        """Make the first request, and the second when the first is at its n-th point.

        Return whether the first got so far. If it did not, nobody made the second.
        """
        user, first, second = self.begin()

        def send_the_second() -> None:
            for exchange in second:
                self.witness.send(exchange)

        server.pause_at(point)
        with ThreadPoolExecutor(2) as pool:
            try:
                begun = pool.submit(self.witness.send, first)
                assert eventually(lambda: server.is_waiting() or begun.done(), 60, pause=0.001)
                if has_met := not begun.done():
                    started = time.monotonic()
                    is_blocked = bool(wait([pool.submit(send_the_second)], self.patience).not_done)
                    if point == 1:  # the busier the machine is, the more time it takes
                        took = 0 if is_blocked else time.monotonic() - started
                        self.patience = min(max(BLOCKED, 5 * took), LONGEST)
            finally:
                server.go_on()
        self.witness.settle(first, *(second if has_met else []))
        user.look()
        return has_met

    def meet_by_chance(self) -> None:
        """Make both requests at the same moment."""
        user, first, second = self.begin()
        self.witness.do(first, *second[-1:])
        user.look()


@pytest.mark.requirement("isolation.order", "credentials.commit", "base.race", "key.both", "backup.bytes")
@pytest.mark.parametrize(("first", "second"), [(first, second) for first in PAIRS for second in PAIRS[first]])
def test_each_pair(server, first, second):
    pair = Pair(Witness(server, SETTINGS), first, second)
    count = next(n for n in range(1, MOST + 2) if n > MOST or not pair.meet(server, n))
    if count == 1:  # the server does not wait
        for _ in range(5):
            pair.meet_by_chance()


@pytest.fixture
def by_chance(target) -> Witness:
    """A witness of any server. It has to keep at least four versions, and has some limits."""
    target.skip_without(*OPERATIONS)
    client = target.client()
    client.register_user()
    policies = [
        client.store_backup(b"a probe").headers["RateLimit-Policy"],
        client.change_storage_key(token_hex(32), b"another", sha256(b"a probe")).headers["RateLimit-Policy"],
    ]
    quotas = [int(quota) for policy in policies for quota in re.findall("q=([0-9]+)", policy)]
    return Witness(target, Settings(*quotas, *[MANY] * 3, keep=(MANY, 0, 0, 0)))


@pytest.mark.requirement("isolation.order", "credentials.commit", "base.race", "key.both", "backup.bytes")
@pytest.mark.parametrize("first", PAIRS)
def test_pairs_on_any_server(by_chance, first):
    for second in PAIRS[first]:
        Pair(by_chance, first, second).meet_by_chance()


# ---- More than two -----------------------------------------------------------------------------------------


@pytest.fixture
def slow(server) -> Iterator[ServerProcess]:
    """Each read and write of this server takes up to some milliseconds longer."""
    server.fault = "slow"
    yield server
    server.fault = None


STEPS = ("fetch", "list", "store", "store a large one", "store the next", "store the latest", "fetch the first")
LAST_STEPS = ("change the key", "change it to another", "delete", "register")


@pytest.mark.requirement("isolation.order", "credentials.commit", "base.race")
@pytest.mark.parametrize("seed", range(6))
def test_four_devices(slow, seed):
    """Each device makes one request after the other. The order that explains all has to be that of each device, too."""
    chance = random.Random(seed)
    witness = Witness(slow, SETTINGS)
    user = User(witness)
    user.begin(is_registered=True)
    devices = [
        [user.calls(name)[0] for name in [*chance.choices(STEPS, k=2), *chance.choices(STEPS + LAST_STEPS, k=1)]]
        for _ in range(4)
    ]

    def work(exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            witness.send(exchange)

    at_once([partial(work, exchanges) for exchanges in devices])
    witness.settle(*itertools.chain(*devices))
    user.look()


@pytest.mark.requirement("isolation.order", "isolation.write", "backup.bytes", "isolation.block")
def test_many_small_accounts_beside_a_large_one(slow):
    """Each gets its own receipts and its own bytes. All small ones store as many bytes."""

    def live(size: int, count: int) -> None:
        user = slow.client()
        assert outcome(user.register_user()) == "201"
        base = None
        for number in range(1, count + 1):
            blob = token_bytes(size)
            stored = user.store_backup(blob, base)
            assert (outcome(stored), stored.json()["version"], stored.json()["sha256"]) == ("201", number, sha256(blob))
            fetched = user.fetch_backup()
            assert (fetched.json()["version"], backup_bytes(fetched)) == (number, blob)
            assert fetched.headers["ETag"] == f'"{number}-{sha256(blob)}"'
            assert user.list_backup_versions().json()["versions"][0] == stored.json()
            base = sha256(blob)
        assert outcome(user.delete_user()) == "204"
        assert outcome(user.fetch_backup()) == "401 credentials_invalid"

    at_once([partial(live, 5 * 2**20, 2), *[partial(live, SMALL, 4)] * 12, *[partial(live, 70_000, 3)] * 3])
