"""The tools of whoever runs the server: look at the store, copy it, put a copy back, remove and move accounts.

docs/operations.md explains them under "Maintenance". Every command can be interrupted at any point, and run again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from server import bounds, clock, copies, file_side, inspection, migration, operator, recovery
from server.accounts import ESTABLISHED_DAYS, Damaged, StorageError
from server.bucket import VARIABLES, Address, Bucket
from server.inspection import Unusable, Usage
from server.log import log

FINE, DAMAGED, CANNOT = 0, 1, 2
NOTHING_DONE = DAMAGED
EXIT_CODES = """\
exit codes: 0 all is well; 1 damage was found, or nothing was done; 2 it cannot be done, and the message says why;
130 and 143 interrupted: run it again"""
SHOWN = 8  # characters of a userId
MOMENT = 2  # seconds; what takes longer says how far it is

Record = dict[str, Any]

# --- Arguments --------------------------------------------------------------------------------------------------------

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SPANS = {"m": 60_000, "h": 3_600_000, "d": clock.DAY, "w": 7 * clock.DAY}


def size(text: str) -> int:
    """Return the bytes that a text such as 500k, 32M or 1GiB means."""
    parts = re.fullmatch(r"([0-9]{1,15})([kmg]?)(i?)b?", text.lower())
    if not parts:
        raise argparse.ArgumentTypeError("it must be a number of bytes, such as 500k, 32M or 1GiB")
    return int(parts[1]) * UNITS[parts[2] + ("ib" if parts[3] else "")]


def span(text: str) -> int:
    """Return the milliseconds that a text such as 30d means."""
    parts = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.lower())
    if not parts:
        raise argparse.ArgumentTypeError("it must be minutes, hours, days or weeks, such as 90m, 12h, 30d or 4w")
    return int(parts[1]) * SPANS[parts[2]]


def prefix(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{1,64}", text):
        raise argparse.ArgumentTypeError("it must be the beginning of a userId, in lowercase hex")
    return text


def moment(text: str) -> int:
    """Return the Unix milliseconds that a text such as 2026-11-28T06:30:00Z means."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise argparse.ArgumentTypeError("it must be a time with its zone, such as 2026-11-28T06:30:00Z")
    return int(parsed.timestamp() * 1000)


def source(text: str) -> Path | Callable[[], Bucket]:
    """Return a file, or what connects to the bucket that a text such as s3://NAME means."""
    if not text.startswith("s3://"):
        return Path(text)
    name = text.removeprefix("s3://").rstrip("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,62}", name):
        raise argparse.ArgumentTypeError("it must be a bucket, such as s3://NAME")
    try:
        address = Address(name, *(os.environ.get(variable, "") for variable in VARIABLES))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return functools.partial(Bucket, address)


