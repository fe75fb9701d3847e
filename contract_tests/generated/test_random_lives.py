"""Random lives of a few users, compared with a model. After each step, the server must be as model.py says.

Hypothesis generates the steps: right and wrong calls, captured requests that are sent again, calls at once, seconds and
months that pass, restarts and crashes. `--fuzz-seed` repeats a run, and `--model-examples` makes it longer. If a life
fails, Hypothesis tries for a while to reduce it to the steps that matter. The failure shows each call and its answer.

There are two machines. One lives on a server of its own. That server's clock moves only if a step moves it, so each
number is exact. The other lives on any target, with the real time.
"""

import itertools
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisException, StopTest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from clients.python.backup_client import authorization, content_digest, sign
from contract_tests.generated.exchanges import (
    OPERATIONS,
    Exchange,
    of_contract,
    request_to,
    seen,
    send_all,
    signed,
    timeless,
)
from contract_tests.generated.model import (
    SECOND,
    SKEW,
    Account,
    Answer,
    Call,
    Model,
    Settings,
    Version,
    after_some_order,
    copied,
)
from contract_tests.target import openapi
from contract_tests.target.calls import FromAddress, eventually, sha256
from contract_tests.target.checked_client import CheckedSession
from contract_tests.target.process import ServerProcess
from contract_tests.target.target import TargetSession

STEPS = 40  # how many steps a life has
SHORTEN = 60  # how many seconds to spend on shortening a life that failed
USERS = 4
SMALL = 100_000  # a backup of at most so many bytes is fetched and sent again after each step
SURE = 4  # how many last versions the full profile needs the target to keep

# What a life is made of. Small numbers stand for things that exist at the time of the step.
users = st.integers(0, USERS - 1)
keys = st.sampled_from([0] * 8 + [1, 2])  # 0 is the key in force
other_keys = st.sampled_from([1, 2])
addresses = st.sampled_from([0, 0, 0, 1])
drifts = st.sampled_from([0] * 8 + [SKEW, -SKEW, SKEW + 1, -SKEW - 1])  # seconds that a device's clock is ahead
BLOBS = [random.Random(size).randbytes(size) for size in (1, 2, 3, 400, 70_000)]
blobs = st.sampled_from([*range(len(BLOBS)), -1])  # -1 is the latest blob, again
bases = st.sampled_from(["latest"] * 6 + ["none", "older", "own", "another user's"])
etags = st.sampled_from(["", "{0}", "W/{0}", '"0-0", {0}', "*", "{1}", '"latest"'])  # {1}: an older version's
MOST = openapi.MAX_DECODED_BYTES
sizes = st.sampled_from([1_048_577, MOST, MOST + 1, MOST + 2])
HOUR, DAY = 3600, 86_400
waits = st.sampled_from([0.125, 1, 60, 299.875, 300, 301, 600, 900, 901, 901, 1800, 3599.875, HOUR, HOUR, 6 * HOUR])
waits |= st.sampled_from([DAY - 1, DAY, DAY, 2 * DAY, 7 * DAY, 30 * DAY, 31 * DAY, 400 * DAY])
STARTS = [1_795_510_800, 1_798_702_200, 1_801_353_600, 1_835_384_399]  # 2026-11-24T09, 12-31T06:50, 2027-01-31T00, …

