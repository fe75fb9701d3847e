"""A request and its answer, and how a failing test shows them: as a curl command, without secrets.

No text from this module contains an Authorization, a Signature, a key or a blob. `secrets` are those of the server.
"""

import base64
import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from contract_tests.target.redaction import redacted

MOST_CHARACTERS = 600  # how much of a body is shown
OF_CURL_ITSELF = {"content-length", "user-agent", "accept", "accept-encoding", "connection"}


@dataclass(frozen=True)
class Exchange:
    """One request and its answer.

    `answer` is None if no answer came. `raw` has the request's bytes if it was sent as bytes. `at` is the time when the
    exchange ended, by time.monotonic().
    """

    url: str
    method: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    answer: tuple[int, tuple[tuple[str, str], ...], bytes] | None
    raw: bytes | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        """The path of the request, without its query."""
        if self.raw is not None:
            target = self.raw.partition(b"\r\n")[0].decode("latin-1").split(" ")[1:2]
            return target[0].partition("?")[0] if target else ""
        return urlsplit(self.url).path

    def request_text(self, secrets: Iterable[str] = ()) -> str:
        """Return the request as a curl command, or as escaped bytes if curl would not send it."""
        if self.raw is not None:
            return raw_text(self.raw, self.url, secrets)
        words = ["curl", "--include", "--path-as-is", "--request", self.method]
        lines = [shlex.join(words), shlex.quote(self.url)]
        for name, value in self.headers:
            if name.lower() in ("authorization", "signature"):
                lines.append(f'--header "{name}: ${name.upper()}"')
            elif name.lower() not in OF_CURL_ITSELF:
                lines.append(f"--header {shlex.quote(f'{name}: {redacted(value, secrets)}')}")
        if self.body:
            lines.append(f"--data-binary {shlex.quote(body_text(self.body, secrets))}")
        return " \\\n  ".join(lines)

    def answer_text(self, secrets: Iterable[str] = ()) -> str:
        """Return the answer as text: status, headers, body."""
        if self.answer is None:
            return "There was no answer."
        status, headers, body = self.answer
        lines = [str(status), *(f"{name}: {redacted(value, secrets)}" for name, value in headers)]
        return "\n".join([*lines, "", body_text(body, secrets)]).rstrip()


# ---- How an exchange is shown ------------------------------------------------------------------------------


def body_text(body: bytes, secrets: Iterable[str]) -> str:
    """Return a body as text, shortened so that a person can read it."""
    if len(body) > 100_000:
        return f"… ({len(body):,} bytes)"
    text = body.decode("utf-8", "backslashreplace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and document.keys() & {"data", "storageKey"}:
        text = json.dumps({name: hidden(name, value) for name, value in document.items()}, ensure_ascii=False)
    text = redacted(text, secrets)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}… ({len(body):,} bytes)"


def hidden(name: str, value: Any) -> Any:
    """Return a member of a body as it may be shown. Of a blob or a key, only the length may be shown."""
    if name in ("data", "storageKey") and isinstance(value, str):
        return f"… ({len(value):,} characters)"
    return value


def raw_text(request: bytes, url: str, secrets: Iterable[str]) -> str:
    """Return a request that was sent as bytes, line by line. Escape everything that is not ASCII."""
    head, blank, body = request.partition(b"\r\n\r\n")
    lines = [line.decode("latin-1") for line in head.split(b"\r\n")]
    shown = [escaped(redacted(line, secrets)) for line in lines]
    shown = [line if len(line) <= 200 else f"{line[:200]}…" for line in shown]
    if len(shown) > 30:
        shown = [*shown[:30], f"… ({len(lines)} lines)"]
    return "\n".join([f"# sent as bytes to {url}", *shown, "", *([body_text(body, secrets)] if body else [])]).rstrip()


def escaped(text: str) -> str:
    return "".join(c if 32 <= ord(c) < 127 or c == "…" else c.encode("unicode_escape").decode() for c in text)


def headers_of(headers: Iterable[tuple[Any, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((as_text(name), as_text(value)) for name, value in headers)


def as_text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


# ---- What a request says -----------------------------------------------------------------------------------


def credentials_of(authorization: str | bytes) -> tuple[str, str] | None:
    """Return the userId and the storage key of an Authorization header, or None if it has none."""
    _, _, encoded = as_text(authorization).partition(" ")
    try:
        user_id, colon, storage_key = base64.b64decode(encoded, validate=True).decode("ascii").partition(":")
    except ValueError:
        return None
    return (user_id, storage_key) if colon else None


def member_of(body: str | bytes | None, name: str) -> Any:
    """Return a member of a body that is a JSON object, or None."""
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError):
        return None
    return document.get(name) if isinstance(document, dict) else None