class Url(str):
    """The URL of a database, which may have a password. Nothing prints it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "URL"


def store(text: str) -> Path | Url:
    """Return a file or a database. The word DATABASE_URL stands for what this variable has."""
    if text == "DATABASE_URL":
        text = os.environ.get(text, "")
        if not text:
            raise argparse.ArgumentTypeError("the variable DATABASE_URL is not set")
        return Url(text)
    return Url(text) if re.match("postgres(ql)?://", text) else Path(text)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    default = os.environ.get("DATABASE_PATH") or "data/backup.db"
    usual = Url(os.environ["DATABASE_URL"]) if os.environ.get("DATABASE_URL") else Path(default)
    text = f"the store: a file, or the URL of a database ({'DATABASE_URL' if isinstance(usual, Url) else default})"
    common.add_argument("--database", type=store, default=usual, metavar="STORE", help=text)
    common.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    full = argparse.ArgumentParser(add_help=False)
    full.add_argument("--full", action="store_true", help=f"print userIds whole, not their first {SHOWN} characters")
    anyway = argparse.ArgumentParser(add_help=False)
    anyway.add_argument("--damaged", action="store_true", help="go on if damage is found")

    parser = argparse.ArgumentParser(
        prog="maintenance.py", description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable[..., int], text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = commands.add_parser(
            run.__name__,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common, *parents],
        )
        added.set_defaults(run=run)
        return added

    bucket = argparse.ArgumentParser(add_help=False)
    text = "of a bucket, what it had then, such as 2026-11-28T06:30:00Z (now)"
    bucket.add_argument("--at", type=moment, metavar="TIME", help=text)
    added = command(verify, "read the whole store, or a bucket, and list what is damaged", full, bucket)
    added.add_argument("bucket", type=source, nargs="?", metavar="s3://NAME", help="a bucket, in place of the store")
    added = command(snapshot, "copy the store of a running or stopped server to a file, and verify the copy", anyway)
    added.add_argument("path", type=Path, help="the new file")
    added.add_argument("--force", action="store_true", help="replace the file if it exists")
    text = "put a snapshot, or a copy in a bucket, in the place of the store; the server must be stopped"
    added = command(restore, text, anyway, bucket)
    added.add_argument("path", type=source, metavar="PATH or s3://NAME", help="the snapshot or the bucket")
    text = "make the file smaller, and erase everything that is deleted; the server must be stopped"
    command(compact, text, anyway)
    filters = argparse.ArgumentParser(add_help=False)
    group = filters.add_argument_group("filters", "An account matches if it fits all that are given.")
    group.add_argument("--larger-than", type=size, metavar="SIZE", help="its versions have more bytes: 500k, 32M, 1GiB")
    group.add_argument("--older-than", type=span, metavar="TIME", help="it was registered longer ago: 12h, 30d, 4w")
    group.add_argument("--idle-for", type=span, metavar="TIME", help="it has stored nothing for so long")
    group.add_argument("--young", action="store_true", help=f"it has uploaded on fewer than {ESTABLISHED_DAYS} days")
    group.add_argument("--without-backup", action="store_true", help="it has no version")
    group.add_argument("--user", type=prefix, metavar="PREFIX", help="its userId begins so")
    added = command(accounts, "list accounts, the largest first", full, filters)
    added.add_argument("--sort", choices=SORTS, default="bytes", help="what comes first (bytes)")
    added = command(remove, "let the running server delete the accounts that match, for good", full, filters)
    added.add_argument("--dry-run", action="store_true", help="only list them")
    added.add_argument("--yes", action="store_true", help="do not ask")
    added = command(migrate, "move all accounts from a file to a database, or back, while servers use the source")
    text = "a file, a URL, or the word DATABASE_URL for the URL in this variable, which keeps a password out of sight"
    added.add_argument("source", type=store, metavar="SOURCE", help=text)
    added.add_argument("target", type=store, metavar="TARGET", help="the same; it has to be new, or to be left by this")
    command(reopen, "let a store whose accounts were moved take changes again; what came after stays in the other one")
    return parser.parse_args(argv)


# --- Output -----------------------------------------------------------------------------------------------------------


class Progress:
    """Says on standard error how far a command is, if it takes longer than a moment."""

    def __init__(self) -> None:
        self._name = ""
        self._measure: copies.Measure = copies.no_measure
        self._next = time.monotonic() + MOMENT

    def stage(self, name: str, measure: copies.Measure) -> None:
        """Begin something, or, if the name is empty, nothing."""
        self._name, self._measure = name, measure

    def say(self) -> None:
        """The main thread calls this now and then."""
        if not self._name or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + MOMENT
        done, of = self._measure()
        say(f"{self._name}: {min(100, done * 100 // of)} %" if of else f"{self._name} …")


def say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def show(arguments: argparse.Namespace, value: Record, lines: Sequence[str]) -> None:
    """Print a result, in one piece: as JSON, or as lines for people."""
    text = json.dumps(value) if arguments.json else "\n".join(lines)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def shown(user_id: str | None, arguments: argparse.Namespace) -> str | None:
    return user_id if user_id is None or getattr(arguments, "full", False) else user_id[:SHOWN]


def megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


def days(milliseconds: int) -> str:
    return f"{max(milliseconds, 0) / SPANS['d']:,.1f}"


def summary(report: inspection.Report) -> str:
    return f"{report.accounts:,} accounts, {report.versions:,} versions, {megabytes(report.bytes)}"


def result_of(report: inspection.Report, arguments: argparse.Namespace) -> tuple[Record, list[str]]:
    """Return what a verification has found, for programs and for people."""
    damage = [{"kind": each.kind, "what": each.what, "user": shown(each.user_id, arguments)} for each in report.damage]
    value = {
        "accounts": report.accounts,
        "deleted": report.deleted,
        "versions": report.versions,
        "bytes": report.bytes,
        "damage": damage,
    }
    lines = [f"damaged: {each['kind']}, user {each['user'] or '-'}: {each['what']}" for each in damage]
    return value, lines


# --- Commands ---------------------------------------------------------------------------------------------------------


def verify(arguments: argparse.Namespace, progress: Progress) -> int:
    if callable(arguments.bucket):
        report = verified(functools.partial(recovery.verify, arguments.bucket, arguments.at), progress)
    elif arguments.bucket or arguments.at:
        raise Unusable("--at needs a bucket, s3://NAME, and the store is named by --database")
    else:
        report = verified(functools.partial(looking(arguments.database).verify, arguments.database), progress)
    value, lines = result_of(report, arguments)
    verdict = f"{len(report.damage):,} things are damaged" if report.damage else "nothing is damaged"
    show(arguments, value, [*lines, f"{summary(report)}: {verdict}"])
    return DAMAGED if report.damage else FINE


def verified(work: Callable[[inspection.Seen], inspection.Report], progress: Progress) -> inspection.Report:
    """Do a verification. Return what it has found."""
    at = (0, 0)

    def seen(done: int, of: int) -> None:
        nonlocal at
        at = (done, of)

    progress.stage("verifying", lambda: at)
    return work(seen)


def looking(database: Path | Url) -> Any:
    """Return the module that looks into a store. Raise Unusable if the driver of a database is missing."""
    if isinstance(database, Path):
        return inspection
    log.descriptor = os.open(os.devnull, os.O_WRONLY)  # what goes wrong is told in one line
    try:
        from server.postgres import side  # only here: who has a file needs no driver
    except ImportError:
        raise Unusable("a database needs a driver: pip install -r requirements/postgres.txt") from None
    return side


def reserved_seconds() -> int:
    """Return for how long a deleted userId is reserved. openapi.yaml says so, to the servers, too."""
    text = (Path(__file__).parent / "openapi.yaml").read_text()
    found = re.search(r"^  deletedUserSeconds: ([0-9]+)$", text, re.MULTILINE)
    if not found:
        raise Unusable("openapi.yaml: it does not have deletedUserSeconds")
    return int(found[1])


def whole(database: Path | Url) -> str:
    return str(database) if isinstance(database, Path) else "the database"


def only_a_file(database: Path | Url, what: str) -> Path:
    if isinstance(database, Path):
        return database
    raise Unusable(what)


def snapshot(arguments: argparse.Namespace, progress: Progress) -> int:
    path, force, damaged = arguments.path, arguments.force, arguments.damaged
    if isinstance(arguments.database, Path):
        report = copies.snapshot(arguments.database, path, force, damaged, progress.stage)
    else:
        with looking(arguments.database).opened(arguments.database, 0) as side:
            report = copies.snapshot_by(functools.partial(copied_from, side), path, force, damaged, progress.stage)
    return copied(report, arguments, {"snapshot": str(arguments.path)}, [f"{arguments.path}: {summary(report)}"])


def copied_from(side: migration.Side, part: Path, stage: copies.Stage) -> list[inspection.Damage]:
    """Write what a database has into a file."""
    stage("copying", copies.no_measure)
    return file_side.fill(side, part)


def restore(arguments: argparse.Namespace, progress: Progress) -> int:
    only_a_file(arguments.database, "restore is for a file: to put a snapshot into an empty database, migrate it there")
    if callable(arguments.path):
        fill = functools.partial(filled, arguments.path, arguments.at)
        report, kept = copies.restore_by(fill, arguments.database, arguments.damaged, progress.stage)
    elif arguments.at:
        raise Unusable("--at needs a bucket, s3://NAME: a snapshot is of one moment")
    else:
        report, kept = copies.restore(arguments.database, arguments.path, arguments.damaged, progress.stage)
    lines = [f"{arguments.database}: {summary(report)}"]
    if kept:
        lines.append(f"the replaced file is {kept}: delete it when you need it no longer")
    lines.append('now read "After a restored snapshot" in docs/operations.md')
    return copied(report, arguments, {"kept": str(kept) if kept else None}, lines)


def filled(connect: Callable[[], Bucket], at: int | None, part: Path, stage: copies.Stage) -> list[inspection.Damage]:
    """Write what a bucket had into a file."""
    stage("fetching", copies.no_measure)
    return recovery.fill(connect, at, part, lambda done, of: None)


def compact(arguments: argparse.Namespace, progress: Progress) -> int:
    only_a_file(arguments.database, "compact is for a file: a database has VACUUM, which it runs by itself")
    report = copies.compact(arguments.database, arguments.damaged, progress.stage)
    after = arguments.database.stat().st_size
    lines = [f"{arguments.database}: {summary(report)}, in a file of {megabytes(after)}"]
    return copied(report, arguments, {"fileBytes": after}, lines)


def copied(report: inspection.Report, arguments: argparse.Namespace, more: Record, lines: list[str]) -> int:
    value, damage = result_of(report, arguments)
    show(arguments, value | more, [*damage, *lines])
    return DAMAGED if report.damage else FINE


# --- Accounts ---------------------------------------------------------------------------------------------------------

SORTS: dict[str, Callable[[Usage], Any]] = {
    "bytes": lambda usage: -usage.bytes,
    "age": lambda usage: usage.created_at,
    "idle": lambda usage: usage.last_use,
    "versions": lambda usage: -usage.versions,
    "user": lambda usage: usage.user_id,
}


def matches(usage: Usage, arguments: argparse.Namespace, now: int) -> bool:
    """Return whether an account fits all filters."""
    return (
        (arguments.larger_than is None or usage.bytes > arguments.larger_than)
        and (arguments.older_than is None or now - usage.created_at > arguments.older_than)
        and (arguments.idle_for is None or now - usage.last_use > arguments.idle_for)
        and (not arguments.young or usage.upload_days < ESTABLISHED_DAYS)
        and (not arguments.without_backup or not usage.versions)
        and (arguments.user is None or usage.user_id.startswith(arguments.user))
    )


def matching(arguments: argparse.Namespace, progress: Progress, sort: str) -> tuple[list[Usage], int]:
    """Return the accounts that match, and how many records are damaged."""
    at = (0, 0)

    def seen(done: int, of: int) -> None:
        nonlocal at
        at = (done, of)

    progress.stage("reading", lambda: at)
    now, found, damaged = clock.now(), [], 0
    for usage in looking(arguments.database).usages(arguments.database, seen):
        damaged += usage is None
        if usage and matches(usage, arguments, now):
            found.append(usage)
    return sorted(found, key=SORTS[sort]), damaged


def listed(found: list[Usage], damaged: int, arguments: argparse.Namespace) -> tuple[Record, list[str]]:
    """Return a list of accounts, for programs and for people."""
    now = clock.now()
    total = {
        "accounts": len(found),
        "versions": sum(usage.versions for usage in found),
        "bytes": sum(usage.bytes for usage in found),
        "storedBytes": sum(usage.stored_bytes for usage in found),
        "damaged": damaged,
    }
    values = [
        {
            "user": shown(usage.user_id, arguments),
            "versions": usage.versions,
            "bytes": usage.bytes,
            "storedBytes": usage.stored_bytes,
            "createdAt": clock.rfc3339(usage.created_at),
            "lastUse": clock.rfc3339(usage.last_use),
            "uploadDays": usage.upload_days,
        }
        for usage in found
    ]
    width = 64 if arguments.full else SHOWN
    row = f"{{:{width}}} {{:>8}} {{:>12}} {{:>12}} {{:>9}} {{:>9}} {{:>6}}"
    lines = [row.format("user", "versions", "size", "in the file", "age, days", "idle, d.", "upl.d.")]
    lines += [
        row.format(
            value["user"],
            usage.versions,
            megabytes(usage.bytes),
            megabytes(usage.stored_bytes),
            days(now - usage.created_at),
            days(now - usage.last_use),
            usage.upload_days,
        )
        for usage, value in zip(found, values, strict=True)
    ]
    lines.append(f"{len(found):,} accounts, {total['versions']:,} versions, {megabytes(total['bytes'])}")
    if damaged:
        lines.append(f"{damaged:,} records are damaged: verify says which")
    return {"accounts": values, "total": total}, lines


def accounts(arguments: argparse.Namespace, progress: Progress) -> int:
    found, damaged = matching(arguments, progress, arguments.sort)
    show(arguments, *listed(found, damaged, arguments))
    return DAMAGED if damaged else FINE


def remove(arguments: argparse.Namespace, progress: Progress) -> int:
    filters = ("larger_than", "older_than", "idle_for", "young", "without_backup", "user")
    if all(getattr(arguments, name) in (None, False) for name in filters):
        raise Unusable("remove needs a filter, such as --user PREFIX")
    found, damaged = matching(arguments, progress, "bytes")
    progress.stage("", copies.no_measure)
    value, lines = listed(found, damaged, arguments)
    if arguments.dry_run or not found:
        show(arguments, value, lines)
        return FINE if found else NOTHING_DONE
    if not arguments.yes:
        confirm(found, lines)
    outcomes: list[str] = []
    progress.stage("removing", lambda: (len(outcomes), len(found)))
    try:
        for outcome in asked(arguments.database, found):
            outcomes.append(outcome)
    finally:
        names = (operator.REMOVED, operator.CHANGED, operator.GONE, operator.FAILED)
        counts = {name: outcomes.count(name) for name in names}
        text = f"{counts[operator.REMOVED]:,} of {len(found):,} accounts were removed"
        for name, why in WHY_NOT.items():
            text += f"; {counts[name]:,} {why}" if counts[name] else ""
        show(arguments, {"matched": len(found), **counts}, [text])
    return FINE if outcomes.count(operator.REMOVED) == len(found) else NOTHING_DONE


WHY_NOT = {
    operator.CHANGED: "stay, because they have been used meanwhile",
    operator.GONE: "were deleted already",
    operator.FAILED: "could not be deleted: the server's log says why; run it again",
}


def confirm(found: list[Usage], lines: list[str]) -> None:
    """Ask on the terminal. Raise Unusable if there is none, or if the answer is not the number of accounts."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Unusable("there is no terminal to ask on: add --yes, or look first with --dry-run")
    say("\n".join(lines))
    os.write(2, f"Delete these {len(found)} accounts for good? Type {len(found)} to do so: ".encode())
    if sys.stdin.readline().strip() != str(len(found)):
        raise Unusable("nothing was removed")