# Requests that the user sends through the app, and that must be refused nevertheless.
FLAWED: dict[str, tuple[str, str, bytes, str]] = {
    "no JSON": ("storeBackup", "", b'{"data":', "400 malformed_request"),
    "a member twice": ("storeBackup", "", b'{"data":"QQ==","data":"Qg=="}', "400 malformed_request"),
    "no data": ("storeBackup", "", b"{}", "422 validation_failed"),
    "no base64": ("storeBackup", "", b'{"data":"QUJ*"}', "422 validation_failed"),
    "no padding": ("storeBackup", "", b'{"data":"QQ"}', "422 validation_failed"),
    "unused bits": ("storeBackup", "", b'{"data":"QR=="}', "422 validation_failed"),
    "nothing": ("storeBackup", "", b'{"data":""}', "422 validation_failed"),
    "a number as base": ("storeBackup", "", b'{"data":"QQ==","baseSha256":1}', "422 validation_failed"),
    "a short key": ("changeStorageKey", "", b'{"data":"QQ==","storageKey":"ab"}', "422 validation_failed"),
    "a body": ("deleteUser", "", b"{}", "400 malformed_request"),
    "version 0": ("fetchBackupVersion", "0", b"", "404 no_such_version"),
    "version 01": ("fetchBackupVersion", "01", b"", "404 no_such_version"),
}
# What happens at once: the operation, and its key, new key and blob.
RACING: dict[str, tuple[str, dict[str, int]]] = {
    "store": ("storeBackup", {"blob": 0}),
    "store another": ("storeBackup", {"blob": 1}),
    "store a large one": ("storeBackup", {"blob": 4}),
    "store the latest": ("storeBackup", {"blob": -1}),
    "change the key": ("changeStorageKey", {"blob": 2, "new": 1}),
    "change it to another": ("changeStorageKey", {"blob": 2, "new": 2}),
    "delete": ("deleteUser", {}),
    "register": ("registerUser", {}),
    "register with another key": ("registerUser", {"key": 1}),
    "fetch": ("fetchBackup", {}),
    "list": ("listBackupVersions", {}),
    "guess": ("fetchBackup", {"key": 1}),
}
# What was signed instead of what is sent.
FORGED: dict[str, dict[str, Any]] = {
    "by another secret": {"secret": "not the secret of this server, but as long"},
    "by another keyid": {"keyid": "nobody-s"},
    "for another method": {"method": "GET"},
    "for another path": {"path": "/api/user"},
    "for other credentials": {"authorization": authorization("5e" * 32, "5e" * 32)},
    "for another digest": {"body": b"{}"},
}


@dataclass
class Failure:
    """How a life failed: when (by time.monotonic), after how many lines of its story, and with which error."""

    at: float
    steps: int
    exception: BaseException


class Enough(BaseException):
    """Hypothesis has spent enough time on shortening a life that failed."""


