"""Every interleaving of two clients, a stranger and the clock, on one account, up to some number of steps.

A step is one of these:

- A client registers, stores a new version, changes the storage key, or deletes. Either it gets the answer, or the
  request is kept from the server and the client gets none. If the stranger then delivers it, only its answer is lost.
- A client repeats an upload that got no answer: the same bytes, freshly signed. A client signs in again: it gets the
  key in force, and fetches. A client stores the bytes of the version before the latest again.
- The stranger, who has every request of these that was ever sent, delivers one: at once, or first its head and in a
  later step its end. In between, the server has compared the credentials, but it does not hold the account yet. Only
  one request at a time is so far.
- The server restarts, and its memory is empty.
- Time passes: 1, 300, 600 or 901 seconds, or a day.

The search is breadth first, through states: the store, the server's memory, what each client knows, the requests that
the stranger can still use, and how old everything is. Of states with equal futures, it looks at one.

The clients' clocks are 300 seconds ahead, as far as the server allows, because such requests live longest: 600 seconds
until their head has arrived, and 300 more until their end. The limits are small (3 uploads an hour and 5 a day; 1 and 2
changes of the key), so that a history reaches them. It begins without an account, or with one whose two versions are 55
minutes old.

Requests and answers are real: `small_server.py` has the app and its handlers, with the store of the tests in memory or
the server's own in a file. Each answer is compared with the model of the contract. These rules of openapi.yaml are
checked in each step, whatever the model says:

- No lost update. An upload replaces the latest version only if it was made from it, and each answer tells the truth. So
  no acknowledged version is ever gone, unless one that was made from it is there, or the account was deleted.
- No resurrection. After a deletion, nothing that was sent before it changes anything, whatever has become of it, and
  whether the userId is free or has a new account.
- No replay that takes effect. A request that was accepted, also as a retry, or an upload that was refused with 409
  `version_conflict` or with 429, changes nothing when it comes again.
- A request whose signature has run out, or whose key is not in force when the account is held, changes nothing.

These exceptions are in the document, so they break no rule:

- A request that the server has not seen yet is no replay, however late it comes ("Lost answers").
- A request that was refused for another reason is not remembered, and may act later ("Replays"). So a deletion that
  comes after another one may delete a new account: hence the wait before a registration ("Deleting the account").
- A restart forgets which uploads were refused, or were retries ("Replays").

The default depth takes about three minutes on one core. It was measured so:

    in memory, 6 steps:  2,352,862 states, 5,701,505 steps, 304,933 requests to the server, 182 seconds, 0.6 GB
    in a file, 5 steps:    223,289 states,   513,604 steps,  41,216 requests to the server,  43 seconds

What is left out: the limits on guessing and on registrations, which act on addresses, and the failures of a disk.
"""

import argparse
import contextlib
import gc
import marshal
import shutil
import sqlite3
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import backup_server
from server.accounts import Account, Deleted, StorageError
from worst_day.small_server import (
    FileShelf,
    MemoryShelf,
    Node,
    Request,
    Result,
    Shelf,
    SmallServer,
    signed,
    spec,
)

START = 1_795_510_800_000
SECOND, HOUR, DAY = 1000, 3600, 86_400
STEPS = (1, 300, 600, 901, DAY)  # seconds
ALMOST_AN_HOUR = 3300
AHEAD = 300  # how many seconds the clients' clocks are ahead
SKEW = 300  # how many seconds after its signature a request may arrive
FORGOTTEN = 901  # seconds after which it no longer matters that something was held back or deleted
DEPTHS = {"memory": 6, "file": 5}  # what takes at most some minutes on one core
MEMORY, ROOM = Path("/dev/shm"), 256 * 1024 * 1024  # a directory in memory, and how many bytes are enough

# What has become of a request, from the least to the most that it says.
# Never seen; refused, not remembered; acknowledged as a retry; refused for good; accepted.
NEW, OTHER, RETRY, REFUSED, ACCEPTED = range(5)


