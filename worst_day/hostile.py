"""Send hostile requests from a seeded generator: `python -m worst_day.hostile`.

Each request begins as one of the contract's own, of an account that exists. Then a few things in it are changed: bytes,
lines of its head, its target, its framing, its body. About half of the bodies are signed after the change, so that the
server has to read them. No answer may be a 5xx, none may hang, and no other account may change.

exit codes: 0 the server held, 1 it did not
"""

import argparse
import base64
import hashlib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.honest import connect, exchange
from bench.process import ROOT, Address, Measured, new_secret, server_environ
from bench.wire import Prepared, Signer, User, upload
from worst_day.progress import Progress

COMMAND = (sys.executable, str(ROOT / "backup_server.py"))
ANSWER_SECONDS = 20  # a client that has ended its request gets an answer much sooner
STATUS = re.compile(rb"(?:^|\r\n\r\n|\})HTTP/1\.1 (\d{3}) ")

TARGETS = [
    *("*", "/", "//", "/..", "/api/../health", "/api/backup/", "/api//backup", "/API/BACKUP", "/api/backup%00"),
    *("/%ff", "/api/backup/versions/0", "/api/backup/versions/-1", "/api/backup/versions/1e3"),
    *("/api/backup/versions/%31", "/api/backup/versions/" + "9" * 5000, "/api/backup?x", "/health#x"),
    *("http://other/health", "https:health", "?", "/health;x=1", "\\health", "/hea\x7flth", "/" + "a" * 9000),
    *("file:///etc/passwd", "/api/backup/versions/\u0661"),
]

LINES = [
    *("Host: a b", "Host:", "Host: x\r\nHost: y", "Content-Length: -1", "Content-Length: 1, 1"),
    *("Content-Length: +5", "Content-Length: 99999999999999999999", "Content-Length: 0x10"),
    *("Content-Length: 5\r\nContent-Length: 6", "Transfer-Encoding: chunked"),
    *("Transfer-Encoding: chunked, chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding:\tchunked"),
    *("Transfer-Encoding : chunked", "Transfer-Encoding: xchunked", "Expect: 100-continue", "Expect: 200-ok"),
    *("Connection: close, upgrade", "Upgrade: h2c", "Connection: Content-Length", "X: \x00", "X: \xff"),
    *(" folded: yes", "X\x01: y", ": z", "Authorization: Basic ====", "Authorization: Basic " + "A" * 9000),
    *("Authorization: Bearer x", "Signature: app=:AA==:, app=:AA==:", "Signature-Input: app=()"),
    *("Signature-Input: \x80", "Signature-Input: app=" + "(" * 5000, "Content-Digest: sha-256=:AA==:"),
    *("Content-Encoding: gzip", "X: " + "y" * 17000, "Content-Type: application/json; charset=utf-16"),
    *("Content-Type: \x00", 'If-None-Match: "' + '"' * 5000, "If-None-Match: *", "Range: bytes=0-1"),
    *("Origin: null", "Fly-Client-IP: ::1", "X-Forwarded-For: 1.2.3.4"),
]

VALUES = [
    *("null", "[]", "0", '""', "{}", "[" * 50_000, '{"a":' * 20_000, "1" * 6000, "1e999", "NaN", '"\\ud800"'),
    *('"\\u0000"', '{"data":1}', '{"data":""}', '{"data":"A"}', '{"data":"AA=="}', '{"data":"\\u0041A=="}'),
    *('{"data":"AB=="}', "true", '{"data":"AAAA","data":"AAAA"}', '{"data":"AAAA","baseSha256":null}'),
    *('{"data":"AAAA","baseSha256":"' + "A" * 64 + '"}', '{"data":"AAAA","storageKey":"' + "0" * 64 + '"}'),
    *("\ufeff{}", '{"data":"AAAA"}x', "," * 101, '{"data":"' + "A" * 20_000),
]


INSERTED = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"\xff", b'"', b"%"]