# ---- On any server -----------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """What users and strangers do on any server."""

    numbers = itertools.count(1)  # for addresses that nobody has used

    def __init__(self, target: Any, limits: Settings, failures: list[Failure]) -> None:
        super().__init__()
        if failures and time.monotonic() > failures[0].at + SHORTEN:
            raise Enough
        self.target = target
        self.failures = failures
        self.models = [Model(limits)]  # several, as long as the order of calls at once is not known
        self.users = [token_hex(32) for _ in range(USERS)]
        key = token_hex(32)
        self.keys = [key, key[:-1] + f"{int(key[-1], 16) ^ 1:x}", f"{int(key[0], 16) ^ 1:x}" + key[1:]]
        self.stored: list[list[str]] = [[sha256(b"never stored")] for _ in self.users]  # hashes
        self.sent: list[Exchange] = []
        self.told: Exchange | None = None  # the last call that got Retry-After
        self.touched: set[int] = set()
        self.turn = itertools.count()
        self.had_large = False
        self.story: list[str] = []
        self.sessions: dict[str, requests.Session] = {}
        self.move()

    def teardown(self) -> None:
        """Check everything and delete all users. If the life failed, note how."""
        try:
            if sys.exception() is None:
                self.end()
        finally:
            failure = sys.exception()
            if failure and not isinstance(failure, (HypothesisException, StopTest)):
                failure.add_note("\n".join(["This is what happened:", *self.story]))
                self.failures.append(Failure(time.monotonic(), len(self.story), failure))
            for session in self.sessions.values():
                session.close()

    def end(self) -> None:
        for user, user_id in enumerate(self.users):
            if account := self.model.accounts.get(user_id):
                for version in self.surely_kept(account):
                    self.look("fetchBackupVersion", user, version=version.number)
                self.do(self.prepare("deleteUser", user, address=self.quiet_address()))
            self.look("listBackupVersions", user)

    # ---- Addresses, keys, versions -------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        return self.models[0]

    def now(self) -> int:
        return int(self.target.now() * SECOND)

    def move(self) -> None:
        """Give everybody addresses that nobody has used."""
        self.addresses = [self.new_address(), self.new_address()]
        self.quiet = self.new_address()
        self.told = None

    def new_address(self) -> str:
        return ""  # for any other server, this machine has only one address

    def quiet_address(self) -> str:
        """Return an address from which no credentials have failed."""
        if self.model.memory.has_failed(self.quiet):
            self.quiet = self.new_address()
        return self.quiet

    def new_session(self, address: str) -> requests.Session:
        return TargetSession(self.target)

    def session(self, address: str) -> requests.Session:
        if address not in self.sessions:
            self.sessions[address] = self.new_session(address)
        return self.sessions[address]

    def created(self, drift: int) -> int:
        """Return the time of a device's clock, in Unix seconds.

        The target's clock may be up to 300 s from this machine's. So the result is never near the edge of the window.
        """
        far = {SKEW: 0, SKEW + 1: 3 * SKEW}
        return self.now() // SECOND + (far.get(drift, 0) - far.get(-drift, 0))

    def key_of(self, user: int, number: int = 0) -> str:
        """Return the key in force, or another."""
        account = self.model.accounts.get(self.users[user])
        in_force = self.keys.index(account.key) if account else 0
        return self.keys[(in_force + number) % len(self.keys)]

    def latest(self, user: int) -> Version | None:
        account = self.model.accounts.get(self.users[user])
        return account.latest if account else None

    def surely_kept(self, account: Account) -> list[Version]:
        return account.versions[-SURE:]

    def surely_not_kept(self, account: Account) -> list[int]:
        return [account.latest.number + 1 if account.latest else 1]

    def upload(self, user: int, blob: int, base: str) -> dict[str, Any]:
        """Return the arguments of an upload."""
        latest = self.latest(user)
        data = latest.blob if latest and blob < 0 else BLOBS[blob]
        named = {
            "latest": latest and latest.sha256,
            "none": None,
            "older": self.stored[user][-2:][0],
            "own": sha256(data),
            "another user's": self.stored[user - 1][-1],
        }
        return {"blob": data, "base": named[base]}

    # ---- Calls ---------------------------------------------------------------------------------------------

    def prepare(
        self, operation: str, user: int, *, key: int = 0, address: int | str = 0, drift: int = 0, **arguments: Any
    ) -> Exchange:
        """Return a signed request that is not sent yet."""
        address = address if isinstance(address, str) else self.addresses[address]
        call = Call(operation, self.users[user], self.key_of(user, key), self.created(drift), "", address, **arguments)
        return signed(self.target, call, OPERATIONS[operation])

    def send(self, exchange: Exchange) -> requests.Response:
        request = request_to(self.target, exchange)
        response = self.session(exchange.call.address).send(request, timeout=60, allow_redirects=False)
        exchange.answer = seen(response)
        return response

    def do(self, *exchanges: Exchange) -> Answer:
        """Send requests, at once if there are several. Compare the answers with the model's. Return the last answer."""
        send_all(self.send, exchanges)
        self.settle(*exchanges)
        answer = exchanges[-1].answer
        assert answer
        return answer

    def settle(self, *exchanges: Exchange) -> None:
        """Raise AssertionError unless the model gives the same answers, for some order of the calls."""
        pairs = [(exchange.call, exchange.answer) for exchange in exchanges]
        for call, answer in pairs:
            self.story.append(f"  user {self.users.index(call.user_id)} {call}: {answer}")
            self.touched.add(self.users.index(call.user_id))
        models = [after for model in self.models for after in after_some_order(model, pairs, self.fits, self.now())]
        if not models:
            wanted = [copied(self.model).answer(call, self.now()) for call, _ in pairs]
            raise AssertionError(f"the model, {'one by one' if len(pairs) > 1 else 'however'}, answers {wanted}")
        self.models = [model for index, model in enumerate(models) if model not in models[:index]]

    def fits(self, expected: Answer, answer: Answer) -> bool:
        """Return whether an answer is the model's, apart from times and from the number of older versions kept."""
        expected, answer = timeless(expected), timeless(of_contract(answer, expected))
        wanted, listed = expected.facts.pop("versions", []), answer.facts.pop("versions", [])
        numbers = [receipt["version"] for receipt in listed]
        return (
            expected == answer
            and listed[:SURE] == wanted[:SURE]
            and all(receipt in wanted for receipt in listed)
            and numbers == sorted(set(numbers), reverse=True)
        )

    def act(self, operation: str, user: int, **arguments: Any) -> Answer:
        """Make a call of a step. Keep it, so that a later step can send it again."""
        exchange = self.prepare(operation, user, **arguments)
        return self.do_and_keep(exchange)

    def do_and_keep(self, exchange: Exchange) -> Answer:
        answer = self.do(exchange)
        self.sent.append(exchange)
        if "Retry-After" in answer.facts:
            self.told = exchange
        return answer

    def look(self, operation: str, user: int, **arguments: Any) -> None:
        """Make a call that changes nothing, from an address that is not limited."""
        self.do(self.prepare(operation, user, address=self.quiet_address(), **arguments))

    # ---- After each step -----------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        touched, turn = self.touched.copy(), next(self.turn)
        for user, user_id in enumerate(self.users):
            if user in touched or user_id in self.model.accounts or turn % USERS == user:
                self.look("listBackupVersions", user)
        for user in touched:
            self.look_closely(user, turn)
        for user in range(USERS):
            if (latest := self.latest(user)) and latest.sha256 not in self.stored[user]:
                self.stored[user].append(latest.sha256)
        self.touched.clear()
        self.story.append("")

    def look_closely(self, user: int, turn: int) -> None:
        """Check a version, one that does not exist, the limits that a retry shows, and another user's key."""
        if (account := self.model.accounts.get(self.users[user])) and (latest := account.latest):
            if small := [version for version in self.surely_kept(account) if len(version.blob) <= SMALL]:
                self.look("fetchBackupVersion", user, version=small[turn % len(small)].number)
            missing = self.surely_not_kept(account)
            self.look("fetchBackupVersion", user, version=missing[turn % len(missing)])
            if len(latest.blob) <= SMALL:
                self.look("fetchBackup", user)
                self.look("storeBackup", user, blob=latest.blob)
        self.look("fetchBackup", user, key=1 + turn % 2)

    # ---- Steps ---------------------------------------------------------------------------------------------

    @initialize(count=st.sampled_from([2, 3, 1, 0]))
    def begin(self, count: int) -> None:
        for user in range(count):
            self.act("registerUser", user, address=self.new_address())

    @rule(user=users, key=keys, drift=drifts, address=addresses)
    def register(self, user: int, key: int, drift: int, address: int) -> None:
        self.act("registerUser", user, key=key, drift=drift, address=address)

    @rule(user=users, blob=blobs, base=bases, key=keys, drift=drifts, address=addresses)
    def store(self, user: int, blob: int, base: str, key: int, drift: int, address: int) -> None:
        self.act("storeBackup", user, key=key, drift=drift, address=address, **self.upload(user, blob, base))

    @rule(user=users, count=st.integers(2, 6))
    def store_several(self, user: int, count: int) -> None:
        for number in range(count):
            self.act("storeBackup", user, **self.upload(user, number % len(BLOBS), "latest"))

    @rule(user=users, new=st.sampled_from([1, 1, 2, 2, 0]), blob=blobs, base=bases, key=keys, drift=drifts)
    def change_key(self, user: int, new: int, blob: int, base: str, key: int, drift: int) -> None:
        new_key = self.key_of(user, key + new)
        self.act("changeStorageKey", user, key=key, drift=drift, new_key=new_key, **self.upload(user, blob, base))

    @rule(user=users, etag=etags, key=keys, address=addresses)
    def fetch(self, user: int, etag: str, key: int, address: int) -> None:
        self.act("fetchBackup", user, key=key, address=address, if_none_match=self.if_none_match(user, etag))

    @rule(user=users, back=st.integers(0, SURE - 1), etag=etags, key=keys)
    def fetch_version(self, user: int, back: int, etag: str, key: int) -> None:
        account = self.model.accounts.get(self.users[user])
        kept = self.surely_kept(account) if account else []
        number = kept[-1 - back].number if back < len(kept) else (kept[-1].number + 1 if kept else 1)
        match = self.if_none_match(user, etag)
        self.act("fetchBackupVersion", user, key=key, version=number, if_none_match=match)

    def if_none_match(self, user: int, etag: str) -> str:
        account = self.model.accounts.get(self.users[user])
        newest_first = [version.etag for version in reversed(account.versions)] if account else []
        return etag.format(*newest_first, '"no-such"', '"version"')

    @rule(user=users, key=keys, drift=drifts, address=addresses)
    def delete(self, user: int, key: int, drift: int, address: int) -> None:
        self.act("deleteUser", user, key=key, drift=drift, address=address)

    @rule(number=st.integers(0, 30), address=addresses)
    def replay(self, number: int, address: int) -> None:
        """Send a request again, byte for byte, that was captured a while ago."""
        if self.sent:
            captured = self.sent[-1 - number % len(self.sent)]
            self.do(Exchange(replace(captured.call, address=self.addresses[address]), captured.request))

    @rule(user=users, name=st.sampled_from(list(FLAWED)), key=keys)
    def send_flawed(self, user: int, name: str, key: int) -> None:
        operation_id, version, body, flaw = FLAWED[name]
        operation = openapi.OPERATIONS[operation_id]
        address, path = self.addresses[0], operation.path.replace("{version}", version)
        call = Call(operation_id, self.users[user], self.key_of(user, key), self.created(0), "", address, flaw=flaw)
        headers = {"Content-Type": "application/json"}
        make = lambda client, call: client.request(operation.method, path, body=body, headers=headers)  # noqa: E731
        self.do(signed(self.target, call, make))

    @rule(user=users, name=st.sampled_from(list(FORGED)))
    def send_forged(self, user: int, name: str) -> None:
        """Send an upload that its user might have made, but with something else signed."""
        exchange = self.prepare("storeBackup", user, **self.upload(user, 3, "latest"))
        body, right = exchange.request.body, authorization(self.users[user], self.key_of(user))
        assert isinstance(body, bytes)
        what = {"method": "POST", "path": "/api/backup", "body": body, "authorization": right}
        by = {"secret": self.target.secret, "keyid": self.target.keyid, "created": self.created(0)}
        exchange.request.headers.update(sign(**what | by | FORGED[name]))
        exchange.request.headers.update({"Authorization": right, "Content-Digest": content_digest(body)})
        self.send(exchange)
        self.story.append(f"  user {user} {exchange.call}, signed {name}: {exchange.answer}")
        assert exchange.answer and exchange.answer.outcome == "401 signature_invalid"
        self.touched.add(user)

    @rule(user=users, size=sizes)
    def store_large(self, user: int, size: int) -> None:
        """Store a large blob. Do this only once in a life, because it takes some time."""
        if not self.had_large:
            self.had_large = True
            latest = self.latest(user)
            flaw = "413 payload_too_large" if size > MOST else None
            upload = {"blob": random.Random(size).randbytes(size), "base": latest and latest.sha256}
            self.do(self.prepare("storeBackup", user, flaw=flaw, **upload))
            self.look("fetchBackup", user)

    @rule(calls=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(list(RACING))), min_size=2, max_size=5))
    def call_at_once(self, calls: list[tuple[int, str]]) -> None:
        """Make calls of two users at once, each from its own address. Some order of them must explain the result."""
        self.do(*(self.racing(user, name) for user, name in calls))

    def racing(self, user: int, name: str) -> Exchange:
        operation, options = RACING[name]
        arguments = {"key": options.get("key", 0), "address": self.new_address()}
        if "blob" in options:
            arguments |= self.upload(user, options["blob"], "latest")
        if "new" in options:
            arguments["new_key"] = self.key_of(user, options["new"])
        return self.prepare(operation, user, **arguments)


