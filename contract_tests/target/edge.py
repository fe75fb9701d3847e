"""What stands in front of a target: an edge, which is a proxy that reads HTTP, or nothing.

An edge is honest if it hands on what HTTP allows. It may refuse what HTTP does not allow by itself, in a form of its
own. It may also change what HTTP lets it change: add headers, compress an answer and weaken its ETag, frame a body in
another way, ask for a body. Tests that look at such things say nothing about the server behind an edge. Marks name
these tests:

- `edge_may_answer`: the edge may refuse this request itself. The test runs, and if the edge answers, it is not run.
- `edge_may_change`: the edge may change what the test sends or looks at. Behind an edge, it is not run.

Without an edge, the marks mean nothing: what has not the form of the contract is the server's fault.
"""

import http.client
import re
import ssl
from collections.abc import Mapping
from email.message import Message
from urllib.parse import urlsplit

from contract_tests.target import network

TIMEOUT = 10  # seconds
MARKS = {
    "edge_may_answer": "an edge in front of the target may refuse the test's requests itself",
    "edge_may_change": "an edge in front of the target may change what the test sends or looks at",
}
# Requests that HTTP does not allow. No edge hands on all of them. They ask for nothing, so they cost no limit.
PROBES = {
    "no HTTP": b"hello\r\n\r\n",
    "two Hosts": b"GET /health HTTP/1.1\r\n{host}\r\nHost: other.example\r\n\r\n",
    "a header without a colon": b"GET /health HTTP/1.1\r\n{host}\r\nX\r\n\r\n",
    "no length": b"POST /api/backup HTTP/1.1\r\n{host}\r\nContent-Length: x\r\n\r\n",
}


def find(base_url: str) -> str | None:
    """Send a target requests that HTTP does not allow. Return who answers if it is not the server, else None.

    Who it is comes from its own headers. A server answers in the form of the contract, so a server that does not looks
    like an edge: --direct says that there is none.
    """
    host = f"Host: {urlsplit(base_url).netloc}".encode("ascii")
    for probe in PROBES.values():
        answer = ask(base_url, probe.replace(b"{host}", host))
        if answer is None or not is_of_the_contract(*answer):
            well_formed = ask(base_url, b"GET /health HTTP/1.1\r\n%b\r\nConnection: close\r\n\r\n" % host)
            return name_of(*(headers for _, headers in filter(None, (answer, well_formed))))
    return None


def ask(base_url: str, request: bytes) -> tuple[int, Message] | None:
    """Return the status and the headers of the answer to a request, or None if there is none that can be read."""
    try:
        with network.connect(base_url, TIMEOUT) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, response.headers
    except ssl.SSLCertVerificationError:
        raise  # that is no answer of an edge
    except (OSError, http.client.HTTPException):
        return None


def is_of_the_contract(status: int, headers: Mapping[str, str] | Message) -> bool:
    """Return whether an answer has what each answer of a server has, and so may be the server's own."""
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return "X-Request-Id" in headers and (status < 400 or media_type == "application/problem+json")


def name_of(*answers: Mapping[str, str] | Message) -> str:
    """Return the edge's name, as its headers give it."""
    for headers in answers:
        for name in ("Server", "Via"):
            if value := headers.get(name):
                return re.sub(r"[^\w ./,()-]", "", value)[:60]
    return "without a name"


def may_be_its_own(status: int) -> bool:
    """Return whether an edge may answer with this status without having asked the server.

    It must not if it cannot reach the server (502, 503, 504): that is a failure of the deployment.
    """
    return 400 <= status < 500 or status in (501, 505)


# ---- ETags -------------------------------------------------------------------------------------------------

COMPRESSED = re.compile(r'(?:W/)?"(.*?)(?:[-;](?:gzip|br|zstd|deflate))?"')


def own_etag(headers: Mapping[str, str] | Message) -> str | None:
    """Return the ETag that the server gave an answer.

    An edge that compresses an answer makes its ETag weak, or adds the coding to it (RFC 9110 section 8.8.3).
    """
    etag = headers.get("ETag")
    if etag is None or "Content-Encoding" not in headers:
        return etag
    parts = COMPRESSED.fullmatch(etag)
    return f'"{parts[1]}"' if parts else etag
