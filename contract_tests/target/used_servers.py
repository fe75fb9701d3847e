"""The servers that a run uses, and what a failing test shows about them: the last exchanges, and what they logged.

No text from this module contains a secret of these servers, a key, a signature or a blob.
"""

import json
import time

import pytest

from contract_tests.target.exchanges import Exchange
from contract_tests.target.observer import KEPT
from contract_tests.target.openapi import REPOSITORY
from contract_tests.target.process import ServerProcess
from contract_tests.target.redaction import redacted
from contract_tests.target.target import Target

SHOWN_REQUESTS = 20  # how many of the last lines about requests are shown; other lines are rare, and all are shown
LOG_SECONDS = 0.05  # how long after its answer a server may write its log
SHOWN_CHARACTERS = 20_000  # how many of the last characters of a server's log are shown


class UsedServers:
    """The servers of one pytest session: those of the current test, and those that tests share."""

    def __init__(self) -> None:
        self._shared: list[Target | ServerProcess] = []
        self._own: list[Target | ServerProcess] = []
        self._secrets: set[str] = set()

    def add(self, server: Target | ServerProcess, *, shared: bool = False) -> None:
        """Add a server that several tests share, or that only the current test has."""
        (self._shared if shared else self._own).append(server)

    def begin_test(self) -> None:
        """Forget what happened in the test before."""
        self._secrets |= self._current_secrets()
        self._own.clear()
        for server in self._shared:
            server.observer.forget()
            if isinstance(server, ServerProcess):
                server.mark()

    def exchanges(self) -> list[dict[str, str]]:
        """Return the last exchanges since the test began, the newest first, as `shown` returns them."""
        return [self.shown(exchange) for exchange in self._last()[:KEPT]]

    def last(self) -> Exchange | None:
        """Return the last exchange since the test began, or None if there was none."""
        return next(iter(self._last()), None)

    def _last(self) -> list[Exchange]:
        exchanges = [exchange for server in self._shared + self._own for exchange in server.observer.last]
        return sorted(exchanges, key=lambda exchange: -exchange.at)

    def shown(self, exchange: Exchange) -> dict[str, str]:
        """Return the "request" and the "answer" of an exchange as text."""
        secrets = self._secrets | self._current_secrets()
        return {"request": exchange.request_text(secrets), "answer": exchange.answer_text(secrets)}

    def log(self) -> str:
        """Return what the processes have logged and written to stderr since the test began."""
        processes = [server for server in self._shared + self._own if isinstance(server, ServerProcess)]
        time.sleep(LOG_SECONDS if processes else 0)
        texts = [(process, log_text(process)) for process in processes]
        return "\n".join(self.redacted(f"{process.base_url}\n{text}") for process, text in texts if text)

    def redacted(self, text: str) -> str:
        """Return the text without the secrets of any server of the session."""
        return redacted(text, self._secrets | self._current_secrets())

    def _current_secrets(self) -> set[str]:
        return {secret for server in self._shared + self._own for secret in server.secrets}


SERVERS = pytest.StashKey[UsedServers]()


def log_text(process: ServerProcess) -> str:
    """Return what a process has logged since its mark: errors with their tracebacks, and the last requests."""
    log, errors = process.since_mark()
    lines = log.splitlines()
    requests = [number for number, line in enumerate(lines) if '"event":"request"' in line.replace(" ", "")]
    left_out = set(requests[:-SHOWN_REQUESTS])
    shown = [readable(line) for number, line in enumerate(lines) if number not in left_out]
    if left_out:
        shown.insert(0, f"… ({len(left_out)} earlier requests)")
    if errors.strip():
        shown += ["stderr:", errors.rstrip()]
    return "\n".join(shown)[-SHOWN_CHARACTERS:]


def readable(line: str) -> str:
    """Return a line of the log. If it has a traceback, put that below the line."""
    try:
        event = json.loads(line)
    except ValueError:
        return line
    traceback = event.pop("traceback", None) if isinstance(event, dict) else None
    if not traceback:
        return line
    traceback = "".join(traceback) if isinstance(traceback, list) else str(traceback)
    return f"{json.dumps(event)}\n{traceback.rstrip()}".replace(f"{REPOSITORY}/", "")