# ---- On a server of its own --------------------------------------------------------------------------------


class LifeOfAServer(Life):
    """The same life on a server of its own: its clock moves, it is stopped and killed, and there are many addresses."""

    target: ServerProcess

    def __init__(self, target: ServerProcess, limits: Settings, failures: list[Failure]) -> None:
        if not target.running():  # the last step of the life before may have stopped it
            target.start()
        super().__init__(target, limits, failures)
        self.restarts = 1  # how many are left; each takes half a second
        self.others = self.counts()

    def new_address(self) -> str:
        number = next(Life.numbers)
        return f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    def new_session(self, address: str) -> requests.Session:
        session = CheckedSession(self.target.observer)
        session.mount("http://", FromAddress(address))
        return session

    def created(self, drift: int) -> int:
        return self.now() // SECOND + drift

    def surely_kept(self, account: Account) -> list[Version]:
        return account.versions

    def surely_not_kept(self, account: Account) -> list[int]:
        kept = {version.number for version in account.versions}
        return [number for number in range(1, max(kept, default=0) + 2) if number not in kept]

    def fits(self, expected: Answer, answer: Answer) -> bool:
        return expected == of_contract(answer, expected)

    def counts(self) -> list[int]:
        """Return the numbers of users, of users with a backup, and of versions. Wait while the server is counting."""
        operator = self.target.client(session=self.session(self.quiet))
        answers: list[requests.Response] = []

        def is_known() -> bool:
            answers.append(operator.get_admin_stats(str(self.target.admin_key)))
            return answers[-1].status_code == 200

        assert eventually(is_known)
        return [answers[-1].json()[name] for name in ("users", "backups", "versions")]

    @invariant()
    def everybody_is_counted(self) -> None:
        own = [count - others for count, others in zip(self.counts(), self.others, strict=True)]
        self.models, models = [model for model in self.models if model.counts() == own], self.models
        assert self.models, f"{own} users, backups and versions, not one of {[model.counts() for model in models]}"

    @initialize(count=st.sampled_from([2, 3, 1, 0]), start=st.sampled_from(STARTS))
    def begin(self, count: int, start: int) -> None:
        self.target.move_clock(start - self.target.now())
        super().begin(count)

    # ---- Time ----------------------------------------------------------------------------------------------

    def pass_time(self, amount: float) -> None:
        self.target.move_clock(amount)
        self.story.append(f"  {amount} s later")

    @rule(amount=waits)
    def wait(self, amount: float) -> None:
        self.pass_time(amount)

    @rule(early=st.booleans())
    def wait_as_told(self, early: bool) -> None:
        """Wait exactly as long as Retry-After says, or a second less. Then make the same call, freshly signed."""
        if (told := self.told) and told.answer:
            self.pass_time(told.answer.facts["Retry-After"] - early)
            call = replace(told.call, created=self.created(0), signature="")
            self.told = None
            self.do_and_keep(signed(self.target, call, OPERATIONS[call.operation]))

    @rule(user=users, days=st.sampled_from([3, 40, 1000]))
    def run_ahead(self, user: int, days: int) -> None:
        """Move the clock ahead, store a version, and put the clock back to a time at which no upload counts."""
        self.pass_time(days * DAY)
        self.act("storeBackup", user, **self.upload(user, 3, "latest"))
        self.pass_time((1 - days) * DAY)
        self.move()

    @rule(user=users, days=st.integers(2, 9), blob=st.integers(0, 1))
    def store_daily(self, user: int, days: int, blob: int) -> None:
        for day in range(days):
            self.pass_time(DAY)
            self.act("storeBackup", user, **self.upload(user, (blob + day) % 3, "latest"))

    # ---- Addresses -----------------------------------------------------------------------------------------

    @rule(user=users, address=addresses, key=other_keys)
    def guess(self, user: int, address: int, key: int) -> None:
        """Try as many keys as an address may try, and one more."""
        for _ in range(self.model.settings.failures + 1):
            self.act("listBackupVersions", user, key=key, address=address)

    @rule(user=users, count=st.integers(2, 6), address=addresses)
    def guess_at_once(self, user: int, count: int, address: int) -> None:
        self.do(*(self.prepare("listBackupVersions", user, key=1, address=address) for _ in range(count)))

    @rule(address=addresses)
    def register_at_once(self, address: int) -> None:
        self.do(*(self.prepare("registerUser", user, address=address) for user in range(USERS)))

    # ---- Restarts ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.restarts)
    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        self.restarts -= 1
        if is_killed:
            self.target.kill()
        else:
            assert self.target.stop() == 0
        self.target.start()
        self.forget()
        self.story.append(f"  the server was {'killed' if is_killed else 'stopped'} and started")

    @precondition(lambda self: self.restarts)
    @rule(user=st.integers(0, 1), name=st.sampled_from(list(RACING)), delay=st.sampled_from([0, 0.001, 0.002, 0.004]))
    def crash(self, user: int, name: str, delay: float) -> None:
        """Kill the server during a call. The call was carried out, or it was not."""
        self.restarts -= 1
        exchange = self.racing(user, name)

        def call() -> None:
            with suppress(requests.RequestException):
                self.send(exchange)

        thread = threading.Thread(target=call)
        thread.start()
        time.sleep(delay)
        self.target.kill()
        thread.join()
        self.target.start()
        self.story.append(f"  the server was killed and started, {delay} s after this was sent")
        if exchange.answer:
            self.settle(exchange)
        else:
            self.story.append(f"  user {user} {exchange.call}: no answer")
            carried_out = [copied(model) for model in self.models]
            for model in carried_out:
                model.answer(exchange.call, self.now())
            self.models += carried_out
            self.touched.add(user)
        self.forget()

    def forget(self) -> None:
        """Forget what a restart makes the server forget."""
        if not self.target.keeps_counts:
            for model in self.models:
                model.restart()
        self.move()


