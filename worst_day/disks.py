"""Let the disk be full, and let it fail, again and again, while phones store: `python -m worst_day.disks`.

The server's file is on a small file system in memory. In turn, that is filled to the last byte, or strace lets some
calls of the server fail with EIO or ENOSPC. Meanwhile, phones register, store, change their key and delete. A 503 or a
507 is a right answer then. What is acknowledged has to be there afterwards, byte for byte, what is refused must not be
half done, and as soon as the disk works, uploads have to work again.

exit codes: 0 the server held, 1 it did not, 2 not run: a file system cannot be mounted, or strace may not trace
"""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.honest import connect, exchange
from bench.process import Measured, new_secret, server_environ
from bench.siege import NotRun, small_file_system
from bench.wire import Signer, User, upload
from worst_day.kills import COMMAND, Ledger, Phone, Reader
from worst_day.progress import Progress, counted

DISK_BYTES = 96_000_000
FAULT_SECONDS = 0.7
RECOVERY_SECONDS = 20  # until an upload succeeds again
CALLS = ("pwrite64", "fdatasync", "ftruncate")
ERRORS = ("EIO", "ENOSPC")
BLOB_BYTES = 3000


@dataclass
class Outcome:
    """What was done to the disk, and what the ledger says."""

    ledger: Ledger = field(default_factory=Ledger)
    faults: Counter[str] = field(default_factory=Counter)  # phases, by their kind
    injected: int = 0  # calls that failed
    not_run: str = ""  # why no calls failed
    seconds: float = 0.0


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Fill the file system to the last byte."""
    path = directory / "filler"
    try:
        with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        yield
    finally:
        path.unlink()


@contextlib.contextmanager
def failing(pid: int, call: str, error: str, when: str, trace: Path) -> Iterator[None]:
    """Let some calls of a process fail. `when` is as in strace's `inject`. Raise NotRun."""
    if not shutil.which("strace"):
        raise NotRun("there is no strace")
    command = ["strace", "-qq", "-f", "-A", "-o", str(trace), "-p", str(pid), "-e", f"trace={call}"]
    inject = f"inject={call}:error={error}:when={when}"
    with subprocess.Popen([*command, "-e", inject], stderr=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(0.1)
            if process.poll() is not None and process.stderr:
                raise NotRun(f"strace may not trace: {process.stderr.read().strip()}")
            yield
        finally:
            process.terminate()


def break_again_and_again(
    parent: Path,
    phases: int,
    seed: int,
    phones: int,
    say: Callable[[str], None],
    command: Sequence[str] = COMMAND,
) -> Outcome:
    """Break the disk so many times. `command` starts the server. Raise NotRun if no small disk can be had."""
    outcome, chance, secret, started = Outcome(), random.Random(seed), new_secret(), time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))
        disk = stack.enter_context(small_file_system(folder, DISK_BYTES))
        process = Measured(list(command), server_environ(disk, secret))
        stack.callback(process.kill)
        pool = stack.enter_context(ThreadPoolExecutor(phones))
        every = [Phone(outcome.ledger, secret, chance.getrandbits(32)) for _ in range(phones)]
        over = False

        def live(phone: Phone) -> None:
            while not over and process.running():
                phone.live(process.address, lambda: over)

        lives = [pool.submit(live, phone) for phone in every]
        try:
            for number in range(phases):
                say(
                    f"{number} of {phases} faults, {outcome.ledger.acknowledged.total():,} acknowledged, "
                    f"{outcome.ledger.refused.total():,} refused, {len(outcome.ledger.lost)} lost"
                )
                break_once(outcome, chance, process, disk, folder / "trace")
                if problem := recovery(process, secret):
                    outcome.ledger.lost.append(problem)
        finally:
            over = True
            for life in lives:
                life.result()
        reader = Reader(outcome.ledger, Signer(secret), process.address)
        for phone in every:
            phone.settle(reader)
        for account in outcome.ledger.accounts.values():
            if not reader.has(account):
                outcome.ledger.lost.append("at the end, an account is not as it was acknowledged")
        process.stop()
        if process.exit_code() != 0:
            outcome.ledger.lost.append(f"the server ended with {process.exit_code()}")
    outcome.seconds = time.monotonic() - started
    return outcome


def break_once(outcome: Outcome, chance: random.Random, process: Measured, disk: Path, trace: Path) -> None:
    """Let the disk be full, or fail, for a moment."""
    if chance.random() < 0.4 or outcome.not_run:
        outcome.faults["full"] += 1
        with full(disk):
            time.sleep(FAULT_SECONDS)
        return
    call, error = chance.choice(CALLS), chance.choice(ERRORS)
    when = chance.choice(["1+", str(chance.randrange(1, 20)), f"{chance.randrange(1, 20)}+{chance.randrange(2, 9)}"])
    try:
        with failing(process.pid, call, error, when, trace):
            time.sleep(FAULT_SECONDS)
        outcome.faults[f"{call} {error}"] += 1
        outcome.injected += trace.read_text().count("(INJECTED)")
        trace.unlink()
    except NotRun as error_:
        outcome.not_run = str(error_)


def recovery(process: Measured, secret: str) -> str:
    """Wait until an upload succeeds. Return what is wrong if none does."""
    signer, deadline = Signer(secret), time.monotonic() + RECOVERY_SECONDS
    last = ""
    while time.monotonic() < deadline:
        user = User.new()
        try:
            with connect(process.address, "127.0.0.1", RECOVERY_SECONDS) as connection:
                for request in (
                    signer.register(user),
                    signer.prepare(user, "POST", "/api/backup", upload(os.urandom(BLOB_BYTES)), 201),
                    signer.prepare(user, "DELETE", "/api/user", b"", 204),
                ):
                    answer, _ = exchange(connection, request, RECOVERY_SECONDS)
                    if answer.status not in request.right:
                        last = f"{request.name}: {answer.status}"
                        break
                else:
                    return ""
        except OSError as error:
            last = str(error)
        time.sleep(0.2)
    return f"{RECOVERY_SECONDS} s after a fault, uploads do not work again: {last}"


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day.disks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200, help="how many times the disk breaks (%(default)s)")
    parser.add_argument("--phones", type=int, default=4, help="how many write at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="repeat a run")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = break_again_and_again(
                Path(folder), arguments.faults, arguments.seed, arguments.phones, Progress()
            )
        except NotRun as error:
            print(f"not run: {error}")
            return 2
    print_outcome(outcome)
    return 1 if outcome.ledger.lost else 0


def print_outcome(outcome: Outcome) -> None:
    """Print what was done, and what was lost."""
    ledger = outcome.ledger

    print(f"times the disk was broken: {counted(outcome.faults)}; calls that failed: {outcome.injected:,}")
    if outcome.not_run:
        print(f"not run: calls that fail: {outcome.not_run}")
    print(f"acknowledged writes: {counted(ledger.acknowledged)}")
    print(f"refused: {counted(ledger.refused)}")
    print(f"compared, byte for byte: {ledger.compared:,} versions")
    print(f"lost, half done, or refused for too long: {len(ledger.lost)}")
    for line in ledger.lost[:20]:
        print(f"  {line}")
    print(f"{outcome.seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
