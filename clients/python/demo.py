"""Back up a training log, restore it on another device, and delete the account. Print each step.

Without --base-url, the demo starts a server on a fresh file and stops it at the end. With --base-url, it uses that
server, as a new user with a random name. It takes the app's secret from APP_SECRET_KEY.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from clients.python.backup_client import (
    HEADER_BYTES,
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
    new_passphrase,
    next_sequence,
    read_recovery_code,
    recovery_code,
    verdict,
)

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 30
STOP_SECONDS = 30
LATE_SECONDS = 0.5  # how much later a request can arrive whose sender did not wait for the answer


class DemoError(Exception):
    """A step did not have the expected result."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", metavar="URL", help="use this server, which is running already")
    base_url = parser.parse_args().base_url
    if certificates := os.environ.get("SSL_CERT_FILE"):  # `requests` reads only the other variable
        os.environ.setdefault("REQUESTS_CA_BUNDLE", certificates)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the demo as Ctrl-C does
    try:
        if base_url:
            keyid, secret = app_secret()
            run_demo(base_url, secret, keyid)
        else:
            with fresh_server() as (base_url, secret):
                run_demo(base_url, secret, "app")
    except (DemoError, ProblemError, DecryptionError, AppOutdatedError) as error:
        return failed(str(error))
    except requests.ConnectionError:
        return failed(f"there is no answer from {base_url}")
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:  # an answer against the contract
        return failed(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("The demo was interrupted.", file=sys.stderr)
        return 130
    print("Everything went as it should.")
    return 0


def failed(why: str) -> int:
    print(f"The demo failed: {why}", file=sys.stderr)
    return 1


def say(who: str, text: str) -> None:
    print(f"{who:10} {text}", flush=True)


# ---- The story ---------------------------------------------------------------------------------------------


def run_demo(base_url: str, secret: str, keyid: str) -> None:
    """Play all steps. Raise DemoError or ProblemError at the first step that goes wrong."""
    log = (REPOSITORY / "fixtures" / "training_log.json").read_bytes()
    words = (REPOSITORY / "fixtures" / "passphrase_words.txt").read_text().split()
    username, password = f"demo-{secrets.token_hex(8)}", new_passphrase(words)

    def device() -> tuple[Keys, BackupClient]:
        """Return a device's keys and client. A device needs to know only the username and the password."""
        keys = derive_keys(username, password)
        return keys, BackupClient(base_url, secret, keys, keyid=keyid)

    started = time.monotonic()
    keys, phone = device()
    say(
        "phone",
        f"derives userId and both keys from username and password ({time.monotonic() - started:.1f} s)",
    )
    try:
        expect(phone.register_user(), 201)
        say("phone", "registers")
        code = recovery_code(keys)
        require(read_recovery_code(username, code.lower()) == keys, "the recovery code does not give the same keys")
        say(
            "phone", f"shows the recovery code: {len(code.split('-'))} groups of 7 characters, which give the same keys"
        )
        play(log, keys, phone, device)
        expect(phone.delete_user(), 204)
        say("phone", "deletes the account")
    except BaseException:  # also Ctrl-C
        leave_nothing_behind(phone)
        raise
    problem = expect(phone.fetch_backup(), 401)
    say("server", f"does not know the account any more: 401 {problem['code']}")


def leave_nothing_behind(phone: BackupClient) -> None:
    """Delete the account, whether it is there or not. A registration that was interrupted may come a moment later."""
    try:
        status = phone.delete_user().status_code
        if status == 401:
            time.sleep(LATE_SECONDS)
            status = phone.delete_user().status_code
    except requests.RequestException:
        status = 0
    if status not in (204, 401):
        print("The demo could not delete its account.", file=sys.stderr)


def play(log: bytes, keys: Keys, phone: BackupClient, device: Any) -> None:
    blob = encrypt(keys, log, sequence=1)
    say("phone", f"encrypts the training log: {len(log):,} bytes become {len(blob):,}")
    say("phone", f"writes the sequence 1 and the base into its first {HEADER_BYTES} bytes, and authenticates them")
    first = expect(phone.store_backup(blob), 201)
    say("phone", f"stores it: {describe(first)}")
    repeated = expect(phone.store_backup(blob), 200)
    require(repeated == first, "a repeated upload got another receipt")
    say("phone", f"repeats the upload, as after a lost answer: it is still version {repeated['version']}")

    tablet_keys, tablet = device()
    say("tablet", "derives the same keys, from username and password alone")
    fetched = checked(tablet.fetch_backup())
    restored = decrypt(tablet_keys, backup_bytes(fetched)).plaintext
    require(restored == log, "the restored log is not the one that was stored")
    say(
        "tablet",
        f"fetches and decrypts version {fetched.json()['version']}: all {len(restored):,} bytes are equal",
    )
    tablet_log = with_workout(restored, "tablet")
    seen = Seen(1, first["sha256"])  # the highest version that either device has seen so far
    second = expect(store(tablet, tablet_keys, tablet_log, seen), 201)
    say("tablet", f"logs a workout and stores: {describe(second)}, made from version {first['version']}")

    phone_log = with_workout(log, "phone")
    say("phone", f"logs a workout too, and stores, also made from version {first['version']}")
    stale = expect(store(phone, keys, phone_log, seen), 409)
    require(stale["code"] == "version_conflict", f"the problem is {stale['code']}, not version_conflict")
    say(
        "server",
        f"refuses: 409 {stale['code']}, the latest is version {stale['currentVersion']}; nothing is lost",
    )
    latest = checked(phone.fetch_backup())
    theirs = decrypt(keys, backup_bytes(latest))
    found = verdict(seen, theirs.sequence, latest.json()["sha256"], theirs.base_sha256)
    require(found == "next", f"the verdict on version 2 is {found}")
    say("phone", f"fetches version {latest.json()['version']}. It was made from the one that the phone has: {found}")
    merged = merge(phone_log, theirs.plaintext)
    say("phone", "merges: both workouts are in it")
    third = expect(store(phone, keys, merged, Seen(theirs.sequence, latest.json()["sha256"])), 201)
    say("phone", f"stores that: {describe(third)}, made from version {latest.json()['version']}")

    new_keys, new_phone = device()
    restored = decrypt(new_keys, backup_bytes(checked(new_phone.fetch_backup()))).plaintext
    require(restored == merged, "the restored log is not the merged one")
    say(
        "new phone",
        f"restores version {third['version']} the same way: all {len(restored):,} bytes are equal",
    )
    older = backup_bytes(checked(new_phone.fetch_backup_version(first["version"])), version=first["version"])
    require(decrypt(new_keys, older).plaintext == log, "the first version is not what it was")
    versions = expect(new_phone.list_backup_versions(), 200)["versions"]
    numbers = ", ".join(str(receipt["version"]) for receipt in versions)
    say("new phone", f"lists versions {numbers}; version {first['version']} is still there, byte for byte")


def store(client: BackupClient, keys: Keys, log: bytes, base: Seen) -> requests.Response:
    """Store a log that was made from a base, which is the highest version that this device has seen."""
    blob = encrypt(keys, log, sequence=next_sequence(base.sequence, base), base_sha256=base.sha256)
    return client.store_backup(blob, base.sha256)


def describe(receipt: dict[str, Any]) -> str:
    return f"version {receipt['version']}, {receipt['size']:,} bytes, sha256 {receipt['sha256'][:12]}…"


def with_workout(log: bytes, device: str) -> bytes:
    """Return the log with one more session, as the app on this device would add it."""
    document = json.loads(log)
    session = document["sessions"][-1] | {"id": secrets.token_hex(16), "note": f"logged on the {device}"}
    return training_log(document | {"sessions": [*document["sessions"], session]})


def merge(mine: bytes, theirs: bytes) -> bytes:
    """Return their log with the sessions that only mine has. Every app decides for itself what to merge, and how."""
    document, other = json.loads(theirs), json.loads(mine)
    known = {session["id"] for session in document["sessions"]}
    document["sessions"] += [session for session in other["sessions"] if session["id"] not in known]
    require(len(document["sessions"]) == len(other["sessions"]) + 1, "the merge lost a workout")
    return training_log(document)


def training_log(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def expect(response: requests.Response, status: int) -> Any:
    """Return the response's JSON, or None without a body. Raise ProblemError or DemoError if it has another status."""
    if response.status_code != status:
        checked(response)  # if it is a problem, this error says more
        raise DemoError(f"{response.request.method} got {response.status_code}, not {status}")
    return response.json() if response.content else None


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DemoError(otherwise)


# ---- The server --------------------------------------------------------------------------------------------


def app_secret() -> tuple[str, str]:
    """Return (keyid, secret) of the first secret in APP_SECRET_KEY. Raise DemoError if there is none."""
    keyid, secret = app_secrets(os.environ.get("APP_SECRET_KEY", ""))[0]
    if not secret:
        raise DemoError("--base-url needs that server's APP_SECRET_KEY in the environment")
    return keyid, secret


@contextmanager
def fresh_server() -> Iterator[tuple[str, str]]:
    """Yield (base URL, secret) of a server on a fresh file. Stop it with SIGTERM at the end."""
    secret = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as directory:
        database, log, errors = (Path(directory, name) for name in ("backup.db", "log", "errors"))
        settings = {
            "APP_SECRET_KEY": secret,
            "DATABASE_PATH": str(database),
            "HOST": "127.0.0.1",
            "PORT": "0",
        }
        command = [sys.executable, str(REPOSITORY / "backup_server.py")]
        with open(log, "wb") as stdout, open(errors, "wb") as stderr:
            process = subprocess.Popen(  # in a session of its own: Ctrl-C is for the demo, which stops the server last
                command, env=os.environ | settings, stdout=stdout, stderr=stderr, start_new_session=True
            )
        try:
            base_url = wait_until_serving(process, log, errors)
            say("server", f"serves at {base_url}, on a fresh file")
            yield base_url, secret
            process.send_signal(signal.SIGTERM)
            code = process.wait(STOP_SECONDS)
            require(code == 0, f"the server's exit code after SIGTERM is {code}: {errors.read_text().strip()}")
            say("server", "stops at SIGTERM, with exit code 0")
        except subprocess.TimeoutExpired:
            raise DemoError(f"the server did not stop within {STOP_SECONDS} s of SIGTERM") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_until_serving(process: subprocess.Popen[bytes], log: Path, errors: Path) -> str:
    """Return the base URL, from the server's log. Raise DemoError if the server does not start to serve."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and line.startswith("{"):
                event = json.loads(line)
                if event.get("event") == "serving":
                    return event["url"]
        time.sleep(0.02)
    raise DemoError(f"the server did not start: {errors.read_text().strip() or f'it was silent for {START_SECONDS} s'}")


if __name__ == "__main__":
    sys.exit(main())