def asked(database: Path | Url, found: list[Usage]) -> Iterator[str]:
    """Delete these accounts, or let the server of a file do so. Yield the outcomes. Raise Unusable."""
    if isinstance(database, Url):
        side = looking(database)
        key = side.hash_key(database, os.environ.get("ADMIN_SECRET_KEY"))
        listed = [operator.Listed(usage.user_id, usage.created_at, usage.version) for usage in found]
        yield from side.remove(database, reserved_seconds(), key, listed)
        return
    for first in range(0, len(found), bounds.OPERATOR_ACCOUNTS):
        part = found[first : first + bounds.OPERATOR_ACCOUNTS]
        try:
            yield from operator.remove(
                database, [operator.Listed(usage.user_id, usage.created_at, usage.version) for usage in part]
            )
        except (FileNotFoundError, ConnectionRefusedError):
            where = operator.socket_path(database)
            raise Unusable(f"{where}: no server listens there: only a running server can remove accounts") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise Unusable(f"{operator.socket_path(database)}: the server does not answer: {reason}") from None
        except operator.Refused as error:
            raise Unusable(f"the server refuses: {error}") from None


# --- Moving -----------------------------------------------------------------------------------------------------------


def migrate(arguments: argparse.Namespace, progress: Progress) -> int:
    # What a damaged index does not show would be left behind.
    report = verified(functools.partial(looking(arguments.source).verify, arguments.source), progress)
    if report.damage:
        value, lines = result_of(report, arguments)
        show(arguments, value, [*lines, "damage was found, so nothing was moved"])
        return DAMAGED
    with opened(arguments.source, file_side.source, is_target=False) as source:
        with opened(arguments.target, file_side.target, is_target=True) as target:
            if source.name == target.name:
                raise Unusable("the target is the source")
            moved = migration.migrate(source, target, progress.stage)
    lines = [
        f"at the target, verified: {moved.accounts:,} accounts, {moved.versions:,} versions, {megabytes(moved.bytes)}",
        f"the source took no changes for {moved.closed_seconds:.1f} s, and stays closed: it still gives what it has",
        "now send the clients to servers on the target, and stop those on the source",
        "to go back, migrate from the target to the source; reopen is only for a target that nobody has used",
    ]
    value = {
        "accounts": moved.accounts,
        "versions": moved.versions,
        "bytes": moved.bytes,
        "copied": moved.copied,
        "closedSeconds": round(moved.closed_seconds, 3),
    }
    show(arguments, value, lines)
    return FINE