class Client(NamedTuple):
    """What a client knows: the key, the content that it made its log from, and an upload that is not answered."""

    key: int = 0
    base: int | None = None
    unanswered: tuple[int | None, int] | None = None  # its base and its content


class Captured(NamedTuple):
    """A request that the stranger has."""

    request: Request
    became: int = NEW
    is_old: bool = False  # it was sent before an account was deleted


class Begun(NamedTuple):
    """A request whose head has arrived."""

    captured: Captured
    arrived: int
    seen: Account | None  # the account that its credentials were right for


class State(NamedTuple):
    """Everything that the future depends on."""

    now: int
    node: Node
    clients: tuple[Client, Client]
    captured: tuple[Captured, ...] = ()
    begun: Begun | None = None


class Step(NamedTuple):
    """A step, for people: who did what, and what came of it."""

    who: str
    what: str
    outcome: str = ""
    seconds: int = 0

    def __str__(self) -> str:
        return f"{self.who}: {self.what}" + (f" -> {self.outcome}" if self.outcome else "")


class Next(NamedTuple):
    """A step, the state after it, and what it broke, if anything."""

    step: Step
    state: State
    broken: str | None = None


# --- What happens next ------------------------------------------------------------------------------------------------


class Life:
    """The account's life: which steps a state has, and what they break."""

    def __init__(self, small: SmallServer) -> None:
        self._server = small

    @property
    def requests(self) -> int:
        """How many requests the server has answered. It answers the same one in the same state only once."""
        return self._server.calls

    def starts(self) -> Iterator[State]:
        """Yield the states in which a history begins."""
        empty = State(START, self._server.empty(), (Client(), Client()))
        yield empty
        state, first = empty, START // SECOND
        for request in (
            signed("registerUser", 0, None, None, first),
            signed("storeBackup", 0, None, 0, first),
            signed("storeBackup", 0, 0, 1, first),
        ):
            result, _ = self._deliver(state, Captured(request))
            state = state._replace(node=result.node)
        yield State(START + ALMOST_AN_HOUR * SECOND, state.node, (Client(0, 1), Client(0, 1)))

    def steps(self, state: State) -> Iterator[Next]:
        """Yield each step that may come next."""
        for index in range(2):
            yield from self._client_steps(state, index)
        yield from self._stranger_steps(state)
        signatures = {each.request.signature for each in requests_of(state)}
        if any(signature in signatures for signature, _ in state.node.refused):
            yield self._restart(state)  # otherwise, it makes no difference
        for seconds in STEPS:
            yield self._wait(state, seconds)

    def _client_steps(self, state: State, index: int) -> Iterator[Next]:
        client, now = state.clients[index], state.node.summary
        created, fresh = state.now // SECOND + AHEAD, unused(state)
        if now.key is None:
            yield from self._send(state, index, signed("registerUser", client.key, None, None, created))
        elif client != (now.key, now.latest, None):
            yield self._sign_in(state, index, Client(now.key, now.latest), created)
        yield from self._send(state, index, signed("storeBackup", client.key, client.base, fresh, created))
        yield from self._send(state, index, signed("changeStorageKey", client.key, client.base, fresh, created))
        yield from self._send(state, index, signed("deleteUser", client.key, None, None, created))
        if client.unanswered:
            repeat = signed("storeBackup", client.key, *client.unanswered, created)
            yield self._answered(state, index, repeat, "repeats")
        if now.contents and len(now.contents) > 1 and client.base == now.latest:
            again = signed("storeBackup", client.key, now.latest, now.contents[1], created)
            yield self._answered(state, index, again, "stores an older version again:")

    def _sign_in(self, state: State, index: int, client: Client, created: int) -> Next:
        """The person types the password that is in force. Then the client fetches."""
        request = signed("fetchBackup", client.key, None, None, created)
        result = self._server.deliver(state.node, request, state.now)
        broken = result.fault or ("a fetch has changed the account" if result.has_changed else None)
        step = Step("AB"[index], "signs in and fetches", result.outcome)
        return Next(step, with_client(state, index, client), broken)

    def _send(self, state: State, index: int, request: Request) -> Iterator[Next]:
        """Send a request in each of two ways: the answer arrives, or the request is kept from the server.

        If its answer is lost, it is kept first, and then the stranger delivers it.
        """
        yield self._answered(state, index, request, "sends")
        if any(each.request is request for each in state.captured):
            return
        client = state.clients[index]
        if request.operation == "storeBackup":
            assert request.content is not None
            client = client._replace(unanswered=(request.base, request.content))
        after = state._replace(captured=with_captured(state.captured, Captured(request)))
        step = Step("AB"[index], f"sends {name(request)}, which is kept back")
        yield Next(step, with_client(after, index, client))

    def _answered(self, state: State, index: int, request: Request, verb: str) -> Next:
        captured = next((each for each in state.captured if each.request is request), Captured(request))
        result, after, broken = self._arrive(state, captured)
        return Next(
            Step("AB"[index], f"{verb} {name(request)}", result.outcome),
            with_client(after, index, knowing(state.clients[index], request, result.outcome)),
            broken,
        )

    def _stranger_steps(self, state: State) -> Iterator[Next]:
        for captured in state.captured:
            result, after, broken = self._arrive(state, captured)
            yield Next(Step("stranger", f"delivers {name(captured.request)}", result.outcome), after, broken)
            if not state.begun:
                record, request, seen = state.node.record, captured.request, None
                # The credentials of a registration are not compared before the account is held.
                if isinstance(record, Account) and request.operation != "registerUser":
                    seen = record if state.node.summary.key == request.key else None
                step = Step("stranger", f"delivers the head of {name(captured.request)}")
                yield Next(step, state._replace(begun=Begun(captured, state.now, seen)))
        if begun := state.begun:
            result, after, broken = self._arrive(state._replace(begun=None), begun.captured, begun.arrived, begun.seen)
            yield Next(
                Step("stranger", f"delivers the end of {name(begun.captured.request)}", result.outcome), after, broken
            )

    def _restart(self, state: State) -> Next:
        def forgotten(captured: Captured) -> Captured:
            return captured._replace(became=OTHER) if captured.became in (REFUSED, RETRY) else captured

        # The connections end, and a request whose head has arrived comes to nothing.
        after = State(
            state.now, self._server.restarted(state.node), state.clients, tuple(map(forgotten, state.captured))
        )
        return Next(Step("server", "restarts"), after)

    def _wait(self, state: State, seconds: int) -> Next:
        now = state.now + seconds * SECOND
        node, living, broken = self._server.later(state.node, now), [], None
        for captured in state.captured:
            if now // SECOND - captured.request.created <= SKEW:
                living.append(captured)
                continue
            result = self._server.deliver(node, captured.request, now)
            if result.fault or result.has_changed or result.outcome != "401 signature_expired":
                broken = result.fault or f"{name(captured.request)} has run out, but the answer is {result.outcome}"
        begun = state.begun if state.begun and now - state.begun.arrived <= FORGOTTEN * SECOND else None
        after = State(now, node, state.clients, tuple(living), begun)
        return Next(Step("clock", f"{seconds:,} seconds pass", seconds=seconds), after, broken)

    def _arrive(
        self, state: State, captured: Captured, arrived: int | None = None, seen: Account | None = None
    ) -> tuple[Result, State, str | None]:
        """Let a request arrive. Return its result, the state after it, and what it broke."""
        result, became = self._deliver(state, captured, arrived, seen)
        broken = result.fault or (self._replayed(state, captured) if result.has_changed else None)
        others = state.captured
        begun = state.begun
        if begun and begun.captured.request is captured.request:
            begun = begun._replace(captured=became)
        # The request may have run out, if only its end has arrived now.
        if state.now // SECOND - captured.request.created <= SKEW:
            others = with_captured(others, became)
        if result.has_changed and isinstance(result.node.record, Deleted):
            others = tuple(each._replace(is_old=True) for each in others)
            begun = begun and begun._replace(captured=begun.captured._replace(is_old=True))
        return result, state._replace(node=result.node, captured=others, begun=begun), broken

    def _deliver(
        self, state: State, captured: Captured, arrived: int | None = None, seen: Account | None = None
    ) -> tuple[Result, Captured]:
        """Deliver a request. Return its result, and what has become of it now."""
        result = self._server.deliver(state.node, captured.request, state.now, arrived, seen)
        outcome, operation = result.outcome, captured.request.operation
        if operation == "storeBackup" and outcome == "200":
            became = RETRY
        elif outcome[0] == "2":
            became = ACCEPTED
        elif outcome in ("409 version_conflict", "429 rate_limited"):
            became = REFUSED
        else:
            became = OTHER
        if became <= captured.became:
            return result, captured
        return result, captured._replace(became=became)

    def _replayed(self, state: State, captured: Captured) -> str | None:
        """Say which rule it breaks that this request has changed the account. Return None if it may."""
        if captured.is_old:
            return "RESURRECTION: a request from before the deletion has changed the account"
        if captured.became == ACCEPTED:
            return "REPLAY: a request that was accepted before has changed the account again"
        if captured.became == REFUSED:
            return "REPLAY: an upload that was refused for good has changed the account"
        if captured.became == RETRY:
            return "REPLAY: an upload that was acknowledged as a retry has changed the account"
        return None


