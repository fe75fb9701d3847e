"""The reference client, with each answer checked against openapi.yaml."""

import os
import secrets
from typing import Any
from urllib.parse import urlsplit

import requests

from clients.python.backup_client import BackupClient, Keys
from contract_tests.target.exchanges import Exchange, headers_of
from contract_tests.target.left_behind import NotingSession
from contract_tests.target.observer import Observer, Server


class CheckedSession(NotingSession):
    """Checks each answer against openapi.yaml, and keeps it for the report of a failing test."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True  # `send` does not read this variable itself

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        assert request.method and request.url
        path = urlsplit(request.url).path or "/"
        self.observer.skip_without_answerer(request.method, path)
        response = None
        try:
            response = super().send(request, **options)
        finally:
            exchange = exchange_of(request, response)
            self.observer.record(exchange)
        if self.observer.edge and request.body and response.status_code >= 400:
            self.close()  # an edge whose server answers before the body has arrived may close this connection, unsaid
        self.answered(request, response)
        self.observer.check(request.method, path, response.status_code, response.headers, response.content, exchange)
        return response

    def answered(self, request: requests.PreparedRequest, response: requests.Response) -> None:
        """Note an answer, before it is checked."""


def exchange_of(request: requests.PreparedRequest, response: requests.Response | None) -> Exchange:
    """Return the exchange of a request and its response, which is None if there was none."""
    assert request.method and request.url
    body = request.body or b""
    answer = None
    if response is not None:
        answer = (response.status_code, headers_of(response.headers.items()), response.content)
    headers = headers_of(request.headers.items())
    return Exchange(request.url, request.method, headers, body.encode() if isinstance(body, str) else body, answer)


def checked_client(server: Server, credentials: Keys | tuple[str, str] | None = None, **options: Any) -> BackupClient:
    """Return a client of a server. Without `credentials`, its user is a new one. `options` go to BackupClient."""
    options = {
        "secret": server.secret,
        "keyid": server.keyid,
        "clock": server.now,
        "session": CheckedSession(server.observer),
    } | options
    credentials = credentials or (secrets.token_hex(32), secrets.token_hex(32))
    return BackupClient(server.base_url, credentials=credentials, **options)
