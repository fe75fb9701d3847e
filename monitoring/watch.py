"""Look at a deployed server from outside, as a scheduled job of a CI does: `tox run -e watch -- --base-url URL`.

It asks whether the server is healthy, whether its clock is right, what the statistics say, and how far the copy off the
machine is behind. Then it does what a user does on the worst day: with a username and a password alone, it derives the
keys, fetches its test account's backup and decrypts it. A run stores a new backup if the last one is older than 20
hours. So a newest one that is older than 50 hours, or older than what the last run has seen (--state), says that an old
copy was put in the place of the store. The account is registered by the first run alone, which has --first: later, an
account or a backup that is missing is what the watch is there to find.

environment variables:
  APP_SECRET_KEY      the app's secret
  ADMIN_SECRET_KEY    the key of the statistics; without it, nobody looks at them, nor at the copy
  WATCH_PASSWORD      the password of the test account: a long random text, kept with the other secrets
  WATCH_USERNAME      its username (watch)
  SSL_CERT_FILE, REQUESTS_CA_BUNDLE
                      the certificates to trust; one of them is enough, and --ca-bundle has the same effect

exit codes: 0 all is well, 1 something is wrong and the lines say what, 2 it could not look, 130 it was interrupted
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from clients.python.backup_client import (
    AppOutdatedError,
    BackupClient,
    DecryptionError,
    Keys,
    ProblemError,
    Seen,
    app_secrets,
    backup_bytes,
    checked,
    decrypt,
    derive_keys,
    encrypt,
    next_sequence,
)
from contract_tests.target import network

CLOCK_SECONDS = 60  # an app's signature may be 300 off, and the app's clock is wrong, too
STORE_AFTER_SECONDS = 20 * 3600
OLD_SECONDS = 50 * 3600  # two days: a run may fail, and the next one is half a day later
LEAST_FREE = 0.2  # of what the database and the free space have together
COPY_SECONDS = 300  # how far the copy may be behind; /health says so then, too
SECONDS = 30  # for each request
NOBODY = "0" * 64, "0" * 64

MISSING = {  # by the code of the problem
    "credentials_invalid": "the server does not know the test account, or its password (the first run needs --first)",
    "no_backup": "the test account has no backup any more",
}
OLD_COPY = "an old copy seems to be in the place of the store"


class WrongError(Exception):
    """Something is not as it should be. The message says what."""


class CannotLookError(Exception):
    """A setting makes no sense. The message says which one."""


Check = Callable[[], str]


def main(argv: list[str] | None = None) -> int:
    """Make all checks, and print a line for each. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-url", metavar="URL", required=True, help="the server, such as https://backup.example")
    parser.add_argument("--first", action="store_true", help="register the test account, and store its first backup")
    parser.add_argument("--state", metavar="FILE", type=Path, help="keep the newest version that was seen in this file")
    parser.add_argument("--no-copy", action="store_true", help="there is to be no copy off the machine")
    parser.add_argument("--ca-bundle", metavar="FILE", help="trust the certificates in this PEM file")
    arguments = parser.parse_args(argv)
    try:
        network.set_up(arguments.ca_bundle)
        watched = Watched(arguments)
        results = [passes(name, check) for name, check in watched.checks()]
    except (CannotLookError, pytest.UsageError) as error:
        print(f"watch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("watch: it was interrupted", file=sys.stderr)
        return 130
    return 0 if all(results) else 1


def passes(name: str, check: Check) -> bool:
    """Make a check, print what it found, and return whether it passed."""
    try:
        found = check()
    except (WrongError, ProblemError, DecryptionError, AppOutdatedError) as error:
        found, is_right = str(error), False
    except requests.RequestException as error:
        found, is_right = f"no answer ({network.reason(error)})", False
    except (ValueError, LookupError, TypeError) as error:
        found, is_right = f"the answer is not of this contract ({type(error).__name__})", False
    else:
        is_right = True
    print(f"{'ok' if is_right else 'WRONG':<6}{name:<12}{found}", flush=True)
    return is_right


class Watched:
    """A server that is looked at, and the test account on it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the settings and the state. Raise CannotLookError."""
        missing = [name for name in ("APP_SECRET_KEY", "WATCH_PASSWORD") if not os.environ.get(name)]
        if missing:
            raise CannotLookError(f"set {' and '.join(missing)}; --help says what they are")
        url = urlsplit(arguments.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.query:
            raise CannotLookError("--base-url has to be like https://backup.example, without a path")
        self._base_url = arguments.base_url
        self._keyid, self._secret = app_secrets(os.environ["APP_SECRET_KEY"])[0]
        if not self._secret:
            raise CannotLookError("APP_SECRET_KEY has no secret")
        self._admin_key = os.environ.get("ADMIN_SECRET_KEY")
        self._is_first, self._wants_copy = arguments.first, not arguments.no_copy
        self._state_file: Path | None = arguments.state
        self._last = read_state(self._state_file) if self._state_file else None  # the newest receipt that was seen
        if self._is_first:
            self._last = None

    def checks(self) -> Iterator[tuple[str, Check]]:
        """Yield the name of each check, and what makes it."""
        yield "health", self.check_health
        yield "clock", self.check_clock
        if self._admin_key:
            yield "statistics", self.check_statistics
            if self._wants_copy:
                yield "copy", self.check_copy
        else:
            print("watch: without ADMIN_SECRET_KEY, nobody looks at the statistics and the copy", file=sys.stderr)
        yield "restore", self.check_restore

    def _client(self, keys: Keys | tuple[str, str] = NOBODY, clock: Callable[[], float] = time.time) -> BackupClient:
        return BackupClient(self._base_url, self._secret, keys, keyid=self._keyid, timeout=SECONDS, clock=clock)

    def check_health(self) -> str:
        """Return the version. Raise WrongError if a part does not work."""
        answer = self._client().get_health()
        if answer.status_code == 503:
            raise WrongError("/health is 503: reads are not served")
        health = checked(answer).json()
        if health["status"] != "ok":
            raise WrongError(f"{health['status']}: {', '.join(health.get('degraded', ()))}")
        return f"version {health['version']}"

    def check_clock(self) -> str:
        """Return how far the server's clock is off. Raise WrongError if that is too far.

        A request that was signed in 1970 gets 401 signature_expired, with the server's time.
        """
        answer = self._client(clock=lambda: 0).fetch_backup()
        if answer.status_code != 401 or answer.json()["code"] != "signature_expired":
            checked(answer)
        off = answer.json()["serverTime"] - time.time()
        if abs(off) > CLOCK_SECONDS:
            raise WrongError(f"it is {off:+.0f} s off, compared with this machine's")
        return f"{off:+.0f} s"

    def _stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = checked(self._client().get_admin_stats(self._admin_key or "")).json()
        return stats

    def check_statistics(self) -> str:
        """Return what is stored. Raise WrongError if something is damaged, or little is free."""
        stats = self._stats()
        found = f"accounts: {stats['users']}, {stats['freeBytes'] / 1e6:,.0f} MB free"
        if stats["damaged"]:
            raise WrongError(f"{stats['damaged']} accounts, versions or keys are damaged")
        if stats["freeBytes"] < LEAST_FREE * (stats["freeBytes"] + stats["databaseBytes"]):
            raise WrongError(f"less than a fifth is free: {found}")
        return found

    def check_copy(self) -> str:
        """Return how far the copy off the machine is behind. Raise WrongError if it is too far, or if there is none."""
        lag = self._stats().get("copyLagSeconds")
        if lag is None:
            raise WrongError("there is none off the machine (if that is as it should be: --no-copy)")
        if lag > COPY_SECONDS:
            raise WrongError(f"{lag} s behind: what was stored since is on one disk alone")
        return f"{lag} s behind"

    def check_restore(self) -> str:
        """Fetch and decrypt the test account's backup, as on a new phone. Store a new one if it is time.

        If this is the first run, register the account. Raise WrongError if the account or its backup is missing, or if
        the newest backup is an old one.
        """
        keys = derive_keys(os.environ.get("WATCH_USERNAME", "watch"), os.environ["WATCH_PASSWORD"])
        client = self._client(keys)
        answer = client.fetch_backup()
        if self._is_first and answer.status_code in (401, 404):
            checked(client.register_user())
            return self._store(client, keys, 1, None)
        if answer.status_code in (401, 404) and (missing := MISSING.get(answer.json()["code"])):
            raise WrongError(missing)
        backup = checked(answer).json()
        found = decrypt(keys, backup_bytes(answer))
        number = json.loads(found.plaintext)["watch"]
        age = time.time() - datetime.fromisoformat(backup["updatedAt"]).timestamp()
        text = f"version {backup['version']}, {age / 3600:.1f} hours old, decrypted"
        is_older, last = self._is_older(backup), self._last
        self._see(backup)
        if age >= STORE_AFTER_SECONDS:
            base = Seen(found.sequence, backup["sha256"])
            text = f"{text}; {self._store(client, keys, number + 1, base)}"
        if is_older and last:
            raise WrongError(f"{OLD_COPY}: version {last['version']} was there, another one. Now: {text}")
        if age >= OLD_SECONDS:
            raise WrongError(f"{OLD_COPY}, or nobody has looked for two days. Now: {text}")
        return text

    def _store(self, client: BackupClient, keys: Keys, number: int, base: Seen | None) -> str:
        """Store a small backup that was made from a base. Return what was stored."""
        sequence = next_sequence(base.sequence, base) if base else 1
        base_sha256 = base.sha256 if base else None
        blob = encrypt(keys, json.dumps({"watch": number}).encode(), sequence=sequence, base_sha256=base_sha256)
        receipt: dict[str, Any] = checked(client.store_backup(blob, base_sha256)).json()
        self._see(receipt)
        return f"version {receipt['version']} stored"

    def _is_older(self, receipt: Mapping[str, Any]) -> bool:
        """Return whether a version is older than the newest one that was seen, or is another one in its place."""
        last = self._last
        return last is not None and (
            receipt["version"] < last["version"]
            or (receipt["version"] == last["version"] and receipt["sha256"] != last["sha256"])
        )

    def _see(self, receipt: Mapping[str, Any]) -> None:
        """Keep the newest version that was seen."""
        if self._state_file and not self._is_older(receipt):
            self._last = {name: receipt[name] for name in STATE}
            write_state(self._state_file, self._last)


STATE: Mapping[str, type] = {"version": int, "sha256": str}  # the members of the state


def read_state(file: Path) -> dict[str, Any] | None:
    """Return what the last run has kept, or None if there was none. Raise CannotLookError."""
    try:
        if not file.exists():
            write_state(file, None)
            return None
        state = json.loads(file.read_text())
        is_state = state is None or (
            isinstance(state, dict) and {name: type(value) for name, value in state.items()} == STATE
        )
    except OSError as error:
        raise CannotLookError(f"--state {file} cannot be used: {error.strerror}") from None
    except ValueError:
        is_state = False
    if not is_state:
        raise CannotLookError(f"--state {file} is no state of this watch: delete it, or name another file")
    return state if isinstance(state, dict) else None


def write_state(file: Path, state: Mapping[str, Any] | None) -> None:
    """Replace the state. Raise OSError."""
    unfinished = file.with_name(f"{file.name}-new")
    unfinished.write_text(json.dumps(state) + "\n")
    unfinished.replace(file)


if __name__ == "__main__":
    sys.exit(main())