def knowing(client: Client, request: Request, outcome: str) -> Client:
    """Return what a client knows after an answer to its request."""
    if request.operation in ("registerUser", "deleteUser"):
        return Client(client.key) if outcome[0] == "2" else client
    if outcome[0] == "2":
        return Client(request.new_key, request.content)
    return client._replace(unanswered=None) if outcome == "409 version_conflict" else client


def with_client(state: State, index: int, client: Client) -> State:
    first, second = state.clients
    return state._replace(clients=(client, second) if index == 0 else (first, client))


def with_captured(captured: tuple[Captured, ...], one: Captured) -> tuple[Captured, ...]:
    """Return the captured requests with this one."""
    request = one.request
    if any(each.request is request for each in captured):
        return tuple(one if each.request is request else each for each in captured)
    return (*captured, one)


def unused(state: State) -> int:
    """Return the smallest number of a content that nobody knows any more."""
    used: set[int | None] = set(state.node.summary.contents or ())
    for client in state.clients:
        used.add(client.base)
        used.update(client.unanswered or ())
    for each in requests_of(state):
        used.update((each.request.base, each.request.content))
    number = 0
    while number in used:
        number += 1
    return number


def requests_of(state: State) -> Sequence[Captured]:
    """Return the requests that may still arrive, and the one whose head has."""
    return [*state.captured, state.begun.captured] if state.begun else state.captured


