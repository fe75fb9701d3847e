"""Requests, as waitress reads them from a connection, with more of the checks that RFC 9112 requires.

This module and `http_server` are the only ones that know waitress. They use what waitress does not document.
Therefore, `waitress==` is pinned exactly. Read the source of the new version before you move the pin.
"""

import contextlib
import io
import ipaddress
import re
from collections import Counter
from collections.abc import Set
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import waitress.parser
import waitress.utilities

from server import bounds, clock

# RFC 3986 section 3.2.2. As in RFC 9110 section 7.2, a port may follow, and there is no userinfo.
HOST = re.compile(
    r"(?:\[(?:(?P<ipv6>[0-9A-Fa-f:.]+)|v[0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+)\]"
    r"|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?",
    re.ASCII,
)
LOWERCASE_METHOD = re.compile(rb"^(?=\S*[a-z])[\w!#$%&'*+.^`|~-]+ ")
HIGHER_MINOR = re.compile(rb"( HTTP/1\.)[2-9](?=[ \t]*$)")
TARGET = re.compile(r"[!-~]+")  # RFC 3986 section 2: ASCII
ABSOLUTE_FORM = re.compile("^https?://([^/?#]*)", re.IGNORECASE)  # RFC 9112 section 3.2.2


def is_host(text: str) -> bool:
    """Return whether a text is a host, which may be empty, with or without a port."""
    if not (host := HOST.fullmatch(text)):
        return False
    try:
        return host["ipv6"] is None or bool(ipaddress.IPv6Address(host["ipv6"]))
    except ValueError:
        return False


SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}  # of those that the server has (RFC 9110 section 9.2.1)


class Body:
    """The buffer that waitress' receivers fill. A large body goes into a file in `directory` when `keep` is called."""

    def __init__(self, expected: int, directory: Path) -> None:
        self.expected, self._directory = expected, directory
        self._file: IO[bytes] = io.BytesIO()
        self._size = 0

    @property
    def is_large(self) -> bool:
        """Whether the body is to be kept on disk. `expected` is what its head announces, or the most it may have."""
        return self.expected > bounds.SMALL_BODY_BYTES

    def keep(self) -> None:
        """Prepare for the rest of the body. Some of it may have come with the head. Raise OSError."""
        if self.is_large:
            came, self._file = self._file, TemporaryFile(dir=self._directory)  # noqa: SIM115 - `close` closes it
            came.seek(0)
            self._file.write(came.read())

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes) -> None:
        self._file.seek(self._size)
        self._file.write(data)
        self._size += len(data)

    def getfile(self) -> IO[bytes]:
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk, it cannot write what it still has
            self._file.close()


class Busy(waitress.utilities.Error):
    """The error of a request that a bound refuses, as waitress has them for other statuses."""

    code = 503
    reason = "Service Unavailable"


