"""How the tests reach a target: which certificates they trust, and through which proxy they go.

Libraries disagree about both. `requests` reads one variable, OpenSSL another, and a proxy that is meant for the
Internet is asked for 127.0.0.1, too. So `set_up` makes the variables agree, for this process and all that it starts.
"""

import http.client
import os
import socket
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import requests
from requests.auth import _basic_auth_str

from contract_tests.suite.outcomes import not_run

CA_BUNDLE = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # of OpenSSL (and so of Python's sockets), and of requests
NO_PROXY = ("no_proxy", "NO_PROXY")
LOOPBACK = "localhost,127.0.0.0/8,::1"


def set_up(ca_bundle: str | None) -> None:
    """Trust the certificates of one PEM file everywhere, if there is one, and reach loopback without a proxy.

    The file is `ca_bundle`, or else the one that SSL_CERT_FILE or REQUESTS_CA_BUNDLE names. Raise UsageError if it is
    not there, or has no certificate.
    """
    given = [ca_bundle] if ca_bundle else [os.environ[name] for name in CA_BUNDLE if os.environ.get(name)]
    if given:
        file = str(Path(given[0]).resolve())
        try:
            ssl.create_default_context(cafile=file)
        except OSError as error:  # an SSLError is one
            raise pytest.UsageError(f"there is no bundle of certificates in {given[0]}: {error.strerror}") from None
        for name in CA_BUNDLE:
            if ca_bundle or not os.environ.get(name):
                os.environ[name] = file
    others = next((os.environ[name] for name in NO_PROXY if os.environ.get(name)), "")
    if others != "*":
        for name in NO_PROXY:
            os.environ[name] = others if LOOPBACK in others else ",".join(filter(None, [others, LOOPBACK]))


def reason(error: BaseException) -> str:
    """Return why a request got no answer: the first error of the chain, which names no URL and no header."""
    while before := error.__cause__ or error.__context__:
        error = before
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__


def connect(base_url: str, timeout: float) -> socket.socket:
    """Return a connection to a server, with TLS if its URL is https, and through the environment's proxy if it has one.

    Whoever calls closes it. End the test as not run if the proxy is of another kind than HTTP.
    """
    url = urlsplit(base_url)
    assert url.hostname
    is_secure = url.scheme == "https"
    address = (url.hostname, url.port or (443 if is_secure else 80))
    proxy = requests.utils.select_proxy(base_url, requests.utils.get_environ_proxies(base_url))
    connection = through(proxy, address, timeout) if proxy else socket.create_connection(address, timeout)
    if not is_secure:
        return connection
    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=url.hostname)
    except BaseException:
        connection.close()
        raise


def through(proxy: str, address: tuple[str, int], timeout: float) -> socket.socket:
    """Return a connection to an address through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6)."""
    url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme != "http" or not url.hostname:
        not_run("needs a proxy that is an HTTP proxy, because it sends bytes on a socket")
    proofs = {}
    if url.username:
        proofs["Proxy-Authorization"] = _basic_auth_str(unquote(url.username), unquote(url.password or ""))
    tunnel = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=timeout)
    tunnel.set_tunnel(*address, headers=proofs)
    tunnel.connect()
    return tunnel.sock