def name(request: Request) -> str:
    """Return what a request asks for, for people."""
    text = f"{request.operation}(key {request.key}"
    if request.content is not None:
        text += f", content {request.content} made from {'nothing' if request.base is None else request.base}"
    return text + ")"


# --- Equal futures ----------------------------------------------------------------------------------------------------


def essence(state: State) -> bytes:
    """Return what the future of a state depends on: two states with the same one have the same future.

    Times become ages, and ages that make no difference become equal. The number of a version makes none, and neither
    does which of the clients is which, which of the keys is which, and which number a content has.
    """
    first, second = state.clients
    rank, other = rank_of(first, state), rank_of(second, state)
    if rank == other and first != second:
        whole = min(described(state, first, second), described(state, second, first))
    elif rank <= other:
        whole = described(state, first, second)
    else:
        whole = described(state, second, first)
    return blake2b(whole, digest_size=12).digest()


def rank_of(client: Client, state: State) -> int:
    """Return what tells most clients apart, so that their order need not be tried both ways."""
    summary = state.node.summary
    base = 2 if client.base is None else client.base == summary.latest
    return base + 3 * (client.unanswered is None) + 6 * (client.key == summary.key)


def described(state: State, *clients: Client) -> bytes:
    """Return the essence of a state, with its clients in this order."""
    second, summary, begun = state.now // SECOND, state.node.summary, state.begun
    numbers: dict[int | None, int] = {None: -1}  # a new number for each content, in the order in which they are met
    stored: Any = None
    zero = clients[0].key if summary.key is None else summary.key  # the key that becomes key 0
    if summary.contents is not None:
        stored = [numbers.setdefault(each, len(numbers)) for each in summary.contents]
    elif summary.deleted is not None and second - summary.deleted < FORGOTTEN:
        stored = second - summary.deleted
    known = [
        (
            client.key ^ zero,
            numbers.setdefault(client.base, len(numbers)),
            client.unanswered
            and (
                numbers.setdefault(client.unanswered[0], len(numbers)),
                numbers.setdefault(client.unanswered[1], len(numbers)),
            ),
        )
        for client in clients
    ]

    def order(captured: Captured) -> tuple[Any, ...]:
        request, *known = captured
        base, content = numbers.get(request.base, 99), numbers.get(request.content, 99)
        is_begun = begun is not None and begun.captured.request is request
        return request.created, request.operation, request.key ^ zero, base, content, is_begun, *known

    requests = sorted(state.captured, key=order)
    if begun:
        requests.append(begun.captured)
    places = {each.request.signature: place for place, each in enumerate(requests)}
    whole = (
        stored,
        known,
        [
            # No history has so many steps that hours add up to a day.
            (min(second - at, HOUR), changes_key, places.get(signature, -1))
            for at, changes_key, signature in summary.uploads
            if second - at < DAY or signature in places
        ],
        sorted(
            (places[signature], second - at // SECOND) for signature, at in state.node.refused if signature in places
        ),
        [
            (
                second - each.request.created,
                each.request.operation,
                each.request.key ^ zero,
                numbers.setdefault(each.request.base, len(numbers)),
                numbers.setdefault(each.request.content, len(numbers)),
                each.became,
                each.is_old,
            )
            for each in requests
        ],
        begun and (min(second - begun.arrived // SECOND, SKEW + 1), begun.seen is not None),
    )
    return marshal.dumps(whole, 2)


# --- The search -------------------------------------------------------------------------------------------------------


class Level(NamedTuple):
    """What a search has seen down to a depth: all states, steps and requests, and how long it took."""

    states: int
    steps: int
    requests: int
    seconds: float


@dataclass
class Found:
    """What a search has seen, by depth. `history` has the steps of a shortest history that breaks a rule."""

    levels: list[Level] = field(default_factory=list)
    is_complete: bool = True  # the last depth, too
    broken: str | None = None
    history: list[Step] = field(default_factory=list)


class Search:
    """A breadth-first search through the states of a life."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._seen: set[bytes] = set()
        # For each state that was seen: the one from which it was reached, and how.
        self._parents, self._how = array("l"), list[Step]()
        self._shared: dict[Step, Step] = {}  # equal steps are one object, or they would not fit into memory
        self._steps = 0

    def run(self, depth: int, seconds: float, progress: Callable[[Found], None]) -> Found:
        """Search down to a depth, or until the time is over. Stop at the first rule that breaks."""
        found, started = Found(), time.monotonic()
        level: list[tuple[int, State]] = []
        for start in self._life.starts():
            what = "there is an account with two versions" if start.node.record else "there is no account"
            self._add(-1, Step("start", what), start, level)
        while True:
            numbers = len(self._seen), self._steps, self._life.requests, time.monotonic() - started
            found.levels.append(Level(*numbers))
            progress(found)
            if len(found.levels) > depth or not found.is_complete or found.broken:
                return found
            level = self._next(level, len(found.levels) < depth, started + seconds, found)

    def _next(
        self, level: list[tuple[int, State]], goes_on: bool, ends: float, found: Found
    ) -> list[tuple[int, State]]:
        """Return the new states after those of a level, each with its number; none if the search does not go on."""
        following: list[tuple[int, State]] = []
        for at, state in level:
            if time.monotonic() > ends:
                found.is_complete = False
                break
            for step, after, broken in self._life.steps(state):
                self._steps += 1
                if broken:
                    found.broken, found.history = broken, [*self._history(at), step]
                    return following
                if after is not state:
                    self._add(at, step, after, following if goes_on else None)
        return following

    def _add(self, parent: int, step: Step, state: State, to: list[tuple[int, State]] | None) -> None:
        key = essence(state)
        if key not in self._seen:
            self._seen.add(key)
            if to is not None:
                to.append((len(self._how), state))
                self._parents.append(parent)
                self._how.append(self._shared.setdefault(step, step))

    def _history(self, at: int) -> list[Step]:
        history: list[Step] = []
        while at >= 0:
            history.insert(0, self._how[at])
            at = self._parents[at]
        return history


def explore(
    life: Life, depth: int, seconds: float = float("inf"), progress: Callable[[Found], None] = lambda found: None
) -> Found:
    """Search breadth first, down to a depth or until the time is over. Stop at the first rule that breaks."""
    gc.disable()  # it would look at millions of states again and again, and nothing here needs it
    try:
        return Search(life).run(depth, seconds, progress)
    finally:
        gc.enable()


@contextlib.contextmanager
def life_on(place: str, has_model: bool = True) -> Iterator[Life]:
    """Give a life on a server whose store is in "memory" or in a "file"."""
    with contextlib.ExitStack() as stack:
        if place == "file":
            # In memory if there is room, because each change is synced. A container often has little of it.
            has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
            directory = tempfile.TemporaryDirectory(dir=MEMORY if has_room else None)
            shelf: Shelf = FileShelf(Path(stack.enter_context(directory)), spec().limits["deletedUserSeconds"])
        else:
            shelf = MemoryShelf()
        small = SmallServer(shelf, has_model)
        stack.callback(small.close)
        yield Life(small)


def told(history: list[Step]) -> Iterator[str]:
    """Yield the lines that tell a history."""
    second = 0
    for number, step in enumerate(history):
        second += step.seconds
        yield f"{number:3} {second:8,} s  {step}"


def main(argv: list[str] | None = None) -> int:
    defaults = " or ".join(f"{depth} with --on {place}" for place, depth in DEPTHS.items())
    parser = argparse.ArgumentParser(
        prog="python -m worst_day.interleavings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help=f"how many steps a history has ({defaults}); one more takes eleven times as long, and as much memory",
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="N", help="stop after so many seconds")
    parser.add_argument("--on", choices=("memory", "file"), default="memory", help="which store to use (memory)")
    arguments = parser.parse_args(argv)
    depth = DEPTHS[arguments.on] if arguments.depth is None else arguments.depth

    def progress(found: Found) -> None:
        level = found.levels[-1]
        text = f"depth {len(found.levels) - 1}: {level.states:,} states, {level.steps:,} steps, {level.seconds:.0f} s"
        print(text, file=sys.stderr, flush=True)

    try:
        with life_on(arguments.on) as life:
            found = explore(life, depth, arguments.seconds, progress)
    except (OSError, backup_server.StartupError, StorageError, sqlite3.Error) as error:
        print(f"interleavings: could not run: {error}", file=sys.stderr)
        return 2
    print(*table(found), sep="\n")
    return int(bool(found.broken))


def table(found: Found) -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"{'depth':>5} {'states':>12} {'steps':>12} {'requests':>10} {'seconds':>8}"
    for depth, level in enumerate(found.levels):
        note = "" if depth < len(found.levels) - 1 or found.is_complete else "  (in part: the time was over)"
        yield f"{depth:5} {level.states:12,} {level.steps:12,} {level.requests:10,} {level.seconds:8.1f}{note}"
    if found.broken:
        yield f"BROKEN: {found.broken}. This is a shortest history:"
        yield from told(found.history)
    else:
        yield "Held: no lost update, no resurrection, no replay that takes effect, and each answer is the model's."


if __name__ == "__main__":
    sys.exit(main())
