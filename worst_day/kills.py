"""Kill the server again and again while it stores: `python -m worst_day.kills`.

Some phones register, store, change their key and delete, one request after the other. At a random moment the server is
killed with SIGKILL, now and then also while it starts. A ledger beside it has what each answer acknowledged. After each
start, and for every account at the end, what the server has is compared with the ledger, byte for byte. A request whose
answer was cut off may have happened or not, and nothing between.

exit codes: 0 nothing was lost, 1 something was
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.honest import connect, exchange
from bench.process import ROOT, Address, Measured, new_secret, server_environ
from bench.wire import AnswerHead, Prepared, Signer, User, upload
from worst_day.progress import Progress, counted

COMMAND = (sys.executable, str(ROOT / "backup_server.py"))
KEEP = 4  # versions of an account: the default keeps so many of one day
UPLOADS = 40  # of one account: its record stays as small as a real one
BLOB_BYTES = 3000
KILLED_WHILE_STARTING = 0.1  # of all starts
PATIENCE = 30  # seconds


@dataclass(frozen=True)
class Account:
    """What a server knows of an account: its storage key, and the SHA-256 of each kept version, oldest first."""

    user: User
    versions: tuple[str, ...] = ()


@dataclass
class Ledger:
    """What was acknowledged, and what is not certain. `lost` has a line for each contradiction."""

    accounts: dict[str, Account] = field(default_factory=dict)  # by userId
    deleted: list[User] = field(default_factory=list)
    acknowledged: Counter[str] = field(default_factory=Counter)
    cut_off: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # by 503 or 507
    compared: int = 0  # versions, byte for byte
    lost: list[str] = field(default_factory=list)


class Phone:
    """Lives until the server is killed, and looks after its start what became of its last request."""

    def __init__(self, ledger: Ledger, secret: str, seed: int) -> None:
        self._ledger, self._signer, self._random = ledger, Signer(secret), random.Random(seed)
        self._account: Account | None = None  # None: the next request registers a new one
        self._uploads = 0
        self._asked: tuple[str, User, Account | None] | None = None  # a request without an answer, and what it leads to

    def live(self, address: Address, is_over: Callable[[], bool] = lambda: False) -> None:
        """Send one request after the other, until it is over, or the connection breaks."""
        if self._asked:
            self._ledger.cut_off[self._asked[0]] += 1
        with contextlib.suppress(OSError, ValueError), connect(address, "127.0.0.1", PATIENCE) as connection:
            self.settle(Reader(self._ledger, self._signer, address))
            while not is_over():
                name, request, account, after = self._next()
                self._asked = name, account.user, after
                answer, body = exchange(connection, request, PATIENCE)
                if answer.status in (503, 507):
                    self._ledger.refused[f"{name} {answer.status}"] += 1
                    self.settle(Reader(self._ledger, self._signer, address))
                    time.sleep(0.01)
                    continue
                if answer.status not in request.right:
                    self._ledger.lost.append(f"{name}: {answer.status} {body[:200].decode()}")
                    self._account, self._asked = None, None
                    continue
                self._know(name, account.user, after)

    def _next(self) -> tuple[str, Prepared, Account, Account | None]:
        """Return a request: its name, itself, the account before, and the account after it."""
        account, chance = self._account, self._random.random()
        if account is None:
            account, self._uploads = Account(User.new()), 0
            return "registerUser", self._signer.register(account.user), account, account
        if self._uploads >= UPLOADS or chance < 0.01:
            request = self._signer.prepare(account.user, "DELETE", "/api/user", b"", 204)
            if chance < 0.5:
                return "deleteUser", request, account, None
            self._account = None  # it stays as it is, for the comparison at the end
            return self._next()
        self._uploads += 1
        blob = self._random.randbytes(BLOB_BYTES)
        body = upload(blob, account.versions[-1] if account.versions else None)
        after = replace(account, versions=(*account.versions, hashlib.sha256(blob).hexdigest())[-KEEP:])
        if chance > 0.95:
            after = replace(after, user=User(account.user.user_id, self._random.randbytes(32).hex()))
            body = json.dumps(json.loads(body) | {"storageKey": after.user.storage_key}).encode()
            request = self._signer.prepare(account.user, "PUT", "/api/user/storage-key", body)
            return "changeStorageKey", request, account, after
        return "storeBackup", self._signer.prepare(account.user, "POST", "/api/backup", body, 201), account, after

    def _know(self, name: str, user: User, after: Account | None) -> None:
        self._ledger.acknowledged[name] += 1
        self._keep(user, after)

    def _keep(self, user: User, account: Account | None) -> None:
        """Write into the ledger what the account is now, or that it is deleted."""
        if account:
            self._ledger.accounts[user.user_id] = account
        else:
            del self._ledger.accounts[user.user_id]
            self._ledger.deleted.append(user)
        self._account, self._asked = account, None

    def settle(self, reader: "Reader") -> None:
        """Compare the account with the ledger. Find out what became of the request that was cut off."""
        before = self._account
        if self._asked is None:
            if before:
                self._ledger.lost += [] if reader.has(before) else ["an account is not as it was acknowledged"]
            return
        name, user, after = self._asked
        if after and reader.has(after):
            self._keep(user, after)
        elif before and reader.has(before):
            pass  # it did not happen
        elif before and after is None and not reader.exists(user):
            self._keep(user, None)
        elif before or reader.exists(user):
            self._ledger.lost.append(f"{name} was cut off, and the account is neither as before nor as after it")
            self._account = None
        self._asked = None


class Reader:
    """Compares what the server has with what it should have."""

    def __init__(self, ledger: Ledger, signer: Signer, address: Address) -> None:
        self._ledger, self._signer, self._address = ledger, signer, address

    def has(self, account: Account) -> bool:
        """Return whether the account has just these versions. Each is compared byte for byte, by its SHA-256."""
        answer, body = self._ask(self._signer.list(account.user))
        if answer.status != 200:
            return False
        listed = json.loads(body)["versions"]
        if [each["sha256"] for each in reversed(listed)] != list(account.versions):
            return False
        for each in listed:
            path = f"/api/backup/versions/{each['version']}"
            answer, body = self._ask(self._signer.prepare(account.user, "GET", path))
            if answer.status != 200:
                return False
            data = base64.b64decode(json.loads(body)["data"])
            if hashlib.sha256(data).hexdigest() != each["sha256"]:
                return False
            self._ledger.compared += 1
        return True

    def exists(self, user: User) -> bool:
        answer, _ = self._ask(self._signer.list(user))
        return answer.status != 401

    def _ask(self, request: Prepared) -> tuple[AnswerHead, bytes]:
        with connect(self._address, "127.0.0.1", PATIENCE) as connection:
            return exchange(connection, request, PATIENCE)


@dataclass
class Outcome:
    """What was done, and what the ledger says."""

    ledger: Ledger
    kills: int = 0
    kills_while_starting: int = 0
    seconds: float = 0.0


def kill_again_and_again(
    directory: Path,
    kills: int,
    acknowledged: int,
    seconds: float,
    phones: int,
    seed: int,
    say: Callable[[str], None],
    command: Sequence[str] = COMMAND,
) -> Outcome:
    """Kill the server at least so many times, and until so much is acknowledged, but for so many seconds at most.

    `command` starts the server.
    """
    secret, started, chance = new_secret(), time.monotonic(), random.Random(seed)
    outcome = Outcome(Ledger())
    ledger = outcome.ledger
    every = [Phone(ledger, secret, chance.getrandbits(32)) for _ in range(phones)]
    environ = server_environ(directory, secret)
    with ThreadPoolExecutor(phones) as pool:
        while outcome.kills < kills or ledger.acknowledged.total() < acknowledged:
            outcome.seconds = time.monotonic() - started
            if outcome.seconds > seconds:
                break
            say(
                f"{outcome.seconds:.0f} s: {outcome.kills} kills, {ledger.acknowledged.total():,} acknowledged, "
                f"{len(ledger.lost)} lost"
            )
            outcome.kills += 1
            if chance.random() < KILLED_WHILE_STARTING:
                kill_while_starting(command, environ, chance.uniform(0, 0.4))
                outcome.kills_while_starting += 1
                continue
            process = Measured(list(command), environ)
            lives = [pool.submit(phone.live, process.address) for phone in every]
            time.sleep(chance.uniform(0.05, 2 * acknowledged / kills / 250))
            process.kill()
            for life in lives:
                life.result()
    process = Measured(list(command), environ)
    reader = Reader(ledger, Signer(secret), process.address)
    for phone in every:
        phone.settle(reader)
    for number, account in enumerate(ledger.accounts.values()):
        say(f"{number} of {len(ledger.accounts)} accounts compared at the end")
        if not reader.has(account):
            ledger.lost.append("at the end, an account is not as it was acknowledged")
    ledger.lost += ["a deleted account is back" for user in ledger.deleted if reader.exists(user)]
    process.stop()
    outcome.seconds = time.monotonic() - started
    return outcome


def kill_while_starting(command: Sequence[str], environ: dict[str, str], after: float) -> None:
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with subprocess.Popen(
        command,
        env={**inherited, **environ},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500, help="at least so many (%(default)s)")
    parser.add_argument("--acknowledged", type=int, default=100_000, help="at least so many writes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1800, help="then it ends in any case (%(default)s)")
    parser.add_argument("--phones", type=int, default=8, help="how many write at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="repeat a run")
    parser.add_argument("--directory", type=Path, default=ROOT / "data", help="where its files are (%(default)s)")
    arguments = parser.parse_args()
    arguments.directory.mkdir(exist_ok=True)
    print(f"seed {arguments.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        outcome = kill_again_and_again(
            Path(folder),
            arguments.kills,
            arguments.acknowledged,
            arguments.seconds,
            arguments.phones,
            arguments.seed,
            Progress(),
        )
    print_outcome(outcome)
    return 1 if outcome.ledger.lost else 0


def print_outcome(outcome: Outcome) -> None:
    """Print what was done, and what was lost."""
    ledger = outcome.ledger

    print(f"kills: {outcome.kills}, of these {outcome.kills_while_starting} while starting")
    print(f"acknowledged writes: {counted(ledger.acknowledged)}")
    print(f"cut off: {counted(ledger.cut_off)}")
    print(f"compared, byte for byte: {ledger.compared:,} versions")
    print(f"lost: {len(ledger.lost)}")
    for line in ledger.lost[:20]:
        print(f"  {line}")
    print(f"{outcome.seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
