"""Requests as bytes, signed ahead by the reference client's functions, and what is read of the answers."""

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from clients.python.backup_client import authorization, sign

BLOBS = 3  # of each size; an account stores them in turn, so that each upload has other bytes than the one before
UPLOADS = 16  # of one account: its record stays as small as that of a real one


@dataclass(frozen=True)
class User:
    """A user of the benchmark, with random keys."""

    user_id: str
    storage_key: str

    @classmethod
    def new(cls) -> "User":
        return cls(secrets.token_hex(32), secrets.token_hex(32))


class Prepared(NamedTuple):
    """A request that is ready to be sent, and the statuses that are right for it."""

    name: str
    head: bytes
    body: bytes
    right: tuple[int, ...]


@dataclass(frozen=True)
class Uploads:
    """The bodies of uploads of one size. Every account stores the same bytes, in the same order."""

    bodies: tuple[bytes, ...]
    sha256: tuple[str, ...]
    first: bytes  # the body of an account's first upload, which has no base

    @classmethod
    def of(cls, size: int) -> "Uploads":
        """Make random blobs of `size` bytes."""
        blobs = [secrets.token_bytes(size) for _ in range(BLOBS)]
        digests = tuple(hashlib.sha256(blob).hexdigest() for blob in blobs)
        bodies = tuple(upload(blob, digests[i - 1]) for i, blob in enumerate(blobs))
        return cls(bodies, digests, upload(blobs[0]))

    def body(self, step: int) -> bytes:
        """Return the body of an account's upload number `step`, from 0."""
        return self.bodies[step % BLOBS] if step else self.first

    def etag(self, step: int) -> str:
        """Return the entity tag of the version that upload number `step` made."""
        return f'"{step + 1}-{self.sha256[step % BLOBS]}"'


def upload(blob: bytes, base_sha256: str | None = None) -> bytes:
    """Return the body of an upload."""
    value = {"data": base64.b64encode(blob).decode()}
    if base_sha256 is not None:
        value["baseSha256"] = base_sha256
    return json.dumps(value, separators=(",", ":")).encode()


def head(method: str, path: str, headers: Mapping[str, str], body_bytes: int = 0) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in headers.items())]
    if body_bytes:
        lines += ["Content-Type: application/json", f"Content-Length: {body_bytes}"]
    elif method == "POST":
        lines += ["Content-Length: 0"]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


class Signer:
    """Prepares the requests of users of one server. They must be sent while a signature lives: within five minutes."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def prepare(
        self,
        user: User,
        method: str,
        path: str,
        body: bytes = b"",
        *right: int,
        name: str = "",
        etag: str = "",
        age: int = 0,
    ) -> Prepared:
        """Sign a request. `right` are the statuses that its answer may have (200 if none is given).

        `age` is in seconds. A signature is good for one upload, so uploads of the same bytes need different ages.
        """
        headers = sign(
            method,
            path,
            body,
            authorization(user.user_id, user.storage_key),
            secret=self._secret,
            created=int(time.time()) - age,
        )
        if etag:
            headers["If-None-Match"] = etag
        return Prepared(name or f"{method} {path}", head(method, path, headers, len(body)), body, right or (200,))

    def register(self, user: User) -> Prepared:
        return self.prepare(user, "POST", "/api/register", b"", 201, name="register")

    def store(self, user: User, uploads: Uploads, step: int) -> Prepared:
        return self.prepare(user, "POST", "/api/backup", uploads.body(step), 201, name="store", age=step)

    def stores(self, users: list[User], uploads: Uploads, first: int = 0) -> Iterator[Prepared]:
        """Prepare the uploads of these users: each makes all of theirs, from number `first` on, then the next does."""
        for user in users:
            for step in range(first, UPLOADS):
                yield self.store(user, uploads, step)

    def fetch(self, user: User) -> Prepared:
        return self.prepare(user, "GET", "/api/backup", name="fetch")

    def not_modified(self, user: User, etag: str) -> Prepared:
        return self.prepare(user, "GET", "/api/backup", b"", 304, name="304", etag=etag)

    def list(self, user: User) -> Prepared:
        return self.prepare(user, "GET", "/api/backup/versions", name="list")


def health() -> Prepared:
    """Prepare a request for /health, which needs no signature."""
    return Prepared("health", head("GET", "/health", {}), b"", (200,))


class AnswerHead(NamedTuple):
    """What an answer's head says: its status, the length of its body, and whether the connection ends after it."""

    status: int
    length: int
    closes: bool
    retry_after: int


def read_head(head: bytes) -> AnswerHead:
    """Read the head of an answer, without the empty line. Raise ValueError if it is no answer of the server."""
    lines = head.split(b"\r\n")
    status = int(lines[0].split(b" ", 2)[1])
    values = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    length = 0 if status in (204, 304) else int(values[b"content-length"])
    return AnswerHead(status, length, values.get(b"connection") == b"close", int(values.get(b"retry-after", 0)))