class RequestParser(waitress.parser.HTTPRequestParser):
    """waitress' parser. No request is left without an answer."""

    arrived_at = arrived = 0  # when the head had arrived, by clock.now() and by clock.monotonic()
    body_fault: int | None = None  # see http_server.Arrival
    repeated: Set[str] = frozenset()
    address = ""  # the client's
    is_wanted = False  # the app has proven the head, and asks for the body
    most = 0  # how many bytes of it

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self.proven: dict[str, Any] = {}  # see http_server.Arrival

    def received(self, data: bytes) -> int:
        is_body = self.body_rcv is not None
        self.body_bytes_received = -len(data)  # waitress would count the framing of chunks
        try:
            consumed: int = super().received(data)
            # waitress sets no limit on a chunk's line and the trailer, and collects them in memory.
            unread = getattr(self.body_rcv, "control_line", b"") + getattr(self.body_rcv, "trailer", b"")
            if len(unread) >= self.adj.max_request_header_size:
                raise ValueError("a chunk's line or the trailer is too long")
        except ValueError:  # such as a Content-Length of 5,000 digits
            self.error = waitress.utilities.BadRequest("")
            self.completed = True
            consumed = len(data)
        except OSError:  # the disk is full
            self.end_body(503)
            consumed = len(data)
        if self.error:
            self.expect_continue = False  # the error is the answer
            if is_body:
                self.end_body(self.error.code)
        elif is_body and len(self.body_rcv) > (self.most if self.is_wanted else self.adj.max_request_body_size - 1):
            self.end_body(413)
        return consumed

    def end_body(self, fault: int) -> None:
        """Give the request to the app without the rest of its body. The app answers by the head, or by the fault."""
        self.body_fault, self.error = fault, None
        self.completed, self.expect_continue = True, False
        self.headers["CONNECTION"] = "close"  # nobody knows where the next request begins
        if self.chunked:
            self.headers["CONTENT_LENGTH"] = str(len(self.body_rcv))

    def refuse(self) -> None:
        """Answer the request with 503, whatever it is."""
        self.error, self.completed, self.expect_continue = Busy(""), True, False

    def is_late(self, seconds: int) -> bool:
        """Return whether the body is still incomplete so many seconds after the head had arrived."""
        is_waiting = self.headers_finished and not self.completed
        return is_waiting and clock.monotonic() - self.arrived > seconds * 1000

    @property
    def user(self) -> str:
        """What says whose request it is: the credentials, without the scheme, which has several spellings."""
        credentials: str = self.headers.get("AUTHORIZATION", "")
        return credentials.rpartition(" ")[2]

    @property
    def body(self) -> Body | None:
        """The body, or what has arrived of it. None if there is none."""
        return None if self.body_rcv is None else self.body_rcv.buf

    @property
    def may_be_read(self) -> bool:
        """Whether the app may have the body, and change something. If not, it only sees the head."""
        return self.completed and (self.is_wanted or self.command in SAFE_METHODS)

    def parse_header(self, header_plus: bytes) -> None:
        self.arrived_at, self.arrived = clock.now(), clock.monotonic()
        # Look at each character once: a pattern that tries again at each space takes seconds for 16 kB of spaces.
        first, end, rest = header_plus.partition(b"\r\n")
        lines = [line.partition(b":") for line in rest.lower().split(b"\r\n") if line]
        names = [name for name, _, _ in lines]
        if len(set(names)) < len(names):
            self.repeated = frozenset(name.decode("latin-1") for name, count in Counter(names).items() if count > 1)
        # Methods are case-sensitive (RFC 9110 section 9.1), so one with lowercase letters is a method that no path has.
        # waitress calls it malformed. Replace it with another method that no path has.
        if not first.partition(b" ")[0].isupper():
            first = LOWERCASE_METHOD.sub(b"OTHER ", first)
        # A higher minor version is no reason to refuse a request (RFC 9110 section 2.5).
        first = HIGHER_MINOR.sub(rb"\g<1>1", first)
        super().parse_header(first + end + rest)
        if connection := self.headers.get("CONNECTION", "").lower():
            if "close" in (option.strip(" \t") for option in connection.split(",")):
                self.headers["CONNECTION"] = "close"  # waitress compares the whole value (RFC 9110 section 7.6.1)
        if self.version not in ("1.0", "1.1"):
            raise waitress.parser.ParsingError("unknown version")
        if not TARGET.fullmatch(self.request_uri):
            raise waitress.parser.ParsingError("the target is not ASCII")
        absolute = ABSOLUTE_FORM.match(self.request_uri)
        if absolute and (absolute[1].startswith(":") or not absolute[1] or not is_host(absolute[1])):
            raise waitress.parser.ParsingError("no valid authority")  # RFC 9110 section 4.2.1: nor an empty host
        # Two lines of Host are joined by a comma and a space, which no host has (RFC 9112 section 3.2).
        if (self.version == "1.1" and "HOST" not in self.headers) or not is_host(self.headers.get("HOST", "")):
            raise waitress.parser.ParsingError("not exactly one valid Host")
        codings = [value.strip(b" \t") for name, _, value in lines if name == b"transfer-encoding"]
        is_faulty = self.version == "1.0" or "CONTENT_LENGTH" in self.headers or codings[1:] or not self.chunked
        if codings and (is_faulty or codings[0] != b"chunked"):
            raise waitress.parser.ParsingError("faulty framing")  # RFC 9112 section 6.1
        if self.body_rcv is not None:
            most = self.adj.max_request_body_size
            self.body_rcv.buf = Body(most if self.chunked else min(self.content_length, most), self.adj.body_directory)
        # Without a body, there is nothing to wait for.
        self.expect_continue = self.expect_continue and self.body_rcv is not None
