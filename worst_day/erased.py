"""Search every file for what was deleted: `python -m worst_day.erased`.

Users store backups, change their key and are deleted. Others, who live, drop old versions. In between, the server is
killed now and then. 10 minutes after a deletion, no byte of the account's backups or of the SHA-256 of its storage keys
may be in any file beside the database, and after 901 seconds no byte of its userId. 7 days after a version was dropped,
no byte of it may be there. The clock is moved, nobody waits that long.

exit codes: 0 nothing was found, 1 something was
"""

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.python.backup_client import BackupClient
from contract_tests.target.openapi import LIMITS
from contract_tests.target.process import COMMAND, ServerProcess
from worst_day.progress import Progress

SETTINGS: dict[str, Any] = {
    name: "1000000"
    for name in (
        *("BACKUPS_PER_HOUR", "BACKUPS_PER_DAY", "KEY_CHANGES_PER_HOUR", "KEY_CHANGES_PER_DAY"),
        *("REGISTRATIONS_PER_HOUR", "FAILED_CREDENTIALS_PER_5_MINUTES", "FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY"),
    )
} | {"KEEP_VERSIONS": "2,0,0,0", "DEBUG": "0"}
MINUTES_AFTER_DELETION = 10
DAYS_AFTER_DROP = 7
PIECE = 24  # bytes; so much of a backup is looked for, at its beginning, in its middle and at its end
PATIENCE = 15  # seconds that the server has for its housekeeping, after the clock was moved


@dataclass
class Outcome:
    """What was done, and what was found of it. `found` has a line for each piece that is still there."""

    done: Counter[str] = field(default_factory=Counter)
    searched: int = 0  # pieces
    bytes: int = 0  # of the files that were searched
    found: list[str] = field(default_factory=list)
    seconds: float = 0.0


def pieces(blob: bytes) -> list[bytes]:
    middle = len(blob) // 2
    return [blob[:PIECE], blob[middle : middle + PIECE], blob[-PIECE:]]


def key_hash(key: str) -> list[bytes]:
    digest = hashlib.sha256(key.encode())
    return [digest.hexdigest().encode(), digest.digest()]


class Search:
    """Looks for pieces in every file of a folder."""

    def __init__(self, outcome: Outcome, folder: Path) -> None:
        self._outcome, self._folder = outcome, folder

    def until_gone(self, what: str, gone: Sequence[bytes]) -> None:
        """Wait until none of these pieces is in any file. Note those that are there when the time is over.

        If something was found before, do not wait: it is clear.
        """
        if self._outcome.found:
            return
        deadline = time.monotonic() + PATIENCE
        self._outcome.searched += len(gone)
        while left := self._look(gone):
            if time.monotonic() > deadline:
                self._outcome.found += [f"{what}: {name}" for name in sorted(left)]
                return
            time.sleep(0.3)

    def is_there(self, piece: bytes) -> bool:
        return bool(self._look([piece]))

    def _look(self, gone: Sequence[bytes]) -> set[str]:
        found = set()
        self._outcome.bytes = 0
        for path in self._folder.iterdir():
            if path.is_file():
                content = path.read_bytes()
                self._outcome.bytes += len(content)
                found |= {f"a piece of {len(piece)} bytes in {path.name}" for piece in gone if piece in content}
        return found


def live(
    directory: Path, rounds: int, seed: int, say: Callable[[str], None], command: Sequence[str] = COMMAND
) -> Outcome:
    """Delete and drop so many times, and search. `command` starts the server."""
    outcome, chance, started = Outcome(), random.Random(seed), time.monotonic()
    files = directory / "files"
    files.mkdir()
    server = ServerProcess(
        directory, command=list(command), frozen=1_795_510_800, DATABASE_PATH=files / "backup.db", **SETTINGS
    )
    search = Search(outcome, files)
    with server:
        for number in range(rounds):
            say(f"{number} of {rounds} rounds, {outcome.searched} pieces, {len(outcome.found)} found")
            delete(server, outcome, chance, search)
            drop(server, outcome, chance, search)
    outcome.seconds = time.monotonic() - started
    return outcome


def delete(server: ServerProcess, outcome: Outcome, chance: random.Random, search: Search) -> None:
    """Make an account, delete it, and search for it."""
    user = server.client()
    user_id, key = user.credentials
    gone = key_hash(key)
    assert user.register_user().status_code == 201
    user, more = store(server, user, chance)
    gone += more
    assert search.is_there(gone[-1]), "what is stored can be found"
    assert user.delete_user().status_code == 204
    outcome.done["deletions"] += 1
    if chance.random() < 0.5:
        kill(server, outcome, chance)
    server.move_clock(MINUTES_AFTER_DELETION * 60)
    search.until_gone("10 minutes after a deletion", gone)
    server.move_clock(LIMITS["deletedUserSeconds"] - MINUTES_AFTER_DELETION * 60)
    if chance.random() < 0.3:
        kill(server, outcome, chance)
    search.until_gone("901 seconds after a deletion", [user_id.encode(), bytes.fromhex(user_id)])


def store(server: ServerProcess, user: BackupClient, chance: random.Random) -> tuple[BackupClient, list[bytes]]:
    """Store some versions and change the key. Return the client with the new key, and the pieces of all that."""
    base, gone = None, []
    for number in range(chance.randrange(1, 6)):
        blob = os.urandom(chance.choice([60, 3000, 300_000]))
        if number == 2:
            key = os.urandom(32).hex()
            assert user.change_storage_key(key, blob, base).status_code == 200
            user = server.client((user.credentials[0], key))
            gone += key_hash(key)
        else:
            assert user.store_backup(blob, base).status_code == 201
        base = hashlib.sha256(blob).hexdigest()
        gone += pieces(blob)
    return user, gone


def drop(server: ServerProcess, outcome: Outcome, chance: random.Random, search: Search) -> None:
    """Let an account that lives drop versions, and search for them a week later."""
    user, base, blobs = server.client(), None, []
    assert user.register_user().status_code == 201
    for _ in range(5):
        blobs.append(os.urandom(chance.choice([3000, 100_000])))
        assert user.store_backup(blobs[-1], base).status_code == 201
        base = hashlib.sha256(blobs[-1]).hexdigest()
    outcome.done["dropped versions"] += 3
    server.move_clock(DAYS_AFTER_DROP * 86_400)
    if chance.random() < 0.5:
        kill(server, outcome, chance)
    search.until_gone("7 days after a drop", [piece for blob in blobs[:3] for piece in pieces(blob)])
    for version in (4, 5):
        answer = server.client(user.credentials).fetch_backup_version(version)
        assert answer.status_code == 200, "what is kept is still there"


def kill(server: ServerProcess, outcome: Outcome, chance: random.Random) -> None:
    """Kill the server at a random moment, and start it again."""
    time.sleep(chance.choice([0, 0.01, 0.1]))
    server.kill()
    server.start()
    outcome.done["kills"] += 1


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day.erased", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40, help="how often to delete and drop (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="repeat a run")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        outcome = live(Path(folder), arguments.rounds, arguments.seed, Progress())
    print(", ".join(f"{name}: {count}" for name, count in outcome.done.items()))
    print(f"pieces searched: {outcome.searched:,}, in files of {outcome.bytes:,} bytes at the end")
    print(f"bytes found of what was deleted or dropped: {len(outcome.found)}")
    for line in outcome.found[:20]:
        print(f"  {line}")
    print(f"{outcome.seconds:.0f} s")
    return 1 if outcome.found else 0


if __name__ == "__main__":
    sys.exit(main())