# ---- The runs ----------------------------------------------------------------------------------------------


def live(life: type[Life], target: Any, limits: Settings, request: pytest.FixtureRequest) -> None:
    """Run as many lives as --model-examples says. Raise the error of a life that failed."""
    examples = request.config.getoption("--model-examples")
    failures: list[Failure] = []
    make = seed(request.config.getoption("--fuzz-seed"))(lambda: life(target, limits, failures))
    started = time.monotonic()
    try:
        run_state_machine_as_test(
            make,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                phases=[Phase.generate, Phase.shrink],
                report_multiple_bugs=False,
                database=None,  # only the seed decides
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except (Enough, Flaky):  # calls at once may have another result the next time
        if not failures:
            raise
        raise min(failures, key=lambda failure: failure.steps).exception from None
    print(f"{examples} lives of {STEPS} steps in {time.monotonic() - started:.0f} s")


# Requirements that no single call can show, but a life can.
SEEN_ANYWHERE = (
    *("isolation.read", "isolation.write", "isolation.key", "isolation.delete"),
    *("replay.register", "replay.store", "replay.key", "replay.delete", "replay.signature", "replay.refused"),
    *("base.race", "register.race", "problem.unchanged", "backup.bytes", "version.count", "version.list"),
)
SEEN_HERE = (
    *("history.days", "history.weeks", "history.months", "history.clock", "history.listed"),
    *("limits.sliding", "limits.retry-after", "limits.remaining", "limits.free", "limits.account"),
    *("limits.key-hour", "limits.key-day", "limits.key-own"),
    *("guessing.account", "guessing.unknown", "guessing.known-address", "guessing.pair", "guessing.retry-after"),
    *("guessing.key-change", "address.registrations"),
    *("address.retry-after", "address.others", "delete.reserved", "delete.all", "admin.counts"),
    *("durability.acknowledged", "durability.whole", "durability.restart"),
)
LIMITS = {
    "the contract's": Settings(),
    "others": Settings(
        hour=3, day=7, key_hour=2, key_day=3, registrations=3, failures=4, account_failures=7, keep=(2, 1, 2, 1)
    ),
}


def server_with(start_server: Callable[..., ServerProcess], limits: Settings) -> ServerProcess:
    return start_server(
        frozen=STARTS[0],
        BACKUPS_PER_HOUR=limits.hour,
        BACKUPS_PER_DAY=limits.day,
        KEY_CHANGES_PER_HOUR=limits.key_hour,
        KEY_CHANGES_PER_DAY=limits.key_day,
        REGISTRATIONS_PER_HOUR=limits.registrations,
        FAILED_CREDENTIALS_PER_5_MINUTES=limits.failures,
        FAILED_CREDENTIALS_PER_ACCOUNT_PER_DAY=limits.account_failures,
        KEEP_VERSIONS=",".join(map(str, limits.keep)),
    )


@pytest.mark.requirement(*SEEN_ANYWHERE, *SEEN_HERE)
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_a_server_of_its_own(start_server, request, limits):
    server = server_with(start_server, limits)
    live(LifeOfAServer, server, limits, request)


@pytest.mark.requirement(*SEEN_ANYWHERE)
def test_any_server(target, new_user, request):
    target.skip_without(*OPERATIONS)
    user = new_user()
    answers = [user.store_backup(b"a probe"), user.change_storage_key(token_hex(32), b"another", sha256(b"a probe"))]
    policies = " ".join(answer.headers["RateLimit-Policy"] for answer in answers)
    quotas = [int(quota) for quota in re.findall("q=([0-9]+)", policies)]  # hour, day, key-hour, key-day
    no_limit = 1_000_000
    live(Life, target, Settings(*quotas, no_limit, no_limit, no_limit, (no_limit, 0, 0, 0)), request)


# ---- Lives that are seldom ---------------------------------------------------------------------------------


@pytest.mark.requirement("address.registrations", "address.failures", "guessing.known-address", "guessing.pair")
def test_registrations_past_the_limit_from_a_known_address(start_server):
    """For these registrations the address is not known: they count for it, and it has no advantage."""
    limits = LIMITS["others"]
    life = LifeOfAServer(server_with(start_server, limits), limits, [])
    for user in range(limits.registrations):
        life.act("registerUser", user)
    life.act("registerUser", 0, key=1)
    life.guess(0, 0, 1)  # as many as without that registration
    for _ in range(limits.failures):
        life.act("registerUser", 1, key=1)
    assert life.act("registerUser", 2).outcome == "429 rate_limited"  # not even the right key is compared
    assert life.act("fetchBackup", 2).outcome == "404 no_backup"
    life.everything_is_as_in_the_model()
    life.teardown()