@dataclass
class Outcome:
    """What was sent, and what came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Generator:
    """Makes the requests of one seed."""

    def __init__(self, secret: str, user: User, seed: int) -> None:
        self._signer, self._user, self._random = Signer(secret), user, random.Random(seed)

    def request(self) -> bytes:
        """Return the bytes of a hostile request."""
        chance = self._random
        if chance.random() < 0.02:
            return chance.randbytes(chance.randrange(1, 3000))
        body = self._body()
        method, path = chance.choice(
            [("POST", "/api/backup"), ("PUT", "/api/user/storage-key"), ("POST", "/api/backup"), ("GET", "/api/backup")]
            + [("POST", "/api/register"), ("GET", "/api/backup/versions"), ("GET", "/health"), ("GET", "/openapi.json")]
            + [("DELETE", "/api/user/"), ("OPTIONS", "/api/backup"), ("GET", "/api/backup/versions/1")]
        )
        has_body = method in ("POST", "PUT") and path != "/api/register" or chance.random() < 0.05
        signed = self._signer.prepare(self._user, method, path, body if has_body else b"", age=chance.randrange(250))
        head, content = signed.head, signed.body
        changes = [self._target, self._line, self._bytes, self._drop]
        for change in chance.choices(changes, k=chance.randrange(3)):
            head = change(head)
        if chance.random() < 0.2:
            content = self._bytes(content)
        if chance.random() < 0.1:
            content = self._chunked(content)
            head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
        return head + content

    def _body(self) -> bytes:
        chance = self._random
        if chance.random() < 0.4:
            return chance.choice(VALUES).encode()
        body = upload(chance.randbytes(chance.randrange(2000)), chance.choice([None, "0" * 64]))
        return self._bytes(body) if chance.random() < 0.5 else body

    def _target(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        target = self._random.choice(TARGETS).encode()
        return b" ".join([method, target, rest.partition(b" ")[2]])

    def _line(self, head: bytes) -> bytes:
        lines = head.split(b"\r\n")
        lines.insert(self._random.randrange(1, max(2, len(lines) - 1)), self._random.choice(LINES).encode("latin-1"))
        return b"\r\n".join(lines)

    def _drop(self, head: bytes) -> bytes:
        lines = head.split(b"\r\n")
        del lines[self._random.randrange(len(lines))]
        return b"\r\n".join(lines)

    def _bytes(self, text: bytes) -> bytes:
        """Change, remove, insert or repeat some bytes."""
        changed, chance = bytearray(text), self._random
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(changed) + 1)
            match chance.randrange(4):
                case 0 if at < len(changed):
                    changed[at] ^= 1 << chance.randrange(8)
                case 1:
                    del changed[at : at + chance.randrange(1, 20)]
                case 2:
                    changed[at:at] = chance.choice(
                        [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"\xff", b'"', b"%"]
                    )
                case _:
                    changed[at:at] = changed[at : at + chance.randrange(1, 60)]
        return bytes(changed)

    def _chunked(self, body: bytes) -> bytes:
        """Return a body in chunks, or in what looks like chunks."""
        chance, parts = self._random, []
        while body:
            size = chance.randrange(1, 500)
            part, body = body[:size], body[size:]
            extension = chance.choice([b"", b"", b"", b";x", b";x=" + b"y" * 300, b" ", b"\n"])
            claimed = len(part) if chance.random() < 0.95 else chance.choice([0, len(part) + 1, 1 << 62, -1])
            parts += [b"%x" % claimed if claimed >= 0 else b"-1", extension, b"\r\n", part, b"\r\n"]
        return b"".join([*parts, chance.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"", b"0\r\n"])])


def send(address: Address, request: bytes) -> list[str]:
    """Send a request and end the sending side. Return the statuses of all answers, or what came in their place."""
    try:
        with connect(address, "127.0.0.1", ANSWER_SECONDS) as connection:
            connection.sendall(request)
            connection.shutdown(1)
            received = bytearray()
            while data := connection.recv(1 << 16):
                received += data
    except TimeoutError:
        return ["hung"]
    except OSError:
        return ["reset"]
    return [status.decode() for status in STATUS.findall(received)] or ["closed"]


def attack(
    directory: Path,
    requests: int,
    seed: int,
    threads: int,
    say: Callable[[str], None],
    command: Sequence[str] = COMMAND,
) -> Outcome:
    """Send so many requests to a new server, and look at an honest account afterwards. `command` starts the server."""
    outcome, secret, started = Outcome(), new_secret(), time.monotonic()
    process = Measured(list(command), server_environ(directory, secret))
    signer, honest = Signer(secret), User.new()
    blob = random.Random(seed).randbytes(5000)

    def ask(request: Prepared) -> bytes:
        with connect(process.address, "127.0.0.1", ANSWER_SECONDS) as connection:
            answer, body = exchange(connection, request, ANSWER_SECONDS)
        assert answer.status in request.right, f"{request.name}: {answer.status}"
        return body

    ask(signer.register(honest))
    ask(signer.prepare(honest, "POST", "/api/backup", upload(blob), 201))

    def part(number: int) -> None:
        user = User.new()
        ask(signer.register(user))
        generator = Generator(secret, user, seed + number)
        for count in range(requests // threads):
            request = generator.request()
            statuses = send(process.address, request)
            outcome.statuses.update(statuses)
            outcome.wrong += [
                f"{status} to request {count} of part {number}" for status in statuses if is_wrong(status)
            ]
            say(f"{outcome.statuses.total():,} answers, {len(outcome.wrong)} wrong")

    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))
        latest = json.loads(ask(signer.fetch(honest)))
        if hashlib.sha256(base64.b64decode(latest["data"])).digest() != hashlib.sha256(blob).digest():
            outcome.wrong.append("the honest account has another backup")
    except (OSError, AssertionError) as error:
        outcome.wrong.append(f"an honest request failed: {error}")
    process.stop()
    if process.exit_code() != 0:
        outcome.wrong.append(f"the server ended with {process.exit_code()}")
    outcome.seconds = time.monotonic() - started
    return outcome


def is_wrong(status: str) -> bool:
    return status.startswith("5") or status == "hung"


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="worst_day.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000, help="how many (%(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="how many at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="repeat a run")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        outcome = attack(Path(folder), arguments.requests, arguments.seed, arguments.threads, Progress())
    print_outcome(outcome)
    return 1 if outcome.wrong else 0


def print_outcome(outcome: Outcome) -> None:
    """Print what came back."""
    counts = ", ".join(f"{status} {count:,}" for status, count in sorted(outcome.statuses.items()))
    print(f"answers to hostile requests: {outcome.statuses.total():,} ({counts})")
    print(f"5xx, hung, or changed what is not theirs: {len(outcome.wrong)}")
    for line in outcome.wrong[:20]:
        print(f"  {line}")
    print(f"{outcome.seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
