"""Fill the volume for weeks: `python -m worst_day.space`.

An attacker who has the app's secret, and 50 addresses, registers accounts and stores the largest backups that are
taken, each simulated day as long as the server takes any, and then smaller ones. After seven days the first of these
accounts are no longer new. An honest account from before stores its daily backup, which becomes a little larger each
day, and everything that it gets has to be right. Then something else fills the rest of the volume for some days. In the
end the attacker's accounts are deleted, and the space has to come back.

With the default values, that takes five to ten minutes. Each run takes another course: what is refused depends on what
the server has just given back to the disk.

exit codes: 0 the honest account had its backup every day, and the space came back, 1 not
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.siege import NotRun, small_file_system
from clients.python.backup_client import BackupClient, backup_bytes
from contract_tests.target.calls import eventually
from contract_tests.target.openapi import MAX_DECODED_BYTES
from contract_tests.target.process import BEHIND_A_PROXY, ServerProcess
from server.accounts import ESTABLISHED_DAYS, Volume
from server.dbm_writer import RESERVE_BYTES
from server.space import GROWTH_MARK, is_below
from worst_day.progress import Progress

FROZEN = 1_795_510_800
DAY = 86_400
HONEST = "192.0.2.1"
HONEST_BYTES = 300_000
HONEST_GROWTH = 3_000  # bytes a day
STORES_A_DAY = 4  # of each of the attacker's accounts; the contract allows 5 an hour
LEAST_BYTES = 20_000  # what the attacker still cares to store
DAYS_BEFORE = 7  # of the honest account
FULL_DAYS = 10  # in the end, with the rest of the volume filled
FULL = 0.07  # what is free then, of the volume
ENOUGH_REFUSALS = 5  # in a row; then nothing of this size is taken any more on that day


@dataclass
class Outcome:
    """What the attacker got, and what the honest account got. `wrong` has a line for each thing that is not right."""

    volume: int = 0
    is_real: bool = False
    attacker: Counter[str] = field(default_factory=Counter)
    attacker_accounts: int = 0
    attacker_bytes: int = 0
    honest: Counter[str] = field(default_factory=Counter)
    least_free: int = 0
    days_below_the_mark: int = 0  # on which no account could grow
    free_before: int = 0
    free_after: int = 0
    wrong: list[str] = field(default_factory=list)


class Client:
    """A client at an address of its own."""

    def __init__(self, server: ServerProcess, address: str) -> None:
        self.client: BackupClient = server.client()
        self.client.session.headers[BEHIND_A_PROXY["header"]] = address
        self.base: str | None = None
        self.days = 0  # on which it has stored

    def store(self, size: int) -> str:
        blob = os.urandom(size)
        answer = self.client.store_backup(blob, self.base)
        if answer.status_code == 201:
            self.base = hashlib.sha256(blob).hexdigest()
        return str(answer.status_code)

    def bytes(self) -> int:
        """Return how many bytes its versions have."""
        return sum(each["size"] for each in self.client.list_backup_versions().json()["versions"])


@contextlib.contextmanager
def volume_of(folder: Path, size: int, is_real: bool) -> Iterator[Path]:
    """Give a folder on a volume of that size. If it is not real, the server only believes so."""
    if is_real:
        with small_file_system(folder, size) as path:
            yield path
    else:
        path = folder / "volume"
        path.mkdir()
        yield path


def attack(
    directory: Path, size: int, addresses: int, days: int, say: Callable[[str], None], is_real: bool = True
) -> Outcome:
    """Attack for so many simulated days, from so many addresses, on a volume of `size` bytes. Raise NotRun."""
    outcome = Outcome(volume=size, is_real=is_real)
    with volume_of(directory, size, is_real) as folder:
        server = ServerProcess(
            directory,
            frozen=FROZEN,
            volume=None if is_real else size,
            DATABASE_PATH=folder / "backup.db",
            DEBUG="0",
            **BEHIND_A_PROXY["settings"],
        )
        with server:
            honest = Client(server, HONEST)
            assert honest.client.register_user().status_code == 201
            for _ in range(DAYS_BEFORE):
                honest_day(server, honest, outcome)
            outcome.free_before = outcome.least_free = free(server)
            attackers: list[Client] = []
            for day in range(days):
                say(f"day {day + 1} of {days}: {len(attackers)} accounts, {free(server):,} bytes free")
                attack_for_a_day(server, attackers, addresses, outcome)
                left = free(server)
                outcome.least_free = min(outcome.least_free, left)
                outcome.days_below_the_mark += is_below(Volume(size, left), GROWTH_MARK)
                honest_day(server, honest, outcome)
            with filled(folder, server, size, is_real):
                for _ in range(FULL_DAYS):
                    outcome.days_below_the_mark += is_below(Volume(size, free(server)), GROWTH_MARK)
                    honest_day(server, honest, outcome)
            outcome.attacker_accounts = len(attackers)
            outcome.attacker_bytes = sum(each.bytes() for each in attackers)
            for number, each in enumerate(attackers):
                say(f"{number} of {len(attackers)} accounts deleted")
                if each.client.delete_user().status_code != 204:
                    outcome.wrong.append("an account could not be deleted")
            eventually(lambda: free(server) > 0.9 * outcome.free_before)
            outcome.free_after = free(server)
            if outcome.free_after < 0.9 * outcome.free_before:
                outcome.wrong.append("the space did not come back")
            honest_day(server, honest, outcome)
    return outcome


def free(server: ServerProcess) -> int:
    found: int = server.client().get_admin_stats(server.admin_key or "").json()["freeBytes"]
    return found


@contextlib.contextmanager
def filled(folder: Path, server: ServerProcess, size: int, is_real: bool) -> Iterator[None]:
    """Fill the rest of the volume, so that no account may grow.

    On a small one, this would leave less than the reserve, with which no version is stored at all.
    """

    def rest() -> int:
        return int(free(server) - FULL * size)

    does_fill = FULL * size > RESERVE_BYTES + MAX_DECODED_BYTES
    # What is free in the database file has to be given back to the disk first. That comes after the day's verification.
    if is_real and does_fill and not eventually(lambda: shutil.disk_usage(folder).free > rest() + RESERVE_BYTES, 600):
        raise TimeoutError("the file does not become smaller")
    filler = folder / "filler"
    with open(filler, "wb") as file:
        if rest() > 0 and does_fill:
            if is_real:
                os.posix_fallocate(file.fileno(), 0, rest())
            else:
                file.truncate(rest())
    yield
    filler.unlink()


def honest_day(server: ServerProcess, honest: Client, outcome: Outcome) -> None:
    """Store the daily backup, fetch it, and let the day pass."""
    status = honest.store(HONEST_BYTES + HONEST_GROWTH * outcome.honest.total() // 2)
    outcome.honest[f"stored {status}"] += 1
    answer = honest.client.fetch_backup()
    outcome.honest[f"fetched {answer.status_code}"] += 1
    if status != "201" or answer.status_code != 200:
        outcome.wrong.append(f"the daily backup got {status}, and its fetch {answer.status_code}")
    elif hashlib.sha256(backup_bytes(answer)).hexdigest() != honest.base:
        outcome.wrong.append("the daily backup is another one")
    server.move_clock(DAY)


def attack_for_a_day(server: ServerProcess, attackers: list[Client], addresses: int, outcome: Outcome) -> None:
    """Register from each address, and store with each account, until nothing more is taken."""
    for number in range(addresses):
        client = Client(server, f"198.51.100.{number}")
        registered = client.client.register_user().status_code
        outcome.attacker[f"registered {registered}"] += 1
        if registered == 201:
            attackers.append(client)
    size, refused = MAX_DECODED_BYTES, 0
    for client in random.Random(len(attackers)).sample(attackers, len(attackers)):
        has_stored = False
        # On other days than the first, and the one from which on it is no longer new, more would only replace its own.
        for _ in range(STORES_A_DAY if client.days % ESTABLISHED_DAYS == 0 else 1):
            if size < LEAST_BYTES:
                break
            status = client.store(size)
            outcome.attacker[f"stored {status}"] += 1
            has_stored |= status == "201"
            refused = 0 if status == "201" else refused + 1
            if refused == ENOUGH_REFUSALS:
                size, refused = size // 4, 0
        # So little keeps an account alive, and makes it older.
        client.days += has_stored or client.store(10) == "201"


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day.space", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="of the volume (%(default)s)")
    parser.add_argument("--addresses", type=int, default=50, help="of the attacker (%(default)s)")
    parser.add_argument("--days", type=int, default=14, help="simulated (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = arguments.bytes, arguments.addresses, arguments.days
        try:
            outcome = attack(made(folder, "real"), *sizes, Progress())
        except NotRun:
            outcome = attack(made(folder, "pretended"), *sizes, Progress(), is_real=False)
    print_outcome(outcome)
    return 1 if outcome.wrong else 0


def made(folder: str, name: str) -> Path:
    """Make a folder in a folder."""
    path = Path(folder, name)
    path.mkdir()
    return path


def print_outcome(outcome: Outcome) -> None:
    """Print what each of the two got."""

    def counted(counts: Counter[str]) -> str:
        return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))

    rows = {
        "volume": f"{outcome.volume:,} bytes, {'real' if outcome.is_real else 'pretended'}",
        "the attacker's requests": counted(outcome.attacker),
        "the attacker's accounts": f"{outcome.attacker_accounts:,}, with {outcome.attacker_bytes:,} bytes in the end",
        "the honest account": counted(outcome.honest),
        "free before": f"{outcome.free_before:,}",
        "free at least": f"{outcome.least_free:,}",
        "days on which nobody could grow": f"{outcome.days_below_the_mark}",
        "free after the deletions": f"{outcome.free_after:,}",
        "wrong": f"{len(outcome.wrong)}",
    }
    for name, value in rows.items():
        print(f"{name:<32} {value}")
    for line in outcome.wrong[:20]:
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
