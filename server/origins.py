"""Web origins as browsers write them (RFC 6454 section 6.2). The server compares the text, so it has to be the same."""

import ipaddress
import re
import socket

DEFAULT_PORTS = {"http": 80, "https": 443}
ORIGIN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[^\s/?#@\[\]:]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{0,9}))?(?P<rest>[/?#].*)?"
)
PAGES = {"ws": "http", "wss": "https"}  # a page that opens a WebSocket has the origin of the page
ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")  # a host that a browser takes for IPv4
HOST = re.compile(r"[a-z0-9._~-]+|\[[0-9a-f:.]+\]")
ADVICE = (
    "An origin is a scheme, a host, and a port if it is not the usual one, such as https://app.example. "
    "Commas separate several"
)


class NoOrigin(ValueError):
    """No browser sends this as an Origin. The message says what to write instead."""


def checked(text: str) -> str:
    """Return an origin as it is, if a browser could send it so. Raise NoOrigin."""
    if text == "null":
        raise NoOrigin("null is the origin of every page that must not have one, such as a file or a sandboxed frame")
    if not (match := ORIGIN.fullmatch(text)):
        raise NoOrigin(f"{text} is no origin. {ADVICE}")
    scheme, host, port = match["scheme"].lower(), match["host"].lower(), match["port"]
    if scheme == "file":
        raise NoOrigin("a page from a file has the origin null, which every page can have")
    if not host.isascii():
        raise NoOrigin(f"{text}: a browser sends the name in ASCII (xn--…), so write that one")
    if "*" in host:
        raise NoOrigin(f"{text}: origins are compared exactly, so list each one")
    if not HOST.fullmatch(host):
        raise NoOrigin(f"{text} is no origin. {ADVICE}")
    scheme = PAGES.get(scheme, scheme)
    try:
        if host.startswith("["):
            host = f"[{ipv6(host[1:-1])}]"
        elif scheme in DEFAULT_PORTS and ENDS_IN_A_NUMBER.fullmatch(host):
            host = ipv4(host)
    except ValueError:
        raise NoOrigin(f"{text} is no origin: the address in it is none") from None
    if port and int(port) > 65_535:
        raise NoOrigin(f"{text} is no origin: a port is at most 65535")
    is_usual = not port or int(port) == DEFAULT_PORTS.get(scheme)
    origin = f"{scheme}://{host}" if is_usual else f"{scheme}://{host}:{int(port)}"
    if origin != text:
        raise NoOrigin(f"a browser never sends {text}: write {origin}")
    return origin


def ipv6(text: str) -> str:
    """Return an IPv6 address as a browser writes it. Raise ValueError."""
    address = ipaddress.IPv6Address(text)
    if address.ipv4_mapped:  # Python writes the last four bytes as IPv4
        high, low = divmod(int(address.ipv4_mapped), 0x10000)
        return f"::ffff:{high:x}:{low:x}"
    return address.compressed


def ipv4(text: str) -> str:
    """Return an IPv4 address as a browser writes it, from any form that it reads (127.1). Raise ValueError."""
    try:
        return socket.inet_ntoa(socket.inet_aton(text.removesuffix(".")))
    except OSError:
        raise ValueError from None
