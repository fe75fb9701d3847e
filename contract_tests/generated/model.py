"""The model of a backup server: openapi.yaml in plain Python, without HTTP, files or threads.

    model = Model(Settings())
    assert model.answer(call, now) == what a server answered to the call at that time

test_random_lives.py uses it. Times are Unix milliseconds, except `created`, which is in Unix seconds.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from contract_tests.target.openapi import LIMITS, SPEC

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
SKEW = LIMITS["signatureSkewSeconds"]  # how far `created` may be from the server's clock
RESERVED = LIMITS["deletedUserSeconds"] * SECOND  # how long a deleted userId stays reserved
KNOWN = LIMITS["knownAddressDays"] * DAY  # how long an address is known to an account
MOST_KNOWN = LIMITS["knownAddresses"]  # how many addresses are known to an account at most
ATTEMPTS = LIMITS["newAddressAttempts"]  # how many failures of an address that is not known are always compared, a day
SIGNATURE_LIFE = (2 * SKEW + LIMITS["requestBodySeconds"] + 1) * SECOND  # its last second counts as well
REFUSED = 20  # how many signatures of refused uploads are remembered of an account
DEFAULTS = SPEC["x-configurable-limits"]


@dataclass(frozen=True)
class Settings:
    """The limits that a deployment may set."""

    hour: int = DEFAULTS["BACKUPS_PER_HOUR"]
    day: int = DEFAULTS["BACKUPS_PER_DAY"]
    key_hour: int = DEFAULTS["KEY_CHANGES_PER_HOUR"]
    key_day: int = DEFAULTS["KEY_CHANGES_PER_DAY"]
    registrations: int = DEFAULTS["REGISTRATIONS_PER_HOUR"]
    failures: int = DEFAULTS["FAILED_CREDENTIALS_PER_5_MINUTES"]
    account_failures: int = DEFAULTS["FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY"]
    keep: tuple[int, ...] = tuple(map(int, DEFAULTS["KEEP_VERSIONS"].split(",")))
    account_bytes: int = DEFAULTS["ACCOUNT_BYTES"]


@dataclass(frozen=True)
class Call:
    """A request that the app signed. If its body or version is malformed, `flaw` is the outcome that it must get."""

    operation: str
    user_id: str = field(repr=False)
    key: str = field(repr=False)
    created: int
    signature: str = field(repr=False)
    address: str
    blob: bytes = field(default=b"", repr=False)
    base: str | None = None
    new_key: str | None = field(default=None, repr=False)
    version: int = 0
    if_none_match: str = ""
    flaw: str | None = None


@dataclass(frozen=True)
class Version:
    """A kept version, and when it was stored."""

    number: int
    moment: int
    blob: bytes = field(repr=False)
    key_version: int

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.blob).hexdigest()

    @property
    def etag(self) -> str:
        return f'"{self.number}-{self.sha256}"'

    def receipt(self) -> dict[str, Any]:
        return {
            "version": self.number,
            "updatedAt": rfc3339(self.moment),
            "size": len(self.blob),
            "sha256": self.sha256,
            "keyVersion": self.key_version,
        }


@dataclass
class Account:
    """An account that exists. `spent` has the signatures under which a version was stored.

    `accepted` has the times of uploads and key changes, by operation.
    """

    created: int
    key: str = field(repr=False)
    key_version: int = 1
    versions: list[Version] = field(default_factory=list)  # the kept ones, oldest first
    accepted: dict[str, list[int]] = field(default_factory=lambda: {"storeBackup": [], "changeStorageKey": []})
    spent: set[str] = field(default_factory=set, repr=False)

    @property
    def latest(self) -> Version | None:
        return self.versions[-1] if self.versions else None


@dataclass(frozen=True)
class Answer:
    """What the model expects: a status, with the code of a problem, and the expected members and headers by name."""

    outcome: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Memory:
    """What a server forgets when it restarts.

    The failed credentials: of an address, of a known address with its account, of an account, and of an address that is
    not known with an account. Then the addresses known to accounts, the registrations of an address, and the signatures
    of refused uploads, with the time of the refusal.
    """

    of_address: dict[str, list[int]] = field(default_factory=dict)
    of_known: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    of_account: dict[str, list[int]] = field(default_factory=dict)
    attempts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    known: dict[tuple[str, str], int] = field(default_factory=dict)
    registrations: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)

    def has_failed(self, address: str) -> bool:
        """Return whether any credentials from this address have failed."""
        return address in self.of_address or any(address == known for _, known in self.of_known)


@dataclass
class Model:
    """The accounts, the userIds that are reserved after a deletion, and what the server has in its memory."""

    settings: Settings
    accounts: dict[str, Account] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)

    def restart(self) -> None:
        self.memory = Memory()

    def answer(self, call: Call, now: int) -> Answer:
        """Carry out a call at this time. Return the answer that it must get."""
        if abs(now // SECOND - call.created) > SKEW:
            return Answer("401 signature_expired", {"serverTime": now // SECOND})
        if wait := self.wait_to_be_compared(call, now):
            policy = self.policy(call.operation) if call.operation in ("storeBackup", "changeStorageKey") else {}
            return Answer("429 rate_limited", {"Retry-After": wait} | policy)
        if call.operation == "registerUser":
            return self.register(call, now)
        account = self.accounts.get(call.user_id)
        if account is None or account.key != call.key:
            self.fail(call, now)
            return Answer("401 credentials_invalid")
        self.make_known(call, now)
        if call.flaw:
            return Answer(call.flaw)
        operations: dict[str, Callable[[Account, Call, int], Answer]] = {
            "storeBackup": self.store,
            "changeStorageKey": self.store,
            "fetchBackup": self.fetch,
            "fetchBackupVersion": self.fetch,
            "listBackupVersions": self.list_versions,
            "deleteUser": self.delete,
        }
        return operations[call.operation](account, call, now)

    def register(self, call: Call, now: int) -> Answer:
        account = self.accounts.get(call.user_id)
        if account and account.key == call.key:
            self.make_known(call, now)
            return Answer("200", {"createdAt": rfc3339(account.created)})
        if wait := self.wait_to_register(call, now):
            self.fail(call, now)
            return Answer("429 rate_limited", {"Retry-After": max(wait, self.wait_to_be_compared(call, now))})
        if account:
            self.fail(call, now)
            return Answer("409 username_taken")
        if call.user_id in self.deleted and (left := self.deleted[call.user_id] + RESERVED - now) > 0:
            return Answer("409 recently_deleted", {"Retry-After": seconds(left)})
        self.memory.registrations.setdefault(call.address, []).append(now)
        self.make_known(call, now)
        self.accounts[call.user_id] = Account(now, call.key)
        return Answer("201", {"createdAt": rfc3339(now)})

    def wait_to_register(self, call: Call, now: int) -> int:
        """Return after how many whole seconds this address may register an account. 0 means at once."""
        registered = self.memory.registrations.get(call.address, [])
        return seconds_to_wait(registered, [(self.settings.registrations, HOUR)], now)

    def store(self, account: Account, call: Call, now: int) -> Answer:
        latest, refused = account.latest, self.memory.refused.setdefault(call.user_id, {})
        if call.new_key == account.key:
            return Answer("422 validation_failed")
        if latest and latest.blob == call.blob and call.new_key is None:  # a retry
            remember(refused, call.signature, now)
            return Answer("200", latest.receipt() | self.rate_limit(account, call.operation, now))
        is_refused = call.signature in refused and now - refused[call.signature] < SIGNATURE_LIFE
        if call.base != (latest and latest.sha256) or call.signature in account.spent or is_refused:
            remember(refused, call.signature, now)
            return Answer("409 version_conflict", {"currentVersion": latest.number if latest else 0})
        if wait := seconds_to_wait(account.accepted[call.operation], self.limits(call.operation).values(), now):
            remember(refused, call.signature, now)
            limit = self.rate_limit(account, call.operation, now)
            return Answer("429 rate_limited", {"Retry-After": wait} | limit)
        account.key_version += call.new_key is not None
        account.key = call.new_key or account.key
        version = Version(latest.number + 1 if latest else 1, now, call.blob, account.key_version)
        account.versions = within(kept([*account.versions, version], self.settings.keep), self.settings.account_bytes)
        account.accepted[call.operation].append(now)
        account.spent.add(call.signature)
        if call.new_key:
            self.make_unknown(call.user_id)
            self.make_known(call, now)
        limit = self.rate_limit(account, call.operation, now)
        return Answer("200" if call.new_key else "201", version.receipt() | limit)

    def fetch(self, account: Account, call: Call, now: int) -> Answer:
        if call.operation == "fetchBackup":
            found, problem = account.latest, "404 no_backup"
        else:
            found = next((version for version in account.versions if version.number == call.version), None)
            problem = "404 no_such_version"
        if found is None:
            return Answer(problem)
        if call.if_none_match == "*" or found.etag in call.if_none_match:
            return Answer("304", {"ETag": found.etag})
        return Answer("200", found.receipt() | {"ETag": found.etag, "data": found.sha256})

    def list_versions(self, account: Account, call: Call, now: int) -> Answer:
        return Answer("200", {"versions": [version.receipt() for version in reversed(account.versions)]})

    def delete(self, account: Account, call: Call, now: int) -> Answer:
        del self.accounts[call.user_id]
        self.deleted[call.user_id] = now
        self.make_unknown(call.user_id)
        return Answer("204")

    def counts(self) -> list[int]:
        """Return the numbers of users, of users with a backup, and of versions."""
        kept = [len(account.versions) for account in self.accounts.values()]
        return [len(kept), sum(map(bool, kept)), sum(kept)]

    # ---- Guessing ------------------------------------------------------------------------------------------

    def fail(self, call: Call, now: int) -> None:
        """Count failed credentials. Keep as many times as their limit needs."""
        pair, of_5_minutes = (call.user_id, call.address), self.settings.failures
        if self.may_be_known(call, now) and self.is_known(call, now):
            counts = [(self.memory.of_known.setdefault(pair, []), of_5_minutes)]
        else:
            counts = [(self.memory.of_address.setdefault(call.address, []), of_5_minutes)]
            counts.append((self.memory.attempts.setdefault(pair, []), ATTEMPTS))
        counts.append((self.memory.of_account.setdefault(call.user_id, []), self.settings.account_failures))
        for times, quota in counts:
            times.append(now)
            del times[:-quota]

    def wait_to_be_compared(self, call: Call, now: int) -> int:
        """Return after how many whole seconds the credentials of this call are compared. 0 means at once."""
        memory, pair, may_be_known = self.memory, (call.user_id, call.address), self.may_be_known(call, now)
        of_address, of_known = memory.of_address.get(call.address, []), memory.of_known.get(pair, [])
        of_account, attempts = memory.of_account.get(call.user_id, []), memory.attempts.get(pair, [])
        known = [memory.known[pair]] if pair in memory.known else []

        def is_compared(at: int) -> bool:
            if may_be_known and self.is_known(call, at):
                return len(counted(of_known, 5 * MINUTE, at)) < self.settings.failures
            return len(counted(of_address, 5 * MINUTE, at)) < self.settings.failures and (
                len(counted(of_account, DAY, at)) < self.settings.account_failures
                or len(counted(attempts, DAY, at)) < ATTEMPTS
            )

        windows = [(of_address, 5 * MINUTE), (of_known, 5 * MINUTE), (of_account, DAY), (attempts, DAY), (known, KNOWN)]
        waits = {seconds(time + window - now) for times, window in windows for time in times}
        waits |= {seconds(time - now) for time in known}  # a clock that was set back makes an address known later
        return next(wait for wait in sorted({0} | waits) if wait >= 0 and is_compared(now + wait * SECOND))

    def may_be_known(self, call: Call, now: int) -> bool:
        """Return whether it matters that the address is known. To a registration past its limit, no address is."""
        return call.operation != "registerUser" or not self.wait_to_register(call, now)

    def is_known(self, call: Call, now: int) -> bool:
        times = [time for pair, time in self.memory.known.items() if pair == (call.user_id, call.address)]
        return bool(counted(times, KNOWN, now))

    def make_known(self, call: Call, now: int) -> None:
        """Note that right credentials came from this address. The last address used is the last of `known`."""
        known, pair = self.memory.known, (call.user_id, call.address)
        known.pop(pair, None)
        known[pair] = now
        for oldest in [each for each in known if each[0] == call.user_id][:-MOST_KNOWN]:
            del known[oldest]

    def make_unknown(self, user_id: str) -> None:
        self.memory.known = {pair: time for pair, time in self.memory.known.items() if pair[0] != user_id}

    # ---- Limits --------------------------------------------------------------------------------------------

    def limits(self, operation: str) -> dict[str, tuple[int, int]]:
        """Return the quota and the window of each limit that an operation has, by name."""
        if operation == "storeBackup":
            return {"hour": (self.settings.hour, HOUR), "day": (self.settings.day, DAY)}
        return {"key-hour": (self.settings.key_hour, HOUR), "key-day": (self.settings.key_day, DAY)}

    def policy(self, operation: str) -> dict[str, str]:
        limits = self.limits(operation).items()
        return {"RateLimit-Policy": ", ".join(f'"{name}";q={q};w={window // SECOND}' for name, (q, window) in limits)}

    def rate_limit(self, account: Account, operation: str, now: int) -> dict[str, str]:
        items = []
        for name, (quota, window) in self.limits(operation).items():
            times = counted(account.accepted[operation], window, now)
            t = f";t={seconds(min(times) + window - now)}" if times else ""
            items.append(f'"{name}";r={max(quota - len(times), 0)}{t}')
        return {"RateLimit": ", ".join(items)} | self.policy(operation)


def remember(refused: dict[str, int], signature: str, now: int) -> None:
    """Remember the signature of a refused upload, but not more of them than the last ones."""
    if refused.setdefault(signature, now) == now and len(refused) > REFUSED:
        del refused[next(iter(refused))]


def counted(times: list[int], window: int, now: int) -> list[int]:
    """Return the times within a sliding window: less than `window` old, and not in the future."""
    return [time for time in times if now - window < time <= now]


def seconds_to_wait(times: list[int], limits: Iterable[tuple[int, int]], now: int) -> int:
    """Return how many whole seconds to wait until every limit (quota, window) allows one more. 0 means at once."""
    for wait in sorted({0} | {seconds(time + window - now) for time in times for _, window in limits}):
        later = now + wait * SECOND
        if wait >= 0 and all(len(counted(times, window, later)) < quota for quota, window in limits):
            return wait
    raise AssertionError("there is room after the last one has left")


def seconds(milliseconds: int) -> int:
    """Convert to seconds, rounded up."""
    return -(-milliseconds // SECOND)


def rfc3339(moment: int) -> str:
    return datetime.fromtimestamp(moment // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def kept(versions: list[Version], keep: tuple[int, ...]) -> list[Version]:
    """Return the versions to keep, oldest first.

    They are the last ones, and the newest of each of the last days, ISO weeks and months; `keep` has the four numbers.
    Days, weeks and months are ordered by the newest version that they hold.
    """
    periods = (lambda at: at.date(), lambda at: at.isocalendar()[:2], lambda at: (at.year, at.month))
    chosen = versions[-keep[0] :]
    for period, count in zip(periods, keep[1:], strict=True):
        newest: dict[Any, Version] = {}
        for version in reversed(versions):
            newest.setdefault(period(datetime.fromtimestamp(version.moment // SECOND, UTC)), version)
        chosen += list(newest.values())[:count]
    return [version for version in versions if version in chosen]


def within(versions: list[Version], most: int) -> list[Version]:
    """Drop the oldest until all have `most` bytes together, but not the last two, nor the newest of an earlier day."""
    earlier = [version for version in versions if version.moment // DAY < versions[-1].moment // DAY]
    spare = [version for version in versions if version not in versions[-2:] + earlier[-1:]]
    while spare and sum(len(version.blob) for version in versions) > most:
        versions = [version for version in versions if version is not spare[0]]
        del spare[0]
    return versions


def copied(part: Any) -> Any:
    """Return a copy of a model or of a part. It shares only what never changes, and is much faster than deepcopy."""
    if isinstance(part, Model | Account | Memory):
        return type(part)(**{name: copied(value) for name, value in vars(part).items()})
    if isinstance(part, dict):
        return {key: copied(value) for key, value in part.items()}
    return part.copy() if isinstance(part, list | set) else part


# ---- Several calls at once ---------------------------------------------------------------------------------


def after_some_order(
    model: Model,
    exchanges: list[tuple[Call, Any]],
    fits: Callable[[Answer, Any], bool],
    now: int,
    spans: list[tuple[float, float]] | None = None,
) -> Iterator[Model]:
    """Yield the model after each serial order of the calls in which every answer fits the model's answer.

    If there is no such order, yield nothing. `fits(expected, answer)` compares two answers. `spans` says when each call
    began and ended, if that is known: a call comes after those that had ended before it began. This is the search of
    Wing and Gong for a linearization. Without spans, all calls were made at once.
    """
    if not exchanges:
        yield model
    for index, (call, answer) in enumerate(exchanges):
        rest = exchanges[:index] + exchanges[index + 1 :]
        if spans:
            later = spans[:index] + spans[index + 1 :]
            if any(ended < spans[index][0] for _, ended in later):
                continue
        else:
            later = None
            if (call, answer) in exchanges[:index]:
                continue
        after: Model = copied(model)
        if fits(after.answer(call, now), answer):
            yield from after_some_order(after, rest, fits, now, later)
            if after == model:  # a call that changes nothing may as well have been the first
                return
