"""Look at a deployed server from outside, as a scheduled job of a CI does: `tox run -e watch -- --base-url URL`.

It asks whether the server is healthy, whether its clock is right, and what the statistics say. Then it does what a user
does on the worst day: with a username and a password alone, it derives the keys, fetches its test account's backup and
decrypts it. A run stores a new backup if the last one is older than 20 hours. The account is registered by the first
run alone, which has --first: later, an account or a backup that is missing is what the watch is there to find.

environment variables:
  APP_SECRET_KEY      the app's secret
  ADMIN_SECRET_KEY    the key of the statistics; without it, nobody looks at them
  WATCH_PASSWORD      the password of the test account: a long random text, kept with the other secrets
  WATCH_USERNAME      its username (watch)

exit codes: 0 all is well, 1 something is wrong and the lines say what, 2 it could not look
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

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

CLOCK_SECONDS = 60  # an app's signature may be 300 off, and the app's clock is wrong, too
STORE_AFTER_SECONDS = 20 * 3600
LEAST_FREE = 0.2  # of what the database and the free space have together
SECONDS = 30  # for each request


MISSING = {  # by the code of the problem
    "credentials_invalid": "the server does not know the test account, or its password (the first run needs --first)",
    "no_backup": "the test account has no backup any more",
}


class WrongError(Exception):
    """Something is not as it should be. The message says what."""


Check = Callable[[], str]


def main(argv: list[str] | None = None) -> int:
    """Make all checks, and print a line for each. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-url", metavar="URL", required=True, help="the server, such as https://backup.example")
    parser.add_argument("--first", action="store_true", help="register the test account, and store its first backup")
    arguments = parser.parse_args(argv)
    missing = [name for name in ("APP_SECRET_KEY", "WATCH_PASSWORD") if not os.environ.get(name)]
    if missing:
        print(f"watch: set {' and '.join(missing)}; --help says what they are.", file=sys.stderr)
        return 2
    results = [passes(name, check) for name, check in checks(arguments.base_url.rstrip("/"), arguments.first)]
    return 0 if all(results) else 1


def checks(base_url: str, is_first: bool) -> Iterator[tuple[str, Check]]:
    """Yield the name of each check, and what makes it."""
    yield "health", lambda: check_health(base_url)
    yield "clock", lambda: check_clock(base_url)
    if key := os.environ.get("ADMIN_SECRET_KEY"):
        yield "statistics", lambda: check_statistics(base_url, key)
    yield "restore", lambda: check_restore(base_url, is_first)


def passes(name: str, check: Check) -> bool:
    """Make a check, print what it found, and return whether it passed."""
    try:
        found = check()
    except (WrongError, ProblemError, DecryptionError, AppOutdatedError) as error:
        found, is_right = str(error), False
    except requests.RequestException as error:
        found, is_right = f"no answer ({type(error).__name__})", False
    except (ValueError, LookupError, TypeError) as error:
        found, is_right = f"the answer is not of this contract ({type(error).__name__})", False
    else:
        is_right = True
    print(f"{'ok' if is_right else 'WRONG':<6}{name:<12}{found}", flush=True)
    return is_right


def check_health(base_url: str) -> str:
    """Return the status. Raise WrongError if a part does not work."""
    answer = requests.get(f"{base_url}/health", timeout=SECONDS)
    if answer.status_code != 200:
        raise WrongError(f"/health is {answer.status_code}: reads are not served")
    health = answer.json()
    if health["status"] != "ok":
        raise WrongError(f"{health['status']}: {', '.join(health.get('degraded', ()))}")
    return f"version {health['version']}"


def check_clock(base_url: str) -> str:
    """Return how far the server's clock is off. Raise WrongError if that is too far.

    A request that was signed in 1970 gets 401 signature_expired, with the server's time.
    """
    keyid, secret = app_secrets(os.environ["APP_SECRET_KEY"])[0]
    client = BackupClient(base_url, secret, ("0" * 64, "0" * 64), keyid=keyid, timeout=SECONDS, clock=lambda: 0)
    off = client.fetch_backup().json()["serverTime"] - time.time()
    if abs(off) > CLOCK_SECONDS:
        raise WrongError(f"it is {off:+.0f} s off, compared with this machine's")
    return f"{off:+.0f} s"


def check_statistics(base_url: str, key: str) -> str:
    """Return what is stored. Raise WrongError if something is damaged, or little is free."""
    answer = requests.get(f"{base_url}/admin/stats", headers={"Authorization": f"Bearer {key}"}, timeout=SECONDS)
    stats = checked(answer).json()
    found = f"{stats['users']} users, {stats['freeBytes'] / 1e6:,.0f} MB free"
    if stats["damaged"]:
        raise WrongError(f"{stats['damaged']} accounts, versions or keys are damaged")
    if stats["freeBytes"] < LEAST_FREE * (stats["freeBytes"] + stats["databaseBytes"]):
        raise WrongError(f"less than a fifth is free: {found}")
    return found


def check_restore(base_url: str, is_first: bool) -> str:
    """Fetch and decrypt the test account's backup, as on a new phone. Store a new one if it is time.

    If this is the first run, register the account. Raise WrongError if the account or its backup is missing.
    """
    keyid, secret = app_secrets(os.environ["APP_SECRET_KEY"])[0]
    keys = derive_keys(os.environ.get("WATCH_USERNAME", "watch"), os.environ["WATCH_PASSWORD"])
    client = BackupClient(base_url, secret, keys, keyid=keyid, timeout=SECONDS)
    answer = client.fetch_backup()
    if is_first and answer.status_code in (401, 404):
        checked(client.register_user())
        return store(client, keys, 1, None)
    if answer.status_code in (401, 404) and (missing := MISSING.get(answer.json()["code"])):
        raise WrongError(missing)
    backup = checked(answer).json()
    found = decrypt(keys, backup_bytes(answer))
    number = json.loads(found.plaintext)["watch"]
    age = time.time() - datetime.fromisoformat(backup["updatedAt"]).timestamp()
    restored = f"version {backup['version']}, {age / 3600:.1f} hours old, decrypted"
    if age < STORE_AFTER_SECONDS:
        return restored
    return f"{restored}; {store(client, keys, number + 1, Seen(found.sequence, backup['sha256']))}"


def store(client: BackupClient, keys: Keys, number: int, base: Seen | None) -> str:
    """Store a small backup that was made from a base. Return what was stored."""
    sequence = next_sequence(base.sequence, base) if base else 1
    base_sha256 = base.sha256 if base else None
    blob = encrypt(keys, json.dumps({"watch": number}).encode(), sequence=sequence, base_sha256=base_sha256)
    receipt: dict[str, Any] = checked(client.store_backup(blob, base_sha256)).json()
    return f"version {receipt['version']} stored"


if __name__ == "__main__":
    sys.exit(main())