def opened(database: Path | Url, of_file: Callable[[Path], Any], is_target: bool) -> Any:
    """Open a store as a side of a migration."""
    if isinstance(database, Path):
        return of_file(database)
    return looking(database).opened(database, reserved_seconds(), is_target)


def reopen(arguments: argparse.Namespace, progress: Progress) -> int:
    database = arguments.database
    done = file_side.reopen(database) if isinstance(database, Path) else looking(database).reopen(database)
    show(arguments, {"reopened": done}, ["the store takes changes again" if done else "the store was not closed"])
    return FINE if done else NOTHING_DONE


# --- Main -------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Return its exit code.

    The command runs in a thread of its own. So the main thread can say how far it is, and a signal ends the process at
    once, even if SQLite is busy for minutes. Nothing is lost by that: a file gets its name when it is whole.
    """
    arguments = parsed(argv)
    os.umask(0o077)
    progress, codes = Progress(), [CANNOT]

    def work() -> None:
        codes[0] = outcome(arguments, progress)

    thread = threading.Thread(target=work, daemon=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored on purpose
            signal.signal(number, functools.partial(end, arguments))
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        progress.say()
    return codes[0]


def outcome(arguments: argparse.Namespace, progress: Progress) -> int:
    try:
        return int(arguments.run(arguments, progress))
    except copies.DamagedCopy as error:
        value, lines = result_of(error.report, arguments)
        text = "damage was found, so nothing was changed: --damaged goes on in spite of it"
        show(arguments, value, [*lines, text])
        return DAMAGED
    except Unusable as error:
        say(f"maintenance: {error}")
        return DAMAGED if isinstance(error, inspection.Broken) else CANNOT
    except migration.Impossible as error:
        say(f"maintenance: {error}")
        return CANNOT
    except Damaged:
        say("maintenance: damage was found, so nothing was moved: verify says which")
        return DAMAGED
    except StorageError as error:
        say(f"maintenance: the database: {error}")
        return CANNOT
    except OSError as error:
        say(f"maintenance: {error.filename or whole(arguments.database)}: {error.strerror}")
        return CANNOT


def end(arguments: argparse.Namespace, number: int, frame: Any) -> None:
    """End at once, by a signal. Remove the unfinished copy."""
    target = arguments.path if arguments.run is snapshot else arguments.database
    if isinstance(target, Path) and arguments.run in (snapshot, restore, compact):
        copies.CREATING.acquire(timeout=1)  # a second signal may find it taken by the first
        with contextlib.suppress(OSError):
            copies.remove_leftovers(Path(os.path.realpath(target)) if arguments.run is not snapshot else target)
    more = f"; the server may still remove up to {bounds.OPERATOR_ACCOUNTS}" if arguments.run is remove else ""
    if arguments.run is migrate:
        more = f"; the source takes changes again within {bounds.LEASE_SECONDS} s, unless all was moved"
    say(f"maintenance: interrupted{more}")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
